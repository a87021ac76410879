//! The new root as the steps will make it, seen through the host's files: what a path inside is, and which host
//! file it shows. For decisions only; the sandbox itself asks the kernel.

use std::path::{Component, Path, PathBuf};

use super::{Step, inside};
use crate::host::{Files, Kind};
use crate::policy::SandboxPath;

/// The kernel's limit of links in one path (path_resolution(7)).
const MOST_LINKS: usize = 40;

pub(super) struct View<'a> {
    steps: &'a [Step],
    files: &'a dyn Files,
}

/// Something that exists inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its path inside, without links.
    pub(super) inside: SandboxPath,
    /// The host path that it shows; none for what the sandbox makes itself.
    pub(super) host: Option<PathBuf>,
    pub(super) kind: Kind,
}

impl<'a> View<'a> {
    pub(super) fn new(steps: &'a [Step], files: &'a dyn Files) -> Self {
        Self { steps, files }
    }

    /// Follows a path as the kernel would inside.
    pub(super) fn resolve(&self, path: &Path) -> Option<Seen> {
        let mut todo: Vec<PathBuf> = reversed_components(path);
        let mut here = self.look(&SandboxPath::root())?;
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name.as_os_str() == "/" {
                here = self.look(&SandboxPath::root())?;
                continue;
            }
            if name.as_os_str() == ".." {
                here = self.look(&inside(here.inside.as_path().parent().unwrap_or(Path::new("/")))?)?;
                continue;
            }
            let next = self.look(&here.inside.join(&name))?;
            if let Kind::Link(text) = &next.kind {
                links += 1;
                if links > MOST_LINKS {
                    return None;
                }
                todo.extend(reversed_components(text));
                continue;
            }
            here = next;
        }
        Some(here)
    }

    /// What a path inside is, its parents being real directories.
    pub(super) fn look(&self, path: &SandboxPath) -> Option<Seen> {
        let made = |kind| Some(Seen { inside: path.clone(), host: None, kind });
        // The last step wins, as mounts cover what was there before.
        for step in self.steps.iter().rev() {
            match step {
                Step::Bind { source, target, .. } if path.is_under(target) => {
                    let rest = path.below(target)?;
                    let mut host = if rest.as_os_str().is_empty() { source.clone() } else { source.join(rest) };
                    let mut kind = self.files.kind(&host).ok();
                    if rest.as_os_str().is_empty() && matches!(kind, Some(Kind::Link(_))) {
                        // A bind follows its source.
                        host = self.files.find(&host).ok()?.path;
                        kind = self.files.kind(&host).ok();
                    }
                    return match kind {
                        Some(kind) => Some(Seen { inside: path.clone(), host: Some(host), kind }),
                        None if self.is_made_for_a_target(path) => made(Kind::Directory),
                        None => None,
                    };
                }
                Step::Symlink { text, target } if target == path => return made(Kind::Link(text.clone())),
                Step::Tmpfs { target, .. }
                | Step::Proc { target, .. }
                | Step::Dev { target, .. }
                | Step::Mqueue { target }
                    if path.is_under(target) =>
                {
                    let exists = target == path || self.is_made_for_a_target(path);
                    return if exists { made(Kind::Directory) } else { None };
                }
                Step::Dir { target, .. } if target == path => return made(Kind::Directory),
                Step::Hide { target } if path.is_under(target) => return None,
                _ => {}
            }
        }
        if path.is_root() || self.is_made_for_a_target(path) { made(Kind::Directory) } else { None }
    }

    /// Whether a step makes this directory as a parent of its target.
    fn is_made_for_a_target(&self, path: &SandboxPath) -> bool {
        self.steps
            .iter()
            .any(|step| step.target().is_under(path) && !matches!(step, Step::Hide { .. } | Step::Chmod { .. }))
    }
}

fn reversed_components(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|component| *component != Component::CurDir)
        .map(|component| PathBuf::from(component.as_os_str()))
        .collect()
}
