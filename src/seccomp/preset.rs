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
    /// The same without network families, tracing, personalities and what few programs need.
    Strict,
    /// What only observes, and what a dynamically linked program needs to start.
    Readonly,
    /// No filter.
    None,
}

/// A name that no preset has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown preset {0:?}")]
pub struct UnknownPreset(pub String);

impl Preset {
    const ALL: [(&'static str, Preset); 4] = [
        ("default", Preset::Default),
        ("strict", Preset::Strict),
        ("readonly", Preset::Readonly),
        ("none", Preset::None),
    ];

    /// The name of every preset.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(|(name, _)| name)
    }

    /// The program; `None` stands for no filter.
    pub fn program(self) -> Option<Program> {
        match self {
            Preset::Default => Some(Program::built_in(&DEFAULT)),
            Preset::Strict => Some(Program::built_in(&STRICT)),
            Preset::Readonly => Some(Program::built_in(&READONLY)),
            Preset::None => None,
        }
    }

    /// The policy that it was compiled from, as JSON.
    pub fn policy(self) -> Option<&'static str> {
        match self {
            Preset::Default => Some(DEFAULT_JSON),
            Preset::Strict => Some(STRICT_JSON),
            Preset::Readonly => Some(READONLY_JSON),
            Preset::None => None,
        }
    }
}

/// The filter behind an allowlist: memfd_create(2) answers ENOSYS. A file in memory lies on no mount, so that neither
/// noexec nor Landlock keeps a program in it from being executed.
pub fn no_memory_files() -> Program {
    Program::built_in(&NO_MEMORY_FILES)
}

/// What closes the ways around Landlock where the command stays in the host's own tree and namespaces, each with its name:
/// Landlock of an older ABI leaves more to them. With the network off, no socket can be made at all.
pub fn in_place(abi: i32, network: bool) -> Vec<(&'static str, Program)> {
    /// First ABI with a right for truncation, and with a scope for signals (landlock(7)).
    const ABI_TRUNCATE: i32 = 3;
    const ABI_SIGNALS: i32 = 6;
    let sockets: (&str, &'static [Instruction]) =
        if network { ("in-place-network", &IN_PLACE_NETWORK) } else { ("in-place-no-sockets", &IN_PLACE_NO_SOCKETS) };
    let mut programs: Vec<(&str, &'static [Instruction])> = vec![("in-place", &IN_PLACE), sockets];
    if abi < ABI_TRUNCATE {
        programs.push(("in-place-truncation", &IN_PLACE_TRUNCATION));
    }
    if abi < ABI_SIGNALS {
        programs.push(("in-place-signals", &IN_PLACE_SIGNALS));
    }
    programs.into_iter().map(|(name, program)| (name, Program::built_in(program))).collect()
}

/// Whether a program is that of a preset, and so refuses what none of them allows.
pub fn is_preset(program: &Program) -> bool {
    without_memory_files(program).is_some()
}

/// A preset's program that is [`no_memory_files`] as well, which saves installing another one. `None` for a program
/// that is no preset's.
pub fn without_memory_files(program: &Program) -> Option<Program> {
    let variants: [(&'static [Instruction], &'static [Instruction]); 3] = [
        (&DEFAULT, &DEFAULT_NO_MEMORY_FILES),
        (&STRICT, &STRICT_NO_MEMORY_FILES),
        (&READONLY, &READONLY_NO_MEMORY_FILES),
    ];
    let same = |preset: &[Instruction]| std::ptr::eq(preset, program.instructions());
    variants.into_iter().find(|(preset, _)| same(preset)).map(|(_, variant)| Program::built_in(variant))
}

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|(known, _)| *known == name);
        known.map(|(_, preset)| preset).ok_or_else(|| UnknownPreset(name.to_owned()))
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.into_iter().find(|(_, preset)| preset == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}
