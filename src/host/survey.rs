//! What else this machine is, for people who want to know why: read, not tried, but for what can be asked harmlessly.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

/// The kernel and what is configured of it.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// As `uname -r`.
    pub kernel: String,
    /// As `uname -m`.
    pub architecture: String,
    /// Security modules in force (`/sys/kernel/security/lsm`), where that can be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_modules: Vec<String>,
    /// What a seccomp filter can answer (seccomp(2)), where that can be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seccomp_actions: Vec<String>,
    /// What limits of a whole sandbox can rest on.
    pub cgroups: Cgroups,
}

/// Control groups that this process could make children in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "version")]
pub enum Cgroups {
    /// cgroup v2 (cgroups(7)).
    V2 {
        /// This process's own.
        path: PathBuf,
        /// Children can be made in it.
        writable: bool,
        /// Controllers that there are for it.
        controllers: Vec<String>,
    },
    /// Version 1.
    V1 {
        /// Children can be made.
        writable: bool,
    },
    /// None is mounted.
    None,
}

impl Survey {
    /// Reads.
    pub fn new() -> Self {
        let name = uname();
        let part = |part: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            name.as_ref().map(|name| part(name).to_string_lossy().into_owned()).unwrap_or_default()
        };
        Self {
            kernel: part(nix::sys::utsname::UtsName::release),
            architecture: part(nix::sys::utsname::UtsName::machine),
            security_modules: words("/sys/kernel/security/lsm", ','),
            seccomp_actions: words("/proc/sys/kernel/seccomp/actions_avail", ' '),
            cgroups: cgroups(),
        }
    }
}

impl Default for Survey {
    fn default() -> Self {
        Self::new()
    }
}

fn words(path: impl AsRef<Path>, separator: char) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().split(separator).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Whether this process can make something in a folder.
pub(super) fn is_writable(folder: &Path) -> bool {
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

fn cgroups() -> Cgroups {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let unified = own.lines().find_map(|line| line.strip_prefix("0::"));
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new).into_iter();
    let root = root.clone().find(|root| root.join("cgroup.controllers").exists());
    if let (Some(root), Some(below)) = (root, unified) {
        let path = root.join(below.trim_start_matches('/'));
        let controllers = words(path.join("cgroup.controllers"), ' ');
        // A hybrid hierarchy has them all in version 1.
        if !controllers.is_empty() || root.as_os_str() == "/sys/fs/cgroup" {
            let writable = is_writable(&path) && is_writable(&path.join("cgroup.procs"));
            return Cgroups::V2 { path, writable, controllers };
        }
    }
    let memory = Path::new("/sys/fs/cgroup/memory");
    if memory.exists() { Cgroups::V1 { writable: is_writable(memory) } } else { Cgroups::None }
}
