//! What the runner's own stages leave in a job's folder, and the author's must not find there: files of variables, and git's
//! configurations with the job's token. No process of the job lives meanwhile; but its folder is as hostile as the job, so that
//! no link in it is followed.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::folder::OPEN;
use super::script::Secrets;
use crate::host::open_without_links;
use crate::removal::{self, Whose, grant_owner_access};
use crate::sys;

/// What jobs hand from one script to the next: `$GITLAB_ENV`, and what `git config --global` wrote. The runner puts no secrets
/// there (gitlab-runner, shells/abstract.go).
const KEPT: &[&[u8]] = &[b"gitlab_runner_env", b".glr.gconf"];
/// Where no configuration is, and much else (gitrepository-layout(5)).
const NO_CONFIG: &[&[u8]] = &[b"objects", b"refs", b"logs", b"hooks", b"info", b"lfs"];
/// No text of git's or of the runner's is longer.
const LONGEST: u64 = 1 << 20;
/// Submodules in submodules, and slashes in their names.
const DEEPEST: usize = 16;
const MOST: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(600);

/// Removes it, below the workspace of a job: in the folder for files of the runner's, and in the project's repository. A
/// repository of an older runner has the token in its configuration.
pub(super) fn remove(job: &Path, files: &Path, project: &Path, secrets: &Secrets) -> nix::Result<()> {
    let job = open_without_links(job)?;
    if let Some(files) = below(&job, files)? {
        empty(&files)?;
        for name in KEPT {
            mask(&files, name, secrets)?;
        }
    }
    match below(&job, &project.join(".git")) {
        Ok(Some(git)) => {
            mask(&git, b"config", secrets)?;
            let mut most = MOST;
            mask_modules(&git, c"modules", secrets, DEEPEST, &mut most)
        }
        // A link, or a file: not the runner's doing.
        Ok(None) | Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// None, if there is none.
fn below(folder: &OwnedFd, path: &Path) -> nix::Result<Option<OwnedFd>> {
    let mut found = openat(folder, c".", OPEN, Mode::empty())?;
    for part in path.components() {
        let Component::Normal(name) = part else { return Err(Errno::EINVAL) };
        found = match openat(&found, name, OPEN, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
    }
    Ok(Some(found))
}

/// All but what is kept.
fn empty(folder: &OwnedFd) -> nix::Result<()> {
    let mut names = Vec::new();
    for entry in Dir::openat(folder, c".", OPEN, Mode::empty())?.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") && !KEPT.contains(&name.to_bytes()) {
            names.push(name);
        }
    }
    let until = Instant::now() + PATIENCE;
    names.iter().try_for_each(|name| remove_one(folder, name, until))
}

fn remove_one(parent: &OwnedFd, name: &CStr, until: Instant) -> nix::Result<()> {
    match openat(parent, name, OPEN | OFlag::O_PATH, Mode::empty()) {
        Ok(folder) => {
            grant_owner_access(&folder, &fstat(&folder)?);
            removal::remove(parent, name, folder.as_fd(), Whose::Own, until)
        }
        Err(Errno::ENOTDIR | Errno::ELOOP) => unlinkat(parent, name, UnlinkatFlags::NoRemoveDir),
        Err(errno) => Err(errno),
    }
}

/// The configurations in a folder, and in the folders in it.
fn mask_modules(parent: &OwnedFd, name: &CStr, secrets: &Secrets, depth: usize, most: &mut usize) -> nix::Result<()> {
    let folder = match openat(parent, name, OPEN, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    mask(&folder, b"config", secrets)?;
    *most = most.checked_sub(1).ok_or(Errno::E2BIG)?;
    let depth = depth.checked_sub(1).ok_or(Errno::E2BIG)?;
    for entry in Dir::openat(&folder, c".", OPEN, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        let is_other = matches!(name.to_bytes(), b"." | b"..") || NO_CONFIG.contains(&name.to_bytes());
        if !is_other && matches!(entry.file_type(), Some(Type::Directory) | None) {
            mask_modules(&folder, name, secrets, depth, most)?;
        }
    }
    Ok(())
}

/// Takes secrets out of a file. What is no file is not the runner's doing.
fn mask(folder: &OwnedFd, name: &[u8], secrets: &Secrets) -> nix::Result<()> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let mut file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT | Errno::ELOOP | Errno::EISDIR | Errno::ENXIO) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let errno_of = |error: io::Error| sys::errno_of(&error);
    let metadata = file.metadata().map_err(errno_of)?;
    if !metadata.is_file() {
        return Ok(());
    }
    if metadata.len() > LONGEST {
        return Err(Errno::EFBIG);
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(errno_of)?;
    let (clean, found) = secrets.mask(&text);
    if found.is_empty() {
        return Ok(());
    }
    let length = clean.len() as u64;
    file.rewind().and_then(|()| file.write_all(&clean)).and_then(|()| file.set_len(length)).map_err(errno_of)
}
