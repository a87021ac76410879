//! Any bytes as a profile: refused with an error, or understood the same way again after an export.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shannot::profile::{Caller, Profile};

fuzz_target!(|text: &[u8]| {
    let caller = Caller { home: Some("/home/x".into()), cwd: Some("/".into()), profile: None, cache: None };
    let path = Path::new("/etc/shannot/x.json");
    let Ok(profile) = Profile::parse(text, path, &caller) else { return };
    let Ok(exported) = profile.export(&caller) else { return };
    let again = Profile::parse(exported.to_string().as_bytes(), path, &caller).expect("an export is a profile");
    assert_eq!(again.export(&caller).expect("it was exported before"), exported);
});
