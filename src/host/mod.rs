//! Facts about this machine and this caller, found by trying. No decision is made here; `plan` makes them.

mod cgroups;
mod explain;
mod files;
pub mod mountinfo;
mod program;
mod scratch;
mod survey;
mod trial;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::sys;

pub use cgroups::{Ceiling, CgroupPlace, CgroupRefusal, CgroupVersion, Cgroups, Controller};
pub use explain::{Cause, apparmor_profile, why_refused};
pub use files::{Files, Found, Identity, Kind, LocalFiles, open_no_link, open_without_links};
pub use program::{Elf, Program, parse_program};
pub use scratch::{safe_folder, unsafe_on_way};
pub use survey::Survey;
pub use trial::{Ability, Ground, Trial};

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
    /// What came of trying to make namespaces and mounts. None: that was not tried, and is taken to work.
    pub trial: Option<Trial>,
    /// Where cgroups can be made. None: that was not tried, since nothing is to be limited.
    pub cgroups: Option<Cgroups>,
    /// A path that does not exist, in a folder where the caller may make it; looked for when trying.
    pub scratch: Option<PathBuf>,
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
            trial: None,
            cgroups: None,
            scratch: None,
            files: Box::new(LocalFiles::default()),
        }
    }

    /// The same machine after trying what the kernel lets the caller make. Not for each run: the sandbox itself tries first.
    #[must_use]
    pub fn tried(self) -> Self {
        Self { trial: Some(Trial::new(self.uid, self.gid)), scratch: scratch::probe_scratch(), ..self }
    }

    /// The same machine after trying where cgroups can be made that limit this.
    #[must_use]
    pub fn with_cgroups(self, wanted: &[Controller]) -> Self {
        Self { cgroups: Some(Cgroups::try_here(wanted)), ..self }
    }

    /// Whether the caller is root outside of its user namespace too: the kernel counts no processes of that user's (kernel/fork.c,
    /// INIT_USER). Of several namespaces around each other only the innermost can be seen.
    pub fn is_root_outside(&self) -> bool {
        let map = self.files.read(Path::new("/proc/self/uid_map")).unwrap_or_default();
        let outside = String::from_utf8_lossy(&map).lines().find_map(|line| outside(line, self.uid));
        outside.unwrap_or(self.uid) == 0
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
            .field("trial", &self.trial)
            .field("cgroups", &self.cgroups)
            .finish_non_exhaustive()
    }
}

/// What a line of an id map, `inside outside count`, makes of an id (user_namespaces(7)).
fn outside(line: &str, id: u32) -> Option<u32> {
    let mut numbers = line.split_whitespace().map_while(|word| word.parse::<u32>().ok());
    let (first, outside, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let offset = id.checked_sub(first).filter(|offset| *offset < count)?;
    outside.checked_add(offset)
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
    let name = |fd: u8| {
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok().filter(|path| path.starts_with("/dev"))?;
        // The name may be from another root or mount namespace, and mean something else here.
        let device = fstat(sys::borrow_number(i32::from(fd))).ok()?.st_rdev;
        (path.metadata().ok()?.rdev() == device).then_some(path)
    };
    let [_, on_stdout, _] = is_terminal;
    Some(Terminal { descriptor, path: name(descriptor), stdout: on_stdout.then(|| name(1)).flatten() })
}

/// How names of what one run makes on the host, and sweeps after another, begin.
const PRIVATE: &str = "shannot-";

/// Whether a name is one that [`Host`] proposes for a private folder or a cgroup.
pub fn is_private_name(name: &[u8]) -> bool {
    is_unique_name(name, PRIVATE)
}

fn private_name() -> String {
    unique_name(PRIVATE)
}

/// A name that nobody else has: the prefix, and 16 hexadecimal digits.
pub fn unique_name(prefix: &str) -> String {
    format!("{prefix}{:016x}", sys::unguessable())
}

/// Whether [`unique_name`] may have made it, with this prefix.
pub fn is_unique_name(name: &[u8], prefix: &str) -> bool {
    let key = name.strip_prefix(prefix.as_bytes());
    key.is_some_and(|key| key.len() == 16 && key.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::outside;

    #[test]
    fn an_id_is_looked_up_in_the_line_that_has_it() {
        assert_eq!(outside("         0          0 4294967295", 0), Some(0));
        assert_eq!(outside("0 100000 65536", 7), Some(100_007));
        assert_eq!(outside("1000 0 1", 1000), Some(0));
        for (line, id) in [("1000 0 1", 1001), ("1000 0 1", 999), ("0 0", 0), ("", 0), ("0 4294967295 2", 1)] {
            assert_eq!(outside(line, id), None, "{line}");
        }
    }
}
