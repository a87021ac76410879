//! From a policy to a program: per architecture a search over intervals of equal outcome, so that a call costs a
//! handful of instructions whatever its number. Nothing but architecture and number is loaded before a constant
//! outcome, which lets the kernel answer it from a bitmap (Linux 5.11, seccomp_cache_check_allow). Shared with the
//! build script.

use std::collections::BTreeMap;

use super::action::Action;
use super::decide::{Outcome, Section, decide};
use super::decision;
use super::graph::{Graph, Id, JEQ_K, Word};
use super::policy::Policy;
use super::search;

/// Offsets in struct seccomp_data (linux/seccomp.h).
const NR: u32 = 0;
const ARCH: u32 = 4;

/// Compiles. Equal policies give equal programs.
///
/// # Errors
/// A sentence, when seccompiler refuses a condition.
pub(super) fn compile(policy: &Policy) -> Result<Vec<Word>, String> {
    let mut graph = Graph::default();
    let mut known = BTreeMap::new();
    let mut entry = graph.verdict(Action::KillProcess.to_return());
    for section in decide(policy).iter().rev() {
        let call = numbers(&mut graph, section, &mut known)?;
        let call = graph.load(NR, call);
        entry = graph.branch(JEQ_K, section.audit_arch, call, entry);
    }
    let entry = graph.load(ARCH, entry);
    Ok(graph.lay_out(entry))
}

fn numbers(graph: &mut Graph, section: &Section, known: &mut BTreeMap<Outcome, Id>) -> Result<Id, String> {
    let mut ranges = Vec::new();
    for (start, outcome) in &section.intervals {
        let id = match known.get(outcome) {
            Some(id) => *id,
            None => {
                let id = decision::outcome(graph, outcome)?;
                known.insert(outcome.clone(), id);
                id
            }
        };
        search::push(&mut ranges, *start, id);
    }
    let likely = |first: u32, last: u32| {
        let before = |number: u32| section.known.partition_point(|known| *known < number);
        let after = section.known.partition_point(|known| *known <= last);
        u64::try_from(after.saturating_sub(before(first))).unwrap_or(0)
    };
    Ok(search::word(graph, &ranges, &likely))
}
