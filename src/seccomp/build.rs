//! Build script: compiles the presets for the target's architecture, so that a run starts with them ready.

#[path = "compile.rs"]
mod compile;
#[path = "oci.rs"]
mod oci;

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use compile::Target;

/// The presets that are programs, each in presets/NAME.json.
const PRESETS: &[&str] = &["default", "no-memory-files"];

fn main() -> Result<(), Box<dyn Error>> {
    let sources = "src/seccomp";
    for name in ["build.rs", "compile.rs", "oci.rs", "presets"] {
        println!("cargo:rerun-if-changed={sources}/{name}");
    }
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let target = target(&architecture).ok_or_else(|| format!("no system call table for {architecture}"))?;
    let mut code = String::new();
    for preset in PRESETS {
        let text = std::fs::read_to_string(format!("{sources}/presets/{preset}.json"))?;
        let policy: oci::Policy = serde_json::from_str(&text).map_err(|error| format!("{preset}.json: {error}"))?;
        let program = compile::compile(&policy, &target).map_err(|error| format!("{preset}.json: {error}"))?;
        let name = preset.to_uppercase().replace('-', "_");
        writeln!(code, "static {name}: [Instruction; {}] = [", program.len())?;
        for (code_word, jt, jf, k) in program {
            writeln!(code, "    Instruction {{ code: {code_word}, jt: {jt}, jf: {jf}, k: {k} }},")?;
        }
        writeln!(code, "];")?;
    }
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("presets.rs"), code)?;
    Ok(())
}

fn target(architecture: &str) -> Option<Target<'static>> {
    // Each architecture's table is a type of its own.
    macro_rules! number {
        ($table:ident) => {
            &|name| name.parse::<syscalls::$table::Sysno>().ok().and_then(|call| u32::try_from(call.id()).ok())
        };
    }
    // linux/audit.h, AUDIT_ARCH_*; x32 has its bit set in the number (asm/unistd.h, __X32_SYSCALL_BIT).
    Some(match architecture {
        "x86_64" => Target { audit_arch: 0xc000_003e, numbers_end: Some(0x4000_0000), number: number!(x86_64) },
        "aarch64" => Target { audit_arch: 0xc000_00b7, numbers_end: None, number: number!(aarch64) },
        "riscv64" => Target { audit_arch: 0xc000_00f3, numbers_end: None, number: number!(riscv64) },
        _ => return None,
    })
}
