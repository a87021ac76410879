//! Carries a `Plan` out: prepares everything that can fail because of the user, makes one clone, and lets the
//! child walk the plan. Decides nothing; a failure is a (stage, index, errno) that the parent puts into words.

mod bind;
mod bubblewrap;
mod cgroups;
mod classic;
mod confine;
mod data;
mod denials;
mod descriptors;
mod executable;
mod failure;
mod gate;
mod init;
mod keeper;
mod message;
mod place;
mod prepare;
mod resolve;
mod rootfs;
mod scratch;
mod setup;
mod special;
mod staging;
mod submounts;
mod supervisor;
mod tree;

pub use bubblewrap::follow;
pub use failure::{Failure, SandboxError, Stage};
pub use prepare::{Image, Stdio};
pub use supervisor::run;
