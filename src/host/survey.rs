//! What else this machine is, for people who want to know why: read, not tried, but for what can be asked harmlessly.

use std::fs;
use std::path::Path;

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
        }
    }
}

impl Default for Survey {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn words(path: impl AsRef<Path>, separator: char) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().split(separator).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Whether this process can make something in a folder.
pub(super) fn is_writable(folder: &Path) -> bool {
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}
