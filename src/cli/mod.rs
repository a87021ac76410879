//! The command line of `shannot`: flags, text and JSON output, exit codes. Decides nothing about the sandbox.

mod args;
mod bwrap;
mod canary;
mod changes;
mod ci;
mod doctor;
mod launch;
mod options;
mod output;
mod profiles;
mod record;
mod run;
mod seccomp;
mod secrets;
mod shell;
mod verify;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};

use self::args::{Cli, Command, Common, Options};
use self::output::{Complaint, ErrorFormat, note};
use crate::spelling::nearest;
use crate::sys;

pub use bwrap::main as bwrap_main;
pub use shell::main as sh_main;

/// Runs the program with the process's own arguments and gives its exit code.
pub fn main() -> u8 {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let [_, word, task] = arguments.as_slice()
        && word == canary::WORD
    {
        return canary_main(task);
    }
    if let [_, word, rest @ ..] = arguments.as_slice()
        && word == "bwrap"
    {
        // Its words are bubblewrap's, not clap's.
        return bwrap::subcommand(rest);
    }
    let format = wanted_format(&arguments);
    if let Some(number) = sys::closed_standard_descriptor() {
        // What is opened next would take its number, and be the command's stdin, stdout or stderr.
        let name = ["stdin", "stdout", "stderr"].get(usize::from(number)).copied().unwrap_or_default();
        let complaint = Complaint::plain("descriptors", format!("cannot start with {name} closed"));
        return complaint.with_hint("redirect it from or to /dev/null instead of closing it").say(format);
    }
    match Cli::try_parse_from(&arguments) {
        Ok(cli) => {
            let format = cli.common.error_format;
            dispatch(cli).unwrap_or_else(|complaint| complaint.say(format))
        }
        Err(error) => usage(&error, format),
    }
}

/// The bare form has no options of its own, and a word that is no subcommand's name is a command's.
fn bare(common: &Common, command: Vec<OsString>) -> Result<u8, Complaint> {
    let word = command.first().and_then(|word| word.to_str()).unwrap_or_default().to_owned();
    run::run(common, &Options::default(), command).map_err(|complaint| {
        let program = Cli::command();
        let meant = nearest(&word, program.get_subcommands().map(clap::Command::get_name));
        match meant.filter(|_| matches!(complaint.code, Complaint::NOT_ALLOWED | Complaint::NOT_FOUND)) {
            Some(meant) => complaint.and_hint(&format!("did you mean `shannot {meant}`?")),
            None => complaint,
        }
    })
}

/// What to say of an option of `run` that stands before a bare command.
fn misplaced(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    let name = option.split('=').next()?.strip_prefix("--")?;
    let program = Cli::command();
    let known = program.find_subcommand("run")?.get_arguments().any(|known| known.get_long() == Some(name));
    let is_before = error.get(ContextKind::Usage).is_some_and(|usage| !usage.to_string().contains("shannot run"));
    (known && is_before).then(|| format!("--{name} is an option of `run`: shannot run --{name} … -- COMMAND"))
}

fn canary_main(task: &OsString) -> u8 {
    match task.to_str().map(canary::run) {
        Some(Ok(())) => 0,
        Some(Err(error)) => Complaint::new("canary", &error, None).say(ErrorFormat::Text),
        None => Complaint::FAILED,
    }
}

/// `--error-format` is looked for by hand, since it also matters where clap finds something wrong.
fn wanted_format(arguments: &[OsString]) -> ErrorFormat {
    let says_json =
        |pair: &[OsString]| matches!(pair, [option, value] if option == "--error-format" && value == "json");
    let json = arguments.iter().any(|word| word == "--error-format=json") || arguments.windows(2).any(says_json);
    if json { ErrorFormat::Json } else { ErrorFormat::Text }
}

/// What clap has to say: help and version on stdout with 0, everything else on stderr with 125.
fn usage(error: &clap::Error, format: ErrorFormat) -> u8 {
    if error.exit_code() == 0 {
        return match output::result(&error.render().to_string()) {
            Ok(()) => 0,
            Err(complaint) => complaint.say(format),
        };
    }
    match format {
        ErrorFormat::Json => {
            let text = error.render().to_string();
            let complaint = Complaint::plain("usage", text.trim().trim_start_matches("error: "));
            Complaint { hint: misplaced(error), ..complaint }.say(format)
        }
        ErrorFormat::Text => {
            let hint = misplaced(error).map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            note(&format!("{}{hint}", error.render().to_string().trim_end()));
            Complaint::FAILED
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8, Complaint> {
    let Cli { common, command } = cli;
    match command {
        Command::Run(run) => run::run(&common, &run.options, run.command),
        Command::Bare(command) => bare(&common, command),
        Command::Verify(options) => verify::verify(&common, &options),
        Command::Doctor(options) => doctor::doctor(&common, &options),
        Command::Export => profiles::export(&common),
        Command::Profile(what) => profiles::profile(&common, &what),
        Command::Changes(what) => changes::changes(&what),
        Command::Seccomp(what) => seccomp::seccomp(&what),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shannot", &mut text);
            output::result_bytes(&text).map(|()| 0)
        }
        Command::Ci(args::Ci::Gitlab { stage }) => Ok(ci::gitlab_executor(&common, &stage)),
        Command::Man => manual().map(|()| 0),
        Command::Bwrap { arguments } => Ok(bwrap::subcommand(&arguments)),
    }
}

fn manual() -> Result<(), Complaint> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text).map_err(|error| Complaint::new("output", &error, None))?;
    for subcommand in Cli::command().get_subcommands() {
        let man = clap_mangen::Man::new(subcommand.clone());
        let heading = format!(".SH \"shannot {}\"\n", subcommand.get_name());
        text.extend_from_slice(heading.as_bytes());
        man.render_description_section(&mut text)
            .and_then(|()| man.render_options_section(&mut text))
            .map_err(|error| Complaint::new("output", &error, None))?;
    }
    output::result_bytes(&text)
}

impl Common {
    fn profile(&self, caller: &crate::profile::Caller) -> Result<crate::profile::Profile, Complaint> {
        Ok(crate::profile::Profile::load(&self.profile, caller)?)
    }
}
