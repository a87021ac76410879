//! Git's configurations without the tokens that CI systems put into them: headers, and what stands before the host of an address.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Error, read};
use crate::host::open_without_links;
use crate::policy::{FsOp, Placement, Policy, SandboxPath};

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

fn without_tokens(config: &str) -> String {
    let mut clean = String::with_capacity(config.len());
    let mut goes_on = false;
    for line in config.split_inclusive('\n') {
        let is_header = goes_on || line.to_ascii_lowercase().contains("extraheader");
        // A backslash at its end goes on with the line.
        goes_on = is_header && line.trim_end_matches(['\n', '\r']).ends_with('\\');
        if is_header {
            continue;
        }
        let mut rest = line;
        while let Some((before, address)) = rest.split_once("://") {
            let host = address.find(['/', '"', ' ', '\t', '\n']).unwrap_or(address.len());
            let (authority, behind) = address.split_at(host);
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            clean.push_str(&format!("{before}://{authority}"));
            rest = behind;
        }
        clean.push_str(rest);
    }
    clean
}

#[cfg(test)]
mod tests {
    #[test]
    fn tokens_are_taken_out_of_a_configuration() {
        let config = "[core]\n\tbare = false\n[http \"https://github.com/\"]\n\textraheader = AUTHORIZATION: basic abc\\\n  def\n\
                      [remote \"origin\"]\n\turl = https://gitlab-ci-token:glcbt@gitlab.example.org/a/b.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
                      [remote \"x\"]\n\turl = git@github.com:a/b.git\n";
        let clean = "[core]\n\tbare = false\n[http \"https://github.com/\"]\n\
                     [remote \"origin\"]\n\turl = https://gitlab.example.org/a/b.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
                     [remote \"x\"]\n\turl = git@github.com:a/b.git\n";
        assert_eq!(super::without_tokens(config), clean);
        assert_eq!(super::without_tokens(clean), clean);
    }
}
