//! The new root: from the policy's operations to steps, each with what the host's files say about it.

use std::io;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use super::hide::Hiding;
use super::view::View;
use super::{Attributes, PlanError, ProcCover, Skipped, Step, inside};
use crate::host::{Found, Host, Identity, Kind};
use crate::policy::{Access, FsOp, LandlockMode, OverlayTop, Policy, SandboxPath, Workspace};

/// What [`build`] finds.
pub(super) struct Root {
    pub(super) steps: Vec<Step>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) has_devpts: bool,
}

pub(super) fn build(policy: &Policy, host: &Host, fresh_procfs: bool) -> Result<Root, PlanError> {
    let mut root = Root { steps: Vec::new(), skipped: Vec::new(), has_devpts: false };
    let mut hiding = Hiding::default();
    for (index, op) in policy.fs.iter().enumerate() {
        if matches!(op, FsOp::Bind { .. } | FsOp::Tmpfs { .. }) {
            hiding.make_room(&mut root.steps, op.target());
        }
        match op {
            FsOp::Bind { source, target, access, optional } => {
                let later = policy.fs.get(index + 1..).unwrap_or_default();
                let bind = Bind { source, target, access: *access, optional: *optional, later };
                add_bind(&mut root, &mut hiding, policy, host, &bind)?;
            }
            FsOp::BindDescriptor { fd, target, access } => root.steps.push(Step::BindDescriptor {
                fd: *fd,
                target: target.clone(),
                attributes: Attributes::of(*access),
            }),
            FsOp::Data { fd, target, placement, mode } => {
                let later = policy.fs.get(index + 1..).unwrap_or_default();
                let again = later.iter().any(|op| matches!(op, FsOp::Data { fd: other, .. } if other == fd));
                let (target, placement) = (target.clone(), *placement);
                root.steps.push(Step::Data { fd: *fd, again, target, placement, mode: *mode });
            }
            FsOp::Overlay { sources, top, target } => {
                let (sources, top) = (sources.clone(), top.clone());
                let identities = identities(policy, host, op)?;
                root.steps.push(Step::Overlay { sources, top, target: target.clone(), identities });
            }
            FsOp::Tmpfs { target, optional: true, .. } if lacks_place(&root.steps, host, target) => {
                let why = "no such directory in the bound folder of the host".to_owned();
                root.skipped.push(Skipped { source: None, target: target.clone(), why });
            }
            FsOp::Tmpfs { target, mode, size, .. } => {
                root.steps.push(Step::Tmpfs { target: target.clone(), mode: *mode, size: *size });
            }
            FsOp::Proc { target } => root.steps.push(proc(policy, host, target, fresh_procfs)),
            FsOp::Dev { target } => {
                let open = policy.bubblewrap.is_some();
                root.steps.push(Step::Dev { target: target.clone(), open, console: console(policy, host) });
                root.has_devpts = true;
            }
            FsOp::Mqueue { target } => root.steps.push(Step::Mqueue { target: target.clone() }),
            FsOp::Dir { target, mode } => root.steps.push(Step::Dir { target: target.clone(), mode: *mode }),
            FsOp::Symlink { text, target } => {
                root.steps.push(Step::Symlink { text: text.clone(), target: target.clone() });
            }
            FsOp::Chmod { target, mode } => root.steps.push(Step::Chmod { target: target.clone(), mode: *mode }),
            FsOp::RemountReadOnly { target } => root.steps.push(Step::RemountReadOnly { target: target.clone() }),
            FsOp::Hide { target } => hiding.hide(&mut root.steps, host.files.as_ref(), target),
        }
    }
    hiding.finish(&mut root.steps);
    Ok(root)
}

/// Of what an overlay is made of.
fn identities(policy: &Policy, host: &Host, overlay: &FsOp) -> Result<Option<Vec<Identity>>, PlanError> {
    let FsOp::Overlay { sources, top, target } = overlay else { return Ok(None) };
    if policy.bubblewrap.is_some() {
        return Ok(None);
    }
    let top = match top {
        OverlayTop::Host { upper, work } => vec![upper, work],
        OverlayTop::Tmpfs | OverlayTop::Nothing => Vec::new(),
    };
    let find = |path: &PathBuf| {
        let found = host.files.find(path).and_then(|found| as_called(policy, path, found));
        found.map(|found| found.identity).map_err(|cause| PlanError::Source {
            origin: path.clone(),
            target: target.clone(),
            cause,
        })
    };
    sources.iter().chain(top).map(find).collect::<Result<_, _>>().map(Some)
}

/// The workspace, what jobs can write, and caches have paths without links: if there is one now, somebody put it there.
fn as_called(policy: &Policy, path: &Path, found: Found) -> io::Result<Found> {
    let is_cache = || policy.caches.iter().any(|cache| cache.base.join(&cache.below) == path);
    let is_plain = is_written(policy, path) || is_cache();
    if is_plain && found.path != path { Err(Errno::ELOOP.into()) } else { Ok(found) }
}

/// A bind of something to its own place in what the steps show already.
fn is_over_itself(steps: &[Step], source: &Path, target: &SandboxPath) -> bool {
    let is_in = |folder: &SandboxPath| target != folder && !folder.is_root() && target.is_under(folder);
    let mut shown = steps.iter().filter(|step| matches!(step, Step::Bind { .. } | Step::Overlay { .. }));
    source == target.as_path() && shown.any(|step| is_in(step.target()))
}

/// The workspace, and the administrative folders of its repository: jobs before this one, and beside it, write there.
fn is_written(policy: &Policy, path: &Path) -> bool {
    let folders = |workspace: &Workspace| {
        std::iter::once(&workspace.path).chain(&workspace.guards).any(|folder| path.starts_with(folder))
    };
    policy.workspace.as_ref().is_some_and(folders)
}

fn proc(policy: &Policy, host: &Host, target: &SandboxPath, fresh: bool) -> Step {
    let target = target.clone();
    let Some(bubblewrap) = &policy.bubblewrap else {
        let masked = ProcCover::Masked;
        return if fresh {
            Step::Proc { target, cover: masked }
        } else if has_landlock(policy, host) {
            // The host's shows its processes, and Landlock keeps the sandbox from looking through them.
            let attributes = Attributes::of(Access::ReadOnly);
            Step::Bind {
                source: "/proc".into(),
                target,
                directory: true,
                attributes,
                cover: Some(masked),
                identity: None,
                exact: false,
            }
        } else {
            Step::Dir { target, mode: 0o555 }
        };
    };
    // Root's kuid owns the files of /proc/sys, in a user namespace too, whatever its capabilities. Others have no power over
    // them but in a network namespace of their own, and there it is theirs.
    let cover = if host.uid == 0 { ProcCover::ReadOnly } else { ProcCover::Nothing };
    if policy.namespaces.pid || bubblewrap.handed.pidns.is_some() {
        return Step::Proc { target, cover };
    }
    // Without a pid namespace of its own it sees the host's processes anyway.
    let attributes = Attributes::of(Access::ReadWrite);
    Step::Bind {
        source: "/proc".into(),
        target,
        directory: true,
        attributes,
        cover: Some(cover),
        identity: None,
        exact: false,
    }
}

fn has_landlock(policy: &Policy, host: &Host) -> bool {
    host.landlock.abi() != 0 && policy.landlock != LandlockMode::Off
}

/// The terminal that /dev/console shows.
fn console(policy: &Policy, host: &Host) -> Option<PathBuf> {
    let terminal = host.terminal.as_ref()?;
    match policy.bubblewrap {
        // It looks at stdout alone, new session or not.
        Some(_) => terminal.stdout.clone(),
        None => terminal.path.clone().filter(|_| !policy.new_session),
    }
}

/// Whether `target` is missing below a bind, where nothing can be made.
fn lacks_place(steps: &[Step], host: &Host, target: &SandboxPath) -> bool {
    let below_bind = steps.iter().any(|step| matches!(step, Step::Bind { target: bind, .. } if target.is_under(bind)));
    let view = View::new(steps, host.files.as_ref());
    below_bind
        && view.resolve(target.as_path()).is_none()
        && ancestors(target).find_map(|path| view.resolve(path.as_path())).is_some_and(|seen| seen.host.is_some())
}

fn ancestors(path: &SandboxPath) -> impl Iterator<Item = SandboxPath> {
    std::iter::successors(path.parent(), SandboxPath::parent)
}

struct Bind<'a> {
    source: &'a Path,
    target: &'a SandboxPath,
    access: Access,
    optional: bool,
    /// What comes after it.
    later: &'a [FsOp],
}

fn add_bind(
    root: &mut Root,
    hiding: &mut Hiding,
    policy: &Policy,
    host: &Host,
    bind: &Bind<'_>,
) -> Result<(), PlanError> {
    let Bind { source, target, access, optional, later } = bind;
    let cannot_bind = |cause| PlanError::Source { origin: source.to_path_buf(), target: (*target).clone(), cause };
    // Where a link is always followed, it need not be looked at.
    let follow = policy.bubblewrap.is_some();
    let mut kind = if follow { host.files.target_kind(source) } else { host.files.kind(source) };
    // In this order: the second one goes through all steps.
    let exact = is_written(policy, source) && is_over_itself(&root.steps, source, target);
    if let Ok(Kind::Link(text)) = &kind {
        if exact {
            return Err(cannot_bind(Errno::ELOOP.into()));
        }
        if *access == Access::ReadOnly && source == &target.as_path() && leads_into_bind(policy, source, text) {
            // The links of merged /usr cost a mount each when bound, and mean the same when made again.
            root.steps.push(Step::Symlink { text: text.clone(), target: (*target).clone() });
            return Ok(());
        }
        // A dangling link is as missing as nothing at all.
        kind = host.files.target_kind(source);
    }
    let kind = match kind {
        Ok(kind) => kind,
        Err(error) if *optional && error.kind() == io::ErrorKind::NotFound => {
            let (source, target) = (Some(source.to_path_buf()), (*target).clone());
            let skipped = Skipped { source, target, why: "no such file or directory".into() };
            // What guards git's folders a run makes first, and takes away again.
            root.skipped.extend(Some(skipped).filter(|_| !exact));
            return Ok(());
        }
        Err(cause) => return Err(cannot_bind(cause)),
    };
    let directory = kind == Kind::Directory;
    if policy.bubblewrap.is_some() {
        // What it shows is the caller's choice.
        let (source, target) = (source.to_path_buf(), (*target).clone());
        let attributes = Attributes::of(*access);
        root.steps.push(Step::Bind {
            source,
            target,
            directory,
            attributes,
            cover: None,
            identity: None,
            exact: false,
        });
        return Ok(());
    }
    // Links and `..` may lead anywhere. What they lead to decides, and is what is bound.
    let found = host.files.find(source).and_then(|found| as_called(policy, source, found));
    let Found { path: real, identity } = found.map_err(cannot_bind)?;
    let from_proc = real.starts_with("/proc");
    if from_proc && !has_landlock(policy, host) {
        return Err(PlanError::HostProc(source.to_path_buf()));
    }
    let is_root = real.as_os_str() == "/";
    let attributes = Attributes { read_only: *access == Access::ReadOnly || from_proc, ..Attributes::of(*access) };
    let cover = from_proc.then_some(if real.as_os_str() == "/proc" { ProcCover::Masked } else { ProcCover::Nothing });
    let shown = if from_proc || is_root { real.clone() } else { source.to_path_buf() };
    let identity = (!from_proc).then_some(identity);
    root.steps.push(Step::Bind {
        source: shown,
        target: (*target).clone(),
        directory,
        attributes,
        cover,
        identity,
        exact,
    });
    hiding.show(&mut root.steps, source, real, target);
    let proc = target.join("proc");
    let has_own = later.iter().any(|op| matches!(op, FsOp::Proc { target } if *target == proc));
    if is_root && !has_own {
        // The host's whole tree brings the host's procfs along; nobody asked for that.
        root.steps.push(Step::Hide { target: proc });
    }
    Ok(())
}

/// Whether what the bound link says lies below another bind that shows the same host path under the same name.
fn leads_into_bind(policy: &Policy, link: &Path, text: &Path) -> bool {
    let parent = link.parent().unwrap_or(Path::new("/"));
    let mut resolved = PathBuf::new();
    for component in parent.join(text).components() {
        match component {
            // `..` behind a link means something else than its text says.
            Component::ParentDir => return false,
            other => resolved.push(other),
        }
    }
    let Some(resolved) = inside(&resolved) else { return false };
    policy.fs.iter().any(|op| match op {
        FsOp::Bind { source, target, access: Access::ReadOnly, .. } => {
            source == target.as_path() && target.as_path() != link && resolved.is_under(target)
        }
        _ => false,
    })
}
