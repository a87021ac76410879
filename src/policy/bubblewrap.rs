//! What only bubblewrap's command line can ask for. Shannot's own profiles have none of it.

use std::os::fd::RawFd;

use super::SandboxPath;

/// A command line of bubblewrap's, but for what [`Policy`](super::Policy) has a place for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bubblewrap {
    /// `--uid`: the command's user id; without it the caller's.
    pub uid: Option<u32>,
    /// `--gid`: the command's group id; without it the caller's.
    pub gid: Option<u32>,
    /// `--cap-add` and `--cap-drop`, in order.
    pub capabilities: Vec<CapabilityEdit>,
    /// `--disable-userns`: no user namespace can be made inside.
    pub disable_userns: bool,
    /// `--assert-userns-disabled`: refuse to run if one can.
    pub assert_userns_disabled: bool,
    /// `--as-pid-1`: the command is process 1; nobody reaps for it.
    pub as_pid_1: bool,
    /// `--die-with-parent`: all is killed when the launcher or its parent ends.
    pub die_with_parent: bool,
    /// `--not-a-security-boundary`: a submount that keeps its attributes is worth a warning.
    pub lenient: bool,
    /// `--debug-opt=force-openat-fallback`: paths are walked by hand, as without openat2(2).
    pub walk_by_hand: bool,
    /// `--lock-file`: files inside that process 1 holds a read lock on.
    pub lock_files: Vec<SandboxPath>,
    /// Descriptors of the caller that mean something.
    pub handed: Handed,
}

/// Descriptors of the caller, by number, open in this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handed {
    /// `--userns`: the user namespace in which all is made.
    pub userns: Option<RawFd>,
    /// `--userns2`: the user namespace that the command is in.
    pub userns2: Option<RawFd>,
    /// `--pidns`: the pid namespace that the command is in, or its parent.
    pub pidns: Option<RawFd>,
    /// `--sync-fd`: open as long as process 1 lives.
    pub sync: Option<RawFd>,
    /// `--block-fd`: the command waits until there is something to read, or an end of file.
    pub block: Option<RawFd>,
    /// `--userns-block-fd`: the same, while another process writes the id maps.
    pub userns_block: Option<RawFd>,
    /// `--info-fd`: takes one JSON object with the process id and the namespaces.
    pub info: Option<RawFd>,
    /// `--json-status-fd`: the same, and the exit code, a line each.
    pub json_status: Option<RawFd>,
    /// Others that were read already (`--args`, `--seccomp`): the command does not get them either.
    pub read: Vec<RawFd>,
}

impl Handed {
    /// Those that are used up, or used outside, when the command starts.
    pub fn kept_from_command(&self) -> impl Iterator<Item = RawFd> + '_ {
        let Self { userns, userns2, pidns, sync: _, block, userns_block, info, json_status, read } = self;
        [userns, userns2, pidns, block, userns_block, info, json_status]
            .into_iter()
            .filter_map(|fd| *fd)
            .chain(read.iter().copied())
    }
}

/// One change of the set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapabilityEdit {
    /// `--cap-add`.
    Add(CapabilityName),
    /// `--cap-drop`.
    Drop(CapabilityName),
}

/// Which capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapabilityName {
    /// All that there are.
    All,
    /// The one with this number (capabilities(7), linux/capability.h).
    Number(u8),
}
