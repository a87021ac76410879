//! `shannot doctor`: what this host lets a sandbox be made of, why not more, and what a profile gets of it.

use serde::Serialize;

use super::args::{Common, Doctor};
use super::output::{self, Complaint};
use crate::host::{Ability, Cause, CgroupVersion, Cgroups, Controller, Host, Survey, apparmor_profile, why_refused};
use crate::plan::{InPlace, Plan, Rung};
use crate::profile::{Caller, Overrides};
use crate::report::{Effective, Enforcement};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    /// It is there, in full.
    ok: bool,
    /// What was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
    /// Why it is not there, and what to do.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    cause: Option<Cause>,
}

/// What a profile gets here.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Verdict {
    Runs {
        profile: String,
        rung: Rung,
        #[serde(skip_serializing_if = "Option::is_none")]
        in_place: Option<Box<InPlace>>,
        expected: Effective,
    },
    Refused {
        profile: String,
        error: Complaint,
    },
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    version: &'static str,
    survey: Survey,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroups: Option<Cgroups>,
    findings: Vec<Finding>,
    profile: Verdict,
}

/// Gives 1 where the profile would be refused.
pub(super) fn doctor(common: &Common, options: &Doctor) -> Result<u8, Complaint> {
    if options.apparmor_profile {
        let path = std::env::current_exe().map_err(|error| {
            Complaint::new("doctor", &error, None).about("cannot tell this program's path".to_owned())
        })?;
        return output::result(&apparmor_profile(&path)).map(|()| 0);
    }
    let caller = Caller::current();
    let profile = common.profile(&caller)?;
    let mut policy = profile.policy(&Overrides::default(), &caller)?;
    policy.backend = options.backend.into();
    let host = Host::probe().with_cgroups(&Controller::ALL).tried();
    let name = profile.name().to_owned();
    let verdict = match Plan::new(&policy, &host) {
        Ok(plan) => Verdict::Runs {
            profile: name,
            rung: plan.rung,
            in_place: plan.in_place.map(Box::new),
            expected: plan.expected,
        },
        Err(error) => Verdict::Refused { profile: name, error: error.into() },
    };
    let survey = Survey::new();
    let findings = findings(&host, &survey);
    let refused = matches!(verdict, Verdict::Refused { .. });
    let cgroups = host.cgroups.clone();
    let diagnosis = Diagnosis { version: env!("CARGO_PKG_VERSION"), survey, cgroups, findings, profile: verdict };
    if options.json {
        output::result_json(&diagnosis)?;
    } else {
        output::result(&diagnosis.text())?;
    }
    Ok(u8::from(refused))
}

fn findings(host: &Host, survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(trial) = &host.trial {
        // What an ordinary user can't have without a user namespace is no finding.
        let without = trial.plain.can(Ability::MountNamespace).then_some((false, &trial.plain));
        let grounds = [(true, &trial.user)].into_iter().chain(without);
        for (user, ground) in grounds {
            for ability in Ability::ALL {
                let is_root_only = matches!(ability, Ability::UserNamespace | Ability::UsernsLimit);
                let repeats = !user && (is_root_only || ground.can(ability) && trial.user.can(ability));
                // Without a user namespace, nothing in it could be tried.
                let untried = user && ability != Ability::UserNamespace && !ground.can(Ability::UserNamespace);
                if repeats || untried {
                    continue;
                }
                let refused = ground.tried(ability).err();
                let found = (!user).then(|| "as root, without a user namespace".to_owned());
                let cause = refused.map(|errno| why_refused(ability, errno));
                findings.push(Finding { what: ability.words(), ok: refused.is_none(), found, cause });
            }
        }
    }
    findings.push(landlock(host));
    findings.push(Finding {
        what: "seccomp",
        ok: !survey.seccomp_actions.is_empty(),
        found: Some(survey.seccomp_actions.join(" ")).filter(|actions| !actions.is_empty()),
        cause: survey.seccomp_actions.is_empty().then(|| Cause {
            cause: "/proc/sys/kernel/seccomp can't be read: the kernel has none, or /proc is not mounted".to_owned(),
            cure: None,
        }),
    });
    findings.extend(host.cgroups.as_ref().map(cgroups));
    findings
}

/// What each ABI brought (landlock(7)), and what stands in for it on the rung without namespaces.
const LANDLOCK: [(i32, &str, &str); 6] = [
    (1, "5.13", "files"),
    (2, "5.19", "moves between folders (else always refused)"),
    (3, "6.2", "truncation (else mounts or seccomp refuse it)"),
    (4, "6.7", "TCP (else the network namespace or seccomp)"),
    (5, "6.10", "ioctl of devices (else mounts or seccomp)"),
    (6, "6.12", "signals and abstract sockets (else the pid and network namespaces, or seccomp)"),
];

fn landlock(host: &Host) -> Finding {
    let abi = host.landlock.abi();
    let missing: Vec<String> = LANDLOCK
        .iter()
        .filter(|(since, ..)| abi > 0 && abi < *since)
        .map(|(since, linux, what)| format!("ABI {since} (Linux {linux}): {what}"))
        .collect();
    let mut found = format!("ABI {abi}");
    if !missing.is_empty() {
        found.push_str(&format!("; missing {}", missing.join(", ")));
    }
    Finding { what: "Landlock", ok: abi > 0, found: (abi > 0).then_some(found), cause: host.landlock.why_not() }
}

fn cgroups(cgroups: &Cgroups) -> Finding {
    let place = |controller: Controller| {
        let wanted = [controller];
        let best = |version| cgroups.best(version, &wanted);
        best(CgroupVersion::V2).or_else(|| best(CgroupVersion::V1))
    };
    let (given, missing): (Vec<Controller>, Vec<Controller>) =
        Controller::ALL.into_iter().partition(|controller| place(*controller).is_some());
    let says = |controller: &Controller| {
        let place = place(*controller)?;
        let version = match place.version {
            CgroupVersion::V1 => 1,
            CgroupVersion::V2 => 2,
        };
        Some(format!("{} by version {version} in {}", controller.name(), place.folder.display()))
    };
    let found: Vec<String> = given.iter().filter_map(says).collect();
    // One cause is mostly that of all.
    let cause = missing.first().map(|controller| {
        let names: Vec<&str> = missing.iter().map(|controller| controller.name()).collect();
        let Cause { cause, cure } = cgroups.why_not(*controller);
        Cause { cause: format!("no {}: {cause}; rlimits and affinity stand in", names.join(", ")), cure }
    });
    Finding {
        what: "limits of a whole sandbox (cgroups)",
        ok: missing.is_empty(),
        found: (!found.is_empty()).then(|| found.join(", ")),
        cause,
    }
}

impl Diagnosis {
    fn text(&self) -> String {
        let Survey { kernel, architecture, security_modules, .. } = &self.survey;
        let mut lines = vec![format!("shannot {} on Linux {kernel} {architecture}", self.version)];
        if !security_modules.is_empty() {
            lines.push(format!("security modules: {}", security_modules.join(", ")));
        }
        lines.push(String::new());
        let width = self.findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
        for Finding { what, ok, found, cause } in &self.findings {
            let mark = if *ok { "yes" } else { "no" };
            let mut texts: Vec<&str> = found.iter().map(String::as_str).collect();
            texts.extend(cause.iter().map(|cause| cause.cause.as_str()));
            lines.push(format!("  {mark:<4} {what:<width$}  {}", texts.join("; ")).trim_end().to_owned());
            if let Some(cure) = cause.as_ref().and_then(|cause| cause.cure.as_deref()) {
                lines.push(format!("       {:<width$}  fix: {cure}", ""));
            }
        }
        lines.push(String::new());
        lines.extend(self.profile.lines());
        lines.join("\n") + "\n"
    }
}

impl Verdict {
    fn lines(&self) -> Vec<String> {
        match self {
            Verdict::Refused { profile, error } => {
                let mut lines = vec![format!("profile {profile}: refused here"), format!("  {}", error.message)];
                lines.extend(error.hint.iter().flat_map(|hint| hint.lines()).map(|hint| format!("  fix: {hint}")));
                lines
            }
            Verdict::Runs { profile, rung, in_place, expected } => {
                let mut lines = vec![format!("profile {profile}: runs on the rung `{}`", rung.name())];
                if let Some(in_place) = in_place {
                    lines.push(format!("  because {}", in_place.because));
                    lines.extend(in_place.lost.iter().map(|lost| format!("  without {lost}")));
                }
                let weaker = expected.iter().filter(|(_, state)| !state.is_full());
                lines.extend(weaker.map(|(layer, state): (_, &Enforcement)| format!("  {:<18} {state}", layer.name())));
                let full: Vec<&str> =
                    expected.iter().filter(|(_, state)| state.is_full()).map(|(layer, _)| layer.name()).collect();
                lines.push(format!("  in full: {}", full.join(", ")));
                lines
            }
        }
    }
}
