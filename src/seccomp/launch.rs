//! Filters and the call that starts the command, which happens under them; filters that ask about calls.

use super::abi::{Abi, X32_BIT};
use super::action::Action;
use super::interpret::Call;
use super::program::{Instruction, InvalidProgram, JEQ_K, JSET_K, LD_W_ABS, Program, RET_K};

/// It fits: system call numbers are below 2^31.
#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "small positive numbers")]
const fn number(call: nix::libc::c_long) -> u32 {
    call as u32
}

const NATIVE: [u32; 2] = [number(nix::libc::SYS_execve), number(nix::libc::SYS_execveat)];
/// execve and execveat of the other interfaces that the kernel may offer (asm/unistd_32.h, syscall_64.tbl).
const FOREIGN: &[(Abi, [u32; 2])] = if cfg!(target_arch = "x86_64") {
    &[(Abi::X86, [11, 358]), (Abi::X32, [520 | X32_BIT, 545 | X32_BIT])]
} else if cfg!(target_arch = "aarch64") {
    &[(Abi::Arm, [11, 387])]
} else {
    &[]
};

/// Calls of an interface that make memory executable.
struct Mapping {
    abi: Abi,
    mmap: u32,
    personality: u32,
    mprotect: [u32; 2],
}

const NATIVE_MAPPING: Mapping = Mapping {
    abi: Abi::NATIVE,
    mmap: number(nix::libc::SYS_mmap),
    personality: number(nix::libc::SYS_personality),
    mprotect: [number(nix::libc::SYS_mprotect), number(nix::libc::SYS_pkey_mprotect)],
};
const MAPPING: &[Mapping] = if cfg!(target_arch = "x86_64") {
    &[
        NATIVE_MAPPING,
        Mapping { abi: Abi::X86, mmap: 192, personality: 136, mprotect: [125, 380] },
        Mapping {
            abi: Abi::X32,
            mmap: 9 | X32_BIT,
            personality: 135 | X32_BIT,
            mprotect: [10 | X32_BIT, 329 | X32_BIT],
        },
    ]
} else if cfg!(target_arch = "aarch64") {
    &[NATIVE_MAPPING, Mapping { abi: Abi::Arm, mmap: 192, personality: 136, mprotect: [125, 394] }]
} else {
    &[NATIVE_MAPPING]
};
/// The old mmap of i386, whose arguments lie in memory. No C library calls it.
const OLD_MMAP: Option<(Abi, u32)> = if cfg!(target_arch = "x86_64") { Some((Abi::X86, 90)) } else { None };

/// Offsets in struct seccomp_data (linux/seccomp.h).
const NR: u32 = 0;
const ARCH: u32 = 4;

/// Offset of an argument's low half; all supported machines are little-endian.
const fn low_half(argument: u32) -> u32 {
    16 + 8 * argument
}

/// What a gate asks its listener about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Each execve and execveat of the native interface; those of foreign ones are refused.
    pub launches: bool,
    /// Each mmap(2) of a file that makes it executable, and each mprotect(2) that does so with what is mapped.
    /// READ_IMPLIES_EXEC (personality(2)) is refused.
    pub mappings: bool,
}

impl Gate {
    /// Whether a call that a gate asked about is mprotect or pkey_mprotect: address, length, protection.
    pub fn is_protection(nr: i32) -> bool {
        MAPPING.iter().any(|mapping| mapping.mprotect.contains(&nr.cast_unsigned()))
    }
}

impl Program {
    /// Whether the program would refuse the very call that starts a command, and how.
    pub fn refuses_launch(&self) -> Option<Action> {
        let [execve, _] = NATIVE;
        let verdict = self.answer(execve, [0; 6]);
        (!verdict.lets_through()).then_some(verdict)
    }

    /// Whether more filters can be installed under this one by seccomp(2), SECCOMP_SET_MODE_FILTER.
    pub fn lets_seccomp(&self) -> bool {
        self.answer(number(nix::libc::SYS_seccomp), [1, 0, 0, 0, 0, 0]).lets_through()
    }

    /// The same by prctl(2), PR_SET_SECCOMP, SECCOMP_MODE_FILTER, which takes no flags.
    pub fn lets_prctl(&self) -> bool {
        self.answer(number(nix::libc::SYS_prctl), [22, 2, 0, 0, 0, 0]).lets_through()
    }

    /// Whether every call on keys and keyrings is refused (keyrings(7)).
    pub fn refuses_keys(&self) -> bool {
        let calls = [nix::libc::SYS_keyctl, nix::libc::SYS_add_key, nix::libc::SYS_request_key];
        // Of the operations those that read: none may be let through for its number.
        let operations = 0..64;
        operations
            .into_iter()
            .all(|first| calls.iter().all(|call| !self.answer(number(*call), [first; 6]).lets_through()))
    }

    /// To a native call.
    fn answer(&self, nr: u32, args: [u64; 6]) -> Action {
        self.run(&Call { nr, arch: Abi::NATIVE.audit_arch(), args, ..Call::default() })
    }

    /// The same program, but execve and execveat of the native interface are left to a [`Gate`].
    ///
    /// # Errors
    /// [`InvalidProgram::TooLong`].
    pub fn behind_gate(&self) -> Result<Self, InvalidProgram> {
        let mut instructions = for_calls(Abi::NATIVE, NATIVE, Action::Allow).to_vec();
        instructions.extend_from_slice(self.instructions());
        Self::new(instructions)
    }

    /// A filter that asks its listener.
    ///
    /// # Errors
    /// [`InvalidProgram`], never.
    pub fn gate(asks: Gate) -> Result<Self, InvalidProgram> {
        let mut instructions = Vec::new();
        if asks.launches {
            instructions.extend(for_calls(Abi::NATIVE, NATIVE, Action::Notify));
            for (abi, calls) in FOREIGN {
                instructions.extend(for_calls(*abi, *calls, Action::Errno(1)));
            }
        }
        if asks.mappings {
            for Mapping { abi, mmap, personality, mprotect } in MAPPING {
                instructions.extend(for_executable_mappings(*abi, *mmap));
                instructions.extend(for_executable_protection(*abi, *mprotect));
                instructions.extend(for_implied_execution(*abi, *personality));
            }
            instructions.extend(OLD_MMAP.iter().flat_map(|(abi, nr)| for_calls(*abi, [*nr; 2], Action::Errno(1))));
        }
        instructions.push(verdict(Action::Allow));
        Self::new(instructions)
    }

    /// Whether an instruction returns that a listener be asked.
    pub fn notifies(&self) -> Option<usize> {
        let notify = |instruction: &Instruction| {
            instruction.code == RET_K && Action::from_return(instruction.k) == Action::Notify
        };
        self.instructions().iter().position(notify)
    }
}

/// A verdict on two calls of an interface; goes on behind it for all others.
fn for_calls(abi: Abi, [one, other]: [u32; 2], action: Action) -> [Instruction; 6] {
    [load(ARCH), unless(abi.audit_arch(), 4), load(NR), when(one, 1), unless(other, 1), verdict(action)]
}

/// mmap(2).
const PROT_EXEC: u32 = 4;

/// Asks about mmap(2) with PROT_EXEC and without MAP_ANONYMOUS; goes on behind it for all others.
fn for_executable_mappings(abi: Abi, mmap: u32) -> [Instruction; 9] {
    const MAP_ANONYMOUS: u32 = 0x20;
    [
        load(ARCH),
        unless(abi.audit_arch(), 7),
        load(NR),
        unless(mmap, 5),
        load(low_half(2)),
        when_set(PROT_EXEC, 0, 3),
        load(low_half(3)),
        when_set(MAP_ANONYMOUS, 1, 0),
        verdict(Action::Notify),
    ]
}

/// Asks about mprotect(2) and pkey_mprotect(2) with PROT_EXEC.
fn for_executable_protection(abi: Abi, [plain, with_key]: [u32; 2]) -> [Instruction; 8] {
    [
        load(ARCH),
        unless(abi.audit_arch(), 6),
        load(NR),
        when(plain, 1),
        unless(with_key, 3),
        load(low_half(2)),
        when_set(PROT_EXEC, 0, 1),
        verdict(Action::Notify),
    ]
}

/// Refuses personality(2) with READ_IMPLIES_EXEC, but not the question (all bits set).
fn for_implied_execution(abi: Abi, personality: u32) -> [Instruction; 8] {
    const READ_IMPLIES_EXEC: u32 = 0x0040_0000;
    [
        load(ARCH),
        unless(abi.audit_arch(), 6),
        load(NR),
        unless(personality, 4),
        load(low_half(0)),
        when(u32::MAX, 2),
        when_set(READ_IMPLIES_EXEC, 0, 1),
        verdict(Action::Errno(1)),
    ]
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LD_W_ABS, jt: 0, jf: 0, k: offset }
}

/// Skips instructions when the accumulator is `k`.
fn when(k: u32, skip: u8) -> Instruction {
    Instruction { code: JEQ_K, jt: skip, jf: 0, k }
}

/// Skips instructions unless the accumulator is `k`.
fn unless(k: u32, skip: u8) -> Instruction {
    Instruction { code: JEQ_K, jt: 0, jf: skip, k }
}

/// Skips `yes` instructions when one of these bits is set in the accumulator, else `no`.
fn when_set(bits: u32, yes: u8, no: u8) -> Instruction {
    Instruction { code: JSET_K, jt: yes, jf: no, k: bits }
}

fn verdict(action: Action) -> Instruction {
    Instruction { code: RET_K, jt: 0, jf: 0, k: action.to_return() }
}
