//! Decides, once and in full, what a run will do on this host and what protection results. Pure: everything
//! it needs to know is in `Policy` and `Host`. `sandbox` carries the plan out and decides nothing.

mod bubblewrap;
mod confinement;
mod error;
mod executables;
mod filters;
mod hide;
mod in_place;
mod ladder;
mod limits;
mod render;
mod root;
mod step;
mod view;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

use self::confinement::terminal_rule;
use self::ladder::Choice;
use crate::host::Host;
use crate::policy::{self, Limits, Network, Policy, SandboxPath, Workdir};
use crate::report::Effective;
use crate::seccomp::{Filter, Gate};
use crate::sys;

pub use bubblewrap::{BubblewrapPlan, CapabilityPlan};
pub use confinement::{LandlockPlan, Rights, Rule, RuleObject};
pub use error::PlanError;
pub use executables::Executables;
pub use in_place::{InPlace, Mappings, Scratch};
pub use ladder::Rung;
pub use limits::{CgroupPlan, CgroupSetting, wanted_controllers};
pub use step::{Attributes, DEVICES, PROC_MASKED_FILES, PROC_MASKED_FOLDERS, ProcCover, RootRules, Skipped, Step};

/// Everything that will be done, in the order in which it will be done.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The policy's name.
    pub name: String,
    /// What runs in the end.
    pub command: CommandPlan,
    /// How it is kept from the host.
    pub rung: Rung,
    /// The namespaces, made by one clone.
    pub namespaces: Namespaces,
    /// The caller's ids, the only ones that are mapped.
    pub ids: Ids,
    /// What they are inside, if they are others there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids_inside: Option<Ids>,
    /// The host name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The new root, step by step.
    pub steps: Vec<Step>,
    /// What is not bound because it is not there.
    pub skipped: Vec<Skipped>,
    /// How the new root is built where the steps leave it open.
    pub root: RootRules,
    /// The allowlist, where the kernel holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executables: Option<Executables>,
    /// What there is in place of namespaces, on the rung without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_place: Option<InPlace>,
    /// The Landlock ruleset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landlock: Option<LandlockPlan>,
    /// seccomp filters in order of installation.
    #[serde(serialize_with = "filters::list")]
    pub filters: Vec<Filter>,
    /// From this filter on they are installed by prctl(2): one before refuses seccomp(2).
    pub prctl_from: usize,
    /// Nothing can be executed after the command.
    pub exec_once: bool,
    /// The first filter asks the supervisor: about each execve for `exec_once`, about executable mappings where no mount is noexec.
    #[serde(skip)]
    pub gate: bool,
    /// Limits that setrlimit(2) sets.
    pub rlimits: Vec<Rlimit>,
    /// Cgroups that hold limits of the sandbox as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<CgroupPlan>,
    /// How many CPUs may be used at once, by affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Bytes in the tmpfs that all without a size of their own share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_size: Option<u64>,
    /// Wall-clock limit, seconds, and the grace behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// A new session keyring is joined; else no call on keys works inside.
    pub new_keyring: bool,
    /// The command gets a session of its own: no terminal, and no signal to the caller's process group.
    pub new_session: bool,
    /// The kernel's new mount interface is used (Linux 5.12), else mount(2).
    pub mount_api: bool,
    /// What will be in force when the command starts.
    pub expected: Effective,
    /// What bubblewrap's command line asks for besides; then its contract holds (bubblewrap's manual page).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bubblewrap: Option<BubblewrapPlan>,
}

/// What runs.
#[derive(Debug, Clone, Serialize)]
pub struct CommandPlan {
    /// argv, the command word as typed first.
    #[serde(serialize_with = "lossy_list")]
    pub argv: Vec<OsString>,
    /// Paths inside that the command word may mean, tried in order.
    pub candidates: Vec<PathBuf>,
    /// The whole environment.
    #[serde(serialize_with = "lossy_pairs")]
    pub environment: Vec<(OsString, OsString)>,
    /// Directories to start in: the first that exists inside.
    #[serde(serialize_with = "lossy_list")]
    pub workdir: Vec<PathBuf>,
}

/// Which namespaces are new. The mount namespace always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Namespaces {
    /// A user namespace.
    pub user: bool,
    /// A second one inside it: devpts wants user id 0 mapped while it is mounted (fs/devpts/inode.c,
    /// mknod_ptmx), the command wants the caller's.
    pub nested_user: bool,
    /// A network namespace.
    pub network: bool,
    /// A pid namespace.
    pub pid: bool,
    /// An IPC namespace.
    pub ipc: bool,
    /// A UTS namespace.
    pub uts: bool,
    /// A cgroup namespace.
    pub cgroup: bool,
    /// The number of user namespaces in the new one is limited to those of the plan.
    pub userns_limit: bool,
}

/// A user id and a group id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A limit that setrlimit(2) sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// Which.
    pub resource: RlimitResource,
    /// Soft and hard limit.
    pub value: u64,
}

/// The resources of setrlimit(2) that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RlimitResource {
    /// RLIMIT_CORE.
    Core,
    /// RLIMIT_AS.
    AddressSpace,
    /// RLIMIT_NPROC.
    Processes,
    /// RLIMIT_FSIZE.
    FileSize,
    /// RLIMIT_NOFILE.
    OpenFiles,
}

/// The wall-clock limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timeout {
    /// Then the whole tree gets SIGTERM.
    #[serde(rename = "after_seconds", serialize_with = "seconds")]
    pub after: Duration,
    /// And so much later SIGKILL.
    #[serde(rename = "kill_after_seconds", serialize_with = "seconds")]
    pub kill_after: Duration,
}

impl Plan {
    /// The command's ids.
    pub fn ids_inside(&self) -> Ids {
        self.ids_inside.unwrap_or(self.ids)
    }

    /// Decides.
    ///
    /// # Errors
    /// [`PlanError`] when the policy contradicts itself or this host can't hold it.
    pub fn new(policy: &Policy, host: &Host) -> Result<Self, PlanError> {
        let choice = ladder::choose(policy, host)?;
        let root = root::build(policy, host, choice.fresh_procfs || choice.rung == Rung::Landlock)?;
        let environment = environment(policy, host);
        let candidates = candidates(policy, &environment)?;
        let executables = executables::build(policy, host, &root.steps, &environment)?;
        let root_is_chosen = root
            .steps
            .iter()
            .any(|step| matches!(step, Step::Bind { target, .. } | Step::Tmpfs { target, .. } if target.is_root()));
        let bubblewrap = policy.bubblewrap.as_ref().map(|asked| BubblewrapPlan::new(policy, asked, host));
        let (namespaces, ids_inside) = namespaces(policy, host, &choice, root.has_devpts);
        let gate =
            Gate { launches: policy.exec_once, mappings: choice.rung == Rung::Landlock && executables.is_some() };
        let gate = (gate.launches || gate.mappings).then_some(gate);
        let filters = filters::build(policy, host, choice.rung, executables.is_some(), gate)?;
        let mut plan = Self {
            name: policy.name.clone(),
            command: CommandPlan {
                argv: argv(policy),
                candidates,
                workdir: workdir(policy, host, &environment),
                environment,
            },
            rung: choice.rung,
            namespaces,
            ids: Ids { uid: host.uid, gid: host.gid },
            ids_inside,
            hostname: policy.hostname.clone().filter(|_| choice.namespaces.uts),
            steps: root.steps,
            skipped: root.skipped,
            root: root_rules(policy, root_is_chosen),
            prctl_from: filters::prctl_from(&filters)?,
            filters,
            exec_once: policy.exec_once,
            gate: gate.is_some(),
            executables,
            in_place: None,
            landlock: None,
            rlimits: rlimits(policy),
            cpus: None,
            cgroups: Vec::new(),
            tmpfs_size: policy.limits.tmpfs_size,
            timeout: policy.limits.timeout.map(|after| Timeout {
                after,
                kill_after: policy.limits.kill_after.unwrap_or(Limits::DEFAULT_KILL_AFTER),
            }),
            new_keyring: true,
            // Without a pid namespace it could join other process groups of the caller's session, and lead the terminal to stop them.
            new_session: policy.new_session || choice.rung == Rung::Landlock,
            mount_api: host.mount_api,
            expected: Effective::new(),
            bubblewrap,
        };
        let has_user =
            plan.namespaces.user || plan.bubblewrap.as_ref().is_some_and(|asked| asked.handed.userns.is_some());
        let wants_none = policy.bubblewrap.is_some() || !policy.namespaces.user;
        if wants_none && !has_user && host.uid != 0 && plan.rung == Rung::Namespaces {
            return Err(PlanError::NeedsPrivilege);
        }
        let keyring_is_refused = host.trial.as_ref().is_some_and(|trial| trial.keyring.is_err());
        plan.new_keyring = !(keyring_is_refused && filters::refuse_keys(&plan.filters));
        plan.mark_noexec();
        confinement::decide(&mut plan, policy, host, &choice)?;
        Ok(plan)
    }

    /// Bytes of memory that a cgroup limits the sandbox to.
    pub fn memory_limit(&self) -> Option<u64> {
        limits::memory_limit(&self.cgroups)
    }

    /// Whether nothing can be executed but what [`Step::Executable`] names, and so nothing on a tmpfs.
    pub fn noexec(&self) -> bool {
        self.executables.is_some()
    }

    /// Whether a filter of the policy is in force; the gate looks at nothing but execve.
    pub fn has_filter(&self) -> bool {
        self.filters.len() > usize::from(self.gate)
    }

    /// Whether another plan asks the kernel for the same things, so that the same would be refused. What files say by now
    /// is no other way.
    pub fn goes_the_way_of(&self, other: &Plan) -> bool {
        let has_procfs = |plan: &Plan| plan.steps.iter().any(|step| matches!(step, Step::Proc { .. }));
        self.rung == other.rung
            && self.namespaces == other.namespaces
            && has_procfs(self) == has_procfs(other)
            && self.new_keyring == other.new_keyring
    }

    /// Under a kernel-held allowlist nothing is executable but the allowed files, which are bound over themselves.
    fn mark_noexec(&mut self) {
        let Some(executables) = &self.executables else { return };
        for step in &mut self.steps {
            if let Step::Bind { attributes, .. } = step {
                attributes.noexec = true;
            }
        }
        self.steps.extend(executables.mounts().map(|target| Step::Executable { target: target.clone() }));
    }
}

/// The namespaces, and the ids inside where they differ from the caller's.
fn namespaces(policy: &Policy, host: &Host, choice: &Choice, has_devpts: bool) -> (Namespaces, Option<Ids>) {
    if choice.rung == Rung::Landlock {
        return (Namespaces::NONE, None);
    }
    let policy::Namespaces { user, pid, ipc, uts, cgroup } = choice.namespaces;
    let asked = policy.bubblewrap.as_deref();
    let caller = Ids { uid: host.uid, gid: host.gid };
    let inside = Ids {
        uid: asked.and_then(|asked| asked.uid).unwrap_or(host.uid),
        gid: asked.and_then(|asked| asked.gid).unwrap_or(host.gid),
    };
    // One that somebody else maps is used as it is.
    let ours = user && asked.is_none_or(|asked| asked.handed.userns_block.is_none());
    let wants_second = (has_devpts && inside.uid != 0) || asked.is_some_and(|asked| asked.disable_userns);
    let network = policy.network != Network::Host;
    let userns_limit = user && choice.userns_limit;
    let namespaces =
        Namespaces { user, nested_user: ours && wants_second, network, pid, ipc, uts, cgroup, userns_limit };
    (namespaces, (inside != caller).then_some(inside))
}

fn root_rules(policy: &Policy, root_is_chosen: bool) -> RootRules {
    match &policy.bubblewrap {
        None => RootRules {
            seal: !root_is_chosen,
            make_on_host: false,
            follow_last: true,
            share_tmpfs: true,
            receive_mounts: false,
            lenient: false,
            walk_by_hand: false,
            guard_submounts: true,
        },
        Some(asked) => RootRules {
            seal: false,
            make_on_host: true,
            follow_last: false,
            share_tmpfs: false,
            receive_mounts: true,
            lenient: asked.lenient,
            walk_by_hand: asked.walk_by_hand,
            guard_submounts: false,
        },
    }
}

fn argv(policy: &Policy) -> Vec<OsString> {
    let mut argv = policy.command.clone();
    if let (Some(first), Some(argv0)) = (argv.first_mut(), &policy.argv0) {
        first.clone_from(argv0);
    }
    argv
}

/// Whether no pattern passes a variable on. Tokens are written in small letters too.
pub fn is_denied(environment: &policy::Environment, name: &OsStr) -> bool {
    let upper = name.to_ascii_uppercase();
    let matches = |pattern: &String| sys::fnmatch(pattern, name) || sys::fnmatch(&pattern.to_ascii_uppercase(), &upper);
    environment.deny.iter().any(matches)
}

/// The command's environment: what is passed from the caller's, then what the policy sets.
fn environment(policy: &Policy, host: &Host) -> Vec<(OsString, OsString)> {
    let wanted = &policy.environment;
    if policy.bubblewrap.is_some() {
        return bubblewrap::environment(wanted, host);
    }
    let passes = |name: &OsStr| wanted.inherit || wanted.pass.iter().any(|pattern| sys::fnmatch(pattern, name));
    // Where secrets are not passed on, they are not in addresses either.
    let clean = |value: &OsStr| match value.to_str() {
        Some(text) if !wanted.deny.is_empty() && text.contains("://") => policy::without_userinfo(text).into(),
        _ => value.to_owned(),
    };
    let passed = host.environment.iter();
    let passed = passed.filter(|(name, _)| !wanted.unset.contains(name) && passes(name) && !is_denied(wanted, name));
    let mut variables: BTreeMap<OsString, OsString> =
        passed.map(|(name, value)| (name.clone(), clean(value))).collect();
    variables.extend(wanted.set.iter().map(|(name, value)| (name.clone(), value.clone())));
    variables.into_iter().collect()
}

fn variable<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
}

/// Where execvp(3) looks when there is no PATH (_CS_PATH).
const DEFAULT_PATH: &str = "/usr/bin:/bin";

/// The directories of the command's own PATH.
fn search_path(environment: &[(OsString, OsString)]) -> Vec<PathBuf> {
    let path = variable(environment, "PATH").unwrap_or(OsStr::new(DEFAULT_PATH));
    std::env::split_paths(path).map(|dir| if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir }).collect()
}

/// Paths that the command word may mean inside; also the check of the word itself.
fn candidates(policy: &Policy, environment: &[(OsString, OsString)]) -> Result<Vec<PathBuf>, PlanError> {
    let Some(word) = policy.command.first() else { return Ok(Vec::new()) };
    if word.is_empty() {
        return Err(PlanError::EmptyCommand);
    }
    let nul = |text: &OsString| text.as_bytes().contains(&0);
    if let Some(bad) = policy.command.iter().chain(&policy.argv0).find(|word| nul(word)) {
        return Err(PlanError::NulInArgument(bad.clone()));
    }
    // What bubblewrap passes on is the caller's business; what it sets was checked.
    let is_checked = policy.bubblewrap.is_none();
    if let Some((name, _)) = environment.iter().find(|(name, value)| {
        nul(name) || nul(value) || (is_checked && (name.is_empty() || name.as_bytes().contains(&b'=')))
    }) {
        return Err(PlanError::BadVariable(name.clone()));
    }
    let allowed = &policy.allowed_commands;
    if !allowed.is_empty() && !allowed.iter().any(|pattern| sys::fnmatch(pattern, word)) {
        return Err(PlanError::NotAllowed { word: word.clone(), allowed: allowed.clone() });
    }
    if word.as_bytes().contains(&b'/') {
        return Ok(vec![PathBuf::from(word)]);
    }
    Ok(search_path(environment).iter().map(|dir| dir.join(word)).collect())
}

fn workdir(policy: &Policy, host: &Host, environment: &[(OsString, OsString)]) -> Vec<PathBuf> {
    match &policy.workdir {
        Workdir::Path(path) => vec![path.as_path().to_owned()],
        Workdir::Caller => {
            let home = variable(environment, "HOME").map(PathBuf::from).filter(|home| home.is_absolute());
            // A directory that getcwd(2) can't reach from the root has a name that means nothing inside.
            let cwd = host.cwd.clone().filter(|cwd| cwd.is_absolute());
            cwd.into_iter().chain(home).chain([PathBuf::from("/")]).collect()
        }
    }
}

fn rlimits(policy: &Policy) -> Vec<Rlimit> {
    let limits = &policy.limits;
    let limit = |resource, value: Option<u64>| value.map(|value| Rlimit { resource, value });
    [
        // A core file is a copy of memory that nobody asked for; bubblewrap leaves the caller's limit.
        limit(RlimitResource::Core, policy.bubblewrap.is_none().then_some(0)),
        limit(RlimitResource::AddressSpace, limits.memory),
        limit(RlimitResource::Processes, limits.pids),
        limit(RlimitResource::FileSize, limits.file_size),
        limit(RlimitResource::OpenFiles, limits.open_files),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// JSON has no bytes: what is not UTF-8 is shown with replacement characters.
fn lossy_list<T: AsRef<OsStr>, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|item| item.as_ref().to_string_lossy()))
}

fn lossy_pairs<S: Serializer>(pairs: &[(OsString, OsString)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key.to_string_lossy(), value.to_string_lossy())))
}

fn lossy_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// A path below the sandbox's root; for joins of plain names.
fn inside(path: impl AsRef<Path>) -> Option<SandboxPath> {
    SandboxPath::new(path).ok()
}
