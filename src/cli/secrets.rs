//! `--secret`: what is handed over as a file that only the command sees.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::output::Complaint;
use crate::sys;

/// Open as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Secrets(Vec<(String, Opened)>);

#[derive(Debug)]
enum Opened {
    File(File),
    Number(RawFd),
}

impl Secrets {
    /// `NAME=fd:N` or `NAME=file:PATH`.
    pub(super) fn open(words: &[OsString]) -> Result<Self, Complaint> {
        let secrets: Vec<(String, Opened)> = words.iter().map(open_secret).collect::<Result<_, _>>()?;
        for (index, (name, _)) in secrets.iter().enumerate() {
            if secrets.iter().take(index).any(|(other, _)| other == name) {
                return Err(Complaint::plain("secret", format!("the secret {name} is named twice")));
            }
        }
        Ok(Self(secrets))
    }

    pub(super) fn numbers(&self) -> Vec<(String, RawFd)> {
        let number = |opened: &Opened| match opened {
            Opened::File(file) => file.as_raw_fd(),
            Opened::Number(number) => *number,
        };
        self.0.iter().map(|(name, opened)| (name.clone(), number(opened))).collect()
    }
}

fn open_secret(word: &OsString) -> Result<(String, Opened), Complaint> {
    // Never the word itself: somebody may have put the secret there.
    let refuse = |reason: &str| {
        Complaint::plain("secret", format!("cannot use option --secret: {reason}"))
            .with_hint("write NAME=fd:N for an open descriptor, or NAME=file:PATH")
    };
    let text = word.to_str().ok_or_else(|| refuse("it is not UTF-8"))?;
    let (name, source) = text.split_once('=').ok_or_else(|| refuse("it has no \"=\""))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(refuse("a name has letters, digits, \"_\", \"-\" and \".\", and does not begin with a dot"));
    }
    if let Some(number) = source.strip_prefix("fd:") {
        let number: RawFd = number.parse().map_err(|_| refuse("fd: takes a number"))?;
        if number <= 2 || nix::sys::stat::fstat(sys::borrow_number(number)).is_err() {
            return Err(refuse(&format!("descriptor {number} is not open, or is stdin, stdout or stderr")));
        }
        return Ok((name.to_owned(), Opened::Number(number)));
    }
    let path = source.strip_prefix("file:").ok_or_else(|| refuse("it names neither fd: nor file:"))?;
    let cannot_read = |error: io::Error| {
        Complaint::new("secret", &error, None).about(format!("cannot read the secret {name} from {path:?}"))
    };
    let file = File::open(path).map_err(cannot_read)?;
    if file.metadata().map_err(cannot_read)?.is_dir() {
        return Err(cannot_read(Errno::EISDIR.into()));
    }
    Ok((name.to_owned(), Opened::File(file)))
}
