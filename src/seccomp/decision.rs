//! The outcome of one call as a graph: which argument to look at first, and what is left to decide then. Shared with
//! the build script.

use std::collections::{BTreeSet, HashMap};

use super::decide::{Branch, Comparison, Outcome};
use super::graph::{Graph, Id};
use super::oci::Operator;
use super::policy::Condition;
use super::search;

/// Puts an outcome into the graph.
pub(super) fn outcome(graph: &mut Graph, outcome: &Outcome) -> Result<Id, String> {
    let conditions: usize = outcome.branches.iter().map(|branch| branch.comparisons.len()).sum();
    // A search never needs many more nodes than there are conditions, unless they are about several arguments in a way
    // that multiplies; those are tried one after the other.
    let fuel = graph.len() + 64 + 12 * conditions;
    let mut decision =
        Decision { graph, branches: &outcome.branches, known: HashMap::new(), fuel, patience: PATIENCE, depth: 0 };
    let open = outcome.branches.iter().enumerate().map(|(index, branch)| (index, all(branch))).collect();
    match decision.decide(Open { branches: open, otherwise: outcome.otherwise })? {
        Some(id) => Ok(id),
        None => one_after_the_other(graph, outcome),
    }
}

/// Looks at a branch that a decision may take. As many values as a program can hold at all are searched within that.
const PATIENCE: usize = 50_000_000;

/// So many things may be known of a call at once; branches on more different masks are tried one after the other.
const DEEPEST: usize = 128;

/// A bit for each comparison of a branch; there is at most one for each of six arguments.
fn all(branch: &Branch) -> u8 {
    branch.comparisons.iter().enumerate().fold(0, |bits, (index, _)| bits | bit(index))
}

fn bit(index: usize) -> u8 {
    u32::try_from(index).ok().and_then(|index| 1_u8.checked_shl(index)).unwrap_or(0)
}

fn one_after_the_other(graph: &mut Graph, outcome: &Outcome) -> Result<Id, String> {
    let mut next = graph.verdict(outcome.otherwise);
    for branch in outcome.branches.iter().rev() {
        let mut here = graph.verdict(branch.value);
        for comparison in branch.comparisons.iter().rev() {
            here = graph.comparison(comparison, here, next)?;
        }
        next = here;
    }
    Ok(next)
}

/// What is left to decide: branches with the comparisons that are not known to hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Open {
    branches: Vec<(usize, u8)>,
    otherwise: u32,
}

/// What comparisons are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subject {
    argument: u8,
    mask: u64,
    wide: bool,
}

impl Subject {
    fn of(comparison: &Comparison) -> Self {
        let Condition { argument, mask, .. } = comparison.condition;
        Self { argument, mask, wide: comparison.wide }
    }
}

struct Decision<'a> {
    graph: &'a mut Graph,
    branches: &'a [Branch],
    known: HashMap<Open, Id>,
    /// Size of the graph at which to give up.
    fuel: usize,
    /// How many more looks at a branch there may be.
    patience: usize,
    /// Arguments and masks that are known on the way here.
    depth: usize,
}

impl<'a> Decision<'a> {
    fn branch(&self, index: usize) -> Option<&'a Branch> {
        self.branches.get(index)
    }

    /// Comparisons of an open branch that are not decided.
    fn undecided(&self, (index, bits): (usize, u8)) -> impl Iterator<Item = (u8, &'a Comparison)> + use<'a> {
        let comparisons = self.branch(index).into_iter().flat_map(|branch| branch.comparisons.iter().enumerate());
        comparisons.map(|(index, comparison)| (bit(index), comparison)).filter(move |(bit, _)| bits & bit != 0)
    }

    /// `None` when it grows too large.
    fn decide(&mut self, mut open: Open) -> Result<Option<Id>, String> {
        self.settle(&mut open);
        let Some(first) = open.branches.first() else {
            return Ok(Some(self.graph.verdict(open.otherwise)));
        };
        if let Some(id) = self.known.get(&open) {
            return Ok(Some(*id));
        }
        // To choose what to look at, each branch is looked at once for each comparison of the first.
        self.patience = self.patience.saturating_sub(open.branches.len() * 6);
        if self.graph.len() > self.fuel || self.patience == 0 || self.depth == DEEPEST {
            return Ok(None);
        }
        // The subject of the first branch that most others share.
        let users = |subject: Subject| {
            let has = |entry: &&(usize, u8)| self.undecided(**entry).any(|(_, other)| Subject::of(other) == subject);
            open.branches.iter().filter(has).count()
        };
        let subjects = self.undecided(*first).map(|(_, comparison)| (users(Subject::of(comparison)), comparison));
        let Some((users, comparison)) = subjects.max_by_key(|(users, _)| *users) else { return Ok(None) };
        self.depth += 1;
        let decided = if users == 1 { self.one(&open, comparison) } else { self.many(&open, Subject::of(comparison)) }?;
        self.depth -= 1;
        if let Some(id) = decided {
            self.known.insert(open, id);
        }
        Ok(decided)
    }

    /// Drops what can't decide any more.
    fn settle(&self, open: &mut Open) {
        let value = |index: usize| self.branch(index).map_or(open.otherwise, |branch| branch.value);
        if let Some(at) = open.branches.iter().position(|(_, bits)| *bits == 0) {
            open.otherwise = open.branches.get(at).map_or(open.otherwise, |(index, _)| value(*index));
            open.branches.truncate(at);
        }
        while open
            .branches
            .last()
            .is_some_and(|(index, _)| self.branch(*index).is_some_and(|last| last.value == open.otherwise))
        {
            open.branches.pop();
        }
    }

    /// One branch alone is about this.
    fn one(&mut self, open: &Open, comparison: &Comparison) -> Result<Option<Id>, String> {
        let subject = Subject::of(comparison);
        let Some(holds) = self.decide(self.assume(open, subject, &|_| true))? else { return Ok(None) };
        let Some(fails) = self.decide(self.assume(open, subject, &|_| false))? else { return Ok(None) };
        self.graph.comparison(comparison, holds, fails).map(Some)
    }

    /// Several are: search the value.
    fn many(&mut self, open: &Open, subject: Subject) -> Result<Option<Id>, String> {
        let most = if subject.wide { u64::MAX } else { u32::MAX.into() };
        let mut starts = BTreeSet::from([0]);
        for entry in &open.branches {
            for (_, comparison) in self.undecided(*entry).filter(|(_, comparison)| Subject::of(comparison) == subject) {
                let Condition { operator, value, .. } = comparison.condition;
                let next = value.checked_add(1).filter(|next| *next <= most);
                match operator {
                    Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => {
                        starts.insert(value);
                        starts.extend(next);
                    }
                    Operator::Less | Operator::GreaterOrEqual => {
                        starts.insert(value);
                    }
                    Operator::LessOrEqual | Operator::Greater => starts.extend(next),
                }
            }
        }
        let mut ranges = Vec::new();
        for start in starts {
            self.patience = self.patience.saturating_sub(open.branches.len());
            if self.patience == 0 {
                return Ok(None);
            }
            let rest = self.assume(open, subject, &|condition| holds(condition, start));
            let Some(id) = self.decide(rest)? else { return Ok(None) };
            search::push(&mut ranges, start, id);
        }
        Ok(Some(search::argument(self.graph, subject.argument, subject.mask, subject.wide, &ranges)))
    }

    /// What is left to decide when the comparisons about a subject are known.
    fn assume(&self, open: &Open, subject: Subject, holds: &dyn Fn(&Condition) -> bool) -> Open {
        let mut rest = Open { branches: Vec::new(), otherwise: open.otherwise };
        for (index, bits) in &open.branches {
            let mut about =
                self.undecided((*index, *bits)).filter(|(_, comparison)| Subject::of(comparison) == subject);
            let left =
                about.try_fold(*bits, |left, (bit, comparison)| holds(&comparison.condition).then_some(left & !bit));
            if let Some(left) = left {
                rest.branches.push((*index, left));
                if left == 0 {
                    break;
                }
            }
        }
        rest
    }
}

/// Whether a condition holds for bits that are already under its mask.
pub(super) fn holds(condition: &Condition, bits: u64) -> bool {
    let value = condition.value;
    match condition.operator {
        Operator::NotEqual => bits != value,
        Operator::Less => bits < value,
        Operator::LessOrEqual => bits <= value,
        Operator::Equal | Operator::MaskedEqual => bits == value,
        Operator::GreaterOrEqual => bits >= value,
        Operator::Greater => bits > value,
    }
}
