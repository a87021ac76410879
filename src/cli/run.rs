//! `shannot run`, and the bare form: profile, options, plan, sandbox, exit code.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use nix::sys::signal::{Signal, raise};

use super::args::{Common, Format, Options};
use super::changes::Kept;
use super::ci::{OneStream, Voice};
use super::launch;
use super::output::{self, Complaint, note, visible};
use super::profiles::unknown_names;
use super::record::{Known, Record, RecordFile};
use super::secrets::Secrets;
use super::shell;
use crate::plan::{Plan, is_denied};
use crate::policy::Policy;
use crate::profile::{Caller, Overrides};
use crate::report::{EndedBy, Outcome};
use crate::sandbox::Stdio;
use crate::sys;
use crate::workspace::Prepared;

pub(super) fn run(common: &Common, options: &Options, command: Vec<OsString>) -> Result<u8, Complaint> {
    if let Some(format) = options.dry_run {
        return dry_run(common, options, command, format).map(|()| 0);
    }
    // Before the command can touch what they will be written to.
    let file = options.report.as_deref().map(RecordFile::open).transpose()?;
    let voice = Voice::new(options.ci, options.junit.as_deref())?;
    if let Some(voice) = &voice {
        voice.begin()?;
    }
    let started = SystemTime::now();
    let mut known = Known::default();
    let ran = run_known(common, options, &command, voice.as_ref(), &mut known);
    let told = if file.is_some() || voice.is_some() {
        let record = Record::new(&command, &known, started, ran.as_ref().copied());
        // One that fails keeps nobody from the other: a runner waits for what ends the job's output.
        let written = file.map(|file| file.write(&record));
        let said = voice.map(|voice| voice.end(&record));
        written.into_iter().chain(said).collect()
    } else {
        Ok(())
    };
    if known.outcome.is_some_and(|outcome| outcome.interrupted_from_terminal) {
        // A shell that runs us in a loop ends the loop only if we die of SIGINT ourselves
        // (https://www.cons.org/cracauer/sigint.html).
        let die = sys::default_disposition(Signal::SIGINT).and_then(|()| raise(Signal::SIGINT));
        die.map_err(|errno| Complaint::plain("supervise", format!("cannot pass the interrupt on: {errno}")))?;
    }
    // What went wrong first is what is said.
    ran.and_then(|code| told.map(|()| code))
}

/// The policy of a run, and the secrets that must be open as long as it is used.
fn policy(
    common: &Common,
    options: &Options,
    command: &[OsString],
    known: &mut Known,
) -> Result<(Policy, Secrets), Complaint> {
    let caller = Caller::current();
    let profile = known.profile.insert(common.profile(&caller)?);
    let secrets = Secrets::open(&options.secret)?;
    let overrides = Overrides { secrets: secrets.numbers(), ..options.overrides() };
    let mut policy = profile.policy(&overrides, &caller)?;
    policy.command = command.to_vec();
    if common.profile_from_outside {
        shell::check_origin(profile, &policy, &caller)?;
    }
    check_variables(options, &policy)?;
    shell::show_script(&mut policy);
    Ok((policy, secrets))
}

fn dry_run(common: &Common, options: &Options, command: Vec<OsString>, format: Format) -> Result<(), Complaint> {
    let (policy, _secrets) = policy(common, options, &command, &mut Known::default())?;
    let plan = launch::plan(&policy)?;
    match format {
        Format::Text => output::result(&plan.to_string().lines().map(|line| visible(line) + "\n").collect::<String>()),
        Format::Json => output::result_json(&plan),
    }
}

fn run_known(
    common: &Common,
    options: &Options,
    command: &[OsString],
    voice: Option<&Voice>,
    known: &mut Known,
) -> Result<u8, Complaint> {
    let (mut policy, _secrets) = policy(common, options, command, known)?;
    let prepared = Prepared::new(&mut policy)?;
    let kept = Kept::new(&mut policy, &options.artifact)?;
    let ran = run_kept(common, options, &policy, voice, known);
    for path in prepared.changed() {
        note(&format!(
            "shannot: {} was changed on the host meanwhile, and the job could then change it too: look at it before git does",
            path.display()
        ));
    }
    match kept {
        Some(kept) => kept.finish(ran),
        None => ran,
    }
}

/// What the profile never passes on is not passed on because somebody asks for it by name.
fn check_variables(options: &Options, policy: &Policy) -> Result<(), Complaint> {
    match options.env.iter().find(|word| !word.as_bytes().contains(&b'=') && is_denied(&policy.environment, word)) {
        Some(name) => Err(Complaint::plain("environment", format!("cannot pass {name:?} on: the profile never does"))
            .with_hint("--secret NAME=fd:N|file:PATH hands a secret over as a file; --env NAME=VALUE sets a variable")),
        None => Ok(()),
    }
}

fn run_kept(
    common: &Common,
    options: &Options,
    policy: &Policy,
    voice: Option<&Voice>,
    known: &mut Known,
) -> Result<u8, Complaint> {
    let plan = known.plan.insert(Plan::new(policy, &launch::host(policy, common.verbose))?);
    if common.verbose {
        if let Some(profile) = &known.profile {
            note(&format!("shannot: profile {}", profile.origin()));
        }
        say_more(plan, options);
    }
    let stream = voice.map(Voice::one_stream).transpose()?.flatten();
    let output = |thrown: bool| match &stream {
        Some(stream) if !thrown => OneStream::writer(stream).map(Some),
        _ => thrown_away(thrown),
    };
    let stdio = Stdio { stdin: None, stdout: output(options.no_stdout)?, stderr: output(options.no_stderr)? };
    let ran = launch::run(policy, plan, &stdio);
    drop(stdio);
    stream.map_or(Ok(()), OneStream::finish)?;
    let outcome = known.outcome.insert(ran?);
    say_of_the_end(outcome, plan, common);
    Ok(outcome.exit_code())
}

fn say_more(plan: &Plan, options: &Options) {
    if options.bubblewrap.is_some() {
        note("shannot: --bubblewrap has no effect: no bubblewrap is used");
    }
    for skipped in &plan.skipped {
        note(&format!("shannot: skipped {}", visible(&skipped.to_string())));
    }
    for path in options.hide.iter().filter(|path| Path::new(path).symlink_metadata().is_err()) {
        note(&format!("shannot: --hide {}: there is no such file now", path.display()));
    }
    for unknown in unknown_names(plan) {
        note(&format!("shannot: {unknown}"));
    }
    if let Some(in_place) = &plan.in_place {
        note(&format!("shannot: rung landlock: {}", in_place.because));
        for lost in &in_place.lost {
            note(&format!("shannot: without {lost}"));
        }
    }
    for (layer, state) in &plan.expected {
        note(&format!("shannot: {layer}: {state}"));
    }
}

fn thrown_away(wanted: bool) -> Result<Option<OwnedFd>, Complaint> {
    let open = || File::options().write(true).open("/dev/null").map(OwnedFd::from);
    wanted
        .then(open)
        .transpose()
        .map_err(|error| Complaint::plain("descriptors", format!("cannot open /dev/null: {error}")))
}

/// What the exit code does not say: 137 is also that of a kill by hand.
fn say_of_cgroups(outcome: &Outcome, plan: &Plan) {
    let kills = outcome.resources.cgroup.and_then(|counted| counted.oom_kills).unwrap_or(0);
    let limit = plan.memory_limit().map(|bytes| format!(" (limit {})", in_units(bytes))).unwrap_or_default();
    if outcome.ended_by == EndedBy::Memory {
        note(&format!("shannot: the command was killed: out of memory{limit}"));
    } else if kills > 0 {
        let processes = if kills == 1 { "process was" } else { "processes were" };
        note(&format!("shannot: {kills} {processes} killed: out of memory{limit}"));
    }
    if outcome.cgroup_left_behind {
        let paths: Vec<String> = plan.cgroups.iter().map(|cgroup| cgroup.path.display().to_string()).collect();
        note(&format!("shannot: cannot remove the cgroup {}", paths.join(" or ")));
    }
}

/// As one would write it: `64 MiB`.
fn in_units(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &&(u32, &str)| bytes.trailing_zeros() >= *shift && bytes > 0;
    units
        .iter()
        .find(fits)
        .map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

/// 128 + SIGSYS, also as a shell reports it of what it ran.
const KILLED_BY_FILTER: u8 = 159;

fn say_of_the_end(outcome: &Outcome, plan: &Plan, common: &Common) {
    if let Some(scratch) =
        plan.in_place.as_ref().and_then(|in_place| in_place.scratch.as_ref()).filter(|_| outcome.left_behind)
    {
        note(&format!("shannot: cannot remove the private folder {:?}", scratch.path));
    }
    say_of_cgroups(outcome, plan);
    if !common.verbose {
        return;
    }
    if matches!(outcome.ended_by, EndedBy::Timeout | EndedBy::KillAfter) {
        note(&format!("shannot: {outcome}"));
    }
    for denial in &outcome.denials {
        note(&format!("shannot: {denial}"));
    }
    if outcome.exit_code() == KILLED_BY_FILTER {
        note(
            "shannot: it ended with SIGSYS: a seccomp filter kills some call of it, or it is a program for i386 or x32, which the presets kill",
        );
    }
}
