//! From a policy to a running sandbox, by the highest rung that this host lets it have. The real thing is tried first; only
//! where the host refuses it is everything tried, and a plan made of what there is.

use super::output::{Complaint, note};
use crate::host::Host;
use crate::plan::{Plan, PlanError, wanted_controllers};
use crate::policy::{Backend, Policy};
use crate::report::Outcome;
use crate::sandbox::{self, SandboxError, Stdio};

fn probe(policy: &Policy) -> Host {
    let host = Host::probe();
    // Nobody else pays for it.
    match wanted_controllers(&policy.limits) {
        wanted if wanted.is_empty() => host,
        wanted => host.with_cgroups(&wanted),
    }
}

/// The host as far as a plan for this policy has to know it before anything was refused.
pub(super) fn host(policy: &Policy, verbose: bool) -> Host {
    let host = probe(policy);
    // Where there is nothing to try first, or the plan is talked about before it is carried out.
    if verbose || policy.backend == Backend::Landlock { host.tried() } else { host }
}

/// The plan that this host will hold, for those who only look at it.
pub(super) fn plan(policy: &Policy) -> Result<Plan, PlanError> {
    Plan::new(policy, &probe(policy).tried())
}

/// Carries a plan out. Where the host refuses what it took to work, `plan` becomes the one of what there is.
pub(super) fn run(policy: &Policy, plan: &mut Plan, stdio: &Stdio) -> Result<Outcome, Complaint> {
    match sandbox::run(plan, stdio, None) {
        Err(SandboxError::Failed(failure)) if failure.is_refusal() => {
            let lower = self::plan(policy)?;
            if lower.goes_the_way_of(plan) {
                return Err(SandboxError::Failed(failure).into());
            }
            *plan = lower;
            if let Some(in_place) = &plan.in_place {
                // The profile's confinement holds there too, or the plan would have refused; but nobody falls unseen.
                note(&format!("shannot: {}: on the rung `landlock` (shannot doctor says more)", in_place.because));
            }
            Ok(sandbox::run(plan, stdio, None)?)
        }
        result => Ok(result?),
    }
}
