//! The gate, in the supervisor: a filter asks about calls before they happen (seccomp_unotify(2)). Under `exec_once` about each
//! execve, of which the first is the command's own and no other goes on. Under an allowlist without noexec mounts about each
//! mapping that is executable, as mmap(2) would see to there: only the allowed files and their libraries may be mapped so.
//!
//! A descriptor can mean another file by the time that the call goes on, but only by another thread of the same program. One
//! that runs such code has no use for a library any more.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::stat::stat;

use crate::host::Identity;
use crate::plan::{Mappings, Plan};
use crate::sys::{self, Question};

#[derive(Debug)]
pub(super) struct Gate<'a> {
    pub(super) listener: OwnedFd,
    launched: bool,
    mappings: Option<&'a Mappings>,
}

impl<'a> Gate<'a> {
    pub(super) fn new(listener: OwnedFd, plan: &'a Plan) -> Self {
        let mappings = plan.in_place.as_ref().and_then(|in_place| in_place.mappings.as_ref());
        Self { listener, launched: false, mappings }
    }

    /// Answers one question. `false`: nobody is left who could ask.
    pub(super) fn answer(&mut self, events: PollFlags) -> nix::Result<bool> {
        if !events.contains(PollFlags::POLLIN) {
            return Ok(false);
        }
        match sys::next_question(self.listener.as_fd()) {
            Ok(question) => {
                let verdict = self.verdict(&question);
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

    fn verdict(&mut self, question: &Question) -> nix::Result<()> {
        if [libc::SYS_execve, libc::SYS_execveat].contains(&question.nr.into()) {
            let is_first = !std::mem::replace(&mut self.launched, true);
            return if is_first { Ok(()) } else { Err(Errno::EACCES) };
        }
        // As the kernel says it of a noexec mount.
        let is_allowed = self.mappings.is_some_and(|mappings| may_be_mapped(mappings, question));
        if is_allowed { Ok(()) } else { Err(Errno::EPERM) }
    }
}

/// Whether the file behind the descriptor, mmap(2)'s fifth argument, is one of those. What can't be looked at is none.
fn may_be_mapped(mappings: &Mappings, question: &Question) -> bool {
    let [.., descriptor, _] = question.args;
    // The kernel takes the low half.
    let descriptor = descriptor & u64::from(u32::MAX);
    let link = format!("/proc/{}/fd/{descriptor}", question.pid);
    let Ok(file) = stat(Path::new(&link)) else { return false };
    let identity = Identity { device: file.st_dev, inode: file.st_ino };
    mappings.files.contains(&identity)
        || fs::read_link(link).is_ok_and(|path| mappings.folders.iter().any(|folder| path.starts_with(folder)))
}
