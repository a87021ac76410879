//! `shannot-sh`: a shell, as make, npm, just, Jenkins and Woodpecker call one, whose commands run in the sandbox. And the script
//! that a shell is given, which may lie anywhere.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{self, Component, Path, PathBuf};

use super::args::{Common, Options};
use super::output::{Complaint, ErrorFormat};
use super::run;
use crate::policy::{Access, FsOp, Policy, SandboxPath};
use crate::profile::{Caller, Profile, home_in_passwd};

/// Names by which this program is that shell: a link called `bash`, first on PATH.
const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "ksh", "mksh", "zsh"];
/// Where shells are, whoever is first on PATH.
const FOLDERS: &[&str] = &["/bin", "/usr/bin", "/usr/local/bin"];
const VARIABLE: &str = "SHANNOT_PROFILE";
/// What calls a shell often does so in a folder of the workspace: `make -C`, npm for each package.
const WORKSPACE: &str = "SHANNOT_WORKSPACE";
const SYSTEM_PROFILE: &str = "/etc/shannot/sh.json";
const DEFAULT_PROFILE: &str = "ci";

/// Long options of shells that have a word of their own behind them (bash(1)).
const WITH_WORD: &[&str] = &["--rcfile", "--init-file"];
/// Those with one dash that look like several options of one letter.
const LONG: &[&[u8]] =
    &[b"-rcfile", b"-norc", b"-noprofile", b"-login", b"-verbose", b"-noediting", b"-debugger", b"-help"];

/// The program `shannot-sh`, with the process's own arguments. Gives its exit code.
pub fn main() -> u8 {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    start(&called, arguments.collect()).unwrap_or_else(|complaint| complaint.say(ErrorFormat::Text))
}

fn start(called: &OsStr, arguments: Vec<OsString>) -> Result<u8, Complaint> {
    let name = Path::new(called).file_name().and_then(OsStr::to_str).unwrap_or_default();
    // A login shell's name begins with a dash.
    let name = name.strip_prefix('-').unwrap_or(name);
    let shell = SHELLS.iter().find(|shell| **shell == name).unwrap_or(&"sh");
    let found = FOLDERS.iter().map(|folder| Path::new(folder).join(shell)).find(|path| is_other(path));
    let program = found.ok_or_else(|| Complaint::plain("shell", format!("cannot find the shell {shell:?}")))?;
    let workspace = workspace()?;
    let common = Common { profile: vec![profile()?], profile_from_outside: true, ..Common::default() };
    let command = std::iter::once(program.into_os_string()).chain(arguments).collect();
    run::run(&common, &Options { workspace, ..Options::default() }, command)
}

/// A shell, and not this program under its name.
fn is_other(path: &Path) -> bool {
    let Ok(found) = path.canonicalize() else { return false };
    std::fs::read_link("/proc/self/exe").is_ok_and(|own| own != found)
}

/// One that holds the current directory: elsewhere nothing that the shell wrote would stay.
fn workspace() -> Result<Option<OsString>, Complaint> {
    let Some(chosen) = std::env::var_os(WORKSPACE).filter(|folder| !folder.is_empty()) else { return Ok(None) };
    let cwd = std::env::current_dir().and_then(|cwd| cwd.canonicalize());
    if let (Ok(folder), Ok(cwd)) = (Path::new(&chosen).canonicalize(), cwd)
        && !cwd.starts_with(folder)
    {
        let what = format!("cannot use {WORKSPACE}={}: the current directory lies outside", chosen.display());
        return Err(
            Complaint::plain("workspace", what).with_hint("start the shell in the workspace, or in a folder below it")
        );
    }
    Ok(Some(chosen))
}

fn profile() -> Result<String, Complaint> {
    let Some(chosen) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
        let system = Path::new(SYSTEM_PROFILE).exists();
        return Ok(if system { SYSTEM_PROFILE } else { DEFAULT_PROFILE }.to_owned());
    };
    let what = || Complaint::plain("profile", format!("cannot use {VARIABLE}={}: it is not UTF-8", chosen.display()));
    chosen.to_str().map(str::to_owned).ok_or_else(what)
}

/// Never from what strangers write, by its name or by where links lead: the workspace, the current directory, and the whole
/// checkout that this is a folder of.
pub(super) fn check_origin(profile: &Profile, policy: &Policy, caller: &Caller) -> Result<(), Complaint> {
    let absolute = |path: &Path| path::absolute(path).into_iter().chain(path.canonicalize());
    let checkout = checkout();
    let workspace = policy.workspace.iter().map(|workspace| workspace.path.as_path());
    let written: Vec<PathBuf> =
        workspace.chain([Path::new(".")]).chain(checkout.as_deref()).flat_map(absolute).collect();
    let is_written = |file: &Path| absolute(file).any(|file| written.iter().any(|folder| file.starts_with(folder)));
    // A shell may be started in / or /etc too.
    let is_system = |file: &Path| file.parent() == Path::new(SYSTEM_PROFILE).parent();
    let mut files = profile.files().iter().map(PathBuf::as_path);
    let refuse = |what: String, hint| {
        let what = format!("cannot use {what}: it lies in the workspace, which the job writes");
        Err(Complaint::plain("profile", what).with_hint(hint))
    };
    if let Some(file) = files.find(|file| !is_system(file) && is_written(file)) {
        return refuse(format!("the profile {}", file.display()), "name a profile, or a file that no job can write");
    }
    match caller.home.as_deref().filter(|home| is_written(home) && Some(*home) != home_in_passwd().as_deref()) {
        Some(home) => refuse(format!("HOME={}", home.display()), "toolchains and caches are looked for there"),
        None => Ok(()),
    }
}

/// The outermost folder around the current one that is a repository's, since a job can make one further in. None that holds the
/// caller's home: people keep their configuration in one.
fn checkout() -> Option<PathBuf> {
    let cwd = std::env::current_dir().ok()?;
    let home = home_in_passwd().and_then(|home| home.canonicalize().ok());
    let holds_home = |folder: &Path| home.as_ref().is_some_and(|home| home.starts_with(folder));
    let below = cwd.ancestors().take_while(|folder| !holds_home(folder));
    below.filter(|folder| folder.join(".git").symlink_metadata().is_ok()).last().map(Path::to_owned)
}

/// The script that a shell of the command line is given is shown, wherever it lies: CI systems put it beside the workspace.
pub(super) fn show_script(policy: &mut Policy) {
    let Some(workspace) = &policy.workspace else { return };
    let Some((word, arguments)) = policy.command.split_first() else { return };
    let name = Path::new(word).file_name().and_then(OsStr::to_str);
    let Some(script) = script(arguments).filter(|_| name.is_some_and(|name| SHELLS.contains(&name))) else { return };
    let Some(path) = script_path(script) else { return };
    let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
    if path.starts_with(&workspace.path) || !is_file {
        return;
    }
    if let Ok(target) = SandboxPath::new(&path) {
        policy.fs.push(FsOp::Bind { source: path, target, access: Access::ReadOnly, optional: true });
    }
}

/// Its absolute path, with the name that the shell will look for: `..` leads up from where the current directory really is.
fn script_path(script: &OsStr) -> Option<PathBuf> {
    let path = path::absolute(script).ok()?;
    if !path.components().any(|part| part == Component::ParentDir) {
        return Some(path);
    }
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}

/// The operand that is a script: the first one, unless the command is in the arguments or on stdin.
fn script(arguments: &[OsString]) -> Option<&OsStr> {
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let bytes = word.as_bytes();
        if word == "--" {
            return rest.next().map(OsString::as_os_str);
        }
        if bytes.len() < 2 || !bytes.starts_with(b"-") && !bytes.starts_with(b"+") {
            return Some(word).filter(|word| *word != "-").map(OsString::as_os_str);
        }
        if bytes.starts_with(b"--") {
            if WITH_WORD.iter().any(|option| word == option) {
                rest.next();
            }
            continue;
        }
        // bash takes its long options with one dash too, some of which have a word of their own.
        let is_cluster =
            bytes.iter().skip(1).all(u8::is_ascii_alphabetic) && !LONG.iter().any(|long| bytes.ends_with(long));
        if !is_cluster || bytes.contains(&b'c') || bytes.contains(&b's') {
            return None;
        }
        // `-eo pipefail`
        if bytes.ends_with(b"o") || bytes.ends_with(b"O") {
            rest.next();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_of_a_shell_is_its_first_operand() {
        let operand = |line: &str| {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            script(&words).map(|word| word.to_str().unwrap().to_owned())
        };
        for line in [
            "x.sh a b",
            "-e x.sh",
            "-eo pipefail x.sh",
            "-e -o pipefail x.sh -c",
            "-x -- x.sh",
            "--noprofile --norc -e x.sh",
            "--rcfile y x.sh",
            "+e x.sh",
        ] {
            assert_eq!(operand(line).as_deref(), Some("x.sh"), "{line}");
        }
        for line in [
            "-rcfile y x.sh",
            "-init-file y x.sh",
            "-c x.sh",
            "-ec x.sh",
            "-euo pipefail -c x.sh",
            "-s x.sh",
            "",
            "-",
            "-e",
        ] {
            assert_eq!(operand(line), None, "{line}");
        }
    }
}
