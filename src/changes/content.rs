//! What is in files: compared, and copied with their holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Bytes that are read at once.
const BLOCK: usize = 128 * 1024;

/// Whether two files have the same bytes. What is a hole in both is not read: it may be terabytes.
pub(super) fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let length = one.metadata()?.len();
    if other.metadata()?.len() != length {
        return Ok(false);
    }
    let mut blocks = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut position = 0;
    while position < length {
        let (start, end) = match (extent(one, position, length)?, extent(other, position, length)?) {
            (None, None) => return Ok(true),
            (Some(extent), None) | (None, Some(extent)) => extent,
            (Some(extent), Some(another)) => extent.min(another),
        };
        position = start;
        while position < end {
            let most = usize::try_from(end - position).map_or(BLOCK, |left| left.min(BLOCK));
            let (first, second) = (blocks.0.get_mut(..most), blocks.1.get_mut(..most));
            let (Some(first), Some(second)) = (first, second) else { return Ok(false) };
            // One of them was cut short meanwhile.
            if fill(one, first, position)? < most || fill(other, second, position)? < most || first != second {
                return Ok(false);
            }
            position += most as u64;
        }
    }
    Ok(true)
}

fn fill(file: &File, block: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..)
        && !rest.is_empty()
    {
        match file.read_at(rest, position + filled as u64) {
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
    let (start, end) = (start.unsigned_abs(), lseek(file, start, Whence::SeekHole)?.unsigned_abs());
    // Never nothing, also where a hole is made there meanwhile: each one brings the end nearer.
    Ok(Some((start, end.max(start + 1).min(length))))
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
    /// A file of so many bytes with something in some places.
    fn sparse(length: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        for (position, bytes) in data {
            file.write_all_at(bytes, *position).unwrap();
        }
        file.set_len(length).unwrap();
        file
    }

    #[test]
    fn holes_are_compared_without_reading_them_and_are_zeros() {
        let (length, far) = (1 << 40, 3 << 38);
        let ends: &[(u64, &[u8])] = &[(0, b"begin"), (far, b"end")];
        let one = sparse(length, ends);
        assert!(is_same(&one, &sparse(length, ends)).unwrap());
        assert!(is_same(&one, &sparse(length, &[(0, b"begin"), (1 << 30, &[0; 4096]), (far, b"end")])).unwrap());
        for other in [
            sparse(length + 1, ends),
            sparse(length, &[(0, b"begin")]),
            sparse(length, &[(0, b"begin"), (far, b"enD")]),
            sparse(length, &[(0, b"begin"), (1 << 30, b"x"), (far, b"end")]),
        ] {
            assert!(!is_same(&one, &other).unwrap() && !is_same(&other, &one).unwrap());
        }
    }
}
