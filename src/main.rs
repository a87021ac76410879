//! The program `shannot`: its exit code is all that is decided here.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(shannot::cli::main())
}
