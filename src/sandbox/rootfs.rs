//! The new root: a tmpfs over `/`, the plan's steps on it, then pivot_root and the old root detached. Every target
//! is resolved under a descriptor of the new root; the host's tree is only read.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat, stat};
use nix::unistd::{chdir, chroot, fchdir, pivot_root, symlinkat};

use super::classic;
use super::failure::{At, Fault, Stage};
use super::prepare::Prepared;
use super::resolve::{Node, Place, Unresolved, find_or_make, kind, open_in_root};
use crate::plan::{Attributes, Plan, Step};
use crate::policy::SandboxPath;
use crate::sys;

/// Below /proc: files and folders that tell or do too much, and folders that may be read (security.md, rule 2).
const PROC_MASKED: &[(&str, Node)] = &[
    ("kcore", Node::File),
    ("keys", Node::File),
    ("timer_list", Node::File),
    ("timer_stats", Node::File),
    ("sched_debug", Node::File),
    ("latency_stats", Node::File),
    ("sysrq-trigger", Node::File),
    ("acpi", Node::Directory),
    ("asound", Node::Directory),
    // Writable for uid 0 without a capability.
    ("dynamic_debug", Node::Directory),
    ("scsi", Node::Directory),
];
const PROC_READ_ONLY: &[&str] = &["sys", "irq", "bus", "fs"];
/// The devices that programs expect (bubblewrap's and the OCI runtime specification's list).
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
const TMPFS_FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
/// No source, file system or option.
const NONE: Option<&str> = None;
/// Names on the base tmpfs.
const ROOT: &str = "root";
const SCRATCH: &str = "scratch";
const HOST: &str = "host";
const COVERS: &str = "covers";
const COVER_FILE: &str = "covers/file";
const COVER_DIRECTORY: &str = "covers/directory";

/// Builds the new root and makes it `/`. The caller has a mount namespace of its own.
pub(super) fn build(prepared: &Prepared<'_>) -> Result<(), Fault> {
    let plan = prepared.plan;
    // Nothing that is mounted from here on may appear on the host.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).at(Stage::Propagation)?;
    let mut root = NewRoot::create(plan).at(Stage::BaseTmpfs)?;
    for (index, step) in plan.steps.iter().enumerate() {
        root.carry_out(index, step, prepared.sources.get(index).map_or(c"", CString::as_c_str))?;
    }
    root.enter()?;
    for (index, step) in plan.steps.iter().enumerate() {
        if let Step::Executable { target } = step {
            allow_execution(target).at_index(Stage::Mount, index)?;
        }
    }
    Ok(())
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
        // Over `/` itself, so that the host needs no directory for it; `/..` is the way up to what is mounted over the
        // root (path_resolution(7): `..` crosses to the topmost mount).
        mount(Some("tmpfs"), "/", Some("tmpfs"), tmpfs_flags(plan), Some(options.as_str()))?;
        let base = open("/..", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        let device = fstat(&base)?.st_dev;
        if device == stat("/")?.st_dev {
            return Err(Errno::EXDEV);
        }
        fchdir(&base)?;
        for directory in [ROOT, SCRATCH, HOST] {
            mkdirat(AT_FDCWD, directory, Mode::from_bits_truncate(0o755))?;
        }
        // Then the other way round, the host below the tmpfs, and the host's root as this process's: sources resolve
        // as anywhere on the host, and neither `..` nor a bind of `/` meets the tmpfs.
        pivot_root(".", HOST)?;
        chroot(HOST)?;
        // Covers for hidden things: nobody may open them, and not even their owner may change that. What is bound
        // from a mount has its flags.
        mkdirat(AT_FDCWD, COVERS, Mode::from_bits_truncate(0o755))?;
        mkdirat(AT_FDCWD, COVER_DIRECTORY, Mode::empty())?;
        mknodat(AT_FDCWD, COVER_FILE, SFlag::S_IFREG, Mode::empty(), 0)?;
        bind_over_itself(COVERS)?;
        remount(COVERS, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | TMPFS_FLAGS)?;
        // pivot_root(2) wants a mount point.
        bind_over_itself(ROOT)?;
        let root = openat(AT_FDCWD, ROOT, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(Self { plan, base, root, ours: vec![device], scratch: 0 })
    }

    fn carry_out(&mut self, index: usize, step: &Step, source: &CStr) -> Result<(), Fault> {
        match step {
            Step::Bind { target, directory, attributes, .. } => {
                let node = if *directory { Node::Directory } else { Node::File };
                self.bind(index, source, target, node, *attributes)
            }
            Step::Tmpfs { target, mode, size: None } => self.shared_tmpfs(index, target, *mode),
            Step::Tmpfs { target, mode, size: Some(size) } => self.own_tmpfs(index, target, *mode, *size),
            Step::Proc { target } => {
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                self.mount_new(index, target, "proc", flags, None)
            }
            Step::MaskProc { target } => self.mask_proc(target).at_index(Stage::Mount, index),
            Step::Dev { target, console } => self.devices(index, target, console.as_deref()),
            Step::Mqueue { target } => self.mount_new(index, target, "mqueue", TMPFS_FLAGS | MsFlags::MS_NOEXEC, None),
            Step::Dir { target, mode } => self.place(index, target, Node::Directory, *mode).map(drop),
            Step::Symlink { text, target } => self.symlink(index, text, target),
            Step::Chmod { target, mode } => self.chmod(index, target, *mode),
            Step::RemountReadOnly { target } => self.remount_read_only(target).at_index(Stage::Mount, index),
            Step::Hide { target } => self.hide(target.as_path()).at_index(Stage::Mount, index),
            // The last steps of all, done from inside.
            Step::Executable { .. } => Ok(()),
        }?;
        if step.target().is_root() {
            // What was mounted over the root is the root now.
            self.root = self.look_at_root().at_index(Stage::Target, index)?;
        }
        Ok(())
    }

    fn look_at_root(&self) -> nix::Result<OwnedFd> {
        openat(&self.base, ROOT, PATH_ONLY, Mode::empty())
    }

    fn place(&self, index: usize, target: &SandboxPath, node: Node, mode: u32) -> Result<Place, Fault> {
        find_or_make(self.root.as_fd(), target, node, mode, &self.ours).map_err(|unresolved| {
            let (stage, errno) = match unresolved {
                Unresolved::Errno(errno) => (Stage::Target, errno),
                Unresolved::OnHost => (Stage::TargetOnHost, Errno::EROFS),
            };
            Fault { stage, index: u32::try_from(index).unwrap_or(u32::MAX), errno }
        })
    }

    fn bind(
        &mut self,
        index: usize,
        source: &CStr,
        target: &SandboxPath,
        node: Node,
        attributes: Attributes,
    ) -> Result<(), Fault> {
        let tree =
            if self.plan.mount_api { sys::clone_tree(source, true) } else { open(source, PATH_ONLY, Mode::empty()) }
                .at_index(Stage::Source, index)?;
        let to = self.place(index, target, node, if node == Node::Directory { 0o755 } else { 0o444 })?.fd;
        if self.plan.mount_api {
            sys::set_mount_attributes(tree.as_fd(), true, flags(attributes), 0).at_index(Stage::Attributes, index)?;
            return sys::attach_tree(tree.as_fd(), to.as_fd())
                .map_err(|errno| if errno == Errno::EINVAL { mismatch(&tree, &to) } else { errno })
                .at_index(Stage::Mount, index);
        }
        classic::bind(&classic::proc_path(&tree), &to).at_index(Stage::Mount, index)?;
        if target.is_root() {
            self.root = self.look_at_root().at_index(Stage::Target, index)?;
        }
        let layout = classic::Layout { base: &self.base, root: &self.root, root_name: ROOT, host_name: HOST };
        classic::set_attributes(&layout, target.as_path(), attributes).at_index(Stage::Attributes, index)
    }

    /// A part of the base tmpfs at `target`: cheaper than a tmpfs of its own, and all share one size.
    fn shared_tmpfs(&mut self, index: usize, target: &SandboxPath, mode: u32) -> Result<(), Fault> {
        let place = self.place(index, target, Node::Directory, mode)?;
        let at = classic::proc_path(&place.fd);
        let mounted = if place.made {
            // Stays writable when the root around it is sealed.
            bind_over_itself(&at)
        } else {
            self.scratch += 1;
            let scratch = format!("{SCRATCH}/{}", self.scratch);
            mkdirat(&self.base, scratch.as_str(), Mode::from_bits_truncate(mode))
                .and_then(|()| mount(Some(scratch.as_str()), &at, NONE, MsFlags::MS_BIND, NONE))
        };
        mounted.at_index(Stage::Mount, index)
    }

    fn own_tmpfs(&mut self, index: usize, target: &SandboxPath, mode: u32, size: u64) -> Result<(), Fault> {
        let options = format!("mode={mode:o},size={size}");
        self.mount_new(index, target, "tmpfs", tmpfs_flags(self.plan), Some(&options))?;
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
        let to = self.place(index, target, Node::Directory, 0o755)?.fd;
        mount(Some(fs), &classic::proc_path(&to), Some(fs), flags, options).at_index(Stage::Mount, index)
    }

    /// A minimal /dev, read-only but for its shm and the device nodes.
    fn devices(&mut self, index: usize, target: &SandboxPath, console: Option<&Path>) -> Result<(), Fault> {
        self.shared_tmpfs(index, target, 0o755)?;
        let dev = open_in_root(&self.root, target.as_path()).at_index(Stage::Target, index)?;
        self.in_directory(&dev, || fill_devices(tmpfs_flags(self.plan), console)).at_index(Stage::Mount, index)
    }

    /// Works in a directory that was just made or mounted, where no name can be a link of somebody else's.
    fn in_directory(&self, directory: &OwnedFd, work: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
        fchdir(directory)?;
        work()?;
        fchdir(&self.base)
    }

    fn mask_proc(&self, target: &SandboxPath) -> nix::Result<()> {
        let proc = open_in_root(&self.root, target.as_path())?;
        let base = classic::proc_path(&self.base);
        self.in_directory(&proc, || {
            for (name, node) in PROC_MASKED {
                if_there(cover(&base, Path::new(name), *node))?;
            }
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            for name in PROC_READ_ONLY {
                if_there(bind_over_itself(*name).and_then(|()| remount(*name, flags)))?;
            }
            Ok(())
        })
    }

    /// Covers what is at `path`; nothing if there is nothing.
    fn hide(&self, path: &Path) -> nix::Result<()> {
        match open_in_root(&self.root, path) {
            Ok(at) => {
                let node = if kind(&fstat(&at)?) == SFlag::S_IFDIR { Node::Directory } else { Node::File };
                cover(Path::new(""), &classic::proc_path(&at), node)
            }
            // EACCES: out of our reach now means out of the command's reach, which has the same ids and less power.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn symlink(&self, index: usize, text: &Path, target: &SandboxPath) -> Result<(), Fault> {
        let (Some(parent), Some(name)) = (target.parent(), target.as_path().file_name()) else {
            return Err(Errno::EEXIST).at_index(Stage::Make, index);
        };
        let found;
        let parent = if parent.is_root() {
            self.root.as_fd()
        } else {
            found = self.place(index, &parent, Node::Directory, 0o755)?.fd;
            found.as_fd()
        };
        self.refuse_host(parent)
            .or_else(|errno| link_is_there(parent, name, text, errno))
            .at_index(Stage::TargetOnHost, index)?;
        match symlinkat(text, parent, name) {
            Err(Errno::EEXIST | Errno::EROFS) => link_is_there(parent, name, text, Errno::EEXIST),
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

    /// Makes the new root `/` and lets go of the old one.
    fn enter(self) -> Result<(), Fault> {
        if self.plan.seal_root {
            remount(ROOT, tmpfs_flags(self.plan) | MsFlags::MS_RDONLY).at(Stage::Seal)?;
        }
        // The new root must lie below this process's (pivot_root(2)).
        fchdir(&self.base).at(Stage::Pivot)?;
        chroot(".").at(Stage::Pivot)?;
        // pivot_root(".", "."): the tmpfs, and with it the host, lands on top of the new root, where umount2 finds it.
        fchdir(&self.root).at(Stage::Pivot)?;
        pivot_root(".", ".").at(Stage::Pivot)?;
        umount2(".", MntFlags::MNT_DETACH).at(Stage::Detach)?;
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

/// Fills the working directory, an empty tmpfs, and seals it.
fn fill_devices(tmpfs: MsFlags, console: Option<&Path>) -> nix::Result<()> {
    let bind_device = |source: &Path, name: &str| {
        mknodat(AT_FDCWD, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o444), 0)?;
        mount(Some(source), name, NONE, MsFlags::MS_BIND, NONE)
    };
    for name in DEVICES {
        bind_device(&Path::new("/dev").join(name), name)?;
    }
    if let Some(console) = console {
        bind_device(console, "console")?;
    }
    mkdirat(AT_FDCWD, "pts", Mode::from_bits_truncate(0o755))?;
    let pts_flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), "pts", Some("devpts"), pts_flags, Some("newinstance,ptmxmode=0666,mode=620"))?;
    for (text, name) in DEVICE_LINKS {
        symlinkat(*text, AT_FDCWD, *name)?;
    }
    mkdirat(AT_FDCWD, "shm", Mode::from_bits_truncate(0o1777))?;
    bind_over_itself("shm")?;
    remount(".", tmpfs | MsFlags::MS_RDONLY)
}

/// Binds an allowed file or folder over itself, without the noexec that everything else has, and read-only, so that
/// it can't become another program. Inside the new root, where no path leads out.
fn allow_execution(target: &SandboxPath) -> nix::Result<()> {
    match bind_over_itself(target.as_path()) {
        Ok(()) => remount(target.as_path(), TMPFS_FLAGS | MsFlags::MS_RDONLY),
        // Vanished since the plan was made: then it can't be executed either.
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn bind_over_itself(path: impl AsRef<Path>) -> nix::Result<()> {
    let path = path.as_ref();
    mount(Some(path), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
}

/// Changes the flags of one mount (not of its file system).
fn remount(path: impl AsRef<Path>, flags: MsFlags) -> nix::Result<()> {
    mount(NONE, path.as_ref(), NONE, flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND, NONE)
}

/// Mounts the cover for a `node`; `base` is where the covers lie. The kind is known beforehand because a bind of the
/// wrong kind fails only after the mount was made, and undoing it waits for an RCU grace period: up to a millisecond.
fn cover(base: &Path, path: &Path, node: Node) -> nix::Result<()> {
    let cover = match node {
        Node::Directory => COVER_DIRECTORY,
        Node::File => COVER_FILE,
    };
    mount(Some(&base.join(cover)), path, NONE, MsFlags::MS_BIND, NONE)
}

fn if_there(result: nix::Result<()>) -> nix::Result<()> {
    if result == Err(Errno::ENOENT) { Ok(()) } else { result }
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

/// Of every tmpfs; under an allowlist nothing in one can be executed.
fn tmpfs_flags(plan: &Plan) -> MsFlags {
    if plan.noexec() { TMPFS_FLAGS | MsFlags::MS_NOEXEC } else { TMPFS_FLAGS }
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
