//! The new root: a tmpfs over `/`, the plan's steps on it, then pivot_root and the old root detached. Every target
//! is resolved under a descriptor of the new root; the host's tree is only read.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat, stat};
use nix::unistd::{chdir, chroot, fchdir, pivot_root, symlinkat};

use super::classic;
use super::failure::{At, Fault, Stage};
use super::prepare::Prepared;
use super::resolve::{Lookup, Making, Node, Place, Unresolved, find_or_make, kind, look_up, look_up_exactly};
use super::special::cover;
use super::submounts::Submounts;
use crate::plan::{Plan, ProcCover, Step};
use crate::policy::SandboxPath;
use crate::sys;

pub(super) const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
pub(super) const TMPFS_FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
/// No source, file system or option.
pub(super) const NONE: Option<&str> = None;
/// Names on the base tmpfs.
const ROOT: &str = "root";
pub(super) const SCRATCH: &str = "scratch";
pub(super) const HOST: &str = "host";
const COVERS: &str = "covers";
pub(super) const COVER_FILE: &str = "covers/file";
pub(super) const COVER_DIRECTORY: &str = "covers/directory";
/// Permission bits of a mount point that is made, and of the folders on the way to it.
pub(super) const DIRECTORY_MODE: u32 = 0o755;
pub(super) const FILE_MODE: u32 = 0o444;

/// Builds the new root and makes it `/`. The caller has a mount namespace of its own.
pub(super) fn build(prepared: &Prepared<'_>) -> Result<(), Fault> {
    let plan = prepared.plan;
    // Nothing that is mounted from here on may appear on the host.
    let propagation = if plan.root.receive_mounts { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
    mount(NONE, "/", NONE, MsFlags::MS_REC | propagation, NONE).at(Stage::Propagation)?;
    let mut root = NewRoot::create(prepared)?;
    for (index, step) in plan.steps.iter().enumerate() {
        root.carry_out(index, step, prepared.sources.get(index).map_or(c"", CString::as_c_str))?;
    }
    let submounts = root.submounts()?;
    root.enter()?;
    if let Some(submounts) = submounts {
        submounts.guard()?;
    }
    Ok(())
}

pub(super) struct NewRoot<'a> {
    pub(super) prepared: &'a Prepared<'a>,
    pub(super) plan: &'a Plan,
    /// The tmpfs. Sources must not lead into it: the host lies below.
    pub(super) base: OwnedFd,
    /// The caller's directory, which is this process's while sources are looked up (/proc/self/cwd).
    pub(super) cwd: OwnedFd,
    /// What will be `/`.
    pub(super) root: OwnedFd,
    /// Device numbers of the tmpfs that are ours, where targets may be made.
    pub(super) ours: Vec<u64>,
    /// Device numbers of the procfs that are ours.
    pub(super) procs: Vec<u64>,
    /// A source may have brought submounts along.
    pub(super) brought: bool,
    /// Names given out below `scratch`.
    pub(super) scratch: u32,
    /// What was read from descriptors that are read again.
    pub(super) read: Vec<(RawFd, Vec<u8>)>,
}

impl<'a> NewRoot<'a> {
    fn create(prepared: &'a Prepared<'a>) -> Result<Self, Fault> {
        let plan = prepared.plan;
        let path_only = |path| open(path, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty());
        let cwd = path_only(".").or_else(|_| path_only("/")).at(Stage::BaseTmpfs)?;
        let (base, device) = mount_base(plan).at(Stage::BaseTmpfs)?;
        // Then the other way round, the host below the tmpfs, and the host's root as this process's: sources resolve
        // as anywhere on the host, and neither `..` nor a bind of `/` meets the tmpfs.
        let below = match pivot_root(".", HOST) {
            // The initial ramfs is moved nowhere (pivot_root(2)); then a copy of its tree is the host.
            Err(Errno::EINVAL) => copy_host(),
            moved => moved,
        };
        below.and_then(|()| chroot(HOST)).at(Stage::Pivot)?;
        let prepare = || {
            if plan.steps.iter().any(is_covering) {
                make_covers()?;
            }
            // pivot_root(2) wants a mount point.
            bind_over_itself(ROOT)?;
            let root = openat(AT_FDCWD, ROOT, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
            fchdir(&cwd)?;
            Ok(root)
        };
        let root = prepare().at(Stage::BaseTmpfs)?;
        Ok(Self {
            prepared,
            plan,
            base,
            cwd,
            root,
            ours: vec![device],
            procs: Vec::new(),
            brought: false,
            scratch: 0,
            read: Vec::new(),
        })
    }

    fn carry_out(&mut self, index: usize, step: &Step, source: &CStr) -> Result<(), Fault> {
        match step {
            Step::Bind { .. } => self.bind(index, step, source),
            Step::BindDescriptor { fd, target, attributes } => self.bind_descriptor(index, *fd, target, *attributes),
            Step::Data { .. } => self.data(index, step),
            Step::Overlay { .. } => self.overlay(index, step),
            Step::Tmpfs { target, mode, size } => self.tmpfs(index, target, Some(*mode), *size),
            Step::Proc { target, cover } => self.proc(index, target, *cover),
            Step::Dev { target, open, console } => self.devices(index, target, *open, console.as_deref()),
            Step::Mqueue { target } => self.mount_new(index, target, "mqueue", TMPFS_FLAGS | MsFlags::MS_NOEXEC),
            Step::Dir { target, mode } => {
                let making = Making { host_mode: *mode, ..self.making(Some(*mode), Node::Directory) };
                self.find(index, target, Node::Directory, making).map(drop)
            }
            Step::Symlink { text, target } => self.symlink(index, text, target),
            Step::Chmod { target, mode } => self.chmod(index, target, *mode),
            Step::RemountReadOnly { target } => self.remount_read_only(target).at_index(Stage::Mount, index),
            Step::Hide { target } => self.hide(target.as_path()).at_index(Stage::Mount, index),
            Step::Executable { target } => self.allow_execution(target).at_index(Stage::Mount, index),
        }?;
        if step.target().may_be_root() {
            // What was mounted over the root is the root now.
            self.root = self.look_at_root().at_index(Stage::Target, index)?;
        }
        Ok(())
    }

    /// What has to be looked after inside, if anything may have come along with the sources.
    fn submounts(&mut self) -> Result<Option<Submounts<'a>>, Fault> {
        let wanted = self.brought && self.plan.root.guard_submounts;
        wanted.then(|| Submounts::prepare(self.plan, std::mem::take(&mut self.procs))).transpose()
    }

    fn look_at_root(&self) -> nix::Result<OwnedFd> {
        openat(&self.base, ROOT, PATH_ONLY, Mode::empty())
    }

    /// How targets are looked up.
    pub(super) fn lookup(&self) -> Lookup {
        Lookup { follow_last: self.plan.root.follow_last, by_hand: self.plan.root.walk_by_hand }
    }

    /// What is there by now, wherever its links lead inside.
    pub(super) fn open_inside(&self, path: &Path) -> nix::Result<OwnedFd> {
        look_up(&self.root, path, Lookup { follow_last: true, ..self.lookup() })
    }

    /// Finds or makes a target; the mode is for what is made.
    pub(super) fn place(
        &self,
        index: usize,
        target: &SandboxPath,
        node: Node,
        mode: Option<u32>,
    ) -> Result<Place, Fault> {
        self.find(index, target, node, self.making(mode, node))
    }

    /// A target that must be there, with no link on the way.
    pub(super) fn place_of(&self, index: usize, target: &SandboxPath) -> Result<OwnedFd, Fault> {
        look_up_exactly(&self.root, target.as_path()).at_index(Stage::Target, index)
    }

    /// What is made where a target is missing; the mode is the target's, if it is chosen.
    fn making(&self, mode: Option<u32>, node: Node) -> Making<'_> {
        let usual = if node == Node::Directory { DIRECTORY_MODE } else { FILE_MODE };
        // bubblewrap's folders on the way to what has no permissions of its own are their owner's alone.
        let unasked = if self.plan.bubblewrap.is_some() { parents_mode(0) } else { DIRECTORY_MODE };
        Making {
            ours: &self.ours,
            on_host: self.plan.root.make_on_host,
            lookup: self.lookup(),
            mode: mode.unwrap_or(usual),
            // The mount that comes over it has the mode; on the host it would stay.
            host_mode: usual,
            parents: mode.map_or(unasked, parents_mode),
        }
    }

    fn find(&self, index: usize, target: &SandboxPath, node: Node, making: Making<'_>) -> Result<Place, Fault> {
        find_or_make(self.root.as_fd(), target, node, making).map_err(|unresolved| {
            let (stage, errno) = match unresolved {
                Unresolved::Errno(errno) => (Stage::Target, errno),
                Unresolved::Parent(errno) => (Stage::TargetParent, errno),
                Unresolved::OnHost => (Stage::TargetOnHost, Errno::EROFS),
                Unresolved::Kind(errno) => (Stage::TargetKind, errno),
            };
            Fault { stage, index: u32::try_from(index).unwrap_or(u32::MAX), errno }
        })
    }

    /// A file system of its own.
    fn mount_new(&self, index: usize, target: &SandboxPath, fs: &str, flags: MsFlags) -> Result<(), Fault> {
        let to = self.place(index, target, Node::Directory, None)?.fd;
        mount_on(&to, fs, flags, None).at_index(Stage::Mount, index)
    }

    /// Works in a directory that is on the base tmpfs yet, where no name can be a link of somebody else's.
    pub(super) fn in_directory(&self, directory: &OwnedFd, work: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
        fchdir(directory)?;
        work()?;
        fchdir(&self.cwd)
    }

    /// Covers what is at `path`; nothing if there is nothing.
    fn hide(&self, path: &Path) -> nix::Result<()> {
        match self.open_inside(path) {
            Ok(at) => {
                let node = if kind(&fstat(&at)?) == SFlag::S_IFDIR { Node::Directory } else { Node::File };
                cover(&sys::proc_path(&self.base), &sys::proc_path(&at), node)
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
            found = self.parent_of(index, &parent, None)?;
            found.as_fd()
        };
        self.refuse_host(parent)
            .or_else(|errno| self.link_is_there(parent, name, text, errno))
            .at_index(Stage::TargetOnHost, index)?;
        match symlinkat(text, parent, name) {
            Err(errno @ (Errno::EEXIST | Errno::EROFS)) => self.link_is_there(parent, name, text, errno),
            result => result,
        }
        .at_index(Stage::Make, index)
    }

    /// Finds or makes the folder of a target, links followed.
    pub(super) fn parent_of(&self, index: usize, parent: &SandboxPath, mode: Option<u32>) -> Result<OwnedFd, Fault> {
        let making = self.making(mode, Node::File).parent();
        self.find(index, parent, Node::Directory, making).map(|place| place.fd)
    }

    /// An existing link of the same text is as good as a new one; anything else is the error that it was, and what is there
    /// instead goes with it.
    fn link_is_there(&self, parent: BorrowedFd<'_>, name: &OsStr, text: &Path, otherwise: Errno) -> nix::Result<()> {
        match readlinkat(parent, name) {
            Ok(existing) if Path::new(&existing) == text => return Ok(()),
            Ok(existing) => self.prepared.note(existing),
            Err(_) => {}
        }
        Err(otherwise)
    }

    fn chmod(&self, index: usize, target: &SandboxPath, mode: u32) -> Result<(), Fault> {
        let fd = self.open_inside(target.as_path()).at_index(Stage::Target, index)?;
        self.refuse_host(&fd).at_index(Stage::TargetOnHost, index)?;
        if fstat(&fd).at_index(Stage::Make, index)?.st_dev == stat("/proc").at_index(Stage::Make, index)?.st_dev {
            // The host's procfs, which `--proc` shows without a pid namespace: its modes are the same for all who see it.
            return Err(Errno::EPERM).at_index(Stage::Make, index);
        }
        let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
        nix::sys::stat::fchmodat(AT_FDCWD, &sys::proc_path(&fd), Mode::from_bits_truncate(mode), follow)
            .at_index(Stage::Make, index)
    }

    /// EROFS for what is not on a tmpfs of ours: the host is not changed while the root is built.
    fn refuse_host(&self, fd: impl AsFd) -> nix::Result<()> {
        if self.plan.root.make_on_host || self.ours.contains(&fstat(fd)?.st_dev) { Ok(()) } else { Err(Errno::EROFS) }
    }

    fn remount_read_only(&self, target: &SandboxPath) -> nix::Result<()> {
        if !self.plan.mount_api {
            return classic::make_read_only(&self.root, target.as_path());
        }
        let fd = look_up(&self.root, target.as_path(), self.lookup())?;
        let flags = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV;
        sys::set_mount_attributes(fd.as_fd(), false, flags, 0)
    }

    /// Makes the new root `/` and lets go of the old one.
    fn enter(self) -> Result<(), Fault> {
        fchdir(&self.base).at(Stage::Pivot)?;
        if self.plan.root.seal {
            remount(ROOT, tmpfs_flags(self.plan) | MsFlags::MS_RDONLY).at(Stage::Seal)?;
        }
        // The new root must lie below this process's (pivot_root(2)).
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
        let above = open("/..", PATH_ONLY, Mode::empty()).at(Stage::Detach)?;
        let same = match (sys::mount_id(above.as_fd()), sys::mount_id(self.root.as_fd())) {
            (Ok(above), Ok(root)) => above == root,
            // Before 4.11, or a filter that knows nothing of statx(2).
            (Err(Errno::ENOSYS | Errno::EPERM), _) => {
                let (above, root) = (fstat(&above).at(Stage::Detach)?, fstat(&self.root).at(Stage::Detach)?);
                (above.st_dev, above.st_ino) == (root.st_dev, root.st_ino)
            }
            (Err(errno), _) | (_, Err(errno)) => return Err(errno).at(Stage::Detach),
        };
        if same { Ok(()) } else { Err(Errno::EBUSY).at(Stage::Detach) }
    }
}

/// Mounts a new file system over what a descriptor names.
pub(super) fn mount_on(place: &OwnedFd, fs: &str, flags: MsFlags, options: Option<&str>) -> nix::Result<()> {
    mount(Some(fs), &sys::proc_path(place), Some(fs), flags, options)
}

pub(super) fn bind_over_itself(path: impl AsRef<Path>) -> nix::Result<()> {
    let path = path.as_ref();
    mount(Some(path), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
}

/// Changes the flags of one mount (not of its file system).
pub(super) fn remount(path: impl AsRef<Path>, flags: MsFlags) -> nix::Result<()> {
    mount(NONE, path.as_ref(), NONE, flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND, NONE)
}

/// Of every tmpfs; under an allowlist nothing in one can be executed.
pub(super) fn tmpfs_flags(plan: &Plan) -> MsFlags {
    if plan.noexec() { TMPFS_FLAGS | MsFlags::MS_NOEXEC } else { TMPFS_FLAGS }
}

/// What the new root's own folders and files need.
const FEWEST_INODES: u64 = 1024;

/// The tmpfs that all is built on, which becomes the working directory, and its device number.
fn mount_base(plan: &Plan) -> nix::Result<(OwnedFd, u64)> {
    let mut options = "mode=0755".to_owned();
    if let Some(size) = plan.tmpfs_size {
        // An empty file takes about a KiB of the kernel's memory (tmpfs(5), nr_inodes).
        options.push_str(&format!(",size={size},nr_inodes={}", (size / 1024).max(FEWEST_INODES)));
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
    Ok((base, device))
}

/// Binds the host's tree below the tmpfs, which lies over that tree's root: its own copy comes along on top, and goes.
fn copy_host() -> nix::Result<()> {
    mount(Some("/"), HOST, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    umount2(HOST, MntFlags::MNT_DETACH)
}

/// Whether a step needs the covers.
fn is_covering(step: &Step) -> bool {
    matches!(
        step,
        Step::Hide { .. }
            | Step::Proc { cover: ProcCover::Masked, .. }
            | Step::Bind { cover: Some(ProcCover::Masked), .. }
    )
}

/// Covers for hidden things, in the working directory: nobody may open them, and not even their owner may change that. What
/// is bound from a mount has its flags.
fn make_covers() -> nix::Result<()> {
    mkdirat(AT_FDCWD, COVERS, Mode::from_bits_truncate(0o755))?;
    mkdirat(AT_FDCWD, COVER_DIRECTORY, Mode::empty())?;
    mknodat(AT_FDCWD, COVER_FILE, SFlag::S_IFREG, Mode::empty(), 0)?;
    bind_over_itself(COVERS)?;
    remount(COVERS, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | TMPFS_FLAGS)
}

/// Folders on the way to something that a group, or others, can't use are not for them either.
fn parents_mode(mode: u32) -> u32 {
    let kept = |class: u32, bits: u32| if mode & class == 0 { bits } else { 0 };
    DIRECTORY_MODE & !kept(0o070, 0o050) & !kept(0o007, 0o005)
}
