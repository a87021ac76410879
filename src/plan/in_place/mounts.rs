//! What is mounted where on the host and could not be had below a bind of a new root: device nodes, a procfs, what controls the
//! kernel. Landlock tells none of them from files: a rule that lets a folder be read lets the nodes in it be opened, and one
//! that lets it be written, sysctls. What is mounted is left out of the rules. For single nodes in other folders no tree is
//! searched, which the report says.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::host::mountinfo::{Entry, entries};
use crate::host::{Host, Kind};

/// Where devices belong.
pub(super) const DEV: &str = "/dev";
const PROC: &str = "/proc";

/// The mounts that matter, by where they are.
pub(super) struct Mounts {
    /// Numbers of the file systems of devices: every devtmpfs and devpts, and what is mounted at /dev, which in containers is a
    /// tmpfs.
    of_devices: Vec<u64>,
    /// /dev, and where devices are elsewhere.
    pub(super) devices: Vec<PathBuf>,
    /// Every procfs but the one at /proc.
    pub(super) procs: Vec<PathBuf>,
    /// What controls the kernel and can be written.
    pub(super) controls: Vec<PathBuf>,
}

impl Mounts {
    pub(super) fn new(host: &Host) -> Self {
        // Without a table all that is known is /dev.
        let table = host.files.read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let is_devices =
            |entry: &Entry<'_>| entry.point == Path::new(DEV) || matches!(entry.kind, b"devtmpfs" | b"devpts");
        let of_devices: Vec<u64> = entries(&table).filter(is_devices).map(|entry| entry.device).collect();
        let points = |wanted: &dyn Fn(&Entry<'_>) -> bool| -> Vec<PathBuf> {
            let found = entries(&table)
                .filter(wanted)
                // With /dev goes what is below it; below /proc a container has /dev/null over what it hides.
                .filter(|entry| !entry.point.starts_with(DEV) && !entry.point.starts_with(PROC))
                // Not one that is covered by another mount, or lies out of the caller's reach.
                .filter(|entry| host.files.identity(&entry.point).is_ok_and(|found| found.device == entry.device));
            found.map(|entry| entry.point).collect()
        };
        let mut devices =
            points(&|entry| of_devices.contains(&entry.device) && !entry.flags.contains(MsFlags::MS_NODEV));
        devices.push(DEV.into());
        let procs = points(&|entry| entry.kind == b"proc");
        let controls = points(&|entry| entry.controls_the_kernel() && !entry.flags.contains(MsFlags::MS_RDONLY));
        Self { of_devices, devices, procs, controls }
    }

    /// Whether a path without links is a device node, or lies among them.
    pub(super) fn has_devices(&self, host: &Host, path: &Path) -> bool {
        let device = |path: &Path| host.files.identity(path).ok().map(|found| found.device);
        let in_dev = || path.starts_with(DEV) && device(path) == device(Path::new(DEV));
        host.files.kind(path).is_ok_and(|kind| kind == Kind::Device)
            || device(path).is_some_and(|device| self.of_devices.contains(&device))
            || in_dev()
    }
}
