//! What is wrong with a filter or a policy: what a user would see of it, and what to do. Verdicts are the program's own, so
//! that raw filters are looked at as closely as policies.

use serde::Serialize;

use super::abi::{Abi, X32_BIT};
use super::action::Action;
use super::analyze::Verdicts;
use super::calls;
use super::fix::Fix;
use super::interpret::Call;
use super::lint_rules as rules;
use super::oci::Document;
use super::policy::Policy;
use super::program::Program;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Some programs fail, or more is allowed than it looks.
    Warning,
    /// Ordinary programs fail, or the filter can be walked around.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Its kind, for programs.
    pub kind: &'static str,
    /// Which calls it is about.
    pub calls: Vec<String>,
    /// The rule, key or instruction.
    pub place: String,
    /// What is so.
    pub fault: String,
    /// What a user would see.
    pub symptom: String,
    /// What to do.
    pub fix: String,
    /// The same for a program, where it can be done.
    #[serde(skip)]
    pub remedy: Option<Fix>,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The program.
    pub program: &'a Program,
    /// The ABI of the kernel that it is for.
    pub native: Abi,
    /// What it was compiled from.
    pub policy: Option<(&'a Document, &'a Policy)>,
}

/// Calls without which next to nothing works: any one of each line, and what happens otherwise.
const NEEDED: &[(&[&str], Severity, &str)] = &[
    (&["exit_group", "exit"], Severity::Error, "no program can end: it is stuck or killed"),
    (&["mmap", "mmap2"], Severity::Error, "no dynamically linked program can start"),
    (&["mprotect"], Severity::Error, "no dynamically linked program can start"),
    (&["openat", "open"], Severity::Error, "no dynamically linked program can start"),
    (&["read"], Severity::Error, "no dynamically linked program can start"),
    (&["close"], Severity::Warning, "descriptors are never closed"),
    (
        &["fstat", "newfstatat", "fstatat64", "statx", "fstat64"],
        Severity::Error,
        "no dynamically linked program can start",
    ),
    (&["brk"], Severity::Warning, "some allocators fail at once"),
    (&["write"], Severity::Warning, "nothing can be printed"),
    (&["writev"], Severity::Warning, "messages of the dynamic loader are lost: what can't start says nothing"),
    (&["futex", "futex_time64"], Severity::Warning, "programs with threads abort"),
    (&["clone"], Severity::Warning, "shells can't start programs, and no thread can be made"),
    (&["wait4", "waitid"], Severity::Warning, "a shell can't wait for the programs that it starts"),
    (&["pipe2", "pipe"], Severity::Warning, "a shell can't make a pipeline"),
    (&["rt_sigaction"], Severity::Warning, "no signal can be handled"),
    (&["rt_sigprocmask"], Severity::Warning, "shells and runtimes fail to block signals"),
];

/// Newer calls that programs try first: they go on with an older one if this one answers ENOSYS, and only then.
const PROBED: &[(&str, Severity, &str)] = &[
    (
        "clone3",
        Severity::Error,
        "Python, Node, Go and all else with threads can't start one: the C library goes on with clone only after ENOSYS",
    ),
    ("rseq", Severity::Warning, "the C library takes it for a fault and not for an old kernel; some runtimes abort"),
    ("faccessat2", Severity::Warning, "`test -r`, `test -x` and access(2) say no to files that are there"),
    (
        "openat2",
        Severity::Warning,
        "programs that open paths safely (systemd, git, container tools) fail instead of using openat",
    ),
    (
        "close_range",
        Severity::Warning,
        "programs that close descriptors before they start others fail instead of going one by one",
    ),
    ("statx", Severity::Warning, "`ls`, `stat` and runtimes fail on files that are there"),
    ("fchmodat2", Severity::Note, "`chmod` of a link fails instead of using fchmodat"),
    ("epoll_pwait2", Severity::Note, "event loops fail instead of using epoll_pwait"),
];

/// Calls that change the machine, or reach out of a sandbox.
const DANGEROUS: &[&str] = &[
    "_sysctl",
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "init_module",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
];

/// Calls on other processes.
const OTHERS: &[&str] = &["ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"];

const ENOSYS: u16 = 38;

impl Subject<'_> {
    /// Everything that is wrong, the worst first.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.launch(&mut findings);
        self.needed(&mut findings);
        self.probed(&mut findings);
        self.dangerous(&mut findings);
        self.other_interfaces(&mut findings);
        self.asked(&mut findings);
        self.namespaces(&mut findings);
        if let Some((document, policy)) = self.policy {
            self.clone_flags(policy, &mut findings);
            rules::unknown_names(document, &mut findings);
            rules::never_apply(policy, &mut findings);
            rules::overlaps(policy, &mut findings);
            rules::multiplexed(policy, self.program, &mut findings);
        }
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings
    }

    fn verdicts(&self, name: &str) -> Option<Verdicts> {
        self.native.number(name).map(|nr| self.program.verdicts(self.native, nr))
    }

    /// Where it is decided: the rule or key of a policy, or the instruction of a program.
    fn place(&self, name: &str, verdicts: &Verdicts) -> String {
        match self.policy {
            Some((_, policy)) => {
                let rule = policy.rules.iter().find(|rule| rule.names.iter().any(|named| named == name));
                rule.map_or_else(|| "defaultAction".to_owned(), |rule| format!("syscalls[{}]", rule.place))
            }
            None => {
                let instructions = verdicts.actions.values().flatten();
                instructions.min().map_or_else(String::new, |index| format!("instruction {index}"))
            }
        }
    }

    fn launch(&self, findings: &mut Vec<Finding>) {
        let Some(verdicts) = self.verdicts("execve").filter(|verdicts| !verdicts.always_passes()) else { return };
        findings.push(Finding {
            severity: Severity::Error,
            kind: "execve",
            calls: vec!["execve".to_owned()],
            place: self.place("execve", &verdicts),
            fault: format!("execve is refused ({})", list(&verdicts)),
            symptom: "nothing can be started: a filter is in force before the command is executed".to_owned(),
            fix: "allow execve, or run with --exec-once (\"exec_once\": true), which lets the command itself start and nothing after it".to_owned(),
            remedy: Some(Fix::Allow(vec!["execve".to_owned()])),
        });
    }

    fn needed(&self, findings: &mut Vec<Finding>) {
        for (names, severity, symptom) in NEEDED {
            let known: Vec<(&str, Verdicts)> =
                names.iter().filter_map(|name| self.verdicts(name).map(|verdicts| (*name, verdicts))).collect();
            let Some((name, verdicts)) = known.first() else { continue };
            if known.iter().any(|(_, verdicts)| verdicts.may_pass()) {
                continue;
            }
            findings.push(self.refused(*severity, "needed", name, verdicts, symptom));
        }
        let handles = self.verdicts("rt_sigaction").is_some_and(|verdicts| verdicts.may_pass());
        for name in ["rt_sigreturn", "sigreturn"] {
            if let Some(verdicts) = self.verdicts(name).filter(|verdicts| handles && !verdicts.always_passes()) {
                let symptom = "any program that handles a signal will crash: its handler can't return (a shell dies with SIGSEGV when a child ends)";
                findings.push(self.refused(Severity::Error, "sigreturn", name, &verdicts, symptom));
            }
        }
    }

    fn refused(
        &self,
        severity: Severity,
        kind: &'static str,
        name: &str,
        verdicts: &Verdicts,
        symptom: &str,
    ) -> Finding {
        Finding {
            severity,
            kind,
            calls: vec![name.to_owned()],
            place: self.place(name, verdicts),
            fault: format!("{name} is refused ({})", list(verdicts)),
            symptom: symptom.to_owned(),
            fix: format!("allow {name}"),
            remedy: Some(Fix::Allow(vec![name.to_owned()])),
        }
    }

    fn probed(&self, findings: &mut Vec<Finding>) {
        for (name, severity, symptom) in PROBED {
            let Some(verdicts) = self.verdicts(name) else { continue };
            if verdicts.may_pass() || verdicts.constant() == Some(Action::Errno(ENOSYS)) {
                continue;
            }
            findings.push(Finding {
                severity: *severity,
                kind: "probed",
                calls: vec![(*name).to_owned()],
                place: self.place(name, &verdicts),
                fault: format!("{name} is answered with {} instead of ENOSYS", list(&verdicts)),
                symptom: (*symptom).to_owned(),
                fix: format!("allow {name}, or answer it with errno 38 (ENOSYS) as a kernel without it does"),
                remedy: Some(Fix::Enosys(vec![(*name).to_owned()])),
            });
        }
    }

    fn dangerous(&self, findings: &mut Vec<Finding>) {
        let passing = |names: &[&str]| -> Vec<String> {
            let passes = |name: &&&str| self.verdicts(name).is_some_and(|verdicts| verdicts.always_passes());
            names.iter().filter(passes).map(|name| (*name).to_owned()).collect()
        };
        let calls = passing(DANGEROUS);
        if !calls.is_empty() {
            let place = match self.policy {
                Some((_, policy)) if policy.default.lets_through() => "defaultAction".to_owned(),
                _ => calls
                    .first()
                    .and_then(|name| self.verdicts(name).map(|verdicts| self.place(name, &verdicts)))
                    .unwrap_or_default(),
            };
            findings.push(Finding {
                severity: Severity::Warning,
                kind: "dangerous",
                place,
                fault: format!("these are allowed: {}", calls.join(", ")),
                symptom: "none for programs; but they change the machine or reach out of a sandbox: mounts, modules, kexec, clocks, keys, namespaces. A filter that should only let look must not allow them".to_owned(),
                fix: "take them out of the policy".to_owned(),
                remedy: Some(Fix::Remove(calls.clone())),
                calls,
            });
        }
        let others = passing(OTHERS);
        if !others.is_empty() {
            findings.push(Finding {
                severity: Severity::Note,
                kind: "others",
                place: String::new(),
                fault: format!("these are allowed: {}", others.join(", ")),
                symptom:
                    "a process can read and steer the others that it may trace; debuggers need it, little else does"
                        .to_owned(),
                fix: "take them out unless something is to be debugged".to_owned(),
                remedy: None,
                calls: others,
            });
        }
    }

    /// Calls that are refused natively and let through by another interface of the same kernel.
    fn other_interfaces(&self, findings: &mut Vec<Finding>) {
        for abi in Abi::ALL.into_iter().filter(|abi| *abi != self.native && self.native.may_run(*abi)) {
            let open = |name: &&str| {
                let here = self.verdicts(name).is_some_and(|verdicts| !verdicts.may_pass());
                let there = abi.number(name).map(|nr| self.program.verdicts(abi, nr));
                here && there.is_some_and(|verdicts| verdicts.may_pass())
            };
            let calls: Vec<String> = calls::rows().iter().map(|row| row.name).filter(open).map(str::to_owned).collect();
            if let [first, ..] = calls.as_slice() {
                let some: Vec<&str> = calls.iter().take(6).map(String::as_str).collect();
                findings.push(Finding {
                    severity: Severity::Error,
                    kind: "interface",
                    place: match abi {
                        Abi::X32 => format!("number {:#x}", abi.number(first).unwrap_or(X32_BIT)),
                        _ => format!("architecture {:#x}", abi.audit_arch()),
                    },
                    fault: format!("{} calls that are refused can be made as {abi}: {}", calls.len(), some.join(", ")),
                    symptom: format!(
                        "none for programs; but whoever wants to walks around the filter with {abi} numbers"
                    ),
                    fix: "kill what is not of the native interface, as `shannot seccomp compile` does".to_owned(),
                    remedy: None,
                    calls,
                });
            }
        }
    }

    fn asked(&self, findings: &mut Vec<Finding>) {
        if let Some(index) = self.program.notifies() {
            findings.push(Finding {
                severity: Severity::Warning,
                kind: "notify",
                calls: Vec::new(),
                place: format!("instruction {index}"),
                fault: "a listener is asked (SCMP_ACT_NOTIFY)".to_owned(),
                symptom: "`shannot run` refuses it, for it serves no listener; elsewhere such calls fail with ENOSYS without one".to_owned(),
                fix: "use SCMP_ACT_ERRNO, or SCMP_ACT_LOG to see who calls".to_owned(),
                remedy: None,
            });
        }
    }

    /// clone makes the namespaces that unshare may not.
    fn namespaces(&self, findings: &mut Vec<Finding>) {
        // CLONE_NEWUSER | SIGCHLD (linux/sched.h).
        let call =
            |nr| Call { nr, arch: self.native.audit_arch(), args: [0x1000_0011, 0, 0, 0, 0, 0], ..Call::default() };
        let passes = self.native.number("clone").is_some_and(|nr| self.program.run(&call(nr)).lets_through());
        let Some(verdicts) = self.verdicts("clone").filter(|_| passes) else { return };
        if self.verdicts("unshare").is_some_and(|unshare| !unshare.may_pass()) {
            findings.push(Finding {
                severity: Severity::Warning,
                kind: "namespaces",
                calls: vec!["clone".to_owned(), "unshare".to_owned()],
                place: self.place("clone", &verdicts),
                fault: "unshare is refused, and clone may make the same namespaces".to_owned(),
                symptom: "none for programs; but a new user namespace holds every capability over itself".to_owned(),
                fix: "allow clone on condition that arg0 & 0x7e020000 == 0".to_owned(),
                remedy: Some(Fix::Allow(vec!["clone".to_owned()])),
            });
        }
    }

    /// Conditions on clone's flags are worth nothing where clone3 takes the same flags from memory.
    fn clone_flags(&self, policy: &Policy, findings: &mut Vec<Finding>) {
        let filtered = policy
            .rules
            .iter()
            .any(|rule| !rule.conditions.is_empty() && rule.names.iter().any(|name| name == "clone"));
        let Some(verdicts) = self.verdicts("clone3").filter(|verdicts| filtered && verdicts.may_pass()) else { return };
        findings.push(Finding {
            severity: Severity::Error,
            kind: "clone3",
            calls: vec!["clone3".to_owned()],
            place: self.place("clone3", &verdicts),
            fault: "clone's flags are filtered, and clone3 is allowed".to_owned(),
            symptom: "none for programs; but clone3 takes the same flags from memory, where no filter sees them"
                .to_owned(),
            fix: "answer clone3 with errno 38 (ENOSYS): programs go on with clone".to_owned(),
            remedy: Some(Fix::Enosys(vec!["clone3".to_owned()])),
        });
    }
}

/// What can happen, in words.
fn list(verdicts: &Verdicts) -> String {
    verdicts.actions.keys().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}
