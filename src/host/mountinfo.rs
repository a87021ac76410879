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
    /// Where it is, seen from the root of the process that asked.
    pub point: PathBuf,
    /// Flags of the mount. Those that the host set are locked in a user namespace, so a remount must repeat them.
    pub flags: MsFlags,
    /// Device number of what is mounted, as stat(2) has it.
    pub device: u64,
    /// The type of file system.
    pub kind: &'a [u8],
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

/// A line: the third field is the device, the fifth the mount point, the sixth its options. Behind a dash comes the type.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let options = std::str::from_utf8(fields.next()?).ok()?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
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
    Some(Entry { point, flags: flags.collect(), device, kind })
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
        assert!(parse(b"").is_none());
        assert_eq!(unescape(br"a\1"), br"a\1");
    }

    #[test]
    fn the_kernels_own_table_is_read_in_full() {
        let table = std::fs::read("/proc/self/mountinfo").unwrap();
        assert_eq!(entries(&table).count(), table.iter().filter(|byte| **byte == b'\n').count());
    }
}
