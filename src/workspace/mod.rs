//! What a run on a workspace needs on the host before its sandbox is made, and takes away again: places in git's folders that
//! nothing may be put into, git's configuration without tokens, folders of caches.

mod cache;
mod config;
mod guard;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use self::guard::Guards;
use crate::policy::Policy;
use crate::sys;

/// Why the host could not be prepared. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", .path.display())]
pub struct Error {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
    hint: Option<&'static str>,
}

impl Error {
    fn new(verb: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { verb, path: path.to_owned(), source: source.into(), hint: None }
    }

    /// The cure, where one is known.
    pub fn hint(&self) -> Option<String> {
        self.hint.map(str::to_owned)
    }
}

/// What a policy's run relies on, as long as this lives.
#[derive(Debug)]
pub struct Prepared {
    guards: Guards,
    /// What the policy reads configurations from.
    _configs: Vec<OwnedFd>,
}

impl Prepared {
    /// Makes it, and lets the policy show git's configurations without their tokens.
    ///
    /// # Errors
    /// [`Error`], also where it can't be found out what a configuration holds.
    pub fn new(policy: &mut Policy) -> Result<Self, Error> {
        cache::make(policy)?;
        let guards = Guards::make(policy)?;
        Ok(Self { _configs: config::hide_tokens(policy)?, guards })
    }

    /// Configurations of git's that were changed on the host while the command ran, and that it could therefore change too.
    pub fn changed(&self) -> Vec<PathBuf> {
        self.guards.changed()
    }
}

/// Bytes of a text of git's that are read. It has far less.
const MOST: u64 = 1 << 20;

/// A text of git's; none where there is no file of that name. EFBIG for one that can't be one.
fn read(folder: &OwnedFd, name: &str) -> nix::Result<Option<String>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let errno_of = |error: io::Error| sys::errno_of(&error);
    if !file.metadata().map_err(errno_of)?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    match file.take(MOST + 1).read_to_end(&mut text) {
        Ok(length) if length as u64 > MOST => Err(Errno::EFBIG),
        Ok(_) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) => Err(errno_of(error)),
    }
}
