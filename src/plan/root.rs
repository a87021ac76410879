//! The new root: from the policy's operations to steps, each with what the host's files say about it.

use std::io;
use std::os::fd::RawFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use serde::{Serialize, Serializer};

use super::hide::Hiding;
use super::view::View;
use super::{PlanError, inside, lossy_list, lossy_path};
use crate::host::{Found, Host, Identity, Kind};
use crate::policy::{Access, FsOp, LandlockMode, OverlayTop, Placement, Policy, SandboxPath};

/// One step on the new root. Targets are resolved under its descriptor and never lead out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Step {
    /// Bind a host path with its submounts.
    Bind {
        /// On the host.
        #[serde(serialize_with = "lossy_path")]
        source: PathBuf,
        /// Inside.
        target: SandboxPath,
        /// The source is a directory.
        directory: bool,
        /// Mount attributes, submounts included.
        attributes: Attributes,
        /// The source is the host's procfs, and this of it is covered. No other source may turn out to be that.
        #[serde(skip_serializing_if = "Option::is_none")]
        cover: Option<ProcCover>,
        /// The file that all this was decided for: no other one may be bound. None for procfs, whose files come and go, and
        /// where the caller's names are all that was asked for.
        #[serde(skip)]
        identity: Option<Identity>,
    },
    /// Bind what a descriptor of the caller's names, with its submounts.
    BindDescriptor {
        /// The descriptor.
        fd: RawFd,
        /// Inside.
        target: SandboxPath,
        /// Mount attributes, submounts included.
        attributes: Attributes,
    },
    /// A file with what can be read from a descriptor of the caller's.
    Data {
        /// The descriptor.
        fd: RawFd,
        /// A later step reads the same descriptor, and finds there what this one found.
        again: bool,
        /// Inside.
        target: SandboxPath,
        /// Written in place, or bound.
        placement: Placement,
        /// Permission bits, if they were chosen.
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Directories of the host's over each other.
    Overlay {
        /// The lower ones, the lowest first.
        #[serde(serialize_with = "lossy_list")]
        sources: Vec<PathBuf>,
        /// What is on top.
        #[serde(serialize_with = "lossy_top")]
        top: OverlayTop,
        /// Inside.
        target: SandboxPath,
        /// The sources that were meant, and behind them those of the top that are on the host. None where the caller's names
        /// are all that was asked for.
        #[serde(skip)]
        identities: Option<Vec<Identity>>,
    },
    /// An empty tmpfs.
    Tmpfs {
        /// Where.
        target: SandboxPath,
        /// Permission bits.
        mode: u32,
        /// Bytes; none: a part of the one tmpfs that is shared.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// A procfs of the new pid namespace.
    Proc {
        /// Where.
        target: SandboxPath,
        /// What of it is covered.
        cover: ProcCover,
    },
    /// A minimal /dev.
    Dev {
        /// Where.
        target: SandboxPath,
        /// More can be made in it, and its shm is a directory of it, as bubblewrap has it. Else it is read-only, and its shm
        /// a tmpfs.
        open: bool,
        /// The terminal that becomes `console`.
        #[serde(skip_serializing_if = "Option::is_none")]
        console: Option<PathBuf>,
    },
    /// A POSIX message queue file system.
    Mqueue {
        /// Where.
        target: SandboxPath,
    },
    /// A directory.
    Dir {
        /// Where.
        target: SandboxPath,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// What it says.
        #[serde(serialize_with = "lossy_path")]
        text: PathBuf,
        /// Where.
        target: SandboxPath,
    },
    /// Permission bits.
    Chmod {
        /// Of what.
        target: SandboxPath,
        /// The bits.
        mode: u32,
    },
    /// One mount made read-only.
    RemountReadOnly {
        /// Which.
        target: SandboxPath,
    },
    /// Something empty and unreadable over what is there.
    Hide {
        /// Over what.
        target: SandboxPath,
    },
    /// An allowed file or folder bound over itself, read-only and without noexec.
    Executable {
        /// Which.
        target: SandboxPath,
    },
}

impl Step {
    /// Where the step takes effect.
    pub fn target(&self) -> &SandboxPath {
        match self {
            Step::Bind { target, .. }
            | Step::BindDescriptor { target, .. }
            | Step::Data { target, .. }
            | Step::Overlay { target, .. }
            | Step::Tmpfs { target, .. }
            | Step::Proc { target, .. }
            | Step::Dev { target, .. }
            | Step::Mqueue { target }
            | Step::Dir { target, .. }
            | Step::Symlink { target, .. }
            | Step::Chmod { target, .. }
            | Step::RemountReadOnly { target }
            | Step::Hide { target }
            | Step::Executable { target } => target,
        }
    }
}

fn lossy_top<S: Serializer>(top: &OverlayTop, serializer: S) -> Result<S::Ok, S::Error> {
    match top {
        OverlayTop::Host { upper, work } => lossy_list(&[upper, work], serializer),
        OverlayTop::Tmpfs => serializer.serialize_str("tmpfs"),
        OverlayTop::Nothing => serializer.serialize_none(),
    }
}

/// Attributes of a bind. nosuid is always set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Attributes {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Device nodes can't be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

impl Attributes {
    fn of(access: Access) -> Self {
        Self { read_only: access == Access::ReadOnly, nodev: access != Access::Device, noexec: false }
    }
}

/// What a minimal /dev has: the devices that programs expect (bubblewrap's and the OCI runtime specification's list).
pub const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Files of /proc that tell or do too much (security.md, rule 2).
pub const PROC_MASKED_FILES: &[&str] =
    &["kcore", "keys", "timer_list", "timer_stats", "sched_debug", "latency_stats", "sysrq-trigger"];
/// Folders of /proc that do. `dynamic_debug` is writable for uid 0 without a capability.
pub const PROC_MASKED_FOLDERS: &[&str] = &["acpi", "asound", "dynamic_debug", "scsi"];

/// What of a procfs is covered before it can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcCover {
    /// Nothing.
    Nothing,
    /// Control folders and files are read-only; nothing is hidden.
    ReadOnly,
    /// And what tells too much can't be read.
    Masked,
}

/// How the new root is built where the steps leave it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct RootRules {
    /// The root that the steps are built on is made read-only in the end.
    pub seal: bool,
    /// Missing targets are made in the host's folders too, where a bind lets the caller write.
    pub make_on_host: bool,
    /// A link in the last place of a target is followed, inside; else nothing is mounted on it.
    pub follow_last: bool,
    /// All tmpfs without a size of their own are parts of one, and share its size.
    pub share_tmpfs: bool,
    /// What the host mounts later below a bind appears in it.
    pub receive_mounts: bool,
    /// A submount that can't have the attributes of its bind is worth a warning, not an error.
    pub lenient: bool,
    /// Paths are walked by hand, as without openat2(2).
    pub walk_by_hand: bool,
    /// A procfs that is mounted below a source is covered, a sysfs and the like are read-only.
    pub guard_submounts: bool,
}

/// A bind or tmpfs that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// A bind's source on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Inside.
    pub target: SandboxPath,
    /// Why.
    pub why: String,
}

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

/// The workspace's path has no links: if there is one now, somebody has put it there meanwhile.
fn as_called(policy: &Policy, path: &Path, found: Found) -> io::Result<Found> {
    let is_workspace = policy.workspace.as_ref().is_some_and(|workspace| workspace.path == path);
    if is_workspace && found.path != path { Err(Errno::ELOOP.into()) } else { Ok(found) }
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
    Step::Bind { source: "/proc".into(), target, directory: true, attributes, cover: Some(cover), identity: None }
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
    if let Ok(Kind::Link(text)) = &kind {
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
            let skipped = Skipped {
                source: Some(source.to_path_buf()),
                target: (*target).clone(),
                why: "no such file or directory".into(),
            };
            root.skipped.push(skipped);
            return Ok(());
        }
        Err(cause) => return Err(cannot_bind(cause)),
    };
    let directory = kind == Kind::Directory;
    if policy.bubblewrap.is_some() {
        // What it shows is the caller's choice.
        let (source, target) = (source.to_path_buf(), (*target).clone());
        let attributes = Attributes::of(*access);
        root.steps.push(Step::Bind { source, target, directory, attributes, cover: None, identity: None });
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
    root.steps.push(Step::Bind { source: shown, target: (*target).clone(), directory, attributes, cover, identity });
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
