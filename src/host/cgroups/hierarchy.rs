//! The caller's own cgroups and where they are in the file system: /proc/self/cgroup against /proc/self/mountinfo.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::{CgroupVersion, Controller};
use crate::host::mountinfo;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: CgroupVersion,
    /// Of version 1: those that it has.
    pub(super) controllers: Vec<Controller>,
    /// Where the part of it that can be seen begins.
    pub(super) top: PathBuf,
    /// The caller's own cgroup.
    pub(super) own: PathBuf,
    /// Device number of the mount.
    device: u64,
}

impl Hierarchy {
    /// From the caller's own to the top.
    pub(super) fn up(&self) -> impl Iterator<Item = &Path> {
        self.own.ancestors().take_while(|folder| folder.starts_with(&self.top))
    }

    /// Nothing is mounted over it.
    pub(super) fn is_in_reach(&self) -> bool {
        self.own.symlink_metadata().is_ok_and(|found| found.is_dir() && found.dev() == self.device)
    }

    /// One without a file system behind it that could be told by its number.
    #[cfg(test)]
    pub(super) fn played(version: CgroupVersion, controllers: Vec<Controller>, top: &Path, own: &Path) -> Self {
        Self { version, controllers, top: top.to_owned(), own: own.to_owned(), device: 0 }
    }
}

/// Those that this process has a cgroup in and that are mounted where it can be seen. A line of /proc/self/cgroup is
/// `number:controllers:path`, without controllers for version 2; the path is seen from the cgroup namespace, as the mount's root.
pub(super) fn of(own: &str, table: &[u8]) -> Vec<Hierarchy> {
    own.lines().filter_map(|line| hierarchy(line, table)).collect()
}

fn hierarchy(line: &str, table: &[u8]) -> Option<Hierarchy> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (names, path) = (fields.next()?, Path::new(fields.next()?));
    let version = if names.is_empty() { CgroupVersion::V2 } else { CgroupVersion::V1 };
    let names: Vec<&str> = names.split(',').collect();
    // Outside of the cgroup namespace.
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let is_it = |entry: &mountinfo::Entry<'_>| match version {
        CgroupVersion::V2 => entry.kind == b"cgroup2",
        CgroupVersion::V1 => {
            let options: Vec<&[u8]> = entry.super_options.split(|byte| *byte == b',').collect();
            entry.kind == b"cgroup" && names.iter().all(|name| options.contains(&name.as_bytes()))
        }
    };
    // What was mounted last lies on top. One whose root is elsewhere, or above the namespace's (`/..`), does not show it.
    let shown = |entry: mountinfo::Entry<'_>| {
        let below = path.strip_prefix(&entry.root).ok()?;
        // No slash at the end, which ancestors() would take for a folder of its own.
        let own = if below.as_os_str().is_empty() { entry.point.clone() } else { entry.point.join(below) };
        Some((entry.point, own, entry.device))
    };
    let (top, own, device) = mountinfo::entries(table).filter(is_it).filter_map(shown).last()?;
    let controllers = Controller::ALL.into_iter().filter(|controller| names.contains(&controller.name())).collect();
    Some(Hierarchy { version, controllers, top, own, device })
}
