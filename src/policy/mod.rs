//! Validated intent: what the caller wants, free of facts about the host. Every front end ends here
//! and `plan` starts here. No I/O in this room.

mod address;
mod bubblewrap;
mod limits;
mod path;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::Serialize;

use crate::report::Layer;
use crate::seccomp::Filter;

pub use address::without_userinfo;
pub use bubblewrap::{Bubblewrap, CapabilityEdit, CapabilityName, Handed};
pub use limits::{Cpus, Limits, LimitsError, parse_cpus, parse_duration, parse_size};
pub use path::{PathError, SandboxPath};

/// Everything that a run was asked to be.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Identifies the policy in messages and reports: the profile's `name`.
    pub name: String,
    /// The command word and its arguments. Empty until the front end has one.
    pub command: Vec<OsString>,
    /// What the command sees as its argv\[0\], if not the command word.
    pub argv0: Option<OsString>,
    /// fnmatch patterns of the command words that may be typed; empty allows all.
    pub allowed_commands: Vec<String>,
    /// What holds `allowed_commands`.
    pub command_enforcement: CommandEnforcement,
    /// Operations on the new root, in order.
    pub fs: Vec<FsOp>,
    /// Caches on the host, which must be there before.
    pub caches: Vec<Cache>,
    /// The command's environment.
    pub environment: Environment,
    /// Where the command starts.
    pub workdir: Workdir,
    /// The folder that it works on, which operations of `fs` show.
    pub workspace: Option<Workspace>,
    /// The host name inside; `None` keeps a copy of the host's.
    pub hostname: Option<String>,
    /// Which namespaces are made, besides a mount namespace and what `network` says.
    pub namespaces: Namespaces,
    /// What of the network there is.
    pub network: Network,
    /// How much Landlock matters.
    pub landlock: LandlockMode,
    /// How to isolate.
    pub backend: Backend,
    /// seccomp filters, installed in this order. The kernel runs all of them; the strictest verdict wins.
    pub filters: Vec<Filter>,
    /// The command is executed, also under a filter that refuses it, and nothing can be executed after it.
    pub exec_once: bool,
    /// Resource limits.
    pub limits: Limits,
    /// The command gets a session of its own and no terminal.
    pub new_session: bool,
    /// Layers that must be in force in full, or nothing runs.
    pub require: BTreeSet<Layer>,
    /// Layers that may be missing without refusing.
    pub allow_degraded: BTreeSet<Layer>,
    /// The policy is a command line of bubblewrap's: what that leaves open is left open, and this is what only it can ask
    /// for. `None` is Shannot's own contract, in which nothing is open that was not asked for.
    pub bubblewrap: Option<Box<Bubblewrap>>,
}

impl Policy {
    /// Keeps what is changed in an overlaid workspace in these folders of the host's, which are on one file system.
    pub fn keep_changes(&mut self, upper: PathBuf, work: PathBuf) {
        let Some(workspace) = self.workspace.as_ref().filter(|workspace| workspace.overlay) else { return };
        for op in &mut self.fs {
            if let FsOp::Overlay { top, target, .. } = op
                && target.as_path() == workspace.path
            {
                *top = OverlayTop::Host { upper: upper.clone(), work: work.clone() };
            }
        }
    }

    /// The strictest policy that still has a name: an empty root, nothing bound, nothing allowed out.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            command: Vec::new(),
            argv0: None,
            allowed_commands: Vec::new(),
            command_enforcement: CommandEnforcement::Kernel,
            fs: Vec::new(),
            caches: Vec::new(),
            environment: Environment::default(),
            workdir: Workdir::Caller,
            workspace: None,
            hostname: None,
            namespaces: Namespaces { user: true, pid: true, ipc: true, uts: true, cgroup: true },
            network: Network::None,
            landlock: LandlockMode::BestEffort,
            backend: Backend::Auto,
            filters: Vec::new(),
            exec_once: false,
            limits: Limits::default(),
            new_session: false,
            require: BTreeSet::new(),
            allow_degraded: BTreeSet::new(),
            bubblewrap: None,
        }
    }
}

/// Which namespaces are made (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces {
    /// A user namespace. Without one, privilege is needed.
    pub user: bool,
    /// A pid namespace.
    pub pid: bool,
    /// System V IPC and POSIX message queues of its own.
    pub ipc: bool,
    /// A host name of its own.
    pub uts: bool,
    /// The cgroup tree of the host is not shown.
    pub cgroup: bool,
}

/// One operation on the new root. The user chooses their order; all targets are resolved inside the
/// new root and never lead out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FsOp {
    /// A host path, with its submounts, at `target`.
    Bind {
        /// Path on the host. Absolute.
        source: PathBuf,
        /// Where it appears.
        target: SandboxPath,
        /// What may be done there.
        access: Access,
        /// A missing source is skipped and shown, not an error.
        optional: bool,
    },
    /// What a descriptor of the caller's names, with its submounts, at `target`.
    BindDescriptor {
        /// The descriptor, open in this process.
        fd: RawFd,
        /// Where it appears.
        target: SandboxPath,
        /// What may be done there.
        access: Access,
    },
    /// A file with what can be read from a descriptor of the caller's.
    Data {
        /// The descriptor, open in this process.
        fd: RawFd,
        /// Where the file appears.
        target: SandboxPath,
        /// How it gets there.
        placement: Placement,
        /// Permission bits; without them [`Placement::default_mode`].
        mode: Option<u32>,
    },
    /// Directories of the host's, one over the other (overlayfs).
    Overlay {
        /// The lower ones on the host, the lowest first. Absolute.
        sources: Vec<PathBuf>,
        /// What is on top.
        top: OverlayTop,
        /// Where.
        target: SandboxPath,
    },
    /// An empty tmpfs.
    Tmpfs {
        /// Where.
        target: SandboxPath,
        /// Permission bits of its root.
        mode: u32,
        /// Bytes; `None` shares one tmpfs, and so one limit, with all others that say `None`.
        size: Option<u64>,
        /// Left out and shown, not an error, where a bound folder of the host has no such directory.
        optional: bool,
    },
    /// A procfs of the new pid namespace, its control files masked; without such a namespace the host's.
    Proc {
        /// Where.
        target: SandboxPath,
    },
    /// A minimal /dev: null, zero, full, random, urandom, tty, a devpts and a shm of its own.
    Dev {
        /// Where.
        target: SandboxPath,
    },
    /// A POSIX message queue file system (mq_overview(7)).
    Mqueue {
        /// Where.
        target: SandboxPath,
    },
    /// A directory, made if it is not there.
    Dir {
        /// Where.
        target: SandboxPath,
        /// Permission bits when it is made.
        mode: u32,
    },
    /// A symbolic link. An existing link of the same text is fine.
    Symlink {
        /// What the link says.
        text: PathBuf,
        /// Where it is made.
        target: SandboxPath,
    },
    /// Permission bits of something that exists.
    Chmod {
        /// What.
        target: SandboxPath,
        /// The permission bits.
        mode: u32,
    },
    /// The mount at `target` made read-only, without its submounts.
    RemountReadOnly {
        /// A mount point.
        target: SandboxPath,
    },
    /// An empty, unreadable thing of the same kind over `target`, and over all that earlier binds show of what it is on the
    /// host; nothing if there is nothing. What comes later and names it is shown.
    Hide {
        /// What to hide.
        target: SandboxPath,
    },
}

impl FsOp {
    /// Where the operation takes effect.
    pub fn target(&self) -> &SandboxPath {
        match self {
            FsOp::Bind { target, .. }
            | FsOp::BindDescriptor { target, .. }
            | FsOp::Data { target, .. }
            | FsOp::Overlay { target, .. }
            | FsOp::Tmpfs { target, .. }
            | FsOp::Proc { target }
            | FsOp::Dev { target }
            | FsOp::Mqueue { target }
            | FsOp::Dir { target, .. }
            | FsOp::Symlink { target, .. }
            | FsOp::Chmod { target, .. }
            | FsOp::RemountReadOnly { target }
            | FsOp::Hide { target } => target,
        }
    }
}

/// What a bind allows. All of them are nosuid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read-only and nodev, submounts included.
    ReadOnly,
    /// Writable and nodev.
    ReadWrite,
    /// Writable, and device nodes work.
    Device,
}

/// How data gets to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Written into a file there, which is made or emptied.
    File,
    /// Bound over what is there, writable.
    Bind,
    /// Bound over what is there, read-only.
    RoBind,
}

impl Placement {
    /// Permission bits of the file, if none are asked for.
    pub fn default_mode(self) -> u32 {
        match self {
            Placement::File => 0o666,
            Placement::Bind | Placement::RoBind => 0o600,
        }
    }
}

/// What is on top of an overlay, and takes the changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OverlayTop {
    /// Directories of the host's, on one file system.
    Host {
        /// Takes the changes. Absolute.
        upper: PathBuf,
        /// overlayfs's own, empty. Absolute.
        work: PathBuf,
    },
    /// A tmpfs that is gone afterwards.
    Tmpfs,
    /// Nothing: read-only.
    Nothing,
}

/// The command's environment: `set` over what `pass` lets through, or over all of the caller's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Variables and their values. They win over inherited ones.
    pub set: BTreeMap<OsString, OsString>,
    /// fnmatch patterns of the caller's variables that are passed on.
    pub pass: Vec<String>,
    /// All of the caller's variables are passed on.
    pub inherit: bool,
    /// Names that are never passed on.
    pub unset: BTreeSet<OsString>,
    /// fnmatch patterns of names that are never passed on.
    pub deny: Vec<String>,
}

/// A folder of the host's that tools keep things in from run to run, the caller's alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Where the caller keeps caches.
    pub base: PathBuf,
    /// Below that; made by Shannot, and without links.
    pub below: PathBuf,
}

/// The folder that a command works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// On the host and inside, without links.
    pub path: PathBuf,
    /// Changes are kept beside it.
    pub overlay: bool,
    /// git's administrative folders in which nothing may appear that leads git elsewhere.
    pub guards: Vec<PathBuf>,
    /// git's configurations that are shown: CI systems put tokens into them.
    pub configs: Vec<PathBuf>,
}

/// Where the command starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workdir {
    /// The caller's directory if it exists inside, else `$HOME`, else `/`.
    Caller,
    /// This directory; it must exist inside.
    Path(SandboxPath),
}

/// What of the network there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A network namespace with nothing but loopback, and no TCP on that either where Landlock can refuse it.
    None,
    /// A network namespace with nothing but loopback.
    Loopback,
    /// The host's network.
    Host,
}

/// What holds the allowlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandEnforcement {
    /// Nothing else can be executed inside.
    Kernel,
    /// Only the command word is looked at, as Shannot 0.3 did.
    Argv0,
}

/// How much Landlock matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandlockMode {
    /// Refuse to run without it.
    Required,
    /// What the kernel has; the report says what is missing.
    BestEffort,
    /// Not used.
    Off,
}

/// How to isolate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The strongest way that this host has and that holds what the policy promises.
    Auto,
    /// Namespaces, or not at all.
    Namespaces,
    /// Landlock and filters in the host's own tree, or not at all.
    Landlock,
}
