//! Landlock rules for what a layout shows. A rule is for a whole tree, and none can be taken back below it: a folder with
//! something hidden in it gets no rule, but each of its entries does.

use std::path::{Path, PathBuf};

use super::layout::Access;
use super::mounts::DEV;
use crate::host::{Host, Kind};
use crate::plan::inside;
use crate::plan::{Rights, Rule, RuleObject};

/// Rules, and what they can't say.
pub(super) struct Rules<'a> {
    host: &'a Host,
    holes: &'a [PathBuf],
    /// Folders of devices, which are holes but where devices are asked for.
    devices: &'a [PathBuf],
    /// Rights for what is read, and besides for what is written.
    base: Rights,
    pub(super) rules: Vec<Rule>,
    /// Folders that can't be listed because of what is hidden below them.
    pub(super) not_listed: Vec<PathBuf>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(host: &'a Host, holes: &'a [PathBuf], devices: &'a [PathBuf], base: Rights) -> Self {
        Self { host, holes, devices, base, rules: Vec::new(), not_listed: Vec::new() }
    }

    pub(super) fn rule(&mut self, path: &Path, directory: bool, rights: Rights) {
        // Not a path that a plan can name, such as one that is too long: nothing is allowed there.
        let Some(path) = inside(path) else { return };
        self.rules.push(Rule { object: RuleObject::Path(path), directory, rights });
    }

    /// What is to be allowed of something that is shown, and of all below it.
    pub(super) fn tree(&mut self, path: &Path, directory: bool, access: Access) {
        if directory && self.holes_below(path, access).next().is_some() {
            self.expand(path, access);
            return;
        }
        self.rule(path, directory, self.base);
        match access {
            Access::Read => {}
            Access::Write => self.rule(path, directory, Rights::Write),
            Access::Device => {
                self.rule(path, directory, Rights::Write);
                self.rule(path, directory, Rights::Devices);
            }
        }
    }

    /// What may be known of a folder whose files can't be opened.
    pub(super) fn names(&mut self, path: &Path) {
        if self.holes_below(path, Access::Device).next().is_none() {
            self.rule(path, true, Rights::List);
        }
    }

    /// What must not be opened.
    fn holes(&self, access: Access) -> impl Iterator<Item = &'a PathBuf> + use<'a> {
        self.holes.iter().chain(self.devices.iter().filter(move |_| access != Access::Device))
    }

    fn holes_below<'b>(&self, path: &'b Path, access: Access) -> impl Iterator<Item = &'a PathBuf> + use<'a, 'b> {
        self.holes(access).filter(move |hole| *hole != path && hole.starts_with(path))
    }

    /// Rules for the entries of a folder but the hidden ones. What is made there later is not seen.
    fn expand(&mut self, folder: &Path, access: Access) {
        let files = self.host.files.as_ref();
        // The right to list a folder holds for all folders below it. Where the hidden ones can't be listed anyway, it harms not;
        // nor do names of devices that are mounted below what is shown.
        let is_secret = |hole: &PathBuf| {
            (self.holes.contains(hole) || hole.as_os_str() == DEV)
                && files.kind(hole).is_ok_and(|kind| kind == Kind::Directory)
                && files.names(hole).is_ok()
        };
        if self.holes_below(folder, access).any(is_secret) {
            self.not_listed.push(folder.to_owned());
        } else {
            self.rule(folder, true, Rights::List);
        }
        // Who can't list it can't be told what is in it, and gets nothing.
        for name in files.names(folder).unwrap_or_default() {
            let path = folder.join(name);
            if self.holes(access).any(|hole| *hole == path) {
                continue;
            }
            match files.kind(&path) {
                // What it leads to has rules of its own, or none.
                Ok(Kind::Link(_)) | Err(_) => {}
                Ok(Kind::Device) if access != Access::Device => {}
                Ok(kind) => self.tree(&path, kind == Kind::Directory, access),
            }
        }
    }
}
