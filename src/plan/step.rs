//! What a plan says of the new root: one step after the other, each a thing that `sandbox` does.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::{lossy_list, lossy_path};
use crate::host::Identity;
use crate::policy::{Access, OverlayTop, Placement, SandboxPath};

/// One step on the new root. Targets are resolved under its descriptor and never lead out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Step {
    /// Bind a host path with its submounts.
    Bind {
        /// On the host.
        #[serde(serialize_with = "lossy_path")]
        source: PathBuf,
        /// Inside.
        target: SandboxPath,
        /// The source is a directory.
        directory: bool,
        /// Mount attributes, submounts included.
        attributes: Attributes,
        /// The source is the host's procfs, and this of it is covered. No other source may turn out to be that.
        #[serde(skip_serializing_if = "Option::is_none")]
        cover: Option<ProcCover>,
        /// The file that all this was decided for: no other one may be bound. None for procfs, whose files come and go, and
        /// where the caller's names are all that was asked for.
        #[serde(skip)]
        identity: Option<Identity>,
        /// It lies where jobs write: no link is followed to it, neither on the host nor inside.
        #[serde(skip)]
        exact: bool,
    },
    /// Bind what a descriptor of the caller's names, with its submounts.
    BindDescriptor {
        /// The descriptor.
        fd: RawFd,
        /// Inside.
        target: SandboxPath,
        /// Mount attributes, submounts included.
        attributes: Attributes,
    },
    /// A file with what can be read from a descriptor of the caller's.
    Data {
        /// The descriptor.
        fd: RawFd,
        /// A later step reads the same descriptor, and finds there what this one found.
        again: bool,
        /// Inside.
        target: SandboxPath,
        /// Written in place, or bound.
        placement: Placement,
        /// Permission bits, if they were chosen.
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Directories of the host's over each other.
    Overlay {
        /// The lower ones, the lowest first.
        #[serde(serialize_with = "lossy_list")]
        sources: Vec<PathBuf>,
        /// What is on top.
        #[serde(serialize_with = "lossy_top")]
        top: OverlayTop,
        /// Inside.
        target: SandboxPath,
        /// The sources that were meant, and behind them those of the top that are on the host. None where the caller's names
        /// are all that was asked for.
        #[serde(skip)]
        identities: Option<Vec<Identity>>,
    },
    /// An empty tmpfs.
    Tmpfs {
        /// Where.
        target: SandboxPath,
        /// Permission bits.
        mode: u32,
        /// Bytes; none: a part of the one tmpfs that is shared.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// A procfs of the new pid namespace.
    Proc {
        /// Where.
        target: SandboxPath,
        /// What of it is covered.
        cover: ProcCover,
    },
    /// A minimal /dev.
    Dev {
        /// Where.
        target: SandboxPath,
        /// More can be made in it, and its shm is a directory of it, as bubblewrap has it. Else it is read-only, and its shm
        /// a tmpfs.
        open: bool,
        /// The terminal that becomes `console`.
        #[serde(skip_serializing_if = "Option::is_none")]
        console: Option<PathBuf>,
    },
    /// A POSIX message queue file system.
    Mqueue {
        /// Where.
        target: SandboxPath,
    },
    /// A directory.
    Dir {
        /// Where.
        target: SandboxPath,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// What it says.
        #[serde(serialize_with = "lossy_path")]
        text: PathBuf,
        /// Where.
        target: SandboxPath,
    },
    /// Permission bits.
    Chmod {
        /// Of what.
        target: SandboxPath,
        /// The bits.
        mode: u32,
    },
    /// One mount made read-only.
    RemountReadOnly {
        /// Which.
        target: SandboxPath,
    },
    /// Something empty and unreadable over what is there.
    Hide {
        /// Over what.
        target: SandboxPath,
    },
    /// An allowed file or folder bound over itself, read-only and without noexec.
    Executable {
        /// Which.
        target: SandboxPath,
    },
}

impl Step {
    /// Where the step takes effect.
    pub fn target(&self) -> &SandboxPath {
        match self {
            Step::Bind { target, .. }
            | Step::BindDescriptor { target, .. }
            | Step::Data { target, .. }
            | Step::Overlay { target, .. }
            | Step::Tmpfs { target, .. }
            | Step::Proc { target, .. }
            | Step::Dev { target, .. }
            | Step::Mqueue { target }
            | Step::Dir { target, .. }
            | Step::Symlink { target, .. }
            | Step::Chmod { target, .. }
            | Step::RemountReadOnly { target }
            | Step::Hide { target }
            | Step::Executable { target } => target,
        }
    }
}

fn lossy_top<S: Serializer>(top: &OverlayTop, serializer: S) -> Result<S::Ok, S::Error> {
    match top {
        OverlayTop::Host { upper, work } => lossy_list(&[upper, work], serializer),
        OverlayTop::Tmpfs => serializer.serialize_str("tmpfs"),
        OverlayTop::Nothing => serializer.serialize_none(),
    }
}

/// Attributes of a bind. nosuid is always set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Attributes {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Device nodes can't be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

impl Attributes {
    pub(super) fn of(access: Access) -> Self {
        Self { read_only: access == Access::ReadOnly, nodev: access != Access::Device, noexec: false }
    }
}

/// What a minimal /dev has: the devices that programs expect (bubblewrap's and the OCI runtime specification's list).
pub const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Files of /proc that tell or do too much (security.md, rule 2).
pub const PROC_MASKED_FILES: &[&str] =
    &["kcore", "keys", "timer_list", "timer_stats", "sched_debug", "latency_stats", "sysrq-trigger"];
/// Folders of /proc that do. `dynamic_debug` is writable for uid 0 without a capability.
pub const PROC_MASKED_FOLDERS: &[&str] = &["acpi", "asound", "dynamic_debug", "scsi"];

/// What of a procfs is covered before it can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcCover {
    /// Nothing.
    Nothing,
    /// Control folders and files are read-only; nothing is hidden.
    ReadOnly,
    /// And what tells too much can't be read.
    Masked,
}

/// How the new root is built where the steps leave it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct RootRules {
    /// The root that the steps are built on is made read-only in the end.
    pub seal: bool,
    /// Missing targets are made in the host's folders too, where a bind lets the caller write.
    pub make_on_host: bool,
    /// A link in the last place of a target is followed, inside; else nothing is mounted on it.
    pub follow_last: bool,
    /// All tmpfs without a size of their own are parts of one, and share its size.
    pub share_tmpfs: bool,
    /// What the host mounts later below a bind appears in it.
    pub receive_mounts: bool,
    /// A submount that can't have the attributes of its bind is worth a warning, not an error.
    pub lenient: bool,
    /// Paths are walked by hand, as without openat2(2).
    pub walk_by_hand: bool,
    /// A procfs that is mounted below a source is covered, a sysfs and the like are read-only.
    pub guard_submounts: bool,
}

/// A bind or tmpfs that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// A bind's source on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Inside.
    pub target: SandboxPath,
    /// Why.
    pub why: String,
}
