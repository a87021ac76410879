//! Why there is no plan.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use crate::host::Cause;
use crate::policy::SandboxPath;
use crate::report::Layer;
use crate::seccomp::{Action, InvalidProgram};

/// Why a policy can't be carried out on this host. Nothing was done yet.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The command word is the empty string.
    #[error("cannot run a command whose name is empty")]
    EmptyCommand,
    /// The command word matches no pattern of the allowlist.
    #[error("command {} is not allowed by the profile", quoted(.word))]
    NotAllowed {
        /// As typed.
        word: OsString,
        /// The patterns.
        allowed: Vec<String>,
    },
    /// A NUL byte ends a string for the kernel.
    #[error("cannot pass argument {} with a NUL byte in it", quoted(.0))]
    NulInArgument(OsString),
    /// A variable that execve(2) can't carry.
    #[error("cannot set environment variable {}: its name is empty or has \"=\" in it, or there is a NUL byte", quoted(.0))]
    BadVariable(OsString),
    /// A bind's source is not there and not optional.
    #[error("cannot bind {origin:?} to {target:?}")]
    Source {
        /// On the host.
        origin: PathBuf,
        /// Inside.
        target: SandboxPath,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The host's /proc shows all its processes, and only Landlock keeps the sandbox from looking through them.
    #[error(
        "cannot bind the host's {0:?}: only Landlock would keep the sandbox out of other processes, and it is not in force"
    )]
    HostProc(PathBuf),
    /// Without a user namespace the caller must be root.
    #[error("cannot make namespaces without a user namespace: this needs root")]
    NeedsPrivilege,
    /// Namespaces are asked for, and this host refuses them.
    #[error("cannot isolate by namespaces: {}", .cause.cause)]
    NoNamespaces {
        /// Why.
        cause: Cause,
    },
    /// Neither namespaces nor Landlock.
    #[error("cannot isolate anything here: {}; and {}", .namespaces.cause, .landlock.cause)]
    NoIsolation {
        /// Why no namespaces.
        namespaces: Cause,
        /// Why no Landlock.
        landlock: Cause,
    },
    /// A promise that needs a root of its own.
    #[error("cannot {promise} without a mount namespace: {}", .cause.cause)]
    NotInPlace {
        /// What the policy asks for.
        promise: String,
        /// Whose promise it is.
        layer: Layer,
        /// Why there is none.
        cause: Cause,
        /// The command has no use of a run without it, so that nobody can give it up.
        needed: bool,
    },
    /// A filter that would let nothing start.
    #[error("cannot start anything under the seccomp filter {origin}: it answers execve with {verdict}")]
    FilterRefusesLaunch {
        /// Path or preset.
        origin: String,
        /// What it does.
        verdict: Action,
    },
    /// A filter that asks a listener, and there is none.
    #[error(
        "cannot use the seccomp filter {origin}: instruction {instruction} asks a listener (SCMP_ACT_NOTIFY), and nobody would answer"
    )]
    FilterNotifies {
        /// Path or preset.
        origin: String,
        /// Which instruction, from 0.
        instruction: usize,
    },
    /// A filter that can't be installed under another one.
    #[error("cannot install the seccomp filter {origin} under {before}, which refuses seccomp(2) and prctl(2)")]
    FiltersExclude {
        /// Path or preset.
        origin: String,
        /// The other one.
        before: String,
    },
    /// A filter that is full, and has to let the launch through.
    #[error("cannot let the launch through the seccomp filter {origin}")]
    FilterTooLong {
        /// Path or preset.
        origin: String,
        /// Why.
        #[source]
        cause: InvalidProgram,
    },
    /// A layer that was required can't be in force in full.
    #[error("cannot enforce {layer}, which is required: {state}")]
    Required {
        /// Which.
        layer: Layer,
        /// What it would be instead.
        state: String,
        /// What to do, where that is known.
        cure: Option<String>,
    },
}

fn quoted(text: &OsString) -> String {
    format!("{:?}", text.to_string_lossy())
}

impl PlanError {
    /// A known cure.
    pub fn hint(&self) -> Option<String> {
        match self {
            PlanError::NotAllowed { allowed, .. } => {
                Some(format!("allowed_commands has: {}. It matches the word as typed", allowed.join(", ")))
            }
            PlanError::Source { .. } => {
                Some("make the source; a profile can go on without it: \"optional\": true".to_owned())
            }
            PlanError::HostProc(_) => {
                Some("leave the bind out: a fresh /proc of the sandbox's own processes is mounted by itself".to_owned())
            }
            PlanError::NeedsPrivilege => {
                Some("run as root, or leave out \"user_namespace_isolation\": false".to_owned())
            }
            PlanError::NoNamespaces { cause } => cause.cure.clone(),
            PlanError::NoIsolation { namespaces, landlock } => {
                let cures: Vec<&str> = [namespaces, landlock].into_iter().filter_map(|cause| cause.cure.as_deref()).collect();
                (!cures.is_empty()).then(|| cures.join("\nor: "))
            }
            PlanError::Required { cure, .. } => cure.clone(),
            PlanError::NotInPlace { cause, needed: true, .. } => cause.cure.clone(),
            PlanError::NotInPlace { layer, cause, .. } => {
                let give_up = format!("do without it: --allow-degraded {layer}");
                Some(cause.cure.as_ref().map_or_else(|| give_up.clone(), |cure| format!("{cure}\nor {give_up}")))
            }
            PlanError::FilterRefusesLaunch { .. } => {
                Some("allow execve in its policy; or \"exec_once\": true (--exec-once) lets the command itself start and nothing after it".to_owned())
            }
            PlanError::FiltersExclude { .. } => {
                Some("allow seccomp in one of the two policies, or write both into one".to_owned())
            }
            PlanError::FilterNotifies { .. } => Some("use SCMP_ACT_ERRNO, or SCMP_ACT_LOG to see who calls".to_owned()),
            PlanError::EmptyCommand
            | PlanError::NulInArgument(_)
            | PlanError::BadVariable(_)
            | PlanError::FilterTooLong { .. } => None,
        }
    }
}
