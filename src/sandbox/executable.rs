//! What may be executed: the very files that the plan was made for. Whoever can change what their names lead to does not
//! choose what is executable.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::open;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, fstat};

use super::classic::bind;
use super::rootfs::{NewRoot, PATH_ONLY, TMPFS_FLAGS, remount};
use crate::host::Identity;
use crate::plan::Plan;
use crate::policy::SandboxPath;
use crate::sys::{self, proc_path};

impl NewRoot<'_> {
    /// Binds an allowed file or folder over itself, without the noexec that everything else has, and read-only, so that
    /// it can't become another program.
    pub(super) fn allow_execution(&self, target: &SandboxPath) -> nix::Result<()> {
        let at = match self.open_inside(target.as_path()) {
            // Vanished since the plan was made: then it can't be executed either.
            Err(Errno::ENOENT) => return Ok(()),
            at => at?,
        };
        check(self.plan, target, &at)?;
        if self.plan.mount_api {
            let tree = sys::clone_tree_at(at.as_fd())?;
            let set = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV;
            sys::set_mount_attributes(tree.as_fd(), false, set, sys::MOUNT_ATTR_NOEXEC)?;
            return sys::attach_tree(tree.as_fd(), at.as_fd());
        }
        bind(&proc_path(&at), &proc_path(&at))?;
        // The mount on it, where its name leads by now.
        let over = self.open_inside(target.as_path())?;
        check(self.plan, target, &over)?;
        remount(proc_path(&over), TMPFS_FLAGS | MsFlags::MS_RDONLY)
    }
}

/// Opens it from inside, where no path leads out.
pub(super) fn open_planned(plan: &Plan, path: &SandboxPath) -> nix::Result<OwnedFd> {
    let fd = open(path.as_path(), PATH_ONLY, Mode::empty())?;
    check(plan, path, &fd).map(|()| fd)
}

/// ESTALE for something else than the plan found under an executable path.
fn check(plan: &Plan, path: &SandboxPath, fd: &OwnedFd) -> nix::Result<()> {
    let identities = plan.executables.as_ref().map(|executables| &executables.identities);
    let Some(planned) = identities.and_then(|identities| identities.get(path)) else { return Ok(()) };
    let found = fstat(fd)?;
    if (Identity { device: found.st_dev, inode: found.st_ino }) == *planned { Ok(()) } else { Err(Errno::ESTALE) }
}
