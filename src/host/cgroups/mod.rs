//! Where this caller can make cgroups, and what they can limit (cgroups(7); the kernel's cgroup-v2 and cgroup-v1 documents).
//! Found by making one and removing it again. Nothing of others is changed: no process is moved, no controller is enabled.
//!
//! A child must not be out of what holds its maker. Version 1 lets processes and children be in one cgroup, so there the child
//! is made in the caller's own. Version 2 does not ("no internal processes"): there it is a sibling, below the nearest
//! ancestor that may be written, and what the caller's own cgroups limit of memory, processes and CPU time is carried over.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;

use super::{Cause, mountinfo, survey};
use crate::sys;

mod hierarchy;
#[cfg(test)]
mod tests;

use hierarchy::Hierarchy;

/// What a cgroup can limit here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// CPU time.
    Cpu,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
        }
    }
}

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// One hierarchy for each controller, or for a few.
    V1,
    /// The unified one.
    V2,
}

/// Limits that the caller is under, and a child elsewhere would not be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ceiling {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Thousandths of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
}

/// A cgroup in which children can be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CgroupPlace {
    /// Its hierarchy's interface.
    pub version: CgroupVersion,
    /// Its folder.
    pub folder: PathBuf,
    /// Controllers that a child has.
    pub has: Vec<Controller>,
    /// Controllers that it has once they are enabled here, and which can be.
    pub can_enable: Vec<Controller>,
    /// Swap can be limited besides memory. `None`: a child has no memory controller yet.
    pub limits_swap: Option<bool>,
    /// What a child must not be out of.
    pub ceiling: Ceiling,
    /// Buffers of sockets are memory like any other (version 2), or have a limit of their own (version 1, with CONFIG_MEMCG_KMEM).
    pub limits_sockets: bool,
}

impl CgroupPlace {
    /// Whether a child can be limited by it.
    pub fn gives(&self, controller: Controller) -> bool {
        self.has.contains(&controller) || self.can_enable.contains(&controller)
    }
}

/// What can't be limited by some hierarchy, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CgroupRefusal {
    /// Controllers.
    pub controllers: Vec<Controller>,
    /// Why.
    #[serde(flatten)]
    pub cause: Cause,
}

/// What came of trying.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cgroups {
    /// The name that the run's can have, in every place.
    #[serde(skip)]
    pub name: String,
    /// Where; of version 2 the nearest first.
    pub places: Vec<CgroupPlace>,
    /// The host swaps.
    pub swap: bool,
    /// Why not elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<CgroupRefusal>,
}

impl Cgroups {
    /// Tries on this machine, for these controllers.
    pub fn try_here(wanted: &[Controller]) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let hierarchies: Vec<Hierarchy> =
            hierarchy::of(&own, &table).into_iter().filter(Hierarchy::is_in_reach).collect();
        let is_mounted = mountinfo::entries(&table).any(|entry| matches!(entry.kind, b"cgroup" | b"cgroup2"));
        let mut cgroups = Self::of(&hierarchies, super::private_name(), wanted);
        cgroups.swap = swaps.lines().count() > 1;
        if !is_mounted {
            let cause = Cause::new("no cgroup file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup");
            cgroups.refuse(Controller::ALL.to_vec(), cause);
        }
        cgroups
    }

    /// Tries in these hierarchies.
    fn of(hierarchies: &[Hierarchy], name: String, wanted: &[Controller]) -> Self {
        let mut cgroups = Self { name, ..Self::default() };
        for hierarchy in hierarchies {
            match hierarchy.version {
                CgroupVersion::V1 => cgroups.try_v1(hierarchy, wanted),
                CgroupVersion::V2 => cgroups.try_v2(hierarchy, wanted),
            }
        }
        cgroups
    }

    /// The place that gives the most of what is wanted; the nearest of those that give the same.
    pub fn best(&self, version: CgroupVersion, wanted: &[Controller]) -> Option<&CgroupPlace> {
        let given = |place: &&CgroupPlace| wanted.iter().filter(|wanted| place.gives(**wanted)).count();
        let places = self.places.iter().rev().filter(|place| place.version == version);
        places.filter(|place| given(place) > 0).max_by_key(given)
    }

    /// Why no place gives it.
    pub fn why_not(&self, controller: Controller) -> Cause {
        let refused = self.refused.iter().find(|refusal| refusal.controllers.contains(&controller));
        refused.map(|refusal| refusal.cause.clone()).unwrap_or_else(|| Cause {
            cause: format!("no cgroup of the caller has the controller {}", controller.name()),
            cure: None,
        })
    }

    fn refuse(&mut self, controllers: Vec<Controller>, cause: Cause) {
        self.refused.push(CgroupRefusal { controllers, cause });
    }

    fn try_v1(&mut self, hierarchy: &Hierarchy, wanted: &[Controller]) {
        let has: Vec<Controller> = hierarchy.controllers.clone();
        if !has.iter().any(|controller| wanted.contains(controller)) {
            return;
        }
        let look = |child: &Path| {
            let has_no_cpus = text(child, "cpuset.cpus").is_some_and(|cpus| cpus.is_empty());
            let has = |file| child.join(file).exists();
            (has("memory.memsw.limit_in_bytes"), has("memory.kmem.tcp.limit_in_bytes"), has_no_cpus)
        };
        match self.try_child(&hierarchy.own, look) {
            // Nobody can join it (cpuset(7)).
            Ok((.., true)) => {
                let cause = format!("cgroup {} gives its children no CPUs (cpuset)", hierarchy.own.display());
                self.refuse(has, Cause { cause, cure: None });
            }
            Ok((swap, limits_sockets, false)) => self.places.push(CgroupPlace {
                limits_sockets,
                version: CgroupVersion::V1,
                folder: hierarchy.own.clone(),
                limits_swap: Some(swap),
                ceiling: Ceiling {
                    // A child may not be given more than those above it have (tg_cfs_schedulable_down); of the others that are
                    // nested the least holds anyway.
                    cpus: hierarchy.up().filter_map(quota_v1).min(),
                    ..Ceiling::default()
                },
                has,
                can_enable: Vec::new(),
            }),
            Err(errno) => {
                let cause = match errno {
                    _ if is_read_only(&hierarchy.own) => read_only(),
                    Errno::EACCES | Errno::EPERM => {
                        Cause { cause: "cgroups of version 1 belong to root".to_owned(), cure: None }
                    }
                    errno => no_child(&hierarchy.own, errno),
                };
                self.refuse(has, cause);
            }
        }
    }

    fn try_v2(&mut self, hierarchy: &Hierarchy, wanted: &[Controller]) {
        let mut ceiling = Ceiling::default();
        let mut why: Option<Cause> = None;
        // The topmost has what any below it has.
        let top = controllers(&hierarchy.top, "cgroup.controllers");
        let wanted: Vec<Controller> = wanted.iter().copied().filter(|controller| top.contains(controller)).collect();
        let mut missing = wanted.clone();
        for folder in hierarchy.up() {
            if missing.is_empty() {
                return;
            }
            match self.place_v2(folder, &wanted, ceiling) {
                Ok(place) => {
                    missing.retain(|controller| !place.gives(*controller));
                    self.places.push(place);
                }
                // The first says most: what is above belongs to fewer people.
                Err(cause) => why = why.or(Some(cause)),
            }
            ceiling = ceiling.under(&own_limits_v2(folder));
        }
        if let Some(cause) = why.filter(|_| !missing.is_empty()) {
            self.refuse(missing, cause);
        }
    }

    fn place_v2(&self, folder: &Path, wanted: &[Controller], ceiling: Ceiling) -> Result<CgroupPlace, Cause> {
        let refuse = |errno| match errno {
            _ if is_read_only(folder) => read_only(),
            Errno::EACCES | Errno::EPERM => Cause::new(
                format!("cgroup {} belongs to others", folder.display()),
                "systemd-run --user --scope -p Delegate=yes shannot …",
            ),
            errno => no_child(folder, errno),
        };
        // Who moves a process must be allowed to in the nearest ancestor of both cgroups, which is this one.
        open_to_write(&folder.join("cgroup.procs")).map_err(refuse)?;
        let kind = text(folder, "cgroup.type");
        if kind.as_deref().is_some_and(|kind| kind != "domain") {
            return Err(Cause { cause: format!("cgroup {} is threaded", folder.display()), cure: None });
        }
        let has = controllers(folder, "cgroup.subtree_control");
        let may_enable = open_to_write(&folder.join("cgroup.subtree_control")).is_ok();
        // The root of all has no type, and may have both processes and children with controllers.
        let is_empty = kind.is_none() || text(folder, "cgroup.procs").is_some_and(|processes| processes.is_empty());
        let mut can_enable = controllers(folder, "cgroup.controllers");
        can_enable.retain(|controller| may_enable && is_empty && !has.contains(controller));
        if !has.iter().chain(&can_enable).any(|controller| wanted.contains(controller)) {
            return Err(if is_empty {
                Cause { cause: format!("cgroup {} gives its children no controllers", folder.display()), cure: None }
            } else {
                Cause::new(
                    format!(
                        "cgroup {} has processes of its own, so that its children get no controllers",
                        folder.display()
                    ),
                    "move them to a child of it, and start the command in there: mkdir …/main; echo PID > …/main/cgroup.procs",
                )
            });
        }
        let swap = self.try_child(folder, |child| child.join("memory.swap.max").exists()).map_err(refuse)?;
        let limits_swap = has.contains(&Controller::Memory).then_some(swap);
        Ok(CgroupPlace {
            version: CgroupVersion::V2,
            folder: folder.to_owned(),
            has,
            can_enable,
            limits_swap,
            ceiling,
            limits_sockets: true,
        })
    }

    /// Makes a child, looks at it, and removes it.
    fn try_child<T>(&self, folder: &Path, look: impl FnOnce(&Path) -> T) -> nix::Result<T> {
        // Under a name of its own: that of the run's is removed by who has it locked, and by nobody else.
        let child = folder.join(super::private_name());
        DirBuilder::new().create(&child).map_err(|error| sys::errno_of(&error))?;
        let seen = look(&child);
        if fs::remove_dir(&child).is_err() {
            // Another run, sweeping, was faster; or the next one will.
        }
        Ok(seen)
    }
}

impl Ceiling {
    fn under(self, other: &Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        Self {
            memory: least(self.memory, other.memory),
            pids: least(self.pids, other.pids),
            cpus: least(self.cpus, other.cpus),
        }
    }
}

/// Asked of the mount: who may not write anyway gets EACCES before EROFS (fs/namei.c, may_open).
fn is_read_only(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

fn read_only() -> Cause {
    Cause::new(
        "the cgroup tree is mounted read-only, as in a container",
        "give the container a writable cgroup of its own, with its processes in a child of it",
    )
}

fn no_child(folder: &Path, errno: Errno) -> Cause {
    let error = io::Error::from(errno);
    Cause { cause: format!("no cgroup can be made in {}: {error}", folder.display()), cure: None }
}

fn open_to_write(path: &Path) -> nix::Result<File> {
    File::options().write(true).open(path).map_err(|error| sys::errno_of(&error))
}

fn text(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok().map(|text| text.trim().to_owned())
}

/// Those of a list in a file that matter here.
fn controllers(folder: &Path, file: &str) -> Vec<Controller> {
    let words = survey::words(folder.join(file), ' ');
    Controller::ALL.into_iter().filter(|controller| words.iter().any(|word| word == controller.name())).collect()
}

/// What a cgroup of version 2 limits itself; "max" is no number.
fn own_limits_v2(folder: &Path) -> Ceiling {
    let number = |file| text(folder, file)?.parse().ok();
    let cpus = || {
        let text = text(folder, "cpu.max")?;
        let (quota, period) = text.split_once(' ')?;
        thousandths(quota.parse().ok()?, period.parse().ok()?)
    };
    Ceiling { memory: number("memory.max"), pids: number("pids.max"), cpus: cpus() }
}

/// The same of version 1, where -1 is no limit.
fn quota_v1(folder: &Path) -> Option<u32> {
    let number = |file| text(folder, file)?.parse().ok();
    thousandths(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn thousandths(quota: u64, period: u64) -> Option<u32> {
    u32::try_from(quota.checked_mul(1000)?.checked_div(period)?).ok()
}
