//! Facts about this machine and this caller, found by trying. No decision is made here; `plan` makes them.

mod files;
mod program;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::IsTerminal;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::sys;

pub use files::{Files, Found, Identity, Kind, LocalFiles};
pub use program::{Elf, Program, parse_program};

/// What the machine and the caller are.
pub struct Host {
    /// The caller's user id.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
    /// The caller's capabilities.
    pub capabilities: Capabilities,
    /// The caller's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The caller's directory, if it can be named.
    pub cwd: Option<PathBuf>,
    /// What Landlock there is.
    pub landlock: Landlock,
    /// open_tree(2), move_mount(2) and mount_setattr(2) work (Linux 5.12).
    pub mount_api: bool,
    /// The terminal on one of the standard descriptors.
    pub terminal: Option<Terminal>,
    /// The host's files.
    pub files: Box<dyn Files>,
}

/// A terminal that the caller has on a standard descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// The descriptor, 0–2.
    pub descriptor: u8,
    /// Its device node on the host, if it has a name there.
    pub path: Option<PathBuf>,
    /// That of the terminal on stdout, if there is one.
    pub stdout: Option<PathBuf>,
}

/// Sets of capabilities, a bit a number (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// In force.
    pub effective: u64,
    /// What can be in force.
    pub permitted: u64,
}

/// What Landlock the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// This ABI (landlock(7)).
    Abi(i32),
    /// Built in, not enabled at boot (`lsm=`).
    NotEnabled,
    /// Not in this kernel.
    NotBuilt,
}

impl Landlock {
    /// The ABI, 0 where there is none.
    pub fn abi(self) -> i32 {
        match self {
            Landlock::Abi(abi) => abi,
            Landlock::NotEnabled | Landlock::NotBuilt => 0,
        }
    }
}

impl Host {
    /// Looks at this machine and this process. The only impure constructor.
    pub fn probe() -> Self {
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            capabilities: probe_capabilities(),
            environment: std::env::vars_os().collect(),
            cwd: std::env::current_dir().ok(),
            landlock: probe_landlock(),
            mount_api: sys::has_mount_api(),
            terminal: probe_terminal(),
            files: Box::new(LocalFiles::default()),
        }
    }

    /// A variable of the caller's environment.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("cwd", &self.cwd)
            .field("landlock", &self.landlock)
            .field("mount_api", &self.mount_api)
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}

/// A set of this process's capabilities, a bit a number.
///
/// # Errors
/// Those of crate caps, for capget(2).
pub fn capability_bits(set: caps::CapSet) -> Result<u64, caps::errors::CapsError> {
    let held = caps::read(None, set)?;
    Ok(held.into_iter().fold(0, |bits, capability| bits | capability.bitmask()))
}

fn probe_capabilities() -> Capabilities {
    let bits = |set| capability_bits(set).unwrap_or_default();
    Capabilities { effective: bits(caps::CapSet::Effective), permitted: bits(caps::CapSet::Permitted) }
}

fn probe_landlock() -> Landlock {
    match sys::landlock_abi() {
        Ok(abi) => Landlock::Abi(abi),
        Err(Errno::EOPNOTSUPP) => Landlock::NotEnabled,
        Err(_) => Landlock::NotBuilt,
    }
}

fn probe_terminal() -> Option<Terminal> {
    let is_terminal =
        [std::io::stdin().is_terminal(), std::io::stdout().is_terminal(), std::io::stderr().is_terminal()];
    let descriptor = u8::try_from(is_terminal.iter().position(|yes| *yes)?).ok()?;
    let name = |fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok().filter(|path| path.starts_with("/dev"));
    let [_, on_stdout, _] = is_terminal;
    Some(Terminal { descriptor, path: name(descriptor), stdout: on_stdout.then(|| name(1)).flatten() })
}

/// Why a user namespace was refused, as far as this machine's files tell, and what to do.
pub fn why_no_user_namespace() -> String {
    let setting = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    if setting("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return "user namespaces are turned off: sysctl -w user.max_user_namespaces=15000".to_owned();
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return "user namespaces are for root only here: sysctl -w kernel.unprivileged_userns_clone=1".to_owned();
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return "AppArmor allows user namespaces only to programs with a profile: give this binary one with the rule \"userns,\""
            .to_owned();
    }
    if !std::path::Path::new("/proc/self/ns/user").exists() {
        return "this kernel has no user namespaces, or /proc is not mounted; root can run with \"user_namespace_isolation\": false"
            .to_owned();
    }
    "user namespaces are refused here: in a container, its seccomp profile or an outer sandbox does that; run as root with \"user_namespace_isolation\": false, or allow clone with CLONE_NEWUSER".to_owned()
}
