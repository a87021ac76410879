//! What lies mounted below a bind's source comes along. Where that is a door to the kernel, it is shut: a procfs, which shows
//! and controls the host's processes, is covered, and what controls the kernel is read-only. Only what the policy binds by
//! its own name is as the policy says.
//!
//! The mount table is read when the new root is all that there is: so it is as long as the sandbox has mounts, however many
//! the host has. It is not read at all where nothing can have come along.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{chdir, fchdir, read};

use super::failure::{At, Fault, Stage};
use super::resolve::{kind, open_in_root};
use super::rootfs::{PATH_ONLY, TMPFS_FLAGS, remount};
use crate::host::mountinfo::{Entry, entries};
use crate::plan::{Plan, Step};

/// The kernel gives a page at a time.
const BLOCK: usize = 4096;

/// What is to be done about a mount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cure {
    Cover,
    ReadOnly,
}

/// What is needed to look at the mounts from inside.
pub(super) struct Submounts<'a> {
    plan: &'a Plan,
    /// /proc/self of the host, held: inside, the host's /proc can't be reached, and there may be no other.
    own: OwnedFd,
    /// Device numbers of the procfs that steps made.
    procs: Vec<u64>,
}

impl<'a> Submounts<'a> {
    /// While the host's /proc is there.
    pub(super) fn prepare(plan: &'a Plan, procs: Vec<u64>) -> Result<Self, Fault> {
        let own = open("/proc/self", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty()).at(Stage::Submounts)?;
        Ok(Self { plan, own, procs })
    }

    /// From inside, where no path leads out.
    pub(super) fn guard(&self) -> Result<(), Fault> {
        let table = self.mount_table().at(Stage::Submounts)?;
        for entry in entries(&table) {
            let Some(cure) = self.cure(&entry) else { continue };
            // A bind brings it along: the last that leads there.
            let is_bind = |step: &Step| matches!(step, Step::Bind { target, .. } if entry.point.starts_with(target));
            let index = self.plan.steps.iter().rposition(is_bind).unwrap_or_default();
            self.apply(&entry, cure).at_index(Stage::Submounts, index)?;
        }
        chdir("/").at(Stage::Submounts)
    }

    fn mount_table(&self) -> nix::Result<Vec<u8>> {
        let file = openat(&self.own, "mountinfo", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let (mut table, mut block) = (Vec::new(), [0; BLOCK]);
        loop {
            match read(&file, &mut block)? {
                0 => return Ok(table),
                length => table.extend_from_slice(block.get(..length).unwrap_or_default()),
            }
        }
    }

    fn cure(&self, entry: &Entry<'_>) -> Option<Cure> {
        if entry.kind == b"proc" {
            return (!self.procs.contains(&entry.device)).then_some(Cure::Cover);
        }
        let is_open = entry.controls_the_kernel() && !entry.flags.contains(MsFlags::MS_RDONLY);
        is_open.then_some(Cure::ReadOnly)
    }

    /// Where the binds of the policy are by now, whatever links their targets go through.
    fn named(&self) -> nix::Result<Vec<Named>> {
        let root = open("/", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        let mut named = Vec::new();
        for step in &self.plan.steps {
            let Step::Bind { target, cover, .. } = step else { continue };
            // What a later step covers can't be found, and needs no name.
            let Ok(place) = open_in_root(&root, target.as_path()) else { continue };
            let path = readlinkat(&self.own, self.name_of(&place).as_str())?;
            named.push(Named { path: path.into(), is_proc: cover.is_some() });
        }
        Ok(named)
    }

    /// A name in /proc/self for what a descriptor stands for.
    fn name_of(&self, fd: &OwnedFd) -> String {
        format!("fd/{}", fd.as_raw_fd())
    }

    fn apply(&self, entry: &Entry<'_>, cure: Cure) -> nix::Result<()> {
        let at = match open(&entry.point, PATH_ONLY | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(at) => at,
            // Below something that covers it; EACCES: out of our reach is out of the command's.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let found = fstat(&at)?;
        // Covered itself, or asked for.
        if found.st_dev != entry.device || self.named()?.iter().any(|named| named.allows(entry, cure)) {
            return Ok(());
        }
        // mount(2) takes a path, and this one can't be anybody else's.
        fchdir(&self.own)?;
        let name = self.name_of(&at);
        match cure {
            Cure::ReadOnly => remount(name.as_str(), entry.flags | MsFlags::MS_RDONLY),
            Cure::Cover if kind(&found) == SFlag::S_IFDIR => {
                let flags = TMPFS_FLAGS | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
                mount(Some("tmpfs"), name.as_str(), Some("tmpfs"), flags, Some("mode=0,size=4k,nr_inodes=1"))
            }
            // There is no file to cover it with.
            Cure::Cover => Err(Errno::EPERM),
        }
    }
}

/// A place that the policy binds something at.
struct Named {
    path: PathBuf,
    /// The host's /proc, or a part of it, which was asked for and is covered as far as it must be.
    is_proc: bool,
}

impl Named {
    fn allows(&self, entry: &Entry<'_>, cure: Cure) -> bool {
        match cure {
            Cure::Cover => self.is_proc && entry.point.starts_with(&self.path),
            Cure::ReadOnly => entry.point == self.path,
        }
    }
}
