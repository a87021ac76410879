//! Steps of setting up that every kind of child takes, each with its reason. In which order, the child's own function
//! says.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{AccessFlags, Pid, faccessat, write};

use super::failure::{At, Fault, Stage};
use super::prepare::Prepared;
use super::resolve::{kind, open_in_root};
use crate::plan::{Plan, RlimitResource};
use crate::sys;

/// First of all: were the supervisor killed in between, nothing would end this process. The signal is set, then the
/// supervisor is looked at, so that a death before and a death after are both seen.
pub(super) fn die_with_supervisor(channel: &OwnedFd) -> Result<(), Fault> {
    prctl::set_pdeathsig(Signal::SIGKILL).at(Stage::DieWithParent)?;
    let gone = supervisor_is_gone(channel).at(Stage::DieWithParent)?;
    if gone { Err(Errno::ESRCH).at(Stage::DieWithParent) } else { Ok(()) }
}

/// The channel's other end is closed.
pub(super) fn supervisor_is_gone(channel: &OwnedFd) -> nix::Result<bool> {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))))
}

/// Whether setgroups is denied here, or was in the namespace around this one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deny {
    Setgroups,
    Inherited,
}

/// /proc/self of the host, held for the second id maps: then the host's /proc can't be reached any more.
pub(super) fn own_proc_directory(plan: &Plan) -> Result<Option<OwnedFd>, Fault> {
    if !plan.namespaces.nested_user {
        return Ok(None);
    }
    open("/proc/self", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map(Some).at(Stage::IdMaps)
}

/// The maps of the namespace that was just made.
pub(super) fn map_ids(plan: &Plan) -> Result<(), Fault> {
    let inside = plan.ids_inside();
    // With a second user namespace to come, this one maps 0, for devpts.
    let inside = if plan.namespaces.nested_user { (0, 0) } else { (inside.uid, inside.gid) };
    write_id_maps(Path::new("/proc/self"), None, inside, (plan.ids.uid, plan.ids.gid), Deny::Setgroups)
}

/// The second user namespace, in which the command has the ids that it is to have.
pub(super) fn enter_second_user_namespace(plan: &Plan, own_proc: &OwnedFd) -> Result<(), Fault> {
    unshare(CloneFlags::CLONE_NEWUSER).at(Stage::NestedUserns)?;
    let inside = plan.ids_inside();
    write_id_maps(Path::new(""), Some(own_proc), (inside.uid, inside.gid), (0, 0), Deny::Inherited)
}

/// One line each: an unprivileged process may map its own ids and no others (user_namespaces(7)).
fn write_id_maps(
    directory: &Path,
    at: Option<&OwnedFd>,
    inside: (u32, u32),
    outside: (u32, u32),
    setgroups: Deny,
) -> Result<(), Fault> {
    let write_file = |name: &str, text: &str| {
        let path = directory.join(name);
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = match at {
            Some(at) => openat(at, &path, flags, Mode::empty()),
            None => open(&path, flags, Mode::empty()),
        }?;
        match write(&file, text.as_bytes())? {
            length if length == text.len() => Ok(()),
            _ => Err(Errno::EIO),
        }
    };
    if setgroups == Deny::Setgroups {
        // gid_map can't be written without this (CVE-2014-8989).
        write_file("setgroups", "deny").at_index(Stage::IdMaps, 0)?;
    }
    write_file("uid_map", &format!("{} {} 1", inside.0, outside.0)).at_index(Stage::IdMaps, 1)?;
    write_file("gid_map", &format!("{} {} 1", inside.1, outside.1)).at_index(Stage::IdMaps, 2)
}

/// No user namespace can be made inside but the one that is still to come.
pub(super) fn limit_user_namespaces(plan: &Plan) -> Result<(), Fault> {
    let file = open("/proc/sys/user/max_user_namespaces", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .at(Stage::UsernsLimit)?;
    let most: &[u8] = if plan.namespaces.nested_user { b"1" } else { b"0" };
    match write(&file, most).at(Stage::UsernsLimit)? {
        1 => Ok(()),
        _ => Err(Errno::EIO).at(Stage::UsernsLimit),
    }
}

pub(super) fn loopback_up() -> Result<(), Fault> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).at(Stage::Loopback)?;
    sys::loopback_up(socket.as_fd()).at(Stage::Loopback)
}

pub(super) fn set_limits(plan: &Plan) -> Result<(), Fault> {
    for (index, limit) in plan.rlimits.iter().enumerate() {
        let resource = match limit.resource {
            RlimitResource::Core => Resource::RLIMIT_CORE,
            RlimitResource::AddressSpace => Resource::RLIMIT_AS,
            RlimitResource::Processes => Resource::RLIMIT_NPROC,
            RlimitResource::FileSize => Resource::RLIMIT_FSIZE,
            RlimitResource::OpenFiles => Resource::RLIMIT_NOFILE,
        };
        setrlimit(resource, limit.value, limit.value).at_index(Stage::Rlimit, index)?;
    }
    let Some(count) = plan.cpus else { return Ok(()) };
    let allowed = sched_getaffinity(Pid::from_raw(0)).at(Stage::Cpus)?;
    let mut fewer = CpuSet::new();
    let held = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    for cpu in held.take(usize::try_from(count).unwrap_or(usize::MAX)) {
        fewer.set(cpu).at(Stage::Cpus)?;
    }
    sched_setaffinity(Pid::from_raw(0), &fewer).at(Stage::Cpus)
}

/// The first directory that exists inside, by its place in the list; a policy that names one has only that.
pub(super) fn change_directory(prepared: &Prepared<'_>) -> Result<usize, Fault> {
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).at(Stage::Workdir)?;
    let mut last = Errno::ENOENT;
    for (index, directory) in prepared.plan.command.workdir.iter().enumerate() {
        // Not chdir: /proc/self/fd/N in the path would lead outside.
        match open_in_root(&root, directory).and_then(|fd| nix::unistd::fchdir(&fd)) {
            Ok(()) => return Ok(index),
            Err(errno) => last = errno,
        }
    }
    Err(last).at(Stage::Workdir)
}

/// As execvp(3) searches: the first candidate that can be executed; EACCES if there was one that can't.
pub(super) fn find_command(prepared: &Prepared<'_>) -> Result<CString, Fault> {
    if prepared.image.is_some() {
        return Ok(CString::default());
    }
    let mut reason = Errno::ENOENT;
    for candidate in &prepared.candidates {
        match is_executable(candidate) {
            Ok(()) => return Ok(candidate.clone()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => reason = errno,
        }
    }
    Err(reason).at(Stage::Lookup)
}

fn is_executable(path: &CString) -> nix::Result<()> {
    // Real and effective ids are the same here; with AT_EACCESS it would be faccessat2(2), which older container filters
    // answer with EPERM.
    faccessat(nix::fcntl::AT_FDCWD, path.as_c_str(), AccessFlags::X_OK, AtFlags::empty())?;
    match kind(&nix::sys::stat::stat(path.as_c_str())?) {
        SFlag::S_IFREG => Ok(()),
        _ => Err(Errno::EACCES),
    }
}
