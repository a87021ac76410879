//! From bubblewrap's argv to an ordered list of flags: every option of bubblewrap 0.12, its words and its complaints, and
//! nothing of what they mean. Options are separate words; there are no short ones and no `--option=value`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// bubblewrap.c, MAX_ARGS.
const MOST_WORDS: usize = 9000;

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
}

/// What is on top of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OverlayTop {
    /// Directories of the host's.
    Host {
        /// Takes the changes.
        upper: OsString,
        /// overlayfs's own.
        work: OsString,
    },
    /// A tmpfs.
    Tmpfs,
    /// Nothing: read-only.
    Nothing,
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

            fn find(word: &OsStr) -> Option<Self> {
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

/// A command line, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lexed {
    /// The options, in order.
    pub flags: Vec<Flag>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// What bubblewrap says to a command line that it does not understand, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LexError {
    /// No such option.
    #[error("Unknown option {}", .0.to_string_lossy())]
    Unknown(OsString),
    /// Too few words behind it.
    #[error("{option} takes {arguments}")]
    Arguments {
        /// The option.
        option: &'static str,
        /// How many it wants.
        arguments: &'static str,
    },
    /// Not a number of the kind that is wanted.
    #[error("Invalid {what}: {}", .text.to_string_lossy())]
    Number {
        /// `fd`, `uid` or `gid`.
        what: &'static str,
        /// What was given.
        text: OsString,
    },
    /// `--perms` or `--chmod` without permission bits.
    #[error("{0} takes an octal argument <= 07777")]
    Octal(&'static str),
    /// `--size` without one.
    #[error("--size takes a non-zero number of bytes")]
    Size,
    /// More than a file system can have.
    #[error("--size (for tmpfs) is limited to {0}")]
    SizeLimit(u64),
    /// A modifier that is given twice.
    #[error("{0} given twice for the same action")]
    Twice(&'static str),
    /// `--argv0` replaces, it does not add.
    #[error("--argv0 used multiple times")]
    SecondArgv0,
    /// `--perms` before an option that makes nothing.
    #[error("--perms must be followed by an option that creates a file")]
    DanglingPerms,
    /// `--size` before another option.
    #[error("--size must be followed by --tmpfs")]
    DanglingSize,
    /// `--overlay-src` before another option.
    #[error(
        "--overlay-src must be followed by another --overlay-src or one of --overlay, --tmp-overlay, or --ro-overlay"
    )]
    DanglingOverlaySource,
    /// An overlay with too little below.
    #[error("{option} requires at least {count} --overlay-src")]
    OverlaySources {
        /// The option.
        option: &'static str,
        /// How many it wants.
        count: usize,
    },
    /// More words than bubblewrap takes.
    #[error("Exceeded maximum number of arguments {MOST_WORDS}")]
    TooMany,
}

/// Options that change the one behind them.
#[derive(Debug, Default)]
struct Modifiers {
    perms: Option<u32>,
    size: Option<u64>,
    overlay_sources: Vec<OsString>,
}

/// Takes a command line apart.
///
/// # Errors
/// [`LexError`], with bubblewrap's own text.
pub fn lex(words: &[OsString]) -> Result<Lexed, LexError> {
    if words.len() > MOST_WORDS {
        return Err(LexError::TooMany);
    }
    let mut words = Words(words);
    let mut lexed = Lexed::default();
    let mut modifiers = Modifiers::default();
    while let Some((word, rest)) = words.0.split_first() {
        if word == "--" {
            words.0 = rest;
            break;
        }
        if !word.as_bytes().starts_with(b"-") {
            break;
        }
        words.0 = rest;
        if modifiers.take_modifier(word, &mut words)? {
            continue;
        }
        let flag = option(word, &mut words, &mut modifiers)?;
        modifiers.check_used()?;
        if matches!(flag, Flag::Text(Text::Argv0, _))
            && lexed.flags.iter().any(|f| matches!(f, Flag::Text(Text::Argv0, _)))
        {
            return Err(LexError::SecondArgv0);
        }
        lexed.flags.push(flag);
    }
    // A trailing --perms or --size is accepted by bubblewrap, and means nothing.
    if !modifiers.overlay_sources.is_empty() {
        return Err(LexError::DanglingOverlaySource);
    }
    lexed.command = words.0.to_vec();
    Ok(lexed)
}

impl Modifiers {
    /// Whether `word` is a modifier, which then is kept for the option behind it.
    fn take_modifier(&mut self, word: &OsStr, words: &mut Words<'_>) -> Result<bool, LexError> {
        if word == "--perms" {
            if self.perms.is_some() {
                return Err(LexError::Twice("--perms"));
            }
            self.perms = Some(octal(&words.one("--perms")?).ok_or(LexError::Octal("--perms"))?);
        } else if word == "--size" {
            if self.size.is_some() {
                return Err(LexError::Twice("--size"));
            }
            self.size = Some(size(&words.one("--size")?)?);
        } else if word == "--overlay-src" {
            self.overlay_sources.push(words.one("--overlay-src")?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn check_used(&self) -> Result<(), LexError> {
        match self {
            Self { perms: Some(_), .. } => Err(LexError::DanglingPerms),
            Self { size: Some(_), .. } => Err(LexError::DanglingSize),
            Self { overlay_sources, .. } if !overlay_sources.is_empty() => Err(LexError::DanglingOverlaySource),
            _ => Ok(()),
        }
    }

    fn overlay_sources(&mut self, option: &'static str, count: usize) -> Result<Vec<OsString>, LexError> {
        let sources = std::mem::take(&mut self.overlay_sources);
        if sources.len() < count { Err(LexError::OverlaySources { option, count }) } else { Ok(sources) }
    }
}

/// The words that are left.
struct Words<'a>(&'a [OsString]);

impl Words<'_> {
    fn take<const N: usize>(
        &mut self,
        option: &'static str,
        arguments: &'static str,
    ) -> Result<[OsString; N], LexError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(LexError::Arguments { option, arguments })?;
        self.0 = rest;
        Ok(taken.clone())
    }

    fn one(&mut self, option: &'static str) -> Result<OsString, LexError> {
        self.take::<1>(option, "an argument").map(|[word]| word)
    }

    fn two(&mut self, option: &'static str) -> Result<[OsString; 2], LexError> {
        self.take(option, "two arguments")
    }
}

fn option(word: &OsStr, words: &mut Words<'_>, modifiers: &mut Modifiers) -> Result<Flag, LexError> {
    if let Some(switch) = Switch::find(word) {
        return Ok(Flag::Switch(switch));
    }
    if let Some(text) = Text::find(word) {
        let arguments = match text {
            Text::Argv0 | Text::Chdir | Text::RemountRo => "one argument",
            _ => "an argument",
        };
        return words.take::<1>(text.word(), arguments).map(|[argument]| Flag::Text(text, argument));
    }
    if let Some(fd) = Fd::find(word) {
        return Ok(Flag::Fd(fd, number("fd", words.one(fd.word())?)?));
    }
    if let Some((access, optional)) = bind_option(word) {
        let option = bind_word(access, optional);
        let [source, dest] = words.two(option)?;
        return Ok(Flag::Bind { access, optional, source, dest });
    }
    if let Some(how) = DataUse::find(word) {
        let [fd, dest] = words.two(how.word())?;
        return Ok(Flag::Data { how, fd: number("fd", fd)?, dest, perms: modifiers.perms.take() });
    }
    option_of_its_own(word, words, modifiers)
}

fn option_of_its_own(word: &OsStr, words: &mut Words<'_>, modifiers: &mut Modifiers) -> Result<Flag, LexError> {
    Ok(match word.to_str() {
        Some("--uid") => Flag::Uid(number("uid", words.one("--uid")?)?.cast_unsigned()),
        Some("--gid") => Flag::Gid(number("gid", words.one("--gid")?)?.cast_unsigned()),
        Some("--setenv") => {
            let [name, value] = words.two("--setenv")?;
            Flag::SetEnv(name, value)
        }
        Some(option @ ("--bind-fd" | "--ro-bind-fd")) => {
            // bubblewrap names --bind-fd for both.
            let [fd, dest] = words.two("--bind-fd")?;
            Flag::BindFd { read_only: option == "--ro-bind-fd", fd: number("fd", fd)?, dest }
        }
        Some("--tmpfs") => {
            let dest = words.one("--tmpfs")?;
            Flag::Tmpfs { dest, perms: modifiers.perms.take(), size: modifiers.size.take() }
        }
        Some("--dir") => Flag::Dir { dest: words.one("--dir")?, perms: modifiers.perms.take() },
        Some("--symlink") => {
            let [text, dest] = words.two("--symlink")?;
            Flag::Symlink { text, dest }
        }
        Some("--chmod") => {
            let [mode, path] = words.two("--chmod")?;
            Flag::Chmod { mode: octal(&mode).ok_or(LexError::Octal("--chmod"))?, path }
        }
        Some("--overlay") => {
            let [upper, work, dest] = words.take("--overlay", "three arguments")?;
            let sources = modifiers.overlay_sources("--overlay", 1)?;
            Flag::Overlay { sources, top: OverlayTop::Host { upper, work }, dest }
        }
        Some("--tmp-overlay") => {
            let dest = words.one("--tmp-overlay")?;
            Flag::Overlay { sources: modifiers.overlay_sources("--tmp-overlay", 1)?, top: OverlayTop::Tmpfs, dest }
        }
        Some("--ro-overlay") => {
            let dest = words.one("--ro-overlay")?;
            Flag::Overlay { sources: modifiers.overlay_sources("--ro-overlay", 2)?, top: OverlayTop::Nothing, dest }
        }
        _ => return Err(LexError::Unknown(word.to_owned())),
    })
}

fn bind_option(word: &OsStr) -> Option<(BindAccess, bool)> {
    let found = BindAccess::ALL.iter().flat_map(|access| [(*access, false), (*access, true)]);
    found.into_iter().find(|(access, optional)| bind_word(*access, *optional) == word)
}

fn bind_word(access: BindAccess, optional: bool) -> &'static str {
    match (access, optional) {
        (access, false) => access.word(),
        (BindAccess::ReadWrite, true) => "--bind-try",
        (BindAccess::ReadOnly, true) => "--ro-bind-try",
        (BindAccess::Device, true) => "--dev-bind-try",
    }
}

/// As strtol(3) in base 10 over the whole word: leading blanks and a plus sign are fine, negative numbers are not.
fn number(what: &'static str, text: OsString) -> Result<i32, LexError> {
    let plain = text.to_str().map(|text| text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']));
    match plain.and_then(|text| text.parse::<i32>().ok()) {
        Some(number) if number >= 0 => Ok(number),
        _ => Err(LexError::Number { what, text }),
    }
}

fn octal(text: &OsStr) -> Option<u32> {
    let bits = u32::from_str_radix(text.to_str()?, 8).ok()?;
    (bits <= 0o7777).then_some(bits)
}

/// As strtoull(3) in base 0.
fn size(text: &OsStr) -> Result<u64, LexError> {
    let most = u64::MAX / 2;
    let text =
        text.to_str().filter(|text| text.starts_with(|first: char| first.is_ascii_digit())).ok_or(LexError::Size)?;
    let bytes = if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u64::from_str_radix(digits, 16)
    } else if text.starts_with('0') {
        u64::from_str_radix(text, 8)
    } else {
        text.parse()
    };
    match bytes {
        Ok(0) | Err(_) => Err(LexError::Size),
        Ok(bytes) if bytes > most => Err(LexError::SizeLimit(most)),
        Ok(bytes) => Ok(bytes),
    }
}

impl Flag {
    /// The words that mean this flag: [`lex`] gives it back.
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
                vec!["--overlay".into(), upper.clone(), work.clone(), dest.clone()]
            }
            Flag::Overlay { top: OverlayTop::Tmpfs, dest, .. } => vec!["--tmp-overlay".into(), dest.clone()],
            Flag::Overlay { top: OverlayTop::Nothing, dest, .. } => vec!["--ro-overlay".into(), dest.clone()],
        }
    }
}
