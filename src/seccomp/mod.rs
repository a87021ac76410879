//! STUB for parallel work; the seccomp room replaces this file.
use std::str::FromStr;

/// One classic BPF instruction (linux/filter.h, struct sock_filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// A validated program.
#[derive(Debug, Clone)]
pub struct Program(Vec<Instruction>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid program")]
pub struct InvalidProgram;

impl Program {
    pub fn from_bytes(_: &[u8]) -> Result<Self, InvalidProgram> {
        Ok(Self(Vec::new()))
    }
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }
    /// Flags for seccomp(2), SECCOMP_FILTER_FLAG_*.
    pub fn flags(&self) -> u32 {
        0
    }
}

/// A filter that ships with Shannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    Default,
    None,
}

impl Preset {
    /// Name of every preset.
    pub const NAMES: &'static [&'static str] = &["default", "none"];
    /// The program; `None` means no filter.
    pub fn program(self) -> Option<Program> {
        None
    }
}

impl FromStr for Preset {
    type Err = UnknownPreset;
    fn from_str(s: &str) -> Result<Self, UnknownPreset> {
        match s {
            "default" => Ok(Preset::Default),
            "none" => Ok(Preset::None),
            _ => Err(UnknownPreset(s.into())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown preset {0:?}")]
pub struct UnknownPreset(pub String);
impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Preset::Default => "default",
            Preset::None => "none",
        })
    }
}
