//! What holds each limit: a cgroup, which counts the sandbox as a whole, where the caller can make one; else setrlimit(2) and
//! the CPU affinity, and the report says what they miss.

use std::path::PathBuf;

use serde::Serialize;

use super::confinement::{off, partial};
use super::{Plan, RlimitResource, Rung};
use crate::host::{Cause, Ceiling, CgroupPlace, CgroupVersion, Cgroups, Controller, Host};
use crate::policy::{Cpus, Limits};
use crate::report::{Enforcement, Layer};

/// A cgroup for this run, gone afterwards.
#[derive(Debug, Clone, Serialize)]
pub struct CgroupPlan {
    /// Its hierarchy's interface.
    pub version: CgroupVersion,
    /// Its folder, which must not exist yet.
    #[serde(serialize_with = "super::lossy_path")]
    pub path: PathBuf,
    /// Controllers that its parent must be told to give to children.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub enable: Vec<Controller>,
    /// What is written to its files, in order, before anything runs in it.
    pub settings: Vec<CgroupSetting>,
}

/// A file of a cgroup and what it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CgroupSetting {
    /// Its name.
    pub file: &'static str,
    /// The text.
    pub value: String,
    /// Kernels that lack the file hold the limit without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// The kernel's period for quotas of CPU time, microseconds.
const PERIOD: u32 = 100_000;
/// More processes than that there can't be (PID_MAX_LIMIT), and more the controller does not take.
const MOST_PIDS: u64 = 4_194_304;

/// What a cgroup is to hold.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    memory: Option<u64>,
    pids: Option<u64>,
    cpus: Option<u32>,
}

impl Wanted {
    fn new(limits: &Limits, rung: Rung) -> Self {
        // Init is counted as well, and its keeper.
        let ours = match rung {
            Rung::Namespaces => 1,
            Rung::Landlock => 2,
        };
        Self {
            memory: limits.memory,
            pids: limits.pids.map(|pids| pids.saturating_add(ours)),
            cpus: limits.cpus.map(Cpus::thousandths),
        }
    }

    /// The controllers that hold it.
    fn controllers(&self) -> Vec<Controller> {
        let wanted = [
            (self.memory.is_some(), Controller::Memory),
            (self.pids.is_some(), Controller::Pids),
            (self.cpus.is_some(), Controller::Cpu),
        ];
        wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, controller)| controller).collect()
    }

    /// Only what this controller holds.
    fn only(&self, kept: &[Controller]) -> Self {
        let has = |controller| kept.contains(&controller);
        Self {
            memory: self.memory.filter(|_| has(Controller::Memory)),
            pids: self.pids.filter(|_| has(Controller::Pids)),
            cpus: self.cpus.filter(|_| has(Controller::Cpu)),
        }
    }

    /// Nor more than what holds the caller, whose own cgroup the command leaves.
    fn under(&self, ceiling: &Ceiling) -> Self {
        fn least<T: Ord>(wanted: Option<T>, ceiling: Option<T>) -> Option<T> {
            wanted.into_iter().chain(ceiling).min()
        }
        Self {
            memory: least(self.memory, ceiling.memory),
            pids: least(self.pids, ceiling.pids),
            cpus: least(self.cpus, ceiling.cpus),
        }
    }
}

/// The controllers that would hold what these limits ask for.
pub fn wanted_controllers(limits: &Limits) -> Vec<Controller> {
    Wanted::new(limits, Rung::Namespaces).controllers()
}

/// The limits' mechanisms, and how far each holds.
pub(super) fn decide(plan: &mut Plan, limits: &Limits, host: &Host) {
    let wanted = Wanted::new(limits, plan.rung);
    let mut held = Held::new();
    if let Some(cgroups) = &host.cgroups {
        plan.cgroups = make(wanted, cgroups, &mut held);
    }
    let is_held = |controller: Controller| held.iter().any(|(held, _)| *held == controller);
    plan.rlimits.retain(|limit| match limit.resource {
        RlimitResource::AddressSpace => !is_held(Controller::Memory),
        RlimitResource::Processes => !is_held(Controller::Pids),
        _ => true,
    });
    plan.cpus = limits.cpus.filter(|_| !is_held(Controller::Cpu)).map(Cpus::whole);
    layers(plan, limits, host, &held);
}

/// What cgroups hold, and how far.
type Held = Vec<(Controller, Enforcement)>;

/// Version 2 first: what it gives, version 1 has not.
fn make(wanted: Wanted, cgroups: &Cgroups, held: &mut Held) -> Vec<CgroupPlan> {
    let mut plans: Vec<CgroupPlan> = Vec::new();
    if let Some(place) = cgroups.best(CgroupVersion::V2, &wanted.controllers()) {
        plans.push(cgroup(place, wanted, cgroups, held));
    }
    for controller in wanted.controllers() {
        if held.iter().any(|(held, _)| *held == controller) {
            continue;
        }
        // One of those that are mounted together is for all of them.
        if let Some(place) = cgroups.best(CgroupVersion::V1, &[controller]) {
            plans.push(cgroup(place, wanted, cgroups, held));
        }
    }
    plans
}

fn cgroup(place: &CgroupPlace, wanted: Wanted, cgroups: &Cgroups, held: &mut Held) -> CgroupPlan {
    let given: Vec<Controller> = Controller::ALL.into_iter().filter(|one| place.gives(*one)).collect();
    let set = wanted.under(&place.ceiling).only(&given);
    let swaps_freely = cgroups.swap && place.limits_swap == Some(false);
    let mut settings = Vec::new();
    if let Some(bytes) = set.memory {
        settings.extend(memory(place.version, bytes, cgroups.swap));
        if place.version == CgroupVersion::V1 && place.limits_sockets {
            // Counted apart, whatever the protocol.
            settings.push(setting("memory.kmem.tcp.limit_in_bytes", bytes));
        }
    }
    if let Some(pids) = set.pids {
        let most = if pids > MOST_PIDS { "max".to_owned() } else { pids.to_string() };
        settings.push(setting("pids.max", most));
    }
    if let Some(thousandths) = set.cpus {
        settings.extend(cpu(place.version, thousandths));
    }
    if swaps_freely {
        settings.retain(|setting| !is_swap(setting));
    }
    for controller in wanted.only(&given).controllers() {
        held.push((controller, enforcement(place, controller, &settings, swaps_freely)));
    }
    let enable = set.controllers().into_iter().filter(|controller| place.can_enable.contains(controller)).collect();
    CgroupPlan { version: place.version, path: place.folder.join(&cgroups.name), enable, settings }
}

fn setting(file: &'static str, value: impl ToString) -> CgroupSetting {
    CgroupSetting { file, value: value.to_string(), optional: false }
}

fn optional(file: &'static str, value: impl ToString) -> CgroupSetting {
    CgroupSetting { optional: true, ..setting(file, value) }
}

fn is_swap(setting: &CgroupSetting) -> bool {
    matches!(setting.file, "memory.swap.max" | "memory.memsw.limit_in_bytes")
}

fn memory(version: CgroupVersion, bytes: u64, swap: bool) -> Vec<CgroupSetting> {
    let swap = |file, value| CgroupSetting { file, value, optional: !swap };
    match version {
        CgroupVersion::V2 => vec![
            setting("memory.max", bytes),
            swap("memory.swap.max", "0".to_owned()),
            // Half a job is worse than none (Linux 4.19).
            optional("memory.oom.group", 1),
        ],
        CgroupVersion::V1 => vec![
            setting("memory.limit_in_bytes", bytes),
            // Both together, and so not less than the first.
            swap("memory.memsw.limit_in_bytes", bytes.to_string()),
            // Inherited where somebody has it so: the command would hang instead.
            optional("memory.oom_control", 0),
        ],
    }
}

fn cpu(version: CgroupVersion, thousandths: u32) -> Vec<CgroupSetting> {
    let quota = u64::from(thousandths) * u64::from(PERIOD) / 1000;
    // The least that the kernel takes; what is carried over may be less.
    let quota = quota.max(1000);
    match version {
        CgroupVersion::V2 => vec![setting("cpu.max", format!("{quota} {PERIOD}"))],
        CgroupVersion::V1 => vec![setting("cpu.cfs_period_us", PERIOD), setting("cpu.cfs_quota_us", quota)],
    }
}

fn enforcement(
    place: &CgroupPlace,
    controller: Controller,
    settings: &[CgroupSetting],
    swaps_freely: bool,
) -> Enforcement {
    if controller == Controller::Memory && !place.limits_sockets {
        return partial("buffers of sockets: this kernel counts them for no cgroup of version 1");
    }
    if controller == Controller::Memory && swaps_freely {
        return partial("swap: the kernel does not account it (swapaccount=1), and the cgroup limits memory alone");
    }
    let name = match place.version {
        CgroupVersion::V1 => "cgroup v1",
        CgroupVersion::V2 => "cgroup v2",
    };
    let is_limit = |setting: &&CgroupSetting| {
        setting.file.starts_with(controller.name()) && !setting.file.contains("oom") && !setting.file.contains("period")
    };
    let files: Vec<&str> =
        settings.iter().filter(is_limit).filter(|setting| !setting.optional).map(|setting| setting.file).collect();
    Enforcement::by(format!("{name} {}", files.join(", ")))
}

/// How far each limit that the policy asks for holds.
fn layers(plan: &mut Plan, limits: &Limits, host: &Host, held: &Held) {
    let rung = plan.rung;
    let mut limit = |wanted: bool, layer, state: &dyn Fn() -> Enforcement| {
        if wanted {
            plan.expected.insert(layer, state());
        }
    };
    let by_cgroup = |controller: Controller| {
        held.iter().find(|(held, _)| *held == controller).map(|(_, enforcement)| enforcement.clone())
    };
    limit(limits.timeout.is_some(), Layer::LimitTimeout, &|| Enforcement::by("supervisor"));
    limit(limits.memory.is_some(), Layer::LimitMemory, &|| {
        let rlimit = "a sum over processes: RLIMIT_AS limits each process's address space";
        by_cgroup(Controller::Memory).unwrap_or_else(|| partial(with_cause(rlimit, host, Controller::Memory)))
    });
    limit(limits.pids.is_some(), Layer::LimitPids, &|| by_cgroup(Controller::Pids).unwrap_or_else(|| pids(rung, host)));
    limit(limits.cpus.is_some(), Layer::LimitCpus, &|| {
        by_cgroup(Controller::Cpu).unwrap_or_else(|| match limits.cpus {
            Some(cpus) if !cpus.is_whole() => {
                let missing = format!("a part of a CPU: affinity holds it to {}", cpus.whole());
                partial(with_cause(&missing, host, Controller::Cpu))
            }
            _ => {
                let missing = "a hold: a process may choose its CPUs anew (sched_setaffinity)";
                partial(with_cause(missing, host, Controller::Cpu))
            }
        })
    });
    limit(limits.file_size.is_some(), Layer::LimitFileSize, &|| Enforcement::by("RLIMIT_FSIZE"));
    limit(limits.open_files.is_some(), Layer::LimitOpenFiles, &|| Enforcement::by("RLIMIT_NOFILE"));
    limit(limits.tmpfs_size.is_some(), Layer::LimitTmpfsSize, &|| match rung {
        Rung::Namespaces => Enforcement::by("tmpfs"),
        Rung::Landlock => off("a private folder stands in for the tmpfs, and has no limit of its own"),
    });
}

fn pids(rung: Rung, host: &Host) -> Enforcement {
    if host.is_root_outside() {
        let why = "RLIMIT_NPROC, which it is set by, does not bind the host's root";
        return off(with_cause(why, host, Controller::Pids));
    }
    let missing = match rung {
        Rung::Namespaces => "a count per sandbox: RLIMIT_NPROC counts per user in the user namespace",
        Rung::Landlock => "a count per sandbox: RLIMIT_NPROC counts all processes of the user",
    };
    partial(with_cause(missing, host, Controller::Pids))
}

/// And why no cgroup holds it.
fn with_cause(missing: &str, host: &Host, controller: Controller) -> String {
    match &host.cgroups {
        Some(cgroups) => format!("{missing}; {}", cgroups.why_not(controller).cause),
        None => missing.to_owned(),
    }
}

/// Why a limit's layer is weaker than it could be, where a cgroup would hold it.
pub(super) fn cure(layer: Layer, host: &Host) -> Option<String> {
    let controller = match layer {
        Layer::LimitMemory => Controller::Memory,
        Layer::LimitPids => Controller::Pids,
        Layer::LimitCpus => Controller::Cpu,
        _ => return None,
    };
    let Cause { cure, .. } = host.cgroups.as_ref()?.why_not(controller);
    cure
}

/// Bytes that the memory of cgroups is limited to.
pub(super) fn memory_limit(cgroups: &[CgroupPlan]) -> Option<u64> {
    let mut settings = cgroups.iter().flat_map(|cgroup| &cgroup.settings);
    let limit = settings.find(|setting| matches!(setting.file, "memory.max" | "memory.limit_in_bytes"))?;
    limit.value.parse().ok()
}
