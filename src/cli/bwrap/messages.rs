//! bubblewrap's words for what goes wrong. Clients match some of them (flatpak, codex, Shannot 0.3), and people search
//! for them; paths are shown where bubblewrap shows them.

use std::ffi::OsString;
use std::io;

use nix::errno::Errno;

use super::super::output::Complaint;
use crate::plan::{Plan, PlanError, Step};
use crate::sandbox::{Failure, SandboxError, Stage};

/// For a program that the kernel would not take.
pub(super) const INVALID_FILTER: &str = "Unable to set up system call filtering as requested: prctl(PR_SET_SECCOMP) reported EINVAL. (Hint: this requires a kernel configured with CONFIG_SECCOMP and CONFIG_SECCOMP_FILTER.)";

/// As strerror(3).
pub(super) fn errno(error: &io::Error) -> String {
    let text = error.to_string();
    // std adds the number.
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// As strerror(3).
pub(super) fn strerror(errno: Errno) -> String {
    self::errno(&errno.into())
}

pub(super) fn plan(error: &PlanError) -> String {
    match error {
        PlanError::Source { origin, cause, .. } => {
            format!("Can't find source path {}: {}", origin.display(), errno(cause))
        }
        PlanError::EmptyCommand => format!("execvp : {}", strerror(Errno::ENOENT)),
        PlanError::NeedsPrivilege => "Creating new namespace failed: Operation not permitted".to_owned(),
        other => Complaint::new("plan", other, None).message,
    }
}

pub(super) fn warning(failure: &Failure, plan: &Plan) -> String {
    let (source, target) = paths(plan.steps.get(failure.index));
    format!("Can't remount {source} submount ({target}), ignoring error: {}", strerror(failure.errno))
}

/// `command` is as typed.
pub(super) fn sandbox(error: &SandboxError, plan: &Plan, command: &[OsString]) -> String {
    match error {
        SandboxError::Failed(failure) => failed(failure, plan, command),
        other => other.to_string(),
    }
}

fn failed(failure: &Failure, plan: &Plan, command: &[OsString]) -> String {
    let step = plan.steps.get(failure.index);
    let (source, target) = paths(step);
    let object = failure.object.clone().unwrap_or_default();
    let text = match (failure.stage, failure.errno) {
        (Stage::Clone, Errno::EPERM) => return NO_PERMISSION.to_owned(),
        (Stage::Clone, Errno::EINVAL) => return NO_SUPPORT.to_owned(),
        (Stage::Clone, Errno::ENOSPC) => return TOO_DEEP.to_owned(),
        (Stage::Clone, _) => "Creating new namespace failed".to_owned(),
        (Stage::JoinUserns, Errno::EINVAL) => return NO_DESCENDANT.to_owned(),
        (Stage::JoinUserns, _) => "Joining specified user namespace failed".to_owned(),
        (Stage::JoinUserns2, _) => "Setting userns2 failed".to_owned(),
        (Stage::JoinPidns, _) => "Setting pidns failed".to_owned(),
        (Stage::AssertUserns, Errno::EEXIST) => return USERNS_NOT_DISABLED.to_owned(),
        (Stage::UsernsLimit, _) => "cannot open /proc/sys/user/max_user_namespaces".to_owned(),
        (Stage::NestedUserns, _) => "unshare user ns".to_owned(),
        (Stage::IdMaps, _) if failure.index == 0 => "error writing to setgroups".to_owned(),
        (Stage::IdMaps, _) => format!("setting up {} map", if failure.index == 1 { "uid" } else { "gid" }),
        (Stage::Loopback, _) => "loopback: Failed RTM_NEWADDR".to_owned(),
        (Stage::Info, _) => "Write to info_fd".to_owned(),
        (Stage::Propagation, _) => "Failed to make / slave".to_owned(),
        (Stage::BaseTmpfs, _) => "Failed to mount tmpfs".to_owned(),
        (Stage::Pivot, _) => "pivot_root".to_owned(),
        (Stage::Detach, _) => "unmount old root".to_owned(),
        (Stage::Source, Errno::ESTALE) => return "Race condition binding dirfd".to_owned(),
        (Stage::Source, _) => format!("Can't find source path {source}"),
        (Stage::TargetKind, Errno::ELOOP | Errno::ENOTDIR) if matches!(step, Some(Step::Dir { .. })) => {
            return format!("Destination is not a directory {target}");
        }
        (Stage::TargetKind, Errno::ELOOP) => return format!("Can't mount on symlink destination {target}"),
        (Stage::TargetKind, Errno::ENOTDIR) => return format!("Destination is not a directory {target}"),
        (Stage::TargetKind, Errno::EISDIR) => return format!("Destination is not a file {target}"),
        (Stage::Target, _) if matches!(step, Some(Step::Chmod { .. })) => chmod(step),
        (Stage::TargetParent, _) => format!("Can't mkdir parents for {target}"),
        (Stage::Target | Stage::TargetKind, _) => format!("Can't create file {target}"),
        (Stage::Data, _) => format!("Can't write data to file {target}"),
        (Stage::Make, Errno::EEXIST) => return format!("Can't make symlink at {target}: {}", in_the_way(failure)),
        (Stage::Make, _) if matches!(step, Some(Step::Chmod { .. })) => chmod(step),
        (Stage::Make, _) => format!("Can't make symlink at {target}"),
        (Stage::Attributes, _) => format!("Can't remount {}on /newroot{target}", read_only(step)),
        (Stage::Mount, _) => return mount(step, &source, &target, failure.errno),
        (Stage::Hostname, _) => format!("Can't set hostname to {object}"),
        (Stage::Workdir, _) => format!("Can't chdir to {object}"),
        (Stage::LockOpen, _) => format!("Unable to open lock file {object}"),
        (Stage::Lock, _) => format!("Unable to lock file {object}"),
        (Stage::Session, _) => "setsid".to_owned(),
        (Stage::Capabilities, _) => format!("Dropping capability {} from bounds", failure.index),
        (Stage::CapabilitiesHeld, _) => "capset failed".to_owned(),
        (Stage::NoNewPrivileges, _) => "prctl(PR_SET_NO_NEW_PRIVS) failed".to_owned(),
        (Stage::Dumpable, _) => "can't set dumpable".to_owned(),
        (Stage::DieWithParent, _) => "prctl".to_owned(),
        (Stage::Spawn, _) => "Can't fork for pid 1".to_owned(),
        (Stage::Filter, Errno::EINVAL) => return INVALID_FILTER.to_owned(),
        (Stage::Filter, _) => "prctl(PR_SET_SECCOMP)".to_owned(),
        (Stage::Lookup | Stage::Exec, _) => {
            format!("execvp {}", command.first().map(|word| word.to_string_lossy()).unwrap_or_default())
        }
        (_, _) => failure.text.clone(),
    };
    format!("{text}: {}", strerror(failure.errno))
}

const NO_PERMISSION: &str = "No permissions to create a new namespace, likely because the kernel does not allow non-privileged user namespaces. On e.g. debian this can be enabled with 'sysctl kernel.unprivileged_userns_clone=1'.";
const NO_SUPPORT: &str = "Creating new namespace failed, likely because the kernel does not support user namespaces.";
const TOO_DEEP: &str =
    "Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)";
const NO_DESCENDANT: &str =
    "Joining the specified user namespace failed, it might not be a descendant of the current user namespace.";
const USERNS_NOT_DISABLED: &str = "creation of new user namespaces was not disabled as requested";

/// Source and target of a step, as texts.
fn paths(step: Option<&Step>) -> (String, String) {
    let Some(step) = step else { return Default::default() };
    let source = match step {
        Step::Bind { source, .. } => source.display().to_string(),
        Step::BindDescriptor { fd, .. } => format!("/proc/self/fd/{fd}"),
        Step::Overlay { sources, .. } => sources.first().map(|path| path.display().to_string()).unwrap_or_default(),
        _ => String::new(),
    };
    (source, step.target().to_string())
}

fn read_only(step: Option<&Step>) -> &'static str {
    match step {
        Some(Step::Bind { attributes, .. } | Step::BindDescriptor { attributes, .. }) if !attributes.read_only => "",
        _ => "readonly ",
    }
}

fn chmod(step: Option<&Step>) -> String {
    match step {
        Some(Step::Chmod { target, mode }) => format!("Can't chmod 0{mode:o} {target}"),
        _ => String::new(),
    }
}

fn in_the_way(failure: &Failure) -> String {
    if failure.detail.is_empty() {
        "destination exists and is not a symlink".to_owned()
    } else {
        format!("existing destination is {}", failure.detail.to_string_lossy())
    }
}

fn mount(step: Option<&Step>, source: &str, target: &str, errno: Errno) -> String {
    let why = strerror(errno);
    match step {
        Some(Step::Proc { .. }) => format!("Can't mount proc on /newroot{target}: {why}"),
        Some(Step::Tmpfs { .. }) => format!("Can't mount tmpfs on /newroot{target}: {why}"),
        Some(Step::Mqueue { .. }) => format!("Can't mount mqueue on /newroot{target}: {why}"),
        Some(Step::Dev { .. }) => format!("Can't mount devpts on /newroot{target}/pts: {why}"),
        Some(Step::Overlay { .. }) if errno == Errno::ELOOP => "Overlay directories may not overlap".to_owned(),
        Some(Step::Overlay { .. }) => format!("Can't make overlay mount on /newroot{target}: {why}"),
        Some(Step::RemountReadOnly { .. }) if errno == Errno::EINVAL => {
            format!("Can't remount readonly on /newroot{target}: Unable to find \"/newroot{target}\" in mount table")
        }
        Some(Step::RemountReadOnly { .. }) => format!("Can't remount readonly on {target}: {why}"),
        Some(Step::Data { .. }) => format!("Can't bind mount data on /newroot{target}: {why}"),
        _ => format!("Can't bind mount /oldroot{source} on /newroot{target}: {why}"),
    }
}
