//! `shannot verify`: this binary again, as a canary inside the sandbox, trying what the profile promises to refuse.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;

use super::args::{Common, Verify};
use super::canary::{self, Finding, Task};
use super::output::{self, Complaint};
use super::profiles::warnings;
use crate::host::Host;
use crate::plan::{InPlace, Plan, Rights, Rule, RuleObject, Step};
use crate::policy::{FsOp, Network, Policy};
use crate::profile::{Caller, Overrides};
use crate::report::{Ending, Enforcement, Layer};
use crate::sandbox::{self, Image, Stdio};

#[derive(Serialize)]
struct Verdict<'a> {
    profile: &'a str,
    holds: bool,
    findings: &'a [Finding],
    notes: &'a [String],
}

pub(super) fn verify(common: &Common, options: &Verify) -> Result<u8, Complaint> {
    let caller = Caller::current();
    let profile = common.profile(&caller)?;
    let mut policy = profile.policy(&Overrides::default(), &caller)?;
    // The canary's time is not the command's, and its report must be writable.
    policy.limits = crate::policy::Limits::default();
    policy.backend = options.backend.into();
    let host = Host::probe().tried();
    let plan = Plan::new(&policy, &host)?;
    let mut findings = release_canary(plan.clone(), &task(&policy, &plan, &host))?;
    for (words, should_work) in [(&options.allowed_command, true), (&options.disallowed_command, false)] {
        if !words.is_empty() {
            findings.push(try_command(&policy, &host, words, should_work)?);
        }
    }
    let notes = warnings(&plan);
    let holds = findings.iter().all(|finding| finding.holds);
    if options.json {
        output::result_json(&Verdict { profile: profile.name(), holds, findings: &findings, notes: &notes })?;
    } else {
        output::result(&table(profile.name(), &findings, &notes))?;
    }
    Ok(u8::from(!holds))
}

fn task(policy: &Policy, plan: &Plan, host: &Host) -> Task {
    let path = |step: &Step| step.target().as_path().to_owned();
    let targets = |wanted: fn(&Step) -> bool| plan.steps.iter().filter(|step| wanted(step)).map(path).collect();
    let is_on = |layer| !matches!(plan.expected.get(&layer), None | Some(Enforcement::Off { .. }));
    let forbidden = forbidden_program(plan, host);
    let task = Task {
        read_only: targets(|step| matches!(step, Step::Bind { attributes, .. } if attributes.read_only)),
        hidden: targets(|step| matches!(step, Step::Hide { .. })),
        writable: targets(|step| matches!(step, Step::Tmpfs { .. })),
        root_is_sealed: plan.root.seal,
        bounding_set_may_stay: false,
        environment: plan.command.environment.iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect(),
        network_isolated: policy.network != Network::Host,
        no_tcp: is_on(Layer::LandlockNet),
        fresh_proc: plan.expected.get(&Layer::Procfs).is_some_and(Enforcement::is_full),
        landlock: plan.landlock.is_some(),
        seccomp: plan.has_filter(),
        exec_once: plan.exec_once,
        in_place: plan.in_place.is_some(),
        devices: Vec::new(),
        no_user_namespaces: is_on(Layer::UsernsLimit),
        no_memory_files: is_on(Layer::Allowlist) && plan.executables.is_some() && plan.has_filter(),
        loader: forbidden
            .as_ref()
            .and_then(|_| plan.executables.as_ref()?.loaders.first())
            .map(|loader| loader.as_path().to_owned()),
        forbidden,
        supervisor: i32::try_from(std::process::id()).unwrap_or(0),
    };
    match &plan.in_place {
        None => task,
        Some(in_place) => task_in_place(task, policy, plan, in_place),
    }
}

/// The same where there is no root of its own: what is shown is what the rules say.
fn task_in_place(task: Task, policy: &Policy, plan: &Plan, in_place: &InPlace) -> Task {
    let rules = plan.landlock.iter().flat_map(|landlock| &landlock.rules);
    let paths = |wanted: &[Rights]| -> Vec<PathBuf> {
        let path = |rule: &Rule| match &rule.object {
            RuleObject::Path(path) if rule.directory && wanted.contains(&rule.rights) => {
                Some(path.as_path().to_owned())
            }
            _ => None,
        };
        rules.clone().filter_map(path).collect()
    };
    let writable = paths(&[Rights::Write]);
    let is_scratch = |path: &&PathBuf| in_place.scratch.as_ref().is_some_and(|scratch| scratch.path == **path);
    let mut read_only = paths(&[Rights::Read, Rights::ReadExecute]);
    read_only.retain(|path| !writable.contains(path));
    let hidden = policy.fs.iter().filter_map(|op| match op {
        FsOp::Hide { target } => Some(target.as_path().to_owned()),
        _ => None,
    });
    Task {
        read_only,
        hidden: hidden.collect(),
        writable: writable.iter().filter(is_scratch).cloned().collect(),
        root_is_sealed: true,
        devices: in_place.devices.clone(),
        bounding_set_may_stay: true,
        ..task
    }
}

/// A program of the host's that is not on the allowlist.
fn forbidden_program(plan: &Plan, host: &Host) -> Option<PathBuf> {
    let executables = plan.executables.as_ref()?;
    let is_allowed = |path: &Path| executables.executable().any(|allowed| path.starts_with(allowed.as_path()));
    ["/usr/bin/id", "/usr/bin/env", "/bin/sh", "/bin/true", "/bin/busybox"]
        .iter()
        .filter_map(|path| host.files.find(Path::new(path)).ok().map(|found| found.path))
        .find(|path| !is_allowed(path))
}

fn failed(what: &str) -> impl Fn(io::Error) -> Complaint {
    move |error| Complaint::new("verify", &error, None).about(what.to_owned())
}

fn release_canary(mut plan: Plan, task: &Task) -> Result<Vec<Finding>, Complaint> {
    let task = serde_json::to_string(task).map_err(|error| Complaint::new("verify", &error, None))?;
    plan.command.argv = vec!["shannot".into(), canary::WORD.into(), task.into()];
    let image = own_image().map_err(failed("cannot copy this program for the canary"))?;
    let mut answer = memory_file("findings").map_err(failed("cannot make a file for the findings"))?;
    let stdio = Stdio {
        stdin: Some(bait().map_err(failed("cannot make a file for the canary"))?),
        stdout: Some(answer.try_clone().map_err(failed("cannot make a file for the findings"))?.into()),
        stderr: None,
    };
    let outcome = sandbox::run(&plan, &stdio, Some(&Image(image.into())))?;
    let mut text = String::new();
    answer.rewind().and_then(|()| answer.read_to_string(&mut text)).map_err(failed("cannot read the findings"))?;
    if outcome.ending != (Ending::Exited { code: 0 }) {
        return Err(Complaint::plain("verify", format!("the canary did not finish: {:?}", outcome.ending)));
    }
    serde_json::from_str(&text).map_err(|error| Complaint::new("verify", &error, None))
}

fn memory_file(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into())
}

/// This program in a file of its own: it needs no place in the sandbox's root, and can't be written through it.
fn own_image() -> io::Result<File> {
    let mut image = memory_file("canary")?;
    io::copy(&mut File::open("/proc/self/exe")?, &mut image)?;
    Ok(image)
}

/// A file of the host's on the canary's stdin, which it must not be able to open again for writing: one without a
/// name that the caller owns, so that permission bits don't refuse it first.
fn bait() -> io::Result<OwnedFd> {
    let folders = [std::env::temp_dir(), PathBuf::from(".")];
    let unnamed = |folder: &PathBuf| {
        File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder).ok()
    };
    match folders.iter().find_map(unnamed) {
        Some(file) => Ok(file.into()),
        None => File::open("/proc/self/exe").map(OwnedFd::from),
    }
}

fn try_command(policy: &Policy, host: &Host, words: &[String], should_work: bool) -> Result<Finding, Complaint> {
    let words: Vec<OsString> = match words {
        [line] => line.split_whitespace().map(OsString::from).collect(),
        words => words.iter().map(OsString::from).collect(),
    };
    let shown = words.join(std::ffi::OsStr::new(" ")).to_string_lossy().into_owned();
    let mut policy = policy.clone();
    policy.command = words;
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let nothing = || null().map_err(failed("cannot open /dev/null"));
    let stdio = Stdio { stdin: Some(nothing()?), stdout: Some(nothing()?), stderr: Some(nothing()?) };
    let result = Plan::new(&policy, host)
        .map_err(Complaint::from)
        .and_then(|plan| sandbox::run(&plan, &stdio, None).map_err(Complaint::from));
    let (worked, seen) = match result {
        Ok(outcome) if outcome.exit_code() == 0 => (true, "it ran".to_owned()),
        Ok(outcome) => (false, format!("it ended with {}", outcome.exit_code())),
        Err(complaint) => (false, complaint.message),
    };
    let promise = if should_work { format!("`{shown}` works") } else { format!("`{shown}` is refused") };
    Ok(Finding { promise, holds: worked == should_work, seen })
}

fn table(profile: &str, findings: &[Finding], notes: &[String]) -> String {
    let width = findings.iter().map(|finding| finding.promise.chars().count()).max().unwrap_or(0);
    let mut lines = vec![format!("profile {profile}")];
    lines.extend(findings.iter().map(|Finding { promise, holds, seen }| {
        let mark = if *holds { "holds" } else { "BROKEN" };
        format!("  {mark:<6} {promise:<width$}  {seen}")
    }));
    lines.extend(notes.iter().map(|note| format!("  note   {note}")));
    let broken = findings.iter().filter(|finding| !finding.holds).count();
    lines.push(match broken {
        0 => format!("all {} promises hold", findings.len()),
        broken => format!("{broken} of {} promises do not hold", findings.len()),
    });
    lines.join("\n") + "\n"
}
