//! The validator against the kernel's rules, the presets against what they promise.

use proptest::prelude::*;

use super::*;

const NATIVE: u32 = match Abi::NATIVE {
    Abi::X86_64 => 0xc000_003e,
    Abi::Aarch64 => 0xc000_00b7,
    _ => 0xc000_00f3,
};
const RET_ALLOW: (u16, u8, u8, u32) = (0x06, 0, 0, 0x7fff_0000);

fn program(words: &[(u16, u8, u8, u32)]) -> Result<Program, InvalidProgram> {
    Program::new(words.iter().map(|&(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect())
}

fn fault(words: &[(u16, u8, u8, u32)]) -> (usize, Fault) {
    match program(words) {
        Err(InvalidProgram::Instruction { index, reason }) => (index, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sizes_that_the_kernel_would_refuse_or_cut_short_are_refused() {
    assert_eq!(Program::from_bytes(&[]), Err(InvalidProgram::Empty));
    assert_eq!(Program::from_bytes(&[0; 7]), Err(InvalidProgram::Length(7)));
    assert_eq!(Program::from_bytes(&[6; 4097 * 8]), Err(InvalidProgram::TooLong(4097)));
    assert_eq!(Program::from_bytes(&[6; 65537 * 8]), Err(InvalidProgram::TooLong(65537)));
}

#[test]
fn each_fault_is_named_with_its_instruction() {
    assert_eq!(fault(&[RET_ALLOW, (0x00, 0, 0, 0)]), (1, Fault::NoReturn));
    assert_eq!(fault(&[(0x20, 0, 0, 64), RET_ALLOW]), (0, Fault::Offset(64)));
    assert_eq!(fault(&[(0x20, 0, 0, 2), RET_ALLOW]), (0, Fault::Offset(2)));
    assert_eq!(fault(&[(0x15, 1, 0, 0), RET_ALLOW]), (0, Fault::Jump));
    assert_eq!(fault(&[(0x05, 0, 0, u32::MAX), RET_ALLOW]), (0, Fault::Jump));
    assert_eq!(fault(&[(0x34, 0, 0, 0), RET_ALLOW]), (0, Fault::Division));
    assert_eq!(fault(&[(0x64, 0, 0, 32), RET_ALLOW]), (0, Fault::Shift(32)));
    assert_eq!(fault(&[(0x02, 0, 0, 16), RET_ALLOW]), (0, Fault::Memory(16)));
    assert_eq!(fault(&[(0x60, 0, 0, 3), RET_ALLOW]), (0, Fault::Unset(3)));
    // Modulo, halfword loads and indirect loads are classic BPF, but not seccomp's.
    for code in [0x94, 0x28, 0x40, 0xb1, 0xffff, 0x0e] {
        assert_eq!(fault(&[(code, 0, 0, 1), RET_ALLOW]), (0, Fault::Operation(code)));
    }
    // Stored on one way only.
    let one_way = [(0x20, 0, 0, 0), (0x15, 1, 0, 7), (0x02, 0, 0, 0), (0x60, 0, 0, 0), RET_ALLOW];
    assert_eq!(fault(&one_way), (3, Fault::Unset(0)));
}

#[test]
fn scratch_memory_and_arithmetic_work_as_in_the_kernel() {
    let doubled = [
        (0x20, 0, 0, 0),
        (0x02, 0, 0, 15),
        (0x61, 0, 0, 15),
        (0x0c, 0, 0, 0),
        (0x44, 0, 0, 0x0005_0000),
        (0x16, 0, 0, 0),
    ];
    let verdict = program(&doubled).unwrap().run(&Call { nr: 19, ..Call::default() });
    assert_eq!(verdict, Action::Errno(38));
    // Division by a zero in X ends the program with 0, which kills the thread.
    let by_zero = [(0x01, 0, 0, 0), (0x3c, 0, 0, 0), RET_ALLOW];
    assert_eq!(program(&by_zero).unwrap().run(&Call::default()), Action::KillThread);
}

#[test]
fn a_program_survives_the_way_through_a_file() {
    let default = Preset::Default.program().unwrap();
    assert_eq!(Program::from_bytes(&default.to_bytes()).unwrap(), default);
}

#[test]
fn a_filter_that_refuses_execve_is_told() {
    assert_eq!(program(&[(0x06, 0, 0, 0x0005_0001)]).unwrap().refuses_launch(), Some(Action::Errno(1)));
    assert_eq!(program(&[RET_ALLOW]).unwrap().refuses_launch(), None);
    assert_eq!(Preset::Default.program().unwrap().refuses_launch(), None);
}

/// Linux 5.11 answers from a bitmap what a filter decides by architecture and number alone.
#[test]
fn constant_verdicts_look_at_nothing_but_architecture_and_number() {
    for preset in [Preset::Default, Preset::Strict, Preset::Readonly] {
        let program = preset.program().unwrap();
        for (nr, name) in Abi::NATIVE.calls() {
            let verdicts = program.verdicts(Abi::NATIVE, nr);
            assert!(verdicts.constant().is_none() || verdicts.arguments.is_empty(), "{preset}: {name}");
        }
    }
}

fn verdict(name: &str, args: [u64; 6]) -> Action {
    let nr = Abi::NATIVE.number(name).unwrap();
    Preset::Default.program().unwrap().run(&Call { nr, arch: NATIVE, args, ..Call::default() })
}

#[test]
fn the_default_preset_refuses_what_it_promises_to_refuse() {
    const EPERM: Action = Action::Errno(1);
    const ENOSYS: Action = Action::Errno(38);
    for call in [
        "mount",
        "umount2",
        "pivot_root",
        "open_tree",
        "move_mount",
        "fsopen",
        "fsmount",
        "mount_setattr",
        "unshare",
        "setns",
        "keyctl",
        "add_key",
        "request_key",
        "bpf",
        "io_uring_setup",
        "io_uring_enter",
        "perf_event_open",
        "userfaultfd",
        "kexec_load",
        "init_module",
        "reboot",
        "chroot",
        "syslog",
        "open_by_handle_at",
    ] {
        assert_eq!(verdict(call, [0; 6]), EPERM, "{call}");
    }
    assert_eq!(verdict("clone3", [0; 6]), ENOSYS);
    for flag in [0x0002_0000_u64, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(verdict("clone", [flag | 17, 0, 0, 0, 0, 0]), EPERM, "{flag:#x}");
    }
    for command in [0x5412_u64, 0x541c, 0x1_0000_5412, 0xffff_ffff_0000_541c] {
        assert_eq!(verdict("ioctl", [0, command, 0, 0, 0, 0]), EPERM, "{command:#x}");
    }
    for family in [17_u64, 38, 40, 31, 44] {
        assert_eq!(verdict("socket", [family, 1, 0, 0, 0, 0]), Action::Errno(97), "{family}");
    }
    assert_eq!(verdict("personality", [0x0004_0000, 0, 0, 0, 0, 0]), EPERM);
    let default = Preset::Default.program().unwrap();
    let kill = |nr, arch| assert_eq!(default.run(&Call { nr, arch, ..Call::default() }), Action::KillProcess);
    kill(0, 0x4000_0003);
    if Abi::NATIVE == Abi::X86_64 {
        kill(0x4000_0000, NATIVE);
        kill(0x4000_0000 | 165, NATIVE);
    }
    // Newer than the table.
    assert_eq!(default.run(&Call { nr: 1000, arch: NATIVE, ..Call::default() }), ENOSYS);
}

#[test]
fn the_default_preset_lets_ordinary_programs_work() {
    let fork = 0x0120_0011;
    let thread = 0x003d_0f00;
    assert_eq!(verdict("clone", [fork, 0, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(verdict("clone", [thread, 0, 0, 0, 0, 0]), Action::Allow);
    for family in [1_u64, 2, 10, 16, 0xff_0000_0001] {
        assert_eq!(verdict("socket", [family, 1, 0, 0, 0, 0]), Action::Allow, "{family}");
    }
    assert_eq!(verdict("ioctl", [0, 0x5401, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(verdict("personality", [0xffff_ffff, 0, 0, 0, 0, 0]), Action::Allow);
    for call in [
        "execve",
        "execveat",
        "futex",
        "rseq",
        "statx",
        "openat2",
        "close_range",
        "ptrace",
        "memfd_create",
        "pidfd_open",
        "epoll_pwait2",
        "seccomp",
        "landlock_restrict_self",
    ] {
        assert_eq!(verdict(call, [0; 6]), Action::Allow, "{call}");
    }
}

#[test]
fn the_default_preset_is_short_and_shallow() {
    let default = Preset::Default.program().unwrap();
    let calls = (0..=470).map(|nr| default.run_counted(&Call { nr, arch: NATIVE, ..Call::default() }).1);
    let (sum, most) = calls.fold((0, 0), |(sum, most), count| (sum + count, most.max(count)));
    let length = default.instructions().len();
    println!(
        "{length} instructions, {:.1} executed on average, {most} at most",
        f64::from(u32::try_from(sum).unwrap()) / 471.0
    );
    assert!(length < 300 && sum / 471 < 13 && most < 48);
    Program::new(default.instructions().to_vec()).unwrap();
    Program::new(no_memory_files().instructions().to_vec()).unwrap();
}

#[test]
fn behind_an_allowlist_a_preset_refuses_memory_files_and_nothing_else_changes() {
    for preset in [Preset::Default, Preset::Strict, Preset::Readonly] {
        let program = preset.program().unwrap();
        let variant = without_memory_files(&program.clone()).unwrap();
        Program::new(variant.instructions().to_vec()).unwrap();
        for (nr, name) in Abi::NATIVE.calls() {
            let call = Call { nr, arch: NATIVE, args: [2; 6], ..Call::default() };
            let expected = if name == "memfd_create" { Action::Errno(38) } else { program.run(&call) };
            assert_eq!(variant.run(&call), expected, "{preset}: {name}");
        }
        // The stack, which a loader makes executable where a library asks for it.
        for (prot, expected) in [(0x0100_0007, Action::Errno(13)), (0x0100_0003, Action::Allow), (7, Action::Allow)] {
            let nr = Abi::NATIVE.number("mprotect").unwrap();
            let call = Call { nr, arch: NATIVE, args: [0, 0, prot, 0, 0, 0], ..Call::default() };
            assert_eq!(variant.run(&call), expected, "{preset} {prot:#x}");
        }
    }
    assert_eq!(without_memory_files(&program(&[RET_ALLOW]).unwrap()), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_input_panics_and_what_is_accepted_ends(bytes in proptest::collection::vec(any::<u8>(), 0..400), args: [u64; 6], nr: u32) {
        if let Ok(program) = Program::from_bytes(&bytes) {
            program.run(&Call { nr, arch: NATIVE, instruction_pointer: args[0], args });
        }
    }

    /// Mostly valid instructions, so that more than the first check is reached.
    #[test]
    fn what_is_accepted_never_runs_off_its_end(
        words in proptest::collection::vec(
            (prop::sample::select(vec![0x20_u16, 0x00, 0x01, 0x02, 0x03, 0x60, 0x61, 0x07, 0x87, 0x05, 0x15, 0x35, 0x45, 0x0c, 0x3c, 0x64, 0x84, 0x06, 0x16]),
             0_u8..4, 0_u8..4, 0_u32..20), 1..30),
        args: [u64; 6],
    ) {
        if let Ok(program) = program(&words) {
            let (_, count) = program.run_counted(&Call { args, ..Call::default() });
            prop_assert!(count <= words.len());
        }
    }
}
