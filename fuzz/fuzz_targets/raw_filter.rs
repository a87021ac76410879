//! Any bytes as a seccomp filter: refused, or a program that ends with a verdict on every call.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shannot::seccomp::{Call, Program};

fuzz_target!(|input: (Vec<u8>, u32, u32, [u64; 6])| {
    let (bytes, nr, arch, args) = input;
    let Ok(program) = Program::from_bytes(&bytes) else { return };
    assert_eq!(program.to_bytes(), bytes);
    let (_, count) = program.run_counted(&Call { nr, arch, instruction_pointer: args[0], args });
    assert!(count <= program.instructions().len());
});
