//! From flags to changes of a [`Policy`]: what an option means wherever it is written, and what `additional_args` of a
//! profile may say. What a profile can't mean (it has no descriptors, gives no capabilities) is refused with the reason.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::flag::{BindAccess, Flag, Switch, Text};
use super::lex::{LexError, lex};
use super::program::Caller;
use crate::policy::{Access, FsOp, Network, PathError, Policy, SandboxPath, Workdir};

/// Why options can't be applied.
#[derive(Debug, thiserror::Error)]
pub enum BwrapError {
    /// Not bubblewrap's syntax.
    #[error(transparent)]
    Lex(#[from] LexError),
    /// A word where an option belongs.
    #[error("{0:?} is not an option")]
    NotAnOption(OsString),
    /// A path that can't be inside.
    #[error("{option}: {cause}")]
    Path {
        /// The option.
        option: String,
        /// What is wrong with it.
        cause: PathError,
    },
    /// An option that does not go together with what a profile is.
    #[error("{option} can't be used in a profile: {reason}")]
    Refused {
        /// The option.
        option: String,
        /// Why.
        reason: &'static str,
    },
    /// Options of a command line that do not go together, in bubblewrap's own words.
    #[error("{0}")]
    Usage(&'static str),
    /// No capability is called so.
    #[error("unknown cap: {}", .0.to_string_lossy())]
    Capability(OsString),
    /// A relative source, and the caller's directory has no name.
    #[error("Can't find source path {}: the current directory can't be named", .0.to_string_lossy())]
    RelativeSource(OsString),
}

/// Where flags are written, and so what their paths may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Front<'a> {
    /// `additional_args`.
    Profile,
    /// The program's command line.
    Program(&'a Caller),
}

/// Applies bubblewrap options to a policy, in order.
///
/// # Errors
/// [`BwrapError`], naming the option.
pub fn apply_additional_args(args: &[String], policy: &mut Policy) -> Result<(), BwrapError> {
    let words: Vec<OsString> = args.iter().map(OsString::from).collect();
    let lexed = lex(&words)?;
    if let Some(word) = lexed.command.into_iter().next() {
        return Err(BwrapError::NotAnOption(word));
    }
    for flag in &lexed.flags {
        if !apply(flag, policy, Front::Profile)? {
            apply_to_profile(flag, policy)?;
        }
    }
    Ok(())
}

/// What means the same wherever it is written; `false` for all else.
pub(super) fn apply(flag: &Flag, policy: &mut Policy, front: Front<'_>) -> Result<bool, BwrapError> {
    let inside = |path: &OsStr| sandbox_path(flag, path, front);
    match flag {
        Flag::SetEnv(name, value) => {
            policy.environment.unset.remove(name);
            policy.environment.set.insert(name.clone(), value.clone());
        }
        Flag::Bind { access, optional, source, dest } => {
            let source = source_path(flag, source, front)?;
            policy.fs.push(FsOp::Bind { source, target: inside(dest)?, access: (*access).into(), optional: *optional });
        }
        Flag::Tmpfs { dest, perms, size } => {
            let target = inside(dest)?;
            policy.fs.push(FsOp::Tmpfs { target, mode: perms.unwrap_or(0o755), size: *size, optional: false });
        }
        Flag::Dir { dest, perms } => {
            policy.fs.push(FsOp::Dir { target: inside(dest)?, mode: perms.unwrap_or(0o755) });
        }
        Flag::Symlink { text, dest } => {
            policy.fs.push(FsOp::Symlink { text: PathBuf::from(text), target: inside(dest)? });
        }
        Flag::Chmod { mode, path } => policy.fs.push(FsOp::Chmod { target: inside(path)?, mode: *mode }),
        Flag::Switch(Switch::UnshareNet) => unshare_network(policy),
        Flag::Switch(Switch::ShareNet) => policy.network = Network::Host,
        Flag::Switch(Switch::ClearEnv) => policy.environment = crate::policy::Environment::default(),
        Flag::Switch(Switch::NewSession) => policy.new_session = true,
        Flag::Text(text, argument) => return apply_text(*text, argument, flag, policy, front),
        _ => return Ok(false),
    }
    Ok(true)
}

fn apply_text(
    text: Text,
    argument: &OsStr,
    flag: &Flag,
    policy: &mut Policy,
    front: Front<'_>,
) -> Result<bool, BwrapError> {
    let inside = || sandbox_path(flag, argument, front);
    match text {
        Text::Argv0 => policy.argv0 = Some(argument.to_owned()),
        Text::Chdir if argument.is_empty() => {
            return Err(BwrapError::Usage("Can't chdir to : No such file or directory"));
        }
        Text::Chdir => policy.workdir = Workdir::Path(inside()?),
        Text::UnsetEnv => {
            policy.environment.set.remove(argument);
            policy.environment.unset.insert(argument.to_owned());
        }
        Text::RemountRo => policy.fs.push(FsOp::RemountReadOnly { target: inside()? }),
        Text::Proc => policy.fs.push(FsOp::Proc { target: inside()? }),
        Text::Dev => policy.fs.push(FsOp::Dev { target: inside()? }),
        Text::Mqueue => policy.fs.push(FsOp::Mqueue { target: inside()? }),
        Text::Hostname => match argument.to_str() {
            Some(name) => policy.hostname = Some(name.to_owned()),
            None => return Err(BwrapError::Usage("--hostname takes UTF-8")),
        },
        Text::LockFile | Text::CapAdd | Text::CapDrop | Text::ExecLabel | Text::FileLabel => return Ok(false),
    }
    Ok(true)
}

/// The rest of the options, in a profile.
fn apply_to_profile(flag: &Flag, policy: &mut Policy) -> Result<(), BwrapError> {
    let reason = match flag {
        Flag::Switch(switch) => match switch {
            Switch::UnshareAll => {
                policy.namespaces.user = true;
                unshare_network(policy);
                return Ok(());
            }
            Switch::UnshareUser | Switch::UnshareUserTry => {
                policy.namespaces.user = true;
                return Ok(());
            }
            Switch::AsPid1 => "process 1 is the sandbox's own init",
            Switch::NotASecurityBoundary => "every sandbox here is one",
            Switch::Help | Switch::Version | Switch::LevelPrefix => "it is for bubblewrap's own command line",
            // Always so.
            _ => return Ok(()),
        },
        // All are always dropped.
        Flag::Text(Text::CapDrop, _) => return Ok(()),
        Flag::Text(Text::CapAdd, _) => "`shannot run` gives no capability",
        Flag::Text(Text::LockFile, _) => "nobody outside waits for such a lock",
        Flag::Text(..) => "labeling not supported on this system",
        Flag::Uid(_) | Flag::Gid(_) => "the command has the caller's ids",
        Flag::Overlay { .. } => "overlays are not part of `shannot run`",
        Flag::WalkByHand => "it is for bubblewrap's own developers",
        _ => "a profile has no descriptors to name",
    };
    Err(BwrapError::Refused { option: option(flag), reason })
}

/// A network that is isolated already stays as strict as it is.
pub(super) fn unshare_network(policy: &mut Policy) {
    if policy.network == Network::Host {
        policy.network = Network::Loopback;
    }
}

/// bubblewrap takes a relative path inside as one from the root.
pub(super) fn sandbox_path(flag: &Flag, path: &OsStr, front: Front<'_>) -> Result<SandboxPath, BwrapError> {
    let path = match front {
        Front::Profile => SandboxPath::new(Path::new("/").join(path)),
        Front::Program(_) => SandboxPath::traversing(path),
    };
    path.map_err(|cause| BwrapError::Path { option: option(flag), cause })
}

/// A path on the host.
pub(super) fn source_path(flag: &Flag, path: &OsStr, front: Front<'_>) -> Result<PathBuf, BwrapError> {
    match front {
        // Not the directory itself: there is nothing of this name.
        Front::Program(_) if path.is_empty() => Ok(PathBuf::new()),
        Front::Profile if !Path::new(path).is_absolute() || path.as_bytes().contains(&0) => {
            Err(BwrapError::Refused { option: option(flag), reason: "its source is not an absolute path" })
        }
        Front::Program(caller) if !Path::new(path).is_absolute() => {
            let cwd = caller.cwd.as_ref().ok_or_else(|| BwrapError::RelativeSource(path.to_owned()))?;
            Ok(cwd.join(path))
        }
        _ => Ok(PathBuf::from(path)),
    }
}

impl From<BindAccess> for Access {
    fn from(access: BindAccess) -> Self {
        match access {
            BindAccess::ReadWrite => Access::ReadWrite,
            BindAccess::ReadOnly => Access::ReadOnly,
            BindAccess::Device => Access::Device,
        }
    }
}

/// The option itself.
fn option(flag: &Flag) -> String {
    flag.words().first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default()
}
