//! Copies one path out of what the command saw: the upper directory over the workspace. Like what apply makes, an artifact is
//! copied under a name of Shannot's own and renamed when it is whole.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::apply::{own_name, rename_to_new};
use super::change::Node;
use super::content;
use super::diff::MOST_BYTES;
use super::error::{Error, at, at_errno};
use super::journal::{Deed, Journal};
use super::remove::remove;
use super::tree::{FOLDER, LONGEST, Meta, Tree, length, meta_at};
use super::upper::{FolderMarks, Upper};
use crate::sys;

/// Something of an artifact that was not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Relative to the workspace.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// A folder as the command saw it.
#[derive(Debug, Clone)]
struct Seen {
    path: PathBuf,
    /// The upper directory has it, with these marks.
    upper: Option<FolderMarks>,
    /// The workspace's folder shows through.
    has_lower: bool,
}

/// An entry of one.
struct Entry {
    meta: Meta,
    in_upper: bool,
    /// Of a folder.
    folder: Option<Seen>,
}

/// What is to be copied.
struct Wanted {
    /// The folders that it lies in, with the permissions that the command saw.
    around: Vec<(OsString, u32)>,
    what: Artifact,
}

enum Artifact {
    File(Entry),
    Folder(Seen),
}

struct Merged<'a> {
    upper: &'a mut Upper,
    workspace: &'a mut Tree,
    /// What of the workspace the command saw something else in the place of.
    hidden: &'a BTreeSet<PathBuf>,
    /// Where it is noted what is written into the workspace.
    journal: Option<&'a Journal>,
}

/// Why.
const HIDDEN: &str = "it was hidden from the command";

impl Merged<'_> {
    fn marks(&mut self, path: &Path) -> Result<FolderMarks, Error> {
        let foreign = |attribute| Error::Foreign { path: path.to_owned(), attribute };
        self.upper.folder_marks(path).map_err(at("look into", path))?.map_err(foreign)
    }

    fn root(&mut self) -> Result<Seen, Error> {
        let marks = self.marks(Path::new(""))?;
        Ok(Seen { path: PathBuf::new(), upper: Some(marks), has_lower: !marks.is_opaque })
    }

    fn entry(&mut self, folder: &Seen, name: &OsStr) -> Result<Option<Entry>, Error> {
        let path = folder.path.join(name);
        let look = at("look at", &path);
        let lower =
            if folder.has_lower { self.workspace.meta(&path).map_err(|errno| look(errno.into()))? } else { None };
        let upper = match folder.upper {
            Some(marks) => self.upper.meta(&path).map_err(&look)?.map(|meta| (meta, marks)),
            None => None,
        };
        let lower_is_folder = lower.is_some_and(|meta| meta.node == Node::Directory);
        let Some((meta, marks)) = upper else {
            let seen = || Seen { path: path.clone(), upper: None, has_lower: true };
            return Ok(lower.map(|meta| Entry { meta, in_upper: false, folder: lower_is_folder.then(seen) }));
        };
        let foreign = |attribute| Error::Foreign { path: path.clone(), attribute };
        if self.upper.is_whiteout(&path, &meta, marks).map_err(&look)?.map_err(foreign)? {
            return Ok(None);
        }
        let folder = match meta.node {
            Node::Directory => {
                let marks = self.marks(&path)?;
                Some(Seen { has_lower: lower_is_folder && !marks.is_opaque, upper: Some(marks), path })
            }
            _ => None,
        };
        Ok(Some(Entry { meta, in_upper: true, folder }))
    }

    fn names(&mut self, folder: &Seen) -> Result<BTreeSet<OsString>, Error> {
        let look = at_errno("look into", &folder.path);
        let mut names = BTreeSet::new();
        if folder.upper.is_some() {
            names.extend(self.upper.tree.names(&folder.path, MOST_BYTES).map_err(&look)?);
        }
        if folder.has_lower {
            names.extend(self.workspace.names(&folder.path, MOST_BYTES).map_err(&look)?);
        }
        Ok(names)
    }

    /// What shows through from the workspace did not reach the command there. What it made there is its own.
    fn is_hidden(&self, entry: &Entry, path: &Path) -> bool {
        !entry.in_upper && path.ancestors().any(|path| self.hidden.contains(path))
    }

    fn tree(&mut self, entry: &Entry) -> &mut Tree {
        if entry.in_upper { &mut self.upper.tree } else { self.workspace }
    }

    /// None for what was hidden.
    fn find(&mut self, path: &Path) -> Result<Option<Wanted>, Error> {
        let none = || Error::NoArtifact(path.to_owned());
        let mut folder = self.root()?;
        let mut around = Vec::new();
        let mut names = path.iter().peekable();
        while let Some(name) = names.next() {
            let found = self.entry(&folder, name)?.ok_or_else(none)?;
            if self.is_hidden(&found, &folder.path.join(name)) {
                return Ok(None);
            }
            folder = match (&found.folder, names.peek()) {
                (Some(seen), next) => {
                    around.extend(next.map(|_| (name.to_owned(), found.meta.mode)));
                    seen.clone()
                }
                (None, Some(_)) => return Err(none()),
                (None, None) => return Ok(Some(Wanted { around, what: Artifact::File(found) })),
            };
        }
        Ok(Some(Wanted { around, what: Artifact::Folder(folder) }))
    }

    /// Why what is no folder is left out, if it is.
    fn obstacle(&mut self, entry: &Entry, path: &Path, depth: usize) -> io::Result<Option<String>> {
        match entry.meta.node {
            Node::Link if leads_out(Path::new(&self.tree(entry).link(path)?), depth) => {
                Ok(Some("a symbolic link that leads out".to_owned()))
            }
            Node::File | Node::Link => Ok(None),
            node => Ok(Some(format!("a {}", node.name()))),
        }
    }

    /// Copies a file or a link.
    fn copy(&mut self, entry: &Entry, path: &Path, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if entry.meta.node == Node::Link {
            let text = self.tree(entry).link(path)?;
            return Ok(symlinkat(text.as_os_str(), to, name)?);
        }
        let from = self.tree(entry).file(path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        content::copy(&from, &file)?;
        let (seconds, nanoseconds) = entry.meta.mtime;
        futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::new(seconds, nanoseconds))?;
        fchmod(&file, Mode::from_bits_truncate(entry.meta.mode & 0o777))?;
        match self.journal {
            // Apply makes it a link of another one: nobody else's change is in its way.
            Some(journal) if entry.meta.links > 1 => journal.note(Deed::Wrote, &[fstat(&file)?.into()]),
            _ => Ok(()),
        }
    }
}

/// Whether a link that lies `depth` folders deep may lead further up than that. Once it has gone down it must not go up
/// again: what it went through may be a link too.
fn leads_out(text: &Path, depth: usize) -> bool {
    let mut up = 0;
    let mut has_gone_down = false;
    for part in text.components() {
        match part {
            Component::ParentDir if has_gone_down => return true,
            Component::ParentDir => up += 1,
            Component::Normal(_) => has_gone_down = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return true,
        }
    }
    up > depth
}

/// Without a destination: to the same path in the workspace.
pub(super) fn copy(
    upper: &mut Upper,
    workspace: &mut Tree,
    run: &str,
    (path, destination): (&Path, Option<&Path>),
    hidden: &BTreeSet<PathBuf>,
    journal: &Journal,
) -> Result<Vec<LeftOut>, Error> {
    let mut merged = Merged { upper, workspace, hidden, journal: destination.is_none().then_some(journal) };
    let own = &own_name(run);
    let Some(wanted) = merged.find(path)? else {
        return Ok(vec![LeftOut { path: path.to_owned(), why: HIDDEN.to_owned() }]);
    };
    let shown = destination.unwrap_or(path);
    let write = at_errno("write", shown);
    if let Artifact::File(entry) = &wanted.what {
        // Where it comes to lie: elsewhere, what it leads up to is not the workspace's.
        let depth = if destination.is_some() { 0 } else { wanted.around.len() };
        if let Some(why) = merged.obstacle(entry, path, depth).map_err(at("copy", path))? {
            return Ok(vec![LeftOut { path: path.to_owned(), why }]);
        }
    }
    let name = shown.file_name().ok_or_else(|| Error::Exists(shown.to_owned()))?;
    let (parent, made) = match destination {
        Some(typed) => (open_parent(typed).map_err(&write)?, None),
        None => {
            let (parent, made) = make_around(merged.workspace, &wanted.around)?;
            (parent, Some(made))
        }
    };
    let put = put(&mut merged, wanted.what, path, (parent.as_fd(), name, shown), run);
    match put {
        Err(_) if remove(&parent, own).is_err() => {
            // It is not called what was asked for, and is in nobody's way; why it failed says more.
        }
        // What was made for it stays with it.
        Ok(_) => drop(made.map(Made::keep)),
        Err(_) => {}
    }
    put
}

/// Copies under a name of its own, and renames.
fn put(
    merged: &mut Merged<'_>,
    what: Artifact,
    path: &Path,
    (parent, name, shown): (BorrowedFd<'_>, &OsStr, &Path),
    run: &str,
) -> Result<Vec<LeftOut>, Error> {
    let (own, write) = (&own_name(run), at_errno("write", shown));
    match meta_at(parent, name) {
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(write(errno)),
        Ok(_) => return Err(Error::Exists(shown.to_owned())),
    }
    remove(parent, own).map_err(&write)?;
    let left = match what {
        Artifact::File(entry) => {
            merged.copy(&entry, path, parent, own).map_err(at("write", shown))?;
            Vec::new()
        }
        Artifact::Folder(seen) => {
            let top = make_top(parent, own).map_err(&write)?;
            copy_folder(merged, seen, top, run)?
        }
    };
    match rename_to_new(parent, own, name) {
        Ok(()) => Ok(left),
        Err(Errno::EEXIST) => Err(Error::Exists(shown.to_owned())),
        Err(errno) => Err(write(errno)),
    }
}

/// The folder that a path lies in which the caller has typed: links are followed.
fn open_parent(path: &Path) -> nix::Result<OwnedFd> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Folders of the workspace that were made for an artifact. They go if nothing comes to lie in them.
struct Made {
    tree: Tree,
    paths: Vec<PathBuf>,
}

impl Made {
    fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.paths.iter().rev() {
            let removed =
                self.tree.parent(path).and_then(|(folder, name)| unlinkat(folder, name, UnlinkatFlags::RemoveDir));
            if removed.is_err() {
                // Somebody else has put something there, or moved it, and has it now.
            }
        }
    }
}

/// The folder of the workspace that lies so deep, made where the command alone has it. Whoever wrote the workspace may have
/// put a link in the place of each: none is followed.
fn make_around(workspace: &Tree, around: &[(OsString, u32)]) -> Result<(OwnedFd, Made), Error> {
    let clone = |folder: BorrowedFd<'_>| folder.try_clone_to_owned().map_err(|error| sys::errno_of(&error));
    let open = at_errno("open", Path::new(""));
    let tree = clone(workspace.root()).and_then(Tree::new).map_err(open)?;
    let mut made = Made { tree, paths: Vec::new() };
    let mut path = PathBuf::new();
    for (name, mode) in around {
        // The umask is the caller's word on what is made here.
        let mode = Mode::from_bits_truncate(mode & 0o777) | Mode::S_IRWXU;
        let result = made.tree.folder(&path).and_then(|folder| mkdirat(folder, name.as_os_str(), mode));
        path.push(name);
        match result {
            Ok(()) => made.paths.push(path.clone()),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(at_errno("make", &path)(errno)),
        }
        match made.tree.folder(&path).map(drop) {
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => return Err(Error::NoFolder(path)),
            opened => opened.map_err(at_errno("open", &path))?,
        }
    }
    let folder = made.tree.folder(&path).and_then(clone).map_err(at_errno("open", &path))?;
    Ok((folder, made))
}

fn make_top(parent: impl AsFd, name: &OsStr) -> nix::Result<Tree> {
    mkdirat(&parent, name, Mode::S_IRWXU)?;
    Tree::new(openat(parent, name, OFlag::O_PATH | FOLDER, Mode::empty())?)
}

fn copy_folder(merged: &mut Merged<'_>, top: Seen, mut to: Tree, run: &str) -> Result<Vec<LeftOut>, Error> {
    let (base, own) = (top.path.clone(), own_name(run));
    let mut left = Vec::new();
    let mut folders = vec![(PathBuf::new(), 0)];
    let mut bytes = 0;
    let mut todo = vec![top];
    while let Some(folder) = todo.pop() {
        let relative = folder.path.strip_prefix(&base).unwrap_or(Path::new("")).to_owned();
        if relative.as_os_str().is_empty() {
            let meta = if folder.upper.is_some() {
                merged.upper.meta(&base)
            } else {
                merged.workspace.meta(&base).map_err(Into::into)
            };
            let mode = meta.map_err(at("look at", &base))?.map_or(0o755, |meta| meta.mode);
            folders = vec![(PathBuf::new(), mode)];
        }
        let depth = relative.iter().count();
        for name in merged.names(&folder)? {
            let path = folder.path.join(&name);
            let write = at("copy", &path);
            let Some(entry) = merged.entry(&folder, &name)? else { continue };
            if name == own && !entry.in_upper {
                // The copy itself, where it comes to lie in what is copied.
                continue;
            }
            if entry.folder.is_some() || entry.meta.node != Node::File || length(&path) > LONGEST {
                // What is noted of it, twice as a folder.
                bytes += 2 * (length(&path) + size_of::<Seen>());
            }
            if bytes > MOST_BYTES {
                return Err(Error::TooMany { run: run.to_owned(), most: MOST_BYTES });
            }
            if merged.is_hidden(&entry, &path) {
                bytes += length(&path) + size_of::<LeftOut>() + HIDDEN.len();
                left.push(LeftOut { path, why: HIDDEN.to_owned() });
                continue;
            }
            if length(&path) > LONGEST {
                left.push(LeftOut { path, why: "the path is too long".to_owned() });
                continue;
            }
            let held = to.folder(&relative).map_err(|errno| write(errno.into()))?;
            if let Some(seen) = entry.folder {
                mkdirat(held, name.as_os_str(), Mode::S_IRWXU).map_err(|errno| write(errno.into()))?;
                folders.push((relative.join(&name), entry.meta.mode));
                todo.push(seen);
            } else if let Some(why) = merged.obstacle(&entry, &path, depth).map_err(&write)? {
                left.push(LeftOut { path, why });
            } else {
                merged.copy(&entry, &path, held, &name).map_err(write)?;
            }
        }
    }
    // The deepest first: without permissions there is no way to what is below.
    for (path, mode) in folders.iter().rev() {
        let folder = to.open_folder(path).map_err(at_errno("copy", path))?;
        fchmod(&folder, Mode::from_bits_truncate(mode & 0o777)).map_err(at_errno("copy", path))?;
    }
    left.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(left)
}
