//! From bubblewrap's argv to an ordered list of flags: every option of bubblewrap 0.12, its words and its complaints, and
//! nothing of what they mean. Options are separate words; there are no short ones and no `--option=value`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::flag::{BindAccess, DataUse, Fd, Flag, Switch, Text, bind_word};
use crate::policy::OverlayTop;

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
    #[error("{option} requires at least {} --overlay-src", if *.count == 1 { "one" } else { "two" })]
    OverlaySources {
        /// The option.
        option: &'static str,
        /// How many it wants.
        count: usize,
    },
    /// More words than bubblewrap takes.
    #[error("Exceeded maximum number of arguments {MOST_WORDS}")]
    TooMany,
    /// `--args` in what `--args` brought.
    #[error("--args not supported in arguments file")]
    NestedArgs,
    /// The descriptor of `--args` can't be read.
    #[error("Can't read --args data: {0}")]
    ArgsData(String),
    /// An option for upstream's own developers, of which there is one.
    #[error("Unknown --debug-opt value: {}", .0.to_string_lossy())]
    DebugOption(OsString),
}

/// Options that change the one behind them.
#[derive(Debug, Default)]
struct Modifiers {
    perms: Option<u32>,
    size: Option<u64>,
    overlay_sources: Vec<OsString>,
}

/// Reads what `--args` names to its end.
pub type ReadArgs<'a> = &'a mut dyn FnMut(i32) -> Result<Vec<u8>, String>;

/// Takes a command line apart. `--args` stays an option.
///
/// # Errors
/// [`LexError`], with bubblewrap's own text.
pub fn lex(words: &[OsString]) -> Result<Lexed, LexError> {
    let mut lexer = Lexer::new(None);
    lexer.line(words)?;
    Ok(lexer.lexed)
}

/// Takes the program's own command line apart: what `--args` names is read and taken apart in its place, and nothing
/// behind `--help` or `--version` matters. With an error comes what was understood before it.
///
/// # Errors
/// [`LexError`], with bubblewrap's own text.
pub fn lex_program(words: &[OsString], read: ReadArgs<'_>) -> (Lexed, Result<(), LexError>) {
    let mut lexer = Lexer::new(Some(read));
    let result = lexer.line(words);
    (lexer.lexed, result)
}

struct Lexer<'a> {
    lexed: Lexed,
    modifiers: Modifiers,
    /// How many words more may come.
    left: usize,
    read: Option<ReadArgs<'a>>,
    /// The words are those of an arguments file.
    nested: bool,
    /// What comes does not matter any more.
    done: bool,
}

impl<'a> Lexer<'a> {
    fn new(read: Option<ReadArgs<'a>>) -> Self {
        let (lexed, modifiers) = (Lexed::default(), Modifiers::default());
        Self { lexed, modifiers, left: MOST_WORDS, read, nested: false, done: false }
    }

    fn line(&mut self, words: &[OsString]) -> Result<(), LexError> {
        let rest = self.options(words)?;
        // A trailing --perms or --size is accepted by bubblewrap, and means nothing.
        if !self.modifiers.overlay_sources.is_empty() {
            return Err(LexError::DanglingOverlaySource);
        }
        self.lexed.command = rest.to_vec();
        Ok(())
    }

    /// Takes options up to the first word that is none, and gives the rest.
    fn options<'w>(&mut self, words: &'w [OsString]) -> Result<&'w [OsString], LexError> {
        self.left = self.left.checked_sub(words.len()).ok_or(LexError::TooMany)?;
        let mut words = Words(words);
        while let Some((word, rest)) = words.0.split_first() {
            if word == "--" {
                return Ok(rest);
            }
            if !word.as_bytes().starts_with(b"-") {
                break;
            }
            words.0 = rest;
            if self.modifiers.take_modifier(word, &mut words)? {
                continue;
            }
            let flag = option(word, &mut words, &mut self.modifiers)?;
            self.done |= self.read.is_some() && matches!(flag, Flag::Switch(Switch::Help | Switch::Version));
            match (flag, &mut self.read) {
                (Flag::Fd(Fd::Args, _), Some(_)) if self.nested => return Err(LexError::NestedArgs),
                (Flag::Fd(Fd::Args, fd), Some(read)) => {
                    let data = read(fd).map_err(LexError::ArgsData)?;
                    self.lexed.flags.push(Flag::Fd(Fd::Args, fd));
                    self.arguments_file(&data)?;
                }
                (flag, _) => self.keep(flag)?,
            }
            self.modifiers.check_used()?;
            if self.done {
                return Ok(&[]);
            }
        }
        Ok(words.0)
    }

    /// What `--args` brought: words that end with NUL. A command in it is not one.
    fn arguments_file(&mut self, data: &[u8]) -> Result<(), LexError> {
        let data = data.strip_suffix(b"\0").unwrap_or(data);
        let word = |word: &[u8]| OsStr::from_bytes(word).to_owned();
        let words: Vec<OsString> =
            if data.is_empty() { Vec::new() } else { data.split(|byte| *byte == 0).map(word).collect() };
        self.nested = true;
        self.options(&words)?;
        self.nested = false;
        Ok(())
    }

    fn keep(&mut self, flag: Flag) -> Result<(), LexError> {
        let is_argv0 = |flag: &Flag| matches!(flag, Flag::Text(Text::Argv0, _));
        if is_argv0(&flag) && self.lexed.flags.iter().any(is_argv0) {
            return Err(LexError::SecondArgv0);
        }
        self.lexed.flags.push(flag);
        Ok(())
    }
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

/// `--debug-opt=`, the one option that has its argument in the same word.
const DEBUG_OPTION: &[u8] = b"--debug-opt=";

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
            let top = OverlayTop::Host { upper: upper.into(), work: work.into() };
            Flag::Overlay { sources, top, dest }
        }
        Some("--tmp-overlay") => {
            let dest = words.one("--tmp-overlay")?;
            Flag::Overlay { sources: modifiers.overlay_sources("--tmp-overlay", 1)?, top: OverlayTop::Tmpfs, dest }
        }
        Some("--ro-overlay") => {
            let dest = words.one("--ro-overlay")?;
            Flag::Overlay { sources: modifiers.overlay_sources("--ro-overlay", 2)?, top: OverlayTop::Nothing, dest }
        }
        _ => return debug_option(word),
    })
}

fn debug_option(word: &OsStr) -> Result<Flag, LexError> {
    match word.as_bytes().strip_prefix(DEBUG_OPTION) {
        Some(b"force-openat-fallback") => Ok(Flag::WalkByHand),
        Some(value) => Err(LexError::DebugOption(OsStr::from_bytes(value).to_owned())),
        None => Err(LexError::Unknown(word.to_owned())),
    }
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
