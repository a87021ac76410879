//! Mounts that are made on the base tmpfs, where the command and everybody else has no names, and moved to their places
//! when they are as they should be.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::fcntl::openat;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};

use super::failure::{At, Fault, Stage};
use super::resolve::Node;
use super::rootfs::{DIRECTORY_MODE, FILE_MODE, NONE, NewRoot, PATH_ONLY, SCRATCH, bind_over_itself, tmpfs_flags};
use crate::policy::SandboxPath;
use crate::sys;

impl NewRoot<'_> {
    /// An empty tmpfs: a part of the base tmpfs, which is cheaper, where one size for all will do.
    pub(super) fn tmpfs(
        &mut self,
        index: usize,
        target: &SandboxPath,
        mode: Option<u32>,
        size: Option<u64>,
    ) -> Result<(), Fault> {
        let place = self.place(index, target, Node::Directory, mode)?;
        if size.is_some() || !self.plan.root.share_tmpfs {
            let staged = self.stage_tmpfs(mode.unwrap_or(DIRECTORY_MODE), size);
            return staged.and_then(|name| self.move_to(&name, &place.fd)).at_index(Stage::Mount, index);
        }
        let at = sys::proc_path(&place.fd);
        // One made on a tmpfs of its own size would have to share that.
        let on_base = place.made && self.ours.first() == Some(&fstat(&place.fd).at_index(Stage::Target, index)?.st_dev);
        let mounted = if on_base {
            // Stays writable when the root around it is sealed.
            bind_over_itself(&at)
        } else {
            let scratch = self.scratch_name();
            let mode = Mode::from_bits_truncate(mode.unwrap_or(DIRECTORY_MODE));
            mkdirat(&self.base, scratch.as_str(), mode)
                .and_then(|()| mount(Some(&self.on_base(&scratch)), &at, NONE, MsFlags::MS_BIND, NONE))
        };
        mounted.at_index(Stage::Mount, index)
    }

    /// A tmpfs on the base tmpfs, by its name there: to be filled, and moved to its place.
    pub(super) fn stage_tmpfs(&mut self, mode: u32, size: Option<u64>) -> nix::Result<String> {
        let name = self.make_scratch(Node::Directory)?;
        if size.is_none() && self.plan.root.share_tmpfs {
            bind_over_itself(self.on_base(&name))?;
            return Ok(name);
        }
        let size = size.map_or_else(String::new, |size| format!(",size={size}"));
        let options = format!("mode={mode:o}{size}");
        mount(Some("tmpfs"), &self.on_base(&name), Some("tmpfs"), tmpfs_flags(self.plan), Some(options.as_str()))?;
        self.ours.push(fstat(self.open_scratch(&name)?)?.st_dev);
        Ok(name)
    }

    /// A name on the base tmpfs that nothing is at, and that the command can't reach.
    pub(super) fn scratch_name(&mut self) -> String {
        self.scratch += 1;
        format!("{SCRATCH}/{}", self.scratch)
    }

    /// A mount point there.
    pub(super) fn make_scratch(&mut self, node: Node) -> nix::Result<String> {
        let name = self.scratch_name();
        match node {
            Node::Directory => mkdirat(&self.base, name.as_str(), Mode::from_bits_truncate(DIRECTORY_MODE))?,
            Node::File => {
                let mode = Mode::from_bits_truncate(FILE_MODE);
                mknodat(&self.base, name.as_str(), SFlag::S_IFREG, mode, 0)?;
            }
        }
        Ok(name)
    }

    /// What is mounted there by now.
    pub(super) fn open_scratch(&self, name: &str) -> nix::Result<OwnedFd> {
        openat(&self.base, name, PATH_ONLY, Mode::empty())
    }

    /// A path for mount(2).
    pub(super) fn on_base(&self, name: &str) -> PathBuf {
        sys::proc_path(&self.base).join(name)
    }

    /// Moves what was mounted there over what a descriptor names.
    pub(super) fn move_to(&self, name: &str, place: &OwnedFd) -> nix::Result<()> {
        mount(Some(&self.on_base(name)), &sys::proc_path(place), NONE, MsFlags::MS_MOVE, NONE)
    }
}
