//! What can have changed, what of it is never applied, and why.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device node.
    Device,
}

impl Node {
    /// For sentences.
    pub fn name(self) -> &'static str {
        match self {
            Node::File => "file",
            Node::Directory => "folder",
            Node::Link => "symbolic link",
            Node::Fifo => "named pipe",
            Node::Socket => "socket",
            Node::Device => "device node",
        }
    }
}

/// What happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// Another content, another text of a link, or another name of a file (a hard link) instead of a copy.
    Modified,
    /// It is gone, with all that was in it.
    Deleted,
    /// Something of another kind is in its place.
    Retyped,
    /// Only its permissions.
    Mode,
}

/// Why a change is not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// It is a protected path, or would take one away.
    Protected,
    /// A named pipe, socket or device node.
    Special,
    /// Nothing but the set-user-ID or set-group-ID bit.
    SetId,
    /// The path is longer than programs can use.
    TooLong,
    /// Something is mounted there that the command did not see.
    Mounted,
    /// The workspace's folder can't be looked into.
    Unreadable,
    /// A name that apply needs for itself.
    Reserved,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Protected => "protected",
            Refusal::Special => "special files are not carried over",
            Refusal::SetId => "set-user-ID and set-group-ID bits are not carried over",
            Refusal::TooLong => "the path is too long",
            Refusal::Mounted => "something else is mounted there",
            Refusal::Unreadable => "the workspace's folder can't be looked into",
            Refusal::Reserved => "the name is Shannot's own",
        })
    }
}

/// One difference between what the command saw and the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Relative to the workspace; empty for the workspace itself.
    pub path: PathBuf,
    /// What happened.
    pub kind: ChangeKind,
    /// What it is now; of what was deleted, what it was.
    pub node: Node,
    /// Why it stays as it is.
    pub refused: Option<Refusal>,
    /// It is applied without its set-user-ID and set-group-ID bits.
    pub strips_set_id: bool,
    /// The workspace's own file was changed after the run had started.
    pub conflict: bool,
    /// The permissions that it will have.
    pub mode: u32,
    /// Those are others than the workspace's file has.
    pub has_other_mode: bool,
    /// The text of a symbolic link that will be there.
    pub target: Option<OsString>,
    /// Device and inode of the workspace's folder whose permissions are meant.
    pub(super) identity: Option<(u64, u64)>,
}

impl Change {
    /// The letter that `shannot changes show` prints.
    pub fn letter(&self) -> char {
        match self.kind {
            _ if self.refused.is_some() => '!',
            ChangeKind::Added => 'A',
            ChangeKind::Modified => 'M',
            ChangeKind::Deleted => 'D',
            ChangeKind::Retyped => 'T',
            ChangeKind::Mode => 'm',
        }
    }

    /// What a reader should know beside the letter.
    pub fn remark(&self) -> Option<String> {
        let refusal = match self.refused {
            Some(Refusal::Special) => Some(format!("a {}: {}", self.node.name(), Refusal::Special)),
            Some(refusal) => Some(refusal.to_string()),
            None if self.strips_set_id => Some(Refusal::SetId.to_string()),
            None => None,
        };
        let conflict = self.conflict.then(|| "changed in the workspace since the run started".to_owned());
        match (refusal, conflict) {
            (Some(refusal), Some(conflict)) => Some(format!("{refusal}; {conflict}")),
            (one, other) => one.or(other),
        }
    }

    /// Whether not all of it can be applied.
    pub fn is_refused(&self) -> bool {
        self.refused.is_some() || self.strips_set_id
    }

    /// The line for people: letter, name, where a link leads, and what else there is to know. No name looks like more than a name.
    pub fn line(&self) -> String {
        let mut line = format!("{}  {}", self.letter(), self.name());
        if let Some(target) = &self.target {
            line.push_str(&format!(" -> {}", without_gaps(&printable(target))));
        }
        let has_mode = match self.node {
            _ if self.refused.is_some() || self.kind == ChangeKind::Deleted => false,
            Node::File => self.has_other_mode || self.mode & 0o111 != 0,
            Node::Directory => self.kind == ChangeKind::Mode,
            _ => false,
        };
        let mode = has_mode.then(|| format!("mode {:04o}", self.mode));
        let remarks: Vec<String> = mode.into_iter().chain(self.remark()).collect();
        if !remarks.is_empty() {
            line.push_str(&format!("  ({})", remarks.join("; ")));
        }
        line
    }

    /// The path for people: see [`printable`]. A folder ends with a slash. Two blanks, and an arrow behind one, are in none.
    pub fn name(&self) -> String {
        let mut name = if self.path.as_os_str().is_empty() { ".".to_owned() } else { printable(self.path.as_os_str()) };
        name = without_gaps(&name).replace(" ->", "\\u{20}->");
        if self.node == Node::Directory {
            name.push('/');
        }
        name
    }
}

/// A file name as it can be printed anywhere: control characters, what turns the direction of writing, and what is not
/// UTF-8 are escaped.
pub fn printable(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '"' | '\'' => text.push(letter),
                _ => text.extend(letter.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            // A String takes all that is written.
            if write!(text, "\\x{byte:02x}").is_err() {}
        }
    }
    text
}

/// Remarks stand behind two blanks.
fn without_gaps(text: &str) -> String {
    text.replace("  ", " \\u{20}")
}

/// Paths of a workspace that apply never changes, and that it does not let disappear with a folder around them.
#[derive(Debug, Clone)]
pub struct Protected(Vec<PathBuf>);

impl Protected {
    /// What git executes, or reads where to find what it executes.
    pub const GIT: &'static [&'static str] =
        &[".git/hooks", ".git/config", ".git/config.worktree", ".git/commondir", ".git/modules", ".git/worktrees"];

    /// These, relative to the workspace.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self(paths.into_iter().map(Into::into).collect())
    }

    /// Whether this may not become what the change makes of it. A folder around a protected path may stay a folder, and
    /// nothing else.
    pub(super) fn refuses(&self, path: &Path, becomes: Option<Node>) -> bool {
        self.0.iter().any(|protected| {
            begins_with(path, protected) || (begins_with(protected, path) && becomes != Some(Node::Directory))
        })
    }
}

impl Default for Protected {
    fn default() -> Self {
        Self::new(Self::GIT)
    }
}

/// Upper and lower case are the same: on some file systems they are.
fn begins_with(path: &Path, start: &Path) -> bool {
    let mut parts = path.iter();
    start.iter().all(|part| parts.next().is_some_and(|other| other.eq_ignore_ascii_case(part)))
}
