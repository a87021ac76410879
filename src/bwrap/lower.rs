//! From flags to changes of a [`Policy`]: what `additional_args` of a profile may say. What a profile can't mean (it has
//! no descriptors, gives no capabilities) is refused with the reason.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::flag::{BindAccess, Flag, Switch, Text};
use super::lex::{LexError, lex};
use crate::policy::{Access, FsOp, Network, PathError, Policy, SandboxPath, Workdir};

/// Why `additional_args` can't be applied.
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
        apply(flag, policy)?;
    }
    Ok(())
}

fn apply(flag: &Flag, policy: &mut Policy) -> Result<(), BwrapError> {
    let refused = |reason| Err(BwrapError::Refused { option: option(flag), reason });
    let inside = |path: &OsStr| sandbox_path(flag, path);
    match flag {
        Flag::Switch(switch) => return apply_switch(*switch, flag, policy),
        Flag::Text(text, argument) => return apply_text(*text, argument, flag, policy),
        Flag::SetEnv(name, value) => {
            policy.environment.unset.remove(name);
            policy.environment.set.insert(name.clone(), value.clone());
        }
        Flag::Bind { access, optional, source, dest } => {
            let access = match access {
                BindAccess::ReadWrite => Access::ReadWrite,
                BindAccess::ReadOnly => Access::ReadOnly,
                BindAccess::Device => Access::Device,
            };
            if !Path::new(source).is_absolute() || source.as_bytes().contains(&0) {
                return refused("its source is not an absolute path");
            }
            let source = PathBuf::from(source);
            policy.fs.push(FsOp::Bind { source, target: inside(dest)?, access, optional: *optional });
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
        Flag::Fd(..) | Flag::BindFd { .. } | Flag::Data { .. } => {
            return refused("a profile has no descriptors to name");
        }
        Flag::Uid(_) | Flag::Gid(_) => return refused("the command has the caller's ids"),
        Flag::Overlay { .. } => return refused("overlays are not part of `shannot run`"),
    }
    Ok(())
}

fn apply_switch(switch: Switch, flag: &Flag, policy: &mut Policy) -> Result<(), BwrapError> {
    let refused = |reason| Err(BwrapError::Refused { option: option(flag), reason });
    match switch {
        Switch::UnshareAll => {
            policy.user_namespace = true;
            unshare_network(policy);
        }
        Switch::UnshareNet => unshare_network(policy),
        Switch::ShareNet => policy.network = Network::Host,
        Switch::UnshareUser | Switch::UnshareUserTry => policy.user_namespace = true,
        Switch::ClearEnv => policy.environment = crate::policy::Environment::default(),
        Switch::NewSession => policy.new_session = true,
        // Always so.
        Switch::UnshareIpc
        | Switch::UnsharePid
        | Switch::UnshareUts
        | Switch::UnshareCgroup
        | Switch::UnshareCgroupTry
        | Switch::DisableUserns
        | Switch::AssertUsernsDisabled
        | Switch::DieWithParent => {}
        Switch::AsPid1 => return refused("process 1 is the sandbox's own init"),
        Switch::NotASecurityBoundary => return refused("every sandbox here is one"),
        Switch::Help | Switch::Version | Switch::LevelPrefix => {
            return refused("it is for bubblewrap's own command line");
        }
    }
    Ok(())
}

/// A network that is isolated already stays as strict as it is.
fn unshare_network(policy: &mut Policy) {
    if policy.network == Network::Host {
        policy.network = Network::Loopback;
    }
}

fn apply_text(text: Text, argument: &OsStr, flag: &Flag, policy: &mut Policy) -> Result<(), BwrapError> {
    let refused = |reason| Err(BwrapError::Refused { option: option(flag), reason });
    let inside = || sandbox_path(flag, argument);
    match text {
        Text::Argv0 => policy.argv0 = Some(argument.to_owned()),
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
            None => return refused("a host name is text"),
        },
        // All are always dropped.
        Text::CapDrop => {}
        Text::CapAdd => return refused("`shannot run` gives no capability"),
        Text::LockFile => return refused("nobody outside waits for such a lock"),
        Text::ExecLabel | Text::FileLabel => return refused("labeling not supported on this system"),
    }
    Ok(())
}

/// bubblewrap takes a relative path inside as one from the root.
fn sandbox_path(flag: &Flag, path: &OsStr) -> Result<SandboxPath, BwrapError> {
    SandboxPath::new(Path::new("/").join(path)).map_err(|cause| BwrapError::Path { option: option(flag), cause })
}

/// The option itself.
fn option(flag: &Flag) -> String {
    flag.words().first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default()
}
