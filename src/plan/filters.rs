//! The filters of system calls and their order.

use std::collections::BTreeSet;

use serde::{Serialize, Serializer};

use super::PlanError;
use super::ladder::Rung;
use crate::host::Host;
use crate::policy::{Network, Policy};
use crate::seccomp::{self, Filter, Flag, Gate, Program};

/// What has to be filtered besides, where there is nothing but Landlock.
fn boundary(policy: &Policy, host: &Host, rung: Rung) -> Vec<Filter> {
    if rung == Rung::Namespaces {
        return Vec::new();
    }
    let programs = seccomp::in_place(host.landlock.abi(), policy.network == Network::Host);
    let mut filters: Vec<Filter> = programs.into_iter().map(|(name, program)| Filter::raw(name, program)).collect();
    // Calls that are newer than this program, and may do anything, are refused by every preset.
    if !policy.filters.iter().any(|filter| seccomp::is_preset(&filter.program)) {
        filters.extend(seccomp::Preset::Default.program().map(|program| Filter::raw("preset default", program)));
    }
    filters
}

/// The policy's filters, and those of the rung. None of them may refuse the execve that starts the command: it runs under all of them.
/// With a gate that is the first, and with `exec_once` those that would refuse it leave it to the gate.
pub(super) fn build(
    policy: &Policy,
    host: &Host,
    rung: Rung,
    has_allowlist: bool,
    gate: Option<Gate>,
) -> Result<Vec<Filter>, PlanError> {
    let more = boundary(policy, host, rung);
    let mut filters = Vec::new();
    if let Some(asks) = gate {
        let origin = if asks.launches { "exec-once" } else { "mapping-gate" }.to_owned();
        let program = Program::gate(asks);
        let program = program.map_err(|cause| PlanError::FilterTooLong { origin: origin.clone(), cause })?;
        // How it waits for its listener is all that the policies' flags can say about it.
        let wanted = |flag: &Flag| *flag == Flag::WaitKillableRecv;
        let flags = policy.filters.iter().flat_map(|filter| filter.flags.iter().copied()).filter(wanted).collect();
        filters.push(Filter { flags, ..Filter::raw(origin, program) });
    }
    let mut allowlist = None;
    if has_allowlist && !(policy.filters.is_empty() && more.is_empty()) {
        allowlist = Some(Filter::raw("allowlist", seccomp::no_memory_files()));
    }
    for filter in policy.filters.iter().chain(&more) {
        // A preset has a variant that is both.
        match seccomp::without_memory_files(&filter.program).filter(|_| allowlist.is_some()) {
            Some(program) => {
                allowlist = None;
                filters.push(Filter { program, ..filter.clone() });
            }
            None => filters.push(filter.clone()),
        }
    }
    filters.extend(allowlist);
    for Filter { origin, program, .. } in filters.iter_mut().skip(usize::from(gate.is_some())) {
        // Under bubblewrap's contract such a call fails (ENOSYS), as without a listener anywhere.
        if let Some(instruction) = program.notifies().filter(|_| policy.bubblewrap.is_none()) {
            return Err(PlanError::FilterNotifies { origin: origin.clone(), instruction });
        }
        match program.refuses_launch() {
            Some(_) if policy.exec_once => {
                let behind = program.behind_gate();
                *program = behind.map_err(|cause| PlanError::FilterTooLong { origin: origin.clone(), cause })?;
            }
            Some(verdict) => return Err(PlanError::FilterRefusesLaunch { origin: origin.clone(), verdict }),
            None => {}
        }
    }
    // The kernel asks all of them and takes the strictest answer, of equals the last one's; so those that would refuse the
    // installation of others come last. Under bubblewrap's contract the order is the caller's.
    if policy.bubblewrap.is_none() {
        filters.sort_by_key(|filter| (!filter.program.lets_seccomp(), !filter.program.lets_prctl()));
    }
    Ok(filters)
}

/// The first filter that seccomp(2) can't install any more. Then prctl(2) must be able to.
pub(super) fn prctl_from(filters: &[Filter]) -> Result<usize, PlanError> {
    let from = filters.iter().position(|filter| !filter.program.lets_seccomp()).map_or(filters.len(), |at| at + 1);
    for (index, filter) in filters.iter().enumerate().skip(from) {
        let before = filters.iter().take(index).find(|before| !before.program.lets_prctl());
        // How a filter is to be installed can't be said by prctl. TSYNC says nothing here.
        let has_flags = filter.flags.iter().any(|flag| *flag != Flag::Tsync);
        let flags = || filters.iter().take(from).next_back().filter(|_| has_flags);
        if let Some(before) = before.or_else(flags) {
            let (origin, before) = (filter.origin.clone(), before.origin.clone());
            return Err(PlanError::FiltersExclude { origin, before });
        }
    }
    Ok(from)
}

/// As a plan shows them.
pub(super) fn list<S: Serializer>(filters: &[Filter], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown<'a> {
        origin: &'a str,
        instructions: usize,
        #[serde(skip_serializing_if = "BTreeSet::is_empty")]
        flags: &'a BTreeSet<Flag>,
    }
    serializer.collect_seq(filters.iter().map(|Filter { origin, program, flags, .. }| Shown {
        origin,
        instructions: program.instructions().len(),
        flags,
    }))
}

/// Whether no key of the caller's can be used under the filters, whatever session keyring there is.
pub(super) fn refuse_keys(filters: &[Filter]) -> bool {
    filters.iter().any(|filter| filter.program.refuses_keys())
}
