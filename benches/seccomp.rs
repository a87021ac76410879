//! `cargo bench --bench seccomp`: the size of compiled filters and what a call costs under them, beside both modes of
//! libseccomp where python3-seccomp is installed; and how long it takes to parse and compile. Figures, no verdicts.
//!
//! Executed instructions are counted by the interpreter over all known calls of the interfaces that the policy filters,
//! with arguments that are all zero, all ones, and each value (and its neighbours) that the policy compares with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program for developers, whose way to fail is to panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use shannot::seccomp::{Abi, Call, Context, Document, Policy, Preset, Program};

/// Reads a resolved policy and prints libseccomp's program for it.
const LIBSECCOMP: &str = r#"
import json, os, seccomp, sys
policy = json.load(sys.stdin)
def action(text):
    kind, _, value = text.partition(" ")
    return {"allow": seccomp.ALLOW, "log": seccomp.LOG, "kill": seccomp.KILL_PROCESS}.get(kind) or seccomp.ERRNO(int(value))
f = seccomp.SyscallFilter(action(policy["default"]))
for arch in policy["arches"][1:]:
    f.add_arch(getattr(seccomp.Arch, arch.upper()))
f.set_attr(seccomp.Attr.CTL_OPTIMIZE, int(sys.argv[1]))
for rule in policy["rules"]:
    args = [seccomp.Arg(index, getattr(seccomp, op), *values) for index, op, *values in rule["args"]]
    for name in rule["names"]:
        try:
            f.add_rule(action(rule["action"]), name, *args)
        except (RuntimeError, ValueError):
            pass
f.export_bpf(sys.stdout)
"#;

fn main() {
    println!("{:<34} {:>12} {:>9} {:>7} {:>11}", "policy, interfaces", "instructions", "mean", "worst", "compile ms");
    for (name, text) in policies() {
        for all in [true, false] {
            let document = Document::parse(text.as_bytes()).unwrap();
            let context = Context { native: Abi::X86_64, capabilities: BTreeSet::new(), kernel: (6, 1) };
            let mut policy = Policy::new(&document, &context).unwrap();
            if all {
                policy.abis = vec![Abi::X86_64, Abi::X86, Abi::X32];
            } else {
                policy.abis.truncate(1);
            }
            let calls = calls(&policy);
            let program = Program::compile(&policy).unwrap();
            let interfaces = if all { "x86_64+x86+x32" } else { "x86_64" };
            let milliseconds = (0..20).map(|_| parse_and_compile(&text, &context)).fold(f64::MAX, f64::min);
            line(&format!("{name}, {interfaces}"), &program, &calls, Some(milliseconds));
            for (mode, optimize) in [("libseccomp", "1"), ("libseccomp, OPTIMIZE=2", "2")] {
                if let Some(program) = libseccomp(&policy, optimize) {
                    line(&format!("  {mode}"), &program, &calls, None);
                }
            }
        }
    }
    for preset in ["default", "strict", "readonly"] {
        let program = preset.parse::<Preset>().unwrap().program().unwrap();
        let calls: Vec<Call> = Abi::NATIVE.calls().map(|(nr, _)| call(Abi::NATIVE, nr, [0; 6])).collect();
        line(&format!("preset {preset}"), &program, &calls, None);
    }
}

fn line(name: &str, program: &Program, calls: &[Call], milliseconds: Option<f64>) {
    let counts: Vec<usize> = calls.iter().map(|call| program.run_counted(call).1).collect();
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let time = milliseconds.map_or(String::new(), |ms| format!("{ms:.2}"));
    let worst = counts.iter().max().unwrap();
    println!("{name:<34} {:>12} {mean:>9.1} {worst:>7} {time:>11}", program.instructions().len());
}

fn parse_and_compile(text: &str, context: &Context) -> f64 {
    let start = Instant::now();
    let document = Document::parse(text.as_bytes()).unwrap();
    let program = Program::compile(&Policy::new(&document, context).unwrap()).unwrap();
    assert!(!program.instructions().is_empty());
    start.elapsed().as_secs_f64() * 1e3
}

/// The real policies, where they are, and one of 400 argument rules.
fn policies() -> Vec<(String, String)> {
    let folder = Path::new("../shared/data/seccomp-policies");
    let names = ["docker-default", "podman-seccomp", "shannot-guide-readonly"];
    let read = |name: &str| Some((name.to_owned(), std::fs::read_to_string(folder.join(format!("{name}.json"))).ok()?));
    let mut policies: Vec<_> = names.into_iter().filter_map(read).collect();
    let rules: Vec<_> = (0..400_u64)
        .map(|index| {
            let argument = serde_json::json!({"index": 1, "value": 0x5000 + 3 * index, "op": "SCMP_CMP_EQ"});
            serde_json::json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [argument]})
        })
        .collect();
    let many = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
    policies.push(("400 argument rules".to_owned(), many.to_string()));
    let scattered = many.to_string();
    let scattered = (0..400_u64).fold(scattered, |text, index| {
        let value = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        text.replace(&format!("\"value\":{}}}", 0x5000 + 3 * index), &format!("\"value\":{value}}}"))
    });
    policies.push(("400 scattered rules".to_owned(), scattered));
    policies
}

fn call(abi: Abi, nr: u32, args: [u64; 6]) -> Call {
    Call { nr, arch: abi.audit_arch(), args, ..Call::default() }
}

fn calls(policy: &Policy) -> Vec<Call> {
    let mut values: BTreeMap<&str, BTreeSet<(u8, u64)>> = BTreeMap::new();
    for rule in &policy.rules {
        for name in &rule.names {
            for condition in &rule.conditions {
                let near =
                    [condition.value.wrapping_sub(1), condition.value, condition.value.wrapping_add(1), condition.mask];
                values.entry(name).or_default().extend(near.map(|value| (condition.argument, value)));
            }
        }
    }
    let mut calls = Vec::new();
    for abi in &policy.abis {
        for (nr, name) in abi.calls() {
            calls.extend([[0; 6], [u64::MAX; 6]].map(|args| call(*abi, nr, args)));
            for (argument, value) in values.get(name).into_iter().flatten() {
                let mut args = [0; 6];
                args[usize::from(*argument)] = *value;
                calls.push(call(*abi, nr, args));
            }
        }
    }
    calls
}

fn libseccomp(policy: &Policy, optimize: &str) -> Option<Program> {
    use shannot::seccomp::Action;
    let action = |action: Action| match action {
        Action::Allow => "allow".to_owned(),
        Action::Log => "log".to_owned(),
        Action::Errno(errno) => format!("errno {errno}"),
        _ => "kill".to_owned(),
    };
    let rules: Vec<_> = policy
        .rules
        .iter()
        .map(|rule| {
            let args: Vec<_> = rule
                .conditions
                .iter()
                .map(|condition| {
                    let name = serde_json::to_value(condition.operator).unwrap();
                    let name = name.as_str().unwrap().trim_start_matches("SCMP_CMP_").to_owned();
                    if name == "MASKED_EQ" {
                        serde_json::json!([condition.argument, name, condition.mask, condition.value])
                    } else {
                        serde_json::json!([condition.argument, name, condition.value])
                    }
                })
                .collect();
            serde_json::json!({"names": rule.names, "action": action(rule.action), "args": args})
        })
        .collect();
    let arches: Vec<String> = policy.abis.iter().map(ToString::to_string).collect();
    let text = serde_json::json!({"default": action(policy.default), "arches": arches, "rules": rules}).to_string();
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", LIBSECCOMP, optimize])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(text.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    Program::from_bytes(&output.stdout).ok()
}
