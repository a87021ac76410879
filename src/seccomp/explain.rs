//! A program for people: each instruction with what it looks at, where it leads and which calls end there; and what
//! happens to every call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::abi::Abi;
use super::action::Action;
use super::analyze::{Verdicts, argument_at};
use super::oci::Operator;
use super::policy::{Condition, Policy};
use super::program::{
    ADD, ALU, AND, DIV, Instruction, JA, JEQ, JGE, JGT, JMP, JSET, LD_IMM, LD_MEM, LD_W_ABS, LD_W_LEN, LDX_IMM,
    LDX_MEM, LDX_W_LEN, LSH, MUL, OR, Program, RET_A, RET_K, RSH, SOURCE_X, ST, STX, SUB, TAX, TXA, XOR,
};

/// A program and what it does.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Its instructions.
    pub instructions: Vec<Line>,
    /// What happens to the calls of each interface that the kernel offers.
    pub interfaces: Vec<Interface>,
}

/// An instruction.
#[derive(Debug, Serialize)]
pub struct Line {
    /// From 0.
    pub index: usize,
    /// As in struct sock_filter.
    pub code: u16,
    /// As in struct sock_filter.
    pub jt: u8,
    /// As in struct sock_filter.
    pub jf: u8,
    /// As in struct sock_filter.
    pub k: u32,
    /// In words.
    pub text: String,
    /// For a return: some of the calls that can end here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What happens to the calls of one interface.
#[derive(Debug, Serialize)]
pub struct Interface {
    /// Which.
    #[serde(serialize_with = "shown")]
    pub abi: Abi,
    /// What happens to a number that is no call's, when that is one thing.
    #[serde(serialize_with = "shown_option")]
    pub unknown: Option<Action>,
    /// By name.
    pub calls: Vec<CallEntry>,
}

/// What happens to a call.
#[derive(Debug, Serialize)]
pub struct CallEntry {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub nr: u32,
    /// All that can happen.
    #[serde(serialize_with = "shown_list")]
    pub actions: Vec<Action>,
    /// When which: the policy's conditions where there is a policy, else the arguments looked at.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub when: String,
}

fn shown<S: serde::Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn shown_option<S: serde::Serializer>(value: &Option<Action>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}

fn shown_list<S: serde::Serializer>(value: &[Action], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(value.iter().map(ToString::to_string))
}

impl Explanation {
    /// Of a program on a kernel of this ABI, and of the policy that it was compiled from, if there is one.
    pub fn new(program: &Program, native: Abi, policy: Option<&Policy>) -> Self {
        let mut ends: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
        let mut interfaces = Vec::new();
        for abi in Abi::ALL.into_iter().filter(|abi| native.may_run(*abi)) {
            let mut calls = Vec::new();
            for (nr, name) in abi.calls() {
                let verdicts = program.verdicts(abi, nr);
                for index in verdicts.actions.values().flatten() {
                    ends.entry(*index).or_default().push(name);
                }
                let actions: Vec<Action> = verdicts.actions.keys().copied().collect();
                let mut when = String::new();
                if verdicts.constant().is_none() {
                    let conditions = policy.map(|policy| conditions(policy, name)).filter(|text| !text.is_empty());
                    when = conditions.unwrap_or_else(|| by_arguments(&verdicts));
                }
                calls.push(CallEntry { name, nr, actions, when });
            }
            let unknown = program.verdicts(abi, unused_number(abi)).constant();
            interfaces.push(Interface { abi, unknown, calls });
        }
        let mut instructions = Vec::new();
        for ((index, instruction), state) in program.instructions().iter().enumerate().zip(registers(program)) {
            let Instruction { code, jt, jf, k } = *instruction;
            let reason = ends.get(&index).map(|names| some_of(names)).unwrap_or_default();
            instructions.push(Line { index, code, jt, jf, k, text: text(index, instruction, &state), reason });
        }
        Self { instructions, interfaces }
    }
}

/// What a verdict depends on, where only the program is known.
fn by_arguments(verdicts: &Verdicts) -> String {
    let arguments: Vec<String> = verdicts.arguments.iter().map(|argument| format!("arg{argument}")).collect();
    if arguments.is_empty() { "by what it computes".to_owned() } else { format!("by {}", arguments.join(", ")) }
}

/// A number of this interface that no call has.
fn unused_number(abi: Abi) -> u32 {
    let bit = if abi == Abi::X32 { super::abi::X32_BIT } else { 0 };
    bit | 0x2fff
}

/// The first few, and how many more.
fn some_of(names: &[&str]) -> String {
    let names: BTreeSet<&str> = names.iter().copied().collect();
    let first: Vec<&str> = names.iter().take(6).copied().collect();
    match names.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// The rules about a call, as a sentence.
fn conditions(policy: &Policy, name: &str) -> String {
    let mut text = String::new();
    for rule in policy.rules.iter().filter(|rule| rule.names.iter().any(|named| named == name)) {
        if rule.conditions.iter().all(|condition| condition.always_holds(u64::MAX)) {
            return format!("{text}otherwise {}", rule.action);
        }
        let conditions: Vec<String> = rule.conditions.iter().map(ToString::to_string).collect();
        text.push_str(&format!("{} if {}; ", rule.action, conditions.join(" and ")));
    }
    if text.is_empty() { text } else { format!("{text}otherwise {}", policy.default) }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Condition { argument, operator, value, mask } = self;
        let sign = match operator {
            Operator::NotEqual => "!=",
            Operator::Less => "<",
            Operator::LessOrEqual => "<=",
            Operator::Equal => "==",
            Operator::GreaterOrEqual => ">=",
            Operator::Greater => ">",
            Operator::MaskedEqual => return write!(f, "arg{argument} & {mask:#x} == {value:#x}"),
        };
        write!(f, "arg{argument} {sign} {value:#x}")
    }
}

/// What the accumulator holds before an instruction, as far as it is the same on every way there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Registers {
    a: Holds,
    abi: Option<Abi>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Holds {
    Unreached,
    Data(u32),
    Masked(u32, u32),
    Other,
}

impl Registers {
    fn join(&mut self, other: &Registers) {
        if self.a == Holds::Unreached {
            *self = other.clone();
        } else {
            if self.a != other.a {
                self.a = Holds::Other;
            }
            self.abi = self.abi.filter(|abi| Some(*abi) == other.abi);
        }
    }
}

fn registers(program: &Program) -> Vec<Registers> {
    let unreached = Registers { a: Holds::Unreached, abi: None };
    let mut states = vec![unreached; program.instructions().len()];
    if let Some(first) = states.first_mut() {
        first.a = Holds::Other;
    }
    for (index, instruction) in program.instructions().iter().enumerate() {
        let Some(mut state) = states.get(index).cloned() else { continue };
        let mut lead = |distance: usize, state: &Registers| {
            if let Some(there) = states.get_mut(index + 1 + distance) {
                there.join(state);
            }
        };
        let Instruction { code, jt, jf, k } = *instruction;
        match code {
            RET_K | RET_A => {}
            JA => lead(usize::try_from(k).unwrap_or(usize::MAX), &state),
            _ if code & 0x07 == JMP => {
                lead(jf.into(), &state);
                if code == JMP | JEQ && state.a == Holds::Data(4) {
                    state.abi = Abi::of(k, 0);
                }
                lead(jt.into(), &state);
            }
            _ => {
                state.a = match (code, &state.a) {
                    (LD_W_ABS, _) => Holds::Data(k),
                    (code, Holds::Data(offset)) if code == ALU | AND => Holds::Masked(*offset, k),
                    (LDX_W_LEN | LDX_IMM | LDX_MEM | ST | STX | TAX, held) => held.clone(),
                    _ => Holds::Other,
                };
                lead(0, &state);
            }
        }
    }
    states
}

fn word(offset: u32) -> String {
    match offset {
        0 => "nr".to_owned(),
        4 => "arch".to_owned(),
        8 => "ip.low".to_owned(),
        12 => "ip.high".to_owned(),
        _ => {
            let half = if offset.is_multiple_of(8) { "low" } else { "high" };
            argument_at(offset).map_or_else(|| format!("data[{offset}]"), |argument| format!("arg{argument}.{half}"))
        }
    }
}

/// A constant, and what it stands for where it is compared.
fn constant(k: u32, state: &Registers) -> String {
    match state.a {
        Holds::Data(4) => match Abi::of(k, 0) {
            Some(abi) => format!("{k:#x} ({abi})"),
            None => format!("{k:#x}"),
        },
        Holds::Data(0) => {
            let name = state.abi.and_then(|abi| Abi::of(abi.audit_arch(), k)).and_then(|abi| abi.name(k));
            let number = if k < 0x1_0000 { k.to_string() } else { format!("{k:#x}") };
            name.map_or(number.clone(), |name| format!("{number} ({name})"))
        }
        _ => format!("{k:#x}"),
    }
}

fn text(index: usize, Instruction { code, jt, jf, k }: &Instruction, state: &Registers) -> String {
    let held = match &state.a {
        Holds::Unreached => return format!("never reached: {code:#06x} {jt} {jf} {k:#x}"),
        Holds::Data(offset) => word(*offset),
        Holds::Masked(offset, mask) => format!("({} & {mask:#x})", word(*offset)),
        Holds::Other => "A".to_owned(),
    };
    let to = |distance: u32| index + 1 + usize::try_from(distance).unwrap_or(0);
    let by_x = code & SOURCE_X != 0;
    let operand = if by_x { "X".to_owned() } else { constant(*k, state) };
    match *code {
        LD_W_ABS => format!("load {}", word(*k)),
        LD_W_LEN => "load 64 (size of the data)".to_owned(),
        LDX_W_LEN => "X = 64 (size of the data)".to_owned(),
        LD_IMM => format!("load {k:#x}"),
        LDX_IMM => format!("X = {k:#x}"),
        LD_MEM => format!("load M[{k}]"),
        LDX_MEM => format!("X = M[{k}]"),
        ST => format!("M[{k}] = A"),
        STX => format!("M[{k}] = X"),
        TAX => "X = A".to_owned(),
        TXA => "A = X".to_owned(),
        RET_K => format!("return {}", Action::from_return(*k)),
        RET_A => "return A".to_owned(),
        JA => format!("goto {}", to(*k)),
        _ => {
            let operation = code & !(SOURCE_X | 0x07);
            if code & 0x07 == JMP {
                let sign = match operation {
                    JEQ => "==",
                    JGT => ">",
                    JGE => ">=",
                    JSET => "has bits",
                    _ => "?",
                };
                let (holds, fails) = (to(u32::from(*jt)), to(u32::from(*jf)));
                return format!("if {held} {sign} {operand} goto {holds} else {fails}");
            }
            let sign = match operation {
                ADD => "+",
                SUB => "-",
                MUL => "*",
                DIV => "/",
                AND => "&",
                OR => "|",
                XOR => "^",
                LSH => "<<",
                RSH => ">>",
                _ => return "A = -A".to_owned(),
            };
            format!("A = {held} {sign} {}", if by_x { "X".to_owned() } else { format!("{k:#x}") })
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.instructions {
            write!(f, "{:>5}  {}", line.index, line.text)?;
            if !line.reason.is_empty() {
                write!(f, "  <- {}", line.reason)?;
            }
            writeln!(f)?;
        }
        for interface in &self.interfaces {
            writeln!(f, "\n{interface}")?;
        }
        Ok(())
    }
}

/// Columns of a table of names.
const WIDTH: usize = 100;

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.abi)?;
        let mut constant: BTreeMap<Action, Vec<&str>> = BTreeMap::new();
        let mut conditional = Vec::new();
        for call in &self.calls {
            match call.actions.as_slice() {
                [action] if call.when.is_empty() => constant.entry(*action).or_default().push(call.name),
                _ => conditional.push(call),
            }
        }
        if let ([(action, _)], true) = (constant.iter().collect::<Vec<_>>().as_slice(), conditional.is_empty()) {
            return write!(f, "  all calls: {action}");
        }
        for (action, names) in constant.iter().rev() {
            writeln!(f, "  {action} ({})", names.len())?;
            let mut line = String::new();
            for name in names {
                if !line.is_empty() && line.len() + name.len() >= WIDTH {
                    writeln!(f, "    {line}")?;
                    line.clear();
                }
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(name);
            }
            writeln!(f, "    {line}")?;
        }
        if !conditional.is_empty() {
            writeln!(f, "  by arguments ({})", conditional.len())?;
        }
        for CallEntry { name, actions, when, .. } in conditional {
            let actions: Vec<String> = actions.iter().map(ToString::to_string).collect();
            let what = if when.starts_with("by ") { format!("{}, {when}", actions.join(" or ")) } else { when.clone() };
            writeln!(f, "    {name}: {what}")?;
        }
        match self.unknown {
            Some(action) => write!(f, "  numbers without a name: {action}"),
            None => write!(f, "  numbers without a name: it depends"),
        }
    }
}
