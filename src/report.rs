//! What protection there is, and how a run ended: the vocabulary of `Plan` (expected) and of the
//! report (enforced). A leaf: it knows no other room and makes no decision.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// One protection. The name is what `--require`, `--allow-degraded` and the report call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// A user namespace of its own (user_namespaces(7)).
    UserNamespace,
    /// A mount namespace with a root of its own (mount_namespaces(7)).
    MountNamespace,
    /// Processes outside are neither seen nor signalled (pid_namespaces(7)).
    PidNamespace,
    /// No network but a loopback of its own (network_namespaces(7)).
    NetworkNamespace,
    /// System V IPC and POSIX message queues of its own (ipc_namespaces(7)).
    IpcNamespace,
    /// A host name of its own (uts_namespaces(7)).
    UtsNamespace,
    /// The cgroup tree of the host is not shown (cgroup_namespaces(7)).
    CgroupNamespace,
    /// A fresh procfs, its control files masked or read-only.
    Procfs,
    /// All five capability sets empty (capabilities(7)).
    Capabilities,
    /// `no_new_privs` (prctl(2), PR_SET_NO_NEW_PRIVS).
    NoNewPrivileges,
    /// No user namespace can be created inside (`user.max_user_namespaces`).
    UsernsLimit,
    /// Landlock confines files (landlock(7)).
    LandlockFs,
    /// Landlock refuses TCP (ABI 4).
    LandlockNet,
    /// Landlock confines signals and abstract sockets (ABI 6).
    LandlockScope,
    /// seccomp filters (seccomp(2)).
    Seccomp,
    /// Only the allowed commands can be executed.
    Allowlist,
    /// Nothing can be executed after the command itself.
    ExecOnce,
    /// The environment is the profile's alone.
    Environment,
    /// No descriptor of the caller above 2 is open inside.
    Descriptors,
    /// A session keyring of its own (keyrings(7)).
    Keyring,
    /// `limits.timeout`.
    LimitTimeout,
    /// `limits.memory`.
    LimitMemory,
    /// `limits.pids`.
    LimitPids,
    /// `limits.cpus`.
    LimitCpus,
    /// `limits.file_size`.
    LimitFileSize,
    /// `limits.open_files`.
    LimitOpenFiles,
    /// `limits.tmpfs_size`.
    LimitTmpfsSize,
}

impl Layer {
    /// Every layer with its name, in the order in which reports print them.
    pub const NAMES: &'static [(Layer, &'static str)] = &[
        (Layer::UserNamespace, "user-namespace"),
        (Layer::MountNamespace, "mount-namespace"),
        (Layer::PidNamespace, "pid-namespace"),
        (Layer::NetworkNamespace, "network-namespace"),
        (Layer::IpcNamespace, "ipc-namespace"),
        (Layer::UtsNamespace, "uts-namespace"),
        (Layer::CgroupNamespace, "cgroup-namespace"),
        (Layer::Procfs, "procfs"),
        (Layer::Capabilities, "capabilities"),
        (Layer::NoNewPrivileges, "no-new-privs"),
        (Layer::UsernsLimit, "userns-limit"),
        (Layer::LandlockFs, "landlock-fs"),
        (Layer::LandlockNet, "landlock-net"),
        (Layer::LandlockScope, "landlock-scope"),
        (Layer::Seccomp, "seccomp"),
        (Layer::Allowlist, "allowlist"),
        (Layer::ExecOnce, "exec-once"),
        (Layer::Environment, "environment"),
        (Layer::Descriptors, "descriptors"),
        (Layer::Keyring, "keyring"),
        (Layer::LimitTimeout, "limits.timeout"),
        (Layer::LimitMemory, "limits.memory"),
        (Layer::LimitPids, "limits.pids"),
        (Layer::LimitCpus, "limits.cpus"),
        (Layer::LimitFileSize, "limits.file_size"),
        (Layer::LimitOpenFiles, "limits.open_files"),
        (Layer::LimitTmpfsSize, "limits.tmpfs_size"),
    ];

    /// The name in reports and on the command line.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(layer, _)| *layer == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Layer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A feature name that no layer has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown feature {0:?}")]
pub struct UnknownLayer(pub String);

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(layer, _)| *layer)
            .ok_or_else(|| UnknownLayer(name.to_owned()))
    }
}

/// How far a layer is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Enforcement {
    /// All of what the layer stands for.
    Full {
        /// The mechanism, where there is more than one.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// In force, but without the named part.
    Partial {
        /// What does not hold.
        missing: String,
    },
    /// Not in force.
    Off {
        /// The reason.
        why: String,
    },
}

impl Enforcement {
    /// In full, where the mechanism needs no words.
    pub const FULL: Enforcement = Enforcement::Full { by: None };

    /// In full, by the named mechanism.
    pub fn by(mechanism: impl Into<String>) -> Self {
        Enforcement::Full { by: Some(mechanism.into()) }
    }

    /// Whether nothing is missing.
    pub fn is_full(&self) -> bool {
        matches!(self, Enforcement::Full { .. })
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Enforcement::Full { by: None } => f.write_str("full"),
            Enforcement::Full { by: Some(by) } => write!(f, "full ({by})"),
            Enforcement::Partial { missing } => write!(f, "partial (without {missing})"),
            Enforcement::Off { why } => write!(f, "off ({why})"),
        }
    }
}

/// Each layer that the policy speaks of, and how far it is in force.
pub type Effective = BTreeMap<Layer, Enforcement>;

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum Ending {
    /// The command exited by itself.
    Exited {
        /// Its exit status, 0–255.
        code: u8,
    },
    /// A signal ended the command.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// The whole sandbox was killed from outside (its pid 1 died before the command ended).
    SandboxKilled {
        /// The signal's number.
        signal: i32,
    },
}

/// Who ended the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The command itself, or a process inside.
    Command,
    /// `limits.timeout`: asked to end with SIGTERM.
    Timeout,
    /// `limits.kill_after`: it did not end when asked, and was killed.
    KillAfter,
    /// A signal that was sent to shannot and passed on.
    ForwardedSignal,
    /// The kernel, since the memory of its cgroup was used up: `limits.memory`, or that of a cgroup around it.
    Memory,
    /// Something outside killed the sandbox: the kernel out of memory, or an operator.
    Outside,
}

/// What the command and all it started used, as getrusage(2) counts it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Resources {
    /// Wall-clock time from the clone to the end of the last process, seconds.
    pub elapsed_seconds: f64,
    /// User CPU time, seconds.
    pub user_seconds: f64,
    /// System CPU time, seconds.
    pub system_seconds: f64,
    /// The largest resident set of any one process, KiB.
    pub max_resident_kib: u64,
    /// What cgroups counted, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Counted>,
}

/// What the cgroups of a run counted: the whole sandbox, of which getrusage(2) knows what was waited for. Each where the kernel
/// counts it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Counted {
    /// The most memory at a time, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Processes that were killed because memory was used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// CPU time, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// The most processes and threads at a time, Shannot's own in there with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_peak: Option<u64>,
    /// How often there would have been one too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_refused: Option<u64>,
}

/// What a layer is known to have refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// Which layer.
    pub layer: Layer,
    /// What was tried.
    pub action: &'static str,
    /// On what, as far as the process can be believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// How often.
    pub count: u64,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refused to {}", self.layer, self.action)?;
        if let Some(object) = &self.object {
            write!(f, " {object:?}")?;
        }
        if self.count > 1 { write!(f, " ({} times)", self.count) } else { Ok(()) }
    }
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// How the command ended.
    pub ending: Ending,
    /// Who ended it.
    pub ended_by: EndedBy,
    /// The signal that was passed on last, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded_signal: Option<i32>,
    /// What it used.
    pub resources: Resources,
    /// What is known of what was refused. The report has it beside this.
    #[serde(skip)]
    pub denials: Vec<Denial>,
    /// The terminal's interrupt key reached shannot itself: a caller that is a shell wants to see
    /// death by SIGINT rather than exit code 130, or its loops go on.
    #[serde(skip)]
    pub interrupted_from_terminal: bool,
    /// The private folder of a run without namespaces could not be removed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub left_behind: bool,
    /// A cgroup could not be removed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cgroup_left_behind: bool,
}

impl Outcome {
    /// The exit status that tells the caller: the command's own, 128+n for signal n, 124 for the
    /// timeout.
    pub fn exit_code(&self) -> u8 {
        if matches!(self.ended_by, EndedBy::Timeout | EndedBy::KillAfter) {
            return 124;
        }
        match self.ending {
            Ending::Exited { code } => code,
            Ending::Signalled { signal } | Ending::SandboxKilled { signal } => {
                u8::try_from(128 + signal).unwrap_or(255)
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ending {
            Ending::Exited { code } => write!(f, "exit code {code}")?,
            Ending::Signalled { signal } => write!(f, "ended by signal {signal}")?,
            Ending::SandboxKilled { signal } => write!(f, "the sandbox was ended by signal {signal}")?,
        }
        match self.ended_by {
            EndedBy::Command => Ok(()),
            EndedBy::Timeout => f.write_str(", after the timeout"),
            EndedBy::KillAfter => f.write_str(", killed since it did not end after the timeout"),
            EndedBy::ForwardedSignal => f.write_str(", which was passed on"),
            EndedBy::Outside => f.write_str(", from outside"),
            EndedBy::Memory => f.write_str(": out of memory"),
        }
    }
}
