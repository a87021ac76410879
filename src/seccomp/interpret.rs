//! What a filter says about a call, found by running it as the kernel would. For checks before a run, and for tests.

use super::action::Action;
use super::program::{
    ADD, ALU, AND, DIV, Instruction, JA, JEQ, JGE, JGT, JMP, JSET, LD_IMM, LD_MEM, LD_W_ABS, LD_W_LEN, LDX_IMM,
    LDX_MEM, LDX_W_LEN, LSH, MEMORY, MUL, OR, Program, RET_A, RET_K, RSH, SOURCE_X, ST, STX, SUB, TAX, TXA, XOR,
};

/// A system call as a filter sees it (linux/seccomp.h, struct seccomp_data).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Call {
    /// The number.
    pub nr: u32,
    /// The architecture, AUDIT_ARCH_* of linux/audit.h.
    pub arch: u32,
    /// The address of the instruction.
    pub instruction_pointer: u64,
    /// The arguments.
    pub args: [u64; 6],
}

impl Program {
    /// The verdict on a call.
    pub fn run(&self, call: &Call) -> Action {
        self.run_counted(call).0
    }

    /// The verdict, and how many instructions it took.
    pub fn run_counted(&self, call: &Call) -> (Action, usize) {
        let mut count = 0;
        (self.follow(call, |_| count += 1), count)
    }

    /// The verdict; each instruction executed is told.
    pub fn follow(&self, call: &Call, mut executed: impl FnMut(usize)) -> Action {
        let mut machine = Machine { a: 0, x: 0, memory: [0; MEMORY], call };
        let mut at = 0;
        // Every jump leads forward and the last instruction returns, so this ends; a program that is not validated
        // would fall off its end, which kills as an unknown action does.
        while let Some(instruction) = self.instructions().get(at) {
            executed(at);
            match machine.step(*instruction) {
                Next::Return(value) => return Action::from_return(value),
                Next::Skip(distance) => at += 1 + distance,
            }
        }
        Action::KillProcess
    }
}

enum Next {
    Return(u32),
    Skip(usize),
}

struct Machine<'a> {
    a: u32,
    x: u32,
    memory: [u32; MEMORY],
    call: &'a Call,
}

impl Machine<'_> {
    fn step(&mut self, Instruction { code, jt, jf, k }: Instruction) -> Next {
        let word = usize::try_from(k).unwrap_or(MEMORY);
        let stored = self.memory.get(word).copied().unwrap_or(0);
        match code {
            LD_W_ABS => self.a = self.load(k),
            // sizeof(struct seccomp_data).
            LD_W_LEN => self.a = 64,
            LDX_W_LEN => self.x = 64,
            LD_IMM => self.a = k,
            LDX_IMM => self.x = k,
            LD_MEM => self.a = stored,
            LDX_MEM => self.x = stored,
            ST | STX => {
                if let Some(to) = self.memory.get_mut(word) {
                    *to = if code == ST { self.a } else { self.x };
                }
            }
            TAX => self.x = self.a,
            TXA => self.a = self.x,
            RET_K => return Next::Return(k),
            RET_A => return Next::Return(self.a),
            JA => return Next::Skip(word),
            _ => {
                let operand = if code & SOURCE_X == 0 { k } else { self.x };
                let operation = code & !(SOURCE_X | 0x07);
                return match code & 0x07 {
                    JMP => Next::Skip(usize::from(if compare(operation, self.a, operand) { jt } else { jf })),
                    // The kernel ends the program with 0 when X is 0 (net/core/filter.c, bpf_convert_filter).
                    ALU => match evaluate(operation, self.a, operand) {
                        Some(value) => {
                            self.a = value;
                            Next::Skip(0)
                        }
                        None => Next::Return(0),
                    },
                    _ => Next::Return(0x8000_0000),
                };
            }
        }
        Next::Skip(0)
    }

    fn load(&self, offset: u32) -> u32 {
        let halves = |value: u64| {
            let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
            [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
        };
        let call = self.call;
        let [ip_low, ip_high] = halves(call.instruction_pointer);
        let arguments = call.args.into_iter().flat_map(halves);
        let mut words = [call.nr, call.arch, ip_low, ip_high].into_iter().chain(arguments);
        let word = words.nth(usize::try_from(offset / 4).unwrap_or(usize::MAX));
        word.unwrap_or(0)
    }
}

/// Whether a comparison of two words holds.
pub(super) fn compare(operation: u16, a: u32, operand: u32) -> bool {
    match operation {
        JEQ => a == operand,
        JGT => a > operand,
        JGE => a >= operand,
        JSET => a & operand != 0,
        _ => false,
    }
}

/// The result of arithmetic; `None` for a division by zero.
pub(super) fn evaluate(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        ADD => a.wrapping_add(operand),
        SUB => a.wrapping_sub(operand),
        MUL => a.wrapping_mul(operand),
        DIV => return a.checked_div(operand),
        OR => a | operand,
        AND => a & operand,
        XOR => a ^ operand,
        // The kernel's shifts take the operand modulo the word's size.
        LSH => a.wrapping_shl(operand),
        RSH => a.wrapping_shr(operand),
        // NEG: the validator lets no other through.
        _ => a.wrapping_neg(),
    })
}
