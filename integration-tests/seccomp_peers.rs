//! The compiler beside libseccomp, through python3-seccomp: equal tables, equal verdicts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use shannot::seccomp::{Abi, Action, Call, Context, Document, Policy, Program};

use crate::support::*;

/// Runs a program with python3-seccomp; each line of input is JSON, and so is each line of output.
fn libseccomp(program: &str, lines: &[Value]) -> Option<Vec<Value>> {
    let python = tool("python3")?;
    let has_it = Command::new(&python).args(["-c", "import seccomp"]).stderr(Stdio::null()).status().unwrap().success();
    if !has_it {
        skip("python3-seccomp is not installed");
        return None;
    }
    let mut child =
        Command::new(python).args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn the_tables_agree() {
    const PROGRAM: &str = "
import json, seccomp, sys
for line in sys.stdin:
    arch, names = json.loads(line)
    arch = getattr(seccomp.Arch, arch.upper())
    print(json.dumps([seccomp.resolve_syscall(arch, name) for name in names]))
";
    let abis = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Arm, Abi::Aarch64, Abi::Riscv64];
    let calls: Vec<Vec<(u32, &str)>> = abis.iter().map(|abi| abi.calls().collect()).collect();
    let lines: Vec<Value> = abis
        .iter()
        .zip(&calls)
        .map(|(abi, calls)| json!([abi.to_string(), calls.iter().map(|(_, name)| name).collect::<Vec<_>>()]))
        .collect();
    let Some(answers) = libseccomp(PROGRAM, &lines) else { return };
    for ((abi, calls), numbers) in abis.iter().zip(calls).zip(answers) {
        let mut compared = 0;
        for ((ours, name), theirs) in calls.into_iter().zip(numbers.as_array().unwrap()) {
            // Negative numbers are calls that libseccomp does not know there, or multiplexes.
            let theirs = theirs.as_i64().unwrap();
            let multiplexed = *abi == Abi::X86 && [102, 117].contains(&theirs);
            if theirs >= 0 && !multiplexed {
                assert_eq!(i64::from(ours), theirs, "{abi} {name}");
                compared += 1;
            }
        }
        assert!(compared > 250, "{abi}: {compared}");
    }
}

/// Names that all three have: for others libseccomp compares with numbers of its own (-10026 for _llseek on x86-64).
const NAMES: [&str; 9] = ["read", "ioctl", "clone", "personality", "preadv", "fcntl", "prctl", "socket", "connect"];

/// Policies on which libseccomp does what they say. Of several rules on one call it loses some where they overlap (2.5.4:
/// arg1 <= 2^32 beside arg1 == 15 && arg2 < 29 refuses arg1 == 0), so there is one rule of several conditions, or
/// several rules of one value each.
fn policies() -> impl Strategy<Value = Value> {
    let value = prop_oneof![Just(0_u64), 1_u64..40, Just(0xffff_ffff), Just(0x1_0000_0000), any::<u64>()].boxed();
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let condition = |index: u32, value: u64, two: u64, op: &str| json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")});
    let argument = (value.clone(), value.clone(), prop::sample::select(operators.to_vec()));
    let one_rule = proptest::collection::vec(argument, 0..4).prop_map(move |arguments| {
        let conditions =
            arguments.into_iter().zip(0..).map(|((value, two, op), index)| condition(index, value, two, op));
        vec![conditions.collect::<Vec<Value>>()]
    });
    let many_rules = (0_u32..3, proptest::collection::vec(value, 1..12)).prop_map(move |(index, values)| {
        // It also loses values when there are several high words.
        let values: BTreeSet<u64> = values.into_iter().map(|value| value & 0xffff_ffff).collect();
        values.into_iter().map(|value| vec![condition(index, value, 0, "EQ")]).collect()
    });
    let call = (prop::sample::select(NAMES.to_vec()), 2_u16..60, prop_oneof![one_rule, many_rules]);
    let default = prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"]);
    let architectures = prop::sample::subsequence(vec!["SCMP_ARCH_X86", "SCMP_ARCH_X32"], 0..=2);
    (default, architectures, proptest::collection::vec(call, 1..6)).prop_map(|(default, architectures, calls)| {
        let calls: BTreeMap<&str, _> = calls.into_iter().map(|(name, errno, rules)| (name, (errno, rules))).collect();
        let mut rules = Vec::new();
        for (name, (errno, alternatives)) in calls {
            for mut args in alternatives {
                // Of a multiplexed call libseccomp compares the multiplexer's arguments, but for the first.
                if ["socket", "connect"].contains(&name) {
                    args.truncate(1);
                    args.iter_mut().for_each(|argument| argument["index"] = json!(0));
                }
                rules.push(json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args}));
            }
        }
        json!({"defaultAction": default, "architectures": architectures, "syscalls": rules})
    })
}

/// Both kill a foreign architecture: libseccomp the thread, we the process.
fn verdict(program: &Program, call: &Call) -> Action {
    match program.run(call) {
        Action::KillThread => Action::KillProcess,
        action => action,
    }
}

#[test]
fn libseccomp_says_the_same() {
    const PROGRAM: &str = "
import json, os, seccomp, sys, tempfile
ACTIONS = {'SCMP_ACT_ALLOW': seccomp.ALLOW, 'SCMP_ACT_KILL_PROCESS': seccomp.KILL_PROCESS}
def action(name, errno):
    return seccomp.ERRNO(errno) if name == 'SCMP_ACT_ERRNO' else ACTIONS[name]
for line in sys.stdin:
    policy = json.loads(line)
    f = seccomp.SyscallFilter(action(policy['defaultAction'], 1))
    for arch in policy['architectures']:
        f.add_arch(getattr(seccomp.Arch, arch[10:]))
    for rule in policy['syscalls']:
        args = []
        for a in rule['args']:
            op = a['op'][9:]
            values = [a['value'], a['valueTwo']] if op == 'MASKED_EQ' else [a['value']]
            args.append(seccomp.Arg(a['index'], getattr(seccomp, op), *values))
        try:
            f.add_rule(action(rule['action'], rule['errnoRet']), rule['names'][0], *args)
        except (RuntimeError, ValueError) as e:
            # The same rule twice, or a name that it does not know.
            pass
    with tempfile.TemporaryFile() as out:
        f.export_bpf(out)
        out.seek(0)
        print(json.dumps(out.read().hex()))
";
    let mut runner = TestRunner::deterministic();
    let policies: Vec<Value> = (0..400).map(|_| policies().new_tree(&mut runner).unwrap().current()).collect();
    let Some(answers) = libseccomp(PROGRAM, &policies) else { return };
    let mut points = 0;
    for (document, answer) in policies.iter().zip(answers) {
        let hex = answer.as_str().unwrap().as_bytes();
        let digit = |digit: u8| char::from(digit).to_digit(16).unwrap();
        let bytes: Vec<u8> =
            hex.chunks(2).map(|pair| u8::try_from(digit(pair[0]) << 4 | digit(pair[1])).unwrap()).collect();
        let theirs = Program::from_bytes(&bytes).unwrap();
        let parsed = Document::parse(document.to_string().as_bytes()).unwrap();
        let context = Context { native: Abi::X86_64, capabilities: [].into(), kernel: (6, 1) };
        let policy = Policy::new(&parsed, &context).unwrap();
        let ours = Program::compile(&policy).unwrap();
        for call in calls(&policy) {
            assert_eq!(verdict(&ours, &call), verdict(&theirs, &call), "{call:x?} of {document}");
            points += 1;
        }
    }
    assert!(points > 100_000, "{points}");
}

fn calls(policy: &Policy) -> Vec<Call> {
    let mut calls = Vec::new();
    for abi in [Abi::X86_64, Abi::X86, Abi::X32] {
        // The kernel gives a filter 32-bit arguments on i386.
        let word = |value: u64| if abi == Abi::X86 { value & 0xffff_ffff } else { value };
        let mut add = |nr: u32, args: [u64; 6]| {
            calls.push(Call { nr, arch: abi.audit_arch(), args: args.map(word), ..Call::default() });
        };
        let multiplexers = ["socketcall", "ipc"];
        for (nr, name) in
            abi.calls().filter(|(_, name)| NAMES.contains(name) || multiplexers.contains(name) || name.starts_with('w'))
        {
            for value in [0, 1, 3, 5, 0xffff_ffff, u64::MAX] {
                add(nr, [value; 6]);
            }
            for rule in policy.rules.iter().filter(|rule| rule.names.iter().any(|named| named == name)) {
                let mut args = [0; 6];
                for condition in &rule.conditions {
                    args[usize::from(condition.argument)] = condition.value;
                }
                add(nr, args);
                for condition in &rule.conditions {
                    for value in
                        [condition.value.wrapping_sub(1), condition.value.wrapping_add(1), condition.value ^ 1 << 40]
                    {
                        let mut args = args;
                        args[usize::from(condition.argument)] = value;
                        add(nr, args);
                    }
                }
            }
        }
        // A number that no interface has, and none at all.
        add(0x0fff_ffff, [0; 6]);
        add(u32::MAX, [0; 6]);
    }
    calls
}
