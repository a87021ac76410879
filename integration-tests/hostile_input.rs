//! The fuzz targets' properties (fuzz/), bounded: real profiles with random damage, and random filters.

use std::path::Path;

use proptest::prelude::*;
use shannot::profile::{Caller, Profile};
use shannot::seccomp::{Abi, Call, Context, Document, Policy, Program};

const SHIPPED: &[&str] = &[
    include_str!("../profiles/minimal.json"),
    include_str!("../profiles/readonly.json"),
    include_str!("../profiles/diagnostics.json"),
    include_str!("../profiles/host.json"),
];

/// Refused with a sentence, or understood the same way again after an export.
fn understand(text: &[u8]) {
    let caller = Caller { home: Some("/home/x".into()), cwd: Some("/".into()), profile: None, cache: None };
    let path = Path::new("/etc/shannot/x.json");
    match Profile::parse(text, path, &caller).and_then(|profile| profile.export(&caller)) {
        Err(error) => assert!(error.to_string().starts_with("cannot "), "{error}"),
        Ok(exported) => {
            let again = Profile::parse(exported.to_string().as_bytes(), path, &caller).unwrap();
            assert_eq!(again.export(&caller).unwrap(), exported);
        }
    }
}

#[test]
fn shipped_profiles_are_understood() {
    SHIPPED.iter().for_each(|text| understand(text.as_bytes()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_profile_is_refused_or_understood(
        which in 0..SHIPPED.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\"{}[]:,\\0x \n9-ntf".to_vec())), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut text = SHIPPED[which].as_bytes().to_vec();
        for (at, byte) in damage {
            let at = at.index(text.len());
            text[at] = byte;
        }
        if let Some(at) = cut {
            text.truncate(at.index(text.len()));
        }
        understand(&text);
    }

    #[test]
    fn any_text_is_refused_or_understood(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        understand(&text);
    }

    #[test]
    fn a_damaged_filter_is_refused_or_ends(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        nr: u32,
        args: [u64; 6],
    ) {
        let preset = shannot::seccomp::Preset::Default.program().unwrap();
        let mut bytes = preset.to_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(program) = Program::from_bytes(&bytes) {
            let arch = Abi::NATIVE.audit_arch();
            let (verdict, count) = program.run_counted(&Call { nr, arch, args, ..Call::default() });
            prop_assert!(count <= program.instructions().len());
            let foreseen = program.verdicts_at(arch, nr);
            prop_assert!(foreseen.computed || foreseen.actions.contains_key(&verdict));
        }
    }

    #[test]
    fn a_damaged_policy_is_refused_with_its_place_or_compiles(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\"{}[]:,\\0x \n9-ntf".to_vec())), 1..4),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut text = shannot::seccomp::Preset::Default.policy().unwrap().as_bytes().to_vec();
        for (at, byte) in damage {
            let at = at.index(text.len());
            text[at] = byte;
        }
        if let Some(at) = cut {
            text.truncate(at.index(text.len()));
        }
        let context = Context { native: Abi::X86_64, capabilities: [].into(), kernel: (6, 1) };
        match Document::parse(&text) {
            Err(error) => prop_assert!(error.to_string().contains(" column "), "{}", error),
            Ok(document) => {
                if let Ok(policy) = Policy::new(&document, &context) {
                    Program::compile(&policy).unwrap();
                }
            }
        }
    }
}
