//! What a filter says about a call, found by running it as the kernel would. For checks before a run, and for tests.

use std::fmt;

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

/// What happens to a call (seccomp(2), SECCOMP_RET_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process is killed with SIGSYS.
    KillProcess,
    /// The thread is killed.
    KillThread,
    /// SIGSYS, with this value.
    Trap(u16),
    /// The call fails with this errno.
    Errno(u16),
    /// A supervisor is asked.
    Notify,
    /// A tracer is told this value.
    Trace(u16),
    /// Allowed and logged.
    Log,
    /// Allowed.
    Allow,
}

impl Action {
    /// From a filter's return value; what the kernel does not know kills the process.
    pub fn from_return(value: u32) -> Self {
        let [data_low, data_high, ..] = value.to_le_bytes();
        let data = u16::from_le_bytes([data_low, data_high]);
        match value & 0xffff_0000 {
            0x0000_0000 => Action::KillThread,
            0x0003_0000 => Action::Trap(data),
            0x0005_0000 => Action::Errno(data),
            0x7fc0_0000 => Action::Notify,
            0x7ff0_0000 => Action::Trace(data),
            0x7ffc_0000 => Action::Log,
            0x7fff_0000 => Action::Allow,
            _ => Action::KillProcess,
        }
    }

    /// Whether the call is carried out without anybody being asked.
    pub fn lets_through(self) -> bool {
        matches!(self, Action::Allow | Action::Log)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::KillProcess => f.write_str("kill process"),
            Action::KillThread => f.write_str("kill thread"),
            Action::Trap(data) => write!(f, "trap {data}"),
            Action::Errno(errno) => write!(f, "errno {errno}"),
            Action::Notify => f.write_str("notify"),
            Action::Trace(data) => write!(f, "trace {data}"),
            Action::Log => f.write_str("log"),
            Action::Allow => f.write_str("allow"),
        }
    }
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

    /// Whether the program would refuse the very call that starts a command, and how.
    pub fn refuses_launch(&self) -> Option<Action> {
        let verdict = self.run(&Call { nr: EXECVE, arch: NATIVE_ARCH, ..Call::default() });
        (!verdict.lets_through()).then_some(verdict)
    }
}

/// Number of execve(2) here. It fits: system call numbers are below 2^31.
#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a small positive constant")]
const EXECVE: u32 = nix::libc::SYS_execve as u32;

/// AUDIT_ARCH_* of this machine (linux/audit.h: the ELF machine, 64-bit, little-endian).
pub const NATIVE_ARCH: u32 = 0xc000_0000
    | if cfg!(target_arch = "x86_64") {
        62
    } else if cfg!(target_arch = "aarch64") {
        183
    } else {
        // riscv64
        243
    };

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
