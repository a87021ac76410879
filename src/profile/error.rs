//! Why a profile can't be used.

use std::io;
use std::path::PathBuf;

use crate::seccomp::FilterError;

/// Why a profile can't be used. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile of that name.
    #[error("cannot find a profile named {name:?}")]
    UnknownName {
        /// As asked for.
        name: String,
        /// The nearest that there is.
        nearest: Option<String>,
    },
    /// A file can't be opened or read.
    #[error("cannot read {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A directory, FIFO or device.
    #[error("cannot read {0:?}: it is not a regular file")]
    NotAFile(PathBuf),
    /// Bigger than any sane profile or filter.
    #[error("cannot read {path:?}: it is larger than {limit} bytes")]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// Root would do what another user writes.
    #[error("cannot trust {path:?} as root: {why}")]
    Untrusted {
        /// The file, or the folder on the way to it.
        path: PathBuf,
        /// Who could change it.
        why: String,
    },
    /// Not JSON, or not of the shape of a profile.
    #[error("cannot use profile {origin}: {}{cause}", place(.at))]
    Syntax {
        /// Path or name of the profile.
        origin: String,
        /// Which key, as a path through the document; empty at the top.
        at: String,
        /// What is wrong, with line and column.
        cause: serde_json::Error,
    },
    /// A key that no profile has.
    #[error("cannot use profile {origin}: unknown key {key:?}")]
    UnknownKey {
        /// Path or name of the profile.
        origin: String,
        /// As a path through the document.
        key: String,
        /// The nearest that there is.
        nearest: Option<String>,
    },
    /// A value that can't be.
    #[error("cannot use {key} of profile {origin}: {reason}")]
    Value {
        /// Path or name of the profile.
        origin: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
        /// The cure, where it is known.
        hint: Option<String>,
    },
    /// An option of the command line that can't be.
    #[error("cannot use option {option}: {reason}")]
    Option {
        /// With its dashes.
        option: String,
        /// What is wrong with it.
        reason: String,
        /// The cure, where it is known.
        hint: Option<String>,
    },
    /// A filter file that the kernel would refuse, or that would do something else than its author meant.
    #[error("cannot use seccomp filter {path:?}: {cause}")]
    Filter {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: FilterError,
    },
    /// uname(2), whose answer a policy's `minKernel` is compared with.
    #[error("cannot find out the kernel's version")]
    Kernel(#[source] io::Error),
}

fn place(at: &str) -> String {
    if at.is_empty() { String::new() } else { format!("{at}: ") }
}

impl ProfileError {
    /// A known cure.
    pub fn hint(&self) -> Option<String> {
        match self {
            ProfileError::UnknownName { nearest, .. } => {
                let nearest = nearest.as_ref().map(|name| format!("did you mean {name:?}? "));
                Some(format!(
                    "{}`shannot profile list` shows them all; a path has a \"/\" in it or ends in .json",
                    nearest.unwrap_or_default()
                ))
            }
            ProfileError::UnknownKey { nearest: Some(nearest), .. } => Some(format!("did you mean {nearest:?}?")),
            ProfileError::UnknownKey { .. } | ProfileError::Syntax { .. } => {
                Some("`shannot profile schema` prints the JSON Schema of profiles".to_owned())
            }
            ProfileError::Untrusted { .. } => {
                Some("chown it to root and take write permission from group and others".to_owned())
            }
            ProfileError::Value { hint, .. } | ProfileError::Option { hint, .. } => hint.clone(),
            ProfileError::Read { .. }
            | ProfileError::NotAFile(_)
            | ProfileError::TooLarge { .. }
            | ProfileError::Filter { .. }
            | ProfileError::Kernel(_) => None,
        }
    }
}
