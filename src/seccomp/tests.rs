//! The validator against the kernel's rules, the presets against what they promise.

use proptest::prelude::*;
use syscalls::x86_64::Sysno;

use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
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

fn verdict(call: Sysno, args: [u64; 6]) -> Action {
    let nr = u32::try_from(call.id()).unwrap();
    Preset::Default.program().unwrap().run(&Call { nr, arch: X86_64, args, ..Call::default() })
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_preset_refuses_what_it_promises_to_refuse() {
    const EPERM: Action = Action::Errno(1);
    const ENOSYS: Action = Action::Errno(38);
    for call in [
        Sysno::mount,
        Sysno::umount2,
        Sysno::pivot_root,
        Sysno::open_tree,
        Sysno::move_mount,
        Sysno::fsopen,
        Sysno::fsmount,
        Sysno::mount_setattr,
        Sysno::unshare,
        Sysno::setns,
        Sysno::keyctl,
        Sysno::add_key,
        Sysno::request_key,
        Sysno::bpf,
        Sysno::io_uring_setup,
        Sysno::io_uring_enter,
        Sysno::perf_event_open,
        Sysno::userfaultfd,
        Sysno::kexec_load,
        Sysno::init_module,
        Sysno::reboot,
        Sysno::chroot,
        Sysno::syslog,
        Sysno::open_by_handle_at,
    ] {
        assert_eq!(verdict(call, [0; 6]), EPERM, "{call}");
    }
    assert_eq!(verdict(Sysno::clone3, [0; 6]), ENOSYS);
    for flag in [0x0002_0000_u64, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(verdict(Sysno::clone, [flag | 17, 0, 0, 0, 0, 0]), EPERM, "{flag:#x}");
    }
    for command in [0x5412_u64, 0x541c, 0x1_0000_5412, 0xffff_ffff_0000_541c] {
        assert_eq!(verdict(Sysno::ioctl, [0, command, 0, 0, 0, 0]), EPERM, "{command:#x}");
    }
    for family in [17_u64, 38, 40, 31, 44] {
        assert_eq!(verdict(Sysno::socket, [family, 1, 0, 0, 0, 0]), Action::Errno(97), "{family}");
    }
    assert_eq!(verdict(Sysno::personality, [0x0004_0000, 0, 0, 0, 0, 0]), EPERM);
    let default = Preset::Default.program().unwrap();
    let kill = |nr, arch| assert_eq!(default.run(&Call { nr, arch, ..Call::default() }), Action::KillProcess);
    kill(0, I386);
    kill(0x4000_0000, X86_64);
    kill(0x4000_0000 | 165, X86_64);
    // Newer than the table.
    assert_eq!(default.run(&Call { nr: 1000, arch: X86_64, ..Call::default() }), ENOSYS);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_preset_lets_ordinary_programs_work() {
    let fork = 0x0120_0011;
    let thread = 0x003d_0f00;
    assert_eq!(verdict(Sysno::clone, [fork, 0, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(verdict(Sysno::clone, [thread, 0, 0, 0, 0, 0]), Action::Allow);
    for family in [1_u64, 2, 10, 16, 0xff_0000_0001] {
        assert_eq!(verdict(Sysno::socket, [family, 1, 0, 0, 0, 0]), Action::Allow, "{family}");
    }
    assert_eq!(verdict(Sysno::ioctl, [0, 0x5401, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(verdict(Sysno::personality, [0xffff_ffff, 0, 0, 0, 0, 0]), Action::Allow);
    for call in [
        Sysno::execve,
        Sysno::execveat,
        Sysno::futex,
        Sysno::rseq,
        Sysno::statx,
        Sysno::openat2,
        Sysno::close_range,
        Sysno::ptrace,
        Sysno::memfd_create,
        Sysno::pidfd_open,
        Sysno::epoll_pwait2,
        Sysno::seccomp,
        Sysno::landlock_restrict_self,
    ] {
        assert_eq!(verdict(call, [0; 6]), Action::Allow, "{call}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_preset_is_short_and_shallow() {
    let default = Preset::Default.program().unwrap();
    let calls = (0..=470).map(|nr| default.run_counted(&Call { nr, arch: X86_64, ..Call::default() }).1);
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_input_panics_and_what_is_accepted_ends(bytes in proptest::collection::vec(any::<u8>(), 0..400), args: [u64; 6], nr: u32) {
        if let Ok(program) = Program::from_bytes(&bytes) {
            program.run(&Call { nr, arch: X86_64, instruction_pointer: args[0], args });
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
