//! The launch gate, in the supervisor: a filter asks about each execve before it happens (seccomp_unotify(2)). The first is
//! the command's own. Of later ones none goes on under `exec_once`, and none of a dynamic loader where an allowlist must
//! hold without noexec mounts: a loader that is started by name maps any file that can be read.
//!
//! The path is in the caller's memory and could be changed behind the answer, but only by code that runs inside already,
//! which has no use for a loader then.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::stat::{Mode, fstat, stat};

use super::resolve::{Lookup, look_up};
use crate::plan::Plan;
use crate::sys::{self, Question};

/// PATH_MAX, the final NUL included.
const PATH_MAX: usize = 4096;

/// What the gate refuses.
#[derive(Debug)]
enum Refusal {
    Everything,
    /// These files: device and inode.
    Files(Vec<(u64, u64)>),
}

#[derive(Debug)]
pub(super) struct Gate {
    pub(super) listener: OwnedFd,
    launched: bool,
    refusal: Refusal,
}

impl Gate {
    pub(super) fn new(listener: OwnedFd, plan: &Plan) -> Self {
        let loaders = plan.in_place.iter().flat_map(|in_place| &in_place.loaders);
        let refusal = if plan.exec_once {
            Refusal::Everything
        } else {
            Refusal::Files(loaders.filter_map(|path| stat(path).ok()).map(|file| (file.st_dev, file.st_ino)).collect())
        };
        Self { listener, launched: false, refusal }
    }

    /// Answers one question. `false`: nobody is left who could ask.
    pub(super) fn answer(&mut self, events: PollFlags) -> nix::Result<bool> {
        if !events.contains(PollFlags::POLLIN) {
            return Ok(false);
        }
        match sys::next_question(self.listener.as_fd()) {
            Ok(question) => {
                let verdict = if self.launched { self.verdict(&question) } else { Ok(()) };
                self.launched = true;
                match sys::answer_question(self.listener.as_fd(), question.id, verdict.err()) {
                    // Who asked has been killed meanwhile.
                    Err(Errno::ENOENT) => Ok(true),
                    answered => answered.map(|()| true),
                }
            }
            Err(Errno::ENOENT | Errno::EINTR) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    fn verdict(&self, question: &Question) -> nix::Result<()> {
        let Refusal::Files(files) = &self.refusal else { return Err(Errno::EACCES) };
        let file = fstat(named_file(question)?)?;
        if files.contains(&(file.st_dev, file.st_ino)) { Err(Errno::EACCES) } else { Ok(()) }
    }
}

/// The file that an execve(2) or execveat(2) names. An error is the answer that the kernel would give, or fails closed: magic
/// links of /proc mean another process here.
fn named_file(question: &Question) -> nix::Result<OwnedFd> {
    let process = PathBuf::from(format!("/proc/{}", question.pid));
    let [first, second, ..] = question.args;
    let at = i64::from(question.nr) == libc::SYS_execveat;
    let path = read_path(&process, if at { second } else { first })?;
    // The kernel takes the low half.
    let descriptor = u32::try_from(first & u64::from(u32::MAX)).unwrap_or_default().cast_signed();
    let from = if at && descriptor != libc::AT_FDCWD {
        process.join("fd").join(descriptor.to_string())
    } else {
        process.join("cwd")
    };
    if path.as_os_str().is_empty() {
        return open(&from, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    }
    let whole = if path.is_absolute() {
        path
    } else {
        fs::read_link(&from).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EACCES)))?.join(path)
    };
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    look_up(&root, &whole, Lookup { follow_last: true, by_hand: false })
}

/// A path in the memory of a process that waits for the answer.
fn read_path(process: &Path, address: u64) -> nix::Result<PathBuf> {
    let refused = |_| Errno::EACCES;
    let memory = File::open(process.join("mem")).map_err(refused)?;
    let mut bytes = vec![0; PATH_MAX];
    let mut length = 0;
    // The string may end right before memory that is not there.
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        let start = address.checked_add(u64::try_from(length).unwrap_or(u64::MAX)).ok_or(Errno::EFAULT)?;
        let to_page = usize::try_from(4096 - start % 4096).unwrap_or(1).min(rest.len());
        let part = rest.get_mut(..to_page).unwrap_or_default();
        let read = memory.read_at(part, start).map_err(|_| Errno::EFAULT)?;
        if let Some(end) = part.iter().take(read).position(|byte| *byte == 0) {
            bytes.truncate(length + end);
            return Ok(PathBuf::from(std::ffi::OsStr::from_bytes(&bytes)));
        }
        if read == 0 {
            return Err(Errno::EFAULT);
        }
        length += read;
    }
    Err(Errno::ENAMETOOLONG)
}
