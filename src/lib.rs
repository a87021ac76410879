//! Shannot: a native, in-process sandbox for Linux.
//!
//! Front ends (`profile`, `bwrap`, `cli`) produce a [`policy::Policy`]; `plan` decides, once and in
//! full, what will be done on this host; `sandbox` does it. See README.md, "The house".

pub mod bwrap;
pub mod changes;
pub mod cli;
pub mod host;
pub mod plan;
pub mod policy;
pub mod profile;
mod removal;
pub mod report;
pub mod sandbox;
pub mod seccomp;
mod spelling;
pub mod sys;
pub mod workspace;
