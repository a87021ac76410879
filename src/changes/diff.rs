//! What is in the upper directory beside the workspace: a walk that changes nothing in the workspace. What it keeps in memory
//! is counted (`MOST_BYTES`); it holds a few descriptors, however deep the trees are.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::change::{Change, ChangeKind, Node, Protected, Refusal};
use super::content;
use super::error::{Error, at, at_errno};
use super::journal::Since;
use super::tree::{LONGEST, Meta, Tree, length};
use super::upper::{FolderMarks, Upper};

/// Bytes that changes, and the names of the folder that is looked into, may have together: neither a hostile command nor a
/// hostile workspace must fill the memory.
pub(super) const MOST_BYTES: usize = 256 << 20;

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// All changes, with what speaks against them.
    Changes,
    /// Whether there is one. So many bytes of files may be compared to find out; where there are more, there is one in doubt.
    Any(u64),
    /// The folders that both have.
    Folders,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Sorted by path.
    pub(super) changes: Vec<Change>,
    /// For each file of the upper directory with several names: one of the workspace's that has its content already.
    pub(super) anchors: HashMap<u64, Anchor>,
    /// Files of the workspace with several names, of which apply takes some away or adds some: nobody has changed them.
    pub(super) linked: Vec<Meta>,
    /// Folders of the upper directory that are folders of the workspace, where an interrupted apply may have left something.
    pub(super) folders: Vec<PathBuf>,
}

/// A file of the workspace: its path, device and inode.
pub(super) type Anchor = (PathBuf, (u64, u64));

/// A folder of the upper directory to be looked into.
struct Pair {
    path: PathBuf,
    /// Its permissions: what is made in it inherits the set-group-ID bit.
    mode: u32,
    /// What is below is seen through it.
    is_merged: bool,
    /// The workspace has a folder there.
    has_below: bool,
    /// Nothing in it can be applied.
    refused: Option<Refusal>,
    /// The workspace's folder, or one around it, may not be the one that the command saw.
    was_moved: bool,
}

pub(super) struct Walk<'a> {
    pub(super) upper: &'a mut Upper,
    pub(super) workspace: &'a mut Tree,
    pub(super) protected: &'a Protected,
    /// What is listed, with all in it; everything if there is nothing.
    pub(super) only: &'a BTreeSet<PathBuf>,
    pub(super) since: Since<'a>,
    /// The run's name.
    pub(super) run: &'a str,
    /// The name that apply gives to what is not finished.
    pub(super) own: &'a OsStr,
    pub(super) found: Found,
    /// Memory of what was found so far, and of what is still to be looked into.
    pub(super) bytes: usize,
    /// Folders of the workspace without permissions may be opened up.
    pub(super) may_open: bool,
    pub(super) goal: Goal,
}

impl Walk<'_> {
    pub(super) fn all(mut self) -> Result<Found, Error> {
        let root = PathBuf::new();
        let upper = self.upper.meta(&root).map_err(at("look at", &root))?;
        let below = self.below(&root)?;
        let (Some(upper), Some(below)) = (upper, below) else { return Ok(self.found) };
        self.folder_mode(&root, &upper, &below, 0o6000, None)?;
        let (mode, refused, was_moved) = (upper.mode, None, false);
        let mut todo = vec![Pair { path: root, mode, is_merged: true, has_below: true, refused, was_moved }];
        while let Some(pair) = todo.pop()
            && !self.is_enough()
        {
            self.bytes = self.bytes.saturating_sub(cost(&pair.path, size_of::<Pair>()));
            self.folder(pair, &mut todo)?;
        }
        self.found.changes.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(self.found)
    }

    fn folder(&mut self, mut pair: Pair, todo: &mut Vec<Pair>) -> Result<(), Error> {
        let path = pair.path.clone();
        let look = at("look into", &path);
        let foreign = |attribute| Error::Foreign { path: path.clone(), attribute };
        let marks = self.upper.folder_marks(&path).map_err(&look)?.map_err(foreign)?;
        pair.is_merged &= !marks.is_opaque;
        let names = match self.upper.tree.names(&path, self.room()) {
            Ok(names) => names,
            Err(Errno::E2BIG) => return Err(self.too_many()),
            Err(errno) => return Err(look(errno.into())),
        };
        if pair.has_below && self.may_open {
            self.count(cost(&path, size_of::<PathBuf>()))?;
            self.found.folders.push(path.clone());
        }
        if pair.has_below && !pair.is_merged {
            self.covered(&pair, &names)?;
        }
        for name in names {
            if self.is_enough() {
                break;
            }
            self.entry(&pair, marks, &path.join(&name), &name, todo)?;
        }
        Ok(())
    }

    /// What the workspace has in a folder that the run has made anew.
    fn covered(&mut self, pair: &Pair, names: &[OsString]) -> Result<(), Error> {
        let kept: HashSet<&OsString> = names.iter().collect();
        let room = self.room();
        let others = match self.reach(&pair.path, |tree, path| tree.names(path, room)) {
            Ok(names) => names,
            Err(Errno::E2BIG) => return Err(self.too_many()),
            Err(Errno::EACCES) => {
                return self.refuse(&pair.path, ChangeKind::Modified, Node::Directory, Refusal::Unreadable);
            }
            Err(errno) => return Err(at("look into", &pair.path)(errno.into())),
        };
        let own = self.own;
        for name in others.iter().filter(|name| !kept.contains(name) && *name != own) {
            let path = pair.path.join(name);
            if let Some(below) = self.below(&path)? {
                self.deleted(path, &below, pair)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        pair: &Pair,
        marks: FolderMarks,
        path: &Path,
        name: &OsStr,
        todo: &mut Vec<Pair>,
    ) -> Result<(), Error> {
        let look = at("look at", path);
        let Some(meta) = self.upper.meta(path).map_err(&look)? else { return Ok(()) };
        let foreign = |attribute| Error::Foreign { path: path.to_owned(), attribute };
        let is_whiteout = self.upper.is_whiteout(path, &meta, marks).map_err(&look)?.map_err(foreign)?;
        let below = match if pair.has_below { self.below(path) } else { Ok(None) } {
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(Errno::EACCES as i32) => {
                let kind = if is_whiteout { ChangeKind::Deleted } else { ChangeKind::Modified };
                return self.refuse(path, kind, meta.node, Refusal::Unreadable);
            }
            other => other?,
        };
        let (kind, node) = match &below {
            None if is_whiteout => return Ok(()),
            Some(below) if is_whiteout => (ChangeKind::Deleted, below.node),
            None => (ChangeKind::Added, meta.node),
            Some(below) if below.node == meta.node => (ChangeKind::Modified, meta.node),
            Some(_) => (ChangeKind::Retyped, meta.node),
        };
        if length(path) > LONGEST {
            return self.refuse(path, kind, node, Refusal::TooLong);
        }
        if name == self.own {
            return self.refuse(path, kind, node, Refusal::Reserved);
        }
        match (&below, meta.node) {
            (Some(below), _) if is_whiteout => self.deleted(path.to_owned(), below, pair),
            (_, Node::Directory) => self.folder_entry(pair, path, &meta, below.as_ref(), todo),
            (_, Node::File | Node::Link) => self.file_entry(pair, path, &meta, below.as_ref()),
            (_, Node::Fifo | Node::Socket | Node::Device) => self.refuse(path, kind, node, Refusal::Special),
        }
    }

    fn folder_entry(
        &mut self,
        pair: &Pair,
        path: &Path,
        meta: &Meta,
        below: Option<&Meta>,
        todo: &mut Vec<Pair>,
    ) -> Result<(), Error> {
        let same = below.filter(|below| below.node == Node::Directory);
        let mut refused = pair.refused;
        if let Some(below) = same {
            if self.reach(path, |tree, path| tree.folder(path).map(drop)) == Err(Errno::EXDEV) {
                return self.refuse(path, ChangeKind::Modified, meta.node, Refusal::Mounted);
            }
            self.folder_mode(path, meta, below, 0, refused)?;
        } else {
            let kind = if below.is_some() { ChangeKind::Retyped } else { ChangeKind::Added };
            let mut change = self.change(path, kind, meta, refused);
            let inherited = pair.mode & 0o2000;
            change.strips_set_id = meta.mode & 0o6000 & !inherited != 0;
            change.mode = meta.mode & 0o1777;
            if let Some(below) = below {
                change.conflict = self.was_changed(below, false)? || pair.was_moved;
            }
            refused = change.refused;
            self.push(change)?;
        }
        let (mode, is_merged, has_below) =
            (meta.mode, pair.is_merged && below.is_none_or(|_| same.is_some()), same.is_some());
        let was_moved = pair.was_moved || same.is_some_and(|below| self.since.was_moved(below));
        self.count(cost(path, size_of::<Pair>()))?;
        todo.push(Pair { path: path.to_owned(), mode, is_merged, has_below, refused, was_moved });
        Ok(())
    }

    /// The permissions of a folder that both have. `inherited`: set-id bits that nobody asked for.
    fn folder_mode(
        &mut self,
        path: &Path,
        meta: &Meta,
        below: &Meta,
        inherited: u32,
        refused: Option<Refusal>,
    ) -> Result<(), Error> {
        let set_id = meta.mode & 0o6000 & !below.mode & !inherited != 0;
        let differs = meta.mode & 0o1777 != below.mode & 0o1777;
        if !differs && !set_id {
            return Ok(());
        }
        let mut change = self.change(path, ChangeKind::Mode, meta, refused);
        if !differs {
            change.refused = change.refused.or(Some(Refusal::SetId));
        }
        change.strips_set_id = set_id;
        change.mode = meta.mode & 0o1777 | below.mode & 0o6000;
        change.identity = Some(below.identity());
        self.push(change)
    }

    /// A file or a symbolic link.
    fn file_entry(&mut self, pair: &Pair, path: &Path, meta: &Meta, below: Option<&Meta>) -> Result<(), Error> {
        let kind = match below {
            None => ChangeKind::Added,
            Some(below) if below.node != meta.node => ChangeKind::Retyped,
            Some(below) => match self.compare(path, meta, below).map_err(at("read", path))? {
                Some(kind) => kind,
                None => return Ok(()),
            },
        };
        let mut change = self.change(path, kind, meta, pair.refused);
        if meta.node == Node::Link {
            change.target = Some(self.upper.tree.link(path).map_err(at_errno("read", path))?);
        }
        if meta.node == Node::File {
            change.has_other_mode =
                below.is_some_and(|below| below.node == Node::File && below.mode & 0o777 != change.mode);
            change.strips_set_id = meta.mode & 0o6000 != 0;
            if kind == ChangeKind::Mode && below.is_some_and(|below| below.mode & 0o6777 == change.mode) {
                change.refused = change.refused.or(Some(Refusal::SetId));
            }
        }
        match below {
            Some(below) if below.node == Node::Directory => {
                let (refused, conflict) = self.examine(path, below)?;
                change.refused = change.refused.or(refused);
                change.conflict = conflict;
            }
            Some(below) => change.conflict = self.was_changed(below, false)?,
            None => {}
        }
        change.conflict |= pair.was_moved && below.is_some();
        self.push(change)
    }

    /// How two files, or two links, differ.
    fn compare(&mut self, path: &Path, meta: &Meta, below: &Meta) -> io::Result<Option<ChangeKind>> {
        if meta.node == Node::Link {
            let is_same = self.upper.tree.link(path)? == self.workspace.link(path)?;
            return Ok((!is_same).then_some(ChangeKind::Modified));
        }
        if meta.size != below.size {
            return Ok(Some(ChangeKind::Modified));
        }
        match &mut self.goal {
            Goal::Any(left) if meta.size <= *left => *left -= meta.size,
            Goal::Any(_) | Goal::Folders => return Ok(Some(ChangeKind::Modified)),
            Goal::Changes => {}
        }
        let other = match self.workspace.file(path) {
            Ok(file) => file,
            // The command could not read it either, unless it gave itself the right.
            Err(Errno::EACCES) => return Ok(Some(ChangeKind::Modified)),
            Err(errno) => return Err(errno.into()),
        };
        if !content::is_same(&self.upper.tree.file(path)?, &other)? {
            return Ok(Some(ChangeKind::Modified));
        }
        if meta.mode & 0o6777 != below.mode & 0o6777 {
            return Ok(Some(ChangeKind::Mode));
        }
        let is_protected = self.protected.refuses(path, Some(Node::File));
        if meta.links > 1 && !is_protected {
            if let Some(anchor) = self.found.anchors.get(&meta.inode) {
                return Ok((anchor.1 != below.identity()).then_some(ChangeKind::Modified));
            }
            self.bytes += cost(path, size_of::<(u64, Anchor)>());
            self.found.anchors.insert(meta.inode, (path.to_owned(), below.identity()));
            if !self.since.was_changed(below, false) {
                self.bytes += size_of::<Meta>();
                self.found.linked.push(*below);
            }
        }
        Ok(None)
    }

    fn deleted(&mut self, path: PathBuf, below: &Meta, pair: &Pair) -> Result<(), Error> {
        let mut change = self.change(&path, ChangeKind::Deleted, below, pair.refused);
        if self.protected.refuses(&path, None) {
            change.refused = change.refused.or(Some(Refusal::Protected));
        }
        if below.node == Node::Directory {
            let (refused, conflict) = self.examine(&path, below)?;
            change.refused = change.refused.or(refused);
            change.conflict = conflict;
        } else {
            change.conflict = self.was_changed(below, true)?;
        }
        change.conflict |= pair.was_moved;
        self.push(change)
    }

    /// Whether somebody else changed it. If not, apply is about to take away a name of it: what that does to its other names
    /// is its own doing.
    fn was_changed(&mut self, meta: &Meta, goes: bool) -> Result<bool, Error> {
        let was_changed = self.since.was_changed(meta, goes);
        if !was_changed && meta.links > 1 && meta.node == Node::File {
            self.found.linked.push(*meta);
            self.count(size_of::<Meta>())?;
        }
        Ok(was_changed)
    }

    /// What speaks against taking away a folder of the workspace: what was changed in it meanwhile, or can't be seen. Folders are
    /// asked too: one that was moved there is young, and all in it may be old. Apply goes into none that it takes away.
    fn examine(&mut self, folder: &Path, meta: &Meta) -> Result<(Option<Refusal>, bool), Error> {
        let (before, linked) = (self.bytes, self.found.linked.len());
        let result = self.look_through(folder, self.since.was_changed(meta, true));
        // The notes of files stay.
        self.bytes = before + self.found.linked.len().saturating_sub(linked) * size_of::<Meta>();
        result
    }

    fn look_through(&mut self, folder: &Path, mut conflict: bool) -> Result<(Option<Refusal>, bool), Error> {
        if self.goal != Goal::Changes {
            return Ok((None, false));
        }
        let mut todo = vec![folder.to_owned()];
        while let Some(path) = todo.pop() {
            if length(&path) > LONGEST {
                return Ok((Some(Refusal::TooLong), false));
            }
            let room = self.room();
            let names = match self.reach(&path, |tree, path| tree.names(path, room)) {
                Ok(names) => names,
                Err(Errno::E2BIG) => return Err(self.too_many()),
                Err(Errno::EXDEV) => return Ok((Some(Refusal::Mounted), false)),
                Err(Errno::EACCES) => return Ok((Some(Refusal::Unreadable), false)),
                Err(errno) => return Err(at("look into", &path)(errno.into())),
            };
            for name in names {
                let path = path.join(name);
                match self.below(&path)? {
                    Some(meta) if meta.node == Node::Directory => {
                        conflict |= self.since.was_changed(&meta, true);
                        self.count(cost(&path, size_of::<PathBuf>()))?;
                        todo.push(path);
                    }
                    Some(meta) => conflict |= self.was_changed(&meta, true)?,
                    None => {}
                }
            }
        }
        Ok((None, conflict))
    }

    fn below(&mut self, path: &Path) -> Result<Option<Meta>, Error> {
        self.reach(path, Tree::meta).map_err(|errno| at("look at", path)(errno.into()))
    }

    /// Looks into the workspace; after an interrupted apply, which has set final permissions, opens up what the caller owns.
    fn reach<T>(&mut self, path: &Path, look: impl Fn(&mut Tree, &Path) -> nix::Result<T>) -> nix::Result<T> {
        match look(self.workspace, path) {
            Err(Errno::EACCES) if self.may_open => {
                self.workspace.open_up(path)?;
                look(self.workspace, path)
            }
            result => result,
        }
    }

    fn change(&self, path: &Path, kind: ChangeKind, meta: &Meta, refused: Option<Refusal>) -> Change {
        let becomes = if kind == ChangeKind::Deleted { None } else { Some(meta.node) };
        let protected = self.protected.refuses(path, becomes).then_some(Refusal::Protected);
        Change {
            path: path.to_owned(),
            kind,
            node: meta.node,
            refused: refused.or(protected),
            strips_set_id: false,
            conflict: false,
            mode: meta.mode & 0o777,
            has_other_mode: false,
            target: None,
            identity: None,
        }
    }

    fn refuse(&mut self, path: &Path, kind: ChangeKind, node: Node, why: Refusal) -> Result<(), Error> {
        self.push(Change {
            path: path.to_owned(),
            kind,
            node,
            refused: Some(why),
            strips_set_id: false,
            conflict: false,
            mode: 0,
            has_other_mode: false,
            target: None,
            identity: None,
        })
    }

    fn push(&mut self, mut change: Change) -> Result<(), Error> {
        if self.goal == Goal::Folders || !self.is_selected(&change) {
            return Ok(());
        }
        // What is not touched is in nobody's way.
        change.conflict &= change.refused.is_none();
        let target = change.target.as_ref().map_or(0, |target| target.len());
        self.count(cost(&change.path, size_of::<Change>()) + target)?;
        self.found.changes.push(change);
        Ok(())
    }

    /// What is asked for, and the new folders that it lies in.
    fn is_selected(&self, change: &Change) -> bool {
        let is_new_folder =
            change.node == Node::Directory && matches!(change.kind, ChangeKind::Added | ChangeKind::Retyped);
        // What is in a folder follows it.
        let from = (Bound::Included(change.path.as_path()), Bound::Unbounded);
        let leads_to_one =
            || self.only.range::<Path, _>(from).next().is_some_and(|path| path.starts_with(&change.path));
        self.only.is_empty()
            || change.path.ancestors().any(|path| self.only.contains(path))
            || (is_new_folder && leads_to_one())
    }

    fn is_enough(&self) -> bool {
        matches!(self.goal, Goal::Any(_)) && !self.found.changes.is_empty()
    }

    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > MOST_BYTES { Err(self.too_many()) } else { Ok(()) }
    }

    /// Bytes that there are for the names of a folder.
    fn room(&self) -> usize {
        MOST_BYTES.saturating_sub(self.bytes)
    }

    fn too_many(&self) -> Error {
        Error::TooMany { run: self.run.to_owned(), most: MOST_BYTES }
    }
}

/// The memory of what has a path.
fn cost(path: &Path, size: usize) -> usize {
    length(path) + size
}
