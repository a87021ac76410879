//! What a program can say of a call whatever its arguments are: the interpreter with unknown words, once over the program,
//! since all jumps lead forward.

use std::collections::{BTreeMap, BTreeSet};

use super::abi::Abi;
use super::action::Action;
use super::interpret::{compare, evaluate};
use super::program::{
    ALU, Instruction, JA, JMP, LD_IMM, LD_MEM, LD_W_ABS, LD_W_LEN, LDX_IMM, LDX_MEM, LDX_W_LEN, MEMORY, Program, RET_A,
    RET_K, SOURCE_X, ST, STX, TAX, TXA,
};

/// All that a call can meet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// What can happen, and the instructions that say so.
    pub actions: BTreeMap<Action, BTreeSet<usize>>,
    /// Arguments that are looked at on the way.
    pub arguments: BTreeSet<u8>,
    /// The value returned is computed from what is not known.
    pub computed: bool,
}

impl Verdicts {
    /// The verdict, when there is only one.
    pub fn constant(&self) -> Option<Action> {
        let mut actions = self.actions.keys();
        actions.next().copied().filter(|_| actions.next().is_none() && !self.computed)
    }

    /// Whether the call is carried out for some arguments.
    pub fn may_pass(&self) -> bool {
        self.computed || self.actions.keys().any(|action| action.lets_through())
    }

    /// Whether the call is carried out for all arguments.
    pub fn always_passes(&self) -> bool {
        !self.computed && self.actions.keys().all(|action| action.lets_through())
    }
}

/// A word: known, or not.
type Word = Option<u32>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    a: Word,
    x: Word,
    memory: [Word; MEMORY],
}

impl State {
    /// What is known on both ways.
    fn join(&mut self, other: &State) {
        let same = |mine: &mut Word, other: Word| *mine = mine.filter(|mine| Some(*mine) == other);
        same(&mut self.a, other.a);
        same(&mut self.x, other.x);
        for (mine, other) in self.memory.iter_mut().zip(other.memory) {
            same(mine, other);
        }
    }
}

impl Program {
    /// What can happen to a call with any arguments.
    pub fn verdicts(&self, abi: Abi, nr: u32) -> Verdicts {
        self.verdicts_at(abi.audit_arch(), nr)
    }

    /// The same by AUDIT_ARCH_*.
    pub fn verdicts_at(&self, arch: u32, nr: u32) -> Verdicts {
        let mut found = Verdicts::default();
        let mut reached: Vec<Option<State>> = vec![None; self.instructions().len()];
        if let Some(first) = reached.first_mut() {
            *first = Some(State { a: Some(0), x: Some(0), memory: [None; MEMORY] });
        }
        for (index, instruction) in self.instructions().iter().enumerate() {
            let Some(mut state) = reached.get_mut(index).and_then(Option::take) else { continue };
            for distance in step(&mut state, *instruction, (arch, nr), index, &mut found) {
                if let Some(there) = reached.get_mut(index + 1 + distance) {
                    match there {
                        Some(known) => known.join(&state),
                        None => *there = Some(state.clone()),
                    }
                }
            }
        }
        found
    }
}

/// Carries an instruction out; how far it may lead.
fn step(
    state: &mut State,
    Instruction { code, jt, jf, k }: Instruction,
    (arch, nr): (u32, u32),
    index: usize,
    found: &mut Verdicts,
) -> Vec<usize> {
    let word = usize::try_from(k).unwrap_or(MEMORY);
    let stored = state.memory.get(word).copied().flatten();
    let mut verdict = |value: Word| match value {
        Some(value) => {
            found.actions.entry(Action::from_return(value)).or_default().insert(index);
        }
        None => found.computed = true,
    };
    match code {
        LD_W_ABS => {
            state.a = match k {
                0 => Some(nr),
                4 => Some(arch),
                _ => None,
            };
            if let Some(argument) = argument_at(k) {
                found.arguments.insert(argument);
            }
        }
        LD_W_LEN => state.a = Some(64),
        LDX_W_LEN => state.x = Some(64),
        LD_IMM => state.a = Some(k),
        LDX_IMM => state.x = Some(k),
        LD_MEM => state.a = stored,
        LDX_MEM => state.x = stored,
        ST | STX => {
            if let Some(to) = state.memory.get_mut(word) {
                *to = if code == ST { state.a } else { state.x };
            }
        }
        TAX => state.x = state.a,
        TXA => state.a = state.x,
        RET_K => {
            verdict(Some(k));
            return Vec::new();
        }
        RET_A => {
            verdict(state.a);
            return Vec::new();
        }
        JA => return vec![word],
        _ => {
            let operand = if code & SOURCE_X == 0 { Some(k) } else { state.x };
            let operation = code & !(SOURCE_X | 0x07);
            let known = state.a.zip(operand);
            match (code & 0x07, known) {
                (JMP, Some((a, operand))) => {
                    return vec![usize::from(if compare(operation, a, operand) { jt } else { jf })];
                }
                (JMP, None) => return BTreeSet::from([jt, jf]).into_iter().map(usize::from).collect(),
                (ALU, Some((a, operand))) => match evaluate(operation, a, operand) {
                    Some(value) => state.a = Some(value),
                    // Division by zero ends the program.
                    None => {
                        verdict(Some(0));
                        return Vec::new();
                    }
                },
                _ => state.a = None,
            }
        }
    }
    vec![0]
}

/// The argument that a word of struct seccomp_data belongs to.
pub(super) fn argument_at(offset: u32) -> Option<u8> {
    offset.checked_sub(16).and_then(|offset| u8::try_from(offset / 8).ok())
}
