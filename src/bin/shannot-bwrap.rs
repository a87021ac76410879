//! The program `shannot-bwrap`, which stands in for bubblewrap's `bwrap`. A program of its own, not a name of `shannot`:
//! clients resolve links, and start `/proc/self/exe` inside.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(shannot::cli::bwrap_main())
}
