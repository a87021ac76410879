//! The program `shannot-sh`: a shell whose commands run in the sandbox.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(shannot::cli::sh_main())
}
