//! The system call interfaces of the kernel: their numbers, and which of them one kernel offers at once. Shared with
//! the build script.

use std::fmt;
use std::str::FromStr;

use super::calls;

/// One name in the table of calls, and its numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// x86-64, x86, arm, aarch64, riscv64; [`NONE`] where there is no such call.
    pub(super) numbers: [u16; COLUMNS],
}

pub(super) const COLUMNS: usize = 5;
pub(super) const NONE: u16 = u16::MAX;

/// A system call interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Abi {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86: i386.
    X86,
    /// 32-bit pointers on x86-64; its numbers carry a bit.
    X32,
    /// 32-bit ARM, EABI.
    Arm,
    /// 64-bit ARM.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
}

/// asm/unistd.h, __X32_SYSCALL_BIT.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A name that is none of an ABI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown architecture {0:?}: there are x86_64, x86, x32, arm, aarch64, riscv64")]
pub struct UnknownAbi(pub String);

impl Abi {
    /// All of them.
    pub const ALL: [Abi; 6] = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Arm, Abi::Aarch64, Abi::Riscv64];

    /// This program's own.
    pub const NATIVE: Abi = if cfg!(target_arch = "x86_64") {
        Abi::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Abi::Aarch64
    } else {
        Abi::Riscv64
    };

    /// AUDIT_ARCH_* (linux/audit.h: the ELF machine, with bits for 64-bit and little-endian). x32 shares x86-64's.
    pub fn audit_arch(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Arm => 0x4000_0028,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Riscv64 => 0xc000_00f3,
        }
    }

    /// The ABI with this AUDIT_ARCH_* and number.
    pub fn of(audit_arch: u32, nr: u32) -> Option<Self> {
        let is_x32 = nr & X32_BIT != 0;
        Self::ALL
            .into_iter()
            .find(|abi| abi.audit_arch() == audit_arch && (*abi == Abi::X32 || !is_x32 || !abi.has_x32()))
    }

    fn has_x32(self) -> bool {
        self == Abi::X86_64
    }

    /// Whether a kernel of this ABI may run programs of the other one.
    pub fn may_run(self, other: Abi) -> bool {
        match self {
            Abi::X86_64 => matches!(other, Abi::X86_64 | Abi::X86 | Abi::X32),
            Abi::Aarch64 => matches!(other, Abi::Aarch64 | Abi::Arm),
            _ => self == other,
        }
    }

    /// Arguments are 64 bits wide; otherwise a filter looks at the low word (libseccomp does the same for x32).
    pub fn is_wide(self) -> bool {
        matches!(self, Abi::X86_64 | Abi::Aarch64 | Abi::Riscv64)
    }

    /// Go's name (GOARCH), which `includes` and `excludes` use. x32 has none; policies write it all the same.
    pub fn go_name(self) -> &'static str {
        match self {
            Abi::X86_64 => "amd64",
            Abi::X86 => "x86",
            Abi::X32 => "x32",
            Abi::Arm => "arm",
            Abi::Aarch64 => "arm64",
            Abi::Riscv64 => "riscv64",
        }
    }

    /// The OCI runtime specification's name.
    pub fn oci_name(self) -> &'static str {
        match self {
            Abi::X86_64 => "SCMP_ARCH_X86_64",
            Abi::X86 => "SCMP_ARCH_X86",
            Abi::X32 => "SCMP_ARCH_X32",
            Abi::Arm => "SCMP_ARCH_ARM",
            Abi::Aarch64 => "SCMP_ARCH_AARCH64",
            Abi::Riscv64 => "SCMP_ARCH_RISCV64",
        }
    }

    /// The number of a call.
    pub fn number(self, name: &str) -> Option<u32> {
        let rows = calls::rows();
        let row = rows.binary_search_by_key(&name, |row| row.name).ok().and_then(|index| rows.get(index));
        row.and_then(|row| self.number_in(row)).or_else(|| match self {
            Abi::Arm => ARM_PRIVATE.iter().find(|(_, private)| *private == name).map(|(number, _)| *number),
            _ => None,
        })
    }

    /// The name of a call.
    pub fn name(self, number: u32) -> Option<&'static str> {
        self.calls().find(|(known, _)| *known == number).map(|(_, name)| name)
    }

    /// All calls: numbers and names, sorted by name.
    pub fn calls(self) -> impl Iterator<Item = (u32, &'static str)> {
        let private: &[_] = if self == Abi::Arm { &ARM_PRIVATE } else { &[] };
        calls::rows()
            .iter()
            .filter_map(move |row| self.number_in(row).map(|number| (number, row.name)))
            .chain(private.iter().copied())
    }

    fn number_in(self, row: &Row) -> Option<u32> {
        let column = match self {
            Abi::X86_64 | Abi::X32 => 0,
            Abi::X86 => 1,
            Abi::Arm => 2,
            Abi::Aarch64 => 3,
            Abi::Riscv64 => 4,
        };
        if self == Abi::X32 {
            if let Ok(at) = X32_OWN.binary_search_by_key(&row.name, |(name, _)| name) {
                return X32_OWN.get(at).map(|(_, number)| number | X32_BIT);
            }
            if X32_LACKS.contains(&row.name) {
                return None;
            }
        }
        let number = row.numbers.get(column).copied().filter(|number| *number != NONE)?;
        Some(u32::from(number) | if self == Abi::X32 { X32_BIT } else { 0 })
    }
}

/// Whether any architecture has a call of this name.
pub(super) fn is_known(name: &str) -> bool {
    calls::rows().binary_search_by_key(&name, |row| row.name).is_ok() || Abi::Arm.number(name).is_some()
}

const _: () = assert!(COLUMNS == 5, "a column for each table in number_in");

/// arch/arm/include/uapi/asm/unistd.h: calls outside the table.
const ARM_PRIVATE: [(u32, &str); 6] = [
    (0xf_0001, "breakpoint"),
    (0xf_0002, "cacheflush"),
    (0xf_0003, "usr26"),
    (0xf_0004, "usr32"),
    (0xf_0005, "set_tls"),
    (0xf_0006, "get_tls"),
];

/// arch/x86/entry/syscalls/syscall_64.tbl, entries of ABI `x32`, by name.
const X32_OWN: [(&str, u32); 36] = [
    ("execve", 520),
    ("execveat", 545),
    ("get_robust_list", 531),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("ioctl", 514),
    ("kexec_load", 528),
    ("move_pages", 533),
    ("mq_notify", 527),
    ("preadv", 534),
    ("preadv2", 546),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("ptrace", 521),
    ("pwritev", 535),
    ("pwritev2", 547),
    ("readv", 515),
    ("recvfrom", 517),
    ("recvmmsg", 537),
    ("recvmsg", 519),
    ("rt_sigaction", 512),
    ("rt_sigpending", 522),
    ("rt_sigqueueinfo", 524),
    ("rt_sigreturn", 513),
    ("rt_sigtimedwait", 523),
    ("rt_tgsigqueueinfo", 536),
    ("sendmmsg", 538),
    ("sendmsg", 518),
    ("set_robust_list", 530),
    ("setsockopt", 541),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("vmsplice", 532),
    ("waitid", 529),
    ("writev", 516),
];

/// The same table's entries of ABI `64` that x32 has no counterpart of.
const X32_LACKS: [&str; 12] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "map_shadow_stack",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uselib",
    "vserver",
];

impl FromStr for Abi {
    type Err = UnknownAbi;

    /// The kernel's, Go's, Debian's and the OCI's names.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = |abi: &Abi| abi.to_string() == name || abi.oci_name() == name || abi.go_name() == name;
        match name {
            "i386" | "i686" | "386" => Ok(Abi::X86),
            _ => Self::ALL.into_iter().find(known).ok_or_else(|| UnknownAbi(name.to_owned())),
        }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Abi::X86_64 => "x86_64",
            Abi::X86 => "x86",
            Abi::X32 => "x32",
            Abi::Arm => "arm",
            Abi::Aarch64 => "aarch64",
            Abi::Riscv64 => "riscv64",
        })
    }
}
