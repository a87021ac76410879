//! `shannot seccomp …`: policies and filters compiled, checked, explained and tried, without running anything.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;

use super::args::{FilterFile, Seccomp};
use super::output::{self, Complaint, note};
use crate::seccomp::{
    Abi, Call, Context, Document, Explanation, Finding, Policy, Preset, Program, Severity, Subject, is_json,
    kernel_version,
};
use crate::spelling::nearest;
use crate::sys;

/// No policy and no filter is larger.
const LARGEST: u64 = 1 << 24;

/// Exit code of a negative answer.
const NO: u8 = 1;

pub(super) fn seccomp(what: &Seccomp) -> Result<u8, Complaint> {
    match what {
        Seccomp::Compile { file, output, allow_launch, json } => compile(file, output, *allow_launch, *json),
        Seccomp::Check { file, fix, output, json } => check(file, *fix, output.as_deref(), *json),
        Seccomp::Explain { file, table, json } => explain(file, *table, *json),
        Seccomp::Eval { file, syscall, abi, args, json } => eval(file, syscall, *abi, args, *json),
        Seccomp::Names { pattern, arch, json } => names(pattern.as_deref(), arch.unwrap_or(Abi::NATIVE), *json),
    }
}

fn complain(message: impl Into<String>) -> Complaint {
    Complaint::plain("seccomp", message)
}

fn unusable(name: &str, error: &dyn std::fmt::Display) -> Complaint {
    complain(format!("cannot use {name:?}: {error}"))
}

/// What a command works on.
struct Loaded {
    name: String,
    context: Context,
    program: Program,
    policy: Option<(Document, Policy)>,
}

impl Loaded {
    fn new(file: &FilterFile) -> Result<Self, Complaint> {
        let context = context(file)?;
        let (name, bytes) = read(&file.file)?;
        if !is_json(&bytes) {
            let program = Program::from_bytes(&bytes).map_err(|error| unusable(&name, &error))?;
            return Ok(Self { name, context, program, policy: None });
        }
        let document = Document::parse(&bytes).map_err(|error| unusable(&name, &error))?;
        Self::compiled(name, context, document)
    }

    fn compiled(name: String, context: Context, document: Document) -> Result<Self, Complaint> {
        let policy = Policy::new(&document, &context).map_err(|error| unusable(&name, &error))?;
        let program = Program::compile(&policy).map_err(|error| unusable(&name, &error))?;
        Ok(Self { name, context, program, policy: Some((document, policy)) })
    }

    fn findings(&self) -> Vec<Finding> {
        let policy = self.policy.as_ref().map(|(document, policy)| (document, policy));
        Subject { program: &self.program, native: self.context.native, policy }.findings()
    }
}

fn context(file: &FilterFile) -> Result<Context, Complaint> {
    let mut context =
        Context::here().map_err(|errno| complain(format!("cannot find out the kernel's version: {errno}")))?;
    if let Some(arch) = file.arch {
        if arch == Abi::X32 {
            let hint = "name SCMP_ARCH_X32 in the policy's architectures";
            return Err(complain("x32 is no kernel of its own: it comes with x86_64").with_hint(hint));
        }
        context.native = arch;
    }
    if let Some(text) = &file.kernel {
        context.kernel =
            kernel_version(text).ok_or_else(|| complain(format!("{text:?} is no kernel version such as 6.1")))?;
    }
    for name in &file.cap {
        let upper = name.to_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        if full.parse::<caps::Capability>().is_err() {
            return Err(complain(format!("{name:?} is no capability such as CAP_SYS_PTRACE")));
        }
        context.capabilities.insert(full);
    }
    Ok(context)
}

/// A preset's policy, stdin, or a file.
fn read(word: &OsStr) -> Result<(String, Vec<u8>), Complaint> {
    let path = Path::new(word);
    let name = word.to_string_lossy().into_owned();
    if let Ok(preset) = name.parse::<Preset>() {
        let policy =
            preset.policy().ok_or_else(|| complain("preset \"none\" is no filter: there is nothing to look at"))?;
        return Ok((format!("preset {name}"), policy.as_bytes().to_vec()));
    }
    let mut bytes = Vec::new();
    let result = if name == "-" {
        io::stdin().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
    };
    match result {
        Ok(_) if bytes.len() as u64 > LARGEST => {
            Err(complain(format!("cannot read {name:?}: it is larger than {LARGEST} bytes")))
        }
        Ok(_) => Ok((name, bytes)),
        Err(error) => {
            let complaint = Complaint::new("seccomp", &error, None).about(format!("cannot read {name:?}"));
            let presets = Preset::names().filter(|preset| *preset != "none").collect::<Vec<_>>().join(", ");
            Err(if name.contains(['/', '.']) {
                complaint
            } else {
                complaint.with_hint(&format!("presets are: {presets}"))
            })
        }
    }
}

/// Writes a file that is whole or as it was before.
fn write(path: &OsStr, bytes: &[u8]) -> Result<(), Complaint> {
    if path == "-" {
        return output::result_bytes(bytes);
    }
    let path = Path::new(path);
    let refuse = |error: io::Error| Complaint::new("output", &error, None).about(format!("cannot write {path:?}"));
    // What is no regular file, such as /dev/stdout or a pipe, can't be replaced.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes)).map_err(refuse);
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let mut file = File::options().write(true).create_new(true).open(&beside).map_err(refuse)?;
    let written = file.write_all(bytes).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() && std::fs::remove_file(&beside).is_err() {
        note(&format!("shannot: cannot remove {beside:?} either"));
    }
    written.map_err(refuse)
}

fn compile(file: &FilterFile, output: &OsStr, allow_launch: bool, json: bool) -> Result<u8, Complaint> {
    #[derive(Serialize)]
    struct Summary<'a> {
        instructions: usize,
        interfaces: Vec<String>,
        unknown_names: Vec<&'a str>,
    }
    let loaded = Loaded::new(file)?;
    let program = if allow_launch {
        loaded.program.behind_gate().map_err(|error| complain(format!("cannot let execve through: {error}")))?
    } else {
        loaded.program.clone()
    };
    let findings = loaded.findings();
    let unknown = findings.iter().filter(|finding| finding.kind == "unknown");
    let interfaces = loaded.policy.as_ref().map(|(_, policy)| policy.abis.iter().map(ToString::to_string).collect());
    let summary = Summary {
        instructions: program.instructions().len(),
        interfaces: interfaces.unwrap_or_default(),
        unknown_names: unknown.flat_map(|finding| finding.calls.iter().map(String::as_str)).collect(),
    };
    write(output, &program.to_bytes())?;
    if json {
        let text = serde_json::to_string(&summary).map_err(|error| Complaint::new("output", &error, None))?;
        note(&text);
        return Ok(0);
    }
    note(&format!("{}: {} instructions for {}", loaded.name, summary.instructions, summary.interfaces.join(", ")));
    for finding in findings.iter().filter(|finding| finding.kind == "unknown" || finding.kind == "execve") {
        note(&format!("{}: {}: {}; {}", loaded.name, finding.place, finding.fault, finding.fix));
    }
    let more = findings.iter().filter(|finding| finding.severity > Severity::Note).count();
    if more > 0 {
        note(&format!("`shannot seccomp check` has {more} things to say about it"));
    }
    Ok(0)
}

fn check(file: &FilterFile, fix: bool, output: Option<&OsStr>, json: bool) -> Result<u8, Complaint> {
    let loaded = Loaded::new(file)?;
    let findings = loaded.findings();
    let text = report(&loaded.name, &findings);
    let is_bad = |findings: &[Finding]| findings.iter().any(|finding| finding.severity > Severity::Note);
    if !fix {
        if json {
            output::result_json(&serde_json::json!({ "file": loaded.name, "findings": findings }))?;
        } else {
            output::result(&text)?;
        }
        return Ok(if is_bad(&findings) { NO } else { 0 });
    }
    if loaded.policy.is_none() {
        return Err(complain("cannot fix a raw filter").with_hint("fix the policy that it was compiled from"));
    }
    // A cure may bring to light what it was hidden by: without unshare, clone's namespaces matter.
    let name = format!("{}, fixed", loaded.name);
    let mut left = loaded;
    for _ in 0..3 {
        let findings = left.findings();
        let fixes: Vec<_> = findings
            .iter()
            .filter(|finding| finding.severity > Severity::Note)
            .filter_map(|finding| finding.remedy.as_ref())
            .collect();
        if fixes.is_empty() {
            break;
        }
        let Some((mut document, _)) = left.policy.take() else { break };
        document.fix(fixes);
        left = Loaded::compiled(name.clone(), left.context, document)?;
    }
    let fixed = left.policy.as_ref().map(|(document, _)| serde_json::to_string_pretty(document)).transpose();
    let fixed = fixed.map_err(|error| Complaint::new("output", &error, None))?.unwrap_or_default() + "\n";
    write(output.unwrap_or(OsStr::new("-")), fixed.as_bytes())?;
    let left_findings = left.findings();
    note(format!("{text}{}", report(&left.name, &left_findings)).trim_end());
    Ok(if is_bad(&left_findings) { NO } else { 0 })
}

fn report(name: &str, findings: &[Finding]) -> String {
    if findings.is_empty() {
        return format!("{name}: nothing is wrong\n");
    }
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let place = if finding.place.is_empty() { String::new() } else { format!("{}: ", finding.place) };
        text.push_str(&format!("{severity:<8} {place}{}\n", finding.fault));
        text.push_str(&format!("         symptom: {}\n         fix: {}\n", finding.symptom, finding.fix));
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let counts = [plural(errors, "error"), plural(warnings, "warning"), plural(notes, "note")];
    text + &format!("{name}: {}\n", counts.join(", "))
}

fn explain(file: &FilterFile, table: bool, json: bool) -> Result<u8, Complaint> {
    let loaded = Loaded::new(file)?;
    let policy = loaded.policy.as_ref().map(|(_, policy)| policy);
    let mut explanation = Explanation::new(&loaded.program, loaded.context.native, policy);
    if table {
        explanation.instructions.clear();
    }
    if json { output::result_json(&explanation) } else { output::result(&explanation.to_string()) }?;
    Ok(0)
}

fn eval(file: &FilterFile, syscall: &str, abi: Option<Abi>, words: &[String], json: bool) -> Result<u8, Complaint> {
    #[derive(Serialize)]
    struct Answer {
        abi: String,
        nr: u32,
        name: Option<&'static str>,
        verdict: String,
        lets_through: bool,
        path: Vec<Step>,
    }
    #[derive(Serialize)]
    struct Step {
        index: usize,
        text: String,
    }
    let loaded = Loaded::new(file)?;
    let abi = abi.unwrap_or(loaded.context.native);
    let nr = match number(syscall).and_then(|number| u32::try_from(number).ok()) {
        Some(number) => number,
        None => abi.number(syscall).ok_or_else(|| {
            let known = abi.calls().map(|(_, name)| name);
            let nearest = nearest(syscall, known).map(|name| format!("did you mean {name:?}?"));
            let complaint = complain(format!("{abi} has no call {syscall:?}"));
            complaint.with_hint(&nearest.unwrap_or_else(|| "`shannot seccomp names` lists them".to_owned()))
        })?,
    };
    if words.len() > 6 {
        return Err(complain(format!("a call has 6 arguments at most, not {}", words.len())));
    }
    let mut args = [0; 6];
    for (word, to) in words.iter().zip(&mut args) {
        *to = number(word).ok_or_else(|| complain(format!("{word:?} is no number of up to 64 bits")))?;
    }
    let mut path = Vec::new();
    let call = Call { nr, arch: abi.audit_arch(), args, ..Call::default() };
    let verdict = loaded.program.follow(&call, |index| path.push(index));
    let explanation = Explanation::new(&loaded.program, loaded.context.native, None);
    let text = |index: usize| explanation.instructions.get(index).map(|line| line.text.clone()).unwrap_or_default();
    let answer = Answer {
        abi: abi.to_string(),
        nr,
        name: abi.name(nr),
        verdict: verdict.to_string(),
        lets_through: verdict.lets_through(),
        path: path.into_iter().map(|index| Step { index, text: text(index) }).collect(),
    };
    if json {
        output::result_json(&answer)?;
    } else {
        let name = answer.name.unwrap_or("a number without a name");
        let mut text = format!("{abi} {nr} ({name}): {verdict}\n");
        for Step { index, text: step } in &answer.path {
            text.push_str(&format!("{index:>5}  {step}\n"));
        }
        output::result(&text)?;
    }
    Ok(if verdict.lets_through() { 0 } else { NO })
}

/// Decimal, or hexadecimal with 0x; negative ones as the kernel would take them.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok().or_else(|| word.parse::<i64>().ok().map(i64::cast_unsigned)),
    }
}

fn names(pattern: Option<&str>, abi: Abi, json: bool) -> Result<u8, Complaint> {
    let matches = |name: &str| match pattern {
        Some(pattern) if pattern.contains(['*', '?', '[']) => sys::fnmatch(pattern, OsStr::new(name)),
        Some(part) => name.contains(part),
        None => true,
    };
    let found: BTreeSet<(u32, &str)> = abi.calls().filter(|(_, name)| matches(name)).collect();
    if json {
        let rows: Vec<_> = found.iter().map(|(nr, name)| serde_json::json!({ "nr": nr, "name": name })).collect();
        output::result_json(&rows)?;
    } else {
        let lines: String = found.iter().map(|(nr, name)| format!("{nr:>10}  {name}\n")).collect();
        output::result(&lines)?;
    }
    Ok(if found.is_empty() { NO } else { 0 })
}
