//! seccomp filters: OCI policies and raw programs in; programs, validated as the kernel does, out; what a filter says about
//! a call, and what is wrong with it. Installs nothing. The build script (build.rs) compiles the presets with the same code.

mod abi;
mod action;
mod analyze;
mod calls;
mod compile;
mod decide;
mod decision;
mod errno;
mod explain;
mod filter;
mod fix;
mod graph;
mod interpret;
mod launch;
mod lint;
mod lint_rules;
mod oci;
mod policy;
#[cfg(test)]
mod policy_tests;
mod preset;
mod program;
mod search;
#[cfg(test)]
mod tests;

pub use abi::{Abi, UnknownAbi};
pub use action::Action;
pub use analyze::Verdicts;
pub use explain::{CallEntry, Explanation, Interface, Line};
pub use filter::{Filter, FilterError, is_json};
pub use fix::Fix;
pub use interpret::Call;
pub use launch::Gate;
pub use lint::{Finding, Severity, Subject};
pub use oci::{ActionName, Document, Flag, Operator, SyntaxError};
pub use policy::{Condition, Context, Policy, PolicyError, Rule, kernel_version};
pub use preset::{Preset, UnknownPreset, in_place, is_preset, no_memory_files, without_memory_files};
pub use program::{Fault, Instruction, InvalidProgram, Program};
