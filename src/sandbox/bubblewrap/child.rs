//! Inside, under bubblewrap's contract: the first process sets up, and either becomes the command or reaps for it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, getpid, getppid, pipe2, read, setresgid, setresuid, setsid, write};

use super::super::confine::{self, Confined, Settled};
use super::super::descriptors::close_all_but;
use super::super::failure::{At, Fault, Stage};
use super::super::message::{Message, has_ended};
use super::super::prepare::Prepared;
use super::super::rootfs;
use super::super::setup::{
    change_directory, die_with_supervisor, enter_second_user_namespace, limit_user_namespaces, loopback_up, map_ids,
    own_proc_directory, set_limits,
};
use super::super::supervisor::LONG_COMMAND;
use super::{GO, exit_code};
use crate::plan::BubblewrapPlan;
use crate::sys;

/// What bubblewrap exits with for every failure of its own.
const FAILED: i32 = 1;

/// The child's side of the clone.
pub(super) fn run(prepared: &Prepared<'_>, asked: &BubblewrapPlan, channel: &OwnedFd) -> ! {
    let status = match set_up(prepared, asked, channel) {
        Ok(settled) if asked.init => match spawn(prepared, asked, &settled, channel) {
            Ok(command) => reap(command, channel),
            Err(fault) => report_by_write(fault, channel),
        },
        Ok(settled) => {
            let fault = become_command(prepared, &settled, channel, None);
            report_by_write(fault, channel)
        }
        Err(fault) => report(prepared, fault, channel),
    };
    sys::exit_now(status)
}

/// The set-up, in the order that the kernel dictates.
fn set_up(prepared: &Prepared<'_>, asked: &BubblewrapPlan, channel: &OwnedFd) -> Result<Settled, Fault> {
    let plan = prepared.plan;
    // The launcher's: who reads there waits for the end of file.
    for fd in [asked.handed.info, asked.handed.json_status].into_iter().flatten() {
        close_if_open(fd);
    }
    close_at_exec(&asked.closed);
    if let Some(pidns) = asked.handed.pidns {
        enter_pid_namespace(pidns, plan.namespaces.pid, channel)?;
    }
    if asked.waits {
        wait_for_word(channel)?;
    }
    if asked.die_with_parent {
        // Behind --pidns not before the launcher's word: the signal would come when the process between ends.
        die_with_supervisor(channel)?;
    }
    let caller_umask = umask(Mode::empty());
    let own_proc = own_proc_directory(plan)?;
    if plan.namespaces.user && asked.handed.userns_block.is_none() {
        map_ids(plan)?;
    }
    if asked.handed.userns.is_some() {
        switch_ids(prepared)?;
    }
    if asked.limit_userns {
        limit_user_namespaces(plan)?;
    }
    if plan.namespaces.network {
        loopback_up()?;
    }
    rootfs::build(prepared)?;
    if let Some(hostname) = &plan.hostname {
        nix::unistd::sethostname(hostname).at(Stage::Hostname)?;
    }
    if let Some(userns2) = asked.handed.userns2 {
        setns(sys::borrow_number(userns2), CloneFlags::CLONE_NEWUSER).at(Stage::JoinUserns2)?;
    }
    if let Some(own_proc) = own_proc {
        // Last of what needs power over the namespaces made so far: in here there is none over them.
        enter_second_user_namespace(plan, &own_proc)?;
    }
    if asked.assert_userns_disabled {
        assert_no_user_namespace()?;
    }
    set_limits(plan)?;
    let settled = confine::keep_capabilities(asked.capabilities)?;
    if asked.die_with_parent {
        // Credentials changed, which can clear it (prctl(2), PR_SET_PDEATHSIG).
        die_with_supervisor(channel)?;
    }
    // Clients look at the namespaces of the first process in /proc, which is the user's own only if it is dumpable.
    prctl::set_dumpable(true).at(Stage::Dumpable)?;
    if let Some(fd) = asked.handed.block {
        wait_until_readable(fd)?;
    }
    umask(caller_umask);
    if plan.new_session {
        setsid().at(Stage::Session)?;
    }
    tell_warnings(prepared, channel)?;
    Ok(settled)
}

/// The same number may have been given twice.
pub(super) fn close_if_open(fd: RawFd) {
    if sys::close_number(fd).is_err() {}
}

/// A byte, the end of file, or an error: all of them mean go. Also of a descriptor that does not block by itself.
fn wait_until_readable(fd: RawFd) -> Result<(), Fault> {
    let fd = sys::borrow_number(fd);
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            ready => {
                ready.at(Stage::Block)?;
                if read(fd, &mut [0]).is_err() {
                    // What it was does not matter.
                }
                return Ok(());
            }
        }
    }
}

/// What was used up is not the command's. A number that is not open has nothing to close.
fn close_at_exec(descriptors: &[RawFd]) {
    for fd in descriptors {
        if fcntl(sys::borrow_number(*fd), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {}
    }
}

/// Joins the pid namespace, which children are in, and goes on as one; with `inner` in another pid namespace below it. Comes
/// back in the last of them, when the launcher knows about it.
fn enter_pid_namespace(pidns: RawFd, inner: bool, channel: &OwnedFd) -> Result<(), Fault> {
    setns(sys::borrow_number(pidns), CloneFlags::CLONE_NEWPID).at(Stage::JoinPidns)?;
    continue_in_child()?;
    if inner {
        unshare(CloneFlags::CLONE_NEWPID).at(Stage::JoinPidns)?;
        continue_in_child()?;
    }
    Message::Started.send(channel).at(Stage::JoinPidns)
}

fn continue_in_child() -> Result<(), Fault> {
    match sys::clone_process(CloneFlags::empty()).at(Stage::JoinPidns)? {
        sys::Side::Parent(_) => sys::exit_now(0),
        sys::Side::Child => Ok(()),
    }
}

fn wait_for_word(channel: &OwnedFd) -> Result<(), Fault> {
    let mut byte = [0];
    loop {
        match recv(channel.as_raw_fd(), &mut byte, MsgFlags::empty()) {
            Ok(1) if byte == [GO] => return Ok(()),
            Err(Errno::EINTR) => {}
            Ok(_) => return Err(Errno::ESRCH).at(Stage::Word),
            Err(errno) => return Err(errno).at(Stage::Word),
        }
    }
}

/// In a user namespace that others made, where this process has all capabilities and may have another id.
fn switch_ids(prepared: &Prepared<'_>) -> Result<(), Fault> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let Some(inside) = prepared.plan.ids_inside else { return Ok(()) };
    let (wanted_uid, wanted_gid) = (Uid::from_raw(inside.uid), Gid::from_raw(inside.gid));
    if gid != wanted_gid {
        setresgid(wanted_gid, wanted_gid, wanted_gid).at(Stage::SwitchIds)?;
    }
    if uid != wanted_uid {
        // The capabilities are still needed (capabilities(7), "Effect of user ID changes").
        prctl::set_keepcaps(true).at(Stage::SwitchIds)?;
        setresuid(wanted_uid, wanted_uid, wanted_uid).at(Stage::SwitchIds)?;
        let permitted = caps::read(None, caps::CapSet::Permitted).map_err(|_| Errno::EPERM).at(Stage::SwitchIds)?;
        caps::set(None, caps::CapSet::Effective, &permitted).map_err(|_| Errno::EPERM).at(Stage::SwitchIds)?;
    }
    Ok(())
}

fn assert_no_user_namespace() -> Result<(), Fault> {
    match unshare(CloneFlags::CLONE_NEWUSER) {
        // In a namespace that should not be, but nothing will run in it.
        Ok(()) => Err(Errno::EEXIST).at(Stage::AssertUserns),
        Err(_) => Ok(()),
    }
}

fn tell_warnings(prepared: &Prepared<'_>, channel: &OwnedFd) -> Result<(), Fault> {
    for warning in prepared.take_told().warnings {
        Message::Warned(warning).send(channel).at(Stage::Word)?;
    }
    Ok(())
}

/// Starts the command's process, which is ours to reap.
fn spawn(prepared: &Prepared<'_>, asked: &BubblewrapPlan, settled: &Settled, channel: &OwnedFd) -> Result<Pid, Fault> {
    let locks = take_locks(asked)?;
    let parent = asked.die_with_parent.then(getpid);
    if prepared.filters.is_empty() {
        let command = start_at_once(prepared, settled, channel, parent)?;
        let closed = close_all_but(0, &kept_by_init(asked, channel, &locks));
        if closed.is_err() && kill(command, Signal::SIGKILL).is_err() {
            // It has ended by itself.
        }
        closed.at(Stage::Descriptors)?;
        keep_open(locks);
        give_back_memory(command);
        return Ok(command);
    }
    // This process is under the filters too, lest the command makes it do what it may not do itself. So the command has to
    // wait until they are in force here: it is forked, not vforked.
    let (gate, opener) = pipe2(OFlag::O_CLOEXEC).at(Stage::Spawn)?;
    match sys::clone_process(CloneFlags::empty()).at(Stage::Spawn)? {
        sys::Side::Child => {
            drop(opener);
            let fault = match read(&gate, &mut [0]) {
                Ok(1) => become_command(prepared, settled, channel, parent),
                // Its report is on the way.
                _ => sys::exit_now(FAILED),
            };
            sys::exit_now(report_by_write(fault, channel))
        }
        sys::Side::Parent(command) => {
            drop(gate);
            let mut kept = kept_by_init(asked, channel, &locks);
            kept.push(opener.as_raw_fd());
            close_all_but(0, &kept).at(Stage::Descriptors)?;
            confine::confine_by_filters(settled, prepared)?;
            // Where the filters forbid that, the command does not start.
            write(&opener, &[GO]).at(Stage::Filter)?;
            keep_open(locks);
            Ok(command)
        }
    }
}

fn start_at_once(
    prepared: &Prepared<'_>,
    settled: &Settled,
    channel: &OwnedFd,
    parent: Option<Pid>,
) -> Result<Pid, Fault> {
    // Written by the child, which shares this memory until it executes.
    let mut fault = None;
    let pid = sys::vfork(&mut || {
        fault = Some(become_command(prepared, settled, channel, parent));
        FAILED
    })
    .at(Stage::Spawn)?;
    fault.map_or(Ok(pid), Err)
}

/// Everything but the execve, in the last possible order. Returns only on failure. `parent` is whose end ends this process.
fn become_command(prepared: &Prepared<'_>, settled: &Settled, channel: &OwnedFd, parent: Option<Pid>) -> Fault {
    let ready = || {
        if let Some(parent) = parent {
            prctl::set_pdeathsig(Signal::SIGKILL).at(Stage::DieWithParent)?;
            if getppid() != parent {
                return Err(Errno::ESRCH).at(Stage::DieWithParent);
            }
        }
        let directory = change_directory(prepared)?;
        sys::restore_sigpipe().at(Stage::Signals)?;
        // A caller may have it blocked (wait(2) works all the same, but not everybody waits).
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::from(Signal::SIGCHLD)), None).at(Stage::Signals)?;
        Message::Executing.write(channel).at(Stage::Word)?;
        Ok((confine::confine_by_filters(settled, prepared)?, directory))
    };
    match ready() {
        Ok((confined, directory)) => execute(&confined, prepared, directory),
        Err(fault) => fault,
    }
}

/// As execvp(3): each candidate in turn, without a look before, which a filter may know nothing of.
fn execute(confined: &Confined, prepared: &Prepared<'_>, directory: usize) -> Fault {
    let mut reason = Fault { stage: Stage::Exec, index: 0, errno: Errno::ENOENT };
    for path in &prepared.candidates {
        let fault = confine::exec(confined, prepared, path, directory);
        match fault.errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ENODEV | Errno::ETIMEDOUT
                if prepared.candidates.len() > 1 => {}
            Errno::EACCES => reason = fault,
            _ => return fault,
        }
    }
    reason
}

/// Read locks on whole files, which this process holds until it ends (fcntl(2), "Advisory record locking").
fn take_locks(asked: &BubblewrapPlan) -> Result<Vec<File>, Fault> {
    let lock = |(index, path): (usize, &crate::policy::SandboxPath)| {
        let file = open(path.as_path(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let file = File::from(file.at_index(Stage::LockOpen, index)?);
        // From the start to the end, however far that moves.
        let whole = libc::flock {
            l_type: i16::try_from(libc::F_RDLCK).unwrap_or(0),
            l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_SETLK(&whole)).at_index(Stage::Lock, index)?;
        Ok(file)
    };
    asked.lock_files.iter().enumerate().map(lock).collect()
}

/// What the process that reaps has open: the lock files, the channel, and what is to stay open as long as it lives. Not the
/// command's input and output: who reads them must see it close them.
fn kept_by_init(asked: &BubblewrapPlan, channel: &OwnedFd, locks: &[File]) -> Vec<RawFd> {
    let locks = locks.iter().map(AsRawFd::as_raw_fd);
    std::iter::once(channel.as_raw_fd()).chain(asked.handed.sync).chain(locks).collect()
}

/// A lock goes with any descriptor of its file that is closed.
fn keep_open(locks: Vec<File>) {
    locks.into_iter().for_each(std::mem::forget);
}

/// While a long command runs. Not under filters, which may know nothing of these calls; and where they fail, the memory stays.
fn give_back_memory(command: Pid) {
    let Ok(pidfd) = sys::pidfd_open(command) else { return };
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::try_from(LONG_COMMAND).unwrap_or(PollTimeout::ZERO)) == Ok(0) {
        sys::release_code();
    }
}

/// Until nothing is left. The launcher hears of the command's end at once.
fn reap(command: Pid, channel: &OwnedFd) -> i32 {
    let mut status = FAILED;
    // ECHILD: none is left.
    while let Ok(Some(waited)) = sys::wait4(None, 0) {
        if waited.pid == command && has_ended(waited.status) {
            status = exit_code(waited.status).into();
            // Without a launcher nobody wants to know; the rest goes on all the same.
            if Message::Ended(waited.status).write(channel).is_err() {}
        }
    }
    status
}

/// Says why there is no command; gives the exit code.
fn report(prepared: &Prepared<'_>, fault: Fault, channel: &OwnedFd) -> i32 {
    let detail = prepared.take_told().detail;
    if Message::Failed(fault).send_with_detail(channel, detail.as_bytes()).is_err() {
        // The launcher is gone: nobody is left to be told.
    }
    FAILED
}

/// The same where a filter is in force.
fn report_by_write(fault: Fault, channel: &OwnedFd) -> i32 {
    if Message::Failed(fault).write(channel).is_err() {
        // As above; the exit code says it too.
    }
    FAILED
}
