//! Filters as graphs: equal parts exist once, what can't make a difference is never made, and the layout keeps jumps
//! within the 255 instructions that a condition can skip. Shared with the build script.

use std::collections::HashMap;

use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::decide::Comparison;
use super::oci::Operator;

/// An instruction: code, jt, jf, k (linux/filter.h, struct sock_filter).
pub(super) type Word = (u16, u8, u8, u32);

// linux/bpf_common.h; whole operations.
pub(super) const LD_W_ABS: u16 = 0x20;
const AND_K: u16 = 0x54;
const JA: u16 = 0x05;
pub(super) const JEQ_K: u16 = 0x15;
const JGT_K: u16 = 0x25;
pub(super) const JGE_K: u16 = 0x35;
const JSET_K: u16 = 0x45;
const JSET_X: u16 = 0x4d;
const RET_K: u16 = 0x06;
const LD_IMM: u16 = 0x00;
const TAX: u16 = 0x07;
const LSH_X: u16 = 0x6c;

/// A place in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Node {
    /// The verdict.
    Return(u32),
    /// The accumulator becomes a word of struct seccomp_data.
    Load { offset: u32, next: Id },
    /// Bits of the accumulator are cleared.
    And { mask: u32, next: Id },
    /// Any other instruction that goes on with the next.
    Step { code: u16, k: u32, next: Id },
    /// The accumulator is compared.
    Branch { code: u16, k: u32, holds: Id, fails: Id },
}

/// Nodes, each once; they refer only to those made before.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    ids: HashMap<Node, Id>,
    /// Instructions that each node and what it leads to would take alone, about.
    weights: Vec<usize>,
    /// Instructions on the longest way from each node.
    depths: Vec<usize>,
}

impl Graph {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn node(&self, id: Id) -> Node {
        self.nodes.get(id.0).copied().unwrap_or(Node::Return(0))
    }

    /// Instructions on the longest way from a node to a verdict.
    pub(super) fn depth(&self, id: Id) -> usize {
        self.depths.get(id.0).copied().unwrap_or(0)
    }

    fn weight(&self, id: Id) -> usize {
        self.weights.get(id.0).copied().unwrap_or(0)
    }

    fn add(&mut self, node: Node) -> Id {
        if let Some(id) = self.ids.get(&node) {
            return *id;
        }
        let id = Id(self.nodes.len());
        let (weight, depth) = match node {
            Node::Return(_) => (1, 0),
            Node::Load { next, .. } | Node::And { next, .. } | Node::Step { next, .. } => {
                (self.weight(next), self.depth(next))
            }
            Node::Branch { holds, fails, .. } => {
                (self.weight(holds).saturating_add(self.weight(fails)), self.depth(holds).max(self.depth(fails)))
            }
        };
        self.weights.push(weight.saturating_add(1));
        self.depths.push(depth + 1);
        self.nodes.push(node);
        self.ids.insert(node, id);
        id
    }

    pub(super) fn verdict(&mut self, value: u32) -> Id {
        self.add(Node::Return(value))
    }

    /// Loads a word, unless nothing behind it looks at the accumulator.
    pub(super) fn load(&mut self, offset: u32, next: Id) -> Id {
        if self.looks(next) { self.add(Node::Load { offset, next }) } else { next }
    }

    pub(super) fn and(&mut self, mask: u32, next: Id) -> Id {
        match (mask, self.node(next)) {
            (u32::MAX, _) => next,
            _ if !self.looks(next) => next,
            // Of no bit at all the answer is known; whether any bit is set is one instruction.
            (0, Node::Branch { code, k, holds, fails }) => {
                let holds_for_0 = match code {
                    JEQ_K | JGE_K => k == 0,
                    _ => false,
                };
                self.and(0, if holds_for_0 { holds } else { fails })
            }
            (_, Node::Branch { code: JEQ_K, k: 0, holds, fails }) if !self.looks(holds) && !self.looks(fails) => {
                self.branch(JSET_K, mask, fails, holds)
            }
            _ => self.add(Node::And { mask, next }),
        }
    }

    /// Whether a node takes the accumulator as it finds it.
    fn looks(&self, id: Id) -> bool {
        match self.node(id) {
            Node::Return(_) | Node::Load { .. } => false,
            Node::Step { code, .. } => code != LD_IMM,
            Node::And { .. } | Node::Branch { .. } => true,
        }
    }

    fn step(&mut self, code: u16, k: u32, next: Id) -> Id {
        self.add(Node::Step { code, k, next })
    }

    /// Remembers the bit that stands for the accumulator's lowest 5 bits, for [`Graph::bits`]. In register X: the kernel's
    /// checker takes scratch memory for unset behind any return of a way that did not set it.
    pub(super) fn remember_bit(&mut self, next: Id) -> Id {
        let kept = self.step(TAX, 0, next);
        let shifted = self.step(LSH_X, 0, kept);
        let one = self.step(LD_IMM, 1, shifted);
        let counted = self.step(TAX, 0, one);
        self.and(31, counted)
    }

    /// Whether the remembered bit is one of these.
    pub(super) fn bits(&mut self, bits: u32, holds: Id, fails: Id) -> Id {
        let branch = self.branch(JSET_X, 0, holds, fails);
        self.step(LD_IMM, bits, branch)
    }

    pub(super) fn branch(&mut self, code: u16, k: u32, holds: Id, fails: Id) -> Id {
        if holds == fails { holds } else { self.add(Node::Branch { code, k, holds, fails }) }
    }

    /// A comparison, compiled by seccompiler.
    pub(super) fn comparison(&mut self, comparison: &Comparison, holds: Id, fails: Id) -> Result<Id, String> {
        let condition = comparison.condition;
        let operator = match condition.operator {
            Operator::NotEqual => SeccompCmpOp::Ne,
            Operator::Less => SeccompCmpOp::Lt,
            Operator::LessOrEqual => SeccompCmpOp::Le,
            Operator::Equal => SeccompCmpOp::Eq,
            Operator::GreaterOrEqual => SeccompCmpOp::Ge,
            Operator::Greater => SeccompCmpOp::Gt,
            Operator::MaskedEqual => SeccompCmpOp::MaskedEq(condition.mask),
        };
        let length = if comparison.wide { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
        let fragment = SeccompCondition::new(condition.argument, length, operator, condition.value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| error.to_string())?;
        self.lift(&BpfProgram::from(fragment), holds, fails)
    }

    /// A fragment of seccompiler's becomes part of the graph. It begins with two jumps, one that enters it and one for a
    /// rule before it; it runs off its end when its condition holds, and jumps to one instruction further when not.
    fn lift(&mut self, fragment: &BpfProgram, holds: Id, fails: Id) -> Result<Id, String> {
        let body = fragment.get(2..).ok_or("a fragment is too short")?;
        // From the end, so that what an instruction leads to is there before it.
        let mut places = vec![fails, holds];
        for instruction in body.iter().rev() {
            let ahead = |distance: usize| {
                let index = places.len().checked_sub(1 + distance);
                index.and_then(|index| places.get(index)).copied().ok_or("a fragment jumps too far")
            };
            let place = match instruction.code {
                LD_W_ABS => self.load(instruction.k, ahead(0)?),
                AND_K => self.and(instruction.k, ahead(0)?),
                JEQ_K | JGT_K | JGE_K | JSET_K => {
                    let (holds, fails) = (ahead(instruction.jt.into())?, ahead(instruction.jf.into())?);
                    self.branch(instruction.code, instruction.k, holds, fails)
                }
                code => return Err(format!("a fragment has operation {code:#x}")),
            };
            places.push(place);
        }
        places.last().copied().ok_or_else(|| "a fragment is empty".to_owned())
    }

    /// As a program that begins at `entry`.
    pub(super) fn lay_out(&self, entry: Id) -> Vec<Word> {
        let mut layout = Layout { graph: self, backwards: Vec::new(), places: HashMap::new() };
        layout.place(entry);
        layout.backwards.reverse();
        layout.backwards
    }
}

/// A program in the making, from its end: what is jumped to is there before the jump.
struct Layout<'a> {
    graph: &'a Graph,
    backwards: Vec<Word>,
    /// Index in `backwards` of each node.
    places: HashMap<Id, usize>,
}

/// What is still to be done for a node.
enum Task {
    /// What it leads to comes first.
    Visit(Id),
    Emit(Id),
}

/// Instructions that a condition can skip.
const FAR: usize = 255;

impl Layout<'_> {
    /// Puts a node and all that it leads to into the program. Not by recursion: ways are as long as a policy makes them.
    fn place(&mut self, entry: Id) {
        let mut open = vec![Task::Visit(entry)];
        while let Some(task) = open.pop() {
            match task {
                Task::Visit(id) | Task::Emit(id) if self.places.contains_key(&id) => {}
                Task::Visit(id) => {
                    open.push(Task::Emit(id));
                    match self.graph.node(id) {
                        Node::Return(_) => {}
                        Node::Load { next, .. } | Node::And { next, .. } | Node::Step { next, .. } => {
                            open.push(Task::Visit(next));
                        }
                        Node::Branch { holds, fails, .. } => {
                            // What is placed last is nearest: the smaller part, so that the other stays in reach.
                            let (smaller, larger) = self.by_weight(holds, fails);
                            open.extend([Task::Visit(smaller), Task::Visit(larger)]);
                        }
                    }
                }
                Task::Emit(id) => self.emit(id),
            }
        }
    }

    fn by_weight(&self, one: Id, other: Id) -> (Id, Id) {
        if self.graph.weight(one) > self.graph.weight(other) { (other, one) } else { (one, other) }
    }

    /// Puts a node into the program; what it leads to is there.
    fn emit(&mut self, id: Id) {
        let word = match self.graph.node(id) {
            Node::Return(value) => (RET_K, 0, 0, value),
            Node::Load { offset, next } => self.then(next, (LD_W_ABS, 0, 0, offset)),
            Node::And { mask, next } => self.then(next, (AND_K, 0, 0, mask)),
            Node::Step { code, k, next } => self.then(next, (code, 0, 0, k)),
            Node::Branch { code, k, holds, fails } => {
                // One of them may have to come nearer, and then be in the way of the other.
                while self.come_nearer(holds) || self.come_nearer(fails) {}
                (code, self.skip(holds), self.skip(fails), k)
            }
        };
        self.append(id, word);
    }

    fn append(&mut self, id: Id, word: Word) {
        self.places.insert(id, self.backwards.len());
        self.backwards.push(word);
    }

    /// `word`, when `next` comes right behind it.
    fn then(&mut self, next: Id, word: Word) -> Word {
        if self.distance(next) != 0 {
            self.bring(next);
        }
        word
    }

    /// Instructions between the one to be appended and a node.
    fn distance(&self, id: Id) -> usize {
        self.places.get(&id).map_or(0, |place| self.backwards.len() - place - 1)
    }

    fn skip(&self, id: Id) -> u8 {
        u8::try_from(self.distance(id)).unwrap_or(u8::MAX)
    }

    fn come_nearer(&mut self, id: Id) -> bool {
        let far = self.distance(id) > FAR;
        if far {
            self.bring(id);
        }
        far
    }

    /// Puts a node once more, or a jump to it, where the next instruction reaches it.
    fn bring(&mut self, id: Id) {
        let word = match self.graph.node(id) {
            Node::Return(value) => (RET_K, 0, 0, value),
            _ => (JA, 0, 0, u32::try_from(self.distance(id)).unwrap_or(u32::MAX)),
        };
        self.append(id, word);
    }
}
