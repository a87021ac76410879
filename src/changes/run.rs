//! One run's changes: what there is to show, apply and copy out.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{Flock, OFlag, openat};
use nix::sys::stat::Mode;

use super::apply::{Apply, own_name, settle};
use super::artifact::{self, LeftOut};
use super::change::{Change, Protected};
use super::diff::{Found, Goal, Walk};
use super::error::{Error, at, at_errno};
use super::journal::{Deed, Journal, Since};
use super::record::{Record, State};
use super::store::moment;
use super::tree::{FOLDER, Tree};
use super::upper::{Modes, Upper};

/// Held by whoever runs, shows or applies; gone with the process, however that ends.
pub(super) type Lock = Flock<OwnedFd>;

/// How to apply.
#[derive(Debug)]
pub struct Options<'a> {
    /// What is never changed.
    pub protected: &'a Protected,
    /// Also what was changed in the workspace meanwhile, and again what was applied already.
    pub force: bool,
    /// Nothing but these and what is in them; all if there are none. Absolute, or relative to the workspace.
    pub only: &'a [PathBuf],
}

/// What came of it.
#[derive(Debug)]
pub enum Applied {
    /// It was applied before, and nothing was done.
    Before,
    /// Nothing was changed, because these were changed in the workspace meanwhile.
    Conflicts(Vec<Change>),
    /// These were applied, but for what [`Change::is_refused`].
    Done(Vec<Change>),
}

/// Bytes of files that are compared only to find out whether there is anything to keep.
const MOST_COMPARED: u64 = 64 << 20;

/// How to look: see the fields of [`Walk`].
struct Look<'a> {
    only: &'a BTreeSet<PathBuf>,
    may_open: bool,
    goal: Goal,
}

/// A run. Nobody else uses it as long as this lives.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    id: String,
    folder: Lock,
    record: Record,
}

impl Run {
    pub(super) fn new(path: PathBuf, id: String, folder: Lock, record: Record) -> Self {
        Self { path, id, folder, record }
    }

    pub(super) fn lock(&self) -> &Lock {
        &self.folder
    }

    /// Its name: the time it was made, and four digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the overlay's changes go.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// overlayfs's own.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// What is known of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its command has ended, and everything that it had started.
    ///
    /// # Errors
    /// Those of writing the record.
    pub fn finish(&mut self, exit_code: u8) -> Result<(), Error> {
        self.record.exit_code = Some(exit_code);
        self.set_state(State::Finished)
    }

    /// What the command changed, sorted by path. Nothing of the workspace is touched. In `upper`, what the caller owns and can't
    /// read is made readable (chmod(2)); what permissions it had is noted before in `modes` beside it, and counts.
    ///
    /// # Errors
    /// [`Error::OtherWorkspace`], [`Error::Foreign`], [`Error::TooMany`], and those of reading.
    pub fn changes(&self, protected: &Protected) -> Result<Vec<Change>, Error> {
        let (mut upper, mut workspace) = (self.open_upper()?, self.open_workspace()?);
        let journal = self.open_journal()?;
        let how = Look { only: &BTreeSet::new(), may_open: false, goal: Goal::Changes };
        self.find(&mut upper, &mut workspace, &journal, protected, how).map(|found| found.changes)
    }

    /// Whether the command changed nothing. `false` also where that would take long to say: many bytes to be compared.
    ///
    /// # Errors
    /// As [`Run::changes`].
    pub fn is_unchanged(&self) -> Result<bool, Error> {
        let (mut upper, mut workspace) = (self.open_upper()?, self.open_workspace()?);
        let journal = self.open_journal()?;
        let how = Look { only: &BTreeSet::new(), may_open: false, goal: Goal::Any(MOST_COMPARED) };
        let found = self.find(&mut upper, &mut workspace, &journal, &Protected::default(), how)?;
        Ok(found.changes.is_empty())
    }

    /// Makes the workspace what the command saw. It can be killed at any moment, and run again; after a power loss files may be
    /// incomplete, for nothing is written through to the disk.
    ///
    /// # Errors
    /// As [`Run::changes`]; [`Error::NotInside`] and [`Error::NotChanged`] of `only`; [`Error::Swapped`] and those of writing,
    /// after which it can be run again.
    pub fn apply(&mut self, options: &Options<'_>) -> Result<Applied, Error> {
        if self.record.state == State::Applied && !options.force {
            return Ok(Applied::Before);
        }
        let only = options.only.iter().map(|path| self.inside(path)).collect::<Result<BTreeSet<_>, _>>()?;
        let (mut upper, mut workspace) = (self.open_upper()?, self.open_workspace()?);
        let journal = self.open_journal()?;
        let is_begun = self.is_begun();
        if is_begun {
            journal
                .shut_again(&mut workspace)
                .map_err(|(path, errno)| at_errno("set the permissions of", &path)(errno))?;
        }
        let note = at("note what is done to", &self.record.workspace);
        journal.watch(&mut workspace).map_err(&note)?;
        let how = Look { only: &only, may_open: is_begun, goal: Goal::Changes };
        let mut found = self.find(&mut upper, &mut workspace, &journal, options.protected, how)?;
        let mut changes = std::mem::take(&mut found.changes);
        check_selected(&changes, &only)?;
        if !options.force && changes.iter().any(|change| change.conflict) {
            settle(&mut workspace)?;
            changes.retain(|change| change.conflict);
            return Ok(Applied::Conflicts(changes));
        }
        let own = own_name(&self.id);
        let prepare = at_errno("prepare", &self.record.workspace);
        let apply = Apply::new(&mut upper, &journal, workspace, &own, &mut found).map_err(prepare)?;
        self.set_state(State::Applying)?;
        journal.note(Deed::Touched, &found.linked).map_err(&note)?;
        let done = apply.all(&changes, &found.folders);
        // Also after a failure: what comes later is not its doing.
        let ended = journal.end(moment()).map_err(&note);
        done.and(ended)?;
        if only.is_empty() {
            self.set_state(State::Applied)?;
        }
        Ok(Applied::Done(changes))
    }

    /// Copies a file or a tree, as the command left it, to a path that does not exist yet: one that the caller chooses, links on
    /// the way followed, or the same one in the workspace, where no link is followed and missing folders are made. Links are
    /// copied as links, unless they lead out; those, special files, and what of the workspace is `hidden` (absolute, or relative
    /// to it) are left out and named. After a failure there is nothing at the destination.
    ///
    /// # Errors
    /// [`Error::NotInside`], [`Error::NoArtifact`]; [`Error::Exists`]; [`Error::NoFolder`]; those of reading and writing.
    pub fn artifact(&self, path: &Path, destination: Option<&Path>, hidden: &[PathBuf]) -> Result<Vec<LeftOut>, Error> {
        let path = self.inside(path)?;
        let hidden = hidden.iter().map(|path| self.inside(path)).collect::<Result<BTreeSet<_>, _>>()?;
        let (mut upper, mut workspace) = (self.open_upper()?, self.open_workspace()?);
        artifact::copy(&mut upper, &mut workspace, &self.id, (&path, destination), &hidden, &self.open_journal()?)
    }

    /// Takes out of the workspace what an interrupted apply left unfinished there, and gives folders the permissions back that
    /// they had. What is applied stays. Nothing is done in what is no longer the workspace.
    pub(super) fn tidy(&self) -> Result<(), Error> {
        if self.record.state != State::Applying {
            return Ok(());
        }
        let Ok(mut workspace) = self.open_workspace() else { return Ok(()) };
        let (mut upper, journal) = (self.open_upper()?, self.open_journal()?);
        shut_again(&journal, &mut workspace)?;
        let how = Look { only: &BTreeSet::new(), may_open: true, goal: Goal::Folders };
        let mut found = self.find(&mut upper, &mut workspace, &journal, &Protected::default(), how)?;
        let own = own_name(&self.id);
        let prepare = at_errno("prepare", &self.record.workspace);
        let apply = Apply::new(&mut upper, &journal, workspace, &own, &mut found).map_err(prepare)?;
        apply.clear_all(&found.folders)
    }

    fn is_begun(&self) -> bool {
        matches!(self.record.state, State::Applying | State::Applied)
    }

    fn set_state(&mut self, state: State) -> Result<(), Error> {
        self.record.state = state;
        self.record.write(&*self.folder, &self.id)
    }

    fn find(
        &self,
        upper: &mut Upper,
        workspace: &mut Tree,
        journal: &Journal,
        protected: &Protected,
        how: Look<'_>,
    ) -> Result<Found, Error> {
        let since = Since { start: self.record.start, journal };
        let own = &own_name(&self.id);
        let (run, found) = (self.id.as_str(), Found::default());
        let Look { only, may_open, goal } = how;
        Walk { upper, workspace, protected, only, since, run, own, found, bytes: 0, may_open, goal }.all()
    }

    fn open_upper(&self) -> Result<Upper, Error> {
        let path = self.upper();
        let flags = OFlag::O_PATH | FOLDER;
        let root = openat(&*self.folder, "upper", flags, Mode::empty()).map_err(at_errno("open", &path))?;
        let modes = self.path.join("modes");
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&*self.folder, "modes", flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(file.map_err(at_errno("open", &modes))?);
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(at("read", &modes))?;
        Upper::new(root, Modes::new(file, &text)).map_err(at_errno("open", &path))
    }

    fn open_journal(&self) -> Result<Journal, Error> {
        Journal::open(&*self.folder, &self.path)
    }

    fn open_workspace(&self) -> Result<Tree, Error> {
        let path = &self.record.workspace;
        let tree = Tree::open(path).map_err(at_errno("open", path))?;
        let held = tree.root().try_clone_to_owned().map_err(at("open", path))?;
        let metadata = File::from(held).metadata().map_err(at("look at", path))?;
        if self.record.is_of(&metadata) { Ok(tree) } else { Err(Error::OtherWorkspace(path.clone())) }
    }

    /// A path of the workspace, relative to it.
    fn inside(&self, path: &Path) -> Result<PathBuf, Error> {
        let outside = || Error::NotInside(path.to_owned());
        let relative =
            if path.is_absolute() { path.strip_prefix(&self.record.workspace).map_err(|_| outside())? } else { path };
        let mut clean = PathBuf::new();
        for part in relative.components() {
            match part {
                Component::Normal(name) => clean.push(name),
                Component::CurDir => {}
                _ => return Err(outside()),
            }
        }
        Ok(clean)
    }
}

/// [`Journal::shut_again`], with the error that it is.
fn shut_again(journal: &Journal, workspace: &mut Tree) -> Result<(), Error> {
    journal.shut_again(workspace).map_err(|(path, errno)| at_errno("set the permissions of", &path)(errno))
}

/// There must be something of each path that was asked for.
fn check_selected(changes: &[Change], only: &BTreeSet<PathBuf>) -> Result<(), Error> {
    for path in only {
        // What is in a folder follows it.
        let next = changes.partition_point(|change| change.path < *path);
        if !changes.get(next).is_some_and(|change| change.path.starts_with(path)) {
            return Err(Error::NotChanged(path.clone()));
        }
    }
    Ok(())
}
