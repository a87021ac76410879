//! The command line as typed. What it means is decided elsewhere; nothing here has been checked but its form.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::ci::{Stage, System};
use super::output::ErrorFormat;
use crate::policy;
use crate::profile::WorkspaceMode;
use crate::seccomp::Abi;

/// Run a command in a sandbox of its own: the host read-only, no network, no privileges.
#[derive(Debug, Parser)]
#[command(
    name = "shannot",
    version,
    about,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "`shannot COMMAND [ARGS…]` is short for `shannot run -- COMMAND [ARGS…]`: words behind the first one belong to the \
                  command.\n\nExamples:\n  shannot ls -la /                     with the profile `minimal`\n  shannot -p host bash                 \
                  look around: the whole host, read-only\n  shannot -p diagnostics df -h         disk usage, nothing else\n  \
                  shannot run -p host --rw . -- make   let it write here\n  shannot verify                       try to break the \
                  profile's promises\n\nExit codes: the command's own; 124 timeout; 125 shannot failed and nothing ran; 126 not \
                  allowed or not executable; 127 not found inside; 128+n ended by signal n."
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options that may stand before or behind the subcommand.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Common {
    /// Profile: a name, or a path (with a "/", or ending in .json); again for one that is laid over it
    #[arg(short, long, global = true, value_name = "PROFILE")]
    pub(super) profile: Vec<String>,
    /// Say what is skipped and what is in force
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
    /// How errors are said
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    pub(super) error_format: ErrorFormat,
    /// No part of the profile may lie in the workspace, or in the current directory. Whoever calls a shell did not choose it.
    #[arg(skip)]
    pub(super) profile_from_outside: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a command in the sandbox
    Run(Box<Run>),
    /// Try, inside, what the profile promises to refuse
    Verify(Verify),
    /// What this host can enforce, why not more, and the cure
    Doctor(Doctor),
    /// Print the profile, normalised, as JSON
    Export,
    /// List, show and check profiles
    #[command(subcommand)]
    Profile(Profile),
    /// List, show, apply and discard what a command changed in an overlay of its workspace
    #[command(
        subcommand,
        after_help = "RUN is what `list` shows, the beginning of it, or `last`.\n\nExit codes: 0 done; 1 something was refused, or nothing \
                      was applied because the workspace was changed meanwhile; 125 failure."
    )]
    Changes(Changes),
    /// Compile, check and explain filters of system calls
    #[command(subcommand)]
    Seccomp(Seccomp),
    /// What CI systems call
    #[command(subcommand)]
    Ci(Ci),
    /// bubblewrap's command line: as the program shannot-bwrap
    #[command(
        disable_help_flag = true,
        after_help = "`shannot bwrap --explain …` prints what would be done and what a hardened profile would add, `shannot bwrap \
                      --to-profile …` the equivalent profile; both stand before bubblewrap's options, which `shannot bwrap --help` lists."
    )]
    Bwrap {
        /// bubblewrap's options, and the command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
    /// Print a completion script for a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Any other word is a command to run
    #[command(external_subcommand)]
    Bare(Vec<OsString>),
}

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) options: Options,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// What overrides or extends the profile. Each has a profile key of the same meaning.
#[derive(Debug, Default, Args)]
pub(super) struct Options {
    /// Bind a host path read-only
    #[arg(long, value_name = "SRC[:DEST]", help_heading = "Files")]
    pub(super) ro: Vec<OsString>,
    /// Bind a host path writable
    #[arg(long, value_name = "SRC[:DEST]", help_heading = "Files")]
    pub(super) rw: Vec<OsString>,
    /// Mount an empty tmpfs
    #[arg(long, value_name = "DEST", help_heading = "Files")]
    pub(super) tmpfs: Vec<OsString>,
    /// Hide a path
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub(super) hide: Vec<OsString>,
    /// The folder that the command works on; default: the current directory, where the profile has a workspace
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub(super) workspace: Option<OsString>,
    /// Write into the workspace, keep changes beside it (see `shannot changes`), or change nothing
    #[arg(long, value_name = "rw|overlay|ro", help_heading = "Files")]
    pub(super) workspace_mode: Option<Mode>,
    /// With an overlay: copy this out of the workspace as the command left it, to the same place on the host, or to another
    #[arg(long, value_name = "PATH[:DEST]", help_heading = "Files")]
    pub(super) artifact: Vec<OsString>,
    /// Keep caches of tools from run to run: cargo, npm, pip, go, …; behind a name :ro, or :overlay to throw away what is added
    #[arg(long, value_name = "NAME[:ro|rw|overlay],…", help_heading = "Files")]
    pub(super) cache: Vec<String>,
    /// Hand over a secret as the file /run/secrets/NAME
    #[arg(long, value_name = "NAME=fd:N|file:PATH", help_heading = "Files")]
    pub(super) secret: Vec<OsString>,
    /// Start in this directory
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub(super) chdir: Option<OsString>,
    /// Set a variable, or pass the caller's
    #[arg(long, value_name = "K[=V]", help_heading = "Environment")]
    pub(super) env: Vec<OsString>,
    /// Pass the caller's variables that match
    #[arg(long, value_name = "GLOB", help_heading = "Environment")]
    pub(super) env_pass: Vec<String>,
    /// Pass all of the caller's variables
    #[arg(long, help_heading = "Environment")]
    pub(super) inherit_env: bool,
    /// Host name inside
    #[arg(long, value_name = "NAME", help_heading = "Environment")]
    pub(super) hostname: Option<String>,
    /// Network: none at all, loopback only, or the host's
    #[arg(long, value_name = "none|loopback|host", help_heading = "Confinement")]
    pub(super) net: Option<Net>,
    /// Filter of system calls: a preset, an OCI policy (.json), or a raw filter (.bpf); again for more than one
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Confinement")]
    pub(super) seccomp: Vec<String>,
    /// Execute the command, also under a filter that refuses it, and nothing after it
    #[arg(long, help_heading = "Confinement")]
    pub(super) exec_once: bool,
    /// How to isolate
    #[arg(long, value_name = "BACKEND", default_value = "auto", help_heading = "Confinement")]
    pub(super) backend: Backend,
    /// Refuse to run unless this feature is enforced in full
    #[arg(long, value_name = "FEATURE", help_heading = "Confinement")]
    pub(super) require: Vec<String>,
    /// Run even if this feature can't be enforced
    #[arg(long, value_name = "FEATURE", help_heading = "Confinement")]
    pub(super) allow_degraded: Vec<String>,
    /// End the command after this time (10m, 90s, 1h 30m)
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    pub(super) timeout: Option<String>,
    /// Kill it if it has not ended so long after the timeout (10s)
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    pub(super) kill_after: Option<String>,
    /// Memory (2G)
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(super) memory: Option<String>,
    /// Processes and threads
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(super) pids: Option<u64>,
    /// CPUs used at once (2, 1.5)
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(super) cpus: Option<String>,
    /// Size that one file may grow to (100M)
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(super) file_size: Option<String>,
    /// Descriptors that one process may have open
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(super) open_files: Option<u64>,
    /// Size of all tmpfs together (64M)
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(super) tmpfs_size: Option<String>,
    /// Print what would be done, and do nothing
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text", help_heading = "Output")]
    pub(super) dry_run: Option<Format>,
    /// Write a report of the run as JSON
    #[arg(long, value_name = "FILE|fd:N", help_heading = "Output")]
    pub(super) report: Option<OsString>,
    /// Write a report of the run as JUnit's XML
    #[arg(long, value_name = "FILE|fd:N", help_heading = "Output")]
    pub(super) junit: Option<OsString>,
    /// Tell a CI system how it went, in its own way
    #[arg(long, value_name = "github|gitlab|auto", help_heading = "Output")]
    pub(super) ci: Option<System>,
    /// Throw the command's stdout away
    #[arg(long, help_heading = "Shannot 0.3")]
    pub(super) no_stdout: bool,
    /// Throw the command's stderr away
    #[arg(long, help_heading = "Shannot 0.3")]
    pub(super) no_stderr: bool,
    /// Accepted: exit codes are always the command's own
    #[arg(long, help_heading = "Shannot 0.3")]
    pub(super) no_check: bool,
    /// Accepted, without effect: no bubblewrap is needed
    #[arg(long, value_name = "PATH", help_heading = "Shannot 0.3")]
    pub(super) bubblewrap: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Backend {
    /// The strongest that this host has
    #[default]
    Auto,
    /// Namespaces, or refuse
    Namespaces,
    /// Landlock and filters in the host's own tree, or refuse
    Landlock,
}

impl From<Backend> for policy::Backend {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => policy::Backend::Auto,
            Backend::Namespaces => policy::Backend::Namespaces,
            Backend::Landlock => policy::Backend::Landlock,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// Written, but for what the host's git would execute
    Rw,
    /// Changes are kept beside it
    Overlay,
    /// Read-only
    Ro,
}

impl From<Mode> for WorkspaceMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Rw => WorkspaceMode::Rw,
            Mode::Overlay => WorkspaceMode::Overlay,
            Mode::Ro => WorkspaceMode::Ro,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Net {
    /// None; not even TCP on loopback
    None,
    /// A loopback of its own
    Loopback,
    /// The host's network
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Ci {
    /// Stages of GitLab Runner's custom executor
    Gitlab {
        #[command(subcommand)]
        stage: Stage,
    },
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Say it for this way to isolate
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub(super) backend: Backend,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print an AppArmor profile that lets this program make user namespaces
    #[arg(long, conflicts_with = "json")]
    pub(super) apparmor_profile: bool,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Also run this command, which must succeed; quote one that has options
    #[arg(long, value_name = "COMMAND", num_args = 1..)]
    pub(super) allowed_command: Vec<String>,
    /// Also try this command, which must be refused or fail
    #[arg(long, value_name = "COMMAND", num_args = 1..)]
    pub(super) disallowed_command: Vec<String>,
    /// Try it on this way to isolate
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub(super) backend: Backend,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Profile {
    /// Profiles that can be named, and where they come from
    List,
    /// A profile as it will be applied
    Show {
        /// Which; default: the one that would be used
        #[arg(value_name = "PROFILE")]
        which: Option<String>,
    },
    /// Check a profile on this host, without running anything
    Check {
        /// Which; default: the one that would be used
        #[arg(value_name = "PROFILE")]
        which: Option<String>,
    },
    /// The JSON Schema of profiles
    Schema,
}

#[derive(Debug, Subcommand)]
pub(super) enum Changes {
    /// Runs whose changes are kept
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// What a run changed: A added, M modified, D deleted, T another type, m permissions only, ! not carried over
    Show {
        /// Which run
        run: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the workspace what the command saw; can be interrupted and run again
    Apply {
        /// Which run
        run: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Also over what was changed in the workspace meanwhile, and again what was applied already
        #[arg(long)]
        force: bool,
        /// Only these, and what is in them; relative to the workspace
        #[arg(long, value_name = "PATH", num_args = 1..)]
        only: Vec<PathBuf>,
    },
    /// Remove a run, and its changes with it
    Discard {
        /// Which run
        run: String,
    },
}

/// A policy or a filter, and the machine that it is meant for.
#[derive(Debug, Args)]
pub(super) struct FilterFile {
    /// An OCI policy (.json), a raw filter (.bpf), or the name of a preset; "-" reads stdin
    #[arg(value_name = "FILE|PRESET")]
    pub(super) file: OsString,
    /// The kernel's architecture: x86_64, x86, arm, aarch64, riscv64; default: this machine's
    #[arg(long, value_name = "ARCH")]
    pub(super) arch: Option<Abi>,
    /// A capability that the process will have (CAP_SYS_PTRACE), for rules with "caps"; again for more; default: none
    #[arg(long, value_name = "CAP")]
    pub(super) cap: Vec<String>,
    /// The kernel's version, for rules with "minKernel"; default: this kernel's
    #[arg(long, value_name = "VERSION")]
    pub(super) kernel: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Seccomp {
    /// Compile a policy to a raw filter, as bubblewrap and seccomp(2) take it
    Compile {
        #[command(flatten)]
        file: FilterFile,
        /// Where to; "-" is stdout
        #[arg(short, long, value_name = "OUT.bpf")]
        output: OsString,
        /// Leave execve to be decided elsewhere: the filter lets it through
        #[arg(long)]
        allow_launch: bool,
        /// Say what was compiled as JSON on stderr
        #[arg(long)]
        json: bool,
    },
    /// Say what is wrong with a policy or a filter, what a user would see of it, and the fix
    #[command(after_help = "Exit codes: 0 nothing but notes, 1 errors or warnings, 125 it can't be read or compiled.")]
    Check {
        #[command(flatten)]
        file: FilterFile,
        /// Print the policy with the fixes applied; the findings then go to stderr
        #[arg(long)]
        fix: bool,
        /// Write the fixed policy there instead
        #[arg(short, long, value_name = "FIXED.json", requires = "fix")]
        output: Option<OsString>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the program with names, and what happens to every call
    Explain {
        #[command(flatten)]
        file: FilterFile,
        /// Only what happens to the calls
        #[arg(long)]
        table: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what happens to one call, and by which instructions
    #[command(after_help = "Exit codes: 0 the call is let through, 1 it is not, 125 failure.")]
    Eval {
        #[command(flatten)]
        file: FilterFile,
        /// The call, by name or number
        #[arg(long, value_name = "NAME|NR")]
        syscall: String,
        /// The interface that it is made through, where the kernel has several: x86 or x32 on x86_64; default: the kernel's own
        #[arg(long, value_name = "ABI")]
        abi: Option<Abi>,
        /// Its arguments, as far as they matter: decimal, or hexadecimal with 0x
        #[arg(long, value_name = "A,B,…", value_delimiter = ',', num_args = 1..=6)]
        args: Vec<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List system calls and their numbers
    Names {
        /// Only names that match: a part, or a pattern with * and ?
        pattern: Option<String>,
        /// Which interface: x86_64, x86, x32, arm, aarch64, riscv64; default: this machine's
        #[arg(long, value_name = "ARCH")]
        arch: Option<Abi>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}
