//! The file systems that are not files: which parts of /proc are covered, and what is in /dev.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::symlinkat;

use super::failure::{At, Fault, Stage};
use super::prepare::c_string;
use super::resolve::Node;
use super::rootfs::{COVER_DIRECTORY, COVER_FILE, NONE, NewRoot, bind_over_itself, remount, tmpfs_flags};
use crate::plan::{DEVICES, PROC_MASKED_FILES, PROC_MASKED_FOLDERS, ProcCover};
use crate::policy::SandboxPath;
use crate::sys;

/// Folders of /proc that may be read.
const PROC_READ_ONLY: &[&str] = &["sys", "irq", "bus", "fs"];
/// The same under bubblewrap's contract: its own list.
const PROC_PROTECTED: &[&str] = &["sys", "sysrq-trigger", "irq", "bus"];
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

impl NewRoot<'_> {
    /// A minimal /dev; unless it is to stay open, read-only but for its shm and the device nodes.
    pub(super) fn devices(
        &mut self,
        index: usize,
        target: &SandboxPath,
        open: bool,
        console: Option<&Path>,
    ) -> Result<(), Fault> {
        let to = self.place(index, target, Node::Directory, None)?.fd;
        // It means nothing for a device, and costs a call each; but clients may compare.
        let nosuid = open && self.plan.mount_api;
        let flags = tmpfs_flags(self.plan);
        let mut fill = || {
            let name = self.stage_tmpfs(0o755, None)?;
            let dev = self.open_scratch(&name)?;
            self.in_directory(&dev, || fill_devices(flags, open, nosuid, console))?;
            self.move_to(&name, &to)
        };
        fill().at_index(Stage::Mount, index)
    }

    /// A procfs of the pid namespace, covered as far as the plan says.
    pub(super) fn proc(&mut self, index: usize, target: &SandboxPath, cover: ProcCover) -> Result<(), Fault> {
        let to = self.place(index, target, Node::Directory, None)?.fd;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut fill = || {
            let name = self.make_scratch(Node::Directory)?;
            mount(Some("proc"), &self.on_base(&name), Some("proc"), flags, NONE)?;
            let proc = self.open_scratch(&name)?;
            self.procs.push(fstat(&proc)?.st_dev);
            self.cover_proc(&proc, cover)?;
            self.move_to(&name, &to)
        };
        fill().at_index(Stage::Mount, index)
    }

    /// Makes unreadable what tells too much, and read-only what does too much, below a procfs that is on the base tmpfs yet.
    pub(super) fn cover_proc(&self, proc: &OwnedFd, what: ProcCover) -> nix::Result<()> {
        let base = sys::proc_path(&self.base);
        self.in_directory(proc, || match what {
            ProcCover::Nothing => Ok(()),
            ProcCover::ReadOnly => read_only(PROC_PROTECTED),
            ProcCover::Masked => {
                for (names, node) in [(PROC_MASKED_FILES, Node::File), (PROC_MASKED_FOLDERS, Node::Directory)] {
                    for name in names {
                        if_there(cover(&base, Path::new(name), node))?;
                    }
                }
                read_only(PROC_READ_ONLY)
            }
        })
    }
}

/// Fills the working directory, an empty tmpfs; seals it if it is not to stay open.
fn fill_devices(tmpfs: MsFlags, open: bool, nosuid: bool, console: Option<&Path>) -> nix::Result<()> {
    let bind_device = |source: &Path, name: &str| {
        mknodat(AT_FDCWD, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o444), 0)?;
        mount(Some(source), name, NONE, MsFlags::MS_BIND, NONE)
    };
    for name in DEVICES {
        bind_device(&Path::new("/dev").join(name), name)?;
        if nosuid {
            sys::set_mount_attributes_here(&c_string(name), sys::MOUNT_ATTR_NOSUID)?;
        }
    }
    if let Some(console) = console {
        bind_device(console, "console")?;
    }
    mkdirat(AT_FDCWD, "pts", Mode::from_bits_truncate(0o755))?;
    let pts_flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), "pts", Some("devpts"), pts_flags, Some("newinstance,ptmxmode=0666,mode=620"))?;
    for (text, name) in DEVICE_LINKS {
        symlinkat(*text, AT_FDCWD, *name)?;
    }
    if open {
        // What bubblewrap's clients know: they mount, link and bind more below it.
        symlinkat("/proc/kcore", AT_FDCWD, "core")?;
        return mkdirat(AT_FDCWD, "shm", Mode::from_bits_truncate(0o755));
    }
    mkdirat(AT_FDCWD, "shm", Mode::from_bits_truncate(0o1777))?;
    bind_over_itself("shm")?;
    remount(".", tmpfs | MsFlags::MS_RDONLY)
}

/// Binds over themselves, read-only, those names in the working directory that are there.
fn read_only(names: &[&str]) -> nix::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for name in names {
        if_there(bind_over_itself(*name).and_then(|()| remount(*name, flags)))?;
    }
    Ok(())
}

/// Mounts the cover for a `node`; `base` is where the covers lie. The kind is known beforehand because a bind of the
/// wrong kind fails only after the mount was made, and undoing it waits for an RCU grace period: up to a millisecond.
pub(super) fn cover(base: &Path, path: &Path, node: Node) -> nix::Result<()> {
    let cover = match node {
        Node::Directory => COVER_DIRECTORY,
        Node::File => COVER_FILE,
    };
    mount(Some(&base.join(cover)), path, NONE, MsFlags::MS_BIND, NONE)
}

fn if_there(result: nix::Result<()>) -> nix::Result<()> {
    if result == Err(Errno::ENOENT) { Ok(()) } else { result }
}
