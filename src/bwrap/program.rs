//! A whole command line of bubblewrap's as a [`Policy`]: what it leaves open stays open, and what only it can ask for is
//! in [`Bubblewrap`].

use std::ffi::OsStr;
use std::path::PathBuf;

use super::flag::{BindAccess, DataUse, Fd, Flag, Switch, Text};
use super::lex::Lexed;
use super::lower::{BwrapError, Front, apply, sandbox_path, source_path, unshare_network};
use crate::policy::{
    Bubblewrap, CapabilityEdit, CapabilityName, FsOp, Namespaces, Network, OverlayTop, Placement, Policy,
};
use crate::seccomp::Filter;

/// Who calls, as far as the meaning of options depends on it.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The current directory, which relative sources are relative to.
    pub cwd: Option<PathBuf>,
    /// This kernel has user namespaces, and they are not turned off: for `--unshare-user-try`.
    pub user_namespaces: bool,
    /// This kernel has cgroup namespaces.
    pub cgroup_namespaces: bool,
}

/// What a command line asks for. `filters` are those that [`filter_descriptors`] names, in order.
///
/// # Errors
/// [`BwrapError`], with bubblewrap's own text.
pub fn policy(lexed: &Lexed, caller: &Caller, filters: Vec<Filter>) -> Result<Policy, BwrapError> {
    let mut policy = Policy::new("bwrap");
    policy.namespaces = Namespaces { user: false, pid: false, ipc: false, uts: false, cgroup: false };
    policy.network = Network::Host;
    policy.environment.inherit = true;
    policy.command.clone_from(&lexed.command);
    policy.filters = filters;
    let mut line = Line { caller, asked: Bubblewrap::default(), user: false, user_try: false };
    for flag in &lexed.flags {
        if !apply(flag, &mut policy, Front::Program(caller))? {
            line.apply(flag, &mut policy)?;
        }
        check_variable(flag)?;
    }
    line.check(&policy)?;
    let Line { mut asked, user, user_try, .. } = line;
    let joined = asked.handed.userns.is_some();
    // Others than root have no other way.
    policy.namespaces.user = user || (user_try && caller.user_namespaces) || (caller.uid != 0 && !joined);
    if !policy.namespaces.user && !joined {
        asked.uid = None;
        asked.gid = None;
    }
    policy.bubblewrap = Some(Box::new(asked));
    Ok(policy)
}

/// The descriptors that filters come from.
///
/// # Errors
/// [`BwrapError::Usage`] where one option excludes the other.
pub fn filter_descriptors(lexed: &Lexed) -> Result<Vec<i32>, BwrapError> {
    let (mut last, mut added) = (None, Vec::new());
    for flag in &lexed.flags {
        match flag {
            Flag::Fd(Fd::Seccomp, _) if !added.is_empty() => {
                return Err(BwrapError::Usage("--seccomp cannot be combined with --add-seccomp-fd"));
            }
            Flag::Fd(Fd::AddSeccomp, _) if last.is_some() => {
                return Err(BwrapError::Usage("--add-seccomp-fd cannot be combined with --seccomp"));
            }
            Flag::Fd(Fd::Seccomp, fd) => last = Some(*fd),
            Flag::Fd(Fd::AddSeccomp, fd) => added.push(*fd),
            _ => {}
        }
    }
    Ok(last.into_iter().chain(added).collect())
}

/// Options of which the last one counts, each time that one more comes, with its place among the flags.
pub fn repeated(lexed: &Lexed) -> impl Iterator<Item = (usize, &'static str)> + '_ {
    let mut seen = Vec::new();
    let single = |flag: &Flag| match flag {
        Flag::Text(text @ (Text::Chdir | Text::Hostname | Text::ExecLabel | Text::FileLabel), _) => Some(text.word()),
        Flag::Fd(Fd::Args | Fd::AddSeccomp, _) => None,
        Flag::Fd(fd, _) => Some(fd.word()),
        Flag::Uid(_) => Some("--uid"),
        Flag::Gid(_) => Some("--gid"),
        _ => None,
    };
    lexed.flags.iter().enumerate().filter_map(move |(index, flag)| {
        let word = single(flag)?;
        if seen.contains(&word) {
            return Some((index, word));
        }
        seen.push(word);
        None
    })
}

/// As setenv(3) and unsetenv(3) would refuse it.
fn check_variable(flag: &Flag) -> Result<(), BwrapError> {
    let is_bad = |name: &OsStr| name.is_empty() || name.as_encoded_bytes().contains(&b'=');
    match flag {
        Flag::SetEnv(name, _) if is_bad(name) => Err(BwrapError::Usage("setenv failed")),
        Flag::Text(Text::UnsetEnv, name) if is_bad(name) => Err(BwrapError::Usage("unsetenv failed")),
        _ => Ok(()),
    }
}

/// What the options have said so far.
struct Line<'a> {
    caller: &'a Caller,
    asked: Bubblewrap,
    user: bool,
    user_try: bool,
}

impl Line<'_> {
    /// An option that only a command line can have.
    fn apply(&mut self, flag: &Flag, policy: &mut Policy) -> Result<(), BwrapError> {
        let front = Front::Program(self.caller);
        match flag {
            Flag::Switch(switch) => self.apply_switch(*switch, policy),
            Flag::Text(Text::LockFile, path) => self.asked.lock_files.push(sandbox_path(flag, path, front)?),
            Flag::Text(Text::CapAdd, name) => self.asked.capabilities.push(CapabilityEdit::Add(capability(name)?)),
            Flag::Text(Text::CapDrop, name) => self.asked.capabilities.push(CapabilityEdit::Drop(capability(name)?)),
            Flag::Text(..) => return Err(BwrapError::Usage("labeling not supported on this system")),
            Flag::Fd(option, fd) => self.hand(*option, *fd),
            Flag::Uid(uid) => self.asked.uid = Some(*uid),
            Flag::Gid(gid) => self.asked.gid = Some(*gid),
            Flag::BindFd { read_only, fd, dest } => {
                let access = if *read_only { BindAccess::ReadOnly } else { BindAccess::ReadWrite }.into();
                policy.fs.push(FsOp::BindDescriptor { fd: *fd, target: sandbox_path(flag, dest, front)?, access });
            }
            Flag::Data { how, fd, dest, perms } => {
                let placement = match how {
                    DataUse::File => Placement::File,
                    DataUse::Bind => Placement::Bind,
                    DataUse::RoBind => Placement::RoBind,
                };
                let target = sandbox_path(flag, dest, front)?;
                policy.fs.push(FsOp::Data { fd: *fd, target, placement, mode: *perms });
            }
            Flag::Overlay { sources, top, dest } => {
                let on_host = |path: &OsStr| source_path(flag, path, front);
                let sources = sources.iter().map(|source| on_host(source)).collect::<Result<_, _>>()?;
                let top = match top {
                    OverlayTop::Host { upper, work } => {
                        OverlayTop::Host { upper: on_host(upper.as_os_str())?, work: on_host(work.as_os_str())? }
                    }
                    other => other.clone(),
                };
                policy.fs.push(FsOp::Overlay { sources, top, target: sandbox_path(flag, dest, front)? });
            }
            Flag::WalkByHand => self.asked.walk_by_hand = true,
            Flag::SetEnv(..)
            | Flag::Bind { .. }
            | Flag::Tmpfs { .. }
            | Flag::Dir { .. }
            | Flag::Symlink { .. }
            | Flag::Chmod { .. } => {}
        }
        Ok(())
    }

    fn apply_switch(&mut self, switch: Switch, policy: &mut Policy) {
        let cgroup = self.caller.cgroup_namespaces;
        let namespaces = &mut policy.namespaces;
        match switch {
            Switch::UnshareAll => {
                self.user_try = true;
                *namespaces = Namespaces { user: false, pid: true, ipc: true, uts: true, cgroup };
                unshare_network(policy);
            }
            Switch::UnshareUser => self.user = true,
            Switch::UnshareUserTry => self.user_try = true,
            Switch::UnshareIpc => namespaces.ipc = true,
            Switch::UnsharePid => namespaces.pid = true,
            Switch::UnshareUts => namespaces.uts = true,
            Switch::UnshareCgroup => namespaces.cgroup = true,
            Switch::UnshareCgroupTry => namespaces.cgroup |= cgroup,
            Switch::DisableUserns => self.asked.disable_userns = true,
            Switch::AssertUsernsDisabled => self.asked.assert_userns_disabled = true,
            Switch::DieWithParent => self.asked.die_with_parent = true,
            Switch::AsPid1 => self.asked.as_pid_1 = true,
            Switch::NotASecurityBoundary => self.asked.lenient = true,
            // The front end's, or done.
            Switch::Help
            | Switch::Version
            | Switch::LevelPrefix
            | Switch::ShareNet
            | Switch::UnshareNet
            | Switch::ClearEnv
            | Switch::NewSession => {}
        }
    }

    fn hand(&mut self, option: Fd, fd: i32) {
        let handed = &mut self.asked.handed;
        match option {
            Fd::Args | Fd::Seccomp | Fd::AddSeccomp => handed.read.push(fd),
            Fd::Userns => handed.userns = Some(fd),
            Fd::Userns2 => handed.userns2 = Some(fd),
            Fd::Pidns => handed.pidns = Some(fd),
            Fd::Sync => handed.sync = Some(fd),
            Fd::Block => handed.block = Some(fd),
            Fd::UsernsBlock => handed.userns_block = Some(fd),
            Fd::Info => handed.info = Some(fd),
            Fd::JsonStatus => handed.json_status = Some(fd),
        }
    }

    /// What does not go together.
    fn check(&self, policy: &Policy) -> Result<(), BwrapError> {
        let Self { asked, caller, .. } = self;
        let handed = &asked.handed;
        let joined = handed.userns.is_some();
        let has_userns = self.user || self.user_try || joined || caller.uid != 0;
        let differs = |wanted: Option<u32>, own| wanted.is_some_and(|wanted| wanted != own);
        let rules = [
            (asked.as_pid_1 && !policy.namespaces.pid, "Specifying --as-pid-1 requires --unshare-pid"),
            (asked.as_pid_1 && !asked.lock_files.is_empty(), "Specifying --as-pid-1 and --lock-file is not permitted"),
            (joined && self.user, "--userns is not compatible with --unshare-user"),
            (joined && self.user_try, "--userns is not compatible with --unshare-user-try"),
            (asked.disable_userns && !self.user, "--disable-userns requires --unshare-user"),
            (
                asked.disable_userns && handed.userns_block.is_some(),
                "--disable-userns is not compatible with --userns-block-fd",
            ),
            (!has_userns && differs(asked.uid, caller.uid), "Specifying --uid requires --unshare-user or --userns"),
            (!has_userns && differs(asked.gid, caller.gid), "Specifying --gid requires --unshare-user or --userns"),
            (policy.hostname.is_some() && !policy.namespaces.uts, "Specifying --hostname requires --unshare-uts"),
            (handed.userns_block.is_some() && !self.user, "--userns-block-fd requires --unshare-user"),
            (handed.userns_block.is_some() && handed.info.is_none(), "--userns-block-fd requires --info-fd"),
        ];
        match rules.into_iter().find(|(broken, _)| *broken) {
            Some((_, text)) => Err(BwrapError::Usage(text)),
            None => Ok(()),
        }
    }
}

/// As cap_from_name(3): a number, or a name with its prefix in either case; and `ALL`.
fn capability(name: &OsStr) -> Result<CapabilityName, BwrapError> {
    let unknown = || BwrapError::Capability(name.to_owned());
    let text = name.to_str().ok_or_else(unknown)?.to_ascii_uppercase();
    if text == "ALL" {
        return Ok(CapabilityName::All);
    }
    if let Ok(number) = text.parse::<u8>() {
        // Newer kernels have more than any list; a set has 64 bits.
        return if number < 64 { Ok(CapabilityName::Number(number)) } else { Err(unknown()) };
    }
    let known = text.parse::<caps::Capability>().map_err(|_| unknown())?;
    Ok(CapabilityName::Number(known.index()))
}
