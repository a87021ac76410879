//! Shannot's profiles: the JSON schema, where profiles are found, and what they mean as a [`Policy`]. The only room
//! that reads the caller's configuration; it knows nothing of the host and runs nothing.

mod cache;
mod compose;
mod document;
mod error;
mod filters;
mod load;
mod lower;
mod overrides;
mod parse;
mod trust;
mod workspace;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::policy::{Network, Policy};
use crate::seccomp::Filter;

pub use document::{
    BindEntry, Document, EnforcementKey, LandlockKey, LimitsEntry, NetworkKey, OneOrMore, Quantity, RemoveEntry,
    WorkspaceEntry, WorkspaceMode,
};
pub use error::ProfileError;
pub use load::{Caller, Origin, home_in_passwd, list};
pub use overrides::{Overrides, split_destination};
pub use parse::json_schema;

/// A profile that was found, parsed, and whose filters could be read.
#[derive(Debug)]
pub struct Profile {
    origin: Origin,
    text: Vec<u8>,
    document: Document,
    files: Vec<PathBuf>,
    filters: Vec<Filter>,
}

impl Profile {
    /// The profile that `requested` (`-p`) means: paths or names, of which a later one is laid over those before; or,
    /// without any, the caller's or the system's default, in the order of interface.md.
    ///
    /// # Errors
    /// [`ProfileError`]: not found, not to be trusted, not a profile, or with a filter that can't be used.
    pub fn load(requested: &[impl AsRef<OsStr>], caller: &Caller) -> Result<Self, ProfileError> {
        let loaded = match requested {
            [] => compose::whole(load::load(None, caller)?, caller)?,
            [one] => compose::whole(load::load(Some(one.as_ref()), caller)?, caller)?,
            several => {
                let loaded = several.iter().map(|one| load::load(Some(one.as_ref()), caller));
                compose::lay_over(loaded.collect::<Result<_, _>>()?, caller)?
            }
        };
        Self::new(loaded, caller)
    }

    /// A profile from its text, as if it were the file `path`.
    ///
    /// # Errors
    /// As [`Profile::load`].
    pub fn parse(text: &[u8], path: &Path, caller: &Caller) -> Result<Self, ProfileError> {
        let loaded = load::Loaded::new(Origin::File(path.to_owned()), text.to_vec())?;
        Self::new(compose::whole(loaded, caller)?, caller)
    }

    fn new(loaded: load::Loaded, caller: &Caller) -> Result<Self, ProfileError> {
        let load::Loaded { origin, text, document, files } = loaded;
        let mut profile = Self { origin, text, document, files, filters: Vec::new() };
        profile.filters = profile.load_filters(caller)?;
        Ok(profile)
    }

    fn load_filters(&self, caller: &Caller) -> Result<Vec<Filter>, ProfileError> {
        let words = self.document.seccomp_profile.as_ref().map_or(&[][..], OneOrMore::words);
        filters::load(
            words,
            |word| self.host_path(word, caller),
            |reason, hint| self.refuse("seccomp_profile", reason, hint),
        )
    }

    /// Its name, for messages and reports.
    pub fn name(&self) -> &str {
        &self.document.name
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The files that it was read from, with those that it extends. None of a built-in profile.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// SHA-256 of its text, behind those of the profiles that it is made of, in hexadecimal.
    pub fn digest(&self) -> String {
        Sha256::digest(&self.text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What it means, with the command line's options over it.
    ///
    /// # Errors
    /// [`ProfileError::Value`] and [`ProfileError::Option`].
    pub fn policy(&self, overrides: &Overrides, caller: &Caller) -> Result<Policy, ProfileError> {
        let mut workspace = self.document.workspace.clone();
        overrides.workspace(&mut workspace)?;
        let lowered = lower::lower(self, workspace.as_ref(), overrides.home(), caller);
        // What the command line names, it is to blame for.
        let lowered = lowered.map_err(|error| match error {
            ProfileError::Value { key, reason, .. } if key == "workspace" && overrides.workspace.is_some() => {
                ProfileError::Option { option: "--workspace".to_owned(), reason, hint: None }
            }
            error => error,
        })?;
        overrides.apply(lowered, caller)
    }

    /// The profile as it is understood: defaults written out, paths absolute, keys sorted. Exporting the result
    /// again gives the same.
    ///
    /// # Errors
    /// As [`Profile::policy`]: what can't be applied can't be normalised.
    pub fn export(&self, caller: &Caller) -> Result<serde_json::Value, ProfileError> {
        let policy = self.policy(&Overrides::default(), caller)?;
        let mut document = self.document.clone();
        document.network_isolation = Some(policy.network != Network::Host);
        compose::make_absolute(&mut document, &self.origin, caller)?;
        // A map of serde_json is sorted by key.
        serde_json::to_value(&document).map_err(|cause| ProfileError::Syntax {
            origin: self.origin.to_string(),
            at: String::new(),
            cause,
        })
    }

    /// An absolute path on the host: `~` expanded, a relative one in the profile's folder.
    fn host_path(&self, text: &str, caller: &Caller) -> Result<PathBuf, String> {
        self.origin.host_path(text, caller)
    }

    fn refuse(&self, key: &str, reason: impl ToString, hint: Option<String>) -> ProfileError {
        ProfileError::Value { origin: self.origin.to_string(), key: key.to_owned(), reason: reason.to_string(), hint }
    }
}
