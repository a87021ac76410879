//! What happens to each number of each interface: the policy, decided. Shared with the build script.

use std::collections::{BTreeMap, BTreeSet};

use super::abi::{Abi, X32_BIT};
use super::action::Action;
use super::oci::Operator;
use super::policy::{Condition, Policy, Rule};

/// What happens to one call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Outcome {
    /// In order: the first whose comparisons all hold decides.
    pub(super) branches: Vec<Branch>,
    /// Otherwise: a filter's return value.
    pub(super) otherwise: u32,
}

/// A rule as one call sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Branch {
    pub(super) comparisons: Vec<Comparison>,
    pub(super) value: u32,
}

/// A condition at the width of an interface's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Comparison {
    pub(super) condition: Condition,
    /// 64 bits; otherwise the low 32.
    pub(super) wide: bool,
}

/// All numbers of one AUDIT_ARCH_*.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) audit_arch: u32,
    /// What happens from this number on, until the next; the first is 0.
    pub(super) intervals: Vec<(u32, Outcome)>,
    /// Numbers that exist, sorted: what is likely to be called.
    pub(super) known: Vec<u32>,
}

/// i386: socketcall(2)'s and ipc(2)'s sub-calls (linux/net.h, linux/ipc.h).
const SOCKETCALL: &[(&str, u64)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];
const IPC: &[(&str, u64)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];
/// ipc(2) takes the sub-call from these bits, and a version from those above.
const IPC_CALL: u64 = 0xffff;

impl Outcome {
    fn constant(value: u32) -> Self {
        Self { branches: Vec::new(), otherwise: value }
    }
}

/// Decides: one section for each AUDIT_ARCH_*, the native one first.
pub(super) fn decide(policy: &Policy) -> Vec<Section> {
    let mut seen = BTreeSet::new();
    let new = policy.abis.iter().map(|abi| abi.audit_arch()).filter(|audit_arch| seen.insert(*audit_arch));
    new.map(|audit_arch| section(policy, audit_arch)).collect()
}

fn section(policy: &Policy, audit_arch: u32) -> Section {
    let default = policy.default.to_return();
    let abis = || policy.abis.iter().copied().filter(|abi| abi.audit_arch() == audit_arch);
    let mut calls = BTreeMap::new();
    for abi in abis() {
        calls.extend(outcomes(policy, abi, default));
    }
    let mut known: Vec<u32> = abis().flat_map(|abi| abi.calls().map(|(number, _)| number)).collect();
    known.sort_unstable();
    // The numbers between the calls.
    let mut gaps = vec![(0, default)];
    if abis().eq([Abi::X86_64]) {
        // x32 comes with the same AUDIT_ARCH_*. A tracer that skips a call sets -1, which is none.
        gaps.extend([(X32_BIT, Action::KillProcess.to_return()), (u32::MAX, default)]);
    }
    let gap = |number: u32| {
        let value = gaps.iter().rev().find(|(start, _)| *start <= number).map_or(default, |(_, value)| *value);
        Outcome::constant(value)
    };
    let mut starts: BTreeSet<u32> = gaps.iter().map(|(start, _)| *start).collect();
    starts.extend(calls.keys().flat_map(|number| [*number, number.saturating_add(1)]));
    let mut intervals: Vec<(u32, Outcome)> = Vec::new();
    for start in starts {
        let outcome = calls.get(&start).cloned().unwrap_or_else(|| gap(start));
        if intervals.last().is_none_or(|(_, last)| *last != outcome) {
            intervals.push((start, outcome));
        }
    }
    Section { audit_arch, intervals, known }
}

/// What the rules say of each number that they name.
fn outcomes(policy: &Policy, abi: Abi, default: u32) -> BTreeMap<u32, Outcome> {
    let mut outcomes: BTreeMap<u32, Outcome> = BTreeMap::new();
    let mut settled = BTreeSet::new();
    for rule in &policy.rules {
        for (number, conditions) in rule.names.iter().flat_map(|name| places(abi, name, rule)) {
            let outcome = outcomes.entry(number).or_insert_with(|| Outcome::constant(default));
            if conditions.is_empty() {
                // An unconditional rule beats the conditional ones, whatever the order.
                if settled.insert(number) {
                    *outcome = Outcome::constant(rule.action.to_return());
                }
            } else if !settled.contains(&number) {
                let mut comparisons: Vec<_> = conditions.into_iter().map(|condition| narrow(abi, condition)).collect();
                let most = if abi.is_wide() { u64::MAX } else { u32::MAX.into() };
                if comparisons.iter().all(|comparison| comparison.condition.may_hold(most)) {
                    comparisons.retain(|comparison| !comparison.condition.always_holds(most));
                    outcome.branches.push(Branch { comparisons, value: rule.action.to_return() });
                }
            }
        }
    }
    outcomes
}

/// Where an interface takes a call of this name: its own number and, on i386, a sub-call of a multiplexer.
fn places(abi: Abi, name: &str, rule: &Rule) -> Vec<(u32, Vec<Condition>)> {
    let mut places: Vec<_> = abi.number(name).map(|number| (number, rule.conditions.clone())).into_iter().collect();
    // The call's own arguments lie in memory (socketcall) or one further on (ipc), so that no condition can be tried.
    // libseccomp puts the sub-call in the place of one on the first argument, and tries others on something else:
    // those may refuse here, but not let through.
    let untried = rule.conditions.iter().any(|condition| condition.argument > 0);
    if abi == Abi::X86 && !(untried && rule.action.lets_through()) {
        for (multiplexer, table, mask) in [("socketcall", SOCKETCALL, u64::MAX), ("ipc", IPC, IPC_CALL)] {
            let sub = table.iter().find(|(sub, _)| *sub == name);
            if let (Some((_, sub)), Some(number)) = (sub, abi.number(multiplexer)) {
                let operator = if mask == u64::MAX { Operator::Equal } else { Operator::MaskedEqual };
                places.push((number, vec![Condition { argument: 0, operator, value: *sub, mask }]));
            }
        }
    }
    places
}

fn narrow(abi: Abi, mut condition: Condition) -> Comparison {
    if !abi.is_wide() {
        condition.value &= u64::from(u32::MAX);
        condition.mask &= u64::from(u32::MAX);
    }
    Comparison { condition, wide: abi.is_wide() }
}
