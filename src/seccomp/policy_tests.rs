//! The compiler against its policy: what a program says of a call is what the policy says, word by word. And what a
//! document means.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The policy's meaning, straight from its rules.
fn oracle(policy: &Policy, call: &Call) -> Action {
    let is_x32 = call.nr & 0x4000_0000 != 0;
    let abi = match call.arch {
        0xc000_003e if is_x32 => Abi::X32,
        0xc000_003e => Abi::X86_64,
        0x4000_0003 => Abi::X86,
        0xc000_00b7 => Abi::Aarch64,
        0x4000_0028 => Abi::Arm,
        0xc000_00f3 => Abi::Riscv64,
        _ => return Action::KillProcess,
    };
    if !policy.abis.contains(&abi) {
        let skipped = abi == Abi::X32 && policy.abis.contains(&Abi::X86_64) && call.nr == u32::MAX;
        return if skipped { policy.default } else { Action::KillProcess };
    }
    let Some(name) = abi.name(call.nr) else { return policy.default };
    // Of socketcall and ipc a rule on the sub-call speaks too, with one condition in the place of its own.
    let sub_call = match (abi, name, call.args[0] & 0xffff_ffff) {
        (Abi::X86, "socketcall", 1) => "socket",
        (Abi::X86, "socketcall", 3) => "connect",
        (Abi::X86, "ipc", sub) if sub & 0xffff == 2 => "semget",
        _ => "",
    };
    let word = |value: u64| if abi.is_wide() { value } else { value & 0xffff_ffff };
    let mut verdict = None;
    for rule in &policy.rules {
        if rule.names.iter().any(|named| named == sub_call)
            && !(rule.action.lets_through() && rule.conditions.iter().any(|condition| condition.argument > 0))
        {
            verdict = verdict.or(Some(rule.action));
        }
        if !rule.names.iter().any(|named| named == name) {
            continue;
        }
        if rule.conditions.is_empty() {
            return rule.action;
        }
        let holds = rule.conditions.iter().all(|condition| {
            let datum = word(call.args[usize::from(condition.argument)]);
            let value = word(condition.value);
            match condition.operator {
                Operator::NotEqual => datum != value,
                Operator::Less => datum < value,
                Operator::LessOrEqual => datum <= value,
                Operator::Equal => datum == value,
                Operator::GreaterOrEqual => datum >= value,
                Operator::Greater => datum > value,
                Operator::MaskedEqual => datum & word(condition.mask) == value,
            }
        });
        if holds {
            verdict = verdict.or(Some(rule.action));
        }
    }
    verdict.unwrap_or(policy.default)
}

const NAMES: [&str; 14] = [
    "read",
    "write",
    "ioctl",
    "socket",
    "connect",
    "semget",
    "socketcall",
    "ipc",
    "clone",
    "execve",
    "mmap2",
    "preadv",
    "nosuchcall",
    "personality",
];

/// Values near each other, near the border of a word, and anywhere.
fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..80,
        2 => (0_u64..4, prop::sample::select(vec![0_u64, 1, 0x7fff_ffff, 0xffff_ffff]))
            .prop_map(|(near, base)| (base << 32 | 0xffff_fffe).wrapping_add(near)),
        1 => any::<u64>(),
    ]
}

fn actions() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => Just(json!({"action": "SCMP_ACT_ALLOW"})),
        4 => (0_u16..4).prop_map(|errno| json!({"action": "SCMP_ACT_ERRNO", "errnoRet": errno})),
        1 => (0_u16..9).prop_map(|value| json!({"action": "SCMP_ACT_TRACE", "errnoRet": value})),
        2 => prop::sample::select(vec!["KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "LOG"])
            .prop_map(|name| json!({"action": format!("SCMP_ACT_{name}")})),
    ]
}

fn arguments() -> impl Strategy<Value = Value> {
    let operators = ["NE", "LT", "LE", "EQ", "EQ", "EQ", "GE", "GT", "MASKED_EQ"];
    (
        prop_oneof![3 => Just(0_u32), 2 => Just(1), 1 => 2_u32..6],
        values(),
        values(),
        prop::sample::select(operators.to_vec()),
    )
        .prop_map(|(index, value, two, op)| {
            json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")})
        })
}

fn rules() -> impl Strategy<Value = Value> {
    let conditions = prop_oneof![
        1 => Just(Vec::new()),
        5 => proptest::collection::vec(arguments(), 1..2),
        2 => proptest::collection::vec(arguments(), 2..4),
    ];
    (proptest::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4), actions(), conditions).prop_map(
        |(names, mut rule, args)| {
            rule["names"] = json!(names);
            rule["args"] = json!(args);
            rule
        },
    )
}

/// Many values of one argument, as a search likes them.
fn many() -> impl Strategy<Value = Vec<Value>> {
    (proptest::collection::btree_set(0_u64..700, 0..120), 0_u64..3, actions()).prop_map(|(values, high, action)| {
        let rule = |value: u64| {
            let mut rule = action.clone();
            rule["names"] = json!(["ioctl"]);
            rule["args"] = json!([{"index": 1, "value": high << 32 | value, "op": "SCMP_CMP_EQ"}]);
            rule
        };
        values.into_iter().map(rule).collect()
    })
}

fn documents() -> impl Strategy<Value = Value> {
    let architectures = prop::sample::subsequence(vec!["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"], 0..=3);
    (actions(), architectures, proptest::collection::vec(rules(), 0..24), many()).prop_map(
        |(default, architectures, mut rules, many)| {
            rules.extend(many);
            json!({"defaultAction": default["action"], "defaultErrnoRet": default["errnoRet"],
                   "architectures": architectures, "syscalls": rules})
        },
    )
}

fn context(native: Abi) -> Context {
    Context { native, capabilities: [].into(), kernel: (6, 1) }
}

fn resolve(document: &Value) -> Result<Policy, String> {
    resolve_for(Abi::X86_64, document)
}

fn resolve_for(native: Abi, document: &Value) -> Result<Policy, String> {
    let document = Document::parse(document.to_string().as_bytes()).map_err(|error| error.to_string())?;
    Policy::new(&document, &context(native)).map_err(|error| error.to_string())
}

/// Calls that a policy may tell apart, and others.
fn calls(policy: &Policy, noise: &[(u32, [u64; 6])]) -> Vec<Call> {
    let mut calls = Vec::new();
    let numbers = |abi: Abi| {
        NAMES.iter().filter_map(move |name| abi.number(name)).chain([0x3fff_ffff, 0x4000_0000, 600, u32::MAX])
    };
    for abi in Abi::ALL {
        let call = |nr, args| Call { nr, arch: abi.audit_arch(), args, ..Call::default() };
        for nr in numbers(abi) {
            calls.extend((0..25).map(|sub| call(nr, [sub; 6])));
            calls.extend(noise.iter().map(|(_, args)| call(nr, *args)));
        }
        calls.extend(noise.iter().map(|(nr, args)| call(*nr, *args)));
        for rule in &policy.rules {
            for nr in rule.names.iter().filter_map(|name| abi.number(name)) {
                let mut args = [0; 6];
                for condition in &rule.conditions {
                    args[usize::from(condition.argument)] = condition.value;
                }
                calls.push(call(nr, args));
                for condition in &rule.conditions {
                    for value in
                        [condition.value.wrapping_sub(1), condition.value.wrapping_add(1), condition.value ^ 1 << 33]
                    {
                        let mut args = args;
                        args[usize::from(condition.argument)] = value;
                        calls.push(call(nr, args));
                    }
                }
            }
        }
    }
    calls.push(Call { nr: 0, arch: 0x8000_0016, ..Call::default() });
    calls
}

proptest! {
    // About 3,000 calls each. PROPTEST_CASES takes it to as many millions of points as one has time for.
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(300), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_program_says_what_the_policy_says(document in documents(), noise in proptest::collection::vec((0_u32..1000, proptest::array::uniform6(values())), 20)) {
        let default_takes_no_errno = resolve(&document).is_err();
        let mut document = document;
        if default_takes_no_errno {
            document.as_object_mut().unwrap().remove("defaultErrnoRet");
        }
        let policy = resolve(&document).unwrap();
        let program = Program::compile(&policy).unwrap();
        for call in calls(&policy, &noise) {
            prop_assert_eq!(program.run(&call), oracle(&policy, &call), "{:x?}", call);
        }
        prop_assert_eq!(&program, &Program::compile(&policy).unwrap());
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        drop(Document::parse(text.as_bytes()));
    }
}

#[test]
fn a_policy_for_another_machine_compiles_with_its_numbers() {
    let text = json!({"defaultAction": "SCMP_ACT_ERRNO", "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null}],
        "syscalls": [{"names": ["openat", "cacheflush"], "action": "SCMP_ACT_ALLOW"}]});
    let document = Document::parse(text.to_string().as_bytes()).unwrap();
    for (native, abis, openat) in [
        (Abi::X86_64, vec![Abi::X86_64, Abi::X86], 257),
        (Abi::Aarch64, vec![Abi::Aarch64, Abi::Arm], 56),
        (Abi::Riscv64, vec![Abi::Riscv64], 56),
    ] {
        let policy = Policy::new(&document, &context(native)).unwrap();
        assert_eq!(policy.abis, abis);
        let program = Program::compile(&policy).unwrap();
        let run = |abi: Abi, nr| program.run(&Call { nr, arch: abi.audit_arch(), ..Call::default() });
        assert_eq!(run(native, openat), Action::Allow);
        assert_eq!(run(native, openat + 1), Action::Errno(1));
        if native == Abi::Aarch64 {
            assert_eq!(run(Abi::Arm, 0xf_0002), Action::Allow);
            assert_eq!(run(Abi::Arm, 322), Action::Allow);
        }
    }
}

#[test]
fn each_fault_of_a_document_is_named_with_its_place() {
    let base =
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]});
    assert!(resolve(&base).is_ok());
    for (pointer, value, expected) in [
        ("/defaultActon", json!(1), "unknown field `defaultActon`"),
        ("/defaultAction", json!("SCMP_ACT_ALOW"), "defaultAction: unknown variant"),
        ("/defaultAction", json!("SCMP_ACT_NOTIFY"), "defaultAction: SCMP_ACT_NOTIFY"),
        ("/defaultErrnoRet", json!(4096), "defaultErrnoRet: 4096 is no errno"),
        ("/defaultErrnoRet", json!(-1), "defaultErrnoRet: invalid value"),
        ("/defaultErrno", json!("ENOPE"), "defaultErrno: unknown errno"),
        ("/architectures", json!(["SCMP_ARCH_X68"]), "architectures[0]: unknown architecture"),
        ("/flags", json!(["SECCOMP_FILTER_FLAG_LOGS"]), "flags[0]: unknown variant"),
        ("/syscalls", json!({}), "syscalls: invalid type"),
        ("/syscalls/0/names", json!([]), "syscalls[0].names: it names no call"),
        ("/syscalls/0/names", json!([""]), "syscalls[0].names[0]: it is empty"),
        ("/syscalls/0/name", json!("write"), "syscalls[0].name: there is `names` too"),
        ("/syscalls/0/errnoRet", json!(1), "syscalls[0].errnoRet: action Allow takes no errno"),
        (
            "/syscalls/0/args",
            json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]),
            "syscalls[0].args[0].index: 6 is not",
        ),
        (
            "/syscalls/0/args",
            json!([{"index": 0, "value": -3, "op": "SCMP_CMP_EQ"}]),
            "syscalls[0].args[0].value: invalid value",
        ),
        (
            "/syscalls/0/args",
            json!([{"index": 0, "value": 1, "op": "SCMP_CMP_XX"}]),
            "syscalls[0].args[0].op: unknown variant",
        ),
        ("/syscalls/0/includes", json!({"caps": ["SYS_ADMIN"]}), "syscalls[0].includes.caps[0]"),
        ("/syscalls/0/includes", json!({"minKernel": "new"}), "syscalls[0].includes.minKernel"),
        ("/syscalls/0/excludes", json!({"cap": []}), "syscalls[0].excludes.cap: unknown field"),
    ] {
        let mut document = base.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[key] = value;
        let error = resolve(&document).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let both = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]});
    assert!(resolve(&both).unwrap_err().starts_with("archMap: there is `architectures` too"));
    let notify =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]});
    assert!(resolve(&notify).unwrap_err().starts_with("syscalls[0].action: SCMP_ACT_NOTIFY on write"));
    assert!(Document::parse(b"{\"defaultAction\": \"SCMP_ACT_ALLOW\"} trailing").is_err());
    assert!(Document::parse(b"{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"defaultAction\": \"SCMP_ACT_KILL\"}").is_err());
}

#[test]
fn rules_apply_by_capability_architecture_and_kernel() {
    let rule = |key: &str, selector: Value| {
        let mut rule = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        rule[key] = selector;
        Document::parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}).to_string().as_bytes()).unwrap()
    };
    let context = Context {
        native: Abi::X86_64,
        capabilities: ["CAP_SYS_ADMIN".to_owned(), "CAP_SYS_CHROOT".to_owned()].into(),
        kernel: (5, 9),
    };
    for (key, selector, applies) in [
        ("includes", json!({}), true),
        ("includes", json!({"caps": ["CAP_SYS_ADMIN"]}), true),
        ("includes", json!({"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}), false),
        ("excludes", json!({"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}), false),
        ("excludes", json!({"caps": ["CAP_BPF"]}), true),
        ("includes", json!({"arches": ["arm64", "amd64"]}), true),
        ("includes", json!({"arches": ["arm64"]}), false),
        ("excludes", json!({"arches": ["amd64"]}), false),
        ("includes", json!({"minKernel": "5.9"}), true),
        ("includes", json!({"minKernel": "5.10"}), false),
        ("includes", json!({"minKernel": "4.8", "caps": ["CAP_BPF"]}), false),
        ("excludes", json!({"minKernel": "4.8"}), false),
        ("excludes", json!({"minKernel": "6.0"}), true),
    ] {
        let policy = Policy::new(&rule(key, selector.clone()), &context).unwrap();
        assert_eq!(!policy.rules.is_empty(), applies, "{key} {selector}");
    }
}

#[test]
fn podmans_errno_by_name_wins_over_the_number() {
    let policy = resolve(
        &json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS", "syscalls":
        [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EROFS"},
         {"name": "write", "action": "SCMP_ACT_ERRNO"}]}),
    )
    .unwrap();
    assert_eq!(policy.default, Action::Errno(38));
    assert_eq!(policy.rules[0].action, Action::Errno(30));
    assert_eq!(policy.rules[1].action, Action::Errno(1));
}

#[test]
fn one_argument_twice_means_either() {
    let argument = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
    let policy = resolve(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls":
        [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [argument(3), argument(9)]}]}))
    .unwrap();
    let program = Program::compile(&policy).unwrap();
    let run = |value| program.run(&Call { nr: 0, arch: 0xc000_003e, args: [value, 0, 0, 0, 0, 0], ..Call::default() });
    assert_eq!([run(3), run(9), run(4)], [Action::Allow, Action::Allow, Action::Errno(1)]);
}

#[test]
fn more_than_the_kernel_takes_is_refused_and_not_cut() {
    let scattered = |value: u64| json!([{"index": 1, "value": value * 1_000_003, "op": "SCMP_CMP_EQ"}]);
    // Each about something else, so that nothing can be searched.
    let masks =
        |value: u64| json!([{"index": 1, "value": 1 << 20 | value, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]);
    // Combinations that multiply.
    let several = |value: u64| {
        let condition = |index: u64| json!({"index": index, "value": (value * 7919 + index * 104_729) % 65_521, "op": "SCMP_CMP_LT"});
        json!([condition(value % 6), condition((value + 1) % 6), condition((value + 3) % 6)])
    };
    let masks_of_all = |value: u64| {
        let mask =
            |index: u64| (value + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7 * u32::try_from(index).unwrap());
        let condition = |index: u64| json!({"index": index, "value": mask(index), "valueTwo": mask(index) & value, "op": "SCMP_CMP_MASKED_EQ"});
        Value::from((0..6).map(condition).collect::<Vec<_>>())
    };
    for args in [&scattered as &dyn Fn(u64) -> Value, &masks, &several, &masks_of_all] {
        let rule = |value| json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args(value)});
        let rules: Vec<Value> = (0..6000_u64).map(rule).collect();
        let policy = resolve(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})).unwrap();
        let error = Program::compile(&policy).unwrap_err().to_string();
        assert!(error.contains("the kernel takes at most 4096"), "{error}");
    }
}

#[test]
fn the_launch_gate_asks_about_native_launches_and_refuses_others() {
    let gate = Program::gate(Gate { launches: true, mappings: false }).unwrap();
    let run = |program: &Program, abi: Abi, name: &str| {
        program.run(&Call { nr: abi.number(name).unwrap(), arch: abi.audit_arch(), ..Call::default() })
    };
    let nothing = resolve_for(Abi::NATIVE, &json!({"defaultAction": "SCMP_ACT_ERRNO"})).unwrap();
    let refusing = Program::compile(&nothing).unwrap();
    let behind = refusing.behind_gate().unwrap();
    for name in ["execve", "execveat"] {
        assert_eq!(run(&gate, Abi::NATIVE, name), Action::Notify);
        assert_eq!(run(&behind, Abi::NATIVE, name), Action::Allow);
    }
    assert_eq!(run(&gate, Abi::NATIVE, "read"), Action::Allow);
    assert_eq!(run(&behind, Abi::NATIVE, "read"), Action::Errno(1));
    if cfg!(target_arch = "x86_64") {
        for abi in [Abi::X86, Abi::X32] {
            assert_eq!(run(&gate, abi, "execve"), Action::Errno(1));
            assert_eq!(run(&gate, abi, "execveat"), Action::Errno(1));
        }
        assert_eq!(run(&behind, Abi::X86, "execve"), Action::KillProcess);
    }
}

#[test]
fn the_mapping_gate_asks_about_files_that_become_executable() {
    let gate = Program::gate(Gate { launches: false, mappings: true }).unwrap();
    let foreign: &[Abi] = if cfg!(target_arch = "x86_64") { &[Abi::X86, Abi::X32] } else { &[] };
    for abi in foreign.iter().copied().chain([Abi::NATIVE]) {
        let run = |name: &str, args: [u64; 6]| {
            gate.run(&Call { nr: abi.number(name).unwrap(), arch: abi.audit_arch(), args, ..Call::default() })
        };
        let mmap = if abi == Abi::X86 { "mmap2" } else { "mmap" };
        for (prot, flags, verdict) in [
            (5, 0x2, Action::Notify),
            (4, 0x1, Action::Notify),
            (0xffff_ffff_0000_0007, 0x812, Action::Notify),
            (1, 0x2, Action::Allow),
            (3, 0x22, Action::Allow),
            (7, 0x22, Action::Allow),
        ] {
            assert_eq!(run(mmap, [0, 4096, prot, flags, 3, 0]), verdict, "{abi:?} {prot:#x} {flags:#x}");
        }
        for (prot, verdict) in [(7, Action::Notify), (0xffff_ffff_0000_0004, Action::Notify), (3, Action::Allow)] {
            for name in ["mprotect", "pkey_mprotect"] {
                assert_eq!(run(name, [0, 4096, prot, 0, 0, 0]), verdict, "{abi:?} {name} {prot:#x}");
                assert!(Gate::is_protection(abi.number(name).unwrap().cast_signed()));
            }
            assert!(!Gate::is_protection(abi.number(mmap).unwrap().cast_signed()));
        }
        for (persona, verdict) in [
            (0x0040_0000, Action::Errno(1)),
            (0x0044_0000, Action::Errno(1)),
            (0xffff_ffff, Action::Allow),
            (0, Action::Allow),
        ] {
            assert_eq!(run("personality", [persona, 0, 0, 0, 0, 0]), verdict, "{abi:?} {persona:#x}");
        }
        assert_eq!(run("execve", [0; 6]), Action::Allow);
        assert_eq!(run("read", [0, 0, 4, 2, 0, 0]), Action::Allow);
    }
    if cfg!(target_arch = "x86_64") {
        let old = Call { nr: 90, arch: Abi::X86.audit_arch(), ..Call::default() };
        assert_eq!(gate.run(&old), Action::Errno(1));
    }
}
