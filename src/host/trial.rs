//! What this machine lets the caller make, found by making it: a child that is gone afterwards, and with it all that it
//! made. What files say (sysctls, LSMs) only explains.

use std::collections::BTreeMap;
use std::fs::{File, write};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{fchdir, pipe2};
use serde::Serialize;

use crate::sys;

/// Something that the kernel may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ability {
    /// A user namespace, with the caller's ids mapped.
    UserNamespace,
    /// A mount namespace.
    MountNamespace,
    /// A pid namespace.
    PidNamespace,
    /// A network namespace.
    NetworkNamespace,
    /// An IPC namespace.
    IpcNamespace,
    /// A UTS namespace.
    UtsNamespace,
    /// A cgroup namespace.
    CgroupNamespace,
    /// `user.max_user_namespaces` of the new user namespace can be set.
    UsernsLimit,
    /// Mounts in the mount namespace: a tmpfs over the root.
    Mounts,
    /// A procfs of the new pid namespace.
    Procfs,
    /// An overlay file system.
    Overlay,
}

impl Ability {
    /// All, in the order in which they are tried.
    pub const ALL: [Ability; 11] = [
        Ability::UserNamespace,
        Ability::MountNamespace,
        Ability::PidNamespace,
        Ability::NetworkNamespace,
        Ability::IpcNamespace,
        Ability::UtsNamespace,
        Ability::CgroupNamespace,
        // Before a mount covers the host's /proc.
        Ability::UsernsLimit,
        Ability::Mounts,
        Ability::Procfs,
        Ability::Overlay,
    ];

    /// As people call it.
    pub fn words(self) -> &'static str {
        match self {
            Ability::UserNamespace => "user namespaces",
            Ability::MountNamespace => "mount namespaces",
            Ability::PidNamespace => "pid namespaces",
            Ability::NetworkNamespace => "network namespaces",
            Ability::IpcNamespace => "IPC namespaces",
            Ability::UtsNamespace => "UTS namespaces",
            Ability::CgroupNamespace => "cgroup namespaces",
            Ability::Mounts => "mounts",
            Ability::Procfs => "a fresh procfs",
            Ability::Overlay => "overlayfs",
            Ability::UsernsLimit => "a limit of user namespaces",
        }
    }
}

/// Where things were tried: in a user namespace, or as root without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground(BTreeMap<Ability, Result<(), Errno>>);

impl Ground {
    /// A ground on which all that is tried ends so.
    pub fn of(result: impl Fn(Ability) -> Result<(), Errno>) -> Self {
        Self(Ability::ALL.into_iter().map(|ability| (ability, result(ability))).collect())
    }

    /// What came of trying.
    ///
    /// # Errors
    /// The errno with which it was refused.
    pub fn tried(&self, ability: Ability) -> Result<(), Errno> {
        self.0.get(&ability).copied().unwrap_or(Err(Errno::ENOSYS))
    }

    /// Whether it worked.
    pub fn can(&self, ability: Ability) -> bool {
        self.tried(ability).is_ok()
    }
}

/// What came of trying everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// In a user namespace.
    pub user: Ground,
    /// As root, without one.
    pub plain: Ground,
    /// A session keyring of its own can be joined, which needs no namespace.
    pub keyring: Result<(), Errno>,
}

impl Trial {
    /// Tries. Takes a few milliseconds, so not for each run.
    pub fn new(uid: u32, gid: u32) -> Self {
        Self {
            user: ground(CloneFlags::CLONE_NEWUSER, Some((uid, gid))),
            plain: ground(CloneFlags::empty(), None),
            keyring: try_keyring(),
        }
    }
}

/// An errno, or 0, for each ability.
type Answers = [i32; Ability::ALL.len()];

fn ground(flags: CloneFlags, ids: Option<(u32, u32)>) -> Ground {
    let answers = ask(flags, ids).unwrap_or_else(|errno| [errno as i32; Ability::ALL.len()]);
    Ground::of(|ability| {
        let answer = Ability::ALL.iter().zip(answers).find(|(known, _)| **known == ability);
        match answer {
            Some((_, 0)) => Ok(()),
            Some((_, errno)) => Err(Errno::from_raw(errno)),
            None => Err(Errno::ENOSYS),
        }
    })
}

/// In a child, whose keyring it then is.
fn try_keyring() -> nix::Result<()> {
    match sys::clone_process(CloneFlags::empty())? {
        sys::Side::Child => {
            let errno = sys::join_new_session_keyring().err().map_or(0, |errno| errno as i32);
            // Errnos of this call fit an exit status.
            sys::exit_now(errno)
        }
        sys::Side::Parent(pid) => match sys::wait4(Some(pid), 0)? {
            Some(waited) if waited.status == 0 => Ok(()),
            Some(waited) if libc::WIFEXITED(waited.status) => Err(Errno::from_raw(libc::WEXITSTATUS(waited.status))),
            _ => Err(Errno::EPERM),
        },
    }
}

/// Lets a child try, and reads its answers. The error is what keeps it from beginning.
fn ask(flags: CloneFlags, ids: Option<(u32, u32)>) -> nix::Result<Answers> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // The pid namespace at once, as only a process in it can mount its procfs; where there is none, the rest goes on.
    let base = flags | CloneFlags::CLONE_NEWNS;
    let (side, pid_namespace) = match sys::clone_process(base | CloneFlags::CLONE_NEWPID) {
        Ok(side) => (side, Ok(())),
        Err(errno) => (sys::clone_process(base)?, Err(errno)),
    };
    match side {
        sys::Side::Child => {
            drop(reader);
            let answers = try_all(ids, pid_namespace);
            let bytes: Vec<u8> = answers.iter().flat_map(|answer| answer.to_ne_bytes()).collect();
            let told = File::from(writer).write_all(&bytes);
            sys::exit_now(i32::from(told.is_err()))
        }
        sys::Side::Parent(pid) => {
            drop(writer);
            let mut bytes = [0; size_of::<Answers>()];
            let read = File::from(reader).read_exact(&mut bytes);
            sys::wait4(Some(pid), 0)?;
            // It died while trying: some filter kills what it does not like.
            read.map_err(|_| Errno::EPERM)?;
            let mut answers = [0; Ability::ALL.len()];
            for (to, from) in answers.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *to = i32::from_ne_bytes(*from);
            }
            Ok(answers)
        }
    }
}

/// In the child, which the namespaces end with.
fn try_all(ids: Option<(u32, u32)>, pid_namespace: nix::Result<()>) -> Answers {
    let started = prctl::set_pdeathsig(Signal::SIGKILL).and_then(|()| ids.map_or(Ok(()), map_ids));
    if let Err(errno) = started {
        return [errno as i32; Ability::ALL.len()];
    }
    Ability::ALL.map(|ability| {
        let result = match ability {
            Ability::UserNamespace if ids.is_none() => Err(Errno::ENOTSUP),
            Ability::UserNamespace | Ability::MountNamespace => Ok(()),
            Ability::PidNamespace => pid_namespace,
            Ability::NetworkNamespace => unshare(CloneFlags::CLONE_NEWNET),
            Ability::IpcNamespace => unshare(CloneFlags::CLONE_NEWIPC),
            Ability::UtsNamespace => unshare(CloneFlags::CLONE_NEWUTS),
            Ability::CgroupNamespace => unshare(CloneFlags::CLONE_NEWCGROUP),
            Ability::UsernsLimit if ids.is_none() => Err(Errno::ENOTSUP),
            Ability::UsernsLimit => set_limit(),
            Ability::Mounts => mount_tmpfs(),
            Ability::Procfs => pid_namespace.and_then(|()| mount_at("proc", "proc", None)),
            Ability::Overlay => mount_at("overlay", "overlay", Some("lowerdir=lower,upperdir=upper,workdir=work")),
        };
        result.err().map_or(0, |errno| errno as i32)
    })
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn map_ids((uid, gid): (u32, u32)) -> nix::Result<()> {
    let files = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {uid} 1")),
        ("/proc/self/gid_map", format!("{gid} {gid} 1")),
    ];
    files.iter().try_for_each(|(path, text)| write(path, text)).map_err(|error| errno_of(&error))
}

fn set_limit() -> nix::Result<()> {
    write("/proc/sys/user/max_user_namespaces", "0").map_err(|error| errno_of(&error))
}

/// As the sandbox does: nothing of the host is needed to mount on but its root.
fn mount_tmpfs() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("tmpfs"), "/", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, NONE)?;
    let base = open("/..", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    fchdir(base.as_fd())?;
    for directory in ["proc", "overlay", "lower", "upper", "work"] {
        nix::unistd::mkdir(directory, Mode::S_IRWXU)?;
    }
    Ok(())
}

/// On the tmpfs, which is the working directory.
fn mount_at(directory: &str, fs: &str, options: Option<&str>) -> nix::Result<()> {
    mount(Some(fs), directory, Some(fs), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trying_leaves_nothing_behind_and_gives_an_answer_to_everything() {
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let trial = Trial::new(nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        assert_eq!(mounts(), before);
        assert!(!trial.plain.can(Ability::UserNamespace));
        for ground in [&trial.user, &trial.plain] {
            // What needs a mount namespace does not work without one.
            assert!(ground.can(Ability::MountNamespace) || !ground.can(Ability::Mounts));
        }
    }
}
