//! Init's parent where no pid namespace holds the sandbox together. It does nothing but wait, in a process group and under a
//! name of its own, so that who kills supervisor and init by group or by name leaves it; and when either of them is gone, it
//! ends what is left.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, setpgid};

use super::confine::{self, Bounding, Settled};
use super::descriptors::close_all_but;
use super::failure::{At, Fault, Stage};
use super::init;
use super::message::has_ended;
use super::prepare::Prepared;
use super::scratch::{Folder, PATIENT};
use super::setup::supervisor_is_gone;
use super::tree::{self, Reach};
use crate::sys;

/// The child's side of the clone, without namespaces.
pub(super) fn run(prepared: &Prepared<'_>, channel: OwnedFd) -> ! {
    let keeper = getpid();
    let started = start(prepared, &channel).and_then(|(settled, reach, children)| {
        let side = sys::clone_process(CloneFlags::empty()).at(Stage::Spawn)?;
        Ok((settled, reach, children, side))
    });
    match started {
        Err(fault) => init::fail(fault, &channel),
        Ok((settled, reach, children, sys::Side::Child)) => {
            drop(children);
            init::run_kept(prepared, &channel, (&settled, reach), keeper)
        }
        Ok((_, reach, children, sys::Side::Parent(init))) => {
            let status = wait(prepared, init, &channel, &children);
            let ended = reach.end_all();
            if let Some(folder) = prepared.folder
                && supervisor_is_gone(&channel) == Ok(true)
                && folder.remove(PATIENT).is_err()
            {
                sys::exit_now(init::SETUP_FAILED);
            }
            match status {
                Ok(status) if libc::WIFEXITED(status) && ended.is_ok() => sys::exit_now(libc::WEXITSTATUS(status)),
                Ok(status) if libc::WIFSIGNALED(status) => end_by(libc::WTERMSIG(status)),
                Err(Errno::ECANCELED) => end_by(libc::SIGKILL),
                Ok(_) | Err(_) => sys::exit_now(init::SETUP_FAILED),
            }
        }
    }
}

/// What init shall have too.
fn start(prepared: &Prepared<'_>, channel: &OwnedFd) -> Result<(Settled, Reach, SignalFd), Fault> {
    let plan = prepared.plan;
    init::take_standard_descriptors(prepared)?;
    close_all_but(3, &init::kept(prepared, channel)).at(Stage::Descriptors)?;
    sys::wipe_arguments_and_environment();
    prctl::set_child_subreaper(true).at(Stage::Subreaper)?;
    // Blocked since before the clone, so none is lost.
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let children = SignalFd::with_flags(&SigSet::from(Signal::SIGCHLD), flags).at(Stage::Signals)?;
    init::join_keyring_and_limits(plan)?;
    let settled = confine::drop_privileges(Bounding::MayStay)?;
    let reach = if plan.landlock.as_ref().is_some_and(|landlock| landlock.scope) {
        Reach::Domain(confine::confine_signals(&settled)?)
    } else {
        tree::check().at(Stage::Subreaper)?;
        Reach::Descendants
    };
    prctl::set_dumpable(false).at(Stage::Dumpable)?;
    Ok((settled, reach, children))
}

/// Init's wait status; ECANCELED once the supervisor is gone or says no more, which is how it asks for the end of all.
fn wait(prepared: &Prepared<'_>, init: Pid, channel: &OwnedFd, children: &SignalFd) -> nix::Result<i32> {
    let hung_up = PollFlags::from_bits_retain(libc::POLLRDHUP);
    prctl::set_name(c"shannot-keeper")?;
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    // The command's input and output are the command's alone.
    let folder = prepared.folder.map(Folder::numbers).into_iter().flatten();
    let kept: Vec<RawFd> = [channel.as_raw_fd(), children.as_raw_fd()].into_iter().chain(folder).collect();
    close_all_but(0, &kept)?;
    loop {
        let mut fds = [PollFd::new(channel.as_fd(), hung_up), PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        // First, since init ends for the same reason. To nix the flag is unknown, and so no answer.
        if fds.first().and_then(PollFd::revents) != Some(PollFlags::empty()) {
            return Err(Errno::ECANCELED);
        }
        while let Ok(Some(_)) = children.read_signal() {}
        match sys::wait4(Some(init), libc::WNOHANG)? {
            Some(waited) if has_ended(waited.status) => return Ok(waited.status),
            _ => {}
        }
    }
}

/// Ends as init did, so that the supervisor sees it.
fn end_by(signal: i32) -> ! {
    match Signal::try_from(signal).and_then(|signal| kill(getpid(), signal)) {
        Ok(()) | Err(_) => sys::exit_now(init::SETUP_FAILED),
    }
}
