//! Which rung of the isolation ladder a policy gets on this host: namespaces, without a fresh procfs where the kernel gives
//! none, or Landlock and filters in the host's own tree. The choice is made from what was tried; untried means the first.

use serde::Serialize;

use super::{Namespaces, PlanError};
use crate::host::{Ability, Cause, Ground, Host, why_refused};
use crate::policy::{self, Backend, LandlockMode, Network, Policy};

/// How the command is kept from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// By namespaces and a root of its own; Landlock and filters besides.
    Namespaces,
    /// By Landlock and filters alone, in the host's own tree.
    Landlock,
}

impl Rung {
    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Rung::Namespaces => "namespaces",
            Rung::Landlock => "landlock",
        }
    }
}

/// A rung, and what of it there is.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) rung: Rung,
    pub(super) namespaces: policy::Namespaces,
    /// A procfs of the new pid namespace can be mounted.
    pub(super) fresh_procfs: bool,
    /// The limit of user namespaces can be set.
    pub(super) userns_limit: bool,
    /// What each thing that was asked for and is not there was refused for.
    pub(super) refused: Vec<(Ability, Cause)>,
}

impl Choice {
    fn all(policy: &Policy) -> Self {
        Self {
            rung: Rung::Namespaces,
            namespaces: policy.namespaces,
            fresh_procfs: true,
            userns_limit: true,
            refused: Vec::new(),
        }
    }

    /// Why there are no namespaces.
    pub(super) fn cause(&self) -> Cause {
        first_cause(&self.refused)
    }

    /// Why something is not there, in words.
    pub(super) fn why_not(&self, ability: Ability) -> Option<&str> {
        self.refused.iter().find(|(refused, _)| *refused == ability).map(|(_, cause)| cause.cause.as_str())
    }
}

pub(super) fn choose(policy: &Policy, host: &Host) -> Result<Choice, PlanError> {
    if policy.bubblewrap.is_some() {
        // Its contract knows one rung.
        return Ok(Choice::all(policy));
    }
    if policy.backend == Backend::Landlock {
        let asked = Cause { cause: "the command line asks for it".to_owned(), cure: None };
        return in_place(policy, host, vec![(Ability::UserNamespace, asked)]);
    }
    let Some(trial) = &host.trial else { return Ok(Choice::all(policy)) };
    let grounds = [(true, &trial.user), (false, &trial.plain)];
    let mut refused = Vec::new();
    for (user, ground) in grounds.into_iter().filter(|(user, _)| policy.namespaces.user || !user) {
        match missing(policy, user, ground) {
            None => return Ok(namespaces(policy, user, ground, refused)),
            Some(ability) => refused.push((ability, why(ability, ground))),
        }
    }
    if policy.backend == Backend::Namespaces {
        return Err(PlanError::NoNamespaces { cause: first_cause(&refused) });
    }
    // What root lacks besides is of no interest to others.
    refused.truncate(1);
    in_place(policy, host, refused)
}

fn why(ability: Ability, ground: &Ground) -> Cause {
    ground.tried(ability).err().map(|errno| why_refused(ability, errno)).unwrap_or_default()
}

/// The first thing that is needed for a root of its own and is not there.
fn missing(policy: &Policy, user: bool, ground: &Ground) -> Option<Ability> {
    let wanted = policy.namespaces;
    [
        (user, Ability::UserNamespace),
        (true, Ability::MountNamespace),
        (wanted.pid, Ability::PidNamespace),
        (policy.network != Network::Host, Ability::NetworkNamespace),
        (wanted.ipc, Ability::IpcNamespace),
        (true, Ability::Mounts),
    ]
    .into_iter()
    .find(|(needed, ability)| *needed && !ground.can(*ability))
    .map(|(_, ability)| ability)
}

fn namespaces(policy: &Policy, user: bool, ground: &Ground, mut refused: Vec<(Ability, Cause)>) -> Choice {
    let wanted = policy.namespaces;
    // A host name and the sight of the cgroup tree are furniture.
    let optional = [
        (wanted.uts, Ability::UtsNamespace),
        (wanted.cgroup, Ability::CgroupNamespace),
        (true, Ability::Procfs),
        (user, Ability::UsernsLimit),
    ];
    for (needed, ability) in optional {
        if needed && !ground.can(ability) {
            refused.push((ability, why(ability, ground)));
        }
    }
    let can = |ability| ground.can(ability);
    Choice {
        rung: Rung::Namespaces,
        namespaces: policy::Namespaces {
            user,
            uts: wanted.uts && can(Ability::UtsNamespace),
            cgroup: wanted.cgroup && can(Ability::CgroupNamespace),
            ..wanted
        },
        fresh_procfs: can(Ability::Procfs),
        userns_limit: can(Ability::UsernsLimit),
        refused,
    }
}

fn in_place(policy: &Policy, host: &Host, refused: Vec<(Ability, Cause)>) -> Result<Choice, PlanError> {
    let landlock = if policy.landlock == LandlockMode::Off {
        Some(Cause { cause: "the policy turns Landlock off".to_owned(), cure: None })
    } else {
        host.landlock.why_not()
    };
    if let Some(landlock) = landlock {
        return Err(PlanError::NoIsolation { namespaces: first_cause(&refused), landlock });
    }
    let none = policy::Namespaces { user: false, pid: false, ipc: false, uts: false, cgroup: false };
    Ok(Choice { rung: Rung::Landlock, namespaces: none, fresh_procfs: false, userns_limit: false, refused })
}

fn first_cause(refused: &[(Ability, Cause)]) -> Cause {
    refused.first().map(|(_, cause)| cause.clone()).unwrap_or_default()
}

impl Namespaces {
    /// None at all: the host's.
    pub(super) const NONE: Namespaces = Namespaces {
        user: false,
        nested_user: false,
        network: false,
        pid: false,
        ipc: false,
        uts: false,
        cgroup: false,
        userns_limit: false,
    };
}
