//! What is noted of a run beside its changes: `run.json`.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{Error, at, at_errno};

/// Its name, and that of one that is not finished.
const FILE: &str = "run.json";
const NEW: &str = "run.json.new";

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its command has not ended; without a process that holds it: the launcher was killed.
    Running,
    /// Its command has ended, nothing is applied.
    Finished,
    /// Some of it is applied: a part was asked for, or apply was interrupted and can be run again.
    Applying,
    /// All is applied but what was refused.
    Applied,
}

impl State {
    /// The word in lists.
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Finished => "finished",
            State::Applying => "applying",
            State::Applied => "applied",
        }
    }
}

/// What is known of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The workspace: an absolute path without links.
    #[serde(serialize_with = "write_path", deserialize_with = "read_path")]
    pub workspace: PathBuf,
    /// Which folder that was (stat(2), st_dev).
    pub device: u64,
    /// The same (st_ino).
    pub inode: u64,
    /// When it was made: seconds and nanoseconds since the epoch, where the file system tells (statx(2), STATX_BTIME). Btrfs and
    /// NFS may give it another device number after the next mount, and then this says that it is the same.
    #[serde(default)]
    pub born: Option<(u64, u32)>,
    /// The permissions that `upper` began with.
    #[serde(default)]
    pub mode: Option<u32>,
    /// When it started: seconds and nanoseconds since the epoch.
    pub start: (i64, i64),
    /// How far it has come.
    pub state: State,
    /// The command's exit code, once it has ended.
    pub exit_code: Option<u8>,
}

/// For [`Record::born`].
pub(super) fn born(metadata: &Metadata) -> Option<(u64, u32)> {
    let since = metadata.created().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some((since.as_secs(), since.subsec_nanos()))
}

impl Record {
    /// Whether this is the workspace.
    pub(super) fn is_of(&self, folder: &Metadata) -> bool {
        let is_born_then = || self.born.is_some() && self.born == born(folder);
        folder.is_dir() && folder.ino() == self.inode && (folder.dev() == self.device || is_born_then())
    }

    pub(super) fn read(folder: impl AsFd, id: &str) -> Result<Self, Error> {
        let path = &Path::new(id).join(FILE);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(folder, FILE, flags, Mode::empty()).map_err(at_errno("open", path))?;
        let mut text = Vec::new();
        File::from(file).take(1 << 16).read_to_end(&mut text).map_err(at("read", path))?;
        serde_json::from_slice(&text).map_err(|source| Error::Record { id: id.to_owned(), source })
    }

    /// In one step: a reader finds the old or the new one, also after a kill. After a power loss it may be neither.
    pub(super) fn write(&self, folder: impl AsFd, id: &str) -> Result<(), Error> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path = &Path::new(id).join(FILE);
        let text = serde_json::to_vec(self).map_err(|source| Error::Record { id: id.to_owned(), source })?;
        let file = openat(&folder, NEW, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(at_errno("write", path))?;
        File::from(file).write_all(&text).map_err(at("write", path))?;
        renameat(&folder, NEW, &folder, FILE).map_err(at_errno("write", path))
    }
}

/// A path that is text, or its bytes.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes(Vec<u8>),
}

fn write_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    let written = match path.to_str() {
        Some(text) => Written::Text(text.to_owned()),
        None => Written::Bytes(path.as_os_str().as_bytes().to_vec()),
    };
    written.serialize(serializer)
}

fn read_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Ok(match Written::deserialize(deserializer)? {
        Written::Text(text) => text.into(),
        Written::Bytes(bytes) => OsString::from_vec(bytes).into(),
    })
}
