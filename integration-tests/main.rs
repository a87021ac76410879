//! What Shannot promises, tried on the real binary: each promise as *works inside / denied inside*, as root and as an
//! ordinary user, each layer also with the others off. One file a promise.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test's ways to fail"
)]

mod support;

mod allowlist;
mod bwrap;
mod bwrap_differential;
mod bwrap_handed;
mod bwrap_messages;
mod changes;
mod changes_artifacts;
mod changes_hostile;
mod ci;
mod ci_systems;
mod ci_workspace;
mod command_line;
mod environment;
mod faults;
mod files;
mod gitlab;
mod gitlab_runner;
mod hiding;
mod hostile_input;
mod hostile_jobs;
mod house;
mod in_place;
mod layers;
mod leftovers;
mod limits;
mod loaders;
mod network;
mod plans;
mod private_folder;
mod privileges;
mod processes;
mod profiles;
mod promises;
mod races;
mod refusing_hosts;
mod reports;
mod seccomp;
mod seccomp_commands;
mod seccomp_peers;
mod submounts;
mod supervisor;
mod terminal;
