//! The folder that a job works on, and what of its repository the host's git would execute or be led by later: that stays
//! as it is. What a stranger wrote into the workspace decides nothing: the administrative folder of a worktree is shown only
//! if it says itself that it belongs to this workspace.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::document::{WorkspaceEntry, WorkspaceMode};
use super::load::Caller;
use crate::policy::{Access, FsOp, OverlayTop, SandboxPath, Workspace};

/// What git executes, or is led to what it executes by (gitrepository-layout(5), git-config(1), githooks(5)).
const GUARDED: &[&str] = &["hooks", "config", "config.worktree", "commondir"];

/// gitrepository-layout(5): a file in place of the folder.
const GIT: &str = ".git";
/// No link file of git's is longer.
const LONGEST_LINK: u64 = 8192;
/// Submodules in submodules, and slashes in their names.
const DEEPEST_MODULE: usize = 16;
/// Each costs a few mounts.
const MOST_MODULES: usize = 200;

/// Where the system is, and nobody's work. Images have theirs in /usr/src.
const SYSTEM: &[&str] = &[
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/etc",
    "/usr/local/lib",
    "/usr/local/libexec",
    "/usr/local/sbin",
    "/usr/local/share",
    "/usr/share",
];

/// What holds others' folders, and is no workspace itself.
const SHARED: &[&str] = &[
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/run",
    "/srv",
    "/usr",
    "/usr/local",
    "/usr/src",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/spool",
];

/// The workspace, and the operations that show it.
pub(super) fn workspace(entry: &WorkspaceEntry, caller: &Caller) -> Result<(Workspace, Vec<FsOp>), String> {
    let text = entry.path.as_deref().unwrap_or(".");
    let typed = caller.expand_home(Path::new(text))?;
    let cwd = caller.cwd.as_ref();
    let path = match cwd {
        _ if typed.is_absolute() => typed,
        Some(cwd) => cwd.join(typed),
        None => return Err(format!("{text:?} is relative, and the working directory has no name")),
    };
    let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    if !path.is_dir() {
        return Err(format!("{} is no directory", path.display()));
    }
    let home = caller.home.as_ref().map(|home| home.canonicalize().unwrap_or_else(|_| home.clone()));
    if path.parent().is_none() || home.is_some_and(|home| home.parent().is_some() && home.starts_with(&path)) {
        return Err(format!(
            "{} holds the home directory, or everything; a workspace is a folder below it",
            path.display()
        ));
    }
    if SYSTEM.iter().any(|folder| path.starts_with(folder)) || SHARED.iter().any(|folder| path == Path::new(folder)) {
        return Err(format!("{} is a folder of the system, and no workspace", path.display()));
    }
    let target = SandboxPath::new(&path).map_err(|error| error.to_string())?;
    let mode = entry.mode.unwrap_or(WorkspaceMode::Rw);
    let bind = |access| FsOp::Bind { source: path.clone(), target: target.clone(), access, optional: false };
    let mut ops = match mode {
        WorkspaceMode::Ro => vec![bind(Access::ReadOnly)],
        WorkspaceMode::Rw => vec![bind(Access::ReadWrite)],
        WorkspaceMode::Overlay => {
            let (sources, target) = (vec![path.clone()], target.clone());
            vec![FsOp::Overlay { sources, top: OverlayTop::Tmpfs, target }]
        }
    };
    let mut git = Repository::new(&path, mode);
    git.look()?;
    ops.extend(git.ops);
    let (guards, configs) = (git.guards, git.configs.into_iter().collect());
    Ok((Workspace { path, overlay: mode == WorkspaceMode::Overlay, guards, configs }, ops))
}

/// What is found of a repository.
struct Repository<'a> {
    workspace: &'a Path,
    mode: WorkspaceMode,
    ops: Vec<FsOp>,
    guards: Vec<PathBuf>,
    configs: BTreeSet<PathBuf>,
    /// Folders that are mount points already.
    held: BTreeSet<PathBuf>,
}

impl<'a> Repository<'a> {
    fn new(workspace: &'a Path, mode: WorkspaceMode) -> Self {
        Self { workspace, mode, ops: Vec::new(), guards: Vec::new(), configs: BTreeSet::new(), held: BTreeSet::new() }
    }

    fn look(&mut self) -> Result<(), String> {
        let git = self.workspace.join(GIT);
        let Some(metadata) = look_at(&git)? else { return Ok(()) };
        if metadata.is_dir() {
            return self.guard(&git);
        }
        if !metadata.is_file() {
            return Err(format!("{} is a link: what git would follow it to can't be kept as it is", git.display()));
        }
        self.show(&git, Access::ReadOnly)?;
        if metadata.len() > LONGEST_LINK {
            return Err(format!("{} is longer than any that git makes", git.display()));
        }
        let Some(folder) = link(&git, "gitdir: ").map(|path| self.workspace.join(path)) else { return Ok(()) };
        let Ok(folder) = folder.canonicalize() else { return Ok(()) };
        if folder.starts_with(self.workspace) {
            return self.guard(&folder);
        }
        let belongs = link(&folder.join("gitdir"), "").and_then(|back| folder.join(back).canonicalize().ok());
        let common = link(&folder.join("commondir"), "").and_then(|path| folder.join(path).canonicalize().ok());
        let Some(common) = common.filter(|common| folder.parent() == Some(common.join("worktrees").as_path())) else {
            return Ok(());
        };
        if belongs.as_deref() != Some(git.as_path()) {
            // Somebody else's, or no worktree: git does not work there, and nothing is shown.
            return Ok(());
        }
        self.show(&common, Access::ReadOnly)?;
        for folder in administrative(&common)? {
            self.add_configs(&folder);
        }
        // What changes there is no part of an overlay of the workspace.
        let access = if self.mode == WorkspaceMode::Rw { Access::ReadWrite } else { Access::ReadOnly };
        self.show(&folder, access)?;
        self.held.insert(folder.clone());
        self.show(&folder.join("gitdir"), Access::ReadOnly)?;
        self.guard(&folder)
    }

    /// What must stay in an administrative folder, and in those of its submodules and worktrees.
    fn guard(&mut self, folder: &Path) -> Result<(), String> {
        let worktrees = folder.join("worktrees");
        for folder in administrative(folder)? {
            self.add_configs(&folder);
            if !folder.starts_with(&worktrees) {
                self.guard_one(&folder)?;
            }
        }
        if is_real(&worktrees)? {
            // Those are elsewhere, and other jobs'.
            self.show(&worktrees, Access::ReadOnly)?;
        }
        Ok(())
    }

    fn guard_one(&mut self, folder: &Path) -> Result<(), String> {
        if self.mode == WorkspaceMode::Rw {
            self.hold(folder)?;
            self.guards.push(folder.to_owned());
        }
        for name in GUARDED {
            let path = folder.join(name);
            if look_at(&path)?.is_some_and(|metadata| metadata.is_symlink()) {
                return Err(format!("{} is a link: it can't be kept as it is", path.display()));
            }
            self.show(&path, Access::ReadOnly)?;
        }
        Ok(())
    }

    /// A mount point can't be renamed, nor can another folder be put in its place; but one around it can. So it is all folders
    /// between the workspace, or the administrative folder that is shown, and this one.
    fn hold(&mut self, folder: &Path) -> Result<(), String> {
        let is_free = |above: &&Path| *above != self.workspace && !self.held.contains(*above);
        let above: Vec<PathBuf> = folder.ancestors().take_while(is_free).map(Path::to_owned).collect();
        for folder in above.into_iter().rev() {
            self.show(&folder, Access::ReadWrite)?;
            self.held.insert(folder);
        }
        Ok(())
    }

    fn add_configs(&mut self, folder: &Path) {
        self.configs.extend(["config", "config.worktree"].map(|name| folder.join(name)));
    }

    fn show(&mut self, path: &Path, access: Access) -> Result<(), String> {
        let target = SandboxPath::new(path).map_err(|error| error.to_string())?;
        // Not there: made before, or nothing.
        self.ops.push(FsOp::Bind { source: path.to_owned(), target, access, optional: true });
        Ok(())
    }
}

/// An administrative folder, and those of its worktrees and submodules (gitrepository-layout(5), gitsubmodules(7)).
fn administrative(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = vec![folder.to_owned()];
    let mut todo: Vec<(PathBuf, usize)> = ["worktrees", "modules"].map(|name| (folder.join(name), 0)).into();
    while let Some((folder, depth)) = todo.pop() {
        if !is_real(&folder)? {
            continue;
        }
        if depth == DEEPEST_MODULE || found.len() > MOST_MODULES {
            return Err(format!("{}: there are too many submodules or worktrees", folder.display()));
        }
        let mut marks = GUARDED.iter().chain(&["HEAD"]).map(|name| look_at(&folder.join(name)));
        if marks.try_fold(false, |is_one, mark| mark.map(|mark| is_one || mark.is_some()))? {
            todo.push((folder.join("modules"), depth + 1));
            found.push(folder);
            continue;
        }
        // A submodule's name may have slashes in it.
        let cannot_list = |error| unknown(&folder, &error);
        for entry in fs::read_dir(&folder).map_err(cannot_list)? {
            let entry = entry.map_err(cannot_list)?;
            if !entry.file_type().map_err(cannot_list)?.is_file() {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(found)
}

/// A folder, and none that a link leads to.
fn is_real(folder: &Path) -> Result<bool, String> {
    match look_at(folder)? {
        Some(metadata) if metadata.is_symlink() => {
            Err(format!("{} is a link: it can't be kept as it is", folder.display()))
        }
        metadata => Ok(metadata.is_some_and(|metadata| metadata.is_dir())),
    }
}

/// What is there, if anything is. What can't be looked at can't be kept either.
fn look_at(path: &Path) -> Result<Option<Metadata>, String> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(unknown(path, &error)),
    }
}

fn unknown(path: &Path, error: &io::Error) -> String {
    let cure = if error.kind() == ErrorKind::PermissionDenied { ": chmod u+rwx its folders" } else { "" };
    format!("cannot find out what git would execute at {}: {error}{cure}", path.display())
}

/// The path in a link file of git's.
fn link(file: &Path, prefix: &str) -> Option<PathBuf> {
    let metadata = file.symlink_metadata().ok()?;
    if !metadata.is_file() || metadata.len() > LONGEST_LINK {
        return None;
    }
    let text = fs::read(file).ok()?;
    let path = text.strip_prefix(prefix.as_bytes())?;
    let end = path.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r'))?;
    let path = path.get(..=end).filter(|path| !path.contains(&0))?;
    Some(OsStr::from_bytes(path).into())
}
