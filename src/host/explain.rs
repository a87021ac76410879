//! Why the kernel refuses something, as far as this machine's files tell, and what to do about it. Explains only: what is
//! possible is found by trying.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;

use super::{Ability, Landlock, mountinfo};

/// Why, and the cure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// What is in the way.
    pub cause: String,
    /// What to do: a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Cause {
    pub(super) fn new(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { cause: cause.into(), cure: Some(cure.into()) }
    }
}

/// The AppArmor profile that lets this program make user namespaces, for the file at `path`.
pub fn apparmor_profile(path: &Path) -> String {
    format!(
        "# Lets {path} make user namespaces, and restricts nothing: it restricts itself and what it starts.\n\
         abi <abi/4.0>,\ninclude <tunables/global>\n\n\
         profile shannot \"{path}\" flags=(unconfined) {{\n  userns,\n\n  include if exists <local/shannot>\n}}\n",
        path = path.display()
    )
}

fn setting(path: &str) -> Option<String> {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).ok()
}

/// The mount points that can be reached from this process's root.
fn mount_points() -> Option<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    Some(mountinfo::entries(&table).map(|entry| entry.point).collect())
}

/// In a plain chroot the root is no mount point.
fn is_chrooted() -> bool {
    mount_points().is_some_and(|points| points.iter().all(|point| point.as_os_str() != "/"))
}

/// user_namespaces(7): who maps id 0 of the outer namespace needs this capability there.
fn may_map_root() -> bool {
    let held = super::capability_bits(caps::CapSet::Effective).unwrap_or(u64::MAX);
    held & caps::Capability::CAP_SETFCAP.bitmask() != 0
}

fn is_filtered() -> bool {
    setting("/proc/self/status").is_some_and(|status| status.lines().any(|line| line == "Seccomp:\t2"))
}

/// Why something was refused with this errno.
pub fn why_refused(ability: Ability, errno: Errno) -> Cause {
    let known = match ability {
        Ability::UserNamespace => why_no_user_namespace(errno),
        Ability::Procfs => why_no_procfs(),
        Ability::UsernsLimit => Some(Cause::new(
            "/proc/sys is read-only here, as in a container",
            "nothing has to be done: a filter refuses new user namespaces instead",
        )),
        Ability::Mounts if is_chrooted() => Some(Cause::new(
            "this process is in a chroot",
            "start it outside, or with a root that is a mount of its own (pivot_root, `unshare --root`)",
        )),
        _ => None,
    };
    known.unwrap_or_else(|| general(ability, errno))
}

fn general(ability: Ability, errno: Errno) -> Cause {
    let words = ability.words();
    match errno {
        Errno::EINVAL | Errno::ENODEV => Cause { cause: format!("this kernel has no {words}"), cure: None },
        Errno::EPERM | Errno::ENOSYS if is_filtered() => Cause::new(
            format!(
                "a seccomp filter around this process refuses {words} (a container's, a unit's, an outer sandbox's)"
            ),
            "start it outside; or allow clone, unshare and mount: docker and podman `--security-opt seccomp=FILE`, systemd `RestrictNamespaces=no`",
        ),
        Errno::EPERM => Cause {
            cause: format!(
                "{words} need a privilege that this process does not have, or a security module refuses them"
            ),
            cure: None,
        },
        errno => Cause { cause: format!("the kernel refuses {words}: {}", errno.desc()), cure: None },
    }
}

fn why_no_user_namespace(errno: Errno) -> Option<Cause> {
    if setting("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return Some(Cause::new(
            "user namespaces are turned off (user.max_user_namespaces is 0)",
            "sysctl -w user.max_user_namespaces=15000",
        ));
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return Some(Cause::new(
            "user namespaces are for root only here (kernel.unprivileged_userns_clone is 0)",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ));
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return Some(Cause::new(
            "AppArmor allows user namespaces only to programs with a profile",
            "shannot doctor --apparmor-profile > /etc/apparmor.d/shannot && apparmor_parser -r /etc/apparmor.d/shannot",
        ));
    }
    if !Path::new("/proc/self").exists() {
        return Some(Cause::new("/proc is not mounted, and ids are mapped through it", "mount -t proc proc /proc"));
    }
    if !Path::new("/proc/self/ns/user").exists() {
        return Some(Cause { cause: "this kernel has no user namespaces (CONFIG_USER_NS)".to_owned(), cure: None });
    }
    if is_chrooted() {
        return Some(Cause::new(
            "this process is in a chroot, where the kernel allows no user namespace",
            "start it outside",
        ));
    }
    if errno == Errno::EPERM && nix::unistd::geteuid().is_root() && !may_map_root() {
        return Some(Cause::new(
            "this is root without CAP_SETFCAP, as in a container, and such a root may not map its own id (Linux 5.12)",
            "start it as another user; or docker and podman `--cap-add SETFCAP`",
        ));
    }
    match errno {
        Errno::EUSERS | Errno::ENOSPC => Some(Cause::new(
            "too many user namespaces exist, or they are nested too deeply",
            "sysctl -w user.max_user_namespaces=15000",
        )),
        _ => None,
    }
}

fn why_no_procfs() -> Option<Cause> {
    let points = mount_points()?;
    if !points.iter().any(|point| point.as_os_str() == "/proc") {
        return Some(Cause::new(
            "/proc is not mounted, and the kernel gives a user namespace no more than there is",
            "mount -t proc proc /proc",
        ));
    }
    points.iter().any(|point| point.starts_with("/proc") && point.as_os_str() != "/proc").then(|| {
        Cause::new(
            "parts of /proc are covered by mounts, as in a container, and the kernel gives a user namespace no more than there is",
            "start the container with its /proc whole: docker `--security-opt systempaths=unconfined`, podman `--security-opt unmask=/proc/*`",
        )
    })
}

impl Landlock {
    /// Why there is none.
    pub fn why_not(self) -> Option<Cause> {
        match self {
            Landlock::Abi(_) => None,
            Landlock::NotEnabled => Some(Cause::new(
                "Landlock is built in but not enabled at boot",
                "add landlock to the kernel's lsm= list (in /etc/default/grub: GRUB_CMDLINE_LINUX=\"lsm=landlock,lockdown,yama,integrity,apparmor\"), update-grub, reboot",
            )),
            Landlock::NotBuilt => Some(Cause {
                cause: if is_filtered() {
                    "this kernel has no Landlock, or a seccomp filter around this process hides it"
                } else {
                    "this kernel has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK)"
                }
                .to_owned(),
                cure: None,
            }),
        }
    }
}
