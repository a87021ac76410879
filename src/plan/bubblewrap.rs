//! What a command line of bubblewrap's amounts to on this host, besides the new root.

use std::ffi::OsString;
use std::os::fd::RawFd;

use serde::Serialize;

use super::{Plan, Step};
use crate::host::Host;
use crate::policy::{Bubblewrap, CapabilityEdit, CapabilityName, Environment, FsOp, Handed, Policy, SandboxPath};
use crate::report::{Effective, Enforcement, Layer};

/// How a command is started and followed under bubblewrap's contract.
#[derive(Debug, Clone, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct BubblewrapPlan {
    /// The command's capabilities.
    pub capabilities: CapabilityPlan,
    /// Descriptors that mean something.
    #[serde(skip)]
    pub handed: Handed,
    /// Descriptors that the command does not get; all others that the caller leaves open it has.
    pub closed: Vec<RawFd>,
    /// A process of ours reaps, and ends when nothing is left; else the command is the first process.
    pub init: bool,
    /// All is killed when the launcher or its parent ends.
    pub die_with_parent: bool,
    /// The child waits for the launcher's word before it sets anything up.
    pub waits: bool,
    /// The first user namespace allows one more, which is the command's.
    pub limit_userns: bool,
    /// Refuse to run if a user namespace can be made.
    pub assert_userns_disabled: bool,
    /// Files that the first process holds a read lock on.
    pub lock_files: Vec<SandboxPath>,
}

/// What is done to the capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CapabilityPlan {
    /// The caller is root, and keeps what it has.
    Unchanged,
    /// All sets hold these, a bit a number, or fewer.
    Only(u64),
}

impl BubblewrapPlan {
    pub(super) fn new(policy: &Policy, asked: &Bubblewrap, host: &Host) -> Self {
        let handed = &asked.handed;
        let mut closed: Vec<RawFd> = handed.kept_from_command().collect();
        closed.extend(policy.fs.iter().filter_map(|op| match op {
            FsOp::BindDescriptor { fd, .. } | FsOp::Data { fd, .. } => Some(*fd),
            _ => None,
        }));
        let init = !asked.as_pid_1 && (policy.namespaces.pid || !asked.lock_files.is_empty() || handed.sync.is_some());
        closed.extend(handed.sync.filter(|_| init));
        Self {
            capabilities: capabilities(policy, asked, host),
            closed,
            init,
            die_with_parent: asked.die_with_parent,
            waits: handed.info.or(handed.json_status).or(handed.userns_block).or(handed.pidns).is_some(),
            limit_userns: asked.disable_userns,
            assert_userns_disabled: asked.assert_userns_disabled || asked.disable_userns,
            lock_files: asked.lock_files.clone(),
            handed: handed.clone(),
        }
    }
}

/// Root starts with what it has, others with nothing; the edits follow in order.
fn capabilities(policy: &Policy, asked: &Bubblewrap, host: &Host) -> CapabilityPlan {
    let edits = &asked.capabilities;
    let is_root = host.uid == 0;
    // In a user namespace a process begins with all, also with those that the caller does not have.
    let in_userns = policy.namespaces.user || asked.handed.userns.is_some() || asked.handed.userns2.is_some();
    if is_root && edits.is_empty() && !in_userns {
        return CapabilityPlan::Unchanged;
    }
    let start = if is_root { host.capabilities.effective } else { 0 };
    let bits = |name: CapabilityName| match name {
        CapabilityName::All => u64::MAX,
        CapabilityName::Number(number) => 1_u64.checked_shl(number.into()).unwrap_or(0),
    };
    CapabilityPlan::Only(edits.iter().fold(start, |held, edit| match *edit {
        CapabilityEdit::Add(name) => held | bits(name),
        CapabilityEdit::Drop(name) => held & !bits(name),
    }))
}

/// The command's environment: the caller's as it is, odd entries and all, with the edits in it. PWD is the launcher's to set.
pub(super) fn environment(wanted: &Environment, host: &Host) -> Vec<(OsString, OsString)> {
    let is_kept = |name: &OsString| name != "PWD" && !wanted.unset.contains(name);
    let inherited = host.environment.iter().filter(|(name, _)| wanted.inherit && is_kept(name));
    let value = |name: &OsString, own: &OsString| wanted.set.get(name).unwrap_or(own).clone();
    let mut variables: Vec<_> = inherited.map(|(name, own)| (name.clone(), value(name, own))).collect();
    let is_new = |name: &OsString| name != "PWD" && variables.iter().all(|(known, _)| known != name);
    let new: Vec<_> = wanted.set.iter().filter(|(name, _)| is_new(name)).collect();
    variables.extend(new.into_iter().map(|(name, value)| (name.clone(), value.clone())));
    variables
}

/// What protection results. bubblewrap adds nothing by itself, and the words say so.
pub(super) fn expect(plan: &Plan, policy: &Policy) -> Effective {
    let off = |why: &str| Enforcement::Off { why: why.to_owned() };
    let when = |condition: bool, why: &str| if condition { Enforcement::FULL } else { off(why) };
    let Some(asked) = &plan.bubblewrap else { return Effective::new() };
    let has_proc = plan.steps.iter().any(|step| matches!(step, Step::Proc { .. }));
    let joined = asked.handed.userns.is_some();
    let capabilities = match asked.capabilities {
        CapabilityPlan::Only(0) => Enforcement::FULL,
        CapabilityPlan::Only(_) => Enforcement::Partial {
            missing: "dropping what root has without --cap-drop ALL, or what --cap-add names".to_owned(),
        },
        CapabilityPlan::Unchanged => off("root keeps its capabilities without --cap-drop ALL"),
    };
    let namespaces = plan.namespaces;
    [
        (Layer::MountNamespace, Enforcement::FULL),
        (Layer::UserNamespace, when(namespaces.user || joined, "root, and no --unshare-user")),
        (Layer::PidNamespace, when(namespaces.pid || asked.handed.pidns.is_some(), "no --unshare-pid")),
        (Layer::NetworkNamespace, when(namespaces.network, "no --unshare-net")),
        (Layer::IpcNamespace, when(namespaces.ipc, "no --unshare-ipc")),
        (Layer::UtsNamespace, when(namespaces.uts, "no --unshare-uts")),
        (Layer::CgroupNamespace, when(namespaces.cgroup, "no --unshare-cgroup")),
        (Layer::Procfs, when(has_proc, "no --proc with --unshare-pid")),
        (Layer::Capabilities, capabilities),
        (Layer::NoNewPrivileges, Enforcement::FULL),
        (Layer::UsernsLimit, when(asked.assert_userns_disabled, "no --disable-userns")),
        (Layer::LandlockFs, off("bubblewrap has none: clients build sandboxes inside")),
        (Layer::Seccomp, when(plan.has_filter(), "no --seccomp")),
        (Layer::Environment, when(!policy.environment.inherit, "no --clearenv")),
        (Layer::Descriptors, off("bubblewrap passes on what the caller leaves open")),
        (Layer::Keyring, off("bubblewrap keeps the caller's")),
    ]
    .into_iter()
    .collect()
}
