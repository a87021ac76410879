//! The launcher under bubblewrap's contract (its manual page): it passes no signal on, limits nothing, keeps the
//! descriptors that the caller left open, and comes back when the command ends, whatever that left running.

mod child;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, setsockopt, socketpair, sockopt};
use nix::unistd::{Pid, read};

use super::descriptors::close_all_but;
use super::failure::{At, Failure, Fault, SandboxError, Stage};
use super::message::{Message, Received};
use super::prepare::{Prepared, Stdio};
use super::supervisor::{LONG_COMMAND, check_single_threaded, clone_flags};
use crate::plan::{BubblewrapPlan, Namespaces, Plan};
use crate::sys;

/// The byte that lets a waiting child go on.
const GO: u8 = 1;

/// Runs the plan's command, follows it to its end, and gives its exit code, 128+n for signal n. What it left running goes
/// on, unless the policy ties it to this process.
///
/// # Errors
/// [`SandboxError`]: the command was not executed, or nobody could be told how it ended.
pub fn follow(plan: &Plan, asked: &BubblewrapPlan, warn: &mut dyn FnMut(&Failure)) -> Result<u8, SandboxError> {
    check_single_threaded()?;
    let fail = |fault| SandboxError::from(Failure::new(fault, plan));
    let stdio = Stdio::default();
    let prepared = Prepared::new(plan, &stdio, None);
    let (init, channel) = start(&prepared, asked).map_err(fail)?;
    let mut monitor = Monitor { plan, asked, init: Some(init), channel, executing: false };
    let ready = monitor.let_go();
    ready.inspect_err(|_| monitor.kill())?;
    monitor.watch(warn)
}

/// All that comes before the clone, and the clone: the child, and our end of the channel to it.
fn start(prepared: &Prepared<'_>, asked: &BubblewrapPlan) -> Result<(Pid, OwnedFd), Fault> {
    // A caller that ignores SIGCHLD would make wait4 lose the status (wait(2), NOTES).
    sys::default_disposition(Signal::SIGCHLD).at(Stage::Supervise)?;
    if asked.die_with_parent {
        prctl::set_pdeathsig(Signal::SIGKILL).at(Stage::DieWithParent)?;
    }
    if asked.handed.pidns.is_some() {
        // The command's process is not our child at first, and becomes it when the one between ends.
        prctl::set_child_subreaper(true).at(Stage::JoinPidns)?;
    }
    if let Some(userns) = asked.handed.userns {
        setns(sys::borrow_number(userns), CloneFlags::CLONE_NEWUSER).at(Stage::JoinUserns)?;
    }
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).at(Stage::Supervise)?;
    if asked.handed.pidns.is_some() {
        setsockopt(&ours, sockopt::PassCred, &true).at(Stage::JoinPidns)?;
    }
    // The one behind --pidns is made there (pid_namespaces(7)).
    let pid = prepared.plan.namespaces.pid && asked.handed.pidns.is_none();
    let namespaces = Namespaces { pid, ..prepared.plan.namespaces };
    match sys::clone_process(clone_flags(Some(namespaces))).at(Stage::Clone)? {
        sys::Side::Child => {
            drop(ours);
            child::run(prepared, asked, &theirs)
        }
        sys::Side::Parent(child) => Ok((child, ours)),
    }
}

struct Monitor<'a> {
    plan: &'a Plan,
    asked: &'a BubblewrapPlan,
    /// The first process of the sandbox, ours or the command's; none while it is not known.
    init: Option<Pid>,
    channel: OwnedFd,
    /// The command's process has come as far as the execve.
    executing: bool,
}

impl Monitor<'_> {
    /// All that has to be done before the sandbox may go on without us.
    fn let_go(&mut self) -> Result<(), SandboxError> {
        if self.asked.handed.pidns.is_some() {
            self.find_first_process()?;
        }
        if self.asked.waits {
            self.announce()?;
        }
        self.let_go_of_privileges()?;
        if self.asked.waits {
            send(self.channel.as_raw_fd(), &[GO], MsgFlags::MSG_NOSIGNAL)
                .map_err(|errno| Failure::supervise("let the sandbox go on", errno))?;
        }
        // Who reads a pipe that the command has must see it close.
        let kept: Vec<RawFd> = std::iter::once(self.channel.as_raw_fd()).chain(self.asked.handed.json_status).collect();
        close_all_but(3, &kept).map_err(|errno| Failure::supervise("close descriptors", errno).into())
    }

    fn watch(&mut self, warn: &mut dyn FnMut(&Failure)) -> Result<u8, SandboxError> {
        let (status, executed) = self.wait(warn)?;
        let code = exit_code(status);
        if let Some(fd) = self.asked.handed.json_status.filter(|_| executed)
            && write_to(fd, &format!("{{ \"exit-code\": {code} }}\n")).is_err()
        {
            // Its reader has gone away; our own exit code still says it.
        }
        Ok(code)
    }

    /// Behind `--pidns` the process that we cloned only joins and forks: the one that says that it has started is meant.
    fn find_first_process(&mut self) -> Result<(), SandboxError> {
        let lost = |errno| SandboxError::from(Failure::supervise("find the process in the pid namespace", errno));
        let received = Message::receive(&self.channel).map_err(lost)?;
        // What was between has ended, or is about to; its status says nothing.
        sys::wait4(self.init.take(), 0).map_err(lost)?;
        match received {
            Some(Received { message: Message::Started, sender: Some(pid), .. }) => {
                self.init = Some(pid);
                Ok(())
            }
            Some(Received { message: Message::Failed(fault), .. }) => Err(self.failure(fault)),
            _ => Err(lost(Errno::ESRCH)),
        }
    }

    fn failure(&self, fault: Fault) -> SandboxError {
        Failure::new(fault, self.plan).into()
    }

    /// Says who the child is and waits until others have done with it.
    fn announce(&self) -> Result<(), SandboxError> {
        let handed = &self.asked.handed;
        let pid = self.init.map_or(0, Pid::as_raw);
        let namespaces = self.namespaces(pid)?;
        let member = |(name, inode): &(&str, u64)| format!("\"{name}-namespace\": {inode}");
        if let Some(fd) = handed.info {
            let members: String = namespaces.iter().map(|entry| format!(",\n    {}", member(entry))).collect();
            let text = format!("{{\n    \"child-pid\": {pid}{members}\n}}\n");
            write_to(fd, &text).map_err(|fault| self.failure(fault))?;
            if handed.json_status != Some(fd) {
                child::close_if_open(fd);
            }
        }
        if let Some(fd) = handed.json_status {
            let members: String = namespaces.iter().map(|entry| format!(", {}", member(entry))).collect();
            let text = format!("{{ \"child-pid\": {pid}{members} }}\n");
            write_to(fd, &text).map_err(|fault| self.failure(fault))?;
        }
        if let Some(fd) = handed.userns_block {
            let mut byte = [0];
            read(sys::borrow_number(fd), &mut byte)
                .map_err(|errno| Failure::supervise("wait for the user namespace", errno))?;
        }
        Ok(())
    }

    /// The inodes of the namespaces that are new.
    fn namespaces(&self, init: i32) -> Result<Vec<(&'static str, u64)>, SandboxError> {
        let Namespaces { network, pid, ipc, uts, cgroup, .. } = self.plan.namespaces;
        let is_new = [("cgroup", cgroup), ("ipc", ipc), ("mnt", true), ("net", network), ("pid", pid), ("uts", uts)];
        let inode = |name: &'static str| {
            let file = fs::metadata(format!("/proc/{init}/ns/{name}"));
            file.map(|file| (name, file.ino())).map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                Failure::supervise("look at the namespaces of the sandbox", errno).into()
            })
        };
        is_new.into_iter().filter(|(_, is_new)| *is_new).map(|(name, _)| inode(name)).collect()
    }

    /// What follows needs no capability, whatever root or a joined user namespace gave.
    fn let_go_of_privileges(&self) -> Result<(), SandboxError> {
        if self.plan.ids.uid != 0 && self.asked.handed.userns.is_none() {
            return Ok(());
        }
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::clear(None, set).map_err(|_| Failure::supervise("drop the launcher's capabilities", Errno::EPERM))?;
        }
        if self.asked.die_with_parent {
            // A change of credentials can clear it (prctl(2), PR_SET_PDEATHSIG).
            prctl::set_pdeathsig(Signal::SIGKILL)
                .map_err(|errno| Failure::supervise("tie the launcher's life to its parent", errno))?;
        }
        Ok(())
    }

    /// The command's wait status, and whether it was executed at all.
    fn wait(&mut self, warn: &mut dyn FnMut(&Failure)) -> Result<(i32, bool), SandboxError> {
        let mut patience = PollTimeout::try_from(LONG_COMMAND).unwrap_or(PollTimeout::NONE);
        loop {
            if poll(&mut [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)], patience) == Ok(0) {
                sys::release_code();
                patience = PollTimeout::NONE;
                continue;
            }
            let received = Message::receive(&self.channel);
            match received.map_err(|errno| Failure::supervise("read from the sandbox", errno))? {
                Some(Received { message: Message::Failed(fault), detail, .. }) => {
                    let detail = std::os::unix::ffi::OsStringExt::from_vec(detail);
                    return Err(Failure { detail, ..Failure::new(fault, self.plan) }.into());
                }
                Some(Received { message: Message::Warned(fault), .. }) => warn(&Failure::new(fault, self.plan)),
                Some(Received { message: Message::Ended(status), .. }) => return Ok((status, true)),
                Some(Received { message: Message::Executing, .. }) => self.executing = true,
                Some(_) => {}
                None => break,
            }
        }
        // The command was executed in the place of our child, or init is gone.
        match sys::wait4(self.init.take(), 0) {
            Ok(Some(waited)) => Ok((waited.status, self.executing)),
            Ok(None) => Err(Failure::supervise("wait for the sandbox", Errno::ECHILD).into()),
            Err(errno) => Err(Failure::supervise("wait for the sandbox", errno).into()),
        }
    }

    /// Nothing may start that could not be announced or watched.
    fn kill(&self) {
        let Some(init) = self.init else { return };
        // ESRCH: it has ended by itself. Where we may not, closing the channel ends what waits on it.
        if kill(init, Signal::SIGKILL).is_ok() && sys::wait4(Some(init), 0).is_err() {
            // Behind --pidns it is not ours to wait for.
        }
    }
}

fn write_to(fd: RawFd, text: &str) -> Result<(), Fault> {
    let file = sys::borrow_number(fd).try_clone_to_owned().map(fs::File::from);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        .at(Stage::Info)
}

/// As a shell says it.
fn exit_code(status: i32) -> u8 {
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    u8::try_from(code).unwrap_or(255)
}
