//! Binds: a source is opened once, looked at, made what it is to be, and put at its target.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::open;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::classic;
use super::failure::{At, Fault, Stage};
use super::resolve::{Node, kind};
use super::rootfs::{HOST, NewRoot, PATH_ONLY};
use crate::host::Identity;
use crate::plan::{Attributes, ProcCover, Step};
use crate::policy::SandboxPath;
use crate::sys;

impl NewRoot<'_> {
    /// A source at its target.
    pub(super) fn bind(&mut self, index: usize, step: &Step, source: &CStr) -> Result<(), Fault> {
        let Step::Bind { target, directory, attributes, cover, identity, exact, .. } = step else { return Ok(()) };
        let node = if *directory { Node::Directory } else { Node::File };
        let tree = self.open_source(source).at_index(Stage::Source, index)?;
        let found = self.check_source(&tree).at_index(Stage::Source, index)?;
        if let Some(planned) = identity {
            check_planned(&tree, found, *planned).at_index(Stage::Source, index)?;
        }
        let to = if *exact { self.place_of(index, target)? } else { self.place(index, target, node, None)?.fd };
        self.attach_to(index, &tree, &to, node, *attributes, *cover)
    }

    fn open_source(&mut self, source: &CStr) -> nix::Result<OwnedFd> {
        if self.plan.mount_api && self.plan.root.guard_submounts && self.plan.namespaces.user {
            // Submounts that came with a new user namespace are locked to their places (mount_namespaces(7)), so what can be
            // had without them has none.
            match sys::clone_mount(source) {
                Err(Errno::EINVAL) => {}
                mount => return mount,
            }
        }
        self.brought = true;
        if !self.plan.mount_api {
            return open(source, PATH_ONLY, Mode::empty());
        }
        match sys::clone_tree(source) {
            // A descriptor's magic link leads to a mount outside this namespace, which has the same one by name.
            Err(Errno::EINVAL) if self.plan.bubblewrap.is_some() => {
                open(source, PATH_ONLY, Mode::empty()).and_then(|fd| self.source_of(&fd))
            }
            tree => tree,
        }
    }

    /// Which file it is. EXDEV for what is ours: the host lies below the base tmpfs.
    pub(super) fn check_source(&self, source: &OwnedFd) -> nix::Result<Identity> {
        let found = fstat(source)?;
        if self.ours.contains(&found.st_dev) {
            return Err(Errno::EXDEV);
        }
        Ok(Identity { device: found.st_dev, inode: found.st_ino })
    }

    /// Puts a source at its target: a detached tree, or, for mount(2), what a descriptor names. All that has to be done to it
    /// is done before it can be seen, and where no name can be somebody else's.
    pub(super) fn attach(
        &mut self,
        index: usize,
        tree: &OwnedFd,
        target: &SandboxPath,
        node: Node,
        attributes: Attributes,
        cover: Option<ProcCover>,
    ) -> Result<(), Fault> {
        let to = self.place(index, target, node, None)?.fd;
        self.attach_to(index, tree, &to, node, attributes, cover)
    }

    fn attach_to(
        &mut self,
        index: usize,
        tree: &OwnedFd,
        to: &OwnedFd,
        node: Node,
        attributes: Attributes,
        cover: Option<ProcCover>,
    ) -> Result<(), Fault> {
        if self.plan.mount_api && cover.is_none_or(|cover| cover == ProcCover::Nothing) {
            self.set_attributes(index, tree, attributes)?;
            return sys::attach_tree(tree.as_fd(), to.as_fd())
                .map_err(|errno| if errno == Errno::EINVAL { mismatch(tree, to) } else { errno })
                .at_index(Stage::Mount, index);
        }
        let name = self.make_scratch(node).at_index(Stage::Mount, index)?;
        if self.plan.mount_api {
            self.set_attributes(index, tree, attributes)?;
            let scratch = self.open_scratch(&name).at_index(Stage::Mount, index)?;
            sys::attach_tree(tree.as_fd(), scratch.as_fd()).at_index(Stage::Mount, index)?;
        } else {
            classic::bind(&sys::proc_path(tree), &self.on_base(&name)).at_index(Stage::Mount, index)?;
            let layout = classic::Layout { base: &self.base, cwd: &self.cwd, host_name: HOST };
            classic::set_attributes(&layout, &name, attributes, self.plan.root.lenient)
                .at_index(Stage::Attributes, index)?;
        }
        if let Some(cover) = cover {
            let proc = self.open_scratch(&name).at_index(Stage::Mount, index)?;
            self.cover_proc(&proc, cover).at_index(Stage::Mount, index)?;
        }
        self.move_to(&name, to)
            .map_err(|errno| if errno == Errno::EINVAL { mismatch(tree, to) } else { errno })
            .at_index(Stage::Mount, index)
    }

    fn set_attributes(&self, index: usize, tree: &OwnedFd, attributes: Attributes) -> Result<(), Fault> {
        match sys::set_mount_attributes(tree.as_fd(), true, flags(attributes), 0) {
            // The caller relies on no submount's attributes; the bind's own it has.
            Err(errno) if self.plan.root.lenient => {
                self.prepared.warn(Fault {
                    stage: Stage::Attributes,
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    errno,
                });
                sys::set_mount_attributes(tree.as_fd(), false, flags(attributes), 0)
            }
            result => result,
        }
        .at_index(Stage::Attributes, index)
    }
}

/// ESTALE for another file than the plan was made for: what a path leads to can be changed by whoever can write where it, or
/// a link on the way, lies. EPERM for a procfs that the plan knows nothing of, as it is not at /proc.
fn check_planned(source: &OwnedFd, found: Identity, planned: Identity) -> nix::Result<()> {
    if found != planned {
        return Err(Errno::ESTALE);
    }
    if fstatfs(source)?.filesystem_type() == PROC_SUPER_MAGIC { Err(Errno::EPERM) } else { Ok(()) }
}

/// Why a tree can't be attached, where the kernel says EINVAL for everything.
fn mismatch(tree: &OwnedFd, to: &OwnedFd) -> Errno {
    let is_directory = |fd| fstat(fd).map(|stat| kind(&stat) == SFlag::S_IFDIR);
    match (is_directory(tree), is_directory(to)) {
        (Ok(true), Ok(false)) => Errno::ENOTDIR,
        (Ok(false), Ok(true)) => Errno::EISDIR,
        _ => Errno::EINVAL,
    }
}

fn flags(attributes: Attributes) -> u64 {
    let flag = |set, flag| if set { flag } else { 0 };
    sys::MOUNT_ATTR_NOSUID
        | flag(attributes.read_only, sys::MOUNT_ATTR_RDONLY)
        | flag(attributes.nodev, sys::MOUNT_ATTR_NODEV)
        | flag(attributes.noexec, sys::MOUNT_ATTR_NOEXEC)
}
