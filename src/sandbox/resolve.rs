//! Paths under the new root. The kernel resolves them as if that were `/` (openat2(2), RESOLVE_IN_ROOT) and
//! refuses magic links, so no link and no `..` leads out; where openat2 is missing or blocked, the same is
//! walked by hand with O_PATH descriptors.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, mknodat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::host::open_no_link;
use crate::policy::SandboxPath;

/// As the kernel's own limit (path_resolution(7)).
const MOST_LINKS: u32 = 40;

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// What a mount needs at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File,
}

/// Why a target can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// The errno of the call that failed.
    Errno(Errno),
    /// A folder on the way can't be had.
    Parent(Errno),
    /// It would have to be made in a folder of the host.
    OnHost,
    /// Something of another kind is there: ELOOP for a link, ENOTDIR and EISDIR.
    Kind(Errno),
}

impl Unresolved {
    fn on_the_way(self) -> Self {
        match self {
            Unresolved::Errno(errno) | Unresolved::Parent(errno) | Unresolved::Kind(errno) => Unresolved::Parent(errno),
            Unresolved::OnHost => Unresolved::OnHost,
        }
    }
}

impl From<Errno> for Unresolved {
    fn from(errno: Errno) -> Self {
        Unresolved::Errno(errno)
    }
}

/// Kind of the object behind a descriptor.
pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// How paths are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lookup {
    /// A link in the last place is followed.
    pub(super) follow_last: bool,
    /// By hand from the start, as without openat2(2).
    pub(super) by_hand: bool,
}

impl Lookup {
    /// As the kernel looks up what is opened.
    const USUAL: Lookup = Lookup { follow_last: true, by_hand: false };
}

/// Opens `path` under `root` with O_PATH. The last component is followed too.
pub(super) fn open_in_root(root: impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    look_up(root, path, Lookup::USUAL)
}

/// Opens `path` under `root` with O_PATH.
pub(super) fn look_up(root: impl AsFd, path: &Path, lookup: Lookup) -> nix::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    if lookup.by_hand {
        return walk(root.as_fd(), relative, lookup.follow_last);
    }
    let flags = if lookup.follow_last { PATH_ONLY } else { PATH_ONLY | OFlag::O_NOFOLLOW };
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(root.as_fd(), relative, how) {
        // ENOSYS: before Linux 5.6, or a filter (systemd's RestrictSUIDSGID); EPERM: older container filters. EAGAIN:
        // RESOLVE_IN_ROOT gives up at `..` when anything is renamed or mounted meanwhile, on a busy host again and again.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EAGAIN) => walk(root.as_fd(), relative, lookup.follow_last),
        result => result,
    }
}

/// Opens `path` under `root` with O_PATH. ELOOP for one with a link in it.
pub(super) fn look_up_exactly(root: impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    let mut here = openat(root.as_fd(), ".", PATH_ONLY, Mode::empty())?;
    for name in components(path) {
        if name == ".." {
            return Err(Errno::ELOOP);
        }
        here = open_no_link(here, &name)?;
    }
    Ok(here)
}

/// openat2's RESOLVE_IN_ROOT by hand: one component at a time, links read and queued, `..` along our own stack.
fn walk(root: BorrowedFd<'_>, path: &Path, follow_last: bool) -> nix::Result<OwnedFd> {
    let mut stack = vec![openat(root, ".", PATH_ONLY, Mode::empty())?];
    let mut todo: VecDeque<OsString> = components(path).collect();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        let Some(here) = stack.last() else { return Err(Errno::ENOENT) };
        if name == ".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let next = openat(here, name.as_os_str(), PATH_ONLY | OFlag::O_NOFOLLOW, Mode::empty())?;
        let is_followed = follow_last || !todo.is_empty();
        if kind(&fstat(&next)?) != SFlag::S_IFLNK || !is_followed {
            stack.push(next);
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::ELOOP);
        }
        let text = readlinkat(&next, "")?;
        if fstatfs(&next)?.filesystem_type() == PROC_SUPER_MAGIC && !is_plain(&text) {
            return Err(Errno::ELOOP);
        }
        if Path::new(&text).is_absolute() {
            stack.truncate(1);
        }
        for name in components(Path::new(&text)).collect::<Vec<_>>().into_iter().rev() {
            todo.push_front(name);
        }
    }
    stack.pop().ok_or(Errno::ENOENT)
}

/// Whether a link of procfs is one by its text (`self`, `mounts`, `net`): a magic one says where it leads as a path from the
/// root, as `pipe:[1]`, or as `(unreachable)`, and can't be followed by that.
fn is_plain(text: &OsStr) -> bool {
    !Path::new(text).is_absolute() && !text.as_bytes().iter().any(|byte| matches!(byte, b':' | b'('))
}

fn components(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// A place for a mount.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) fd: OwnedFd,
    /// It was not there before: nothing is in it, and it lies on a file system of ours.
    pub(super) made: bool,
}

/// What is made where a target is missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Making<'a> {
    /// Device numbers of the file systems that were made for this run.
    pub(super) ours: &'a [u64],
    /// Folders of the host get what is missing too, as far as their mounts and modes allow.
    pub(super) on_host: bool,
    pub(super) lookup: Lookup,
    /// Permission bits of what is made on a file system of ours.
    pub(super) mode: u32,
    /// Permission bits of what is made on the host.
    pub(super) host_mode: u32,
    /// Permission bits of the folders on the way that are made.
    pub(super) parents: u32,
}

impl Making<'_> {
    /// For the folder that the target lies in.
    pub(super) fn parent(self) -> Self {
        let lookup = Lookup { follow_last: true, ..self.lookup };
        Self { mode: self.parents, host_mode: self.parents, lookup, ..self }
    }
}

/// Finds `target`, or makes it and its parents, where that may be.
pub(super) fn find_or_make(
    root: BorrowedFd<'_>,
    target: &SandboxPath,
    node: Node,
    making: Making<'_>,
) -> Result<Place, Unresolved> {
    let open = || look_up(root, target.as_path(), making.lookup);
    let found = |fd| check_kind(&fd, node, making.lookup).map(|()| Place { fd, made: false });
    let Some(parent) = target.parent() else { return found(open()?) };
    match open() {
        Err(Errno::ENOENT) => {}
        result => return found(result.map_err(Unresolved::Parent)?),
    }
    let above;
    let parent = if parent.is_root() {
        root
    } else {
        above = find_or_make(root, &parent, Node::Directory, making.parent()).map_err(Unresolved::on_the_way)?.fd;
        above.as_fd()
    };
    if target.as_path().components().any(|component| component == Component::ParentDir) {
        // What was missing may have been only what `..` leads back out of.
        match open() {
            Err(Errno::ENOENT) => {}
            result => return found(result?),
        }
    }
    match target.as_path().file_name() {
        Some(name) => make(parent, name, node, making),
        // `..`: there now that its parent is.
        None => found(open()?),
    }
}

/// Where links in the last place count as what they are, the mount that follows would not say what is wrong.
fn check_kind(fd: &OwnedFd, node: Node, lookup: Lookup) -> Result<(), Unresolved> {
    if lookup.follow_last {
        return Ok(());
    }
    match (kind(&fstat(fd)?), node) {
        (SFlag::S_IFLNK, _) => Err(Unresolved::Kind(Errno::ELOOP)),
        (SFlag::S_IFDIR, Node::File) => Err(Unresolved::Kind(Errno::EISDIR)),
        (SFlag::S_IFDIR, Node::Directory) | (_, Node::File) => Ok(()),
        (_, Node::Directory) => Err(Unresolved::Kind(Errno::ENOTDIR)),
    }
}

/// Makes `name`, which is nothing yet, and opens it: no link can be in its place.
fn make(parent: BorrowedFd<'_>, name: &OsStr, node: Node, making: Making<'_>) -> Result<Place, Unresolved> {
    let stat = fstat(parent)?;
    if kind(&stat) != SFlag::S_IFDIR {
        return Err(Errno::ENOTDIR.into());
    }
    let is_ours = making.ours.contains(&stat.st_dev);
    if !is_ours && !making.on_host {
        return Err(Unresolved::OnHost);
    }
    let mode = Mode::from_bits_truncate(if is_ours { making.mode } else { making.host_mode });
    let made = match node {
        Node::Directory => mkdirat(parent, Path::new(name), mode),
        Node::File => mknodat(parent, name.as_bytes(), SFlag::S_IFREG, mode, 0),
    };
    match made {
        // Somebody else, on the host, was faster.
        Err(Errno::EEXIST) if !is_ours => {}
        made => made?,
    }
    let fd = openat(parent, Path::new(name), PATH_ONLY | OFlag::O_NOFOLLOW, Mode::empty())?;
    check_kind(&fd, node, Lookup { follow_last: is_ours, ..making.lookup })?;
    Ok(Place { fd, made: is_ours })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, create_dir_all, rename, write};
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn same(a: &OwnedFd, b: &OwnedFd) -> bool {
        let (a, b) = (fstat(a).unwrap(), fstat(b).unwrap());
        (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
    }

    fn open_dir(path: &Path) -> OwnedFd {
        openat(nix::fcntl::AT_FDCWD, path, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn links_and_dots_stay_in_the_root_with_openat2_and_without() {
        let outside = tempfile::tempdir().unwrap();
        create_dir_all(outside.path().join("root/usr/bin")).unwrap();
        write(outside.path().join("secret"), "x").unwrap();
        let root_path = outside.path().join("root");
        symlink("/usr/bin", root_path.join("bin")).unwrap();
        symlink("../../../secret", root_path.join("escape")).unwrap();
        symlink(outside.path().join("secret"), root_path.join("absolute")).unwrap();
        symlink("loop", root_path.join("loop")).unwrap();
        let root = open_dir(&root_path);
        let usr_bin = open_dir(&root_path.join("usr/bin"));
        for open in [
            |root: &OwnedFd, path: &str| open_in_root(root, Path::new(path)),
            |root: &OwnedFd, path: &str| walk(root.as_fd(), Path::new(path), true),
        ] {
            assert!(same(&open(&root, "bin").unwrap(), &usr_bin));
            assert!(same(&open(&root, "../../usr/bin").unwrap(), &usr_bin));
            assert_eq!(open(&root, "escape").unwrap_err(), Errno::ENOENT);
            assert_eq!(open(&root, "absolute").unwrap_err(), Errno::ENOENT);
            assert_eq!(open(&root, "loop").unwrap_err(), Errno::ELOOP);
            assert!(same(&open(&root, ".").unwrap(), &root));
        }
    }

    #[test]
    fn targets_are_made_where_it_is_ours_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        create_dir(directory.path().join("there")).unwrap();
        let root = open_dir(directory.path());
        let ours = [fstat(&root).unwrap().st_dev];
        let target = SandboxPath::new("/there/new/file").unwrap();
        let making = |ours| Making {
            ours,
            on_host: false,
            lookup: Lookup::USUAL,
            mode: 0o644,
            host_mode: 0o644,
            parents: 0o755,
        };
        let refused = find_or_make(root.as_fd(), &target, Node::File, making(&[]));
        assert!(matches!(refused, Err(Unresolved::OnHost)));
        assert!(!directory.path().join("there/new").exists());
        find_or_make(root.as_fd(), &target, Node::File, making(&ours)).unwrap();
        assert!(directory.path().join("there/new/file").is_file());
        // Also where all that is missing is what `..` leads back out of.
        let there = SandboxPath::traversing("/missing/../there").unwrap();
        assert!(!find_or_make(root.as_fd(), &there, Node::Directory, making(&ours)).unwrap().made);
        assert!(directory.path().join("missing").is_dir());
    }

    #[test]
    fn a_link_in_the_last_place_is_itself_where_it_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        create_dir(directory.path().join("there")).unwrap();
        symlink("there", directory.path().join("link")).unwrap();
        let root = open_dir(directory.path());
        for by_hand in [false, true] {
            let lookup = Lookup { follow_last: false, by_hand };
            let making = Making { ours: &[], on_host: true, lookup, mode: 0o755, host_mode: 0o755, parents: 0o755 };
            let find = |path: &str, node| find_or_make(root.as_fd(), &SandboxPath::new(path).unwrap(), node, making);
            assert!(matches!(find("/link", Node::Directory), Err(Unresolved::Kind(Errno::ELOOP))));
            assert!(matches!(find("/there", Node::File), Err(Unresolved::Kind(Errno::EISDIR))));
            find("/link/made", Node::File).unwrap();
            assert!(directory.path().join("there/made").is_file());
            std::fs::remove_file(directory.path().join("there/made")).unwrap();
        }
    }

    /// The kernel counts renames for all folders together.
    #[test]
    fn who_renames_elsewhere_keeps_no_path_from_being_found() {
        // In memory they are fast enough.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let folder = folder.path();
        create_dir_all(folder.join("root/a/b")).unwrap();
        create_dir(folder.join("root/c")).unwrap();
        let (root, wanted) = (open_dir(&folder.join("root")), open_dir(&folder.join("root/c")));
        let done = AtomicBool::new(false);
        let rename_on = |name: &str| {
            let (one, other) = (folder.join(name), folder.join(format!("other-{name}")));
            create_dir(&one).unwrap();
            while !done.load(Ordering::Relaxed) {
                rename(&one, &other).unwrap();
                rename(&other, &one).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for name in ["1", "2", "3"] {
                scope.spawn(move || rename_on(name));
            }
            let find = |_| open_in_root(&root, Path::new("/a/b/../b/../../c")).map(|found| same(&found, &wanted));
            let missed: Vec<_> = (0..200_000).map(find).filter(|found| *found != Ok(true)).collect();
            done.store(true, Ordering::Relaxed);
            assert_eq!(missed, []);
        });
    }
}
