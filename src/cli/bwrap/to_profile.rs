//! `shannot bwrap --to-profile`: the profile that does the same, where there is one. It is a Shannot profile, and so
//! stricter where bubblewrap adds nothing; what that is goes to stderr.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::output::{self, note};
use crate::bwrap::{Fd, Flag, Lexed, Switch, Text};
use crate::policy::{Access, FsOp, Network, Policy, SandboxPath, Workdir};
use crate::profile::{Caller, Overrides, Profile};

pub(super) fn print(lexed: &Lexed, policy: &Policy) -> Result<u8, String> {
    let reasons: Vec<String> = lexed.flags.iter().filter_map(no_equivalent).collect();
    if !reasons.is_empty() {
        return Err(format!("no profile does the same: {}", reasons.join("; ")));
    }
    let profile = profile(lexed, policy)?;
    let text = serde_json::to_string_pretty(&profile).map_err(|error| error.to_string())?;
    // What can't be one is refused by who knows.
    let caller = Caller::current();
    Profile::parse(text.as_bytes(), Path::new("/profile.json"), &caller)
        .and_then(|profile| profile.policy(&Overrides::default(), &caller))
        .map_err(|error| format!("no profile does the same: {error}"))?;
    output::result(&format!("{text}\n")).map_err(|complaint| complaint.message)?;
    for difference in differences(policy) {
        note(&format!("stricter: {difference}"));
    }
    Ok(0)
}

/// Why no profile can say this.
fn no_equivalent(flag: &Flag) -> Option<String> {
    let reason = match flag {
        Flag::Fd(Fd::Args, _) => return None,
        Flag::Fd(Fd::Seccomp | Fd::AddSeccomp, _) => "save the filter as a file and name it in \"seccomp_profile\"",
        Flag::Fd(..) | Flag::BindFd { .. } | Flag::Data { .. } => "a profile has no descriptors to name",
        Flag::Uid(_) | Flag::Gid(_) => "the command has the caller's ids",
        Flag::Overlay { .. } => "overlays are not part of `shannot run`",
        Flag::Text(Text::CapAdd, _) => "`shannot run` gives no capability",
        Flag::Text(Text::LockFile, _) => "nobody outside waits for such a lock",
        Flag::Switch(Switch::AsPid1) => "process 1 is the sandbox's own init",
        Flag::Switch(Switch::NotASecurityBoundary) => "every sandbox of a profile is one",
        _ => return None,
    };
    let word = flag.render().into_iter().next().unwrap_or_default();
    Some(format!("{} ({reason})", word.to_string_lossy()))
}

fn profile(lexed: &Lexed, policy: &Policy) -> Result<Value, String> {
    let mut profile = Map::new();
    profile.insert("name".into(), json!("bwrap"));
    files(lexed, policy, &mut profile)?;
    let environment = &policy.environment;
    let mut variables = BTreeMap::new();
    for (name, value) in &environment.set {
        variables.insert(text(name)?, text(value)?);
    }
    profile.insert("environment".into(), json!(variables));
    if environment.inherit {
        profile.insert("env_pass".into(), json!(["*"]));
    }
    if let Workdir::Path(path) = &policy.workdir {
        profile.insert("workdir".into(), json!(text(path.as_os_str())?));
    }
    if let Some(hostname) = &policy.hostname {
        profile.insert("hostname".into(), json!(hostname));
    }
    let network = if policy.network == Network::Host { "host" } else { "loopback" };
    profile.insert("network".into(), json!(network));
    if !policy.namespaces.user {
        profile.insert("user_namespace_isolation".into(), json!(false));
    }
    Ok(Value::Object(profile))
}

/// Binds and tmpfs as keys where the order in which a profile applies them means the same, else all as bubblewrap's options.
fn files(lexed: &Lexed, policy: &Policy, profile: &mut Map<String, Value>) -> Result<(), String> {
    let mut options: Vec<Value> = Vec::new();
    let mut add = |flag: &Flag| {
        for word in absolute(flag).render() {
            options.push(json!(text(&word)?));
        }
        Ok::<_, String>(())
    };
    let as_keys = order_is_kept(&policy.fs);
    let (mut binds, mut tmpfs) = (Vec::new(), Vec::new());
    for flag in &lexed.flags {
        match flag {
            Flag::Bind { .. } | Flag::Tmpfs { .. } | Flag::Text(Text::Proc | Text::Dev, _) if as_keys => {}
            Flag::Bind { .. }
            | Flag::Tmpfs { .. }
            | Flag::Dir { .. }
            | Flag::Symlink { .. }
            | Flag::Chmod { .. }
            | Flag::Text(Text::Proc | Text::Dev | Text::Mqueue | Text::RemountRo | Text::Argv0, _)
            | Flag::Switch(Switch::NewSession) => add(flag)?,
            _ => {}
        }
    }
    for name in &policy.environment.unset {
        add(&Flag::Text(Text::UnsetEnv, name.clone()))?;
    }
    if as_keys {
        for op in &policy.fs {
            match op {
                FsOp::Bind { source, target, access, optional } => binds.push(json!({
                    "source": text(source.as_os_str())?,
                    "target": text(target.as_os_str())?,
                    "read_only": *access == Access::ReadOnly,
                    "optional": optional,
                })),
                FsOp::Tmpfs { target, .. } => tmpfs.push(json!(text(target.as_os_str())?)),
                _ => {}
            }
        }
    }
    for (key, list) in [("binds", binds), ("tmpfs_paths", tmpfs), ("additional_args", options)] {
        if !list.is_empty() {
            profile.insert(key.into(), Value::Array(list));
        }
    }
    Ok(())
}

/// With its source as a profile wants it, which is in no directory.
fn absolute(flag: &Flag) -> Flag {
    let mut flag = flag.clone();
    if let Flag::Bind { source, .. } = &mut flag
        && let Ok(path) = std::path::absolute(&*source)
    {
        *source = path.into();
    }
    flag
}

/// Whether a profile's order (a bind of `/`, /proc, /dev, tmpfs, binds, each sorted; then all else) is the one given.
fn order_is_kept(ops: &[FsOp]) -> bool {
    let rank = |op: &FsOp| match op {
        FsOp::Bind { target, access: Access::ReadOnly | Access::ReadWrite, .. } if target.is_root() => Some(0),
        FsOp::Proc { target } if target.as_os_str() == "/proc" => Some(1),
        FsOp::Dev { target } if target.as_os_str() == "/dev" => Some(2),
        FsOp::Tmpfs { target, mode, size: None, .. } if is_usual(*mode, target) => Some(3),
        FsOp::Bind { access: Access::ReadOnly | Access::ReadWrite, .. } => Some(4),
        FsOp::Bind { .. } | FsOp::Tmpfs { .. } | FsOp::Proc { .. } | FsOp::Dev { .. } => None,
        _ => Some(5),
    };
    // No look at which of them meet: links inside may make any two.
    let Some(ranks) = ops.iter().map(|op| Some((rank(op)?, op))).collect::<Option<Vec<(i32, &FsOp)>>>() else {
        return false;
    };
    let is_after = |(rank, op): (i32, &FsOp), (next, other): (i32, &FsOp)| {
        rank < next || (rank == next && (rank == 5 || op.target() < other.target()))
    };
    ranks.iter().zip(ranks.iter().skip(1)).all(|(one, next)| is_after(*one, *next))
}

/// A profile's /tmp is for all, of whom there is one.
fn is_usual(mode: u32, target: &SandboxPath) -> bool {
    let shared = ["/tmp", "/var/tmp"].iter().any(|path| target.as_os_str() == *path);
    mode == 0o755 || (shared && mode == 0o1777)
}

/// Where a profile is stricter than the command line.
fn differences(policy: &Policy) -> Vec<&'static str> {
    let namespaces = policy.namespaces;
    let all = namespaces.pid && namespaces.ipc && namespaces.uts && namespaces.cgroup;
    let rules = [
        (!all, "pid, ipc, uts and cgroup namespaces are always new; /proc and /dev are fresh"),
        (policy.filters.is_empty(), "the seccomp preset `default` is on (\"seccomp_profile\": \"none\" turns it off)"),
        (
            true,
            "Landlock over the same tree (\"landlock\": \"off\"), no capability, no user namespace inside, no descriptor above 2",
        ),
        (true, "nothing that the command leaves running outlives it; the exit codes of failures are 125 to 127"),
    ];
    rules.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| text).collect()
}

fn text(text: &OsStr) -> Result<String, String> {
    text.to_str().map(str::to_owned).ok_or_else(|| format!("no profile does the same: {text:?} is not UTF-8"))
}
