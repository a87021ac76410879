//! What a run with a workspace needs on the host: places in git's folders that nothing may be put into, and secrets.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use super::output::Complaint;
use crate::policy::Policy;
use crate::sys;

/// To git this file says what it assumes without it. While it is there, no other one can be put in its place, for it is
/// bound over itself inside.
const COMMON: (&str, &[u8]) = ("commondir", b".\n");
/// The same for a folder of hooks.
const HOOKS: &str = "hooks";

/// Files that stand where a job could otherwise put something that git follows. Gone after the run, unless another run
/// needs them.
#[derive(Debug, Default)]
pub(super) struct Guards {
    held: Vec<Guard>,
}

#[derive(Debug)]
struct Guard {
    folder: PathBuf,
    /// Shared by the runs that rely on it.
    common: Option<Flock<File>>,
    made_hooks: bool,
}

impl Guards {
    /// Makes what is missing.
    pub(super) fn make(policy: &Policy) -> Result<Self, Complaint> {
        let mut guards = Self::default();
        for folder in &policy.folders {
            // Not even another user may know what is cached.
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|error| {
                Complaint::new("cache", &error, None).about(format!("cannot make {}", folder.display()))
            })?;
        }
        let workspace = policy.workspace.iter().filter(|workspace| !workspace.overlay);
        for folder in workspace.flat_map(|workspace| &workspace.guards) {
            let guard = Guard::make(folder).map_err(|error| {
                Complaint::new("workspace", &error, None).about(format!("cannot guard {}", folder.display()))
            })?;
            guards.held.push(guard);
        }
        Ok(guards)
    }

    /// Takes it away again. What can't be removed harms nobody.
    pub(super) fn remove(self) {
        for guard in self.held {
            guard.remove();
        }
    }
}

impl Guard {
    fn make(folder: &Path) -> io::Result<Self> {
        let made_hooks = match DirBuilder::new().mode(0o755).create(folder.join(HOOKS)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            made => made.map(|()| true)?,
        };
        let (name, text) = COMMON;
        let path = folder.join(name);
        let mut options = File::options();
        options.mode(0o644).custom_flags(libc::O_NOFOLLOW);
        match options.clone().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                file.set_permissions(Permissions::from_mode(0o644))?;
                file.write_all(text)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let common = options.read(true).open(&path)?;
        // A worktree has one of its own.
        let is_ours = fs::read(&path)? == text;
        let lock = |file| Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| io::Error::from(errno));
        let common = is_ours.then(|| lock(common)).transpose()?;
        Ok(Self { folder: folder.to_owned(), common, made_hooks })
    }

    fn remove(self) {
        // Another run may have it bound; to remove it would unmount it there.
        let Some(common) = self.common else { return };
        if common.relock(FlockArg::LockExclusiveNonblock).is_err() {
            return;
        }
        let removed = fs::remove_file(self.folder.join(COMMON.0));
        let hooks = self.made_hooks.then(|| fs::remove_dir(self.folder.join(HOOKS)));
        if removed.is_err() || hooks.is_some_and(|removed| removed.is_err()) {
            // Gone, or no longer empty: somebody on the host uses it.
        }
    }
}

/// Secrets of the command line, open as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Secrets(Vec<(String, Opened)>);

#[derive(Debug)]
enum Opened {
    File(File),
    Number(RawFd),
}

impl Secrets {
    /// `NAME=fd:N` or `NAME=file:PATH`.
    pub(super) fn open(words: &[OsString]) -> Result<Self, Complaint> {
        words.iter().map(open_secret).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn numbers(&self) -> Vec<(String, RawFd)> {
        let number = |opened: &Opened| match opened {
            Opened::File(file) => file.as_raw_fd(),
            Opened::Number(number) => *number,
        };
        self.0.iter().map(|(name, opened)| (name.clone(), number(opened))).collect()
    }
}

fn open_secret(word: &OsString) -> Result<(String, Opened), Complaint> {
    // Never the word itself: somebody may have put the secret there.
    let refuse = |reason: &str| {
        Complaint::plain("secret", format!("cannot use option --secret: {reason}"))
            .with_hint("write NAME=fd:N for an open descriptor, or NAME=file:PATH")
    };
    let text = word.to_str().ok_or_else(|| refuse("it is not UTF-8"))?;
    let (name, source) = text.split_once('=').ok_or_else(|| refuse("it has no \"=\""))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(refuse("a name has letters, digits, \"_\", \"-\" and \".\", and does not begin with a dot"));
    }
    if let Some(number) = source.strip_prefix("fd:") {
        let number: RawFd = number.parse().map_err(|_| refuse("fd: takes a number"))?;
        if number <= 2 || nix::sys::stat::fstat(sys::borrow_number(number)).is_err() {
            return Err(refuse(&format!("descriptor {number} is not open, or is stdin, stdout or stderr")));
        }
        return Ok((name.to_owned(), Opened::Number(number)));
    }
    let path = source.strip_prefix("file:").ok_or_else(|| refuse("it names neither fd: nor file:"))?;
    let file = File::open(path).map_err(|error| {
        Complaint::new("secret", &error, None).about(format!("cannot read the secret {name} from {path:?}"))
    })?;
    Ok((name.to_owned(), Opened::File(file)))
}
