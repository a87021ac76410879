//! What happens to a call. Shared with the build script.

use std::fmt;

use seccompiler::SeccompAction;

/// What happens to a call (seccomp(2), SECCOMP_RET_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The process is killed with SIGSYS.
    KillProcess,
    /// The thread is killed.
    KillThread,
    /// SIGSYS, with this value.
    Trap(u16),
    /// The call fails with this errno.
    Errno(u16),
    /// A supervisor is asked.
    Notify,
    /// A tracer is told this value.
    Trace(u16),
    /// Allowed and logged.
    Log,
    /// Allowed.
    Allow,
}

/// SECCOMP_RET_USER_NOTIF, which seccompiler does not know.
const NOTIFY: u32 = 0x7fc0_0000;

impl Action {
    /// From a filter's return value; what the kernel does not know kills the process.
    pub fn from_return(value: u32) -> Self {
        let [data_low, data_high, ..] = value.to_le_bytes();
        let data = u16::from_le_bytes([data_low, data_high]);
        match value & 0xffff_0000 {
            0x0000_0000 => Action::KillThread,
            0x0003_0000 => Action::Trap(data),
            0x0005_0000 => Action::Errno(data),
            NOTIFY => Action::Notify,
            0x7ff0_0000 => Action::Trace(data),
            0x7ffc_0000 => Action::Log,
            0x7fff_0000 => Action::Allow,
            _ => Action::KillProcess,
        }
    }

    /// The return value that means this.
    pub fn to_return(self) -> u32 {
        match self {
            Action::KillProcess => SeccompAction::KillProcess.into(),
            Action::KillThread => SeccompAction::KillThread.into(),
            Action::Trap(data) => u32::from(SeccompAction::Trap) | u32::from(data),
            Action::Errno(errno) => SeccompAction::Errno(errno.into()).into(),
            Action::Notify => NOTIFY,
            Action::Trace(data) => SeccompAction::Trace(data.into()).into(),
            Action::Log => SeccompAction::Log.into(),
            Action::Allow => SeccompAction::Allow.into(),
        }
    }

    /// Whether the call is carried out without anybody being asked.
    pub fn lets_through(self) -> bool {
        matches!(self, Action::Allow | Action::Log)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::KillProcess => f.write_str("kill process"),
            Action::KillThread => f.write_str("kill thread"),
            Action::Trap(0) => f.write_str("trap"),
            Action::Trap(data) => write!(f, "trap {data}"),
            Action::Errno(errno) => match super::errno::name(*errno) {
                Some(name) => write!(f, "errno {errno} ({name})"),
                None => write!(f, "errno {errno}"),
            },
            Action::Notify => f.write_str("notify"),
            Action::Trace(data) => write!(f, "trace {data}"),
            Action::Log => f.write_str("log"),
            Action::Allow => f.write_str("allow"),
        }
    }
}
