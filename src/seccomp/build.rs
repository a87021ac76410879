//! Build script: makes the table of system calls and compiles the presets for the target's architecture, so that a run
//! starts with them ready.
#![allow(dead_code, unreachable_pub, reason = "most of these modules is for the program")]

#[path = "abi.rs"]
mod abi;
#[path = "action.rs"]
mod action;
#[path = "compile.rs"]
mod compile;
#[path = "decide.rs"]
mod decide;
#[path = "decision.rs"]
mod decision;
#[path = "graph.rs"]
mod graph;
#[path = "oci.rs"]
mod oci;
#[path = "policy.rs"]
mod policy;
#[path = "search.rs"]
mod search;

/// The table, made here.
mod calls {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    use super::abi::{COLUMNS, NONE, Row};

    static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
        let mut rows = BTreeMap::new();
        macro_rules! column {
            ($column:literal, $table:ident) => {
                for call in syscalls::$table::Sysno::iter() {
                    // ARM's calls outside the table are in `abi`.
                    if let Ok(number) = u16::try_from(call.id()) {
                        rows.entry(call.name().trim_start_matches("r#")).or_insert([NONE; COLUMNS])[$column] = number;
                    }
                }
            };
        }
        column!(0, x86_64);
        column!(1, x86);
        column!(2, arm);
        column!(3, aarch64);
        column!(4, riscv64);
        // Names that only other architectures have: policies for many mention them, and they are no typos.
        macro_rules! names {
            ($($table:ident)*) => {
                $(for call in syscalls::$table::Sysno::iter() {
                    rows.entry(call.name().trim_start_matches("r#")).or_insert([NONE; COLUMNS]);
                })*
            };
        }
        names!(loongarch64 mips mips64 powerpc powerpc64 riscv32 s390x sparc sparc64);
        rows.into_iter().map(|(name, numbers)| Row { name, numbers }).collect()
    });

    pub(super) fn rows() -> &'static [Row] {
        &ROWS
    }
}

/// Presets give errnos by number.
mod errno {
    pub(super) const MOST: u16 = 4095;

    pub(super) fn name(_: u16) -> Option<String> {
        None
    }

    pub(super) fn number(_: &str) -> Option<u16> {
        None
    }
}

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

/// The presets that are programs, each in presets/NAME.json.
const PRESETS: &[&str] = &["default", "strict", "readonly"];

/// Those that nobody names.
const UNNAMED: &[&str] = &[
    NO_MEMORY_FILES,
    "in-place",
    "in-place-network",
    "in-place-no-sockets",
    "in-place-signals",
    "in-place-truncation",
];

/// The one that goes with an allowlist.
const NO_MEMORY_FILES: &str = "no-memory-files";

/// What a refusal with conditions leaves.
const ALL_OTHERS: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
    {"names": NAMES, "action": "SCMP_ACT_ALLOW", "args": [{"index": 2, "value": 0, "op": "SCMP_CMP_GE"}]}]}"#;

/// A kernel that has everything: presets don't depend on its version.
const KERNEL: (u32, u32) = (u32::MAX, 0);

fn main() -> Result<(), Box<dyn Error>> {
    let sources = Path::new("src/seccomp");
    println!("cargo:rerun-if-changed={}", sources.display());
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("calls.rs"), table()?)?;
    let native = std::env::var("CARGO_CFG_TARGET_ARCH")?.parse()?;
    let mut code = String::new();
    for preset in PRESETS.iter().chain(UNNAMED) {
        let text = std::fs::read_to_string(sources.join("presets").join(format!("{preset}.json")))?;
        let mut document = oci::Document::parse(text.as_bytes()).map_err(|error| format!("{preset}.json: {error}"))?;
        let name = preset.to_uppercase().replace('-', "_");
        code.push_str(&program(&name, &document, native)?);
        if UNNAMED.contains(preset) {
            continue;
        }
        // As short as JSON can be: it is in the binary for other architectures and for reading.
        writeln!(code, "static {name}_JSON: &str = {:?};", serde_json::to_string(&document)?)?;
        // One filter instead of two behind an allowlist: what is not allowed gets the presets' default, ENOSYS.
        let more = std::fs::read_to_string(sources.join("presets").join(format!("{NO_MEMORY_FILES}.json")))?;
        let more = oci::Document::parse(more.as_bytes()).map_err(|error| format!("{NO_MEMORY_FILES}.json: {error}"))?;
        for mut rule in more.syscalls.into_iter().flatten() {
            let refused = rule.names.clone().unwrap_or_default();
            let mut were_allowed = Vec::new();
            let allowing = document.syscalls.iter_mut().flatten().filter(|rule| rule.action == oci::ActionName::Allow);
            for names in allowing.filter_map(|rule| rule.names.as_mut()) {
                were_allowed.extend(names.extract_if(.., |name| refused.contains(name)));
            }
            if rule.args.as_ref().is_some_and(|args| !args.is_empty()) {
                let others = ALL_OTHERS.replace("NAMES", &serde_json::to_string(&were_allowed)?);
                let others = oci::Document::parse(others.as_bytes())?;
                rule.names = Some(were_allowed);
                document
                    .syscalls
                    .get_or_insert_default()
                    .extend(std::iter::once(rule).chain(others.syscalls.into_iter().flatten()));
            }
        }
        code.push_str(&program(
            &format!("{name}_{}", NO_MEMORY_FILES.to_uppercase().replace('-', "_")),
            &document,
            native,
        )?);
    }
    std::fs::write(Path::new(&out).join("presets.rs"), code)?;
    Ok(())
}

/// A policy, compiled, as Rust.
fn program(name: &str, document: &oci::Document, native: abi::Abi) -> Result<String, Box<dyn Error>> {
    let context = policy::Context { native, capabilities: BTreeSet::new(), kernel: KERNEL };
    let policy = policy::Policy::new(document, &context).map_err(|error| format!("{name}: {error}"))?;
    let words = compile::compile(&policy).map_err(|error| format!("{name}: {error}"))?;
    let mut code = format!("static {name}: [Instruction; {}] = [\n", words.len());
    for (code_word, jt, jf, k) in words {
        writeln!(code, "    Instruction {{ code: {code_word}, jt: {jt}, jf: {jf}, k: {k} }},")?;
    }
    code.push_str("];\n");
    Ok(code)
}

fn table() -> Result<String, std::fmt::Error> {
    let rows = calls::rows();
    let mut code = format!("static ROWS: [Row; {}] = [", rows.len());
    for abi::Row { name, numbers } in rows {
        writeln!(code, "    Row {{ name: {name:?}, numbers: {numbers:?} }},")?;
    }
    code.push_str("];");
    Ok(code)
}
