//! The folder that a job works on, and what of its repository the host's git would execute or be led by later: that stays
//! as it is. What a stranger wrote into the workspace decides nothing: the administrative folder of a worktree is shown only
//! if it says itself that it belongs to this workspace.

use std::fs;
use std::path::{Path, PathBuf};

use super::document::{WorkspaceEntry, WorkspaceMode};
use super::load::Caller;
use crate::policy::{Access, FsOp, OverlayTop, SandboxPath, Workspace};

/// What git executes, or is led to what it executes by (gitrepository-layout(5), git-config(1), githooks(5)).
pub(super) const GUARDED: &[&str] = &["hooks", "config", "config.worktree", "commondir"];

/// gitrepository-layout(5): a file in place of the folder.
const GIT: &str = ".git";
/// No link file of git's is longer.
const LONGEST_LINK: u64 = 8192;
/// Submodules in submodules.
const DEEPEST_MODULE: usize = 4;

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
    let mut guards = Vec::new();
    if mode != WorkspaceMode::Ro {
        repository(&path, mode, &mut ops, &mut guards)?;
    }
    Ok((Workspace { path, overlay: mode == WorkspaceMode::Overlay, guards }, ops))
}

fn repository(
    workspace: &Path,
    mode: WorkspaceMode,
    ops: &mut Vec<FsOp>,
    guards: &mut Vec<PathBuf>,
) -> Result<(), String> {
    let git = workspace.join(GIT);
    let Ok(metadata) = git.symlink_metadata() else { return Ok(()) };
    if metadata.is_dir() {
        if mode == WorkspaceMode::Rw {
            // A mount point can't be renamed, nor another repository be put in its place.
            push(ops, &git, Access::ReadWrite)?;
        }
        return guard(&git, ops, guards, 0);
    }
    if !metadata.is_file() {
        return Err(format!("{} is a link: what git would follow it to can't be kept as it is", git.display()));
    }
    push(ops, &git, Access::ReadOnly)?;
    let Some(folder) = link(&git, "gitdir: ").map(|path| workspace.join(path)) else { return Ok(()) };
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    if folder.starts_with(workspace) {
        return guard(&folder, ops, guards, 0);
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
    push(ops, &common, Access::ReadOnly)?;
    push(ops, &folder, Access::ReadWrite)?;
    push(ops, &folder.join("gitdir"), Access::ReadOnly)?;
    guard(&folder, ops, guards, 0)
}

/// What must stay in an administrative folder, and in those of its submodules.
fn guard(folder: &Path, ops: &mut Vec<FsOp>, guards: &mut Vec<PathBuf>, depth: usize) -> Result<(), String> {
    guards.push(folder.to_owned());
    for name in GUARDED {
        let path = folder.join(name);
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(format!("{} is a link: it can't be kept as it is", path.display()));
        }
        push(ops, &path, Access::ReadOnly)?;
    }
    let modules = fs::read_dir(folder.join("modules")).into_iter().flatten().flatten();
    for module in modules.filter(|module| module.path().join("HEAD").exists()) {
        if depth == DEEPEST_MODULE {
            return Err(format!("{}: submodules are nested too deeply", folder.display()));
        }
        guard(&module.path(), ops, guards, depth + 1)?;
    }
    Ok(())
}

fn push(ops: &mut Vec<FsOp>, path: &Path, access: Access) -> Result<(), String> {
    let target = SandboxPath::new(path).map_err(|error| error.to_string())?;
    // Not there: made before, or nothing.
    ops.push(FsOp::Bind { source: path.to_owned(), target, access, optional: true });
    Ok(())
}

/// The path in a link file of git's.
fn link(file: &Path, prefix: &str) -> Option<PathBuf> {
    let metadata = file.symlink_metadata().ok()?;
    if !metadata.is_file() || metadata.len() > LONGEST_LINK {
        return None;
    }
    let text = fs::read_to_string(file).ok()?;
    let path = text.strip_prefix(prefix)?.trim_end_matches(['\n', '\r']);
    (!path.is_empty() && !path.contains('\0')).then(|| PathBuf::from(path))
}
