//! Binds by mount(2), for kernels before 5.12 and filters that hide the newer calls. Attributes are set mount by
//! mount from /proc/self/mountinfo, which is read for each bind that has them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chroot, fchdir};

use super::resolve::open_in_root;
use crate::host::mountinfo;
use crate::plan::Attributes;
use crate::sys::proc_path;

/// Binds `source` with its submounts over `target`.
pub(super) fn bind(source: &Path, target: &Path) -> nix::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
}

/// Where the base tmpfs is, the host's root on it, and this process's directory: [`set_attributes`] must see the base from
/// its own root.
pub(super) struct Layout<'a> {
    pub(super) base: &'a OwnedFd,
    pub(super) cwd: &'a OwnedFd,
    pub(super) host_name: &'a str,
}

/// Sets attributes on the mount at `name` on the base tmpfs, and on all visible mounts below it.
/// `lenient` leaves those below as they are where they can't have them.
pub(super) fn set_attributes(
    layout: &Layout<'_>,
    name: &str,
    attributes: Attributes,
    lenient: bool,
) -> nix::Result<()> {
    let top = Path::new("/").join(name);
    let table = layout.mount_table()?;
    // Of mounts in one place the last is on top; flags are those of a mount, and a path leads to the top one.
    let below = mountinfo::entries(&table).filter(|entry| entry.point.starts_with(&top));
    let mounts: BTreeMap<PathBuf, MsFlags> = below.map(|entry| (entry.point, entry.flags)).collect();
    let mut found = false;
    for (point, flags) in mounts {
        // What is covered by a later mount can't be opened, and can't be seen inside either.
        let Ok(fd) = open_in_root(layout.base, &point) else { continue };
        let flags = wanted(attributes) | flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        let is_top = point == top;
        let set = mount(None::<&str>, &proc_path(&fd), None::<&str>, flags, None::<&str>);
        if is_top || !lenient {
            set?;
        }
        found |= is_top;
    }
    // A mount that is not in the table has kept the host's attributes.
    if found { Ok(()) } else { Err(Errno::ENOENT) }
}

impl Layout<'_> {
    /// The mount table as seen from the base tmpfs: proc(5) shows nothing beyond the root of the process that asks, which is
    /// the host's while the new root is built.
    fn mount_table(&self) -> nix::Result<Vec<u8>> {
        fchdir(self.base)?;
        chroot(".")?;
        let table = std::fs::read(Path::new("/").join(self.host_name).join("proc/self/mountinfo"));
        chroot(self.host_name)?;
        fchdir(self.cwd)?;
        table.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

/// Makes one mount read-only.
pub(super) fn make_read_only(root: &OwnedFd, target: &Path) -> nix::Result<()> {
    let fd = open_in_root(root, target)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&str>, &proc_path(&fd), None::<&str>, flags, None::<&str>)
}

fn wanted(attributes: Attributes) -> MsFlags {
    let flag = |set, flag| if set { flag } else { MsFlags::empty() };
    MsFlags::MS_NOSUID
        | flag(attributes.read_only, MsFlags::MS_RDONLY)
        | flag(attributes.nodev, MsFlags::MS_NODEV)
        | flag(attributes.noexec, MsFlags::MS_NOEXEC)
}
