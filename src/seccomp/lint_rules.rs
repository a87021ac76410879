//! What is wrong with the rules of a policy among themselves.

use std::collections::BTreeSet;

use super::abi::{Abi, is_known};
use super::calls;
use super::lint::{Finding, Severity};
use super::oci::{Document, Operator};
use super::policy::{Condition, Policy, Rule};
use super::program::Program;
use crate::spelling::nearest;

/// For so many unknown names the nearest known one is looked for.
const GUESSED: usize = 50;

pub(super) fn unknown_names(document: &Document, findings: &mut Vec<Finding>) {
    let unknown = document.names().filter(|(_, name)| !name.is_empty() && !is_known(name));
    for (count, (place, name)) in unknown.enumerate() {
        // Somebody who has more is not served by guesses, which take their time.
        let known = calls::rows().iter().filter(|_| count < GUESSED).map(|row| row.name);
        let nearest = nearest(name, known).map(str::to_owned);
        findings.push(Finding {
            severity: Severity::Warning,
            kind: "unknown",
            calls: vec![name.clone()],
            place: format!("syscalls[{place}]"),
            fault: format!("no architecture has a call {name:?}"),
            symptom: "the rule does nothing for it: a typo, or a call newer than this table (Linux 6.18)".to_owned(),
            fix: nearest
                .as_ref()
                .map_or_else(|| "take it out".to_owned(), |nearest| format!("did you mean {nearest:?}?")),
            // What was meant is for its author to say: a guess could allow more than was asked for.
            remedy: None,
        });
    }
}

/// Rules that another rule, or the default, leaves nothing to decide.
pub(super) fn never_apply(policy: &Policy, findings: &mut Vec<Finding>) {
    let mut unconditional: Vec<(&str, &Rule)> = Vec::new();
    let mut report = |severity, rule: &Rule, name: &str, fault: String| {
        findings.push(Finding {
            severity,
            kind: "shadowed",
            calls: vec![name.to_owned()],
            place: format!("syscalls[{}]", rule.place),
            fault,
            symptom: "the rule does nothing".to_owned(),
            fix: "leave one of the two".to_owned(),
            remedy: None,
        });
    };
    for rule in policy.rules.iter().filter(|rule| rule.conditions.is_empty()) {
        for name in &rule.names {
            match unconditional.iter().find(|(named, _)| named == name) {
                Some((_, first)) if first.action != rule.action => {
                    let fault = format!(
                        "{name}: {} here, and {} in syscalls[{}], which comes first",
                        rule.action, first.action, first.place
                    );
                    report(Severity::Warning, rule, name, fault);
                }
                Some(_) => {}
                None => unconditional.push((name, rule)),
            }
        }
    }
    for rule in policy.rules.iter().filter(|rule| !rule.conditions.is_empty()) {
        for name in &rule.names {
            if let Some((_, first)) =
                unconditional.iter().find(|(named, first)| named == name && first.action != rule.action)
            {
                let fault = format!(
                    "{name}: syscalls[{}] says {} without a condition, which beats this one's",
                    first.place, first.action
                );
                report(Severity::Note, rule, name, fault);
            }
        }
    }
}

/// Conditional rules on one call that can hold at once and say different things.
pub(super) fn overlaps(policy: &Policy, findings: &mut Vec<Finding>) {
    let conditional: Vec<&Rule> = policy.rules.iter().filter(|rule| !is_rest(rule)).collect();
    let mut seen = BTreeSet::new();
    for name in conditional.iter().flat_map(|rule| &rule.names) {
        if !seen.insert(name) {
            continue;
        }
        let rules: Vec<&Rule> = conditional.iter().filter(|rule| rule.names.contains(name)).copied().collect();
        let meet = |(first, second): &(&Rule, &Rule)| {
            first.action != second.action && can_meet(&first.conditions, &second.conditions)
        };
        let mut pairs =
            rules.iter().enumerate().flat_map(|(at, first)| rules.iter().skip(at + 1).map(|second| (*first, *second)));
        if let Some((first, second)) = pairs.find(meet) {
            findings.push(Finding {
                severity: Severity::Note,
                kind: "overlap",
                calls: vec![name.clone()],
                place: format!("syscalls[{}]", second.place),
                fault: format!(
                    "{name}: for some arguments syscalls[{}] says {} and this one {}",
                    first.place, first.action, second.action
                ),
                symptom: "the first one counts; libseccomp and other tools may choose the other".to_owned(),
                fix: "make the conditions exclude each other".to_owned(),
                remedy: None,
            });
        }
    }
}

/// Whether a rule holds for all arguments on purpose: it stands for "otherwise".
fn is_rest(rule: &Rule) -> bool {
    rule.conditions.iter().all(|condition| condition.always_holds(u64::MAX))
}

/// Whether there may be arguments for which all conditions hold. Without certainty: yes.
fn can_meet(first: &[Condition], second: &[Condition]) -> bool {
    let pairs = first.iter().flat_map(|a| second.iter().map(move |b| (a, b))).filter(|(a, b)| a.argument == b.argument);
    let excluded = |(a, b): (&Condition, &Condition)| match (fixed(a), fixed(b)) {
        (Some((value, mask)), Some((other, other_mask))) => (value ^ other) & mask & other_mask != 0,
        (Some((value, u64::MAX)), None) => !super::decision::holds(b, value),
        (None, Some((value, u64::MAX))) => !super::decision::holds(a, value),
        _ => range(a).zip(range(b)).is_some_and(|(a, b)| a.1 < b.0 || b.1 < a.0),
    };
    !pairs.into_iter().any(excluded)
}

/// Bits that a condition fixes, and which.
fn fixed(condition: &Condition) -> Option<(u64, u64)> {
    matches!(condition.operator, Operator::Equal | Operator::MaskedEqual).then_some((condition.value, condition.mask))
}

/// First and last value of a comparison that is a range.
fn range(condition: &Condition) -> Option<(u64, u64)> {
    let value = condition.value;
    match condition.operator {
        Operator::Less => Some((0, value.saturating_sub(1))),
        Operator::LessOrEqual => Some((0, value)),
        Operator::GreaterOrEqual => Some((value, u64::MAX)),
        Operator::Greater => Some((value.saturating_add(1), u64::MAX)),
        Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => None,
    }
}

/// i386's socketcall and ipc take arguments from memory, so that conditions are not tried there.
pub(super) fn multiplexed(policy: &Policy, program: &Program, findings: &mut Vec<Finding>) {
    if !policy.abis.contains(&Abi::X86) {
        return;
    }
    let conditional = |name: &str| {
        policy.rules.iter().find(|rule| !rule.conditions.is_empty() && rule.names.iter().any(|named| named == name))
    };
    for (multiplexer, names) in
        [("socketcall", ["socket", "connect", "bind", "sendto"]), ("ipc", ["semget", "msgget", "shmget", "shmat"])]
    {
        let passes = Abi::X86.number(multiplexer).map(|nr| program.verdicts(Abi::X86, nr));
        let rule = names.iter().find_map(|name| conditional(name).map(|rule| (*name, rule)));
        if let (Some((name, rule)), true) = (rule, passes.is_some_and(|verdicts| verdicts.may_pass())) {
            findings.push(Finding {
                severity: Severity::Warning,
                kind: "multiplexed",
                calls: vec![name.to_owned(), multiplexer.to_owned()],
                place: format!("syscalls[{}]", rule.place),
                fault: format!("{name}'s arguments are filtered, and i386 programs may call it through {multiplexer}"),
                symptom: format!("none for programs; but through {multiplexer} the arguments lie in memory, where no filter sees them"),
                fix: "leave SCMP_ARCH_X86 out, if no 32-bit program is to run".to_owned(),
                remedy: None,
            });
        }
    }
}
