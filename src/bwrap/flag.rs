//! bubblewrap's options as values, and the words that mean them.

use std::ffi::{OsStr, OsString};

use crate::policy::OverlayTop;

/// An option with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flag {
    /// An option without an argument.
    Switch(Switch),
    /// An option with one argument that is taken as it is.
    Text(Text, OsString),
    /// An option whose one argument is a descriptor.
    Fd(Fd, i32),
    /// `--uid`.
    Uid(u32),
    /// `--gid`.
    Gid(u32),
    /// `--setenv`.
    SetEnv(OsString, OsString),
    /// The options that bind a path.
    Bind {
        /// Which of them.
        access: BindAccess,
        /// A missing source is no error.
        optional: bool,
        /// On the host.
        source: OsString,
        /// Inside.
        dest: OsString,
    },
    /// `--bind-fd` and `--ro-bind-fd`.
    BindFd {
        /// The latter.
        read_only: bool,
        /// The directory.
        fd: i32,
        /// Inside.
        dest: OsString,
    },
    /// `--tmpfs`.
    Tmpfs {
        /// Inside.
        dest: OsString,
        /// `--perms`.
        perms: Option<u32>,
        /// `--size`, bytes.
        size: Option<u64>,
    },
    /// `--dir`.
    Dir {
        /// Inside.
        dest: OsString,
        /// `--perms`.
        perms: Option<u32>,
    },
    /// `--file`, `--bind-data` and `--ro-bind-data`.
    Data {
        /// Which of them.
        how: DataUse,
        /// Where the data comes from.
        fd: i32,
        /// Inside.
        dest: OsString,
        /// `--perms`.
        perms: Option<u32>,
    },
    /// `--symlink`.
    Symlink {
        /// What the link says.
        text: OsString,
        /// Inside.
        dest: OsString,
    },
    /// `--chmod`.
    Chmod {
        /// Permission bits.
        mode: u32,
        /// Inside.
        path: OsString,
    },
    /// `--overlay`, `--tmp-overlay` and `--ro-overlay`.
    Overlay {
        /// `--overlay-src`, bottom first.
        sources: Vec<OsString>,
        /// What is on top.
        top: OverlayTop,
        /// Inside.
        dest: OsString,
    },
    /// `--debug-opt=force-openat-fallback`.
    WalkByHand,
}

macro_rules! options {
    ($(#[$doc:meta])* $kind:ident { $($name:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the option that follows each name says what it is")]
        pub enum $kind { $($name,)* }

        impl $kind {
            /// Every option of this kind.
            pub const ALL: &'static [$kind] = &[$($kind::$name,)*];

            /// The option.
            pub fn word(self) -> &'static str {
                match self { $($kind::$name => $word,)* }
            }

            pub(super) fn find(word: &OsStr) -> Option<Self> {
                Self::ALL.iter().copied().find(|option| option.word() == word)
            }
        }
    };
}

options! {
    /// Options without an argument.
    Switch {
        Help = "--help",
        Version = "--version",
        LevelPrefix = "--level-prefix",
        UnshareAll = "--unshare-all",
        ShareNet = "--share-net",
        UnshareUser = "--unshare-user",
        UnshareUserTry = "--unshare-user-try",
        UnshareIpc = "--unshare-ipc",
        UnsharePid = "--unshare-pid",
        UnshareNet = "--unshare-net",
        UnshareUts = "--unshare-uts",
        UnshareCgroup = "--unshare-cgroup",
        UnshareCgroupTry = "--unshare-cgroup-try",
        DisableUserns = "--disable-userns",
        AssertUsernsDisabled = "--assert-userns-disabled",
        ClearEnv = "--clearenv",
        NewSession = "--new-session",
        DieWithParent = "--die-with-parent",
        AsPid1 = "--as-pid-1",
        NotASecurityBoundary = "--not-a-security-boundary",
    }
}

options! {
    /// Options with one argument that is taken as it is.
    Text {
        Argv0 = "--argv0",
        Chdir = "--chdir",
        UnsetEnv = "--unsetenv",
        LockFile = "--lock-file",
        RemountRo = "--remount-ro",
        Proc = "--proc",
        Dev = "--dev",
        Mqueue = "--mqueue",
        Hostname = "--hostname",
        ExecLabel = "--exec-label",
        FileLabel = "--file-label",
        CapAdd = "--cap-add",
        CapDrop = "--cap-drop",
    }
}

options! {
    /// Options whose one argument is a descriptor.
    Fd {
        Args = "--args",
        Userns = "--userns",
        Userns2 = "--userns2",
        Pidns = "--pidns",
        Sync = "--sync-fd",
        Block = "--block-fd",
        UsernsBlock = "--userns-block-fd",
        Info = "--info-fd",
        JsonStatus = "--json-status-fd",
        Seccomp = "--seccomp",
        AddSeccomp = "--add-seccomp-fd",
    }
}

options! {
    /// Options that bind a path; each also with `-try`.
    BindAccess {
        ReadWrite = "--bind",
        ReadOnly = "--ro-bind",
        Device = "--dev-bind",
    }
}

options! {
    /// Options that put data from a descriptor into a file.
    DataUse {
        File = "--file",
        Bind = "--bind-data",
        RoBind = "--ro-bind-data",
    }
}

pub(super) fn bind_word(access: BindAccess, optional: bool) -> &'static str {
    match (access, optional) {
        (access, false) => access.word(),
        (BindAccess::ReadWrite, true) => "--bind-try",
        (BindAccess::ReadOnly, true) => "--ro-bind-try",
        (BindAccess::Device, true) => "--dev-bind-try",
    }
}

impl Flag {
    /// The words that mean this flag: `lex` gives it back.
    pub fn render(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut modifier = |option: &str, value: String| words.extend([option.into(), value.into()]);
        if let Flag::Tmpfs { perms: Some(perms), .. }
        | Flag::Dir { perms: Some(perms), .. }
        | Flag::Data { perms: Some(perms), .. } = self
        {
            modifier("--perms", format!("{perms:04o}"));
        }
        if let Flag::Tmpfs { size: Some(size), .. } = self {
            modifier("--size", size.to_string());
        }
        if let Flag::Overlay { sources, .. } = self {
            words.extend(sources.iter().flat_map(|source| ["--overlay-src".into(), source.clone()]));
        }
        words.extend(self.words());
        words
    }

    /// The option itself and its arguments, without modifiers.
    pub(super) fn words(&self) -> Vec<OsString> {
        let number = |number: &i32| OsString::from(number.to_string());
        match self {
            Flag::Switch(switch) => vec![switch.word().into()],
            Flag::Text(text, argument) => vec![text.word().into(), argument.clone()],
            Flag::Fd(option, fd) => vec![option.word().into(), number(fd)],
            Flag::Uid(id) => vec!["--uid".into(), id.to_string().into()],
            Flag::Gid(id) => vec!["--gid".into(), id.to_string().into()],
            Flag::SetEnv(name, value) => vec!["--setenv".into(), name.clone(), value.clone()],
            Flag::Bind { access, optional, source, dest } => {
                vec![bind_word(*access, *optional).into(), source.clone(), dest.clone()]
            }
            Flag::BindFd { read_only, fd, dest } => {
                vec![if *read_only { "--ro-bind-fd" } else { "--bind-fd" }.into(), number(fd), dest.clone()]
            }
            Flag::Tmpfs { dest, .. } => vec!["--tmpfs".into(), dest.clone()],
            Flag::Dir { dest, .. } => vec!["--dir".into(), dest.clone()],
            Flag::Data { how, fd, dest, .. } => vec![how.word().into(), number(fd), dest.clone()],
            Flag::Symlink { text, dest } => vec!["--symlink".into(), text.clone(), dest.clone()],
            Flag::Chmod { mode, path } => vec!["--chmod".into(), format!("{mode:o}").into(), path.clone()],
            Flag::Overlay { top: OverlayTop::Host { upper, work }, dest, .. } => {
                vec!["--overlay".into(), upper.into(), work.into(), dest.clone()]
            }
            Flag::WalkByHand => vec!["--debug-opt=force-openat-fallback".into()],
            Flag::Overlay { top: OverlayTop::Tmpfs, dest, .. } => vec!["--tmp-overlay".into(), dest.clone()],
            Flag::Overlay { top: OverlayTop::Nothing, dest, .. } => vec!["--ro-overlay".into(), dest.clone()],
        }
    }
}
