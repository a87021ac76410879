//! What a run without namespaces takes of the host while it lasts: the private folder, and the processes that its command
//! leaves behind.

use std::time::Duration;

use nix::sys::prctl;
use nix::unistd::Pid;

use super::failure::{Failure, Fault, Stage};
use super::scratch::{Folder, HASTY, PATIENT};
use super::tree;
use crate::plan::Plan;

/// With namespaces there is nothing in it.
pub(super) struct Place {
    /// The private folder.
    pub(super) folder: Option<Folder>,
    /// This process's other children, and whether it was a subreaper.
    before: Option<(Vec<Pid>, bool)>,
}

impl Place {
    pub(super) fn take(plan: &Plan) -> Result<Self, Failure> {
        let Some(in_place) = &plan.in_place else { return Ok(Self { folder: None, before: None }) };
        let failed = |errno| Failure::new(Fault { stage: Stage::Subreaper, index: 0, errno }, plan);
        // Where processes can't be listed none of them will be found either: init is then the only one to end them.
        let before = tree::children().unwrap_or_default();
        let was_subreaper = prctl::get_child_subreaper().map_err(failed)?;
        prctl::set_child_subreaper(true).map_err(failed)?;
        let mut place = Self { folder: None, before: Some((before, was_subreaper)) };
        if let Some(scratch) = &in_place.scratch {
            match Folder::make(scratch) {
                Ok(folder) => place.folder = Some(folder),
                Err(errno) => {
                    // What is there is not ours.
                    place.leave(HASTY);
                    return Err(Failure::new(Fault { stage: Stage::Scratch, index: 0, errno }, plan));
                }
            }
        }
        Ok(place)
    }

    /// Nothing will run here.
    pub(super) fn give_up(&self, fault: Fault, plan: &Plan) -> Failure {
        self.leave(PATIENT);
        Failure::new(fault, plan)
    }

    /// After somebody killed init, what it would have ended.
    pub(super) fn end_orphans(&self) {
        if let Some((before, _)) = &self.before
            && tree::end_orphans(before).is_err()
        {
            // /proc has gone: they can't be found.
        }
    }

    /// `false`: the private folder could not be removed.
    pub(super) fn leave(&self, patience: Duration) -> bool {
        if let Some((_, was_subreaper)) = self.before
            && prctl::set_child_subreaper(was_subreaper).is_err()
        {
            // The kernel has just let it be set.
        }
        self.folder.as_ref().is_none_or(|folder| folder.remove(patience).is_ok())
    }
}
