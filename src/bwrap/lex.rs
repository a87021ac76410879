//! From bubblewrap's argv to an ordered list of flags: every option of bubblewrap 0.12, its words and its complaints, and
//! nothing of what they mean. Options are separate words; there are no short ones and no `--option=value`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::flag::{BindAccess, DataUse, Fd, Flag, OverlayTop, Switch, Text, bind_word};

/// bubblewrap.c, MAX_ARGS.
const MOST_WORDS: usize = 9000;

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
    let plain = BindAccess::find(word).map(|access| (access, false));
    plain.or_else(|| {
        let is_meant = |access: &&BindAccess| bind_word(**access, true) == word;
        BindAccess::ALL.iter().find(is_meant).map(|access| (*access, true))
    })
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
