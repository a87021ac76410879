//! How far each layer is in force without namespaces, and by what.

use std::path::Path;

use super::super::confinement::{ABI_SCOPE, allowlist, off, partial};
use crate::host::Host;
use crate::plan::{PROC_MASKED_FILES, PROC_MASKED_FOLDERS, Plan, RuleObject};
use crate::policy::{Network, Policy};
use crate::report::{Effective, Enforcement, Layer};

pub(super) fn layers(plan: &Plan, policy: &Policy, host: &Host) -> Effective {
    let Some(in_place) = &plan.in_place else { return Effective::new() };
    let abi = host.landlock.abi();
    let by_abi = || Enforcement::by(format!("Landlock ABI {abi}"));
    let tcp = if policy.network == Network::Host {
        off("the policy has a network")
    } else {
        Enforcement::by("seccomp: no sockets")
    };
    let scope = if abi >= ABI_SCOPE { by_abi() } else { Enforcement::by("seccomp: no signals, no sockets on paths") };
    let environment =
        if policy.environment.inherit { off("the policy inherits the caller's") } else { Enforcement::FULL };
    let capabilities = "four sets emptied; no_new_privs keeps the bounding set from being drawn on";
    let mut layers = Effective::from([
        (Layer::UserNamespace, off(&in_place.because)),
        (Layer::Capabilities, Enforcement::by(capabilities)),
        (Layer::NoNewPrivileges, Enforcement::FULL),
        (Layer::Keyring, Enforcement::FULL),
        (Layer::UsernsLimit, Enforcement::by("seccomp")),
        (Layer::Seccomp, Enforcement::FULL),
        (Layer::Descriptors, Enforcement::FULL),
        (Layer::Environment, environment),
        (Layer::LandlockFs, Enforcement::by(format!("Landlock ABI {abi}; seccomp for what it can't refuse"))),
        (Layer::LandlockNet, tcp),
        (Layer::LandlockScope, scope),
    ]);
    layers.extend(in_place_of_namespaces(plan, policy, host));
    if plan.exec_once {
        layers.insert(Layer::ExecOnce, Enforcement::by("seccomp, asked about each execve"));
    }
    if !policy.allowed_commands.is_empty() {
        let by = Enforcement::by(format!("Landlock ABI {abi}; seccomp, asked about each executable mapping"));
        let allowlist = allowlist(plan, by);
        layers.insert(Layer::Allowlist, allowlist);
    }
    layers
}

fn in_place_of_namespaces(plan: &Plan, policy: &Policy, host: &Host) -> [(Layer, Enforcement); 7] {
    let network = match policy.network {
        Network::Host => off("the policy keeps the host's network"),
        Network::None => Enforcement::by("seccomp: no sockets"),
        Network::Loopback => partial("a loopback of its own: no socket can be made"),
    };
    let is_proc =
        |object: &RuleObject| matches!(object, RuleObject::Path(path) if path.as_path() == Path::new("/proc"));
    let has_proc = plan.landlock.iter().flat_map(|landlock| &landlock.rules).any(|rule| is_proc(&rule.object));
    let procfs = if has_proc {
        let shown = unmasked(host);
        partial(if shown.is_empty() {
            "a fresh one: the host's is read-only, and lists its processes".to_owned()
        } else {
            format!("a fresh one: the host's is read-only, lists its processes, and shows {}", shown.join(", "))
        })
    } else {
        off("the policy has no /proc")
    };
    // A rule says nothing of nodes, and no whole tree is searched for them.
    let nodes = if host.is_root_outside() { ", which for root may be disks" } else { " where permissions allow it" };
    let files = format!(
        "a root of its own: Landlock confines files, whose names, sizes and owners can be seen; device nodes outside /dev can be opened{nodes}"
    );
    let processes = "hiding other processes, which can't be signalled or traced; the command's own are ended with it";
    [
        (Layer::MountNamespace, partial(files)),
        (Layer::PidNamespace, partial(processes)),
        (Layer::NetworkNamespace, network),
        (Layer::IpcNamespace, Enforcement::by("seccomp: no System V IPC, no message queues")),
        (Layer::UtsNamespace, partial("a host name of its own")),
        (Layer::CgroupNamespace, partial("hiding the cgroup tree")),
        (Layer::Procfs, procfs),
    ]
}

/// What of /proc is masked in a fresh one and can be read here: processes come and go, so that one rule is for all of it.
fn unmasked(host: &Host) -> Vec<&'static str> {
    // Which take a capability, or are there to be written.
    const NOT_READABLE: &[&str] = &["kcore", "sysrq-trigger"];
    const BY_ROOT: &[&str] = &["timer_list", "latency_stats"];
    let is_readable = |name: &&str| !NOT_READABLE.contains(name) && (host.uid == 0 || !BY_ROOT.contains(name));
    let is_there = |name: &&str| host.files.kind(&Path::new("/proc").join(name)).is_ok();
    PROC_MASKED_FILES.iter().chain(PROC_MASKED_FOLDERS).copied().filter(is_readable).filter(is_there).collect()
}
