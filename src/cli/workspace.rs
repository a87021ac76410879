//! What a run with a workspace needs on the host: places in git's folders that nothing may be put into, caches, secrets.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::output::Complaint;
use crate::host::open_without_links;
use crate::policy::{FsOp, Placement, Policy, SandboxPath};
use crate::sys;

/// To git this file says what it assumes without it. While it is there, no other one can be put in its place, for it is
/// bound over itself inside.
const COMMON: (&str, &[u8]) = ("commondir", b".\n");
/// The same for a folder of hooks,
const HOOKS: &str = "hooks";
/// and for a second configuration, where the first one says that there is one.
const SECOND: &str = "config.worktree";

/// Files that stand where a job could otherwise put something that git follows. Gone after the run, unless another run
/// needs them.
#[derive(Debug, Default)]
pub(super) struct Guards {
    held: Vec<Guard>,
}

#[derive(Debug)]
struct Guard {
    folder: OwnedFd,
    /// Shared by the runs that rely on it.
    common: Option<Flock<File>>,
    made: Vec<(&'static str, UnlinkatFlags)>,
}

/// Folders of caches. Not even another user may know what is cached.
pub(super) fn make_folders(policy: &Policy) -> Result<(), Complaint> {
    policy.folders.iter().try_for_each(|folder| {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| {
            Complaint::new("cache", &error, None)
                .about(format!("cannot make {}", folder.display()))
                .with_hint("caches are kept below $XDG_CACHE_HOME, else below ~/.cache: name a folder of yours there")
        })
    })
}

impl Guards {
    /// Makes what is missing.
    pub(super) fn make(policy: &Policy) -> Result<Self, Complaint> {
        let mut guards = Self::default();
        for folder in policy.workspace.iter().flat_map(|workspace| &workspace.guards) {
            match Guard::make(folder) {
                Ok(guard) => guards.held.push(guard),
                Err(errno) => {
                    guards.remove();
                    let error = io::Error::from(errno);
                    return Err(
                        Complaint::new("workspace", &error, None).about(format!("cannot guard {}", folder.display()))
                    );
                }
            }
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
    /// Below a descriptor: a job before may have left links, and one beside may put them there.
    fn make(path: &Path) -> nix::Result<Self> {
        let folder = open_without_links(path)?;
        let mut made = Vec::new();
        match mkdirat(&folder, HOOKS, Mode::from_bits_truncate(0o755)) {
            Ok(()) => made.push((HOOKS, UnlinkatFlags::RemoveDir)),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let (name, text) = COMMON;
        create(&folder, name, text)?;
        let config = read(&folder, "config").unwrap_or_default().to_ascii_lowercase();
        if config.contains("worktreeconfig") && create(&folder, SECOND, b"")? {
            made.push((SECOND, UnlinkatFlags::NoRemoveDir));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let common = File::from(openat(&folder, name, flags, Mode::empty())?);
        // A worktree has one of its own.
        let is_ours = read(&folder, name)?.as_bytes() == text;
        let lock = |file| Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno);
        Ok(Self { common: is_ours.then(|| lock(common)).transpose()?, folder, made })
    }

    fn remove(self) {
        // Another run may have it bound; to remove it would unmount it there.
        let Some(common) = self.common else { return };
        if common.relock(FlockArg::LockExclusiveNonblock).is_err() {
            return;
        }
        let made = self.made.iter().copied().chain([(COMMON.0, UnlinkatFlags::NoRemoveDir)]);
        for (name, how) in made {
            if unlinkat(&self.folder, name, how).is_err() {
                // Gone, or no longer empty: somebody on the host uses it.
            }
        }
    }
}

/// `false`: there is one already.
fn create(folder: &OwnedFd, name: &str, text: &[u8]) -> nix::Result<bool> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    match openat(folder, name, flags, Mode::from_bits_truncate(0o644)) {
        Ok(file) => {
            let written = File::from(file).write_all(text);
            written.map(|()| true).map_err(|error| sys::errno_of(&error))
        }
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// A text of git's. What is no file, or is too big for one, is empty.
fn read(folder: &OwnedFd, name: &str) -> nix::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let mut text = Vec::new();
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) && file.take(MOST).read_to_end(&mut text).is_err() {
        return Err(Errno::EIO);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Bytes of a configuration.
const MOST: u64 = 1 << 20;

/// Shows git's configurations without the tokens that CI systems put into them: headers, and what stands before the host of an
/// address. What is returned must be open until the command runs.
pub(super) fn hide_tokens(policy: &mut Policy) -> Result<Vec<OwnedFd>, Complaint> {
    let configs = policy.workspace.iter().flat_map(|workspace| workspace.configs.clone());
    let mut open = Vec::new();
    for path in configs.collect::<Vec<_>>() {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            continue;
        };
        let Ok(text) = open_without_links(parent).and_then(|folder| read(&folder, name)) else { continue };
        let clean = without_tokens(&text);
        if clean == text {
            continue;
        }
        let failed = |error: io::Error| {
            Complaint::new("workspace", &error, None)
                .about(format!("cannot show {} without its tokens", path.display()))
        };
        let file = memfd_create("config", MFdFlags::MFD_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let mut file = File::from(file);
        file.write_all(clean.as_bytes()).and_then(|()| file.rewind()).map_err(failed)?;
        let target = SandboxPath::new(&path).map_err(|error| Complaint::plain("workspace", error.to_string()))?;
        let fd = file.as_raw_fd();
        policy.fs.push(FsOp::Data { fd, target, placement: Placement::RoBind, mode: Some(0o644) });
        open.push(file.into());
    }
    Ok(open)
}

fn without_tokens(config: &str) -> String {
    let mut clean = String::with_capacity(config.len());
    let mut goes_on = false;
    for line in config.split_inclusive('\n') {
        let is_header = goes_on || line.to_ascii_lowercase().contains("extraheader");
        // A backslash at its end goes on with the line.
        goes_on = is_header && line.trim_end_matches(['\n', '\r']).ends_with('\\');
        if is_header {
            continue;
        }
        let mut rest = line;
        while let Some((before, address)) = rest.split_once("://") {
            let host = address.find(['/', '"', ' ', '\t', '\n']).unwrap_or(address.len());
            let (authority, behind) = address.split_at(host);
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            clean.push_str(&format!("{before}://{authority}"));
            rest = behind;
        }
        clean.push_str(rest);
    }
    clean
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
    let cannot_read = |error: io::Error| {
        Complaint::new("secret", &error, None).about(format!("cannot read the secret {name} from {path:?}"))
    };
    let file = File::open(path).map_err(cannot_read)?;
    if file.metadata().map_err(cannot_read)?.is_dir() {
        return Err(cannot_read(Errno::EISDIR.into()));
    }
    Ok((name.to_owned(), Opened::File(file)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn tokens_are_taken_out_of_a_configuration() {
        let config = "[core]\n\tbare = false\n[http \"https://github.com/\"]\n\textraheader = AUTHORIZATION: basic abc\\\n  def\n\
                      [remote \"origin\"]\n\turl = https://gitlab-ci-token:glcbt@gitlab.example.org/a/b.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
                      [remote \"x\"]\n\turl = git@github.com:a/b.git\n";
        let clean = "[core]\n\tbare = false\n[http \"https://github.com/\"]\n\
                     [remote \"origin\"]\n\turl = https://gitlab.example.org/a/b.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
                     [remote \"x\"]\n\turl = git@github.com:a/b.git\n";
        assert_eq!(super::without_tokens(config), clean);
        assert_eq!(super::without_tokens(clean), clean);
    }
}
