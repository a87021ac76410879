//! The cgroups of a run: made and limited by the supervisor, joined by init before it does anything else, counted and removed
//! after the end. The supervisor stays outside. It holds a lock on each while it lives; those of this name that nobody holds
//! are left from supervisors that were killed, and go when the next one is made in the same place.
//!
//! Of version 2 the limits are on one and the processes in a child of it, which has the same controllers: the parent of both may
//! be a service manager's, who turns off what none of its own units asks for, and with a controller goes its limit. The kernel
//! refuses that as long as a child gives the controller on (kernel/cgroup/cgroup.c, cgroup_subtree_control_write).
//!
//! Whether a process may join is asked of who opened `cgroup.procs` (kernel/cgroup/cgroup.c, cgroup_procs_write), so that init
//! can do so from a user namespace.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, fstat, lstat, mkdirat};
use nix::unistd::{Pid, geteuid, write};

use super::failure::{At, Fault, Stage};
use crate::host::{CgroupVersion, Controller, is_private_name};
use crate::plan::{CgroupPlan, Namespaces, Plan};
use crate::removal::is_same;
use crate::report::Counted;
use crate::sys;

/// How often something is tried again, a few milliseconds apart, that other runs or dying processes are in the way of.
const TRIES: u32 = 400;
const PAUSE: Duration = Duration::from_millis(5);

/// The child that the processes are in.
const INNER: &str = "run";

/// One of them, made.
#[derive(Debug)]
struct Group<'a> {
    plan: &'a CgroupPlan,
    /// Locked, which says that it is in use.
    folder: OwnedFd,
    /// What init joins by, once it is limited.
    procs: Option<OwnedFd>,
}

/// All of a run.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    plan: &'a Plan,
    made: Vec<Group<'a>>,
}

impl<'a> Groups<'a> {
    /// Makes and limits them. On failure none is left.
    pub(super) fn make(plan: &'a Plan) -> Result<Self, Fault> {
        let mut groups = Self { plan, made: Vec::new() };
        let mut settings = 0;
        for (index, cgroup) in plan.cgroups.iter().enumerate() {
            if let Some(parent) = cgroup.path.parent() {
                sweep(parent);
                for controller in &cgroup.enable {
                    enable(parent, *controller).at_index(Stage::CgroupController, index)?;
                }
            }
            let group = Group::make(cgroup).at_index(Stage::Cgroup, index)?;
            // From here on it is removed with the others.
            groups.made.push(group);
            let Some(group) = groups.made.last_mut() else { continue };
            for (number, setting) in cgroup.settings.iter().enumerate() {
                match group.write(setting.file, &setting.value) {
                    Err(Errno::ENOENT) if setting.optional => {}
                    written => written.at_index(Stage::CgroupSetting, settings + number)?,
                }
            }
            settings += cgroup.settings.len();
            if cgroup.version == CgroupVersion::V2 {
                group.hold_controllers().at_index(Stage::CgroupController, index)?;
            }
            group.procs = Some(group.open_procs().at_index(Stage::Cgroup, index)?);
        }
        Ok(groups)
    }

    /// The namespaces that init is made with. One for cgroups would begin at the caller's own.
    pub(super) fn namespaces_before_joining(&self) -> Namespaces {
        let namespaces = self.plan.namespaces;
        Namespaces { cgroup: namespaces.cgroup && self.made.is_empty(), ..namespaces }
    }

    /// In init: into all of them, and the namespace begins there.
    pub(super) fn join(&self) -> Result<(), Fault> {
        for (index, group) in self.made.iter().enumerate() {
            // Who writes it is meant, whatever number it has elsewhere.
            let joined = group.procs.as_ref().map_or(Err(Errno::EBADF), |procs| write_all(procs, "0"));
            joined.at_index(Stage::CgroupJoin, index)?;
        }
        if self.plan.namespaces.cgroup && !self.made.is_empty() {
            unshare(CloneFlags::CLONE_NEWCGROUP).at(Stage::CgroupNamespace)?;
        }
        Ok(())
    }

    /// What they have counted so far.
    pub(super) fn counted(&self) -> Option<Counted> {
        (!self.made.is_empty()).then(|| {
            self.made.iter().fold(Counted::default(), |before, group| {
                let here = count(&group.plan.path, group.plan.version);
                Counted {
                    memory_peak_bytes: before.memory_peak_bytes.or(here.memory_peak_bytes),
                    oom_kills: before.oom_kills.or(here.oom_kills),
                    cpu_seconds: before.cpu_seconds.or(here.cpu_seconds),
                    pids_peak: before.pids_peak.or(here.pids_peak),
                    pids_refused: before.pids_refused.or(here.pids_refused),
                }
            })
        })
    }

    /// Ends what is left in them and removes them. `false`: one of them stays.
    pub(super) fn remove(&mut self) -> bool {
        let mut removed = true;
        for group in self.made.drain(..).rev() {
            removed &= remove(&group.plan.path, &group.folder, TRIES);
        }
        removed
    }
}

impl Drop for Groups<'_> {
    /// On every way out. In init it never runs.
    fn drop(&mut self) {
        if !self.remove() {
            // The next run tries again.
        }
    }
}

impl<'a> Group<'a> {
    /// A run that sweeps at the same time may take it for one that was left, as long as it is not locked. Then it will be gone
    /// in a moment, and is made again. Only who has it locked removes it, so that it is never another one of its name.
    fn make(plan: &'a CgroupPlan) -> nix::Result<Self> {
        let mut tries = 0;
        loop {
            // Whoever could open it could lock it.
            let made = DirBuilder::new()
                .mode(0o700)
                .create(&plan.path)
                .map_err(|error| sys::errno_of(&error))
                .and_then(|()| Self::hold(plan));
            match made {
                Err(Errno::EEXIST | Errno::ENOENT | Errno::ENODEV | Errno::EWOULDBLOCK) if tries < TRIES => {}
                Err(errno) => return Err(errno),
                Ok(group) => return Ok(group),
            }
            tries += 1;
            std::thread::sleep(PAUSE);
        }
    }

    fn hold(plan: &'a CgroupPlan) -> nix::Result<Self> {
        let held = lock(&plan.path).map(|folder| Self { plan, folder, procs: None });
        held.inspect_err(|errno| {
            // It is not made again, so that it goes without a lock.
            if !matches!(*errno, Errno::ENOENT | Errno::ENODEV | Errno::EWOULDBLOCK)
                && fs::remove_dir(&plan.path).is_err()
            {
                // The next run tries again.
            }
        })
    }

    fn write(&self, file: &str, value: &str) -> nix::Result<()> {
        write_all(&self.open(file)?, value)
    }

    fn open(&self, file: &str) -> nix::Result<OwnedFd> {
        openat(&self.folder, file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// Gives on what it has limits by, so that nobody takes it away.
    fn hold_controllers(&self) -> nix::Result<()> {
        mkdirat(&self.folder, INNER, Mode::from_bits_truncate(0o700))?;
        let has = |controller: &Controller| {
            self.plan.settings.iter().any(|setting| setting.file.starts_with(&format!("{}.", controller.name())))
        };
        for controller in Controller::ALL.into_iter().filter(has) {
            self.write("cgroup.subtree_control", &format!("+{}", controller.name()))?;
        }
        Ok(())
    }

    fn open_procs(&self) -> nix::Result<OwnedFd> {
        match self.plan.version {
            CgroupVersion::V1 => self.open("cgroup.procs"),
            CgroupVersion::V2 => self.open(&format!("{INNER}/cgroup.procs")),
        }
    }
}

fn write_all(file: &OwnedFd, value: &str) -> nix::Result<()> {
    match write(file, value.as_bytes())? {
        length if length == value.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// It stays so: other runs count on it, and may do so right now.
fn enable(parent: &Path, controller: Controller) -> nix::Result<()> {
    let file = open(&parent.join("cgroup.subtree_control"), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write_all(&file, &format!("+{}", controller.name()))
}

/// ENOENT if it was removed before it was locked, whatever has its name by now.
fn lock(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = open(path, flags, Mode::empty())?;
    sys::lock_whole(folder.as_fd())?;
    if is_same(&fstat(&folder)?, &lstat(path)?) { Ok(folder) } else { Err(Errno::ENOENT) }
}

/// Removes cgroups of this name and this user that no supervisor holds, and what runs in them. That some can't be removed keeps
/// nobody from running.
fn sweep(parent: &Path) {
    let is_left = |path: &Path| -> Option<OwnedFd> {
        let metadata = fs::symlink_metadata(path).ok()?;
        let is_ours =
            is_private_name(path.file_name()?.as_bytes()) && metadata.is_dir() && metadata.uid() == geteuid().as_raw();
        if is_ours { lock(path).ok() } else { None }
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Some(folder) = is_left(&path)
            && !remove(&path, &folder, TRIES / 4)
        {
            // The next run tries again.
        }
    }
}

/// Only an empty one can be removed; who is dying is in it for a while yet.
fn remove(path: &Path, folder: &OwnedFd, tries: u32) -> bool {
    for _ in 0..tries {
        let inner = match fs::remove_dir(path.join(INNER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        match inner.and_then(|()| fs::remove_dir(path)).map_err(|error| sys::errno_of(&error)) {
            Ok(()) | Err(Errno::ENOENT) => return true,
            Err(Errno::EBUSY) => {}
            Err(_) => return false,
        }
        if end_all(folder).is_err() {
            // There is no way to: but it may end by itself.
        }
        std::thread::sleep(PAUSE);
    }
    false
}

/// Kills what is in it: at once where the kernel can (Linux 5.14), else those that are found; the caller comes back until there
/// are none. One that forks on meanwhile is held up by what limits it.
fn end_all(folder: &OwnedFd) -> nix::Result<()> {
    match openat(folder, "cgroup.kill", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(file) => return write_all(&file, "1"),
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    let members = || -> nix::Result<String> {
        let mut members = String::new();
        for file in ["cgroup.procs".to_owned(), format!("{INNER}/cgroup.procs")] {
            match openat(folder, file.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
                Err(Errno::ENOENT) => {}
                opened => {
                    let text = io::read_to_string(File::from(opened?)).map_err(|error| sys::errno_of(&error))?;
                    members.push_str(&text);
                }
            }
        }
        Ok(members)
    };
    for line in members()?.lines() {
        // 0 is one that has no number here.
        let Some(pid) = line.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw) else { continue };
        let process = match sys::pidfd_open(pid) {
            Err(Errno::ESRCH) => continue,
            opened => opened?,
        };
        // While the handle is held, whatever has the number is what the handle is for.
        if members()?.lines().any(|now| now == line) {
            match sys::pidfd_signal(&process, Signal::SIGKILL) {
                Err(Errno::ESRCH) => {}
                sent => sent?,
            }
        }
    }
    Ok(())
}

fn count(path: &Path, version: CgroupVersion) -> Counted {
    let text = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    let number = |file: &str| text(file).trim().parse::<u64>().ok();
    // Before Linux 6.11 it is counted where the process is, since then where the limit is.
    let refused = [path.to_owned(), path.join(INNER)].map(|folder| {
        let text = fs::read_to_string(folder.join("pids.events")).unwrap_or_default();
        keyed(&text, "max")
    });
    let pids = (number("pids.peak"), refused.into_iter().flatten().max());
    let (memory_peak_bytes, oom_kills, nanoseconds) = match version {
        CgroupVersion::V2 => (
            number("memory.peak"),
            keyed(&text("memory.events"), "oom_kill"),
            keyed(&text("cpu.stat"), "usage_usec").and_then(|micros| micros.checked_mul(1000)),
        ),
        CgroupVersion::V1 => (
            number("memory.max_usage_in_bytes"),
            keyed(&text("memory.oom_control"), "oom_kill"),
            // Of another controller, which mostly is mounted together with that of CPU time.
            number("cpuacct.usage"),
        ),
    };
    let cpu_seconds = nanoseconds.map(|nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64());
    Counted { memory_peak_bytes, oom_kills, cpu_seconds, pids_peak: pids.0, pids_refused: pids.1 }
}

/// The number in the line `key number`.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_key() {
        let events = "low 0\nhigh 0\nmax 63\noom 4\noom_kill 1\noom_group_kill 0\n";
        assert_eq!((keyed(events, "oom_kill"), keyed(events, "oom")), (Some(1), Some(4)));
        assert_eq!(keyed(events, "oom_"), None);
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        assert_eq!(keyed(v1, "oom_kill"), Some(2));
        assert_eq!(keyed("", "max"), None);
    }
}
