//! Shannot's profiles: the JSON schema, where profiles are found, and what they mean as a [`Policy`]. The only room
//! that reads the caller's configuration; it knows nothing of the host and runs nothing.

mod document;
mod error;
mod filters;
mod load;
mod lower;
mod overrides;
mod parse;
mod trust;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::policy::{Network, Policy};
use crate::seccomp::Filter;

pub use document::{BindEntry, Document, EnforcementKey, LandlockKey, LimitsEntry, NetworkKey, OneOrMore, Quantity};
pub use error::ProfileError;
pub use load::{Caller, Origin, list};
pub use overrides::Overrides;
pub use parse::json_schema;

/// A profile that was found, parsed, and whose filters could be read.
#[derive(Debug)]
pub struct Profile {
    origin: Origin,
    text: Vec<u8>,
    document: Document,
    filters: Vec<Filter>,
}

impl Profile {
    /// The profile that `requested` (`-p`) means: a path, a name, or, without one, the caller's or the system's
    /// default, in the order of interface.md.
    ///
    /// # Errors
    /// [`ProfileError`]: not found, not to be trusted, not a profile, or with a filter that can't be used.
    pub fn load(requested: Option<&OsStr>, caller: &Caller) -> Result<Self, ProfileError> {
        let load::Loaded { origin, text, document } = load::load(requested, caller)?;
        Self::new(origin, text, document, caller)
    }

    /// A profile from its text, as if it were the file `path`.
    ///
    /// # Errors
    /// As [`Profile::load`].
    pub fn parse(text: &[u8], path: &Path, caller: &Caller) -> Result<Self, ProfileError> {
        let origin = Origin::File(path.to_owned());
        let document = parse::parse(text, &origin.to_string())?;
        Self::new(origin, text.to_vec(), document, caller)
    }

    fn new(origin: Origin, text: Vec<u8>, document: Document, caller: &Caller) -> Result<Self, ProfileError> {
        let mut profile = Self { origin, text, document, filters: Vec::new() };
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

    /// SHA-256 of its text, in hexadecimal.
    pub fn digest(&self) -> String {
        Sha256::digest(&self.text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What it means, with the command line's options over it.
    ///
    /// # Errors
    /// [`ProfileError::Value`] and [`ProfileError::Option`].
    pub fn policy(&self, overrides: &Overrides, caller: &Caller) -> Result<Policy, ProfileError> {
        let lowered = lower::lower(self, caller)?;
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
        let absolute = |key, text: &str| {
            let path = self.host_path(text, caller).map_err(|reason| self.refuse(key, reason, None))?;
            Ok(path.to_string_lossy().into_owned())
        };
        for bind in &mut document.binds {
            bind.source = absolute("binds", &bind.source)?;
        }
        let is_preset = |word: &str| word.parse::<crate::seccomp::Preset>().is_ok();
        let words = match &mut document.seccomp_profile {
            Some(OneOrMore::One(word)) => std::slice::from_mut(word),
            Some(OneOrMore::More(words)) => words.as_mut_slice(),
            None => &mut [],
        };
        for word in words.iter_mut().filter(|word| !is_preset(word)) {
            *word = absolute("seccomp_profile", word)?;
        }
        // A map of serde_json is sorted by key.
        serde_json::to_value(&document).map_err(|cause| ProfileError::Syntax {
            origin: self.origin.to_string(),
            at: String::new(),
            cause,
        })
    }

    /// An absolute path on the host: `~` expanded, a relative one in the profile's folder.
    fn host_path(&self, text: &str, caller: &Caller) -> Result<PathBuf, String> {
        if text.is_empty() || text.contains('\0') {
            return Err(format!("{text:?} is no path"));
        }
        let path = caller.expand_home(Path::new(text))?;
        if path.is_absolute() {
            return Ok(path);
        }
        match &self.origin {
            Origin::File(file) => {
                let file = std::path::absolute(file).map_err(|error| format!("{file:?}: {error}"))?;
                Ok(file.parent().unwrap_or(Path::new("/")).join(path))
            }
            Origin::BuiltIn(_) => Err(format!("{text:?} is relative, and a built-in profile has no folder")),
        }
    }

    fn refuse(&self, key: &str, reason: impl ToString, hint: Option<String>) -> ProfileError {
        ProfileError::Value { origin: self.origin.to_string(), key: key.to_owned(), reason: reason.to_string(), hint }
    }
}
