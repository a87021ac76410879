//! The table of system calls, which the build script makes from crate syscalls.

/// One name and its numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// x86-64, x86, arm, aarch64, riscv64; [`NONE`] where there is no such call.
    pub(super) numbers: [u16; COLUMNS],
}

pub(super) const COLUMNS: usize = 5;
pub(super) const NONE: u16 = u16::MAX;

/// By name.
pub(super) fn rows() -> &'static [Row] {
    &ROWS
}

include!(concat!(env!("OUT_DIR"), "/calls.rs"));
