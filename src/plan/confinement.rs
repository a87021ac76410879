//! What confines the command besides the new root, and how far each layer will be in force.

use serde::Serialize;

use super::ladder::{Choice, Rung};
use super::{Plan, PlanError, Step, in_place, limits};
use crate::host::{Ability, Host, Landlock};
use crate::policy::{LandlockMode, Network, OverlayTop, Policy, SandboxPath};
use crate::report::{Enforcement, Layer};

/// First Landlock ABI that handles TCP (Linux 6.7).
pub(super) const ABI_NET: i32 = 4;
/// First Landlock ABI that handles signals and abstract sockets (Linux 6.12).
pub(super) const ABI_SCOPE: i32 = 6;

/// A Landlock ruleset.
#[derive(Debug, Clone, Serialize)]
pub struct LandlockPlan {
    /// The ABI that it is written for: the kernel's.
    pub abi: i32,
    /// What is allowed. All other file access that the ABI handles is refused.
    pub rules: Vec<Rule>,
    /// TCP bind and connect are refused.
    pub refuse_tcp: bool,
    /// Signals and abstract sockets reach no process outside.
    pub scope: bool,
}

/// What is allowed beneath one object.
#[derive(Debug, Clone, Serialize)]
pub struct Rule {
    /// Where.
    pub object: RuleObject,
    /// It is a directory: only those have all rights.
    pub directory: bool,
    /// What.
    pub rights: Rights,
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleObject {
    /// A path inside and all beneath it.
    Path(SandboxPath),
    /// The terminal on this standard descriptor, which may be opened again through /dev/stdout and the like.
    Descriptor(u8),
}

/// Sets of Landlock rights, by what a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rights {
    /// Read files and list directories.
    Read,
    /// And execute.
    ReadExecute,
    /// Execute and read single files, or a folder.
    Execute,
    /// All but device nodes; execution too, if there is no allowlist.
    Write,
    /// Read and write existing files: procfs.
    WriteFiles,
    /// Read, write and control devices.
    Devices,
    /// List a folder and those below it.
    List,
}

pub(super) fn decide(plan: &mut Plan, policy: &Policy, host: &Host, choice: &Choice) -> Result<(), PlanError> {
    if policy.bubblewrap.is_some() {
        // Nothing but what was asked for: its clients build sandboxes inside.
        plan.expected = super::bubblewrap::expect(plan, policy);
        return Ok(());
    }
    if plan.rung == Rung::Namespaces {
        plan.landlock = landlock(plan, policy, host);
    } else {
        in_place::decide(plan, policy, host, choice)?;
    }
    // Without Landlock's signal scope kill(0) reaches the caller's whole process group, which the pid
    // namespace does not divide: then the command gets a session of its own.
    let scope = plan.landlock.as_ref().is_some_and(|landlock| landlock.scope);
    plan.new_session |= !scope;
    if plan.rung == Rung::Namespaces {
        expect(plan, policy, host, choice);
    }
    if !plan.new_keyring {
        plan.expected.insert(Layer::Keyring, Enforcement::by("seccomp: no call on keys works"));
    }
    limits::decide(plan, &policy.limits, host);
    require(plan, policy, host)
}

fn landlock(plan: &Plan, policy: &Policy, host: &Host) -> Option<LandlockPlan> {
    let abi = host.landlock.abi();
    if abi == 0 || policy.landlock == LandlockMode::Off {
        return None;
    }
    let path_rule =
        |target: &SandboxPath, directory, rights| Rule { object: RuleObject::Path(target.clone()), directory, rights };
    let rule = |target: &SandboxPath, rights| path_rule(target, true, rights);
    let base = if plan.executables.is_some() { Rights::Read } else { Rights::ReadExecute };
    let mut rules = vec![rule(&SandboxPath::root(), base)];
    for step in &plan.steps {
        match step {
            Step::Bind { target, attributes, directory, .. } if !attributes.read_only => {
                rules.push(path_rule(target, *directory, Rights::Write));
                if !attributes.nodev {
                    rules.push(path_rule(target, *directory, Rights::Devices));
                }
            }
            Step::Tmpfs { target, .. } | Step::Mqueue { target } => rules.push(rule(target, Rights::Write)),
            Step::Overlay { target, top, .. } if *top != OverlayTop::Nothing => {
                rules.push(rule(target, Rights::Write));
            }
            Step::Proc { target, .. } => rules.push(rule(target, Rights::WriteFiles)),
            Step::Dev { target, .. } => {
                rules.push(rule(target, Rights::Devices));
                rules.push(rule(&target.join("shm"), Rights::Write));
            }
            _ => {}
        }
    }
    if let Some(executables) = &plan.executables {
        rules.extend(executables.folders.iter().map(|folder| rule(folder, Rights::Execute)));
        let files = executables.commands.iter().chain(&executables.loaders);
        rules.extend(files.map(|file| path_rule(file, false, Rights::Execute)));
    }
    rules.extend(terminal_rule(host, policy.new_session));
    Some(LandlockPlan {
        abi,
        rules,
        refuse_tcp: abi >= ABI_NET && policy.network == Network::None,
        scope: abi >= ABI_SCOPE,
    })
}

/// The terminal may be opened again, unless the command gets none.
pub(super) fn terminal_rule(host: &Host, new_session: bool) -> Option<Rule> {
    let terminal = host.terminal.as_ref().filter(|_| !new_session)?;
    let object = RuleObject::Descriptor(terminal.descriptor);
    Some(Rule { object, directory: false, rights: Rights::Devices })
}

pub(super) fn off(why: impl Into<String>) -> Enforcement {
    Enforcement::Off { why: why.into() }
}

pub(super) fn partial(missing: impl Into<String>) -> Enforcement {
    Enforcement::Partial { missing: missing.into() }
}

fn expect(plan: &mut Plan, policy: &Policy, host: &Host, choice: &Choice) {
    let mut expected = std::mem::take(&mut plan.expected);
    let always = [
        Layer::MountNamespace,
        Layer::PidNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::CgroupNamespace,
        Layer::Capabilities,
        Layer::NoNewPrivileges,
        Layer::Keyring,
    ];
    expected.extend(always.map(|layer| (layer, Enforcement::FULL)));
    // Only Landlock stands between /proc/self/fd/0 and the file behind it, opened again for writing.
    let reopened =
        partial("keeping files behind stdin, stdout and stderr from being opened again: this needs Landlock");
    expected.insert(Layer::Descriptors, if plan.landlock.is_some() { Enforcement::FULL } else { reopened });
    let when = |condition: bool, why: &str| if condition { Enforcement::FULL } else { off(why) };
    expected.insert(Layer::UserNamespace, when(plan.namespaces.user, "the policy asks for none"));
    expected.insert(Layer::NetworkNamespace, when(plan.namespaces.network, "the policy keeps the host's network"));
    expected.insert(Layer::Environment, when(!policy.environment.inherit, "the policy inherits the caller's"));
    expected.insert(Layer::UsernsLimit, userns_limit(plan));
    expected.insert(Layer::Seccomp, when(plan.has_filter(), "the policy asks for no filter"));
    if plan.exec_once {
        expected.insert(Layer::ExecOnce, Enforcement::by("seccomp, asked about each execve"));
    }
    let fresh_proc = plan.steps.iter().any(|step| matches!(step, Step::Proc { .. }));
    let host_proc =
        plan.steps.iter().any(|step| matches!(step, Step::Bind { source, .. } if source.starts_with("/proc")));
    expected.insert(
        Layer::Procfs,
        match (fresh_proc, host_proc) {
            (_, true) => partial("hiding the host's processes: the policy binds the host's /proc"),
            (true, false) => Enforcement::FULL,
            (false, false) => off("the policy has no /proc"),
        },
    );
    landlock_layers(&mut expected, plan, policy, host);
    if !policy.allowed_commands.is_empty() {
        let allowlist = allowlist(plan, Enforcement::FULL);
        expected.insert(Layer::Allowlist, allowlist);
    }
    refused_layers(&mut expected, choice);
    plan.expected = expected;
}

/// How far an allowlist is in force, where nothing in the plan weakens it.
pub(super) fn allowlist(plan: &Plan, in_full: Enforcement) -> Enforcement {
    match &plan.executables {
        Some(executables) if !executables.many_commands.is_empty() => {
            partial("telling the commands in one multi-call file apart")
        }
        Some(executables) if !executables.library_folders.is_empty() => {
            partial("keeping the dynamic loader from programs in the library folders")
        }
        Some(_) if !plan.has_filter() => partial("refusing programs in memory files: the policy asks for no filter"),
        Some(_) => in_full,
        None => partial("anything but the check of the command word"),
    }
}

fn userns_limit(plan: &Plan) -> Enforcement {
    match (plan.namespaces.userns_limit, plan.has_filter()) {
        (true, _) => Enforcement::by("user.max_user_namespaces"),
        (false, true) => Enforcement::by("seccomp"),
        (false, false) => off("the limit is the host's, and the policy asks for no filter"),
    }
}

/// What this host refuses of the furniture.
fn refused_layers(expected: &mut crate::report::Effective, choice: &Choice) {
    for (ability, layer) in [
        (Ability::UserNamespace, Layer::UserNamespace),
        (Ability::UtsNamespace, Layer::UtsNamespace),
        (Ability::CgroupNamespace, Layer::CgroupNamespace),
    ] {
        if let Some(why) = choice.why_not(ability) {
            expected.insert(layer, off(why));
        }
    }
    if let Some(why) = choice.why_not(Ability::Procfs) {
        let state = match expected.get(&Layer::Procfs) {
            Some(Enforcement::Partial { .. }) => {
                partial(format!("a fresh one, so the host's is read-only and lists its processes: {why}"))
            }
            _ => off(format!("an empty folder: {why}")),
        };
        expected.insert(Layer::Procfs, state);
    }
}

fn landlock_layers(expected: &mut crate::report::Effective, plan: &Plan, policy: &Policy, host: &Host) {
    let reason = match host.landlock {
        _ if policy.landlock == LandlockMode::Off => "the policy turns Landlock off".to_owned(),
        Landlock::NotBuilt => "this kernel has no Landlock".to_owned(),
        Landlock::NotEnabled => "Landlock is built in but not enabled at boot".to_owned(),
        Landlock::Abi(abi) => format!("Landlock ABI {abi} can't"),
    };
    let (files, tcp, scope) = match &plan.landlock {
        None => (off(&reason), off(&reason), off(&reason)),
        Some(landlock) => {
            // landlock(7): 2 reparenting, 3 truncation, 5 device ioctls.
            let missing: Vec<&str> =
                [(2, "refusing moves between folders"), (3, "refusing truncation"), (5, "refusing device ioctls")]
                    .into_iter()
                    .filter(|(abi, _)| landlock.abi < *abi)
                    .map(|(_, what)| what)
                    .collect();
            let by = || Enforcement::by(format!("ABI {}", landlock.abi));
            let files = if missing.is_empty() { by() } else { partial(missing.join(", ")) };
            let tcp = match policy.network {
                Network::None if landlock.refuse_tcp => by(),
                Network::None => off(&reason),
                Network::Loopback | Network::Host => off("the policy has a network"),
            };
            (files, tcp, if landlock.scope { by() } else { off(&reason) })
        }
    };
    expected.insert(Layer::LandlockFs, files);
    expected.insert(Layer::LandlockNet, tcp);
    expected.insert(Layer::LandlockScope, scope);
}

fn require(plan: &Plan, policy: &Policy, host: &Host) -> Result<(), PlanError> {
    let landlock = (policy.landlock == LandlockMode::Required).then_some(Layer::LandlockFs);
    for layer in policy.require.iter().copied().chain(landlock) {
        match plan.expected.get(&layer) {
            Some(state) if state.is_full() => {}
            state => {
                let state = state.map_or_else(|| "the policy does not ask for it".to_owned(), ToString::to_string);
                return Err(PlanError::Required { layer, state, cure: limits::cure(layer, host) });
            }
        }
    }
    Ok(())
}
