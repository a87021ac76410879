//! What comes from descriptors of the caller and from several directories at once: binds by descriptor, files with
//! given content, overlays. Sources are held by descriptor from the moment they are looked at.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlink};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::failure::{At, Fault, Stage};
use super::resolve::Node;
use super::rootfs::{NewRoot, PATH_ONLY, mount_on, tmpfs_flags};
use crate::plan::{Attributes, Step};
use crate::policy::{OverlayTop, Placement, SandboxPath};
use crate::sys;

/// How much is read and written at once.
const BLOCK: usize = 64 << 10;

impl NewRoot<'_> {
    /// Binds what a descriptor of the caller's names, and nothing else that may have come to its path meanwhile.
    pub(super) fn bind_descriptor(
        &mut self,
        index: usize,
        fd: RawFd,
        target: &SandboxPath,
        attributes: Attributes,
    ) -> Result<(), Fault> {
        let named = sys::borrow_number(fd);
        let node = node_of(named).at_index(Stage::Source, index)?;
        let tree = self.source_of(named).at_index(Stage::Source, index)?;
        self.check_source(&tree).at_index(Stage::Source, index)?;
        self.attach(index, &tree, target, node, attributes, None)
    }

    /// A source for [`NewRoot::attach`] from a descriptor that was opened outside this mount namespace: the same file in this
    /// one, by its name. ESTALE if that is another file by now.
    pub(super) fn source_of(&self, fd: impl AsFd) -> nix::Result<OwnedFd> {
        let path = PathBuf::from(readlink(&sys::proc_path(&fd))?);
        let source = if self.plan.mount_api {
            sys::clone_tree(&super::prepare::c_string(&path))
        } else {
            open(&path, PATH_ONLY, Mode::empty())
        }?;
        let (named, found) = (fstat(&fd)?, fstat(&source)?);
        if (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino) { Ok(source) } else { Err(Errno::ESTALE) }
    }

    /// Fills a file from a descriptor, at its target or bound over it.
    pub(super) fn data(&mut self, index: usize, step: &Step) -> Result<(), Fault> {
        let Step::Data { fd, again, target, placement, mode } = step else { return Ok(()) };
        let permissions = Mode::from_bits_truncate(mode.unwrap_or(placement.default_mode()));
        if *placement == Placement::File {
            let mut file = self.create_file(index, target, permissions)?;
            return self.fill(*fd, *again, &mut file).at_index(Stage::Data, index);
        }
        let name = self.scratch_name();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.base, name.as_str(), flags, permissions).at_index(Stage::Data, index)?;
        let mut file = File::from(file);
        // The modes of open(2) are those of a new file; umask is empty.
        fchmod(&file, permissions).and_then(|()| self.fill(*fd, *again, &mut file)).at_index(Stage::Data, index)?;
        let tree = if self.plan.mount_api {
            sys::clone_tree_at(file.as_fd())
        } else {
            openat(&self.base, name.as_str(), PATH_ONLY, Mode::empty())
        }
        .at_index(Stage::Data, index)?;
        if mode.is_some() {
            // The bits count for folders that are made on the way too.
            self.place(index, target, Node::File, *mode)?;
        }
        let attributes = Attributes { read_only: *placement == Placement::RoBind, nodev: true, noexec: false };
        self.attach(index, &tree, target, Node::File, attributes, None)?;
        unlinkat(&self.base, name.as_str(), UnlinkatFlags::NoRemoveDir).at_index(Stage::Data, index)
    }

    /// Makes or empties the file at `target`, whose last component may not be a link.
    fn create_file(&self, index: usize, target: &SandboxPath, permissions: Mode) -> Result<File, Fault> {
        let (Some(parent), Some(name)) = (target.parent(), target.as_path().file_name()) else {
            return Err(Errno::EISDIR).at_index(Stage::TargetKind, index);
        };
        let parent = self.parent_of(index, &parent, Some(permissions.bits()))?;
        // O_NONBLOCK: a FIFO there must not hold us up.
        let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NONBLOCK;
        let flags = new | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&parent, name, flags, permissions).map(File::from).at_index(Stage::Target, index)
    }

    /// Writes all that can be read from a descriptor; what a later step wants to read again is kept.
    fn fill(&mut self, fd: RawFd, again: bool, file: &mut File) -> nix::Result<()> {
        let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        if let Some((_, kept)) = self.read.iter().find(|(read, _)| *read == fd) {
            return file.write_all(kept).map_err(errno);
        }
        let mut from = File::from(sys::borrow_number(fd).try_clone_to_owned().map_err(errno)?);
        let mut kept = Vec::new();
        let mut block = vec![0; BLOCK];
        loop {
            let length = match from.read(&mut block) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(errno(error)),
            };
            let block = block.get(..length).unwrap_or_default();
            file.write_all(block).map_err(errno)?;
            if again {
                kept.extend_from_slice(block);
            }
        }
        if again {
            self.read.push((fd, kept));
        }
        Ok(())
    }

    /// Mounts directories of the host over each other. overlayfs takes paths; those of descriptors need no escapes, can't be
    /// changed by anybody, and say nothing of the host in mountinfo.
    pub(super) fn overlay(&mut self, index: usize, step: &Step) -> Result<(), Fault> {
        let Step::Overlay { sources, top, target, identities } = step else { return Ok(()) };
        let mut planned = identities.iter().flatten();
        let mut hold = |path: &Path| {
            let held = open(path, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty());
            let check = |held: OwnedFd| {
                let found = self.check_source(&held)?;
                match planned.next() {
                    Some(planned) if *planned != found => Err(Errno::ESTALE),
                    _ => Ok(held),
                }
            };
            held.and_then(check).at_index(Stage::Source, index)
        };
        let lower = sources.iter().map(|path| hold(path)).collect::<Result<Vec<_>, _>>()?;
        let upper = match top {
            OverlayTop::Host { upper, work } => Some([hold(upper)?, hold(work)?]),
            OverlayTop::Tmpfs => Some([self.scratch_directory(index)?, self.scratch_directory(index)?]),
            OverlayTop::Nothing => None,
        };
        let name = |fd: &OwnedFd| sys::proc_path(fd).display().to_string();
        // The option has the uppermost first.
        let lower: Vec<String> = lower.iter().rev().map(name).collect();
        let mut options = String::new();
        if let Some([upper, work]) = &upper {
            options = format!("upperdir={},workdir={},", name(upper), name(work));
        }
        options.push_str(&format!("lowerdir={},userxattr", lower.join(":")));
        let to = self.place(index, target, Node::Directory, None)?.fd;
        mount_on(&to, "overlay", tmpfs_flags(self.plan), Some(&options)).at_index(Stage::Mount, index)
    }

    fn scratch_directory(&mut self, index: usize) -> Result<OwnedFd, Fault> {
        let name = self.scratch_name();
        mkdirat(&self.base, name.as_str(), Mode::from_bits_truncate(0o755))
            .and_then(|()| openat(&self.base, name.as_str(), PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty()))
            .at_index(Stage::Mount, index)
    }
}

fn node_of(fd: impl AsFd) -> nix::Result<Node> {
    let is_directory = super::resolve::kind(&fstat(fd)?) == nix::sys::stat::SFlag::S_IFDIR;
    Ok(if is_directory { Node::Directory } else { Node::File })
}
