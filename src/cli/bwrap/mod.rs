//! bubblewrap's command line as a program: reads what its descriptors bring, plans, follows the command, and says all
//! that goes wrong in bubblewrap's words with exit code 1.

mod explain;
mod messages;
mod to_profile;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::output;
use crate::bwrap::{self, Flag, Lexed, Switch, filter_descriptors, lex_program, repeated, usage};
use crate::host::Host;
use crate::plan::Plan;
use crate::policy::{FsOp, Policy};
use crate::sandbox;
use crate::seccomp::{Filter, Program};
use crate::sys;

/// What bubblewrap exits with for every failure of its own.
const FAILED: u8 = 1;
/// The version whose contract holds; clients ask for it.
const VERSION: &str = "bubblewrap 0.12.0\n";
/// syslog(3).
const ERROR: u8 = 3;
const WARNING: u8 = 4;

/// Runs the program `shannot-bwrap` with the process's own arguments and gives its exit code.
pub fn main() -> u8 {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| "bwrap".into());
    let words: Vec<OsString> = words.collect();
    program(&name.to_string_lossy(), &words, Wanted::Run)
}

/// `shannot bwrap`.
pub(super) fn subcommand(words: &[OsString]) -> u8 {
    match words.split_first() {
        Some((word, rest)) if word == "--explain" => program("shannot bwrap", rest, Wanted::Explain),
        Some((word, rest)) if word == "--to-profile" => program("shannot bwrap", rest, Wanted::Profile),
        _ => program("shannot bwrap", words, Wanted::Run),
    }
}

/// What is done with a command line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Explain,
    Profile,
}

fn program(name: &str, words: &[OsString], wanted: Wanted) -> u8 {
    let mut voice = Voice { levels: false };
    if nix::unistd::getuid() != nix::unistd::geteuid() {
        return voice.fail("setuid use of bubblewrap is not supported");
    }
    let mut read_args = |fd| read_all(fd).map_err(|error| messages::errno(&error));
    let (lexed, result) = lex_program(words, &mut read_args);
    for (index, word) in repeated(&lexed) {
        voice.levels = has_levels(lexed.flags.get(..index).unwrap_or_default());
        voice.warn(&format!("Only the last {word} option will take effect"));
    }
    voice.levels = has_levels(&lexed.flags);
    if let Err(error) = result {
        return voice.fail(&error.to_string());
    }
    match lexed.flags.last() {
        Some(Flag::Switch(Switch::Help)) => return print(&usage(name)),
        Some(Flag::Switch(Switch::Version)) => return print(VERSION),
        _ => {}
    }
    if lexed.command.is_empty() && wanted == Wanted::Run {
        output::note(usage(name).trim_end());
        return FAILED;
    }
    match carry_out(&lexed, wanted, &voice) {
        Ok(code) => code,
        Err(text) => voice.fail(&text),
    }
}

fn has_levels(flags: &[Flag]) -> bool {
    flags.iter().any(|flag| matches!(flag, Flag::Switch(Switch::LevelPrefix)))
}

/// From options to an exit code; the error is a message.
fn carry_out(lexed: &Lexed, wanted: Wanted, voice: &Voice) -> Result<u8, String> {
    let filters = filters(lexed)?;
    let host = Host::probe();
    if host.uid != 0 && host.capabilities.permitted != 0 {
        return Err("Unexpected capabilities but not setuid, old file caps config?".to_owned());
    }
    let policy = bwrap::policy(lexed, &caller(&host, lexed), filters).map_err(|error| error.to_string())?;
    if wanted == Wanted::Profile {
        return to_profile::print(lexed, &policy);
    }
    check_descriptors(&policy)?;
    let plan = Plan::new(&policy, &host).map_err(|error| messages::plan(&error))?;
    if wanted == Wanted::Explain {
        return explain::print(lexed, &plan);
    }
    let Some(asked) = &plan.bubblewrap else { return Err("no plan".to_owned()) };
    let mut warn = |failure: &sandbox::Failure| voice.warn(&messages::warning(failure, &plan));
    sandbox::follow(&plan, asked, &mut warn).map_err(|error| messages::sandbox(&error, &plan, &lexed.command))
}

/// A program for each descriptor that has one, as the kernel will take it.
fn filters(lexed: &Lexed) -> Result<Vec<Filter>, String> {
    let descriptors = filter_descriptors(lexed).map_err(|error| error.to_string())?;
    let read = |(index, fd): (usize, &i32)| {
        // Read to its end, where an empty program is: bubblewrap has closed it by now.
        let again = descriptors.iter().take(index).any(|before| before == fd);
        let bytes = if again { Err(Errno::EBADF.into()) } else { read_all(*fd) };
        let bytes = bytes.map_err(|error| format!("Can't read seccomp data: {}", messages::errno(&error)))?;
        match bytes.len() % size_of::<libc::sock_filter>() {
            0 => Ok((*fd, bytes)),
            _ => Err("Invalid seccomp data, must be multiple of 8".to_owned()),
        }
    };
    let programs = descriptors.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    let filter = |(fd, bytes): (i32, Vec<u8>)| {
        let program = Program::from_bytes(&bytes).map_err(|_| messages::INVALID_FILTER.to_owned())?;
        Ok(Filter::raw(format!("of descriptor {fd}"), program))
    };
    programs.into_iter().map(filter).collect()
}

fn caller(host: &Host, lexed: &Lexed) -> bwrap::Caller {
    let has = |wanted: &[Switch]| {
        lexed.flags.iter().any(|flag| matches!(flag, Flag::Switch(switch) if wanted.contains(switch)))
    };
    let exists = |path: &str| Path::new(path).exists();
    let says = |path: &str, text: &str| std::fs::read_to_string(path).is_ok_and(|value| value.starts_with(text));
    let (uid, gid, cwd) = (host.uid, host.gid, host.cwd.clone());
    let tries_user = has(&[Switch::UnshareAll, Switch::UnshareUserTry]);
    let tries_cgroup = has(&[Switch::UnshareAll, Switch::UnshareCgroupTry]);
    bwrap::Caller {
        uid,
        gid,
        cwd,
        user_namespaces: tries_user
            && exists("/proc/self/ns/user")
            && !says("/sys/module/user_namespace/parameters/enable", "N")
            && !says("/proc/sys/user/max_user_namespaces", "0\n"),
        cgroup_namespaces: tries_cgroup && exists("/proc/self/ns/cgroup"),
    }
}

/// A number that nothing is open under could be that of something that is opened later, and then be used in its place.
fn check_descriptors(policy: &Policy) -> Result<(), String> {
    let Some(asked) = &policy.bubblewrap else { return Ok(()) };
    let of_files = policy.fs.iter().filter_map(|op| match op {
        FsOp::BindDescriptor { fd, .. } | FsOp::Data { fd, .. } => Some(*fd),
        _ => None,
    });
    for fd in asked.handed.kept_from_command().chain(asked.handed.sync).chain(of_files) {
        fcntl(sys::borrow_number(fd), FcntlArg::F_GETFD)
            .map_err(|errno| format!("Invalid fd: {fd}: {}", messages::strerror(errno)))?;
    }
    Ok(())
}

fn read_all(fd: i32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(sys::borrow_number(fd).try_clone_to_owned()?).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn print(text: &str) -> u8 {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => 0,
        Err(_) => FAILED,
    }
}

/// How messages are said.
struct Voice {
    /// Each begins with its level.
    levels: bool,
}

impl Voice {
    fn say(&self, level: u8, text: &str) {
        let prefix = if self.levels { format!("<{level}>") } else { String::new() };
        output::note(&format!("{prefix}bwrap: {text}"));
    }

    fn warn(&self, text: &str) {
        self.say(WARNING, text);
    }

    fn fail(&self, text: &str) -> u8 {
        self.say(ERROR, text);
        FAILED
    }
}
