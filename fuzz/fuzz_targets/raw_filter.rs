//! Any bytes as a seccomp filter: refused, or a program that ends with a verdict on every call, one of those that the
//! analysis foresaw, and that can be explained and checked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shannot::seccomp::{Abi, Call, Explanation, Program, Subject};

fuzz_target!(|input: (Vec<u8>, u32, u32, [u64; 6])| {
    let (bytes, nr, arch, args) = input;
    let Ok(program) = Program::from_bytes(&bytes) else { return };
    assert_eq!(program.to_bytes(), bytes);
    let (verdict, count) = program.run_counted(&Call { nr, arch, instruction_pointer: args[0], args });
    assert!(count <= program.instructions().len());
    let foreseen = program.verdicts_at(arch, nr);
    assert!(foreseen.computed || foreseen.actions.contains_key(&verdict));
    if program.instructions().len() < 64 {
        assert!(!Explanation::new(&program, Abi::X86_64, None).to_string().is_empty());
        Subject { program: &program, native: Abi::X86_64, policy: None }.findings();
    }
});
