//! A seccomp filter as the kernel takes it: classic BPF, validated before it goes anywhere, by the kernel's own rules.

use std::borrow::Cow;

/// One instruction (linux/filter.h, struct sock_filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a condition holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Bytes of an instruction.
const SIZE: usize = 8;
/// linux/bpf_common.h, BPF_MAXINSNS.
const MOST: usize = 4096;
/// linux/filter.h, BPF_MEMWORDS: words of scratch memory.
pub(super) const MEMORY: usize = 16;
/// Bytes of struct seccomp_data (linux/seccomp.h).
const DATA: u32 = 64;

/// Why a program would be refused by the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProgram {
    /// No instruction at all.
    #[error("it is empty")]
    Empty,
    /// Not whole instructions.
    #[error("{0} bytes are not a whole number of instructions of 8 bytes")]
    Length(usize),
    /// seccomp(2) takes no more.
    #[error("it has {0} instructions; the kernel takes at most 4096")]
    TooLong(usize),
    /// The kernel's checker stops at an instruction.
    #[error("instruction {index}: {reason}")]
    Instruction {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        reason: Fault,
    },
}

/// What is wrong with an instruction (net/core/filter.c, bpf_check_classic; kernel/seccomp.c, seccomp_check_filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not an operation of classic BPF, or none that seccomp allows.
    #[error("operation {0:#06x} is unknown, or not allowed in a seccomp filter")]
    Operation(u16),
    /// A load from outside struct seccomp_data, or not at a word.
    #[error("load at offset {0} is not a word of struct seccomp_data (0 to 60, multiples of 4)")]
    Offset(u32),
    /// A jump to behind the last instruction.
    #[error("jump leads behind the end of the program")]
    Jump,
    /// The kernel would divide by zero.
    #[error("division by zero")]
    Division,
    /// More than a word has.
    #[error("shift by {0} bits, a word has 32")]
    Shift(u32),
    /// There are 16 words.
    #[error("scratch word {0} does not exist, there are 0 to 15")]
    Memory(u32),
    /// On some path nothing was stored there before.
    #[error("scratch word {0} is loaded but was not stored on every way here")]
    Unset(u32),
    /// The program could run off its end.
    #[error("the last instruction does not return")]
    NoReturn,
}

/// A validated program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Cow<'static, [Instruction]>);

impl Program {
    /// From a raw file: an array of struct sock_filter in this machine's byte order.
    ///
    /// # Errors
    /// [`InvalidProgram`] for everything that the kernel would refuse, and for what its interface would cut short.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidProgram> {
        let (words, rest) = bytes.as_chunks::<SIZE>();
        if !rest.is_empty() {
            return Err(InvalidProgram::Length(bytes.len()));
        }
        Self::new(words.iter().map(|word| Instruction::from_bytes(*word)).collect())
    }

    /// From instructions.
    ///
    /// # Errors
    /// As [`Program::from_bytes`].
    pub fn new(instructions: Vec<Instruction>) -> Result<Self, InvalidProgram> {
        check(&instructions)?;
        Ok(Self(Cow::Owned(instructions)))
    }

    /// A program that the build made, and that a test checks.
    pub(super) const fn built_in(instructions: &'static [Instruction]) -> Self {
        Self(Cow::Borrowed(instructions))
    }

    /// The instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// As a raw file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|instruction| instruction.to_bytes()).collect()
    }
}

impl Instruction {
    fn from_bytes([a, b, jt, jf, k @ ..]: [u8; SIZE]) -> Self {
        Self { code: u16::from_ne_bytes([a, b]), jt, jf, k: u32::from_ne_bytes(k) }
    }

    fn to_bytes(self) -> [u8; SIZE] {
        let [a, b] = self.code.to_ne_bytes();
        let [c, d, e, f] = self.k.to_ne_bytes();
        [a, b, self.jt, self.jf, c, d, e, f]
    }
}

// linux/bpf_common.h and linux/filter.h, whole operations as seccomp_check_filter lists them.
pub(super) const LD_W_ABS: u16 = 0x20;
pub(super) const LD_W_LEN: u16 = 0x80;
pub(super) const LDX_W_LEN: u16 = 0x81;
pub(super) const LD_IMM: u16 = 0x00;
pub(super) const LDX_IMM: u16 = 0x01;
pub(super) const LD_MEM: u16 = 0x60;
pub(super) const LDX_MEM: u16 = 0x61;
pub(super) const ST: u16 = 0x02;
pub(super) const STX: u16 = 0x03;
pub(super) const TAX: u16 = 0x07;
pub(super) const TXA: u16 = 0x87;
pub(super) const RET_K: u16 = 0x06;
pub(super) const RET_A: u16 = 0x16;
pub(super) const JA: u16 = 0x05;
/// Class of arithmetic operations; the operation is in bits 4–7, the operand's source in bit 3.
pub(super) const ALU: u16 = 0x04;
/// Class of jumps; as for [`ALU`].
pub(super) const JMP: u16 = 0x05;
/// The operand is register X instead of `k`.
pub(super) const SOURCE_X: u16 = 0x08;
pub(super) const ADD: u16 = 0x00;
pub(super) const SUB: u16 = 0x10;
pub(super) const MUL: u16 = 0x20;
pub(super) const DIV: u16 = 0x30;
pub(super) const OR: u16 = 0x40;
pub(super) const AND: u16 = 0x50;
pub(super) const LSH: u16 = 0x60;
pub(super) const RSH: u16 = 0x70;
pub(super) const NEG: u16 = 0x80;
pub(super) const XOR: u16 = 0xa0;
/// The whole operation with a constant.
pub(super) const JEQ_K: u16 = JMP | JEQ;
pub(super) const JSET_K: u16 = JMP | JSET;
pub(super) const JEQ: u16 = 0x10;
pub(super) const JGT: u16 = 0x20;
pub(super) const JGE: u16 = 0x30;
pub(super) const JSET: u16 = 0x40;

fn check(program: &[Instruction]) -> Result<(), InvalidProgram> {
    if program.is_empty() {
        return Err(InvalidProgram::Empty);
    }
    if program.len() > MOST {
        return Err(InvalidProgram::TooLong(program.len()));
    }
    for (index, instruction) in program.iter().enumerate() {
        let behind = program.len() - index - 1;
        check_one(*instruction, behind).map_err(|reason| InvalidProgram::Instruction { index, reason })?;
    }
    check_memory(program)
}

/// `behind`: how many instructions follow.
fn check_one(Instruction { code, jt, jf, k }: Instruction, behind: usize) -> Result<(), Fault> {
    let is_inside = |distance: u32| usize::try_from(distance).is_ok_and(|distance| distance < behind);
    match code {
        LD_W_ABS if k >= DATA || k % 4 != 0 => Err(Fault::Offset(k)),
        LD_MEM | LDX_MEM | ST | STX if !usize::try_from(k).is_ok_and(|word| word < MEMORY) => Err(Fault::Memory(k)),
        JA if !is_inside(k) => Err(Fault::Jump),
        RET_K | RET_A => Ok(()),
        LD_W_ABS | LD_W_LEN | LDX_W_LEN | LD_IMM | LDX_IMM | LD_MEM | LDX_MEM | ST | STX | TAX | TXA | JA => Ok(()),
        _ => {
            let operation = code & !(SOURCE_X | 0x07);
            let by_constant = code & SOURCE_X == 0;
            match (code & 0x07, operation) {
                (JMP, JEQ | JGT | JGE | JSET) if !is_inside(jt.into()) || !is_inside(jf.into()) => Err(Fault::Jump),
                (ALU, DIV) if by_constant && k == 0 => Err(Fault::Division),
                (ALU, LSH | RSH) if by_constant && k >= 32 => Err(Fault::Shift(k)),
                (JMP, JEQ | JGT | JGE | JSET) | (ALU, ADD | SUB | MUL | DIV | OR | AND | LSH | RSH | XOR) => Ok(()),
                (ALU, NEG) if by_constant => Ok(()),
                _ => Err(Fault::Operation(code)),
            }
        }
    }?;
    let returns = matches!(code, RET_K | RET_A);
    if behind == 0 && !returns { Err(Fault::NoReturn) } else { Ok(()) }
}

/// Every scratch word is stored on every way to its load (net/core/filter.c, check_load_and_stores). All jumps lead
/// forward, so one pass sees every way.
fn check_memory(program: &[Instruction]) -> Result<(), InvalidProgram> {
    // Words that are stored on all ways that reach an instruction; the kernel keeps them in 16 bits as well.
    let mut reaching = vec![u16::MAX; program.len()];
    let mut stored = 0_u16;
    for (index, &Instruction { code, jt, jf, k }) in program.iter().enumerate() {
        stored &= reaching.get(index).copied().unwrap_or(0);
        let mut jump = |distance: usize, stored: u16| {
            if let Some(there) = reaching.get_mut(index + 1 + distance) {
                *there &= stored;
            }
        };
        match code {
            ST | STX => stored |= 1 << k,
            LD_MEM | LDX_MEM if stored & (1 << k) == 0 => {
                return Err(InvalidProgram::Instruction { index, reason: Fault::Unset(k) });
            }
            JA => {
                jump(usize::try_from(k).unwrap_or(usize::MAX), stored);
                stored = u16::MAX;
            }
            _ if code & 0x07 == JMP => {
                jump(jt.into(), stored);
                jump(jf.into(), stored);
                stored = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(())
}
