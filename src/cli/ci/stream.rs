//! One stream of what a command writes to two. A runner reads stdout and stderr side by side, so that what it is told on the one
//! says nothing about what comes on the other; and who is handed the runner's own pipe can read from it what was said before.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::cli::output::Complaint;
use crate::sys::{self, Side};

/// For a pipe's worth of output, which is all that can be left.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);

/// A pipe, and the process that copies what comes out of it to stdout.
#[derive(Debug)]
pub(in crate::cli) struct OneStream {
    copier: Pid,
    /// The end that is written to.
    writer: OwnedFd,
}

impl OneStream {
    pub(in crate::cli) fn start() -> Result<Self, Complaint> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        match sys::clone_process(CloneFlags::empty()).map_err(failed)? {
            Side::Parent(copier) => Ok(Self { copier, writer }),
            Side::Child => {
                drop(writer);
                sys::exit_now(copy(reader))
            }
        }
    }

    /// What the command gets for stdout or stderr.
    pub(in crate::cli) fn writer(&self) -> Result<OwnedFd, Complaint> {
        self.writer.try_clone().map_err(|error| failed(sys::errno_of(&error)))
    }

    /// After everything that could write has ended: waits until all of it is on stdout.
    pub(in crate::cli) fn finish(self) -> Result<(), Complaint> {
        drop(self.writer);
        let until = Instant::now() + PATIENCE;
        loop {
            match waitpid(self.copier, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() < until => sleep(PAUSE),
                Ok(WaitStatus::StillAlive) => {
                    kill(self.copier, Signal::SIGKILL).map_err(failed)?;
                    return Err(failed(Errno::ETIMEDOUT).with_hint("nobody reads stdout"));
                }
                // A caller that ignores SIGCHLD: it has ended all the same.
                Ok(_) | Err(Errno::ECHILD) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

fn failed(errno: Errno) -> Complaint {
    Complaint::new("descriptors", &io::Error::from(errno), None).about("cannot merge stdout and stderr".to_owned())
}

/// Its exit code says nothing: where stdout can't be written, the command learns it from its pipe.
fn copy(reader: OwnedFd) -> i32 {
    // Those of the terminal are for the command, which may go on to write.
    let blocked = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
    let stdout = sys::borrow_number(libc::STDOUT_FILENO).try_clone_to_owned();
    match (blocked, stdout) {
        (Ok(()), Ok(stdout)) => i32::from(io::copy(&mut File::from(reader), &mut File::from(stdout)).is_err()),
        _ => 1,
    }
}
