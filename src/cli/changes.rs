//! `shannot changes …`: what a command changed in a workspace that it saw through an overlay.

use serde::Serialize;

use super::args::Changes as What;
use super::output::{self, Complaint, note};
use crate::changes::{self, Applied, Change, Error, Listed, Node, Options, Protected, Refusal, Run, State, Store};

/// Exit code where something was not applied.
const REFUSED: u8 = 1;

impl From<Error> for Complaint {
    fn from(error: Error) -> Self {
        Self::new("changes", &error, error.hint())
    }
}

pub(super) fn changes(what: &What) -> Result<u8, Complaint> {
    let store = Store::of_caller()?;
    match what {
        What::List { json } => list(&store, *json),
        What::Show { run, json } => {
            let run = open(&store, run)?;
            print(&run.changes(&Protected::default())?, *json).map(|()| 0)
        }
        What::Apply { run, json, force, only } => {
            let mut run = open(&store, run)?;
            let protected = Protected::default();
            let applied = run.apply(&Options { protected: &protected, force: *force, only })?;
            say_applied(&run, applied, *json)
        }
        What::Discard { run } => {
            let id = store.discard(run)?;
            output::result(&format!("{id}: discarded\n")).map(|()| 0)
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
            let hint = "--force applies all the same, over what is there now";
            Err(Complaint::plain("changes", message).with_hint(hint).with_code(REFUSED))
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
        text.push_str(&format!("{}  {:<11}  {code:>3}  {}\n", entry.run, entry.state, entry.workspace));
    }
    output::result(&text).map(|()| 0)
}

/// A run, as JSON has it.
#[derive(Debug, Serialize)]
struct RunEntry<'a> {
    run: &'a str,
    state: &'static str,
    exit_code: Option<u8>,
    workspace: String,
}

impl<'a> RunEntry<'a> {
    fn new(run: &'a Listed) -> Self {
        let state = match &run.record {
            None => "broken",
            // Its launcher was killed.
            Some(record) if record.state == State::Running && !run.is_in_use => "interrupted",
            Some(record) => record.state.name(),
        };
        let workspace = run.record.as_ref().map(|record| changes::printable(record.workspace.as_os_str()));
        let exit_code = run.record.as_ref().and_then(|record| record.exit_code);
        Self { run: &run.id, state, exit_code, workspace: workspace.unwrap_or_default() }
    }
}

/// A change, as JSON has it.
#[derive(Debug, Serialize)]
struct ChangeEntry {
    /// Escaped as in the text where it is not UTF-8.
    path: String,
    change: changes::What,
    #[serde(rename = "type")]
    node: Node,
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
        let path = path.to_str().map_or_else(|| changes::printable(path.as_os_str()), str::to_owned);
        let has_mode = change.what != changes::What::Deleted && matches!(change.node, Node::File | Node::Directory);
        Self {
            path,
            change: change.what,
            node: change.node,
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
        text.push_str(&format!("{}  {}", change.letter(), change.name()));
        if let Some(remark) = change.remark() {
            text.push_str(&format!("  ({remark})"));
        }
        text.push('\n');
    }
    output::result(&text)
}
