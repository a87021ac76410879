//! All processes of a sandbox, where no pid namespace holds them together: how they are signalled, and how none is left.

use std::collections::HashMap;
use std::fs;

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
    /// The Landlock domain that this process is in, and the command below it.
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
            Reach::Descendants => {
                for process in descendants(getpid())? {
                    process.signal(signal)?;
                }
                Ok(())
            }
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
                stop_all()?;
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

/// Stops descendants until none runs that could fork.
fn stop_all() -> nix::Result<()> {
    loop {
        let running: Vec<Process> = descendants(getpid())?.into_iter().filter(|process| !process.is_still).collect();
        if running.is_empty() {
            return Ok(());
        }
        for process in running {
            process.signal(Signal::SIGSTOP)?;
        }
    }
}

/// A process as its `stat` says (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: Pid,
    parent: Pid,
    /// Stopped, or dead and not waited for.
    is_still: bool,
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
        Some(Self { pid, parent: Pid::from_raw(parent), is_still: matches!(state, "T" | "Z" | "X" | "t") })
    }

    /// Signals it, unless it has ended and the number is another's by now.
    fn signal(self, signal: Signal) -> nix::Result<()> {
        let handle = match sys::pidfd_open(self.pid) {
            Ok(handle) => handle,
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        // Whatever has the number while the handle is held is what the handle is for.
        if Process::read(self.pid).is_none_or(|now| now.parent != self.parent) {
            return Ok(());
        }
        match sys::pidfd_signal(&handle, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

fn all_processes() -> nix::Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| Process::read(Pid::from_raw(pid))).collect())
}

fn descendants(of: Pid) -> nix::Result<Vec<Process>> {
    let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
    for process in all_processes()? {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut todo = vec![of];
    while let Some(parent) = todo.pop() {
        let below = children.remove(&parent).unwrap_or_default();
        todo.extend(below.iter().map(|process| process.pid));
        found.extend(below);
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

/// After init was killed: its processes have come to this one, a subreaper too. Kills each that is confined as the command
/// was, and was no child before, until there is none.
pub(super) fn end_orphans(before: &[Pid]) -> nix::Result<()> {
    let is_ours = |pid: &Pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let has = |line: &str| status.lines().any(|other| other == line);
        !before.contains(pid) && has("NoNewPrivs:\t1") && has("Seccomp:\t2")
    };
    loop {
        let left: Vec<Pid> = children()?.into_iter().filter(is_ours).collect();
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            // A child that is not waited for: the number is its own.
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno),
            }
            sys::wait4(Some(pid), 0)?;
        }
    }
}
