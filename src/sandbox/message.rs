//! What init and supervisor tell each other: records of fixed size over one SOCK_SEQPACKET pair, so that a
//! record is whole or not there, and the death of either side is an end of file for the other.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use nix::unistd::Pid;

use super::failure::{Fault, Stage};
use crate::sys;

const SIZE: usize = 16;
/// The longest text that comes with a record: a path (PATH_MAX).
const LONGEST_DETAIL: usize = 4096;

/// From init to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// A step failed and nothing was executed.
    Failed(Fault),
    /// A step failed, and the policy says to go on.
    Warned(Fault),
    /// The child is there, and waits for a word.
    Started,
    /// Everything is set up; what follows is the execve.
    Executing,
    /// The command was stopped by this signal.
    Stopped(i32),
    /// The command runs again.
    Continued,
    /// The command ended with this wait status.
    Ended(i32),
    /// The launch gate asks on the descriptor that comes with this.
    Listening,
}

/// From the supervisor to init, one byte: a signal number for the command, or this for the whole tree.
pub(super) const TERMINATE_ALL: u8 = 0xff;

impl Message {
    fn encode(self) -> [u8; SIZE] {
        let (kind, stage, index, value) = match self {
            Message::Failed(fault) => (1, fault.stage as u32, fault.index, fault.errno as i32),
            Message::Stopped(signal) => (2, 0, 0, signal),
            Message::Continued => (3, 0, 0, 0),
            Message::Ended(status) => (4, 0, 0, status),
            Message::Listening => (5, 0, 0, 0),
            Message::Warned(fault) => (6, fault.stage as u32, fault.index, fault.errno as i32),
            Message::Started => (7, 0, 0, 0),
            Message::Executing => (8, 0, 0, 0),
        };
        let mut bytes = [0; SIZE];
        let words = [kind, stage, index, value.cast_unsigned()];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: [u8; SIZE]) -> Option<Self> {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
        let (kind, stage, index, value) = (words.next()?, words.next()?, words.next()?, words.next()?.cast_signed());
        let fault = || Some(Fault { stage: Stage::from_number(stage)?, index, errno: Errno::from_raw(value) });
        Some(match kind {
            1 => Message::Failed(fault()?),
            2 => Message::Stopped(value),
            3 => Message::Continued,
            4 => Message::Ended(value),
            5 => Message::Listening,
            6 => Message::Warned(fault()?),
            7 => Message::Started,
            8 => Message::Executing,
            _ => return None,
        })
    }

    /// Sends. A supervisor that is gone needs no message: its end of file is seen elsewhere.
    pub(super) fn send(self, channel: impl AsFd) -> nix::Result<()> {
        send(channel.as_fd().as_raw_fd(), &self.encode(), MsgFlags::MSG_NOSIGNAL).map(drop)
    }

    /// Sends with a text, of which as much as a path can have.
    pub(super) fn send_with_detail(self, channel: impl AsFd, detail: &[u8]) -> nix::Result<()> {
        let mut record = self.encode().to_vec();
        record.extend_from_slice(detail.get(..LONGEST_DETAIL).unwrap_or(detail));
        send(channel.as_fd().as_raw_fd(), &record, MsgFlags::MSG_NOSIGNAL).map(drop)
    }

    /// Sends by write(2), which filters let through that know nothing of sockets. SIGPIPE if the other side is gone.
    pub(super) fn write(self, channel: impl AsFd) -> nix::Result<()> {
        nix::unistd::write(channel.as_fd(), &self.encode()).map(drop)
    }

    /// Sends with a descriptor, which is closed here.
    pub(super) fn send_with(self, channel: impl AsFd, descriptor: OwnedFd) -> nix::Result<()> {
        let record = self.encode();
        let numbers = [descriptor.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let parts = [IoSlice::new(&record)];
        sendmsg::<()>(channel.as_fd().as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
    }

    /// Receives. `None` is the end of file: the other side is gone.
    pub(super) fn receive(channel: impl AsFd) -> nix::Result<Option<Received>> {
        let mut bytes = [0; SIZE + LONGEST_DETAIL];
        let came = match sys::receive_with_descriptor(channel.as_fd(), &mut bytes) {
            Err(Errno::ECONNRESET) => return Ok(None),
            came => came?,
        };
        let Some((record, detail)) = bytes.get(..came.length).and_then(|bytes| bytes.split_first_chunk::<SIZE>())
        else {
            return if came.length == 0 { Ok(None) } else { Err(Errno::EBADMSG) };
        };
        let message = Message::decode(*record).ok_or(Errno::EBADMSG)?;
        Ok(Some(Received { message, detail: detail.to_vec(), descriptor: came.descriptor, sender: came.sender }))
    }
}

/// A message and what came with it.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) message: Message,
    pub(super) detail: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
    /// Who sent it, where the socket was asked to say so.
    pub(super) sender: Option<Pid>,
}

/// Whether a raw wait status says that the process ended.
pub(super) fn has_ended(status: i32) -> bool {
    libc::WIFEXITED(status) || libc::WIFSIGNALED(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_way() {
        let fault = Fault { stage: Stage::Exec, index: 7, errno: Errno::EACCES };
        let messages = [
            Message::Failed(fault),
            Message::Warned(fault),
            Message::Started,
            Message::Executing,
            Message::Stopped(20),
            Message::Continued,
            Message::Ended(0x0f00),
            Message::Listening,
        ];
        for message in messages {
            assert_eq!(Message::decode(message.encode()), Some(message));
        }
        assert_eq!(Message::decode([0xff; SIZE]), None);
    }
}
