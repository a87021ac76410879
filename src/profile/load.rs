//! Which profile is meant, and where it is: `-p`, the environment, the user's folder, /etc, the binary itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::document::Document;
use super::error::ProfileError;
use super::{parse, trust};
use crate::spelling::nearest;

/// The profiles that are in the binary, also in the project's folder `profiles`.
const BUILT_IN: &[(&str, &str)] = &[
    ("build", include_str!("../../profiles/build.json")),
    ("ci", include_str!("../../profiles/ci.json")),
    ("diagnostics", include_str!("../../profiles/diagnostics.json")),
    ("host", include_str!("../../profiles/host.json")),
    ("install", include_str!("../../profiles/install.json")),
    ("lint", include_str!("../../profiles/lint.json")),
    ("minimal", include_str!("../../profiles/minimal.json")),
    ("readonly", include_str!("../../profiles/readonly.json")),
    ("test", include_str!("../../profiles/test.json")),
];
/// Looked for in each folder when no profile is asked for.
const DEFAULT_NAMES: &[&str] = &["minimal", "profile"];
const SYSTEM_FOLDER: &str = "/etc/shannot";

/// What of the caller decides where a profile and its paths are.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// `$HOME`, or the home directory that /etc/passwd names.
    pub home: Option<PathBuf>,
    /// The working directory.
    pub cwd: Option<PathBuf>,
    /// `$SANDBOX_PROFILE` or its alias `$SHANNOT_PROFILE`.
    pub profile: Option<OsString>,
    /// Where caches are kept: `$XDG_CACHE_HOME`, or `.cache` in the home.
    pub cache: Option<PathBuf>,
}

impl Caller {
    /// Of this process.
    pub fn current() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = |name| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
        let home = folder("HOME").or_else(home_in_passwd);
        Self {
            cache: folder("XDG_CACHE_HOME").or_else(|| cache_of(home.as_deref()?)),
            home,
            cwd: std::env::current_dir().ok().filter(|cwd| cwd.is_absolute()),
            profile: variable("SANDBOX_PROFILE").or_else(|| variable("SHANNOT_PROFILE")),
        }
    }

    /// `~` and `~/…` in the caller's home.
    pub(super) fn expand_home(&self, path: &Path) -> Result<PathBuf, String> {
        match path.strip_prefix("~") {
            Ok(rest) => match &self.home {
                Some(home) if rest.as_os_str().is_empty() => Ok(home.clone()),
                Some(home) => Ok(home.join(rest)),
                None => Err(format!("{path:?} needs a home directory, and HOME is not set")),
            },
            Err(_) => Ok(path.to_owned()),
        }
    }

    /// Folders with profiles of the user's and the system's.
    fn folders(&self) -> Vec<PathBuf> {
        let own = self.home.as_ref().map(|home| home.join(".config/shannot"));
        own.into_iter().chain([PathBuf::from(SYSTEM_FOLDER)]).collect()
    }
}

/// As root keeps its changes: not where another user could put something in their place.
fn cache_of(home: &Path) -> Option<PathBuf> {
    let is_own = || home != "/" && home.metadata().is_ok_and(|metadata| metadata.uid() == 0);
    let is_root = nix::unistd::geteuid().is_root();
    Some(if is_root && !is_own() { PathBuf::from("/var/cache") } else { home.join(".cache") })
}

/// The home directory that /etc/passwd names. passwd(5) is read as text: a static binary has no NSS.
pub fn home_in_passwd() -> Option<PathBuf> {
    let uid = nix::unistd::geteuid().to_string();
    let table = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|fields| fields.get(2) == Some(&uid.as_str()))?;
    line.get(5).map(PathBuf::from).filter(|home| home.is_absolute())
}

/// Where a profile comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// The binary.
    BuiltIn(&'static str),
    /// Several, laid one over the other.
    Several(Vec<Origin>),
}

impl Origin {
    /// An absolute path on the host: `~` expanded, a relative one in the profile's folder.
    pub(super) fn host_path(&self, text: &str, caller: &Caller) -> Result<PathBuf, String> {
        if text.is_empty() || text.contains('\0') {
            return Err(format!("{text:?} is no path"));
        }
        let path = caller.expand_home(Path::new(text))?;
        if path.is_absolute() {
            return Ok(path);
        }
        match self {
            Origin::File(file) => {
                let file = std::path::absolute(file).map_err(|error| format!("{file:?}: {error}"))?;
                Ok(file.parent().unwrap_or(Path::new("/")).join(path))
            }
            Origin::BuiltIn(_) | Origin::Several(_) => {
                Err(format!("{text:?} is relative, and a built-in profile has no folder"))
            }
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::File(path) => write!(f, "{path:?}"),
            Origin::BuiltIn(name) => write!(f, "{name:?} (built in)"),
            Origin::Several(origins) => {
                let names: Vec<String> = origins.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(" + "))
            }
        }
    }
}

/// A profile's text, read and parsed.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) origin: Origin,
    pub(super) text: Vec<u8>,
    pub(super) document: Document,
    /// Where that, and all that it is made of, was read from.
    pub(super) files: Vec<PathBuf>,
}

impl Loaded {
    /// One profile, without those that it extends.
    pub(super) fn new(origin: Origin, text: Vec<u8>) -> Result<Self, ProfileError> {
        let document = parse::parse(&text, &origin.to_string())?;
        let files = if let Origin::File(path) = &origin { vec![path.clone()] } else { Vec::new() };
        Ok(Self { origin, text, document, files })
    }
}

/// Finds, reads and parses the profile that is meant.
pub(super) fn load(requested: Option<&OsStr>, caller: &Caller) -> Result<Loaded, ProfileError> {
    match requested.or(caller.profile.as_deref()) {
        Some(word) if is_path(word) => {
            let path = caller.expand_home(Path::new(word)).map_err(|reason| ProfileError::Option {
                option: "--profile".to_owned(),
                reason,
                hint: None,
            })?;
            file(path)
        }
        Some(name) => named(name, caller, &[]),
        None => by_default(caller),
    }
}

pub(super) fn file(path: PathBuf) -> Result<Loaded, ProfileError> {
    let text = trust::read(&path)?;
    Loaded::new(Origin::File(path), text)
}

pub(super) fn is_path(word: &OsStr) -> bool {
    let path = Path::new(word);
    word.as_encoded_bytes().contains(&b'/') || path.extension() == Some(OsStr::new("json"))
}

/// The first of this name that is none of `but`: a profile may extend the one whose place it takes.
pub(super) fn named(name: &OsStr, caller: &Caller, but: &[Origin]) -> Result<Loaded, ProfileError> {
    let mut file_name = name.to_owned();
    file_name.push(".json");
    for folder in caller.folders() {
        let path = folder.join(&file_name);
        if !but.contains(&Origin::File(path.clone()))
            && let Some(found) = if_there(path)?
        {
            return Ok(found);
        }
    }
    let name = name.to_string_lossy();
    match BUILT_IN.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => Loaded::new(Origin::BuiltIn(name), text.as_bytes().to_vec()),
        None => {
            let known = list(caller);
            let nearest = nearest(&name, known.iter().map(|(name, _)| name.as_str())).map(str::to_owned);
            Err(ProfileError::UnknownName { name: name.into_owned(), nearest })
        }
    }
}

fn by_default(caller: &Caller) -> Result<Loaded, ProfileError> {
    for folder in caller.folders() {
        for name in DEFAULT_NAMES {
            if let Some(found) = if_there(folder.join(format!("{name}.json")))? {
                return Ok(found);
            }
        }
    }
    let minimal = BUILT_IN.iter().find(|(name, _)| *name == "minimal");
    let (name, text) = minimal.copied().unwrap_or(("minimal", ""));
    Loaded::new(Origin::BuiltIn(name), text.as_bytes().to_vec())
}

/// Only absence lets the search go on: a file that can't be used must not be passed over in silence. A folder that
/// the caller can't look into (HOME left over from another user) holds nothing of the caller's.
fn if_there(path: PathBuf) -> Result<Option<Loaded>, ProfileError> {
    let absent = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory, io::ErrorKind::PermissionDenied];
    if path.symlink_metadata().is_err_and(|error| absent.contains(&error.kind())) {
        return Ok(None);
    }
    let text = trust::read(&path)?;
    Loaded::new(Origin::File(path), text).map(Some)
}

/// Every profile that can be named, sorted; of two with the same name the one that is used.
pub fn list(caller: &Caller) -> Vec<(String, Origin)> {
    let mut found = std::collections::BTreeMap::new();
    for (name, _) in BUILT_IN {
        found.insert((*name).to_owned(), Origin::BuiltIn(name));
    }
    for folder in caller.folders().into_iter().rev() {
        // A folder that is not there has no profiles.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if let (Some(name), Some("json")) = (path.file_stem(), path.extension().and_then(OsStr::to_str)) {
                found.insert(name.to_string_lossy().into_owned(), Origin::File(path.clone()));
            }
        }
    }
    found.into_iter().collect()
}
