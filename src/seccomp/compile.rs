//! From an OCI policy to a program for one architecture: a binary search over intervals of equal outcome, so that a call
//! costs a handful of instructions whatever its number. Nothing but architecture and number is loaded before a constant
//! outcome, which lets the kernel answer it from a bitmap (Linux 5.11, seccomp_cache_check_allow).

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::oci::{Action, Argument, Operator, Policy};

/// An instruction: code, jt, jf, k.
pub(crate) type Word = (u16, u8, u8, u32);

/// What the compiler must know about an architecture.
pub(crate) struct Target<'a> {
    /// AUDIT_ARCH_* (linux/audit.h).
    pub(crate) audit_arch: u32,
    /// The first number that is not this architecture's, if it has one: x32's bit on x86-64.
    pub(crate) numbers_end: Option<u32>,
    /// The number of a call; `None` where the architecture does not have it.
    pub(crate) number: &'a dyn Fn(&str) -> Option<u32>,
}

const LD_W_ABS: u16 = 0x20;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;
/// Offsets in struct seccomp_data.
const NR: u32 = 0;
const ARCH: u32 = 4;

/// What happens to one call.
#[derive(Debug, Clone, Default, PartialEq)]
struct Outcome {
    /// Conditions, all of which must hold, and the return value then; in order.
    conditional: Vec<(Vec<SeccompCondition>, u32)>,
    /// Otherwise.
    otherwise: u32,
}

/// Compiles.
///
/// # Errors
/// A sentence, for a condition that can't be.
pub(crate) fn compile(policy: &Policy, target: &Target<'_>) -> Result<Vec<Word>, String> {
    let kill = Action::KillProcess.return_value(0);
    let default = policy.default_action.return_value(policy.default_errno_ret);
    let outcomes = outcomes(policy, target, default)?;
    let tree = search(&intervals(&outcomes, default))?;
    let mut program = vec![(LD_W_ABS, 0, 0, ARCH), (JEQ, 1, 0, target.audit_arch), (RET, 0, 0, kill)];
    program.push((LD_W_ABS, 0, 0, NR));
    if let Some(end) = target.numbers_end {
        program.extend([(JGE, 0, 1, end), (RET, 0, 0, kill)]);
    }
    program.extend(tree);
    Ok(program)
}

/// The outcome of each call that a rule names.
fn outcomes(policy: &Policy, target: &Target<'_>, default: u32) -> Result<BTreeMap<u32, Outcome>, String> {
    let mut outcomes: BTreeMap<u32, Outcome> = BTreeMap::new();
    let mut settled = std::collections::BTreeSet::new();
    for rule in &policy.syscalls {
        let value = rule.action.return_value(rule.errno_ret);
        for number in rule.names.iter().filter_map(|name| (target.number)(name)) {
            let outcome =
                outcomes.entry(number).or_insert_with(|| Outcome { otherwise: default, ..Outcome::default() });
            if rule.args.is_empty() {
                // An unconditional rule beats conditional ones, whatever the order.
                if settled.insert(number) {
                    *outcome = Outcome { conditional: Vec::new(), otherwise: value };
                }
            } else if !settled.contains(&number) {
                let conditions = rule.args.iter().map(condition).collect::<Result<_, _>>()?;
                outcome.conditional.push((conditions, value));
            }
        }
    }
    Ok(outcomes)
}

fn condition(argument: &Argument) -> Result<SeccompCondition, String> {
    let (operator, value) = match argument.op {
        Operator::NotEqual => (SeccompCmpOp::Ne, argument.value),
        Operator::Less => (SeccompCmpOp::Lt, argument.value),
        Operator::LessOrEqual => (SeccompCmpOp::Le, argument.value),
        Operator::Equal => (SeccompCmpOp::Eq, argument.value),
        Operator::GreaterOrEqual => (SeccompCmpOp::Ge, argument.value),
        Operator::Greater => (SeccompCmpOp::Gt, argument.value),
        Operator::MaskedEqual => (SeccompCmpOp::MaskedEq(argument.value), argument.value_two),
    };
    SeccompCondition::new(argument.index, SeccompCmpArgLen::Qword, operator, value).map_err(|error| error.to_string())
}

/// First numbers of the intervals, and what happens in each.
fn intervals(outcomes: &BTreeMap<u32, Outcome>, default: u32) -> Vec<(u32, Outcome)> {
    let default = Outcome { otherwise: default, ..Outcome::default() };
    let mut intervals = vec![(0, default.clone())];
    let mut add = |start: u32, outcome: &Outcome| match intervals.last_mut() {
        Some((_, last)) if last == outcome => {}
        Some((last_start, last)) if *last_start == start => *last = outcome.clone(),
        _ => intervals.push((start, outcome.clone())),
    };
    for (number, outcome) in outcomes {
        add(*number, outcome);
        if !outcomes.contains_key(&(number + 1)) {
            add(number + 1, &default);
        }
    }
    intervals
}

/// A balanced search tree as code.
fn search(intervals: &[(u32, Outcome)]) -> Result<Vec<Word>, String> {
    let (left, right) = intervals.split_at(intervals.len() / 2);
    let (Some((start, _)), false) = (right.first(), left.is_empty()) else {
        return leaf(intervals.first().map(|(_, outcome)| outcome));
    };
    let below = search(left)?;
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![(JGE, distance, 0, *start)],
        // A condition skips 255 instructions at most.
        Err(_) => vec![(JGE, 0, 1, *start), (JA, 0, 0, length(&below)?)],
    };
    code.extend(below);
    code.extend(search(right)?);
    Ok(code)
}

fn leaf(outcome: Option<&Outcome>) -> Result<Vec<Word>, String> {
    let outcome = outcome.ok_or("no interval")?;
    let mut code = Vec::new();
    for (conditions, value) in &outcome.conditional {
        let rule = SeccompRule::new(conditions.clone()).map_err(|error| error.to_string())?;
        // A fragment goes on behind itself when the conditions hold, and one instruction further when they don't.
        let fragment = BpfProgram::from(rule);
        code.extend(fragment.iter().map(|word| (word.code, word.jt, word.jf, word.k)));
        code.push((RET, 0, 0, *value));
    }
    code.push((RET, 0, 0, outcome.otherwise));
    Ok(code)
}

fn length(code: &[Word]) -> Result<u32, String> {
    u32::try_from(code.len()).map_err(|error| error.to_string())
}
