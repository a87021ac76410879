//! From a profile to a [`Policy`], in the order that Shannot 0.3's users rely on: /proc, /dev, tmpfs (sorted), binds
//! (sorted by target), environment, seccomp, additional_args.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use super::document::{Document, EnforcementKey, LandlockKey, LimitsEntry, NetworkKey, Quantity, WorkspaceEntry};
use super::error::ProfileError;
use super::{Caller, Profile};
use crate::policy::{
    Access, CommandEnforcement, FsOp, LandlockMode, Limits, Network, Policy, SandboxPath, Workdir, parse_cpus,
    parse_duration, parse_size,
};
use crate::report::Layer;
use crate::spelling::nearest;

/// A policy whose hidden paths are not yet in its list of operations: they come last, after what the command line adds.
pub(super) struct Lowered {
    pub(super) policy: Policy,
    pub(super) hidden: Vec<SandboxPath>,
}

/// sethostname(2), __NEW_UTS_LEN.
const LONGEST_HOSTNAME: usize = 64;

pub(super) fn lower(
    profile: &Profile,
    workspace: Option<&WorkspaceEntry>,
    home: Option<OsString>,
    caller: &Caller,
) -> Result<Lowered, ProfileError> {
    let document = &profile.document;
    let at = |key: &'static str| move |reason: String| profile.refuse(key, reason, None);
    if document.name.is_empty() {
        return Err(at("name")("it is empty".to_owned()));
    }
    let mut policy = Policy::new(&document.name);
    policy.allowed_commands.clone_from(&document.allowed_commands);
    if document.allowed_commands.iter().any(String::is_empty) {
        return Err(at("allowed_commands")("a pattern is empty".to_owned()));
    }
    if document.command_enforcement == Some(EnforcementKey::Argv0) {
        policy.command_enforcement = CommandEnforcement::Argv0;
    }
    // A bind of the whole root would cover everything else, if it did not come first.
    let (root, binds): (Vec<_>, Vec<_>) = binds(profile, caller)?.into_iter().partition(|op| op.target().is_root());
    policy.fs = root;
    policy.fs.push(FsOp::Proc { target: SandboxPath::root().join("proc") });
    policy.fs.push(FsOp::Dev { target: SandboxPath::root().join("dev") });
    policy.fs.extend(tmpfs_paths(document, caller).map_err(at("tmpfs_paths"))?);
    policy.fs.extend(binds);
    if let Some(entry) = workspace {
        let (workspace, ops) = super::workspace::workspace(entry, caller).map_err(at("workspace"))?;
        policy.fs.extend(ops);
        policy.workspace = Some(workspace);
    }
    policy.environment.set = document.environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    if let Some(home) = home {
        // Caches are where their tools look for them.
        policy.environment.set.insert("HOME".into(), home);
    }
    super::cache::add(&document.caches, &mut policy, caller).map_err(at("caches"))?;
    policy.environment.pass.clone_from(&document.env_pass);
    policy.environment.deny.clone_from(&document.env_deny);
    policy.namespaces.user = document.user_namespace_isolation;
    policy.network = network(document).map_err(at("network"))?;
    policy.landlock = match document.landlock {
        Some(LandlockKey::Required) => LandlockMode::Required,
        Some(LandlockKey::Off) => LandlockMode::Off,
        Some(LandlockKey::BestEffort) | None => LandlockMode::BestEffort,
    };
    policy.filters.clone_from(&profile.filters);
    policy.exec_once = document.exec_once.unwrap_or(false);
    if let Some(name) = &document.hostname {
        policy.hostname = Some(hostname(name).map_err(at("hostname"))?);
    }
    if let Some(text) = &document.workdir {
        workdir(text, caller, &mut policy).map_err(at("workdir"))?;
        start_in_workspace(caller, &mut policy);
    }
    if let Some(entry) = &document.limits {
        limits(entry, &mut policy.limits)
            .map_err(|(key, reason)| profile.refuse(&format!("limits.{key}"), reason, None))?;
    }
    let layers = |key, names: &[String]| layers(names).map_err(|(reason, hint)| profile.refuse(key, reason, hint));
    policy.require = layers("require", &document.require)?;
    policy.allow_degraded = layers("allow_degraded", &document.allow_degraded)?;
    let hidden =
        document.hide.iter().map(|path| sandbox_path(path, caller)).collect::<Result<_, _>>().map_err(at("hide"))?;
    crate::bwrap::apply_additional_args(&document.additional_args, &mut policy)
        .map_err(|error| profile.refuse("additional_args", error, None))?;
    Ok(Lowered { policy, hidden })
}

fn tmpfs_paths(document: &Document, caller: &Caller) -> Result<Vec<FsOp>, String> {
    let mut targets =
        document.tmpfs_paths.iter().map(|path| sandbox_path(path, caller)).collect::<Result<Vec<_>, _>>()?;
    if targets.iter().any(SandboxPath::is_root) && document.tmpfs_paths.iter().any(|path| path.starts_with('~')) {
        return Err("HOME is /, and an empty one would cover everything: set HOME to a folder of its own".to_owned());
    }
    targets.sort();
    Ok(targets.into_iter().map(|target| tmpfs(target, true)).collect())
}

/// A tmpfs as a profile or an option asks for it.
pub(super) fn tmpfs(target: SandboxPath, optional: bool) -> FsOp {
    // Where everybody may write by convention.
    let shared = ["/tmp", "/var/tmp"].iter().any(|path| target.as_path().as_os_str() == *path);
    FsOp::Tmpfs { target, mode: if shared { 0o1777 } else { 0o755 }, size: None, optional }
}

fn binds(profile: &Profile, caller: &Caller) -> Result<Vec<FsOp>, ProfileError> {
    let mut ops = Vec::new();
    for (index, bind) in profile.document.binds.iter().enumerate() {
        let at = |reason| profile.refuse(&format!("binds[{index}]"), reason, None);
        let source = profile.host_path(&bind.source, caller).map_err(at)?;
        let target = sandbox_path(&bind.target, caller).map_err(at)?;
        let access = if bind.read_only { Access::ReadOnly } else { Access::ReadWrite };
        ops.push(FsOp::Bind { source, target, access, optional: bind.optional.unwrap_or(true) });
    }
    ops.sort_by(|a, b| a.target().cmp(b.target()));
    Ok(ops)
}

/// A path inside as a person writes it.
pub(super) fn sandbox_path(text: &str, caller: &Caller) -> Result<SandboxPath, String> {
    let path = caller.expand_home(std::path::Path::new(text))?;
    SandboxPath::new(path).map_err(|error| error.to_string())
}

fn network(document: &Document) -> Result<Network, String> {
    let said = document.network.map(Network::from);
    match (said, document.network_isolation) {
        (Some(network), Some(isolated)) if (network == Network::Host) == isolated => {
            Err(format!("it contradicts \"network_isolation\": {isolated}"))
        }
        (Some(network), _) => Ok(network),
        (None, Some(false)) => Ok(Network::Host),
        (None, Some(true) | None) => Ok(Network::Loopback),
    }
}

impl From<NetworkKey> for Network {
    fn from(key: NetworkKey) -> Self {
        match key {
            NetworkKey::None => Network::None,
            NetworkKey::Loopback => Network::Loopback,
            NetworkKey::Host => Network::Host,
        }
    }
}

pub(super) fn hostname(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > LONGEST_HOSTNAME || name.contains('\0') {
        return Err(format!("a host name has 1 to {LONGEST_HOSTNAME} bytes, none of them NUL"));
    }
    Ok(name.to_owned())
}

/// `.` keeps the caller's directory, and shows it read-only where a tmpfs would have covered it.
fn workdir(text: &str, caller: &Caller, policy: &mut Policy) -> Result<(), String> {
    if text != "." {
        policy.workdir = Workdir::Path(sandbox_path(text, caller)?);
        return Ok(());
    }
    policy.workdir = Workdir::Caller;
    let Some(cwd) = caller.cwd.as_ref().and_then(|cwd| SandboxPath::new(cwd).ok()) else { return Ok(()) };
    let covers = |op: &FsOp| matches!(op, FsOp::Tmpfs { target, .. } if cwd.is_under(target) && cwd != *target);
    let shown_again = |op: &FsOp| matches!(op, FsOp::Bind { target, .. } | FsOp::Overlay { target, .. } if cwd.is_under(target) && !target.is_root());
    if policy.fs.iter().any(covers) && !policy.fs.iter().any(shown_again) {
        let source = PathBuf::from(cwd.as_path());
        policy.fs.push(FsOp::Bind { source, target: cwd.clone(), access: Access::ReadOnly, optional: true });
        put_in_front(&mut policy.fs, &cwd);
    }
    Ok(())
}

/// What was to be empty below a folder that is bound only now is so in it, where that has such a folder.
pub(super) fn put_in_front(ops: &mut Vec<FsOp>, bound: &SandboxPath) {
    let is_below = |op: &FsOp| matches!(op, FsOp::Tmpfs { target, .. } if target.is_under(bound) && target != bound);
    let below: Vec<FsOp> = ops.extract_if(.., |op| is_below(op)).collect();
    let optional = below.into_iter().map(|mut op| {
        if let FsOp::Tmpfs { optional, .. } = &mut op {
            *optional = true;
        }
        op
    });
    ops.extend(optional);
}

/// Who works on a folder, and is elsewhere, starts in it.
fn start_in_workspace(caller: &Caller, policy: &mut Policy) {
    let Some(workspace) = &policy.workspace else { return };
    let is_there = caller.cwd.as_ref().is_some_and(|cwd| cwd.starts_with(&workspace.path));
    if policy.workdir == Workdir::Caller
        && !is_there
        && let Ok(path) = SandboxPath::new(&workspace.path)
    {
        policy.workdir = Workdir::Path(path);
    }
}

/// Sets the limits that the entry has; those that it has not stay. The error names the key.
pub(super) fn limits(entry: &LimitsEntry, limits: &mut Limits) -> Result<(), (&'static str, String)> {
    let time = |key, quantity: &Option<Quantity>| {
        let parsed = quantity.as_ref().map(|quantity| parse_duration(&quantity.to_string())).transpose();
        parsed.map_err(|error| (key, error.to_string()))
    };
    let size = |key, quantity: &Option<Quantity>| {
        let parsed = quantity.as_ref().map(|quantity| parse_size(&quantity.to_string())).transpose();
        parsed.map_err(|error| (key, error.to_string()))
    };
    let count = |key, number: Option<u64>| match number {
        Some(0) => Err((key, "0 would let nothing run".to_owned())),
        number => Ok(number),
    };
    limits.timeout = time("timeout", &entry.timeout)?.or(limits.timeout);
    limits.kill_after = time("kill_after", &entry.kill_after)?.or(limits.kill_after);
    limits.memory = size("memory", &entry.memory)?.or(limits.memory);
    limits.pids = count("pids", entry.pids)?.or(limits.pids);
    let cpus = entry.cpus.as_ref().map(|quantity| parse_cpus(&quantity.to_string())).transpose();
    limits.cpus = cpus.map_err(|error| ("cpus", error.to_string()))?.or(limits.cpus);
    limits.file_size = size("file_size", &entry.file_size)?.or(limits.file_size);
    limits.open_files = count("open_files", entry.open_files)?.or(limits.open_files);
    limits.tmpfs_size = size("tmpfs_size", &entry.tmpfs_size)?.or(limits.tmpfs_size);
    Ok(())
}

/// Features by name; the error comes with a hint.
pub(super) fn layers(names: &[String]) -> Result<BTreeSet<Layer>, (String, Option<String>)> {
    let known = || Layer::NAMES.iter().map(|(_, name)| *name);
    let layer = |name: &String| {
        name.parse::<Layer>().map_err(|error| {
            let hint = nearest(name, known()).map(|name| format!("did you mean {name:?}?"));
            (error.to_string(), Some(hint.unwrap_or_else(|| known().collect::<Vec<_>>().join(", "))))
        })
    };
    names.iter().map(layer).collect()
}
