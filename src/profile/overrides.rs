//! What the command line says over a profile. Each option means what the profile key of the same meaning does, and
//! goes through the same functions.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::document::{LimitsEntry, NetworkKey, WorkspaceEntry, WorkspaceMode};
use super::error::ProfileError;
use super::lower::{self, Lowered};
use super::{Caller, cache, filters};
use crate::policy::{Access, Backend, FsOp, Placement, Policy, SandboxPath, Workdir};

/// Options of `shannot run`, as typed.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--ro SRC[:DEST]`.
    pub ro: Vec<OsString>,
    /// `--rw SRC[:DEST]`.
    pub rw: Vec<OsString>,
    /// `--tmpfs DEST`.
    pub tmpfs: Vec<OsString>,
    /// `--hide PATH`.
    pub hide: Vec<OsString>,
    /// `--workspace DIR`.
    pub workspace: Option<OsString>,
    /// `--workspace-mode`.
    pub workspace_mode: Option<WorkspaceMode>,
    /// `--cache`.
    pub caches: Vec<String>,
    /// `--secret`: the name, and a descriptor that the secret can be read from.
    pub secrets: Vec<(String, RawFd)>,
    /// `--env K[=V]`.
    pub env: Vec<OsString>,
    /// `--env-pass GLOB`.
    pub env_pass: Vec<String>,
    /// `--inherit-env`.
    pub inherit_env: bool,
    /// `--chdir DIR`.
    pub chdir: Option<OsString>,
    /// `--hostname NAME`.
    pub hostname: Option<String>,
    /// `--seccomp PRESET|FILE`.
    pub seccomp: Vec<String>,
    /// `--exec-once`.
    pub exec_once: bool,
    /// `--net`.
    pub net: Option<NetworkKey>,
    /// `--timeout` and the other limits.
    pub limits: LimitsEntry,
    /// `--backend`.
    pub backend: Option<Backend>,
    /// `--require F`.
    pub require: Vec<String>,
    /// `--allow-degraded F`.
    pub allow_degraded: Vec<String>,
}

fn refuse(option: &str, reason: impl ToString, hint: Option<String>) -> ProfileError {
    ProfileError::Option { option: option.to_owned(), reason: reason.to_string(), hint }
}

/// Where secrets are inside.
const SECRETS: &str = "/run/secrets";

impl Overrides {
    /// Puts the options for the workspace over the profile's.
    pub(super) fn workspace(&self, entry: &mut Option<WorkspaceEntry>) -> Result<(), ProfileError> {
        if let Some(path) = &self.workspace {
            let text = path.to_str().ok_or_else(|| refuse("--workspace", format!("{path:?} is not UTF-8"), None))?;
            if text.is_empty() {
                return Err(refuse("--workspace", "it is empty", None));
            }
            entry.get_or_insert_default().path = Some(text.to_owned());
        }
        if let Some(mode) = self.workspace_mode {
            entry.get_or_insert_default().mode = Some(mode);
        }
        Ok(())
    }

    /// The HOME that the command will have, where these options say it.
    pub(super) fn home(&self) -> Option<OsString> {
        let value = |text: &OsString| text.as_bytes().strip_prefix(b"HOME=").map(<[u8]>::to_vec);
        self.env.iter().rev().find_map(value).map(OsString::from_vec)
    }

    /// Puts the options over the policy, and the hidden paths over everything.
    pub(super) fn apply(&self, lowered: Lowered, caller: &Caller) -> Result<Policy, ProfileError> {
        let Lowered { mut policy, mut hidden } = lowered;
        for path in &self.hide {
            hidden.push(inside("--hide", path, caller)?);
        }
        cache::add(&self.caches, &mut policy, caller).map_err(|reason| refuse("--cache", reason, None))?;
        let (shown, others) = self.binds(&hidden, caller)?;
        for op in others {
            let bound = matches!(op, FsOp::Bind { .. }).then(|| op.target().clone());
            policy.fs.push(op);
            if let Some(bound) = bound {
                lower::put_in_front(&mut policy.fs, &bound);
            }
        }
        policy.fs.extend(hidden.into_iter().map(|target| FsOp::Hide { target }));
        policy.fs.extend(shown);
        for (name, fd) in &self.secrets {
            let target = SandboxPath::new(Path::new(SECRETS).join(name));
            let target = target.map_err(|error| refuse("--secret", error, None))?;
            // Of the command's user alone, and on a file system in memory.
            policy.fs.push(FsOp::Data { fd: *fd, target, placement: Placement::RoBind, mode: Some(0o400) });
        }
        self.apply_environment(&mut policy)?;
        self.apply_rest(&mut policy, caller)?;
        Ok(policy)
    }

    /// The binds and tmpfs: those that name a hidden path, or something below it, and therefore win over hiding, and the
    /// others. Names count as they are typed.
    fn binds(&self, hidden: &[SandboxPath], caller: &Caller) -> Result<(Vec<FsOp>, Vec<FsOp>), ProfileError> {
        let mut ops = Vec::new();
        for path in &self.tmpfs {
            ops.push(lower::tmpfs(inside("--tmpfs", path, caller)?, false));
        }
        let ro = self.ro.iter().map(|text| ("--ro", text, Access::ReadOnly));
        let rw = self.rw.iter().map(|text| ("--rw", text, Access::ReadWrite));
        for (option, text, access) in ro.chain(rw) {
            let (source, target) = source_and_target(option, text, caller)?;
            ops.push(FsOp::Bind { source, target, access, optional: false });
        }
        let names = |op: &FsOp, hidden: &SandboxPath| match op {
            FsOp::Bind { source, .. } if source.starts_with(hidden.as_path()) => true,
            op => op.target().is_under(hidden),
        };
        Ok(ops.into_iter().partition(|op| hidden.iter().any(|path| names(op, path))))
    }

    fn apply_environment(&self, policy: &mut Policy) -> Result<(), ProfileError> {
        let environment = &mut policy.environment;
        environment.pass.extend(self.env_pass.iter().cloned());
        environment.inherit |= self.inherit_env;
        for text in &self.env {
            let bytes = text.as_bytes();
            let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
                Some(at) => (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..)),
                None => (bytes, None),
            };
            if name.is_empty() {
                return Err(refuse("--env", format!("{text:?} has no name"), None));
            }
            let name = OsString::from_vec(name.to_vec());
            match value {
                Some(value) => {
                    environment.set.insert(name, OsString::from_vec(value.to_vec()));
                }
                // The caller's value, if there is one, wins over the profile's.
                None => {
                    let pattern = name.to_str().filter(|name| !name.contains(['*', '?', '['])).ok_or_else(|| {
                        refuse(
                            "--env",
                            format!("{name:?} is no name of a variable"),
                            Some("patterns are for --env-pass".to_owned()),
                        )
                    })?;
                    environment.set.remove(&name);
                    environment.unset.remove(&name);
                    environment.pass.push(pattern.to_owned());
                }
            }
        }
        Ok(())
    }

    fn apply_rest(&self, policy: &mut Policy, caller: &Caller) -> Result<(), ProfileError> {
        if let Some(directory) = &self.chdir {
            policy.workdir = Workdir::Path(inside("--chdir", directory, caller)?);
        }
        if let Some(name) = &self.hostname {
            policy.hostname = Some(lower::hostname(name).map_err(|reason| refuse("--hostname", reason, None))?);
        }
        if let Some(network) = self.net {
            policy.network = network.into();
        }
        policy.backend = self.backend.unwrap_or(policy.backend);
        policy.exec_once |= self.exec_once;
        if !self.seccomp.is_empty() {
            let resolve = |word: &str| absolute(OsStr::new(word), caller);
            policy.filters = filters::load(&self.seccomp, resolve, |reason, hint| refuse("--seccomp", reason, hint))?;
        }
        lower::limits(&self.limits, &mut policy.limits)
            .map_err(|(key, reason)| refuse(&format!("--{}", key.replace('_', "-")), reason, None))?;
        let layers =
            |option, names: &[String]| lower::layers(names).map_err(|(reason, hint)| refuse(option, reason, hint));
        policy.require.extend(layers("--require", &self.require)?);
        policy.allow_degraded.extend(layers("--allow-degraded", &self.allow_degraded)?);
        Ok(())
    }
}

/// A path on the command line is relative to the caller's directory, as everywhere.
fn absolute(text: &OsStr, caller: &Caller) -> Result<PathBuf, String> {
    let path = caller.expand_home(Path::new(text))?;
    match &caller.cwd {
        _ if text.is_empty() => Err("the path is empty".to_owned()),
        _ if path.is_absolute() => Ok(path),
        // Joined and without its dots, as `.` in a path inside means nothing.
        Some(cwd) => Ok(cwd.join(path).components().collect()),
        None => Err(format!("{path:?} is relative, and the working directory has no name")),
    }
}

fn inside(option: &str, text: &OsStr, caller: &Caller) -> Result<SandboxPath, ProfileError> {
    let path = absolute(text, caller).map_err(|reason| refuse(option, reason, None))?;
    SandboxPath::new(path).map_err(|error| refuse(option, error, None))
}

/// `SRC[:DEST]`. A source with a colon in its name is written `SRC:DEST` in full.
fn source_and_target(option: &str, text: &OsStr, caller: &Caller) -> Result<(PathBuf, SandboxPath), ProfileError> {
    let (source, target) = split_destination(text);
    let path = absolute(source, caller).map_err(|reason| refuse(option, reason, None))?;
    // Where nothing else is said, `../x` appears where it is.
    let target = match target.filter(|target| *target != source) {
        Some(target) => inside(option, target, caller)?,
        None => tidy(&path, option)?,
    };
    Ok((path, target))
}

/// `PATH[:DEST]` at its last colon.
pub fn split_destination(text: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = text.as_bytes();
    let Some(at) = bytes.iter().rposition(|byte| *byte == b':') else { return (text, None) };
    let (path, rest) = bytes.split_at(at);
    (OsStr::from_bytes(path), rest.get(1..).map(OsStr::from_bytes))
}

fn tidy(path: &Path, option: &str) -> Result<SandboxPath, ProfileError> {
    let path = if path.components().any(|part| part == std::path::Component::ParentDir) {
        path.canonicalize().map_err(|error| refuse(option, format!("{path:?}: {error}"), None))?
    } else {
        path.to_owned()
    };
    SandboxPath::new(path).map_err(|error| refuse(option, error, None))
}
