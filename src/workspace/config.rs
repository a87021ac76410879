//! Git's configurations without the tokens that CI systems and people put into them: headers, what stands before the host of an
//! address, what credential helpers are told.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Error, read};
use crate::host::open_without_links;
use crate::policy::{FsOp, Placement, Policy, SandboxPath, without_userinfo};

/// Lets the policy show those that have some from memory instead. What is returned must be open until the command runs.
pub(super) fn hide_tokens(policy: &mut Policy) -> Result<Vec<OwnedFd>, Error> {
    let configs: Vec<_> = policy.workspace.iter().flat_map(|workspace| workspace.configs.clone()).collect();
    let mut open = Vec::new();
    for path in configs {
        let failed = |error: io::Error| Error::new("show without its tokens", &path, error);
        let Some(text) = text_of(&path).map_err(|errno| failed(errno.into()))? else { continue };
        let clean = without_tokens(&text);
        if clean == text {
            continue;
        }
        let file = memfd_create("config", MFdFlags::MFD_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let mut file = File::from(file);
        file.write_all(clean.as_bytes()).and_then(|()| file.rewind()).map_err(failed)?;
        let target = SandboxPath::new(&path).map_err(|error| failed(io::Error::other(error)))?;
        let fd = file.as_raw_fd();
        policy.fs.push(FsOp::Data { fd, target, placement: Placement::RoBind, mode: Some(0o644) });
        open.push(file.into());
    }
    Ok(open)
}

/// None where there is none: then there is nothing to show.
fn text_of(path: &Path) -> nix::Result<Option<String>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(None);
    };
    match open_without_links(parent) {
        Ok(folder) => read(&folder, name),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// git-config(1). Keys that hold credentials go with their values, and all that a credential helper is told.
fn without_tokens(config: &str) -> String {
    let mut clean = String::with_capacity(config.len());
    let mut goes_on = false;
    let mut is_credential = false;
    for line in config.split_inclusive('\n') {
        let mut entry = line;
        if !goes_on && line.trim_start().starts_with('[') {
            // A key may stand behind its section.
            let (header, rest) = line.split_at(end_of_header(line));
            is_credential = header.trim_start().to_ascii_lowercase().starts_with("[credential");
            clean.push_str(&without_userinfo(header));
            entry = rest;
        }
        let key = entry.split('=').next().unwrap_or_default().to_ascii_lowercase();
        let is_empty = entry.trim().is_empty();
        let is_secret = goes_on
            || !is_empty && is_credential
            || SECRET_KEYS.iter().any(|secret| key.contains(secret))
            || key.contains("proxy") && entry.contains('@')
            || key.contains("sshcommand") && entry.contains("pass");
        // A backslash at its end goes on with the line.
        goes_on = is_secret && entry.trim_end_matches(['\n', '\r']).ends_with('\\');
        if !is_secret {
            clean.push_str(&without_userinfo(entry));
        } else if entry.len() < line.len() {
            clean.push('\n');
        }
    }
    clean
}

/// Behind the bracket that closes it; its name may have one in quotes.
fn end_of_header(line: &str) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            ']' if !is_quoted => return at + 1,
            _ => {}
        }
    }
    line.len()
}

/// Parts of the names of keys.
const SECRET_KEYS: &[&str] = &["extraheader", "pass", "token", "cookie", "secret"];

#[cfg(test)]
mod tests {
    #[test]
    fn tokens_are_taken_out_of_a_configuration() {
        let config = "[core]\n\tbare = false\n[http \"https://github.com/\"]\n\textraheader = AUTHORIZATION: basic abc\\\n  def\n\
                      [remote \"origin\"]\n\turl = https://gitlab-ci-token:glcbt@gitlab.example.org/a/b.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
                      [remote \"x\"]\n\turl = git@github.com:a/b.git\n[credential \"https://example.org\"]\n\tusername = me\n\
                      \thelper = \"!f() { echo password=TOKEN; }; f\"\n[http]\n\tproxy = user:pw@proxy:80\n\tsslVerify = true\n\
                      [http \"https://[::1]/\"] extraheader = abc\n[a \"]\"] b = 1\n\
                      [url \"https://oauth2:abc@h/\"]\n\tinsteadOf = https://h/\n[sendemail]\n\tsmtpPass = abc\n";
        let clean = "[core]\n\tbare = false\n[http \"https://github.com/\"]\n\
                     [remote \"origin\"]\n\turl = https://gitlab.example.org/a/b.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
                     [remote \"x\"]\n\turl = git@github.com:a/b.git\n[credential \"https://example.org\"]\n[http]\n\tsslVerify = true\n\
                     [http \"https://[::1]/\"]\n[a \"]\"] b = 1\n\
                     [url \"https://h/\"]\n\tinsteadOf = https://h/\n[sendemail]\n";
        assert_eq!(super::without_tokens(config), clean);
        assert_eq!(super::without_tokens(clean), clean);
    }
}
