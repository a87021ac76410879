//! What is hidden is hidden under every name that it has inside. Names are compared without links and `..`: a path's own
//! text says little about where it leads.

use std::path::{Path, PathBuf};

use super::Step;
use super::view::View;
use crate::host::Files;
use crate::policy::SandboxPath;

/// What the steps so far show of the host, and what of that is hidden.
#[derive(Default)]
pub(super) struct Hiding {
    shown: Vec<Shown>,
    hidden: Vec<Hidden>,
    /// Folders in the place of hidden ones, for what is shown below them.
    rooms: Vec<SandboxPath>,
}

/// A bind.
struct Shown {
    real: PathBuf,
    target: SandboxPath,
}

impl Shown {
    /// Where it shows the hidden host path, or the part of it that it is.
    fn place_of(&self, real: &Path) -> Option<SandboxPath> {
        match real.strip_prefix(&self.real) {
            Ok(below) => Some(self.target.join(below)),
            Err(_) => self.real.starts_with(real).then(|| self.target.clone()),
        }
    }
}

struct Hidden {
    path: SandboxPath,
    /// The host paths that are meant: the one of this name, and what is bound there inside.
    real: Vec<PathBuf>,
}

impl Hiding {
    /// A bind is a step now. Of what was hidden before, it shows what it names, and nothing else.
    pub(super) fn show(&mut self, steps: &mut Vec<Step>, source: &Path, real: PathBuf, target: &SandboxPath) {
        let shown = Shown { real, target: target.clone() };
        for hidden in &self.hidden {
            // By its text: a link to something hidden may be another's, and names nothing.
            let is_named = target.is_under(&hidden.path) || source.starts_with(hidden.path.as_path());
            let places = hidden.real.iter().filter_map(|real| shown.place_of(real));
            let covered = places.filter(|place| !is_named || place != target);
            steps.extend(covered.map(|target| Step::Hide { target }));
        }
        self.shown.push(shown);
    }

    /// Hides a path, and all that the binds so far show of it.
    pub(super) fn hide(&mut self, steps: &mut Vec<Step>, files: &dyn Files, path: &SandboxPath) {
        // What is not there, or is a link that leads nowhere, may still come.
        let there = files.kind(path.as_path()).and_then(|_| files.find(path.as_path()));
        let mut real = vec![there.map_or_else(|_| path.as_path().to_owned(), |found| found.path)];
        // Where all names inside are the host's, what the path shows inside is what it is outside.
        let mut inside = None;
        if self.shown.iter().any(|shown| shown.real != shown.target.as_path()) {
            let last = steps.iter().rposition(|step| !matches!(step, Step::Hide { .. })).map_or(0, |last| last + 1);
            let seen = View::new(steps.get(..last).unwrap_or_default(), files).resolve(path.as_path());
            if let Some(seen) = seen {
                let shows = seen.host.and_then(|host| files.find(&host).ok()).map(|found| found.path);
                real.extend(shows.filter(|shows| !real.contains(shows)));
                inside = Some(seen.inside);
            }
        }
        let mut targets = vec![path.clone()];
        for place in self.shown.iter().flat_map(|shown| real.iter().filter_map(|real| shown.place_of(real))) {
            if !targets.iter().chain(&inside).any(|covered| place.is_under(covered)) {
                targets.push(place);
            }
        }
        steps.extend(targets.into_iter().map(|target| Step::Hide { target }));
        self.hidden.push(Hidden { path: path.clone(), real });
    }

    /// What comes below a hidden folder needs a place: an empty folder that can be looked into.
    pub(super) fn make_room(&mut self, steps: &mut Vec<Step>, target: &SandboxPath) {
        let above = |step: &&Step| target.is_under(step.target()) && target != step.target();
        let over_it = steps.iter().rev().filter(above).map_while(|step| match step {
            Step::Hide { target } => Some(target),
            _ => None,
        });
        // The widest one covers the others.
        let Some(folder) = over_it.min_by_key(|folder| folder.as_os_str().len()).cloned() else { return };
        steps.push(Step::Tmpfs { target: folder.clone(), mode: 0o755, size: None });
        self.rooms.push(folder);
    }

    /// Nothing can be made in them by the command.
    pub(super) fn finish(self, steps: &mut Vec<Step>) {
        steps.extend(self.rooms.into_iter().map(|target| Step::RemountReadOnly { target }));
    }
}
