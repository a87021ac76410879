//! Pid 1 of the sandbox: sets it up, starts the command, reaps, passes signals on, and ends when the command or the
//! supervisor does. Runs in a copy of the supervisor's memory; reports by fixed-size messages and never returns.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getpid, getppid, setsid};

use super::confine::{self, Bounding, Settled};
use super::descriptors::close_all_but;
use super::failure::{At, Fault, Stage};
use super::message::{Message, TERMINATE_ALL, has_ended};
use super::prepare::Prepared;
use super::rootfs;
use super::scratch::Folder;
use super::setup::{
    change_directory, die_with_supervisor, enter_second_user_namespace, find_command, limit_user_namespaces,
    loopback_up, map_ids, own_proc_directory, set_limits,
};
use super::supervisor::{LONG_COMMAND, PASSED_ON};
use super::tree::Reach;
use crate::plan::{Plan, Step};
use crate::sys;

/// What init exits with when it could not set up; the supervisor has the reason from the channel.
pub(super) const SETUP_FAILED: i32 = 125;

/// The child's side of the clone.
pub(super) fn run(prepared: &Prepared<'_>, channel: &OwnedFd) -> ! {
    finish(start(prepared, channel), &Reach::Namespace, channel, None)
}

/// The same in the host's own tree, below a keeper.
pub(super) fn run_kept(
    prepared: &Prepared<'_>,
    channel: &OwnedFd,
    (settled, reach): (&Settled, Reach),
    keeper: Pid,
) -> ! {
    let watched = watch(keeper).and_then(|watched| Ok((watched, narrower(reach, settled)?)));
    match watched {
        Ok((watched, reach)) => finish(start_kept(prepared, settled, channel), &reach, channel, Some(&watched)),
        Err(fault) => fail(fault, channel),
    }
}

/// Without the keeper.
fn narrower(reach: Reach, settled: &Settled) -> Result<Reach, Fault> {
    match reach {
        Reach::Domain(_) => confine::confine_signals(settled).map(Reach::Domain),
        reach => Ok(reach),
    }
}

fn finish(started: Result<Pid, Fault>, reach: &Reach, channel: &OwnedFd, keeper: Option<&OwnedFd>) -> ! {
    match started {
        Ok(command) => {
            let status = reap(command, channel, reach, keeper);
            // A keeper does it again. Init does it in case that there is none any more.
            let ended = reach.end_all();
            sys::exit_now(if ended.is_ok() { status } else { SETUP_FAILED })
        }
        Err(fault) => fail(fault, channel),
    }
}

pub(super) fn fail(fault: Fault, channel: &OwnedFd) -> ! {
    // If the supervisor is gone, nobody is left to be told.
    if Message::Failed(fault).send(channel).is_err() {
        sys::exit_now(SETUP_FAILED + 1);
    }
    sys::exit_now(SETUP_FAILED)
}

/// The set-up, in the order that the kernel dictates. The reason for each place is with the function.
fn start(prepared: &Prepared<'_>, channel: &OwnedFd) -> Result<Pid, Fault> {
    let plan = prepared.plan;
    die_with_supervisor(channel)?;
    take_standard_descriptors(prepared)?;
    close_all_but(3, &kept(prepared, channel)).at(Stage::Descriptors)?;
    sys::wipe_arguments_and_environment();
    let caller_umask = umask(Mode::empty());
    let own_proc = own_proc_directory(plan)?;
    if plan.namespaces.user {
        map_ids(plan)?;
        if plan.namespaces.userns_limit {
            limit_user_namespaces(plan)?;
        }
    }
    rootfs::build(prepared)?;
    if plan.namespaces.network {
        loopback_up()?;
    }
    if let Some(hostname) = &plan.hostname {
        nix::unistd::sethostname(hostname).at(Stage::Hostname)?;
    }
    if let Some(own_proc) = own_proc {
        // Last of what needs power over the namespaces made so far: in here there is none over them.
        enter_second_user_namespace(plan, &own_proc)?;
    }
    start_session(plan)?;
    join_keyring_and_limits(plan)?;
    let settled = confine::drop_privileges(Bounding::Emptied)?;
    // Credentials changed, which can clear it (prctl(2), PR_SET_PDEATHSIG).
    die_with_supervisor(channel)?;
    // Init's memory is a copy of the supervisor's: nothing inside may read it (ptrace(2), proc(5)).
    prctl::set_dumpable(false).at(Stage::Dumpable)?;
    umask(caller_umask);
    spawn(prepared, &settled, channel)
}

/// The keeper, of which a descriptor says when it has ended. Not by a signal at its death: init ends the others first.
fn watch(keeper: Pid) -> Result<OwnedFd, Fault> {
    let watched = sys::pidfd_open(keeper).at(Stage::DieWithParent)?;
    if getppid() == keeper { Ok(watched) } else { Err(Errno::ESRCH).at(Stage::DieWithParent) }
}

/// What the keeper has not done already.
fn start_kept(prepared: &Prepared<'_>, settled: &Settled, channel: &OwnedFd) -> Result<Pid, Fault> {
    // Orphans come here, where all are signalled.
    prctl::set_child_subreaper(true).at(Stage::Subreaper)?;
    start_session(prepared.plan)?;
    spawn(prepared, settled, channel)
}

/// Leaves the caller's session, where that is asked for.
fn start_session(plan: &Plan) -> Result<(), Fault> {
    if plan.new_session {
        setsid().at(Stage::Session)?;
    }
    Ok(())
}

/// Leaves the caller's keyring, and takes on the limits.
pub(super) fn join_keyring_and_limits(plan: &Plan) -> Result<(), Fault> {
    if plan.new_keyring {
        sys::join_new_session_keyring().at(Stage::Keyring)?;
    }
    set_limits(plan)
}

pub(super) fn take_standard_descriptors(prepared: &Prepared<'_>) -> Result<(), Fault> {
    let stdio = prepared.stdio;
    for (number, replacement) in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().enumerate() {
        if let Some(fd) = replacement {
            sys::replace_standard(fd.as_fd(), i32::try_from(number).unwrap_or(-1))
                .at_index(Stage::Descriptors, number)?;
        }
    }
    Ok(())
}

/// What stays open while setting up: the channel, an image to execute, what files are made from, and what
/// holds the private folder.
pub(super) fn kept(prepared: &Prepared<'_>, channel: &OwnedFd) -> Vec<RawFd> {
    let image = prepared.image.map(|image| image.0.as_raw_fd());
    let data = prepared.plan.steps.iter().filter_map(|step| match step {
        Step::Data { fd, .. } => Some(*fd),
        _ => None,
    });
    let folder = prepared.folder.map(Folder::numbers).into_iter().flatten();
    std::iter::once(channel.as_raw_fd()).chain(image).chain(data).chain(folder).collect()
}

/// Starts the command's process and comes back when it has executed the command.
fn spawn(prepared: &Prepared<'_>, settled: &Settled, channel: &OwnedFd) -> Result<Pid, Fault> {
    let plan = prepared.plan;
    let mut ruleset = plan.landlock.as_ref().map(|landlock| confine::ruleset(prepared, landlock)).transpose()?;
    let directory = change_directory(prepared)?;
    let path = find_command(prepared)?;
    let init = getpid();
    // Written by the child, which shares this memory until it executes.
    let mut fault = None;
    let pid = sys::vfork(&mut || {
        fault = Some(become_command(prepared, settled, ruleset.take(), &path, directory, (channel, init)));
        SETUP_FAILED
    })
    .at(Stage::Spawn)?;
    match fault {
        Some(fault) => Err(fault),
        None => Ok(pid),
    }
}

/// The command's process: everything but the execve, in the last possible order. Returns only on failure.
fn become_command(
    prepared: &Prepared<'_>,
    settled: &Settled,
    ruleset: Option<landlock::RulesetCreated>,
    path: &CString,
    directory: usize,
    (channel, init): (&OwnedFd, Pid),
) -> Fault {
    if prepared.plan.in_place.is_some()
        && let Err(fault) = die_with_parent(init)
    {
        return fault;
    }
    let confined = reset_signals().and_then(|()| confine::confine(settled, ruleset, prepared, channel));
    let confined = match confined {
        Ok(confined) => confined,
        Err(fault) => return fault,
    };
    confine::exec(&confined, prepared, path, directory)
}

/// Without a pid namespace init's death would leave the command alive.
fn die_with_parent(parent: Pid) -> Result<(), Fault> {
    prctl::set_pdeathsig(Signal::SIGKILL).at(Stage::DieWithParent)?;
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH).at(Stage::DieWithParent) }
}

/// As the caller's shell would start it: an empty mask, and the dispositions that the caller ignores stay ignored
/// (nohup). SIGPIPE is Rust's, SIGCHLD is ours.
fn reset_signals() -> Result<(), Fault> {
    sys::default_disposition(Signal::SIGPIPE).at(Stage::Signals)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).at(Stage::Signals)
}

/// Waits: for children, for the supervisor's word, for its death. Returns the status to exit with.
fn reap(command: Pid, channel: &OwnedFd, reach: &Reach, keeper: Option<&OwnedFd>) -> i32 {
    let mut signals = SigSet::from_iter(PASSED_ON.iter().copied());
    signals.add(Signal::SIGCHLD);
    // Blocked since before the clone, so none is lost.
    let Ok(signal_fd) = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        return SETUP_FAILED;
    };
    // The command's input and output are the command's alone: whoever reads them must see it close them.
    let watched = keeper.map(AsRawFd::as_raw_fd);
    let kept: Vec<RawFd> = [channel.as_raw_fd(), signal_fd.as_raw_fd()].into_iter().chain(watched).collect();
    if close_all_but(0, &kept).is_err() {
        return SETUP_FAILED;
    }
    // Signals that the terminal or a caller sent to the whole process group: the command has them already.
    let mut had_by_group = SigSet::empty();
    let mut patience = PollTimeout::try_from(LONG_COMMAND).unwrap_or(PollTimeout::NONE);
    loop {
        let mut fds = [
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN),
            // The channel a second time stands for one that is not there.
            PollFd::new(keeper.unwrap_or(channel).as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, patience) {
            Ok(0) => {
                sys::release_code();
                patience = PollTimeout::NONE;
            }
            Ok(_) | Err(Errno::EINTR) => {}
            // Without poll the supervisor's death would not be seen: end, and all with us.
            Err(_) => return SETUP_FAILED,
        }
        if keeper.is_some() && fds.last().and_then(PollFd::any) == Some(true) {
            return SETUP_FAILED;
        }
        while let Ok(Some(info)) = signal_fd.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            // A sender outside this pid namespace has no pid here; inside, kill(1) means nothing.
            // Without such a namespace it has, and nobody inside can signal init.
            if let Some(signal) = signal.filter(|_| info.ssi_pid == 0 || !matches!(reach, Reach::Namespace)) {
                had_by_group.add(signal);
            }
        }
        if let Some(status) = reap_children(command, channel) {
            return status;
        }
        if !pass_signals_on(command, channel, &mut had_by_group, reach) {
            return SETUP_FAILED;
        }
    }
}

/// Reaps all that ended; the exit status once the command has.
fn reap_children(command: Pid, channel: &OwnedFd) -> Option<i32> {
    while let Ok(Some(waited)) = sys::wait4(None, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) {
        if waited.pid != command {
            continue;
        }
        let message = if has_ended(waited.status) {
            Message::Ended(waited.status)
        } else if libc::WIFSTOPPED(waited.status) {
            Message::Stopped(libc::WSTOPSIG(waited.status))
        } else {
            Message::Continued
        };
        // A supervisor that is gone is seen as the channel's end of file.
        let told = message.send(channel);
        if let Message::Ended(_) = message {
            return Some(if told.is_ok() { 0 } else { SETUP_FAILED });
        }
    }
    None
}

/// `false` once the supervisor is gone.
fn pass_signals_on(command: Pid, channel: &OwnedFd, had_by_group: &mut SigSet, reach: &Reach) -> bool {
    loop {
        let mut byte = [0_u8];
        match recv(channel.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(1) => {}
            Err(Errno::EAGAIN | Errno::EINTR) => return true,
            Ok(_) | Err(_) => return false,
        }
        let [number] = byte;
        if number == TERMINATE_ALL {
            // A stopped process gets the signal when it goes on.
            if [Signal::SIGTERM, Signal::SIGCONT].into_iter().any(|signal| reach.signal_all(signal).is_err()) {
                return false;
            }
            continue;
        }
        let Ok(signal) = Signal::try_from(i32::from(number)) else { return false };
        if had_by_group.contains(signal) {
            had_by_group.remove(signal);
            continue;
        }
        if !matches!(kill(command, signal), Ok(()) | Err(Errno::ESRCH)) {
            return false;
        }
    }
}
