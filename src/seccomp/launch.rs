//! Filters and the call that starts the command, which happens under them.

use super::abi::{Abi, X32_BIT};
use super::action::Action;
use super::interpret::Call;
use super::program::{Instruction, InvalidProgram, JEQ_K, LD_W_ABS, Program, RET_K};

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

/// Offsets in struct seccomp_data (linux/seccomp.h).
const NR: u32 = 0;
const ARCH: u32 = 4;

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

    /// The same program, but execve and execveat of the native interface are left to [`Program::launch_gate`].
    ///
    /// # Errors
    /// [`InvalidProgram::TooLong`].
    pub fn behind_gate(&self) -> Result<Self, InvalidProgram> {
        let mut instructions = for_calls(Abi::NATIVE, NATIVE, Action::Allow).to_vec();
        instructions.extend_from_slice(self.instructions());
        Self::new(instructions)
    }

    /// A filter that asks its listener about each execve and execveat, and refuses those of foreign interfaces.
    ///
    /// # Errors
    /// [`InvalidProgram`], never.
    pub fn launch_gate() -> Result<Self, InvalidProgram> {
        let mut instructions = for_calls(Abi::NATIVE, NATIVE, Action::Notify).to_vec();
        for (abi, calls) in FOREIGN {
            instructions.extend(for_calls(*abi, *calls, Action::Errno(1)));
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

fn verdict(action: Action) -> Instruction {
    Instruction { code: RET_K, jt: 0, jf: 0, k: action.to_return() }
}
