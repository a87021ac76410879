//! A policy as written: the OCI runtime specification's `linux.seccomp` (config-linux.md, "Seccomp") with what Docker
//! (archMap, includes, excludes, comment, name) and Podman (errno by name) add. Form only; what it means is for
//! `policy`. Shared with the build script.

use serde::{Deserialize, Serialize};

/// A policy document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// For calls that no rule decides.
    pub default_action: ActionName,
    /// Errno, or the value for a tracer, of the default action; EPERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Podman: the same by name. Wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno: Option<String>,
    /// The native one is always meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architectures: Option<Vec<String>>,
    /// Docker: what comes along with which native architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch_map: Option<Vec<ArchMap>>,
    /// How to install the filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<Flag>>,
    /// For a runtime that serves notifications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<String>,
    /// For that listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_metadata: Option<String>,
    /// The rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscalls: Option<Vec<Rule>>,
}

/// An architecture and those that its kernel also runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArchMap {
    /// The native one.
    pub architecture: String,
    /// The others.
    #[serde(default)]
    pub sub_architectures: Option<Vec<String>>,
}

/// Calls and what happens to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Which calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// Docker's old form: which call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What happens.
    pub action: ActionName,
    /// Errno, or the value for a tracer; EPERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Podman: the same by name. Wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// All of them must hold; one index twice: any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<Argument>>,
    /// For the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The rule is there only when all of this holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub includes: Option<Selector>,
    /// The rule is not there when any of this holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excludes: Option<Selector>,
}

/// When a rule applies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Capabilities of the process (CAP_SYS_ADMIN).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caps: Option<Vec<String>>,
    /// Native architecture, by Go's names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arches: Option<Vec<String>>,
    /// Kernel version from which on (4.8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<String>,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Argument {
    /// 0–5.
    pub index: u32,
    /// The mask, for MASKED_EQ.
    pub value: u64,
    /// The datum, for MASKED_EQ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_two: Option<u64>,
    /// How they are compared.
    pub op: Operator,
}

/// Comparisons, as libseccomp names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// Not equal.
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// Less, unsigned.
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// Less or equal, unsigned.
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// Equal.
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// Greater or equal, unsigned.
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// Greater, unsigned.
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// Equal in the bits of the mask.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// Actions, as libseccomp names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionName {
    /// The old name of KILL_THREAD.
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    /// The process is killed.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The thread is killed.
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    /// SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// The call fails.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// A tracer decides.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// Allowed.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// Allowed and logged.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// A listener decides.
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// How a filter is installed (seccomp(2), SECCOMP_FILTER_FLAG_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Flag {
    /// For all threads. Shannot's command has one when the filter is installed.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    /// Log what is not allowed.
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    /// No mitigation of speculative store bypass.
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
    /// A call that a listener has received is interrupted by fatal signals only.
    #[serde(rename = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")]
    WaitKillableRecv,
}

/// Why a text is no policy document.
#[derive(Debug, thiserror::Error)]
#[error("{}{cause}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct SyntaxError {
    /// Where in the document; empty at its top.
    pub path: String,
    /// What is wrong, with line and column.
    pub cause: serde_json::Error,
}

impl Document {
    /// Every name with the index of its rule.
    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &String)> {
        let rules = self.syscalls.iter().flatten().enumerate();
        rules.flat_map(|(place, rule)| rule.names.iter().flatten().chain(&rule.name).map(move |name| (place, name)))
    }

    /// From JSON.
    ///
    /// # Errors
    /// [`SyntaxError`] with the place, for everything that is not exactly of this form.
    pub fn parse(text: &[u8]) -> Result<Self, SyntaxError> {
        // The crate writes `.` for the top and `?` for a place without a name, as in the middle of a broken text.
        let refuse = |path: String, cause| {
            let path = path.trim_end_matches('?').trim_end_matches('.').to_owned();
            SyntaxError { path, cause }
        };
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let document: Document = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| refuse(error.path().to_string(), error.into_inner()))?;
        deserializer.end().map_err(|cause| refuse(String::new(), cause))?;
        Ok(document)
    }
}
