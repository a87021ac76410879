//! The gate, in the supervisor: a filter asks about calls before they happen (seccomp_unotify(2)). Under `exec_once` about each
//! execve, of which the first is the command's own and no other goes on. Under an allowlist without noexec mounts about each
//! mapping that is or becomes executable, as the kernel would see to there: only the allowed files and their libraries may be
//! mapped so, and the stack may not.
//!
//! A descriptor can mean another file by the time that the call goes on, but only by another thread of the same program. One
//! that runs such code has no use for a library any more.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::stat::stat;

use super::denials::Denied;
use crate::host::Identity;
use crate::plan::{Mappings, Plan};
use crate::report::Layer;
use crate::seccomp;
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
    pub(super) fn answer(&mut self, events: PollFlags, denied: &mut Denied) -> nix::Result<bool> {
        if !events.contains(PollFlags::POLLIN) {
            return Ok(false);
        }
        match sys::next_question(self.listener.as_fd()) {
            Ok(question) => {
                let verdict = self.verdict(&question);
                if verdict.is_err() {
                    tell(&question, denied);
                }
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
        if is_launch(question) {
            let is_first = !std::mem::replace(&mut self.launched, true);
            return if is_first { Ok(()) } else { Err(Errno::EACCES) };
        }
        // As the kernel says it of a noexec mount.
        let may = if seccomp::Gate::is_protection(question.nr) { may_be_protected } else { may_be_mapped };
        let is_allowed = self.mappings.is_some_and(|mappings| may(mappings, question));
        if is_allowed { Ok(()) } else { Err(Errno::EPERM) }
    }
}

fn is_launch(question: &Question) -> bool {
    [libc::SYS_execve, libc::SYS_execveat].contains(&question.nr.into())
}

/// Notes what was refused. The names are what the process says, or what it has open: true, unless it is made to deceive.
fn tell(question: &Question, denied: &mut Denied) {
    let [first, second, .., descriptor, _] = question.args;
    if is_launch(question) {
        let path = if i64::from(question.nr) == libc::SYS_execve { first } else { second };
        denied.add(Layer::ExecOnce, "execute", text_of(question.pid, path));
    } else if seccomp::Gate::is_protection(question.nr) {
        denied.add(Layer::Allowlist, "make memory executable", None);
    } else {
        let name = fs::read_link(link_of(question.pid, descriptor)).ok();
        denied.add(Layer::Allowlist, "map as executable", name.map(|name| name.to_string_lossy().into_owned()));
    }
}

/// A path in the memory of the process.
fn text_of(pid: u32, address: u64) -> Option<String> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut text = [0; 1024];
    let length = memory.read_at(&mut text, address).ok()?;
    let text = text.get(..length)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Of the number that mmap(2) takes the kernel looks at the low half.
fn link_of(pid: u32, descriptor: u64) -> String {
    format!("/proc/{pid}/fd/{}", descriptor & u64::from(u32::MAX))
}

/// Whether the file behind the descriptor, mmap(2)'s fifth argument, is one of those. What can't be looked at is none.
fn may_be_mapped(mappings: &Mappings, question: &Question) -> bool {
    let [.., descriptor, _] = question.args;
    let link = link_of(question.pid, descriptor);
    let Ok(file) = stat(Path::new(&link)) else { return false };
    let identity = Identity { device: file.st_dev, inode: file.st_ino };
    mappings.files.contains(&identity)
        || fs::read_link(link).is_ok_and(|path| mappings.folders.iter().any(|folder| path.starts_with(folder)))
}

/// Whether all that mprotect(2) is about is memory without a file, and no stack, or of those files. A loader makes its relocations
/// this way, with whatever protection a library's headers say in the end.
fn may_be_protected(mappings: &Mappings, question: &Question) -> bool {
    let [start, length, ..] = question.args;
    let Some(end) = start.checked_add(length) else { return false };
    let Ok(maps) = fs::read(format!("/proc/{}/maps", question.pid)) else { return false };
    let lines = maps.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(Mapped::parse).all(|mapped| match mapped {
        Some(mapped) if mapped.end <= start || end <= mapped.start => true,
        Some(mapped) if mapped.identity.inode == 0 => mapped.name != b"[stack]",
        Some(mapped) => {
            let path = Path::new(OsStr::from_bytes(mapped.name));
            mappings.files.contains(&mapped.identity) || mappings.folders.iter().any(|folder| path.starts_with(folder))
        }
        None => false,
    })
}

/// A line of proc_pid_maps(5).
struct Mapped<'a> {
    start: u64,
    end: u64,
    identity: Identity,
    name: &'a [u8],
}

impl<'a> Mapped<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        // Blanks stand before the name, and may be in it.
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let mut next = || std::str::from_utf8(fields.next()?).ok();
        let (start, end) = next()?.split_once('-')?;
        let (major, minor) = next().and_then(|_| next()).and_then(|_| next())?.split_once(':')?;
        let inode = next()?.parse().ok()?;
        let name = fields.next().unwrap_or_default();
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let device = libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let identity = Identity { device, inode };
        Some(Self { start: hexadecimal(start)?, end: hexadecimal(end)?, identity, name: name.trim_ascii_start() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_kernels_is_read() {
        let maps = fs::read("/proc/self/maps").unwrap();
        let lines = maps.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mapped: Vec<Mapped<'_>> = lines.map(|line| Mapped::parse(line).unwrap()).collect();
        assert!(mapped.iter().any(|mapped| mapped.name == b"[stack]" && mapped.identity.inode == 0));
        let own = stat(Path::new("/proc/self/exe")).unwrap();
        let own = Identity { device: own.st_dev, inode: own.st_ino };
        assert!(mapped.iter().any(|mapped| mapped.identity == own && mapped.start < mapped.end));
    }
}
