//! `shannot changes …`: what a command changed in a workspace that it saw through an overlay.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;

use super::args::Changes as Subcommand;
use super::output::{self, Complaint, ErrorFormat, note};
use crate::changes::{
    self, Applied, Change, ChangeKind, Error, Listed, Node, Options, Protected, Refusal, Run, State, Store,
};
use crate::policy::{FsOp, Policy};
use crate::profile::split_destination;

/// Exit code where something was not applied.
const REFUSED: u8 = 1;

/// The cure where an overlay can't be mounted.
const UNFIT: &str = "not every file system can be the top of an overlay (FUSE often can't; `dmesg` says what it lacks): \
                     set XDG_STATE_HOME to a folder of yours on ext4, xfs, btrfs or tmpfs";

impl From<Error> for Complaint {
    fn from(error: Error) -> Self {
        Self::new("changes", &error, error.hint())
    }
}

/// What is wanted of the changes.
struct Artifact {
    path: PathBuf,
    /// Where; in the workspace, unless the caller says another place.
    destination: Option<PathBuf>,
}

impl Artifact {
    /// `PATH[:DEST]`, split where `--ro SRC:DEST` is.
    fn new(text: &OsString) -> Result<Self, Complaint> {
        let refuse =
            |reason: String| Complaint::plain("changes", format!("cannot use option --artifact: {text:?}: {reason}"));
        let (path, destination) = split_destination(text);
        if path.is_empty() {
            return Err(refuse("it names no path".to_owned()).with_hint("the whole workspace is `.:DEST`"));
        }
        if destination.is_some_and(OsStr::is_empty) {
            return Err(refuse("no destination stands behind the colon".to_owned()));
        }
        // Said now, before the command runs in vain.
        let absolute = |path| std::path::absolute(path).map_err(|error| refuse(error.to_string()));
        Ok(Self { path: path.into(), destination: destination.map(absolute).transpose()? })
    }

    /// Copies it out and says what can't be had. Whether all of it was.
    fn copy(&self, run: &Run, hidden: &[PathBuf]) -> bool {
        let name = changes::printable(self.path.as_os_str());
        match run.artifact(&self.path, self.destination.as_deref(), hidden) {
            Ok(left_out) => {
                for left in &left_out {
                    note(&format!("shannot: artifact {}: {}", changes::printable(left.path.as_os_str()), left.why));
                }
                left_out.is_empty()
            }
            Err(error) => {
                Complaint::from(error).about(format!("artifact {name}")).say(ErrorFormat::Text);
                false
            }
        }
    }
}

/// The changes of a run in its making.
pub(super) struct Kept {
    store: Store,
    run: Run,
    artifacts: Vec<Artifact>,
    hidden: Vec<PathBuf>,
}

/// Paths of the workspace where the command sees something else than what the host has there: hidden files, git's
/// configuration without its tokens, what is mounted over it.
fn hidden(policy: &Policy, workspace: &Path) -> Vec<PathBuf> {
    let mut hidden = Vec::new();
    for op in &policy.fs {
        let target = op.target().as_path();
        match op {
            FsOp::Bind { source, .. } if source == target => hidden.retain(|path| path != target),
            FsOp::Dir { .. } | FsOp::Symlink { .. } | FsOp::Chmod { .. } | FsOp::RemountReadOnly { .. } => {}
            // Links in a name of the host's lead to the same inside.
            _ => hidden.extend(fs::canonicalize(target).into_iter().chain([target.to_owned()])),
        }
    }
    hidden.retain(|path| path != workspace && path.starts_with(workspace));
    hidden
}

impl Kept {
    /// For a policy whose workspace is an overlay; it learns where the changes go.
    pub(super) fn new(policy: &mut Policy, artifacts: &[OsString]) -> Result<Option<Self>, Complaint> {
        let Some(workspace) = policy.workspace.clone().filter(|workspace| workspace.overlay) else {
            return match artifacts {
                [] => Ok(None),
                _ => Err(Complaint::plain("changes", "--artifact copies out of an overlay: --workspace-mode overlay")),
            };
        };
        let artifacts = artifacts.iter().map(Artifact::new).collect::<Result<_, _>>()?;
        let store = Store::of_caller()?;
        let run = store.create(&workspace.path)?;
        let hidden = hidden(policy, &workspace.path);
        policy.keep_changes(run.upper(), run.work());
        Ok(Some(Self { store, run, artifacts, hidden }))
    }

    /// After everything has ended, or nothing was started. What fails here is said and changes no verdict of the command's: a
    /// caller that reads 125 starts it again.
    pub(super) fn finish(mut self, ran: Result<u8, Complaint>) -> Result<u8, Complaint> {
        let id = self.run.id().to_owned();
        let workspace = self.run.record().workspace.to_str().map(str::to_owned);
        // overlayfs says in the kernel's log alone what it misses.
        let is_refused = |complaint: &Complaint| {
            complaint.stage == "mount" && complaint.errno == Some(Errno::EINVAL as i32) && complaint.object == workspace
        };
        let with_cure = |complaint: Complaint| match is_refused(&complaint) {
            true => complaint.and_hint(UNFIT),
            false => complaint,
        };
        let is_empty = self.run.is_unchanged().unwrap_or(false);
        if is_empty && (ran.is_err() || self.artifacts.is_empty()) {
            if let Err(error) = self.store.discard_held(self.run) {
                Complaint::from(error).about(format!("run {id} is without changes, and stays")).say(ErrorFormat::Text);
            }
            return ran.map_err(with_cure);
        }
        let mut failed = false;
        let code = ran.as_ref().map_or_else(|complaint| complaint.code, |code| *code);
        if let Err(error) = self.run.finish(code) {
            failed = true;
            Complaint::from(error).about(format!("run {id}")).say(ErrorFormat::Text);
        }
        if ran.is_ok() {
            for artifact in &self.artifacts {
                failed |= !artifact.copy(&self.run, &self.hidden);
            }
        }
        note(&format!("shannot: what changed is kept: shannot changes show {id}"));
        // A job that succeeded has not, if what is wanted of it could not be had.
        if failed && matches!(ran, Ok(0)) { Ok(REFUSED) } else { ran.map_err(with_cure) }
    }
}

pub(super) fn changes(subcommand: &Subcommand) -> Result<u8, Complaint> {
    let store = Store::of_caller()?;
    match subcommand {
        Subcommand::List { json } => list(&store, *json),
        Subcommand::Show { run, json } => {
            let run = open(&store, run)?;
            print(&run.changes(&Protected::default())?, *json).map(|()| 0)
        }
        Subcommand::Apply { run, json, force, only } => {
            let mut run = open(&store, run)?;
            let protected = Protected::default();
            let applied = run.apply(&Options { protected: &protected, force: *force, only })?;
            say_applied(&run, applied, *json)
        }
        Subcommand::Discard { run } => {
            let (id, left) = store.discard(run)?;
            output::result(&format!("{id}: discarded\n"))?;
            let Some(error) = left else { return Ok(0) };
            let about = "what an interrupted apply left in the workspace stays there".to_owned();
            Complaint::from(error).about(about).say(ErrorFormat::Text);
            Ok(REFUSED)
        }
    }
}

fn open(store: &Store, name: &str) -> Result<Run, Complaint> {
    let run = store.open(name)?;
    if run.record().state == State::Running {
        note(&format!("shannot: run {} was interrupted: its command had not ended", run.id()));
    }
    Ok(run)
}

fn say_applied(run: &Run, applied: Applied, json: bool) -> Result<u8, Complaint> {
    match applied {
        Applied::Before => {
            note(&format!("shannot: run {} was applied already; --force applies it again", run.id()));
            if json { print(&[], true).map(|()| 0) } else { Ok(0) }
        }
        Applied::Done(changes) => {
            print(&changes, json)?;
            let refused = changes.iter().filter(|change| change.is_refused()).count();
            if refused == 0 {
                return Ok(0);
            }
            note(&format!("shannot: applied, but for {refused} that can't be carried over"));
            Ok(REFUSED)
        }
        Applied::Conflicts(changes) => {
            print(&changes, json)?;
            let message = "nothing was applied: the workspace was changed since the run started";
            let complaint = Complaint::plain("changes", message).with_code(REFUSED);
            // The one file that is written by looking.
            let is_index = |change: &Change| change.path.as_path() == Path::new(".git/index");
            let complaint = match changes.iter().filter(|change| change.conflict).all(is_index) {
                true => complaint.with_hint(
                    "`git status` alone writes .git/index: where nothing was staged meanwhile, nothing is lost",
                ),
                false => complaint,
            };
            Err(complaint.and_hint("--force applies all the same, over what is there now"))
        }
    }
}

fn list(store: &Store, json: bool) -> Result<u8, Complaint> {
    let runs = store.list()?;
    if json {
        let entries: Vec<RunEntry<'_>> = runs.iter().map(RunEntry::new).collect();
        return output::result_json(&entries).map(|()| 0);
    }
    let mut text = String::new();
    for run in &runs {
        let entry = RunEntry::new(run);
        let code = entry.exit_code.map_or("-".to_owned(), |code| code.to_string());
        let workspace = run.record.as_ref().map(|record| changes::printable(record.workspace.as_os_str()));
        let workspace = workspace.unwrap_or_default();
        text.push_str(&format!("{}  {:<11}  {code:>3}  {workspace}\n", entry.run, entry.state));
    }
    output::result(&text).map(|()| 0)
}

/// Text for programs: as it is, or escaped as for people where it is not UTF-8; then its bytes say what it is.
fn json_text(text: &OsStr) -> (String, Option<Vec<u8>>) {
    match text.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (changes::printable(text), Some(text.as_bytes().to_vec())),
    }
}

/// A run, as JSON has it.
#[derive(Debug, Serialize)]
struct RunEntry<'a> {
    run: &'a str,
    state: &'static str,
    exit_code: Option<u8>,
    /// See [`json_text`].
    workspace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_bytes: Option<Vec<u8>>,
}

impl<'a> RunEntry<'a> {
    fn new(run: &'a Listed) -> Self {
        let state = match &run.record {
            None => "broken",
            // Its launcher was killed.
            Some(record) if record.state == State::Running && !run.is_in_use => "interrupted",
            Some(record) => record.state.name(),
        };
        let workspace = run.record.as_ref().map(|record| json_text(record.workspace.as_os_str()));
        let (workspace, workspace_bytes) = workspace.unwrap_or_default();
        let exit_code = run.record.as_ref().and_then(|record| record.exit_code);
        Self { run: &run.id, state, exit_code, workspace, workspace_bytes }
    }
}

/// A change, as JSON has it.
#[derive(Debug, Serialize)]
struct ChangeEntry {
    /// See [`json_text`].
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<Vec<u8>>,
    change: ChangeKind,
    #[serde(rename = "type")]
    node: Node,
    /// Where a link leads, like `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bytes: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refusal>,
    conflict: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
}

impl ChangeEntry {
    fn new(change: &Change) -> Self {
        let path = if change.path.as_os_str().is_empty() { ".".as_ref() } else { change.path.as_path() };
        let (path, path_bytes) = json_text(path.as_os_str());
        let (target, target_bytes) = change.target.as_deref().map(json_text).unzip();
        let has_mode = change.kind != ChangeKind::Deleted && matches!(change.node, Node::File | Node::Directory);
        Self {
            path,
            path_bytes,
            change: change.kind,
            node: change.node,
            target,
            target_bytes: target_bytes.flatten(),
            mode: has_mode.then(|| format!("{:04o}", change.mode)),
            refused: change.refused,
            conflict: change.conflict,
            remark: change.remark(),
        }
    }
}

fn print(changes: &[Change], json: bool) -> Result<(), Complaint> {
    if json {
        let entries: Vec<ChangeEntry> = changes.iter().map(ChangeEntry::new).collect();
        return output::result_json(&entries);
    }
    let mut text = String::new();
    for change in changes {
        text.push_str(&change.line());
        text.push('\n');
    }
    output::result(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_which_bytes() {
        let (text, bytes) = json_text(OsStr::from_bytes(b"\xff"));
        assert_eq!((text.as_str(), bytes), ("\\xff", Some(vec![0xff])));
        assert_eq!(json_text(OsStr::new("\\xff")), ("\\xff".to_owned(), None));
    }
}
