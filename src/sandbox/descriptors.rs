//! Descriptors of the caller: none of them is the sandbox's business.

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{SockType, SockaddrStorage, getpeername, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};

use super::failure::{At, Fault, Stage};
use super::prepare::Stdio;
use super::resolve::kind;
use crate::sys;

/// EISDIR with the number of the first standard descriptor that is a directory: with openat(2) it leads to the host's
/// tree, `..` included, past every mount of the sandbox.
pub(super) fn check_standard(stdio: &Stdio) -> Result<(), Fault> {
    for (number, replacement) in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().enumerate() {
        if replacement.is_none() {
            let fd = sys::borrow_number(RawFd::try_from(number).unwrap_or(-1));
            match fstat(fd).map(|stat| kind(&stat)) {
                Ok(SFlag::S_IFDIR) => Err(Errno::EISDIR),
                result => result.map(drop),
            }
            .at_index(Stage::StandardDescriptor, number)?;
        }
    }
    Ok(())
}

/// EPROTOTYPE with the number of the first standard descriptor that is a socket without a peer: it could send to any address,
/// and no network namespace makes that nobody's.
pub(super) fn check_sockets(stdio: &Stdio) -> Result<(), Fault> {
    for (number, replacement) in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().enumerate() {
        let fd = sys::borrow_number(RawFd::try_from(number).unwrap_or(-1));
        if replacement.is_some()
            || fstat(fd).map(|stat| kind(&stat)).at_index(Stage::StandardDescriptor, number)? != SFlag::S_IFSOCK
        {
            continue;
        }
        let kind = getsockopt(&fd, sockopt::SockType).at_index(Stage::StandardDescriptor, number)?;
        let has_peer = getpeername::<SockaddrStorage>(fd.as_raw_fd()).is_ok();
        if !matches!(kind, SockType::Stream | SockType::SeqPacket) || !has_peer {
            return Err(Errno::EPROTOTYPE).at_index(Stage::StandardDescriptor, number);
        }
    }
    Ok(())
}

/// Closes every descriptor from `first` up but those in `keep`.
pub(super) fn close_all_but(first: RawFd, keep: &[RawFd]) -> nix::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    keep.sort_unstable();
    let mut next = first;
    for fd in keep {
        if fd > next {
            close_range(next, fd.cast_unsigned() - 1)?;
        }
        next = fd + 1;
    }
    close_range(next, u32::MAX)
}

fn close_range(first: RawFd, last: u32) -> nix::Result<()> {
    match sys::close_range(first, last) {
        // EPERM: older container filters.
        Err(Errno::ENOSYS | Errno::EPERM) => close_one_by_one(first, last),
        result => result,
    }
}

/// Before Linux 5.9: each number that there could be.
fn close_one_by_one(first: RawFd, last: u32) -> nix::Result<()> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE)?.0;
    let last = u64::from(last).min(limit);
    for fd in first..=RawFd::try_from(last).unwrap_or(RawFd::MAX) {
        match sys::close_number(fd) {
            Ok(()) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
