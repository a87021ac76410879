//! What the steps of a new root would show of the host, where there is no new root: which of its folders, what is hidden
//! in them, and which paths are a folder of the sandbox's own.

use std::path::{Path, PathBuf};

use crate::host::{Host, Kind};
use crate::plan::Step;
use crate::policy::SandboxPath;

/// What may be done with something of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    Read,
    Write,
    /// And device nodes work.
    Device,
}

/// What a path inside would show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// A file or folder of the host's, without links.
    Host { source: PathBuf, directory: bool, access: Access },
    /// An empty folder of the sandbox's own.
    Scratch,
    /// A procfs.
    Proc,
    /// A minimal /dev.
    Dev,
    /// Nothing that can be opened.
    Nothing,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) target: SandboxPath,
    pub(super) content: Content,
}

/// The entries that are not covered by later ones, in the order of the steps.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) entries: Vec<Entry>,
    /// Steps that nothing can stand in for.
    pub(super) impossible: Vec<Step>,
    /// What is missing and holds nothing up, in words.
    pub(super) lost: Vec<String>,
}

/// Something shown of the host.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) target: SandboxPath,
    pub(super) source: PathBuf,
    pub(super) directory: bool,
    pub(super) access: Access,
}

impl Layout {
    pub(super) fn new(steps: &[Step], host: &Host) -> Self {
        let mut layout = Self::default();
        for step in steps {
            layout.add(step, host);
        }
        layout
    }

    fn add(&mut self, step: &Step, host: &Host) {
        let content = match step {
            Step::Bind { cover: Some(_), .. } | Step::Proc { .. } => Content::Proc,
            Step::Bind { source, directory, attributes, .. } => {
                let source = real_path(host, source).unwrap_or_else(|| source.clone());
                let access = match (attributes.read_only, attributes.nodev) {
                    (true, _) => Access::Read,
                    (false, true) => Access::Write,
                    (false, false) => Access::Device,
                };
                Content::Host { source, directory: *directory, access }
            }
            Step::Tmpfs { .. } => Content::Scratch,
            Step::Dev { .. } => Content::Dev,
            Step::Hide { .. } => Content::Nothing,
            Step::Mqueue { target } => {
                self.lost.push(format!("message queues at {target}"));
                Content::Nothing
            }
            // A folder of the host's is there already; another is made where the sandbox has folders of its own.
            Step::Dir { target, .. } => match self.at(target) {
                Some(entry) if entry.content != Content::Scratch => return,
                _ => Content::Scratch,
            },
            Step::Symlink { text, target } => {
                if host.files.kind(target.as_path()).ok() != Some(Kind::Link(text.clone())) {
                    self.lost.push(format!("the link {target}"));
                }
                return;
            }
            Step::RemountReadOnly { target } => {
                self.make_read_only(target, step);
                return;
            }
            Step::BindDescriptor { .. } | Step::Data { .. } | Step::Overlay { .. } | Step::Chmod { .. } => {
                self.impossible.push(step.clone());
                return;
            }
            Step::Executable { .. } => return,
        };
        let target = step.target().clone();
        self.entries.retain(|entry| !entry.target.is_under(&target));
        self.entries.push(Entry { target, content });
    }

    fn make_read_only(&mut self, at: &SandboxPath, step: &Step) {
        match self.entries.iter_mut().find(|entry| entry.target == *at).map(|entry| &mut entry.content) {
            Some(Content::Host { access, .. }) => *access = Access::Read,
            Some(content @ Content::Scratch) => *content = Content::Nothing,
            Some(Content::Proc | Content::Dev | Content::Nothing) => {}
            None => self.impossible.push(step.clone()),
        }
    }

    /// The entry that a path inside belongs to.
    pub(super) fn at(&self, path: &SandboxPath) -> Option<&Entry> {
        let covering = self.entries.iter().filter(|entry| path.is_under(&entry.target));
        covering.max_by_key(|entry| entry.target.as_os_str().len())
    }

    pub(super) fn has(&self, content: &Content) -> bool {
        self.entries.iter().any(|entry| entry.content == *content)
    }

    /// What is shown of the host. What a later step hides under its own name is not.
    pub(super) fn shown(&self, host: &Host) -> Vec<Shown> {
        let mut shown = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let Content::Host { source, directory, access } = &entry.content else { continue };
            let later = self.entries.get(index + 1..).unwrap_or_default().iter();
            let mut hidden =
                later.filter(|later| later.content == Content::Nothing).filter_map(|later| real(host, later));
            if !hidden.any(|hidden| source.starts_with(&hidden)) {
                let (directory, access) = (*directory, *access);
                shown.push(Shown { target: entry.target.clone(), source: source.clone(), directory, access });
            }
        }
        shown
    }

    /// What of the host must not be shown although a folder above it is: by its real path.
    pub(super) fn holes(&self, host: &Host) -> Vec<PathBuf> {
        let mut holes = Vec::new();
        for entry in &self.entries {
            if entry.content == Content::Nothing {
                // Under whatever name.
                holes.extend(real(host, entry));
            }
            for above in &self.entries {
                let Content::Host { source, .. } = &above.content else { continue };
                let Some(below) = entry.target.below(&above.target).filter(|below| !below.as_os_str().is_empty())
                else {
                    continue;
                };
                let Some(covered) = real_path(host, &source.join(below)) else { continue };
                let same = matches!(&entry.content, Content::Host { source, .. } if *source == covered);
                if !same {
                    holes.push(covered);
                }
            }
        }
        holes.sort();
        holes.dedup();
        holes
    }
}

fn real(host: &Host, entry: &Entry) -> Option<PathBuf> {
    real_path(host, entry.target.as_path())
}

/// A path of the host's without links.
pub(super) fn real_path(host: &Host, path: &Path) -> Option<PathBuf> {
    host.files.find(path).ok().map(|found| found.path)
}
