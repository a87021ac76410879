//! seccomp filters: raw programs, validated as the kernel does; presets; what a filter says about a call. Installs
//! nothing. The build script (build.rs) compiles the presets from OCI policies with `oci` and `compile`.

#[cfg(test)]
mod compile;
mod interpret;
#[cfg(test)]
mod oci;
mod preset;
mod program;
#[cfg(test)]
mod tests;

pub use interpret::{Action, Call, NATIVE_ARCH};
pub use preset::{Preset, UnknownPreset, no_memory_files};
pub use program::{Fault, Instruction, InvalidProgram, Program};
