//! A filter to be installed, from whatever it was written as.

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::sys::utsname::uname;

use super::abi::{Abi, is_known};
use super::compile::compile;
use super::oci::{Document, Flag, SyntaxError};
use super::policy::{Context, Policy, PolicyError, kernel_version};
use super::program::{Instruction, InvalidProgram, Program};

/// A filter and how to install it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// For messages: a path, or the name of a preset.
    pub origin: String,
    /// What it does.
    pub program: Program,
    /// What its policy asks for; nothing for a raw program.
    pub flags: BTreeSet<Flag>,
    /// Names in its policy that no architecture has: the rules do nothing for them.
    pub unknown_names: BTreeSet<String>,
}

/// Why a text or an array of bytes is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is JSON, or nearly, and not of the form of a policy.
    #[error("{0}")]
    Syntax(#[from] SyntaxError),
    /// It says what can't be.
    #[error("{0}")]
    Policy(#[from] PolicyError),
    /// The kernel would refuse it.
    #[error("{0}")]
    Program(#[from] InvalidProgram),
    /// seccompiler refuses a condition.
    #[error("{0}")]
    Condition(String),
}

impl Filter {
    /// From the content of a file: an OCI policy, or a raw program.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn from_bytes(origin: impl Into<String>, bytes: &[u8], context: &Context) -> Result<Self, FilterError> {
        let origin = origin.into();
        if !is_json(bytes) {
            return Ok(Self::raw(origin, Program::from_bytes(bytes)?));
        }
        let document = Document::parse(bytes)?;
        let policy = Policy::new(&document, context)?;
        let unknown_names =
            document.names().filter(|(_, name)| !is_known(name)).map(|(_, name)| name.clone()).collect();
        Ok(Self { origin, program: Program::compile(&policy)?, flags: policy.flags, unknown_names })
    }

    /// A program without a policy behind it.
    pub fn raw(origin: impl Into<String>, program: Program) -> Self {
        Self { origin: origin.into(), program, flags: BTreeSet::new(), unknown_names: BTreeSet::new() }
    }
}

/// Whether a file holds a policy rather than a program, which begins with an operation and never with this.
pub fn is_json(bytes: &[u8]) -> bool {
    bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

impl Program {
    /// From a policy. Equal policies give equal programs.
    ///
    /// # Errors
    /// [`FilterError`]: more than the 4096 instructions that the kernel takes.
    pub fn compile(policy: &Policy) -> Result<Self, FilterError> {
        let words = compile(policy).map_err(FilterError::Condition)?;
        let instructions = words.into_iter().map(|(code, jt, jf, k)| Instruction { code, jt, jf, k });
        Ok(Self::new(instructions.collect())?)
    }
}

impl Context {
    /// For a process without capabilities on this machine.
    ///
    /// # Errors
    /// As uname(2); EINVAL for a kernel that doesn't say its version.
    pub fn here() -> nix::Result<Self> {
        let release = uname()?.release().to_string_lossy().into_owned();
        let kernel = kernel_version(&release).ok_or(Errno::EINVAL)?;
        Ok(Self { native: Abi::NATIVE, capabilities: BTreeSet::new(), kernel })
    }
}
