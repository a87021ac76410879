//! Any bytes as an OCI policy: refused with a place, or a program that the kernel's checker accepts, that can be explained
//! and checked, and that a round through JSON does not change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shannot::seccomp::{Abi, Context, Document, Explanation, Policy, Program, Subject};

fuzz_target!(|text: &[u8]| {
    let Ok(document) = Document::parse(text) else { return };
    let context = Context { native: Abi::X86_64, capabilities: [].into(), kernel: (6, 1) };
    let Ok(policy) = Policy::new(&document, &context) else { return };
    let Ok(program) = Program::compile(&policy) else { return };
    let again = Document::parse(&serde_json::to_vec(&document).expect("it came from JSON")).expect("it was one before");
    assert_eq!(Policy::new(&again, &context).expect("it was one before"), policy);
    assert!(!Explanation::new(&program, Abi::X86_64, Some(&policy)).to_string().is_empty());
    let policy = Some((&document, &policy));
    for finding in (Subject { program: &program, native: Abi::X86_64, policy }).findings() {
        assert!(!finding.fix.is_empty());
    }
});
