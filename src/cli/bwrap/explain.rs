//! `shannot bwrap --explain`: the plan, and, option by option, what a hardened profile would do instead.

use std::ffi::OsString;

use super::super::output;
use crate::bwrap::{BindAccess, Fd, Flag, Lexed, Switch, Text};
use crate::plan::Plan;
use crate::report::Enforcement;

pub(super) fn print(lexed: &Lexed, plan: &Plan) -> Result<u8, String> {
    output::result(&text(lexed, plan)).map(|()| 0).map_err(|complaint| complaint.message)
}

fn text(lexed: &Lexed, plan: &Plan) -> String {
    let mut text = plan.to_string();
    text.push_str("\noption by option, and what a hardened profile (`shannot run`) does:\n");
    for flag in &lexed.flags {
        let words: Vec<String> = flag.render().iter().map(quoted).collect();
        text.push_str(&format!("  {}\n", words.join(" ")));
        if let Some(advice) = advice(flag) {
            text.push_str(&format!("      {advice}\n"));
        }
    }
    text.push_str("\nwhat no option asks for, and a hardened profile adds:\n");
    for (layer, state) in &plan.expected {
        if !state.is_full() {
            let (Enforcement::Off { why: reason } | Enforcement::Partial { missing: reason }) = state else { continue };
            text.push_str(&format!("  {:<18} {reason}\n", layer.name()));
        }
    }
    text
}

fn quoted(word: &OsString) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.into_owned() } else { format!("{word:?}") }
}

/// What is weaker about an option than it could be; nothing where it is as strong as a profile's.
fn advice(flag: &Flag) -> Option<&'static str> {
    Some(match flag {
        Flag::Bind { source, .. } if source == "/proc" || source == "/dev" => {
            "shows the host's processes or devices: --proc /proc and --dev /dev make fresh ones, as profiles have them"
        }
        Flag::Bind { source, access: BindAccess::ReadOnly, .. } if source == "/" => {
            "shows all that the caller can read: profile `host` does the same, and hides keys, tokens and agents' sockets"
        }
        Flag::Bind { access: BindAccess::ReadWrite, source, .. } if source == "/" => {
            "lets the command change all that the caller can: bind / read-only, and what it has to write with --rw"
        }
        Flag::Bind { access: BindAccess::ReadWrite, .. } | Flag::BindFd { read_only: false, .. } => {
            "what the command leaves there stays: Landlock keeps the rest of the tree from being written in any other way"
        }
        Flag::Bind { access: BindAccess::Device, .. } => {
            "device nodes work: a profile has null, zero, full, random, urandom, tty, and Landlock limits ioctls on others"
        }
        Flag::Bind { .. } | Flag::BindFd { .. } => "the same, and noexec for all but the allowed commands",
        Flag::Tmpfs { size: None, .. } => "as large as half of the memory: \"limits\": {\"tmpfs_size\": …}",
        Flag::Switch(Switch::ShareNet) => {
            "the host's network, loopback and abstract sockets included: \"network\": \"none\""
        }
        Flag::Switch(Switch::UnshareNet | Switch::UnshareAll) => {
            "\"network\": \"none\" refuses TCP on loopback as well (Landlock)"
        }
        Flag::Switch(Switch::AsPid1) => "nobody reaps: a profile always has an init, which also passes signals on",
        Flag::Switch(Switch::NotASecurityBoundary) => "a submount may stay writable: a profile fails instead",
        Flag::Switch(Switch::UnshareUserTry | Switch::UnshareCgroupTry) => "a profile fails where it is missing",
        Flag::Text(Text::CapAdd, _) => "a profile leaves no capability, also to root",
        Flag::Text(Text::CapDrop, _) | Flag::Switch(Switch::DisableUserns | Switch::DieWithParent) => {
            "always so under a profile"
        }
        Flag::SetEnv(..) | Flag::Text(Text::UnsetEnv, _) => {
            "the caller's other variables are passed on: \"environment\" is the whole environment"
        }
        Flag::Switch(Switch::ClearEnv) => "always so under a profile",
        Flag::Fd(Fd::Seccomp | Fd::AddSeccomp, _) => {
            "a profile has its preset `default` besides, and takes the policy itself (\"seccomp_profile\")"
        }
        Flag::Fd(Fd::Userns | Fd::Userns2 | Fd::Pidns, _) => "shares a namespace with others: a profile's are its own",
        Flag::Fd(Fd::Sync, _) => "a profile closes every descriptor above 2",
        Flag::Text(Text::Dev, _) => "stays writable: a profile's /dev is sealed but for shm",
        Flag::Text(Text::Proc, _) => "kcore, keys, timer_list and others stay readable: a profile masks them",
        _ => return None,
    })
}
