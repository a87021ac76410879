//! The table of system calls, which the build script makes from crate syscalls.

use super::abi::Row;

/// By name.
pub(super) fn rows() -> &'static [Row] {
    &ROWS
}

include!(concat!(env!("OUT_DIR"), "/calls.rs"));
