//! The mount table as proc(5) has it, /proc/PID/mountinfo.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::libc;
use nix::mount::MsFlags;

/// File systems in which root's kuid alone is power over the host (security.md, rules 2 and 3).
const CONTROLS: &[&[u8]] = &[
    b"sysfs",
    b"cgroup",
    b"cgroup2",
    b"debugfs",
    b"tracefs",
    b"securityfs",
    b"selinuxfs",
    b"smackfs",
    b"configfs",
    b"efivarfs",
    b"pstore",
    b"bpf",
    b"binfmt_misc",
    b"fusectl",
    b"resctrl",
    b"nfsd",
];

/// A mount.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What of the file system is mounted there: a path in it.
    pub root: PathBuf,
    /// Where it is, seen from the root of the process that asked.
    pub point: PathBuf,
    /// Flags of the mount. Those that the host set are locked in a user namespace, so a remount must repeat them.
    pub flags: MsFlags,
    /// Device number of what is mounted, as stat(2) has it.
    pub device: u64,
    /// The type of file system.
    pub kind: &'a [u8],
    /// Options of the file system: for cgroup v1 its controllers.
    pub super_options: &'a [u8],
}

impl Entry<'_> {
    /// Whether it is a file system that controls the kernel.
    pub fn controls_the_kernel(&self) -> bool {
        CONTROLS.contains(&self.kind)
    }
}

/// The mounts of a table, in its order.
pub fn entries(table: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    table.split(|byte| *byte == b'\n').filter_map(parse)
}

/// A line: the third field is the device, then come the root, the mount point and its options. Behind a dash come type,
/// source, and the options of the file system.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
    let root = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = std::str::from_utf8(fields.next()?).ok()?;
    let mut behind = fields.skip_while(|field| *field != b"-");
    let kind = behind.nth(1)?;
    let super_options = behind.nth(1).unwrap_or_default();
    let flags = options.split(',').filter_map(|option| {
        Some(match option {
            "ro" => MsFlags::MS_RDONLY,
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            "noexec" => MsFlags::MS_NOEXEC,
            "noatime" => MsFlags::MS_NOATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            "relatime" => MsFlags::MS_RELATIME,
            _ => return None,
        })
    });
    Some(Entry { root, point, flags: flags.collect(), device, kind, super_options })
}

/// Blanks, tabs, newlines and backslashes are octal.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                plain.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn mountinfo_lines_are_read_with_escapes() {
        let entry = parse(br"36 35 98:1 /mnt1 /mnt\0402 ro,noexec,relatime master:1 - ext3 /dev/root rw").unwrap();
        assert_eq!(entry.point, Path::new("/mnt 2"));
        assert_eq!(entry.flags, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME);
        assert_eq!((entry.device, entry.kind), (libc::makedev(98, 1), b"ext3".as_slice()));
        assert_eq!((entry.root.as_path(), entry.super_options), (Path::new("/mnt1"), b"rw".as_slice()));
        assert!(parse(b"").is_none());
        assert_eq!(unescape(br"a\1"), br"a\1");
    }

    #[test]
    fn the_kernels_own_table_is_read_in_full() {
        let table = std::fs::read("/proc/self/mountinfo").unwrap();
        assert_eq!(entries(&table).count(), table.iter().filter(|byte| **byte == b'\n').count());
    }
}
