//! What apply does to the workspace, noted in the run's folder before it is done, so that also after a kill its own traces are
//! told from what others did. A file's ctime says that somebody was at it, not who: apply writes files, and takes away other
//! names of files that have several (hard links), which moves their ctime too.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::change::Node;
use super::error::{Error, at, at_errno};
use super::tree::{LONGEST, Meta, Permissions, Tree};

const FILE: &str = "applied";

/// Bytes of a record, at most.
const RECORD: usize = LONGEST + 100;

/// What a change by somebody else would make different. Not the device: some file systems have another number after the next
/// mount (btrfs, NFS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
}

impl From<&Meta> for Stamp {
    fn from(meta: &Meta) -> Self {
        // A folder's permissions are apply's to change, and are asked by nobody.
        let mode = if meta.node == Node::Directory { 0 } else { meta.mode };
        Self { size: meta.size, mode, owner: (meta.uid, meta.gid), mtime: meta.mtime }
    }
}

/// What apply has to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// It wrote it, and may write over it again; it never takes it away.
    Wrote,
    /// Nobody had changed it, and it takes away other names of it, or gives it one; of a folder, it looks into it.
    Touched,
}

impl Deed {
    fn letter(self) -> char {
        match self {
            Deed::Wrote => 'w',
            Deed::Touched => 't',
        }
    }
}

/// One file, as it was noted.
#[derive(Debug)]
struct Noted {
    deed: Deed,
    stamp: Stamp,
    /// Which apply it was: see [`Journal::ends`].
    session: usize,
}

/// The notes of all applies of a run.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// By inode; the last note counts.
    noted: HashMap<u64, Noted>,
    /// When each apply ended: no later trace is its own. Of one that was killed nobody knows, and the next one's counts.
    ends: Vec<(i64, i64)>,
    /// Folders that were opened up by one that was killed: inode and permissions that they had.
    opened: Vec<(PathBuf, u64, u32)>,
}

impl Journal {
    /// That of a run's folder.
    pub(super) fn open(folder: impl AsFd, shown: &Path) -> Result<Self, Error> {
        let path = shown.join(FILE);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(folder, FILE, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(at_errno("open", &path))?;
        Self::read(file.into()).map_err(at("read", &path))
    }

    pub(super) fn read(file: File) -> io::Result<Self> {
        let mut journal = Self { file, noted: HashMap::new(), ends: Vec::new(), opened: Vec::new() };
        let mut reader = BufReader::new(journal.file.try_clone()?);
        let mut record = Vec::with_capacity(RECORD);
        loop {
            record.clear();
            if reader.read_until(0, &mut record)? == 0 {
                return Ok(journal);
            }
            // One that a kill has cut off was never acted on, and is none.
            if journal.take(record.strip_suffix(b"\0").unwrap_or(&record)).is_none() {}
        }
    }

    fn take(&mut self, record: &[u8]) -> Option<()> {
        let (kind, rest) = record.split_first()?;
        if *kind == b'o' {
            let mut parts = rest.strip_suffix(b"//")?.splitn(3, |byte| *byte == b' ');
            let mut number = |radix| u64::from_str_radix(std::str::from_utf8(parts.next()?).ok()?, radix).ok();
            let (inode, mode) = (number(10)?, u32::try_from(number(8)?).ok()?);
            self.opened.push((PathBuf::from(OsStr::from_bytes(parts.next()?)), inode, mode));
            return Some(());
        }
        let numbers = std::str::from_utf8(rest).ok()?.strip_suffix(" .")?;
        let numbers: Vec<i128> = numbers.split(' ').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        match (kind, numbers.as_slice()) {
            (b'e', [seconds, nanoseconds]) => {
                self.ends.push((i64::try_from(*seconds).ok()?, i64::try_from(*nanoseconds).ok()?));
                self.opened.clear();
            }
            (b'w' | b't', [inode, size, mode, uid, gid, seconds, nanoseconds]) => {
                let stamp = Stamp {
                    size: u64::try_from(*size).ok()?,
                    mode: u32::try_from(*mode).ok()?,
                    owner: (u32::try_from(*uid).ok()?, u32::try_from(*gid).ok()?),
                    mtime: (i64::try_from(*seconds).ok()?, i64::try_from(*nanoseconds).ok()?),
                };
                let deed = if *kind == b'w' { Deed::Wrote } else { Deed::Touched };
                let noted = Noted { deed, stamp, session: self.ends.len() };
                self.noted.insert(u64::try_from(*inode).ok()?, noted);
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether its ctime says nothing but that apply was at it. `goes`: it would be taken away.
    pub(super) fn explains(&self, meta: &Meta, goes: bool) -> bool {
        self.noted.get(&meta.inode).is_some_and(|noted| {
            noted.stamp == meta.into()
                && !(goes && noted.deed == Deed::Wrote)
                && self.ends.get(noted.session).is_none_or(|end| meta.ctime <= *end)
        })
    }

    /// Before the file gets its name, or another name of it goes.
    pub(super) fn note(&self, deed: Deed, files: &[Meta]) -> io::Result<()> {
        let text: String = files.iter().map(|meta| record(deed, meta)).collect();
        (&self.file).write_all(text.as_bytes())
    }

    /// What apply opens up from now on is noted here.
    pub(super) fn watch(&self, workspace: &mut Tree) -> io::Result<()> {
        workspace.note_opened_in(self.file.try_clone()?);
        Ok(())
    }

    /// All is done that this apply does.
    pub(super) fn end(&self, (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
        (&self.file).write_all(format!("\0e{seconds} {nanoseconds} .\0").as_bytes())
    }

    /// Gives folders back what an apply took that was killed, unless somebody did so already.
    pub(super) fn shut_again(&self, workspace: &mut Tree) -> Result<(), (PathBuf, Errno)> {
        for (path, inode, mode) in &self.opened {
            let Ok(Some(meta)) = workspace.meta(path) else { continue };
            if meta.node == Node::Directory && meta.inode == *inode && meta.mode == mode | 0o700 {
                let old = Permissions { mode: *mode, identity: Some(meta.identity()), are_old: true };
                workspace.settle_on(path.clone(), old);
            }
        }
        workspace.settle()
    }
}

/// What tells the host's own changes from the run's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since<'a> {
    /// When the run started, seconds and nanoseconds since the epoch.
    pub(super) start: (i64, i64),
    /// What apply has done since then.
    pub(super) journal: &'a Journal,
}

impl Since<'_> {
    /// Whether a folder that stays may be another one: mv(1) changes its ctime, but not its mtime and nothing of what is in it.
    /// chmod(1) looks the same. Whoever makes something in it changes both, and that is no matter.
    pub(super) fn was_moved(self, folder: &Meta) -> bool {
        folder.mtime <= self.start && self.was_changed(folder, true)
    }

    /// By its times. ctime moves with every write and rename, and nobody can set it; mtime may have been set to any day, also to
    /// come, and is kept by mv(1) and cp -p. `goes`: it would be taken away.
    pub(super) fn was_changed(self, meta: &Meta, goes: bool) -> bool {
        meta.ctime > self.start && !self.journal.explains(meta, goes)
    }
}

/// On its own, whatever was cut off before.
fn record(deed: Deed, meta: &Meta) -> String {
    let Stamp { size, mode, owner: (uid, gid), mtime: (seconds, nanoseconds) } = Stamp::from(meta);
    let inode = meta.inode;
    format!("\0{}{inode} {size} {mode} {uid} {gid} {seconds} {nanoseconds} .\0", deed.letter())
}

/// Before a folder is opened up, whose permissions are these: chmod(2) moves its ctime, then and when they come back.
pub(super) fn note_opened(mut file: &File, path: &Path, meta: &Meta) -> nix::Result<()> {
    let mut text = record(Deed::Touched, meta).into_bytes();
    text.extend_from_slice(format!("\0o{} {:o} ", meta.inode, meta.mode).as_bytes());
    text.extend_from_slice(path.as_os_str().as_bytes());
    // No path of a tree has two of them: one that was cut off does not end so.
    text.extend_from_slice(b"//\0");
    file.write_all(&text).map_err(|error| crate::sys::errno_of(&error))
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;
    use crate::changes::tree::meta_at;

    fn again(file: &File) -> Journal {
        let mut file = file.try_clone().unwrap();
        file.rewind().unwrap();
        Journal::read(file).unwrap()
    }

    #[test]
    fn a_record_counts_for_the_file_as_it_was_until_its_apply_ended() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f"), "x").unwrap();
        let meta = meta_at(File::open(folder.path()).unwrap(), "f".as_ref()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let journal = again(&file);
        assert!(!journal.explains(&meta, false));
        // What a kill has cut off is none, and spoils none.
        (&file).write_all(b"\0w12 34").unwrap();
        journal.note(Deed::Wrote, &[meta]).unwrap();
        (&file).write_all(format!("\0t{} 1 1", meta.inode).as_bytes()).unwrap();
        assert!(again(&file).explains(&meta, false) && !again(&file).explains(&meta, true));
        for other in [
            Meta { size: 2, ..meta },
            Meta { mode: 0, ..meta },
            Meta { inode: meta.inode + 1, ..meta },
            Meta { mtime: (1, 1), ..meta },
        ] {
            assert!(!again(&file).explains(&other, false));
        }
        journal.end(meta.ctime).unwrap();
        assert!(again(&file).explains(&meta, false));
        assert!(!again(&file).explains(&Meta { ctime: (meta.ctime.0 + 1, 0), ..meta }, false));
        journal.note(Deed::Touched, &[meta]).unwrap();
        assert!(again(&file).explains(&Meta { ctime: (meta.ctime.0 + 1, 0), ..meta }, true));
    }

    #[test]
    fn folders_that_a_killed_apply_opened_up_are_known_by_any_name() {
        let file = tempfile::tempfile().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let meta = meta_at(File::open(folder.path()).unwrap(), ".".as_ref()).unwrap();
        let name = Path::new(OsStr::from_bytes(b"a b/\n \xff"));
        note_opened(&file, Path::new(""), &meta).unwrap();
        note_opened(&file, name, &meta).unwrap();
        (&file).write_all(b"\0o1 755 cut off").unwrap();
        let journal = again(&file);
        let expected = |path: &Path| (path.to_owned(), meta.inode, meta.mode);
        assert_eq!(journal.opened, [expected(Path::new("")), expected(name)]);
        journal.end((0, 0)).unwrap();
        assert!(again(&file).opened.is_empty());
    }
}
