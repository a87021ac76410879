//! Where the changes of runs are kept: `…/shannot/runs/RUN`, each with `upper`, `work` and `run.json`. Only their owner can
//! look into it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::sys::statfs::{self, FsType, fstatfs};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Gid, Uid, fchown, geteuid};

use super::error::{Error, at, at_errno};
use super::place;
use super::record::{Record, State, born};
use super::remove::{PATIENCE, remove_until};
use super::run::{Lock, Run};
use super::tree::{FOLDER, Meta, meta_at, name_of};
use crate::sys;

/// What overlayfs refuses as an upper directory, or can't leave its marks in. Not FUSE: that is many file systems, of which
/// some can be one (gocryptfs) and most can't; the mount tells.
const UNFIT: &[(FsType, &str)] = &[
    (statfs::OVERLAYFS_SUPER_MAGIC, "an overlay itself"),
    (statfs::NFS_SUPER_MAGIC, "NFS"),
    // The two of cifs.ko (linux/magic.h, CIFS_SUPER_MAGIC and SMB2_SUPER_MAGIC).
    (FsType(0xff53_4d42), "SMB"),
    (FsType(0xfe53_4d42), "SMB"),
    (statfs::MSDOS_SUPER_MAGIC, "FAT"),
    (statfs::ECRYPTFS_SUPER_MAGIC, "eCryptfs"),
    (FsType(0x0102_1997), "9p"),
];

/// A run that is younger may be about to be locked.
const OLD: Duration = Duration::from_secs(10);

/// How long others hold a run that only look at it.
const MOMENT: Duration = Duration::from_millis(500);

/// How long a run may be kept from its start by what others left.
const HASTY: Duration = Duration::from_secs(10);

/// The beginning of a name that is being removed.
const GONE: &str = ".gone-";

/// A line of `shannot changes list`.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name.
    pub id: String,
    /// What is known of it; nothing where its record is broken.
    pub record: Option<Record>,
    /// A process holds it.
    pub is_in_use: bool,
}

/// The changes of a caller's runs.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    folder: OwnedFd,
}

impl Store {
    /// The caller's: below `$XDG_STATE_HOME`, else `~/.local/state`; for root with a HOME that is not root's alone, with `/` or
    /// with none, `/var/lib`. It is made if there is none.
    ///
    /// # Errors
    /// [`Error::NoPlace`], [`Error::Untrusted`], and those of making folders.
    pub fn of_caller() -> Result<Self, Error> {
        Self::at(&place::of_caller()?)
    }

    /// Below a folder of the caller's choice, which is made if it does not exist.
    ///
    /// # Errors
    /// [`Error::Untrusted`], and those of making folders.
    pub fn at(state: &Path) -> Result<Self, Error> {
        let mut path = place::make(state)?;
        let mut folder = open(&path, FOLDER, Mode::empty()).map_err(at_errno("open", &path))?;
        for name in ["shannot", "runs"] {
            path.push(name);
            match mkdirat(&folder, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(at_errno("make", &path)(errno)),
            }
            folder = openat(&folder, name, FOLDER, Mode::empty()).map_err(at_errno("open", &path))?;
            let meta = Meta::from(fstat(&folder).map_err(at_errno("look at", &path))?);
            if meta.uid != geteuid().as_raw() || meta.mode & 0o022 != 0 {
                return Err(Error::Untrusted(path));
            }
        }
        Ok(Self { path, folder })
    }

    /// A new run on a workspace. What others left behind without changes is swept away.
    ///
    /// # Errors
    /// [`Error::Unfit`] and [`Error::Inside`], where overlayfs would refuse; those of making folders.
    pub fn create(&self, workspace: &Path) -> Result<Run, Error> {
        let workspace = fs::canonicalize(workspace).map_err(at("look at", workspace))?;
        let metadata = fs::metadata(&workspace).map_err(at("look at", &workspace))?;
        if !metadata.is_dir() {
            return Err(at_errno("work in", &workspace)(Errno::ENOTDIR));
        }
        if self.path.starts_with(&workspace) {
            return Err(Error::Inside { store: self.path.clone(), workspace });
        }
        let kind = fstatfs(&self.folder).map_err(at_errno("look at", &self.path))?.filesystem_type();
        if let Some((_, file_system)) = UNFIT.iter().find(|(unfit, _)| *unfit == kind) {
            return Err(Error::Unfit { path: self.path.clone(), file_system });
        }
        self.sweep();
        let (id, lock) = self.make_folder()?;
        for name in ["upper", "work"] {
            mkdirat(&*lock, name, Mode::S_IRWXU).map_err(at_errno("make", &self.path.join(&id).join(name)))?;
        }
        let mode = metadata.mode() & 0o1777;
        make_like(&*lock, &metadata, mode).map_err(at_errno("make", &self.path.join(&id).join("upper")))?;
        let record = Record {
            workspace,
            device: metadata.dev(),
            inode: metadata.ino(),
            born: born(&metadata),
            mode: Some(mode),
            start: moment(),
            state: State::Running,
            exit_code: None,
        };
        record.write(&*lock, &id)?;
        Ok(Run::new(self.path.join(&id), id, lock, record))
    }

    /// A run by its name, by the beginning of it, or the newest by `last`.
    ///
    /// # Errors
    /// [`Error::NoRun`], [`Error::Ambiguous`], [`Error::InUse`], [`Error::Record`].
    pub fn open(&self, name: &str) -> Result<Run, Error> {
        let (id, lock) = self.take(name)?;
        let record = Record::read(&*lock, &id)?;
        Ok(Run::new(self.path.join(&id), id, lock, record))
    }

    /// Removes a run, and what is kept of it. What an interrupted apply left unfinished in the workspace goes too; why some of it
    /// stays is returned beside the run's name.
    ///
    /// # Errors
    /// As [`Store::open`], but for a broken record; those of removing.
    pub fn discard(&self, name: &str) -> Result<(String, Option<Error>), Error> {
        let (id, lock) = self.take(name)?;
        let Ok(record) = Record::read(&*lock, &id) else {
            self.remove(&id, &lock)?;
            return Ok((id, None));
        };
        let run = Run::new(self.path.join(&id), id.clone(), lock, record);
        let left = run.tidy().err();
        self.discard_held(run)?;
        Ok((id, left))
    }

    /// The same of a run that the caller holds, so that nobody comes between.
    ///
    /// # Errors
    /// Those of removing.
    pub fn discard_held(&self, run: Run) -> Result<(), Error> {
        self.remove(run.id(), run.lock())
    }

    /// All runs, the oldest first.
    ///
    /// # Errors
    /// Those of looking into the store.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut runs = Vec::new();
        for id in self.ids()? {
            // Shared: one who looks keeps nobody else from looking.
            match self.lock(&id, FlockArg::LockSharedNonblock) {
                Ok(lock) => runs.push(Listed { record: Record::read(&*lock, &id).ok(), id, is_in_use: false }),
                Err(Error::InUse(_)) => {
                    let folder = openat(&self.folder, id.as_str(), FOLDER, Mode::empty());
                    let record = folder.ok().and_then(|folder| Record::read(folder, &id).ok());
                    runs.push(Listed { id, record, is_in_use: true });
                }
                // Gone meanwhile.
                Err(_) => {}
            }
        }
        runs.sort_by_key(|run| {
            let start = run.record.as_ref().map(|record| record.start);
            (run.id.get(..15).map(str::to_owned), start, run.id.clone())
        });
        Ok(runs)
    }

    fn names(&self) -> Result<Vec<OsString>, Error> {
        let look = at_errno("look into", &self.path);
        let mut stream = Dir::openat(&self.folder, ".", FOLDER, Mode::empty()).map_err(&look)?;
        let mut names = Vec::new();
        for entry in stream.iter() {
            names.extend(name_of(entry.map_err(&look)?.file_name().to_bytes()));
        }
        names.sort();
        Ok(names)
    }

    fn ids(&self) -> Result<Vec<String>, Error> {
        Ok(self.names()?.into_iter().filter_map(|name| name.into_string().ok()).filter(|name| is_id(name)).collect())
    }

    fn take(&self, name: &str) -> Result<(String, Lock), Error> {
        let none = || Error::NoRun(name.to_owned());
        let id = if name == "last" {
            self.list()?.pop().ok_or_else(none)?.id
        } else {
            let mut runs: Vec<String> = self.ids()?.into_iter().filter(|id| id.starts_with(name)).collect();
            match (runs.pop(), runs.is_empty()) {
                (Some(id), true) if !name.is_empty() => id,
                (Some(id), false) if !name.is_empty() => {
                    runs.push(id);
                    return Err(Error::Ambiguous { prefix: name.to_owned(), runs });
                }
                _ => return Err(none()),
            }
        };
        // Others hold it for a moment, to list it or to see whether it is to be swept away.
        let until = Instant::now() + MOMENT;
        loop {
            match self.lock(&id, FlockArg::LockExclusiveNonblock) {
                Err(Error::InUse(_)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                result => return result.map(|lock| (id, lock)),
            }
        }
    }

    fn lock(&self, id: &str, how: FlockArg) -> Result<Lock, Error> {
        let failed = at_errno("lock", &self.path.join(id));
        match lock_folder(&self.folder, id, how) {
            Ok(lock) => Ok(lock),
            Err(Errno::EWOULDBLOCK) => Err(Error::InUse(id.to_owned())),
            // Removed before it was locked.
            Err(Errno::ENOENT) => Err(Error::NoRun(id.to_owned())),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn make_folder(&self) -> Result<(String, Lock), Error> {
        loop {
            let id = new_id();
            match mkdirat(&self.folder, id.as_str(), Mode::S_IRWXU) {
                Ok(()) => {}
                Err(Errno::EEXIST) => continue,
                Err(errno) => return Err(at_errno("make", &self.path.join(id))(errno)),
            }
            // Whoever lists or sweeps may have it for a moment.
            match self.lock(&id, FlockArg::LockExclusive) {
                Err(Error::NoRun(_)) => {}
                result => return result.map(|lock| (id, lock)),
            }
        }
    }

    /// The name goes first: what is half removed is no run any more.
    fn remove(&self, id: &str, held: &Lock) -> Result<(), Error> {
        self.remove_until(id, held, Instant::now() + PATIENCE)
    }

    fn remove_until(&self, id: &str, _held: &Lock, until: Instant) -> Result<(), Error> {
        let failed = at_errno("remove", &self.path.join(id));
        let gone = format!("{GONE}{id}");
        renameat(&self.folder, id, &self.folder, gone.as_str()).map_err(&failed)?;
        remove_until(&self.folder, OsStr::new(&gone), until).map_err(&failed)
    }

    /// Removes runs without changes that no process holds, and what a killed removal left. That some can't be removed keeps
    /// nobody from running, nor does that it takes long: the next run goes on.
    fn sweep(&self) {
        let until = Instant::now() + HASTY;
        for name in self.names().unwrap_or_default() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(GONE) || is_id(name)) else { continue };
            if Instant::now() >= until {
                return;
            }
            // What is being removed is still held by whoever does it.
            let Ok(lock) = lock_folder(&self.folder, name, FlockArg::LockExclusiveNonblock) else { continue };
            let swept = if name.starts_with(GONE) {
                remove_until(&self.folder, OsStr::new(name), until).map_err(at_errno("remove", &self.path))
            } else if is_left(&lock, name) {
                self.remove_until(name, &lock, until)
            } else {
                continue;
            };
            if swept.is_err() {
                // The next run tries again.
            }
        }
    }
}

/// Locks a folder (flock(2)). ENOENT, if the name is no longer its: somebody has removed it meanwhile.
fn lock_folder(parent: impl AsFd, name: &str, how: FlockArg) -> nix::Result<Lock> {
    let folder = openat(&parent, name, FOLDER, Mode::empty())?;
    let lock = Flock::lock(folder, how).map_err(|(_, errno)| errno)?;
    let is_same = meta_at(parent, name.as_ref())?.identity() == Meta::from(fstat(&*lock)?).identity();
    if is_same { Ok(lock) } else { Err(Errno::ENOENT) }
}

/// Nothing was changed, and nobody is about to.
fn is_left(folder: &Lock, id: &str) -> bool {
    let is_old = fstat(&**folder).is_ok_and(|stat| {
        let seconds = Duration::from_secs(stat.st_mtime.unsigned_abs());
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + seconds).is_ok_and(|age| age > OLD)
    });
    let is_empty = || match Dir::openat(&**folder, "upper", FOLDER, Mode::empty()) {
        Ok(mut upper) => {
            upper.iter().all(|entry| entry.is_ok_and(|entry| name_of(entry.file_name().to_bytes()).is_none()))
        }
        Err(errno) => errno == Errno::ENOENT,
    };
    is_old && is_empty() && has_its_mode(folder, id)
}

/// The workspace's own permissions are a change too.
fn has_its_mode(folder: &Lock, id: &str) -> bool {
    let record = match Record::read(&**folder, id) {
        Ok(record) => record,
        // Killed before its command could start.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return true,
        Err(_) => return false,
    };
    // What is noted was changed to be looked at.
    let is_noted = meta_at(&**folder, "modes".as_ref()).is_ok_and(|meta| meta.size > 0);
    let mode = meta_at(&**folder, "upper".as_ref()).ok().map(|meta| meta.mode & 0o1777);
    !is_noted && mode.is_none_or(|mode| Some(mode) == record.mode)
}

/// Gives `upper` the permissions and the owner of the workspace: it is what the command sees as the folder's own.
fn make_like(folder: impl AsFd, workspace: &fs::Metadata, mode: u32) -> nix::Result<()> {
    let upper = openat(folder, "upper", OFlag::O_RDONLY | FOLDER, Mode::empty())?;
    if geteuid().is_root() {
        fchown(&upper, Some(Uid::from_raw(workspace.uid())), Some(Gid::from_raw(workspace.gid())))?;
    }
    fchmod(&upper, Mode::from_bits_truncate(mode))
}

fn is_id(name: &str) -> bool {
    let shape = "00000000-000000-0000";
    name.len() == shape.len()
        && name.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
            b'-' => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The time (UTC), and something that two of the same second differ in.
fn new_id() -> String {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let digits: String = time.chars().filter(char::is_ascii_digit).collect();
    let (date, time) = digits.split_at_checked(8).unwrap_or((&digits, ""));
    format!("{date}-{time}-{:04x}", sys::unguessable() & 0xffff)
}

/// Now, and not before file systems would say later: they take the time of the last tick, a few milliseconds ago. What was
/// changed before this call is then older, and what is changed after it is younger.
pub(super) fn moment() -> (i64, i64) {
    let now = |clock| clock_gettime(clock).map_or((0, 0), |time| (time.tv_sec(), time.tv_nsec()));
    let moment = now(ClockId::CLOCK_REALTIME);
    for _ in 0..100 {
        if now(ClockId::CLOCK_REALTIME_COARSE) > moment {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    moment
}
