//! All processes of a sandbox, where no pid namespace holds them together: how they are signalled, and how none is left.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::{Hash, Hasher};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::confine::Scoped;
use crate::sys;

/// What keeps a signal to all from reaching anybody else.
#[derive(Debug)]
pub(super) enum Reach {
    /// The pid namespace that this process is the first of; it ends with this process.
    Namespace,
    /// The Landlock domain that this process is in, with the command below it.
    Domain(Scoped),
    /// Nothing: each descendant is signalled for itself. Orphans become children of this process, which is a subreaper.
    Descendants,
}

impl Reach {
    /// Sends to every process but this one.
    pub(super) fn signal_all(&self, signal: Signal) -> nix::Result<()> {
        match self {
            // In one go: the kernel holds the lock that a fork needs.
            Reach::Namespace | Reach::Domain(_) => match kill(Pid::from_raw(-1), signal) {
                // All have ended by themselves. EPERM: there are others, and none that is reached.
                Ok(()) | Err(Errno::ESRCH) => Ok(()),
                Err(Errno::EPERM) if matches!(self, Reach::Domain(_)) => Ok(()),
                Err(errno) => Err(errno),
            },
            Reach::Descendants => descend(getpid(), |_| true, |process| process.signal(signal)),
        }
    }

    /// Comes back when no process is left.
    pub(super) fn end_all(&self) -> nix::Result<()> {
        if let Reach::Namespace = self {
            // The kernel does it when this process ends.
            return Ok(());
        }
        loop {
            if let Reach::Descendants = self {
                stop_all(getpid(), |_| true)?;
            }
            self.signal_all(Signal::SIGKILL)?;
            // Those that a dead process leaves behind come to this one, and are waited for as well.
            loop {
                match sys::wait4(None, libc::WNOHANG) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(Errno::ECHILD) => return Ok(()),
                    Err(errno) => return Err(errno),
                }
            }
            std::thread::yield_now();
        }
    }
}

/// Stops them until there is none that could fork: who has the signal, even if it is not stopped yet, forks no more (fork(2)
/// begins anew after signals, and does not). Each is stopped as soon as it is seen, before its children are looked for.
fn stop_all(of: Pid, is_wanted: impl Fn(&Process) -> bool) -> nix::Result<()> {
    let mut stopped = HashSet::new();
    loop {
        let before = stopped.len();
        descend(of, &is_wanted, |process| {
            if process.is_still || !stopped.insert(process) {
                return Ok(());
            }
            process.signal(Signal::SIGSTOP)
        })?;
        if stopped.len() == before {
            return Ok(());
        }
    }
}

/// A process as its `stat` says (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: Pid,
    /// When it was started, clock ticks since boot: with the number, which process it is.
    start: u64,
    parent: Pid,
    /// Stopped, or dead and not waited for.
    is_still: bool,
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        (self.pid, self.start) == (other.pid, other.start)
    }
}

impl Eq for Process {}

impl Hash for Process {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.pid, self.start).hash(state);
    }
}

impl Process {
    fn read(pid: Pid) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses, and may have some in it.
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
        let mut words = rest.split_ascii_whitespace();
        let state = words.next()?;
        let parent = words.next()?.parse().ok()?;
        let start = words.nth(17)?.parse().ok()?;
        Some(Self { pid, start, parent: Pid::from_raw(parent), is_still: matches!(state, "T" | "Z" | "X" | "t") })
    }

    /// Signals it, unless it has ended and the number is another's by now.
    fn signal(self, signal: Signal) -> nix::Result<()> {
        let handle = match sys::pidfd_open(self.pid) {
            Ok(handle) => handle,
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        // Whatever has the number while the handle is held is what the handle is for.
        if Process::read(self.pid).is_none_or(|now| now != self) {
            return Ok(());
        }
        match sys::pidfd_signal(&handle, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

fn all_processes() -> nix::Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").map_err(|error| sys::errno_of(&error))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| Process::read(Pid::from_raw(pid))).collect())
}

/// Visits children that are wanted, and all below them, parents first.
fn descend(
    of: Pid,
    is_wanted: impl Fn(&Process) -> bool,
    mut visit: impl FnMut(Process) -> nix::Result<()>,
) -> nix::Result<()> {
    let Some(first) = children_of(of) else {
        return descendants(of, is_wanted)?.into_iter().try_for_each(visit);
    };
    let mut todo: Vec<Process> = first.into_iter().filter_map(Process::read).filter(is_wanted).collect();
    while let Some(process) = todo.pop() {
        visit(process)?;
        todo.extend(children_of(process.pid).unwrap_or_default().into_iter().filter_map(Process::read));
    }
    Ok(())
}

/// Those of all its threads (proc_pid_task(5)); `None` where the kernel has no such file, CONFIG_PROC_CHILDREN.
fn children_of(pid: Pid) -> Option<Vec<Pid>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let list = fs::read_to_string(thread.path().join("children")).ok()?;
        children.extend(list.split_ascii_whitespace().filter_map(|number| number.parse().ok()).map(Pid::from_raw));
    }
    Some(children)
}

/// The same from a look at all processes.
fn descendants(of: Pid, is_wanted: impl Fn(&Process) -> bool) -> nix::Result<Vec<Process>> {
    let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
    for process in all_processes()? {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut todo: Vec<Process> = children.remove(&of).unwrap_or_default();
    todo.retain(is_wanted);
    while let Some(process) = todo.pop() {
        todo.extend(children.remove(&process.pid).unwrap_or_default());
        found.push(process);
    }
    Ok(found)
}

/// Whether processes can be found: without /proc there is no way but a domain.
pub(super) fn check() -> nix::Result<()> {
    Process::read(getpid()).map(drop).ok_or(Errno::ENOENT)
}

/// Children of this process by now.
pub(super) fn children() -> nix::Result<Vec<Pid>> {
    let me = getpid();
    Ok(all_processes()?.into_iter().filter(|process| process.parent == me).map(|process| process.pid).collect())
}

/// After the keeper was killed: init, which ends the others when it sees that, has come to this process, a subreaper too, and so
/// will whoever it leaves. Ends them all, and leaves other children alone, and what those leave behind.
pub(super) fn end_orphans(before: &[Pid]) -> nix::Result<()> {
    let is_ours = |process: &Process| {
        // Who had no children has none of others.
        !before.contains(&process.pid) && (before.is_empty() || is_confined(process.pid))
    };
    loop {
        stop_all(getpid(), is_ours)?;
        let mut left = false;
        descend(getpid(), is_ours, |process| {
            left = true;
            process.signal(Signal::SIGKILL)
        })?;
        if !left {
            return Ok(());
        }
        for child in children()?.into_iter().filter(|pid| !before.contains(pid)) {
            sys::wait4(Some(child), libc::WNOHANG)?;
        }
        std::thread::yield_now();
    }
}

/// As the command and what it starts are, or as init is.
fn is_confined(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let has = |line: &str| status.lines().any(|other| other == line);
    has("NoNewPrivs:\t1") && (has("Seccomp:\t2") || has("Name:\tshannot"))
}
