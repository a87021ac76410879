//! Reading files that decide what a sandbox is: opened once, regular, bounded, and, for root, changeable by nobody else.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::error::ProfileError;

/// No profile and no filter is this large; a filter has at most 32 KiB.
const LARGEST: u64 = 1 << 20;
/// The kernel's own limit (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The whole of a small regular file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ProfileError> {
    let refuse = |cause| ProfileError::Read { path: path.to_owned(), cause };
    // O_NONBLOCK: a FIFO is refused below instead of waited for.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(refuse)?;
    let metadata = file.metadata().map_err(refuse)?;
    if !metadata.is_file() {
        return Err(ProfileError::NotAFile(path.to_owned()));
    }
    if nix::unistd::geteuid().is_root() {
        check_file(path, &metadata)?;
        check_way(&std::path::absolute(path).map_err(refuse)?, 0)?;
    }
    let mut text = Vec::with_capacity(usize::try_from(metadata.len().min(LARGEST)).unwrap_or(0));
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(refuse)?;
    if text.len() as u64 > LARGEST {
        return Err(ProfileError::TooLarge { path: path.to_owned(), limit: LARGEST });
    }
    Ok(text)
}

fn check_file(path: &Path, metadata: &Metadata) -> Result<(), ProfileError> {
    match who_else_writes(metadata) {
        Some(why) => Err(ProfileError::Untrusted { path: path.to_owned(), why }),
        None => Ok(()),
    }
}

/// Each folder and link on the way: who can change one of them decides which file is read.
fn check_way(path: &Path, links: usize) -> Result<(), ProfileError> {
    let refuse = |path: &Path, cause| ProfileError::Read { path: path.to_owned(), cause };
    if links > MOST_LINKS {
        return Err(refuse(path, io::Error::from_raw_os_error(libc::ELOOP)));
    }
    let mut so_far = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        so_far.push(component);
        let metadata = so_far.symlink_metadata().map_err(|cause| refuse(&so_far, cause))?;
        if metadata.is_symlink() {
            if metadata.uid() != 0 {
                return Err(ProfileError::Untrusted { path: so_far, why: owner(&metadata) });
            }
            let text = so_far.read_link().map_err(|cause| refuse(&so_far, cause))?;
            so_far.pop();
            return check_way(&so_far.join(text).join(components.as_path()), links + 1);
        }
        // In a sticky folder such as /tmp nobody can replace what root owns there (chmod(2)).
        let is_sticky = metadata.mode() & libc::S_ISVTX != 0 && metadata.uid() == 0;
        if metadata.is_dir() && !is_sticky {
            check_file(&so_far, &metadata)?;
        }
    }
    Ok(())
}

fn who_else_writes(metadata: &Metadata) -> Option<String> {
    if metadata.uid() != 0 {
        return Some(owner(metadata));
    }
    if metadata.mode() & 0o002 != 0 {
        return Some("anybody can write to it".to_owned());
    }
    (metadata.mode() & 0o020 != 0 && metadata.gid() != 0).then(|| format!("group {} can write to it", metadata.gid()))
}

fn owner(metadata: &Metadata) -> String {
    format!("it belongs to user {}", metadata.uid())
}
