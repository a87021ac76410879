//! What is in files: compared, and copied with their holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Bytes that are read at once.
const BLOCK: usize = 128 * 1024;

/// Whether two files have the same bytes.
pub(super) fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (mut first, mut second) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let read = fill(one, &mut first)?;
        if fill(other, &mut second)? != read || first.get(..read) != second.get(..read) {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

fn fill(mut file: &File, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..)
        && !rest.is_empty()
    {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Copies into an empty file. Holes stay holes: a file of a terabyte may have no byte on disk.
pub(super) fn copy(mut from: &File, mut to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    let mut position = 0;
    while position < length {
        let Some((start, end)) = extent(from, position, length)? else { break };
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        // copy_file_range(2) where the file system has it.
        io::copy(&mut from.take(end - start), &mut to)?;
        position = end;
    }
    to.set_len(length)
}

/// The next bytes that are there (lseek(2), SEEK_DATA); `None` where only a hole follows.
fn extent(file: &File, position: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    let signed = i64::try_from(position).map_err(io::Error::other)?;
    let start = match lseek(file, signed, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        // A file system without holes.
        Err(Errno::EINVAL) => return Ok(Some((position, length))),
        Err(errno) => return Err(errno.into()),
    };
    if start.unsigned_abs() >= length {
        // It grows meanwhile.
        return Ok(None);
    }
    let end = lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start.unsigned_abs(), end.unsigned_abs().min(length))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_meanwhile_is_copied_as_long_as_it_was() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        (&file).seek(SeekFrom::End(0)).unwrap();
        io::Write::write_all(&mut &file, b"more").unwrap();
        assert_eq!(extent(&file, 0, 4096).unwrap(), None);
        assert_eq!(extent(&file, 0, (1 << 20) + 2).unwrap(), Some((1 << 20, (1 << 20) + 2)));
    }
}
