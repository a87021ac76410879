//! The folder that a job of GitLab's has for itself, from `config` to `cleanup`: `job` in it is what every stage works in, and
//! nothing else of the host is written. Where it is comes from the runner alone.

use std::ffi::{CStr, CString};
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::unistd::geteuid;

use crate::cli::output::{Complaint, note};
use crate::host::{is_unique_name, open_without_links, safe_folder, unique_name};
use crate::removal::{self, Whose};

/// Followed by 16 hexadecimal digits.
const NAME: &str = "shannot-job-";
/// What is in it: the workspace, with the runner's two folders.
const JOB: &str = "job";
const BUILDS: &str = "builds";
const CACHE: &str = "cache";
/// Each stage changes the folder. A runner lets less time go by between two of them.
const LEFT: Duration = Duration::from_secs(24 * 60 * 60);
/// For what others left, before a job begins; what is left then, the next job removes.
const HASTY: Duration = Duration::from_secs(60);
/// More than a disk needs, and less than the hour that the runner gives it.
const PATIENT: Duration = Duration::from_secs(1800);

/// What opens a folder of a job, and no link.
pub(super) const OPEN: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A job's folder, held by this process against those that sweep.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    parent: OwnedFd,
    name: CString,
    held: Flock<OwnedFd>,
}

fn failed(verb: &str, path: &Path, error: impl Into<io::Error>) -> Complaint {
    Complaint::new("gitlab", &error.into(), None).about(format!("cannot {verb} {}", path.display()))
}

/// A folder of which nobody else can take anything away; made, if there is none.
pub(super) fn base(path: &Path) -> Result<PathBuf, Complaint> {
    const CURE: &str =
        "--builds DIR and --cache DIR name a folder that you own and nobody else can write to, nor any folder above it";
    if !path.is_absolute() {
        return Err(Complaint::plain("gitlab", format!("cannot use {}: it is no absolute path", path.display())));
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| failed("make", path, error).with_hint(CURE))?;
    safe_folder(path).ok_or_else(|| {
        let what = format!("cannot use {}: others could replace what is in it, or it can't be written", path.display());
        Complaint::plain("gitlab", what).with_hint(CURE)
    })
}

impl Folder {
    /// A new one. Those that killed jobs left go.
    pub(super) fn make(base: &Path) -> Result<Self, Complaint> {
        let parent = open_without_links(base).map_err(|errno| failed("open", base, errno))?;
        sweep(&parent);
        let name = unique_name(NAME);
        let path = base.join(&name);
        mkdirat(&parent, name.as_str(), Mode::S_IRWXU).map_err(|errno| failed("make", &path, errno))?;
        let folder = Self::take(&path)?
            .ok_or_else(|| failed("open", &path, Errno::ENOENT).with_hint("who removes folders there?"))?;
        for below in [JOB, "job/builds", "job/cache"] {
            mkdirat(&*folder.held, below, Mode::S_IRWXU).map_err(|errno| failed("make", &path.join(below), errno))?;
        }
        Ok(folder)
    }

    /// One that [`Folder::make`] made, if it is still there. What else the path may name is refused.
    pub(super) fn take(path: &Path) -> Result<Option<Self>, Complaint> {
        let refuse = |why: &str| Complaint::plain("gitlab", format!("cannot use {}: {why}", path.display()));
        let (Some(base), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refuse("it is no job's folder"));
        };
        if !path.is_absolute() || !is_unique_name(name.as_bytes(), NAME) {
            return Err(refuse("it is no job's folder"));
        }
        let name = CString::new(name.as_bytes()).map_err(|error| failed("open", path, error))?;
        let parent = match open_without_links(base) {
            Err(Errno::ENOENT) => return Ok(None),
            parent => parent.map_err(|errno| failed("open", base, errno))?,
        };
        let opened = match openat(&parent, name.as_c_str(), OPEN, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            opened => opened.map_err(|errno| failed("open", path, errno))?,
        };
        if !is_own(&fstat(&opened).map_err(|errno| failed("look at", path, errno))?) {
            return Err(refuse("it belongs to somebody else, or others have rights to it"));
        }
        let held = Flock::lock(opened, FlockArg::LockSharedNonblock)
            .map_err(|(_, errno)| failed("hold", path, errno).with_hint("it is being removed"))?;
        Ok(Some(Self { path: path.to_owned(), parent, name, held }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What a stage may write: its workspace.
    pub(super) fn job(&self) -> PathBuf {
        self.path.join(JOB)
    }

    pub(super) fn builds(&self) -> PathBuf {
        self.job().join(BUILDS)
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.job().join(CACHE)
    }

    /// Gives back the rights to its workspace that a stage may have taken: the next one would fail as if the host did.
    pub(super) fn unlock(&self) {
        if let Ok(job) = openat(&*self.held, JOB, OPEN | OFlag::O_PATH, Mode::empty())
            && let Ok(stat) = fstat(&job)
        {
            removal::grant_owner_access(&job, &stat);
        }
    }

    /// A script for one stage, beside what the job can see and write.
    pub(super) fn script(&self, text: &[u8]) -> Result<Script, Complaint> {
        let script = Script(self.path.join(unique_name("script-")));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&script.0);
        file.and_then(|mut file| file.write_all(text)).map_err(|error| failed("write", &script.0, error))?;
        Ok(script)
    }

    /// Removes it with all that is in it.
    pub(super) fn remove(self) -> Result<(), Complaint> {
        removal::remove(&self.parent, &self.name, self.held.as_fd(), Whose::Own, Instant::now() + PATIENT)
            .map_err(|errno| failed("remove", &self.path, errno))
    }
}

/// A script's file, gone with this.
#[derive(Debug)]
pub(super) struct Script(PathBuf);

impl Script {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It goes with the job's folder at the latest, and is no reason for another verdict on the job.
        if let Err(error) = std::fs::remove_file(&self.0) {
            note(&format!("shannot: cannot remove {}: {error}", self.0.display()));
        }
    }
}

fn is_own(stat: &FileStat) -> bool {
    stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0
}

/// Removes folders of jobs whose runner was killed. That some can't be removed keeps no job from running.
fn sweep(parent: &OwnedFd) {
    let until = Instant::now() + HASTY;
    let Ok(mut entries) = Dir::openat(parent, c".", OPEN, Mode::empty()) else { return };
    for entry in entries.iter().map_while(Result::ok) {
        let name = entry.file_name();
        if let Some(held) = hold_left(parent, name)
            && removal::remove(parent, name, held.as_fd(), Whose::Own, until).is_err()
        {
            // The next job tries again.
        }
    }
}

/// Takes a folder that no stage works in, and has not for long.
fn hold_left(parent: &OwnedFd, name: &CStr) -> Option<Flock<OwnedFd>> {
    if !is_unique_name(name.to_bytes(), NAME) {
        return None;
    }
    let folder = openat(parent, name, OPEN, Mode::empty()).ok()?;
    let held = Flock::lock(folder, FlockArg::LockExclusiveNonblock).ok()?;
    let stat = fstat(&*held).ok()?;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    (is_own(&stat) && changed.elapsed().is_ok_and(|age| age > LEFT)).then_some(held)
}
