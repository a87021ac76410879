//! Where setting up can fail, and the sentence for it: what was done, to what, the errno, and the cure.

use std::ffi::OsString;
use std::fmt;

use nix::errno::Errno;
use serde::Serialize;

use crate::host::{Ability, Cause, why_refused};
use crate::plan::{Plan, RuleObject, Step};

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A stage of setting up; with an index where it goes over a list of the plan.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u32)]
        pub enum Stage { $($(#[$doc])* $name,)* }

        impl Stage {
            const ALL: &'static [Stage] = &[$(Stage::$name,)*];
        }
    };
}

stages! {
    /// Standard descriptors, signals and the channel of the supervisor.
    Supervise,
    /// The clone with its namespaces.
    Clone,
    /// PR_SET_PDEATHSIG.
    DieWithParent,
    /// The descriptor on which the gate asks, on its way to the supervisor.
    Listener,
    /// A standard descriptor that the command may not have.
    StandardDescriptor,
    /// Descriptors of the caller.
    Descriptors,
    /// /proc/self/{setgroups,uid_map,gid_map}.
    IdMaps,
    /// `user.max_user_namespaces` of the new user namespace.
    UsernsLimit,
    /// Mount propagation.
    Propagation,
    /// The tmpfs that the new root is built on.
    BaseTmpfs,
    /// The source of a step.
    Source,
    /// The target of a step: finding or making it.
    Target,
    /// A folder on the way to the target of a step: finding or making it.
    TargetParent,
    /// The target of a step is missing in a folder of the host, where nothing is made.
    TargetOnHost,
    /// Something of another kind is in the target's place.
    TargetKind,
    /// Reading or writing the data of a step.
    Data,
    /// Mount attributes of a step.
    Attributes,
    /// The mount of a step.
    Mount,
    /// A directory, link or mode of a step.
    Make,
    /// Making the root read-only.
    Seal,
    /// pivot_root.
    Pivot,
    /// Detaching the old root.
    Detach,
    /// A procfs, or the like, that is mounted below the source of a step.
    Submounts,
    /// The loopback interface.
    Loopback,
    /// The host name.
    Hostname,
    /// The second user namespace.
    NestedUserns,
    /// Joining the user namespace that all is made in.
    JoinUserns,
    /// Joining the command's user namespace.
    JoinUserns2,
    /// Joining the pid namespace.
    JoinPidns,
    /// User and group ids in a joined user namespace.
    SwitchIds,
    /// A user namespace can be made, or that can't be found out.
    AssertUserns,
    /// Opening a file that is to be locked.
    LockOpen,
    /// Locking it.
    Lock,
    /// Waiting for a descriptor to become readable.
    Block,
    /// Waiting for the launcher's word.
    Word,
    /// Telling others about the sandbox.
    Info,
    /// Taking over orphans of the command, and finding them.
    Subreaper,
    /// The private folder.
    Scratch,
    /// Making a cgroup.
    Cgroup,
    /// Giving the children of its parent a controller.
    CgroupController,
    /// A limit of it.
    CgroupSetting,
    /// Joining it.
    CgroupJoin,
    /// The cgroup namespace, after joining.
    CgroupNamespace,
    /// The session keyring.
    Keyring,
    /// A new session.
    Session,
    /// A resource limit.
    Rlimit,
    /// The CPU affinity.
    Cpus,
    /// A capability set.
    Capabilities,
    /// A capability is held after all were dropped.
    CapabilitiesHeld,
    /// no_new_privs.
    NoNewPrivileges,
    /// Init must not be dumpable.
    Dumpable,
    /// The Landlock ruleset.
    LandlockRuleset,
    /// A Landlock rule.
    LandlockRule,
    /// Entering the Landlock domain.
    LandlockRestrict,
    /// The process of the command.
    Spawn,
    /// The directory to start in.
    Workdir,
    /// The signal mask and dispositions.
    Signals,
    /// A seccomp filter.
    Filter,
    /// Finding the command inside.
    Lookup,
    /// Executing it.
    Exec,
}

impl Stage {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// A failed stage as the child reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) stage: Stage,
    pub(super) index: u32,
    pub(super) errno: Errno,
}

/// Names the stage of a failing system call.
pub(super) trait At<T> {
    fn at(self, stage: Stage) -> Result<T, Fault>;
    fn at_index(self, stage: Stage, index: usize) -> Result<T, Fault>;
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, stage: Stage) -> Result<T, Fault> {
        self.at_index(stage, 0)
    }

    fn at_index(self, stage: Stage, index: usize) -> Result<T, Fault> {
        self.map_err(|errno| Fault { stage, index: u32::try_from(index).unwrap_or(u32::MAX), errno })
    }
}

/// A failed stage in words. The command was not executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}: {}", errno_text(*.errno))]
pub struct Failure {
    /// Which stage.
    pub stage: Stage,
    /// Which element of the list that the stage goes over.
    pub index: usize,
    /// What was found in the way, where that says more than the errno.
    pub detail: OsString,
    /// `cannot <verb> <object>`.
    pub text: String,
    /// What the stage was about: a path, an interface, a filter.
    pub object: Option<String>,
    /// Why.
    pub errno: Errno,
}

/// Why a run did not happen.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A stage failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The process has more than one thread, and a clone would copy only one of them.
    #[error("cannot make the sandbox from a process with {0} threads")]
    Threads(u64),
    /// Init ended without a word.
    #[error("the sandbox's init ended unexpectedly (wait status {0:#x})")]
    InitLost(i32),
}

/// As std::io::Error says it, so that all messages look alike.
fn errno_text(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}

impl Failure {
    pub(super) fn supervise(text: &str, errno: Errno) -> Self {
        Self { text: format!("cannot {text}"), ..Self::at(Stage::Supervise, errno) }
    }

    fn at(stage: Stage, errno: Errno) -> Self {
        Self { stage, index: 0, detail: OsString::new(), text: String::new(), object: None, errno }
    }

    pub(super) fn new(fault: Fault, plan: &Plan) -> Self {
        let (verb, object) = describe(fault, plan);
        let mut text = format!("cannot {verb}");
        if let Some(object) = &object {
            text.push_str(&format!(" {object:?}"));
        }
        if let Some(more) = second_object(fault, plan) {
            text.push_str(&more);
        }
        let index = usize::try_from(fault.index).unwrap_or(usize::MAX);
        Self { index, text, object, ..Self::at(fault.stage, fault.errno) }
    }

    /// Whether the host may have refused what the plan took to work, so that trying everything can tell another way.
    pub fn is_refusal(&self) -> bool {
        let refused = matches!(
            self.errno,
            Errno::EPERM
                | Errno::EACCES
                | Errno::ENOSYS
                | Errno::EINVAL
                | Errno::ENOSPC
                | Errno::EUSERS
                | Errno::EROFS
                | Errno::ENODEV
                | Errno::ENOENT
        );
        refused
            && matches!(
                self.stage,
                Stage::Clone
                    | Stage::IdMaps
                    | Stage::UsernsLimit
                    | Stage::Propagation
                    | Stage::BaseTmpfs
                    | Stage::Mount
                    | Stage::Pivot
                    | Stage::NestedUserns
                    | Stage::Loopback
                    | Stage::Hostname
            )
    }

    /// The exit code: 127 for a command that is not there, 126 for one that can't be executed, else 125.
    pub fn exit_code(&self) -> u8 {
        match (self.stage, self.errno) {
            (Stage::Lookup, Errno::ENOENT | Errno::ENOTDIR) => 127,
            (Stage::Lookup | Stage::Exec, _) => 126,
            _ => 125,
        }
    }

    /// A known cure.
    pub fn hint(&self) -> Option<String> {
        let text = match (self.stage, self.errno) {
            (Stage::Clone, Errno::EPERM | Errno::ENOSPC | Errno::EACCES | Errno::EUSERS)
            | (Stage::IdMaps, Errno::EPERM | Errno::EACCES) => {
                let Cause { cause, cure } = why_refused(Ability::UserNamespace, self.errno);
                return Some(cure.map_or_else(|| cause.clone(), |cure| format!("{cause}\n{cure}")));
            }
            (Stage::Clone, Errno::EINVAL) => {
                "this kernel lacks one of the namespaces (CONFIG_USER_NS, CONFIG_NET_NS, …)"
            }
            (Stage::StandardDescriptor, Errno::EPROTOTYPE) => {
                "through a socket without a peer the command could send to any address: redirect from or to a file, a pipe or /dev/null"
            }
            (Stage::Subreaper, Errno::ENOENT) => "without /proc its processes can't be found: mount -t proc proc /proc",
            (Stage::Clone, Errno::EAGAIN | Errno::ENOMEM) => {
                "too many processes or too little memory: see `ulimit -u` and the pids limit of the cgroup"
            }
            (Stage::IdMaps | Stage::UsernsLimit, Errno::ENOENT) => "shannot needs /proc mounted on the host",
            (Stage::Filter, Errno::EBUSY) => {
                "a filter around this sandbox has a listener already, and the kernel allows one: leave out exec_once"
            }
            (Stage::Filter, Errno::EINVAL) => {
                "this kernel lacks a flag of the policy, or listeners: LOG needs Linux 4.14, SPEC_ALLOW 4.17, exec_once 5.5, WAIT_KILLABLE_RECV 5.19"
            }
            (Stage::StandardDescriptor, Errno::EISDIR) => {
                "through an open directory the command could reach the host's tree: redirect from or to a file or /dev/null"
            }
            (Stage::UsernsLimit, Errno::EROFS) => "/proc/sys is read-only here, as in a container",
            (Stage::Mount, Errno::EPERM) => {
                "in a container with parts of /proc masked the kernel refuses a fresh procfs: run the container with its /proc unmasked (podman: --security-opt unmask=/proc/*)"
            }
            (Stage::TargetOnHost, _) => {
                "make it on the host, or choose a target on a tmpfs: nothing is created on the host"
            }
            (Stage::Target | Stage::TargetParent, Errno::EROFS) => {
                "the target lies below a read-only bind; make it on the host or bind it elsewhere"
            }
            (Stage::Target | Stage::TargetParent, Errno::ELOOP) => "the path is a loop of links",
            (Stage::Mount, Errno::ENOTDIR | Errno::EISDIR) => {
                "a file can't be bound on a directory, nor a directory on a file"
            }
            (Stage::Source | Stage::Mount | Stage::LandlockRule | Stage::Scratch, Errno::ESTALE) => {
                "it is another file than when the plan was made: it, or a link or folder on the way, was replaced meanwhile"
            }
            (Stage::Source, Errno::EPERM) => {
                "a procfs can be bound from /proc only; the sandbox has one of its own there"
            }
            (Stage::Submounts, Errno::EPERM) => {
                "a file of a procfs is mounted there, and can't be covered: leave it out with hide"
            }
            (Stage::Attributes, Errno::EPERM) => "the host mounts it noexec, which can't be undone",
            (Stage::Lookup, Errno::ENOENT) => "only what the profile binds exists inside, and PATH is the profile's",
            (Stage::Lookup | Stage::Exec, Errno::EACCES) => {
                "it is a directory or not executable, or the profile's allowed_commands does not list it; a script needs its interpreter listed too"
            }
            (Stage::Exec, Errno::ENOENT) => {
                "the file exists, but the loader or interpreter that it names does not exist inside the sandbox"
            }
            (Stage::Exec, Errno::ENOEXEC) => {
                "it is neither a program for this machine nor a script that begins with \"#!\""
            }
            (Stage::Workdir, _) => "the directory must exist inside: bind it, or choose another with --chdir",
            (Stage::LandlockRestrict, Errno::E2BIG) => "16 Landlock domains are already stacked on this process",
            (Stage::CgroupController, Errno::EBUSY) => {
                "a process has come into the cgroup above it, whose children can then get no controllers"
            }
            (Stage::CgroupSetting, Errno::EINVAL) => {
                "the cgroups around it are given less: ask for no more than they have"
            }
            (Stage::Rlimit, Errno::EPERM) => "the limit is above the caller's own hard limit (`ulimit -H`)",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// The verb and the object.
fn describe(fault: Fault, plan: &Plan) -> (&'static str, Option<String>) {
    let index = usize::try_from(fault.index).unwrap_or(usize::MAX);
    let step = || plan.steps.get(index);
    let target = || step().map(|step| step.target().to_string());
    let word = || plan.command.argv.first().map(|word| word.to_string_lossy().into_owned());
    match fault.stage {
        Stage::Supervise => ("prepare the supervisor", None),
        Stage::Clone if plan.in_place.is_some() => ("make the process of init", None),
        Stage::Clone => ("create the namespaces", None),
        Stage::DieWithParent => ("tie init's life to the supervisor", None),
        Stage::Listener => ("hand the listener of the launch gate to the supervisor", None),
        Stage::StandardDescriptor => {
            ("pass on", ["stdin", "stdout", "stderr"].get(index).map(|name| (*name).to_owned()))
        }
        Stage::Descriptors => ("close the caller's descriptors", None),
        Stage::IdMaps => (
            "write",
            ["/proc/self/setgroups", "/proc/self/uid_map", "/proc/self/gid_map"].get(index).map(|s| (*s).into()),
        ),
        Stage::UsernsLimit => ("limit new user namespaces through", Some("/proc/sys/user/max_user_namespaces".into())),
        Stage::Propagation => ("make mount propagation private", None),
        Stage::BaseTmpfs => ("prepare the tmpfs of the new root", None),
        Stage::Source => ("open the source", source(step())),
        Stage::Target | Stage::TargetParent => ("find or make inside the sandbox", target()),
        Stage::TargetOnHost => ("make inside the sandbox, in a folder of the host,", target()),
        Stage::TargetKind => ("mount on what is at", target()),
        Stage::Data => ("write the data of", target()),
        Stage::Attributes => ("set mount attributes of", target()),
        Stage::Mount => match step() {
            Some(Step::Bind { .. }) => ("bind", source(step())),
            Some(Step::Hide { .. }) => ("hide", target()),
            Some(Step::Executable { .. }) => ("allow execution of", target()),
            Some(Step::RemountReadOnly { .. }) => ("make read-only", target()),
            Some(Step::Proc { .. }) => ("mount proc on", target()),
            Some(Step::Dev { .. }) => ("set up devices in", target()),
            _ => ("mount", target()),
        },
        Stage::Make => ("make", target()),
        Stage::Seal => ("make the new root read-only", None),
        Stage::Pivot => ("pivot into the new root", None),
        Stage::Detach => ("detach the old root", None),
        Stage::Submounts => ("guard what is mounted below", source(step())),
        Stage::Loopback => ("bring up the loopback interface", None),
        Stage::Hostname => ("set the host name", plan.hostname.clone()),
        Stage::NestedUserns => ("create the second user namespace", None),
        Stage::Subreaper => ("take over the processes that the command leaves behind", None),
        Stage::Scratch => (
            "make the private folder",
            plan.in_place.as_ref().and_then(|in_place| Some(in_place.scratch.as_ref()?.path.display().to_string())),
        ),
        Stage::Keyring => ("join a new session keyring", None),
        Stage::Session => ("start a new session", None),
        Stage::Rlimit => ("set the limit", plan.rlimits.get(index).map(|limit| format!("{:?}", limit.resource))),
        Stage::Cpus => ("limit the CPUs", None),
        Stage::Capabilities => ("drop capabilities", None),
        Stage::CapabilitiesHeld => ("drop capabilities: one is still held", None),
        Stage::NoNewPrivileges => ("set no_new_privs", None),
        Stage::Dumpable => ("make init undumpable", None),
        Stage::LandlockRuleset => ("create the Landlock ruleset", None),
        Stage::LandlockRule => ("add a Landlock rule for", landlock_object(plan, index)),
        Stage::LandlockRestrict => ("enter the Landlock domain", None),
        Stage::Spawn => ("start the command's process", None),
        Stage::Workdir => ("change to directory", plan.command.workdir.first().map(|dir| dir.display().to_string())),
        Stage::Signals => ("reset signals", None),
        Stage::Filter => ("install the seccomp filter", plan.filters.get(index).map(|filter| filter.origin.clone())),
        Stage::Lookup if matches!(fault.errno, Errno::ENOENT | Errno::ENOTDIR) => {
            ("find inside the sandbox the command", word())
        }
        Stage::Lookup | Stage::Exec => ("execute", word()),
        stage => describe_handed(stage, plan, index),
    }
}

/// The same for what only bubblewrap's command line can ask for.
fn describe_handed(stage: Stage, plan: &Plan, index: usize) -> (&'static str, Option<String>) {
    let lock_file = || plan.bubblewrap.as_ref().and_then(|asked| asked.lock_files.get(index)).map(ToString::to_string);
    match stage {
        Stage::JoinUserns => ("join the user namespace", None),
        Stage::JoinUserns2 => ("join the second user namespace", None),
        Stage::JoinPidns => ("join the pid namespace", None),
        Stage::SwitchIds => ("switch user and group id", None),
        Stage::AssertUserns => ("make sure that no user namespace can be made", None),
        Stage::LockOpen => ("open the lock file", lock_file()),
        Stage::Lock => ("lock the file", lock_file()),
        Stage::Block => ("wait for the descriptor to block on", None),
        Stage::Info => ("write the information about the sandbox", None),
        Stage::Word => ("wait for the launcher's word", None),
        stage => describe_cgroup(stage, plan, index),
    }
}

fn describe_cgroup(stage: Stage, plan: &Plan, index: usize) -> (&'static str, Option<String>) {
    let cgroup = || plan.cgroups.get(index).map(|cgroup| cgroup.path.display().to_string());
    let mut files = plan
        .cgroups
        .iter()
        .flat_map(|cgroup| cgroup.settings.iter().map(|setting| cgroup.path.join(setting.file).display().to_string()));
    match stage {
        Stage::Cgroup => ("make the cgroup", cgroup()),
        Stage::CgroupController => ("enable the controllers of the cgroup", cgroup()),
        Stage::CgroupSetting => ("set the limit", files.nth(index)),
        Stage::CgroupJoin => ("join the cgroup", cgroup()),
        Stage::CgroupNamespace => ("create the cgroup namespace", None),
        _ => ("set up the sandbox", None),
    }
}

fn source(step: Option<&Step>) -> Option<String> {
    match step? {
        Step::Bind { source, .. } => Some(source.display().to_string()),
        step => Some(step.target().to_string()),
    }
}

fn landlock_object(plan: &Plan, index: usize) -> Option<String> {
    match &plan.landlock.as_ref()?.rules.get(index)?.object {
        RuleObject::Path(path) => Some(path.to_string()),
        RuleObject::Descriptor(number) => Some(format!("descriptor {number}")),
    }
}

/// ` to "/data"`, behind a bind's source.
fn second_object(fault: Fault, plan: &Plan) -> Option<String> {
    match plan.steps.get(usize::try_from(fault.index).ok()?)? {
        Step::Bind { target, .. } if matches!(fault.stage, Stage::Mount | Stage::Source | Stage::Submounts) => {
            Some(format!(" to {target:?}"))
        }
        _ => None,
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
