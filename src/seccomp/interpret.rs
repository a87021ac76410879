//! What a filter says about a call, found by running it as the kernel would. For checks before a run, and for tests.

use super::action::Action;
use super::program::{
    ADD, ALU, AND, DIV, Instruction, JA, JEQ, JGE, JGT, JMP, JSET, LD_IMM, LD_MEM, LD_W_ABS, LD_W_LEN, LDX_IMM,
    LDX_MEM, LDX_W_LEN, LSH, MEMORY, MUL, NEG, OR, Program, RET_A, RET_K, RSH, SOURCE_X, ST, STX, SUB, TAX, TXA, XOR,
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
        let mut machine = Machine { a: 0, x: 0, memory: [0; MEMORY], call };
        let mut at = 0;
        let mut count = 0;
        // Every jump leads forward and the last instruction returns, so this ends; a program that is not validated
        // would fall off its end, which kills as an unknown action does.
        while let Some(instruction) = self.instructions().get(at) {
            count += 1;
            match machine.step(*instruction) {
                Next::Return(value) => return (Action::from_return(value), count),
                Next::Skip(distance) => at += 1 + distance,
            }
        }
        (Action::KillProcess, count)
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
                    JMP => Next::Skip(usize::from(if self.holds(operation, operand) { jt } else { jf })),
                    ALU => self.calculate(operation, operand),
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

    fn holds(&self, operation: u16, operand: u32) -> bool {
        match operation {
            JEQ => self.a == operand,
            JGT => self.a > operand,
            JGE => self.a >= operand,
            JSET => self.a & operand != 0,
            _ => false,
        }
    }

    fn calculate(&mut self, operation: u16, operand: u32) -> Next {
        self.a = match operation {
            ADD => self.a.wrapping_add(operand),
            SUB => self.a.wrapping_sub(operand),
            MUL => self.a.wrapping_mul(operand),
            // The kernel ends the program with 0 when X is 0 (net/core/filter.c, bpf_convert_filter).
            DIV => match self.a.checked_div(operand) {
                Some(quotient) => quotient,
                None => return Next::Return(0),
            },
            OR => self.a | operand,
            AND => self.a & operand,
            XOR => self.a ^ operand,
            // The kernel's shifts take the operand modulo the word's size.
            LSH => self.a.wrapping_shl(operand),
            RSH => self.a.wrapping_shr(operand),
            NEG => self.a.wrapping_neg(),
            _ => return Next::Return(0x8000_0000),
        };
        Next::Skip(0)
    }
}
