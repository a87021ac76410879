//! Outside: makes the clone, passes signals on, keeps the time, takes part in job control, and waits until the last
//! process of the sandbox is gone. Holds no copy of the command's input or output.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socketpair};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};

use super::cgroups::Groups;
use super::denials::Denied;
use super::descriptors::{check_sockets, check_standard};
use super::failure::{At, Failure, Fault, SandboxError, Stage};
use super::gate::Gate;
use super::message::{Message, TERMINATE_ALL};
use super::place::Place;
use super::prepare::{Image, Prepared, Stdio};
use super::scratch::{HASTY, PATIENT};
use super::{init, keeper};
use crate::plan::{Namespaces, Plan, Timeout};
use crate::report::{Counted, EndedBy, Ending, Outcome, Resources};
use crate::sys;

/// Signals that the command gets as if it were in the shell itself.
pub(super) const PASSED_ON: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// The command may lead the terminal to stop its whole process group, and a clock that is stopped ends nothing.
const OF_THE_TERMINAL: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// A command that runs for so long is no short one: init and supervisor then give back what memory they can. Not at
/// once, since the pages that they need at the end must be fetched again.
pub(super) const LONG_COMMAND: Duration = Duration::from_millis(100);

/// Runs the plan's command and waits until nothing of it is left.
///
/// # Errors
/// [`SandboxError`]; then the command was not executed, and nothing is left behind.
pub fn run(plan: &Plan, stdio: &Stdio, image: Option<&Image>) -> Result<Outcome, SandboxError> {
    check_single_threaded()?;
    check_standard(stdio).map_err(|fault| Failure::new(fault, plan))?;
    if plan.in_place.is_some() {
        check_sockets(stdio).map_err(|fault| Failure::new(fault, plan))?;
    }
    let signals = Signals::take().map_err(|errno| Failure::supervise("take over signals", errno))?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Failure::supervise("open the channel to init", errno))?;
    let terminal = SavedTerminal::save();
    let place = Place::take(plan)?;
    let mut groups = Groups::make(plan).map_err(|fault| place.give_up(fault, plan))?;
    let mut prepared = Prepared::new(plan, stdio, image);
    prepared.folder = place.folder.as_ref();
    let started = Instant::now();
    let namespaces = plan.in_place.is_none().then_some(groups.namespaces_before_joining());
    let init = match sys::clone_process(clone_flags(namespaces)).at(Stage::Clone) {
        Ok(sys::Side::Child) => {
            drop(ours);
            become_init(&prepared, &groups, theirs)
        }
        Ok(sys::Side::Parent(pid)) => pid,
        Err(fault) => return Err(place.give_up(fault, plan).into()),
    };
    drop(theirs);
    let mut watch = Watch {
        init,
        channel: ours,
        signals,
        timeout: plan.timeout,
        started,
        state: State::default(),
        plan,
        gate: None,
        denied: Denied::default(),
        left_behind: false,
        counted: None,
        cgroup_left_behind: false,
    };
    let ended = watch.until_the_end();
    // Pid 1 gone means all gone (pid_namespaces(7)); without such a namespace init ends when all others have.
    let waited = watch.wait_for_init()?;
    if libc::WIFSIGNALED(waited.status) {
        place.end_orphans();
    }
    // Else it could not say that all have ended.
    let patience = if waited.status == 0 { PATIENT } else { HASTY };
    watch.left_behind = !place.leave(patience);
    watch.counted = groups.counted();
    watch.cgroup_left_behind = !groups.remove();
    match ended? {
        Ended::Failed(fault) => Err(Failure::new(fault, plan).into()),
        Ended::Lost if libc::WIFEXITED(waited.status) => Err(SandboxError::InitLost(waited.status)),
        Ended::Lost => {
            let signal = libc::WTERMSIG(waited.status);
            terminal.restore();
            Ok(watch.outcome(Ending::SandboxKilled { signal }, &waited))
        }
        Ended::Command(status) if libc::WIFSIGNALED(status) => {
            // It may have left the terminal raw.
            terminal.restore();
            Ok(watch.outcome(Ending::Signalled { signal: libc::WTERMSIG(status) }, &waited))
        }
        Ended::Command(status) => {
            let code = u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(255);
            Ok(watch.outcome(Ending::Exited { code }, &waited))
        }
    }
}

/// The child's side. What limits the sandbox limits all that is done from here on.
fn become_init(prepared: &Prepared<'_>, groups: &Groups<'_>, channel: OwnedFd) -> ! {
    match groups.join() {
        Err(fault) => init::fail(fault, &channel),
        Ok(()) if prepared.plan.in_place.is_some() => keeper::run(prepared, channel),
        Ok(()) => init::run(prepared, &channel),
    }
}

/// A clone copies the calling thread only; a lock that another one holds would be held for ever in the child.
pub(super) fn check_single_threaded() -> Result<(), SandboxError> {
    // proc(5): a directory a thread, and two for itself. Without /proc there is no user namespace either.
    match std::fs::metadata("/proc/self/task") {
        Ok(task) if task.nlink() > 3 => Err(SandboxError::Threads(task.nlink() - 2)),
        _ => Ok(()),
    }
}

pub(super) fn clone_flags(namespaces: Option<Namespaces>) -> CloneFlags {
    let Some(namespaces) = namespaces else { return CloneFlags::empty() };
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWPID, namespaces.pid);
    flags.set(CloneFlags::CLONE_NEWIPC, namespaces.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, namespaces.uts);
    flags.set(CloneFlags::CLONE_NEWCGROUP, namespaces.cgroup);
    flags.set(CloneFlags::CLONE_NEWUSER, namespaces.user);
    flags.set(CloneFlags::CLONE_NEWNET, namespaces.network);
    flags
}

/// Signals of the supervisor: blocked, and read from a descriptor. Given back at the end.
struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    fn take() -> nix::Result<Self> {
        // A caller that ignores SIGCHLD would make wait4 lose the status (wait(2), NOTES).
        sys::default_disposition(Signal::SIGCHLD)?;
        let passed_on = SigSet::from_iter(PASSED_ON.iter().copied());
        let mut blocked = passed_on;
        blocked.add(Signal::SIGCHLD);
        blocked.extend(OF_THE_TERMINAL);
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before))?;
        let fd = SignalFd::with_flags(&passed_on, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, before })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Those that came meanwhile were for the command.
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        if let Ok(pending) = SignalFd::with_flags(&SigSet::from_iter(OF_THE_TERMINAL), flags) {
            while let Ok(Some(_)) = pending.read_signal() {}
        }
        // A mask that was accepted once is accepted again. If it is not: nothing of the sandbox depends on it any more.
        if sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None).is_err() {}
    }
}

/// The terminal's modes as the caller left them.
struct SavedTerminal(Option<Termios>);

impl SavedTerminal {
    fn save() -> Self {
        Self(tcgetattr(sys::borrow_number(libc::STDIN_FILENO)).ok())
    }

    /// After a violent end; a command that exits by itself may have changed the modes on purpose (stty).
    fn restore(&self) {
        let stdin = sys::borrow_number(libc::STDIN_FILENO);
        let Some(modes) = &self.0 else { return };
        // From the background this would stop us with SIGTTOU; then the terminal is somebody else's anyway.
        if tcgetpgrp(stdin) == Ok(getpgrp()) && tcsetattr(stdin, SetArg::TCSADRAIN, modes).is_err() {
            // The terminal has gone away: there is nothing to restore.
        }
    }
}

/// How the wait ended.
enum Ended {
    /// The command, with its wait status.
    Command(i32),
    /// A stage of setting up.
    Failed(Fault),
    /// Init is gone without a word.
    Lost,
}

#[derive(Default)]
struct State {
    forwarded: Option<i32>,
    interrupted_from_terminal: bool,
    stopped_from_terminal: bool,
    asked_to_end: bool,
    killed: bool,
    is_long: bool,
}

struct Watch<'a> {
    /// Or its keeper.
    init: Pid,
    channel: OwnedFd,
    signals: Signals,
    timeout: Option<Timeout>,
    started: Instant,
    state: State,
    plan: &'a Plan,
    gate: Option<Gate<'a>>,
    denied: Denied,
    left_behind: bool,
    counted: Option<Counted>,
    cgroup_left_behind: bool,
}

impl Watch<'_> {
    fn until_the_end(&mut self) -> Result<Ended, Failure> {
        loop {
            // poll(2) ignores a negative descriptor; the channel a second time stands for one that is not there.
            let (gate, events) = match &self.gate {
                Some(gate) => (gate.listener.as_fd(), PollFlags::POLLIN),
                None => (self.channel.as_fd(), PollFlags::empty()),
            };
            let mut fds = [
                PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN),
                PollFd::new(gate, events),
            ];
            match poll(&mut fds, self.next_deadline()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.give_up("wait for the sandbox", errno)),
            }
            let [channel, signals, asked] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            let [channel, signals] = [channel, signals].map(|events| !events.is_empty());
            if self.gate.is_some() && !asked.is_empty() {
                self.answer(asked).map_err(|errno| self.give_up("answer the launch gate", errno))?;
            }
            if signals {
                self.pass_signals_on();
            }
            if channel {
                match Message::receive(&self.channel) {
                    Ok(Some(received)) => match received.message {
                        Message::Ended(status) => return Ok(Ended::Command(status)),
                        Message::Failed(fault) => return Ok(Ended::Failed(fault)),
                        Message::Stopped(_) => self.stop_with_command(),
                        Message::Listening => {
                            self.gate = received.descriptor.map(|listener| Gate::new(listener, self.plan));
                        }
                        Message::Continued | Message::Warned(_) | Message::Started | Message::Executing => {}
                    },
                    Ok(None) => return Ok(Ended::Lost),
                    Err(errno) => return Err(self.give_up("read from init", errno)),
                }
            }
            self.keep_time();
        }
    }

    fn answer(&mut self, events: PollFlags) -> nix::Result<()> {
        if let Some(gate) = &mut self.gate
            && !gate.answer(events, &mut self.denied)?
        {
            self.gate = None;
        }
        Ok(())
    }

    /// The sandbox can't be watched any more, so it must not go on.
    fn give_up(&self, what: &str, errno: Errno) -> Failure {
        self.kill_all();
        Failure::supervise(what, errno)
    }

    fn kill_all(&self) {
        if self.plan.in_place.is_some() {
            // Nothing ends with a signal to it, so it must do it: it ends all when there is no more to be heard. Were it
            // stopped, it would not.
            let told = shutdown(self.channel.as_raw_fd(), Shutdown::Write);
            let woken = kill(self.init, Signal::SIGCONT);
            if told.is_err() || woken.is_err() {
                // Neither can fail: the socket is connected, the child our own.
            }
            return;
        }
        // Our own child, not waited for yet: the number can't be anybody else's. ESRCH can't happen, EPERM neither
        // (same user), and were it so, closing the channel ends init as well.
        if kill(self.init, Signal::SIGKILL).is_err() {}
    }

    fn tell_init(&self, byte: u8) {
        // Init may have ended just now; then there is nobody to tell, and the end of file is on its way. A full
        // queue means that it has more than enough signals to pass on.
        if send(self.channel.as_raw_fd(), &[byte], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_err() {}
    }

    fn pass_signals_on(&mut self) {
        while let Ok(Some(info)) = self.signals.fd.read_signal() {
            let from_terminal = is_from_kernel(&info);
            let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
            self.state.interrupted_from_terminal |= from_terminal && signal == libc::SIGINT;
            self.state.stopped_from_terminal |= from_terminal && signal == libc::SIGTSTP;
            // The terminal signals its whole foreground group, and the command is in it.
            if from_terminal && !self.plan.new_session {
                continue;
            }
            if signal != libc::SIGCONT && signal != libc::SIGWINCH {
                self.state.forwarded = Some(signal);
            }
            self.tell_init(u8::try_from(signal).unwrap_or(0));
        }
    }

    /// The command stopped (Ctrl-Z, or by itself). A shell waits for us, so it must see us stop too; without a
    /// terminal nobody would start us again, and the timeout must go on.
    ///
    /// With a timeout only a key of the terminal stops us: a command that stops itself must not stop the clock.
    fn stop_with_command(&mut self) {
        let by_key = std::mem::take(&mut self.state.stopped_from_terminal);
        if self.timeout.is_some() && !by_key {
            return;
        }
        let has_terminal = !self.plan.new_session && tcgetpgrp(sys::borrow_number(libc::STDIN_FILENO)).is_ok();
        // A process can always stop itself; one that could not would go on waiting, which is as safe.
        if has_terminal && kill(Pid::this(), Signal::SIGSTOP).is_err() {}
        // SIGCONT that started us again is in the signal descriptor, and passed on from there.
    }

    fn next_deadline(&self) -> PollTimeout {
        let timeout = self.timeout.and_then(|timeout| match (self.state.asked_to_end, self.state.killed) {
            (_, true) => None,
            (false, _) => Some(timeout.after),
            (true, _) => Some(timeout.after.saturating_add(timeout.kill_after)),
        });
        let long = (!self.state.is_long).then_some(LONG_COMMAND);
        let Some(deadline) = timeout.into_iter().chain(long).min() else { return PollTimeout::NONE };
        // A millisecond late rather than a busy loop early.
        let left = deadline.saturating_sub(self.started.elapsed()).saturating_add(Duration::from_millis(1));
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn keep_time(&mut self) {
        let elapsed = self.started.elapsed();
        if !self.state.is_long && elapsed >= LONG_COMMAND {
            self.state.is_long = true;
            sys::release_code();
        }
        let Some(timeout) = self.timeout else { return };
        if !self.state.asked_to_end && elapsed >= timeout.after {
            self.state.asked_to_end = true;
            self.tell_init(TERMINATE_ALL);
        }
        if !self.state.killed && elapsed >= timeout.after.saturating_add(timeout.kill_after) {
            self.state.killed = true;
            self.kill_all();
        }
    }

    fn wait_for_init(&self) -> Result<sys::Waited, SandboxError> {
        match sys::wait4(Some(self.init), 0) {
            Ok(Some(waited)) => Ok(waited),
            Ok(None) => Err(Failure::supervise("wait for init", Errno::ECHILD).into()),
            Err(errno) => Err(Failure::supervise("wait for init", errno).into()),
        }
    }

    fn outcome(&self, ending: Ending, waited: &sys::Waited) -> Outcome {
        let out_of_memory = self.counted.and_then(|counted| counted.oom_kills).is_some_and(|kills| kills > 0);
        let ended_by = match ending {
            _ if self.state.killed => EndedBy::KillAfter,
            _ if self.state.asked_to_end => EndedBy::Timeout,
            // Who kills by hand at the same time can't be told from it.
            Ending::SandboxKilled { signal: libc::SIGKILL } | Ending::Signalled { signal: libc::SIGKILL }
                if out_of_memory =>
            {
                EndedBy::Memory
            }
            Ending::SandboxKilled { .. } => EndedBy::Outside,
            Ending::Signalled { signal } if self.state.forwarded == Some(signal) => EndedBy::ForwardedSignal,
            Ending::Signalled { .. } | Ending::Exited { .. } => EndedBy::Command,
        };
        let interrupted =
            matches!(ending, Ending::Signalled { signal: libc::SIGINT }) && self.state.interrupted_from_terminal;
        Outcome {
            ending,
            ended_by,
            forwarded_signal: self.state.forwarded,
            resources: Resources {
                elapsed_seconds: self.started.elapsed().as_secs_f64(),
                user_seconds: seconds(waited.usage.ru_utime),
                system_seconds: seconds(waited.usage.ru_stime),
                max_resident_kib: u64::try_from(waited.usage.ru_maxrss).unwrap_or(0),
                cgroup: self.counted,
            },
            denials: self.denied.all(ending, self.counted, self.plan),
            interrupted_from_terminal: interrupted,
            left_behind: self.left_behind,
            cgroup_left_behind: self.cgroup_left_behind,
        }
    }
}

/// SI_KERNEL: a key, or a hang-up (sigaction(2)).
fn is_from_kernel(info: &siginfo) -> bool {
    info.ssi_code == libc::SI_KERNEL
}

fn seconds(time: libc::timeval) -> f64 {
    let part = |value: i64| Duration::from_micros(u64::try_from(value).unwrap_or(0)).as_secs_f64();
    part(time.tv_sec) * 1e6 + part(time.tv_usec)
}
