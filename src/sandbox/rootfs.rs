//! The new root: a tmpfs over `/`, the plan's steps on it, then pivot_root and the old root detached. Every target
//! is resolved under a descriptor of the new root; the host's tree is only read.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::{chdir, fchdir, pivot_root, symlinkat};

use super::classic;
use super::failure::{At, Fault, Stage};
use super::prepare::Prepared;
use super::resolve::{Node, Unresolved, find_or_make, kind, open_in_root};
use crate::plan::{Attributes, Plan, Step};
use crate::policy::SandboxPath;
use crate::sys;

/// Below /proc: files that tell or do too much, and folders that may be read (security.md, rule 2).
const PROC_MASKED: &[&str] =
    &["kcore", "keys", "timer_list", "timer_stats", "sched_debug", "latency_stats", "sysrq-trigger", "acpi", "scsi"];
const PROC_READ_ONLY: &[&str] = &["sys", "irq", "bus", "fs"];
/// The devices that programs expect (bubblewrap's and the OCI runtime specification's list).
const DEVICES: &[&CStr] = &[c"null", c"zero", c"full", c"random", c"urandom", c"tty"];
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
/// Of every tmpfs.
const TMPFS_FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Builds the new root and makes it `/`. The caller has a mount namespace of its own.
pub(super) fn build(prepared: &Prepared<'_>) -> Result<(), Fault> {
    let plan = prepared.plan;
    // Nothing that is mounted from here on may appear on the host.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .at(Stage::Propagation)?;
    let mut root = NewRoot::create(plan).at(Stage::BaseTmpfs)?;
    for (index, step) in plan.steps.iter().enumerate() {
        root.carry_out(index, step, prepared.sources.get(index).map_or(c"", CString::as_c_str))?;
    }
    root.enter(plan)
}

struct NewRoot<'a> {
    plan: &'a Plan,
    /// The tmpfs; the working directory of this process while the root is built.
    base: OwnedFd,
    /// What will be `/`.
    root: OwnedFd,
    /// Device numbers of the tmpfs that are ours, where targets may be made.
    ours: Vec<u64>,
    /// Names given out below `scratch`.
    scratch: u32,
}

impl<'a> NewRoot<'a> {
    fn create(plan: &'a Plan) -> nix::Result<Self> {
        let mut options = "mode=0755".to_owned();
        if let Some(size) = plan.tmpfs_size {
            options.push_str(&format!(",size={size}"));
        }
        // Over `/` itself, so that the host needs no directory for it. The process's root stays the one below;
        // `/..` is the way up to what is mounted over it (path_resolution(7): `..` crosses to the topmost mount).
        mount(Some("tmpfs"), "/", Some("tmpfs"), TMPFS_FLAGS, Some(options.as_str()))?;
        let base = open("/..", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        let device = fstat(&base)?.st_dev;
        if device == fstat(open("/", PATH_ONLY, Mode::empty())?)?.st_dev {
            return Err(Errno::EXDEV);
        }
        fchdir(&base)?;
        for directory in ["root", "scratch"] {
            mkdirat(&base, directory, Mode::from_bits_truncate(0o755))?;
        }
        // Covers for hidden things: nobody may open them, not even their owner.
        mkdirat(&base, "hidden-directory", Mode::empty())?;
        mknodat(&base, "hidden-file", SFlag::S_IFREG, Mode::empty(), 0)?;
        // pivot_root(2) wants a mount point that is not the process's root's own mount.
        mount(Some("root"), "root", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let root = openat(&base, "root", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(Self { plan, base, root, ours: vec![device], scratch: 0 })
    }

    fn carry_out(&mut self, index: usize, step: &Step, source: &CStr) -> Result<(), Fault> {
        match step {
            Step::Bind { target, attributes, .. } => self.bind(index, source, target, *attributes),
            Step::Tmpfs { target, mode, size: None, noexec } => self.shared_tmpfs(index, target, *mode, *noexec),
            Step::Tmpfs { target, mode, size: Some(size), noexec } => {
                self.own_tmpfs(index, target, *mode, *size, *noexec)
            }
            Step::Proc { target } => {
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                self.mount_new(index, target, "proc", flags, None)
            }
            Step::MaskProc { target } => self.mask_proc(index, target),
            Step::Dev { target, console, noexec } => self.devices(index, target, console.as_deref(), *noexec),
            Step::Mqueue { target } => {
                let flags = TMPFS_FLAGS | MsFlags::MS_NOEXEC;
                self.mount_new(index, target, "mqueue", flags, None)
            }
            Step::Dir { target, mode } => {
                self.find_or_make(index, target, Node::Directory, *mode)?;
                Ok(())
            }
            Step::Symlink { text, target } => self.symlink(index, text, target),
            Step::Chmod { target, mode } => self.chmod(index, target, *mode),
            Step::RemountReadOnly { target } => self.remount_read_only(target).at_index(Stage::Mount, index),
            Step::Hide { target } => self.hide(target.as_path()).at_index(Stage::Mount, index),
            Step::Executable { target } => self.allow_execution(target).at_index(Stage::Mount, index),
        }?;
        if step.target().is_root() {
            // What was mounted over the root is the root now.
            self.root = openat(&self.base, "root", PATH_ONLY, Mode::empty()).at_index(Stage::Target, index)?;
        }
        Ok(())
    }

    fn find_or_make(&self, index: usize, target: &SandboxPath, node: Node, mode: u32) -> Result<OwnedFd, Fault> {
        find_or_make(self.root.as_fd(), target, node, mode, &self.ours).map_err(|unresolved| {
            let (stage, errno) = match unresolved {
                Unresolved::Errno(errno) => (Stage::Target, errno),
                Unresolved::OnHost => (Stage::TargetOnHost, Errno::EROFS),
            };
            Fault { stage, index: u32::try_from(index).unwrap_or(u32::MAX), errno }
        })
    }

    fn bind(&mut self, index: usize, source: &CStr, target: &SandboxPath, attributes: Attributes) -> Result<(), Fault> {
        let tree =
            if self.plan.mount_api { sys::clone_tree(source, true) } else { open(source, PATH_ONLY, Mode::empty()) }
                .at_index(Stage::Source, index)?;
        let source_kind = kind(&fstat(&tree).at_index(Stage::Source, index)?);
        let node = if source_kind == SFlag::S_IFDIR { Node::Directory } else { Node::File };
        let to = self.find_or_make(index, target, node, if node == Node::Directory { 0o755 } else { 0o444 })?;
        let target_kind = kind(&fstat(&to).at_index(Stage::Target, index)?);
        match (node, target_kind == SFlag::S_IFDIR) {
            (Node::Directory, false) => Err(Errno::ENOTDIR),
            (Node::File, true) => Err(Errno::EISDIR),
            _ => Ok(()),
        }
        .at_index(Stage::Mount, index)?;
        if self.plan.mount_api {
            sys::set_mount_attributes(tree.as_fd(), true, flags(attributes), 0).at_index(Stage::Attributes, index)?;
            return sys::attach_tree(tree.as_fd(), to.as_fd()).at_index(Stage::Mount, index);
        }
        classic::bind(&classic::proc_path(&tree), &to).at_index(Stage::Mount, index)?;
        if target.is_root() {
            self.root = openat(&self.base, "root", PATH_ONLY, Mode::empty()).at_index(Stage::Target, index)?;
        }
        classic::set_attributes(&self.root, target.as_path(), attributes).at_index(Stage::Attributes, index)
    }

    /// A fresh directory of the base tmpfs.
    fn scratch(&mut self, mode: u32) -> nix::Result<PathBuf> {
        let path = PathBuf::from(format!("scratch/{}", self.scratch));
        self.scratch += 1;
        mkdirat(&self.base, &path, Mode::from_bits_truncate(mode))?;
        Ok(path)
    }

    /// A part of the base tmpfs at `target`: cheaper than a tmpfs of its own, and all share one size.
    fn shared_tmpfs(&mut self, index: usize, target: &SandboxPath, mode: u32, noexec: bool) -> Result<(), Fault> {
        let to = self.find_or_make(index, target, Node::Directory, 0o755)?;
        let scratch = self.scratch(mode).at_index(Stage::Mount, index)?;
        self.attach_scratch(&scratch, to.as_fd(), noexec).at_index(Stage::Mount, index)
    }

    fn attach_scratch(&self, scratch: &Path, to: BorrowedFd<'_>, noexec: bool) -> nix::Result<()> {
        if !self.plan.mount_api {
            return mount(Some(scratch), &classic::proc_path(to), None::<&str>, MsFlags::MS_BIND, None::<&str>);
        }
        let path = CString::new(scratch.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
        let tree = sys::clone_tree(&path, false)?;
        if noexec {
            sys::set_mount_attributes(tree.as_fd(), false, sys::MOUNT_ATTR_NOEXEC, 0)?;
        }
        sys::attach_tree(tree.as_fd(), to)
    }

    fn own_tmpfs(
        &mut self,
        index: usize,
        target: &SandboxPath,
        mode: u32,
        size: u64,
        noexec: bool,
    ) -> Result<(), Fault> {
        let flags = if noexec { TMPFS_FLAGS | MsFlags::MS_NOEXEC } else { TMPFS_FLAGS };
        let options = format!("mode={mode:o},size={size}");
        self.mount_new(index, target, "tmpfs", flags, Some(&options))?;
        let made =
            open_in_root(&self.root, target.as_path()).and_then(|fd| fstat(&fd)).at_index(Stage::Target, index)?;
        self.ours.push(made.st_dev);
        Ok(())
    }

    fn mount_new(
        &self,
        index: usize,
        target: &SandboxPath,
        fs: &str,
        flags: MsFlags,
        options: Option<&str>,
    ) -> Result<(), Fault> {
        let to = self.find_or_make(index, target, Node::Directory, 0o755)?;
        mount(Some(fs), &classic::proc_path(&to), Some(fs), flags, options).at_index(Stage::Mount, index)
    }

    /// A minimal /dev, read-only but for its shm and the device nodes.
    fn devices(
        &mut self,
        index: usize,
        target: &SandboxPath,
        console: Option<&Path>,
        noexec: bool,
    ) -> Result<(), Fault> {
        self.shared_tmpfs(index, target, 0o755, noexec)?;
        let dev = open_in_root(&self.root, target.as_path()).at_index(Stage::Target, index)?;
        let shm = self.scratch(0o1777).at_index(Stage::Mount, index)?;
        self.fill_devices(&dev, &shm, console, noexec).at_index(Stage::Mount, index)
    }

    fn fill_devices(&self, dev: &OwnedFd, shm: &Path, console: Option<&Path>, noexec: bool) -> nix::Result<()> {
        let none = None::<&str>;
        // Relative paths below are names that were just made here, so no link can be in them.
        fchdir(dev)?;
        let bind_device = |source: &Path, name: &CStr| {
            mknodat(AT_FDCWD, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o444), 0)?;
            mount(Some(source), name, none, MsFlags::MS_BIND, none)
        };
        for &name in DEVICES {
            bind_device(&Path::new("/dev").join(name.to_str().map_err(|_| Errno::EINVAL)?), name)?;
        }
        if let Some(console) = console {
            bind_device(console, c"console")?;
        }
        mkdirat(AT_FDCWD, "pts", Mode::from_bits_truncate(0o755))?;
        let pts_flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("devpts"), "pts", Some("devpts"), pts_flags, Some("newinstance,ptmxmode=0666,mode=620"))?;
        for (text, name) in DEVICE_LINKS {
            symlinkat(*text, AT_FDCWD, *name)?;
        }
        mkdirat(AT_FDCWD, "shm", Mode::from_bits_truncate(0o755))?;
        let at = openat(dev, "shm", PATH_ONLY, Mode::empty())?;
        fchdir(&self.base)?;
        self.attach_scratch(shm, at.as_fd(), noexec)?;
        if self.plan.mount_api {
            return sys::set_mount_attributes(dev.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0);
        }
        let flags = TMPFS_FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, &classic::proc_path(dev), none, flags, none)
    }

    fn mask_proc(&self, index: usize, target: &SandboxPath) -> Result<(), Fault> {
        for name in PROC_MASKED {
            self.hide(target.join(name).as_path()).at_index(Stage::Mount, index)?;
        }
        for name in PROC_READ_ONLY {
            let path = target.join(name);
            self.bind_read_only(path.as_path()).at_index(Stage::Mount, index)?;
        }
        Ok(())
    }

    /// Binds a directory read-only over itself; nothing if it is not there.
    fn bind_read_only(&self, path: &Path) -> nix::Result<()> {
        let Some(at) = self.open_if_there(path)? else { return Ok(()) };
        let attributes = Attributes { read_only: true, nodev: true, noexec: true };
        if self.plan.mount_api {
            let tree = sys::clone_tree_at(at.as_fd(), true)?;
            sys::set_mount_attributes(tree.as_fd(), true, flags(attributes), 0)?;
            return sys::attach_tree(tree.as_fd(), at.as_fd());
        }
        classic::bind(&classic::proc_path(&at), &at)?;
        classic::set_attributes(&self.root, path, attributes)
    }

    fn open_if_there(&self, path: &Path) -> nix::Result<Option<OwnedFd>> {
        match open_in_root(&self.root, path) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Covers what is at `path`; nothing if there is nothing.
    fn hide(&self, path: &Path) -> nix::Result<()> {
        let Some(at) = self.open_if_there(path)? else { return Ok(()) };
        let is_directory = kind(&fstat(&at)?) == SFlag::S_IFDIR;
        let cover = if is_directory { c"hidden-directory" } else { c"hidden-file" };
        let attributes = Attributes { read_only: true, nodev: true, noexec: true };
        if self.plan.mount_api {
            let tree = sys::clone_tree(cover, false)?;
            sys::set_mount_attributes(tree.as_fd(), false, flags(attributes), 0)?;
            return sys::attach_tree(tree.as_fd(), at.as_fd());
        }
        mount(Some(cover), &classic::proc_path(&at), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        classic::make_read_only(&self.root, path)
    }

    fn symlink(&self, index: usize, text: &Path, target: &SandboxPath) -> Result<(), Fault> {
        let (Some(parent), Some(name)) = (target.parent(), target.as_path().file_name()) else {
            return Err(Errno::EEXIST).at_index(Stage::Make, index);
        };
        let found;
        let parent = if parent.is_root() {
            self.root.as_fd()
        } else {
            found = self.find_or_make(index, &parent, Node::Directory, 0o755)?;
            found.as_fd()
        };
        self.refuse_host(parent)
            .or_else(|errno| link_is_there(parent, name, text, errno))
            .at_index(Stage::TargetOnHost, index)?;
        match symlinkat(text, parent, name) {
            Err(Errno::EEXIST) => link_is_there(parent, name, text, Errno::EEXIST),
            result => result,
        }
        .at_index(Stage::Make, index)
    }

    fn chmod(&self, index: usize, target: &SandboxPath, mode: u32) -> Result<(), Fault> {
        let fd = open_in_root(&self.root, target.as_path()).at_index(Stage::Target, index)?;
        self.refuse_host(&fd).at_index(Stage::TargetOnHost, index)?;
        let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
        nix::sys::stat::fchmodat(AT_FDCWD, &classic::proc_path(&fd), Mode::from_bits_truncate(mode), follow)
            .at_index(Stage::Make, index)
    }

    /// EROFS for what is not on a tmpfs of ours: the host is not changed while the root is built.
    fn refuse_host(&self, fd: impl AsFd) -> nix::Result<()> {
        if self.ours.contains(&fstat(fd)?.st_dev) { Ok(()) } else { Err(Errno::EROFS) }
    }

    fn remount_read_only(&self, target: &SandboxPath) -> nix::Result<()> {
        if !self.plan.mount_api {
            return classic::make_read_only(&self.root, target.as_path());
        }
        let fd = open_in_root(&self.root, target.as_path())?;
        sys::set_mount_attributes(fd.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0)
    }

    /// Binds an allowed file or folder over itself, without the noexec that everything else has.
    fn allow_execution(&self, target: &SandboxPath) -> nix::Result<()> {
        // Vanished since the plan was made: then it can't be executed either.
        let Some(at) = self.open_if_there(target.as_path())? else { return Ok(()) };
        if !self.plan.mount_api {
            classic::bind(&classic::proc_path(&at), &at)?;
            return classic::allow_execution(&self.root, target.as_path());
        }
        let tree = sys::clone_tree_at(at.as_fd(), true)?;
        sys::set_mount_attributes(tree.as_fd(), true, 0, sys::MOUNT_ATTR_NOEXEC)?;
        sys::attach_tree(tree.as_fd(), at.as_fd())
    }

    /// Makes the new root `/` and lets go of the old one.
    fn enter(self, plan: &Plan) -> Result<(), Fault> {
        if plan.seal_root {
            if plan.mount_api {
                sys::set_mount_attributes(self.root.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0).at(Stage::Seal)?;
            } else {
                classic::make_read_only(&self.root, Path::new("/")).at(Stage::Seal)?;
            }
        }
        // pivot_root(".", "."): the old root lands on top of the new one, where umount2 finds it (pivot_root(2)).
        fchdir(&self.root).at(Stage::Pivot)?;
        pivot_root(".", ".").at(Stage::Pivot)?;
        // Twice: the tmpfs that all this was built on is mounted over the old root, and goes first.
        umount2(".", MntFlags::MNT_DETACH).at_index(Stage::Detach, 0)?;
        umount2(".", MntFlags::MNT_DETACH).at_index(Stage::Detach, 1)?;
        chdir("/").at(Stage::Detach)?;
        self.verify_alone()
    }

    /// Nothing may be mounted over the new root: `/..` would be the way to it.
    fn verify_alone(&self) -> Result<(), Fault> {
        let mount_of = |fd: &OwnedFd| sys::mount_id(fd.as_fd());
        let above = open("/..", PATH_ONLY, Mode::empty()).at(Stage::Detach)?;
        if mount_of(&above).at(Stage::Detach)? == mount_of(&self.root).at(Stage::Detach)? {
            Ok(())
        } else {
            Err(Errno::EBUSY).at(Stage::Detach)
        }
    }
}

/// An existing link of the same text is as good as a new one; anything else is the error that it was.
fn link_is_there(parent: BorrowedFd<'_>, name: &OsStr, text: &Path, otherwise: Errno) -> nix::Result<()> {
    match readlinkat(parent, name) {
        Ok(existing) if Path::new(&existing) == text => Ok(()),
        _ => Err(otherwise),
    }
}

fn flags(attributes: Attributes) -> u64 {
    let flag = |set, flag| if set { flag } else { 0 };
    sys::MOUNT_ATTR_NOSUID
        | flag(attributes.read_only, sys::MOUNT_ATTR_RDONLY)
        | flag(attributes.nodev, sys::MOUNT_ATTR_NODEV)
        | flag(attributes.noexec, sys::MOUNT_ATTR_NOEXEC)
}
