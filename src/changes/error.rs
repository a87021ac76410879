//! Why changes can't be kept, read or applied, and the cure where there is one.

use std::io;
use std::path::{Path, PathBuf};

use super::upper::Foreign;

/// A failure. Nothing more of the workspace is changed after it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {verb} {path:?}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// Of what; paths below a workspace are relative to it.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A mark of overlayfs that this does not read: the mount was not made as Shannot makes it.
    #[error("{path:?} carries {attribute}, which an overlay of Shannot's never has")]
    Foreign {
        /// Relative to the workspace.
        path: PathBuf,
        /// Without its name space.
        attribute: Foreign,
    },
    /// The changes of a hostile command, or a workspace that is one.
    #[error("cannot hold the changes of run {run} in memory: their names take more than {} MiB", .most >> 20)]
    TooMany {
        /// Whose.
        run: String,
        /// Bytes that they may have.
        most: usize,
    },
    /// Somebody changes the workspace while it is written.
    #[error("{0:?} was replaced in the workspace meanwhile")]
    Swapped(PathBuf),
    /// At the path of the workspace there is another folder now.
    #[error("{0:?} is not the folder that the run was started in")]
    OtherWorkspace(PathBuf),
    /// No run's name begins with this, or it was discarded meanwhile.
    #[error("there is no run {0:?}")]
    NoRun(String),
    /// Several runs' names begin with this.
    #[error("{prefix:?} is the beginning of several runs: {}", .runs.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// What it may be.
        runs: Vec<String>,
    },
    /// The command of this run has not ended, or another command of Shannot's looks at it.
    #[error("run {0} is in use")]
    InUse(String),
    /// `run.json` of this run can't be understood.
    #[error("cannot read the record of run {id}")]
    Record {
        /// Which.
        id: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// No path that `--only` or `--artifact` could mean.
    #[error("{0:?} is not in the workspace")]
    NotInside(PathBuf),
    /// `--only` names what no change is at or in.
    #[error("nothing was changed at {0:?}")]
    NotChanged(PathBuf),
    /// `--artifact` names what the command did not leave.
    #[error("{0:?} does not exist in the workspace as the command left it")]
    NoArtifact(PathBuf),
    /// An artifact's place is taken: it replaces nothing.
    #[error("cannot write {0:?}: there is something already")]
    Exists(PathBuf),
    /// Something on the way to an artifact's place in the workspace is no folder of it.
    #[error("cannot write below {0:?} in the workspace: it is a link, a file, or something else is mounted there")]
    NoFolder(PathBuf),
    /// Neither XDG_STATE_HOME nor HOME says where changes are kept.
    #[error("there is no folder to keep changes in")]
    NoPlace,
    /// The folder where changes are kept, or for root one on the way to it, is another's, or others can write in it.
    #[error("{0:?} does not belong to the caller alone")]
    Untrusted(PathBuf),
    /// The store is on a file system that overlayfs does not take as its top.
    #[error("cannot keep changes in {path:?}: it is on {file_system}")]
    Unfit {
        /// The store.
        path: PathBuf,
        /// What it is on.
        file_system: &'static str,
    },
    /// The store lies in the workspace: overlayfs refuses an upper directory below the lower one.
    #[error("cannot keep changes in {store:?}: it lies in the workspace {workspace:?}")]
    Inside {
        /// The store.
        store: PathBuf,
        /// The workspace.
        workspace: PathBuf,
    },
}

impl Error {
    /// The cure, where one is known.
    pub fn hint(&self) -> Option<String> {
        let elsewhere = "set XDG_STATE_HOME to a folder of yours on a local file system (ext4, xfs, btrfs, tmpfs)";
        match self {
            Error::NoPlace | Error::Unfit { .. } => Some(elsewhere.to_owned()),
            Error::Inside { .. } => Some("set XDG_STATE_HOME to a folder outside of the workspace".to_owned()),
            Error::Untrusted(_) => Some(
                "it must be yours, and writable by nobody else, for root with all folders on the way: chown, chmod go-w, or \
                 another XDG_STATE_HOME"
                    .to_owned(),
            ),
            Error::NoRun(name) if name == "last" => {
                Some("no changes are kept: --workspace-mode overlay keeps those of a run".to_owned())
            }
            Error::NoRun(_) | Error::Ambiguous { .. } => {
                Some("`shannot changes list` shows what there is; `last` is the newest".to_owned())
            }
            Error::Swapped(_) => {
                Some("when nothing writes in the workspace any more, apply again: it goes on".to_owned())
            }
            Error::OtherWorkspace(_) => Some(
                "it was moved or made anew, or mounted anew on a file system that tells no birth times (NFS): bring it back, or \
                 discard the run"
                    .to_owned(),
            ),
            Error::TooMany { run, .. } => {
                Some(format!("a part of them may be few enough: `shannot changes apply {run} --only PATH`"))
            }
            Error::Exists(_) => Some("remove it, or name another place: --artifact PATH:DEST".to_owned()),
            Error::NoFolder(_) => {
                Some("links in a workspace are not followed: --artifact PATH:DEST names another place".to_owned())
            }
            _ => None,
        }
    }
}

/// Makes an error of what went wrong with a path.
pub(super) fn at(verb: &'static str, path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() };
    move |source| Error::Io { verb, path: path.clone(), source }
}

/// The same of a system call.
pub(super) fn at_errno(verb: &'static str, path: &Path) -> impl Fn(nix::errno::Errno) -> Error + use<> {
    let make = at(verb, path);
    move |errno| make(errno.into())
}
