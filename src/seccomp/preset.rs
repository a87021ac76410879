//! Filters that ship with Shannot, compiled when it was built.

use std::fmt;
use std::str::FromStr;

use super::program::{Instruction, Program};

include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// A filter that ships with Shannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// What Docker's default allows to a process without capabilities, less what a sandbox has no use for.
    Default,
    /// No filter.
    None,
}

/// A name that no preset has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown preset {0:?}")]
pub struct UnknownPreset(pub String);

impl Preset {
    /// The name of every preset.
    pub const NAMES: &'static [&'static str] = &["default", "none"];

    /// The program; `None` stands for no filter.
    pub fn program(self) -> Option<Program> {
        match self {
            Preset::Default => Some(Program::built_in(&DEFAULT)),
            Preset::None => None,
        }
    }
}

/// The filter behind an allowlist: memfd_create(2) answers ENOSYS. A file in memory lies on no mount, so that neither
/// noexec nor Landlock keeps a program in it from being executed.
pub fn no_memory_files() -> Program {
    Program::built_in(&NO_MEMORY_FILES)
}

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "default" => Ok(Preset::Default),
            "none" => Ok(Preset::None),
            other => Err(UnknownPreset(other.to_owned())),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Preset::Default => "default",
            Preset::None => "none",
        })
    }
}
