//! Files that stand where a job could otherwise put something that git follows: a name that exists can be bound over itself
//! inside, read-only. They are gone after the run, unless another run needs them.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::{Error, read};
use crate::host::open_without_links;
use crate::policy::{FsOp, Policy};
use crate::sys;

/// To git this file says what it assumes without it (gitrepository-layout(5)). Runs that need the guards of a folder hold a
/// shared lock on it, and the last one takes them away.
const COMMON: &str = "commondir";
const ITSELF: &[u8] = b".\n";
/// The same for a folder of hooks,
const HOOKS: &str = "hooks";
/// and for configurations: the second one is a worktree's (git-worktree(1)).
const CONFIGS: [&str; 2] = ["config", "config.worktree"];

/// The sticky bit: it means nothing here, and says whose a file is, also after its maker was killed.
const OURS: libc::mode_t = libc::S_ISVTX;

/// Another run takes its guards away: a few system calls.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Guards {
    held: Vec<(PathBuf, Guard)>,
}

impl Guards {
    /// Makes what is missing.
    pub(super) fn make(policy: &mut Policy) -> Result<Self, Error> {
        let Some(workspace) = &policy.workspace else { return Ok(Self { held: Vec::new() }) };
        let mut held = Vec::new();
        for (index, path) in workspace.guards.iter().enumerate() {
            let failed = |errno| Error::new("guard", path, errno);
            // Below a descriptor: a job before may have left links, and one beside may put them there.
            let folder = open_without_links(path).map_err(failed)?;
            // Submodules have a worktree where git looks for it anyway.
            let worktree = (index == 0).then_some(workspace.path.as_path());
            refuse_elsewhere(path, &folder, worktree)?;
            held.push((path.clone(), Guard::make(folder).map_err(failed)?));
        }
        let is_guarded = |path: &Path| workspace.guards.iter().any(|guarded| path.starts_with(guarded));
        for op in &mut policy.fs {
            match op {
                // They are there now. If they are not any more, nothing runs.
                FsOp::Bind { source, optional, .. } if is_guarded(source) => *optional = false,
                _ => {}
            }
        }
        Ok(Self { held })
    }

    /// Configurations that somebody on the host has changed meanwhile: a file that is renamed over another takes the mounts on it
    /// away in every mount namespace (mount_namespaces(7)), so that the job could then change the new one.
    pub(super) fn changed(&self) -> Vec<PathBuf> {
        let changed = |(path, guard): &(PathBuf, Guard)| {
            let names = CONFIGS.iter().zip(&guard.configs);
            let names = names.filter(|(name, before)| version(&guard.folder, name) != **before);
            names.map(|(name, _)| path.join(name)).collect::<Vec<_>>()
        };
        self.held.iter().flat_map(changed).collect()
    }
}

/// Where there is a `commondir`, git heeds neither `core.worktree` nor `core.bare` (its setup.c): it would work on another folder
/// while a job runs. `worktree`: the one place where it may say that the work is; no matter, where there is none.
fn refuse_elsewhere(path: &Path, folder: &OwnedFd, worktree: Option<&Path>) -> Result<(), Error> {
    let config = read(folder, "config").map_err(|errno| Error::new("read", &path.join("config"), errno))?;
    let config = config.unwrap_or_default();
    let is_at =
        |value: &str, place: &Path| path.join(value.trim_matches('"')).canonicalize().is_ok_and(|said| said == place);
    let is_elsewhere = |value: &str| worktree.is_some_and(|worktree| !is_at(value, worktree));
    let says = |line: &str| {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        key == "worktree" && is_elsewhere(value) || key == "bare" && value.eq_ignore_ascii_case("true")
    };
    match config.lines().any(says) {
        true => Err(Error {
            hint: Some(
                "its core.worktree or core.bare says that the work is elsewhere: take --workspace-mode overlay or ro",
            ),
            ..Error::new("guard", path, Errno::EOPNOTSUPP)
        }),
        false => Ok(()),
    }
}

#[derive(Debug)]
struct Guard {
    folder: OwnedFd,
    /// Taken out where it is dropped.
    lock: Option<Flock<OwnedFd>>,
    /// Which files the configurations were, and when they were changed.
    configs: [Option<Version>; 2],
}

/// Device, inode, and the time of its last change (seconds, nanoseconds).
type Version = (u64, u64, i64, i64);

fn version(folder: &OwnedFd, name: &str) -> Option<Version> {
    let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec))
}

impl Guard {
    fn make(folder: OwnedFd) -> nix::Result<Self> {
        let lock = share(&folder)?;
        let mut guard = Self { folder, lock: Some(lock), configs: [None; 2] };
        match mkdirat(&guard.folder, HOOKS, Mode::from_bits_truncate(0o755 | OURS)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        CONFIGS.iter().try_for_each(|name| create(&guard.folder, name, b""))?;
        guard.configs = CONFIGS.map(|name| version(&guard.folder, name));
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Another run may have them bound; to remove them would unmount them there.
        let Some(lock) = self.lock.take() else { return };
        let Ok(_alone) = lock.relock(FlockArg::LockExclusiveNonblock) else { return };
        let is_ours = |name| {
            fstatat(&self.folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().filter(|stat| stat.st_mode & OURS != 0)
        };
        let is_as_made = |name, text: &[u8]| {
            is_ours(name).is_some()
                && read(&self.folder, name).is_ok_and(|now| now.is_some_and(|now| now.as_bytes() == text))
        };
        let gone = [
            is_ours(HOOKS).map(|_| unlinkat(&self.folder, HOOKS, UnlinkatFlags::RemoveDir)),
            is_as_made(CONFIGS[0], b"").then(|| unlinkat(&self.folder, CONFIGS[0], UnlinkatFlags::NoRemoveDir)),
            is_as_made(CONFIGS[1], b"").then(|| unlinkat(&self.folder, CONFIGS[1], UnlinkatFlags::NoRemoveDir)),
            // Whoever waits for the lock then makes a new one.
            is_as_made(COMMON, ITSELF).then(|| unlinkat(&self.folder, COMMON, UnlinkatFlags::NoRemoveDir)),
        ];
        if gone.into_iter().flatten().any(|gone| gone.is_err()) {
            // No longer empty: somebody on the host uses it. What stays harms nobody, and the next run tries again.
        }
    }
}

/// A shared lock on the file that has the name as long as it is held. A worktree has one of its own.
fn share(folder: &OwnedFd) -> nix::Result<Flock<OwnedFd>> {
    let until = Instant::now() + PATIENCE;
    loop {
        create(folder, COMMON, ITSELF)?;
        match try_share(folder) {
            // Whoever has it alone removes it: then it is another file, or none.
            Err(Errno::EWOULDBLOCK | Errno::ENOENT | Errno::ESTALE) if Instant::now() < until => sleep(PAUSE),
            result => return result,
        }
    }
}

fn try_share(folder: &OwnedFd) -> nix::Result<Flock<OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = openat(folder, COMMON, flags, Mode::empty())?;
    let lock = Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno)?;
    let identity = |stat: FileStat| (stat.st_dev, stat.st_ino);
    let named = fstatat(folder, COMMON, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if identity(fstat(lock.as_fd())?) == identity(named) { Ok(lock) } else { Err(Errno::ESTALE) }
}

/// One that is there stays as it is. It appears with its text: an empty one would keep git from working, also after a kill.
fn create(folder: &OwnedFd, name: &str, text: &[u8]) -> nix::Result<()> {
    let (flags, mode) = (OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o644 | OURS));
    let fill = |file: OwnedFd| {
        let mut file = File::from(file);
        file.write_all(text).map(|()| file).map_err(|error| sys::errno_of(&error))
    };
    let linked = openat(folder, ".", flags | OFlag::O_TMPFILE, mode)
        .and_then(fill)
        .and_then(|file| linkat(AT_FDCWD, &sys::proc_path(&file), folder, name, AtFlags::AT_SYMLINK_FOLLOW));
    let made = match linked {
        // Not every file system has files without names, nor every host a /proc.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => {
            openat(folder, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode).and_then(fill).map(drop)
        }
        linked => linked,
    };
    if made == Err(Errno::EEXIST) { Ok(()) } else { made }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn made(path: &Path) -> Guard {
        Guard::make(open_without_links(path).unwrap()).unwrap()
    }

    fn repository(config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config"), config).unwrap();
        folder
    }

    #[test]
    fn the_last_one_takes_away_what_any_had_made_and_a_killed_one_left() {
        let folder = repository("[core]\n");
        let path = folder.path().canonicalize().unwrap();
        let all = ["commondir", "config", "config.worktree", "hooks"];
        for first_ends_first in [true, false] {
            let (first, second) = (made(&path), made(&path));
            let (now, later) = if first_ends_first { (first, second) } else { (second, first) };
            drop(now);
            assert_eq!(names(&path), all);
            drop(later);
            assert_eq!(names(&path), ["config"]);
        }
        let mut killed = made(&path);
        drop(killed.lock.take());
        drop(killed);
        assert_eq!(names(&path), all);
        drop(made(&path));
        assert_eq!(names(&path), ["config"]);
    }

    #[test]
    fn what_is_not_ours_or_is_used_stays() {
        let folder = repository("");
        let path = folder.path().canonicalize().unwrap();
        fs::create_dir(path.join("hooks")).unwrap();
        drop(made(&path));
        assert_eq!(names(&path), ["config", "hooks"]);
        fs::write(path.join("commondir"), "../..\n").unwrap();
        drop(made(&path));
        assert_eq!(fs::read_to_string(path.join("commondir")).unwrap(), "../..\n");
        fs::remove_file(path.join("commondir")).unwrap();
        fs::remove_dir(path.join("hooks")).unwrap();
        let guard = made(&path);
        fs::write(path.join("hooks/pre-commit"), "").unwrap();
        drop(guard);
        assert_eq!(names(&path), ["config", "hooks"]);
    }

    #[test]
    fn whoever_comes_while_another_goes_has_the_file_that_is_there() {
        let folder = repository("");
        let path = folder.path().canonicalize().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        drop(made(&path));
                    }
                });
            }
            for _ in 0..500 {
                let guard = made(&path);
                let held = guard.lock.as_ref().unwrap().as_fd().try_clone_to_owned().unwrap();
                let named = fstatat(&guard.folder, COMMON, AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
                assert_eq!(fstat(&held).unwrap().st_ino, named.st_ino);
                assert!(path.join("hooks").is_dir());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(names(&path), ["config"]);
    }
}
