//! The part of the OCI runtime specification's `linux.seccomp` (config-linux.md, "Seccomp") that the presets are written
//! in. Used by the build script; a plain data model without names resolved.

use serde::Deserialize;

/// A filter policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Policy {
    /// For calls that no rule names.
    pub(crate) default_action: Action,
    /// Errno of the default action.
    #[serde(default = "eperm")]
    pub(crate) default_errno_ret: u16,
    /// The rules. An unconditional one beats all others on its call; conditional ones are tried in order.
    #[serde(default)]
    pub(crate) syscalls: Vec<Rule>,
}

/// Calls and what happens to them.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) names: Vec<String>,
    pub(crate) action: Action,
    #[serde(default = "eperm")]
    pub(crate) errno_ret: u16,
    /// All of them must hold.
    #[serde(default)]
    pub(crate) args: Vec<Argument>,
    /// For the reader.
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Argument {
    /// 0–5.
    pub(crate) index: u8,
    /// The mask, for MASKED_EQ.
    pub(crate) value: u64,
    /// The datum, for MASKED_EQ.
    #[serde(default)]
    pub(crate) value_two: u64,
    pub(crate) op: Operator,
}

/// Comparisons, as libseccomp names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Action {
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

impl Action {
    /// The filter's return value (seccomp(2)).
    pub(crate) fn return_value(self, errno: u16) -> u32 {
        match self {
            Action::KillProcess => 0x8000_0000,
            Action::Errno => 0x0005_0000 | u32::from(errno),
            Action::Log => 0x7ffc_0000,
            Action::Allow => 0x7fff_0000,
        }
    }
}

fn eperm() -> u16 {
    1
}
