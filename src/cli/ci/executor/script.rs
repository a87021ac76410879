//! The runner's scripts without secrets. The runner writes every variable of a job into each of them, tokens too: as
//! `export NAME=…`, or as a file by `printf '%s' … > "…/NAME"`, all within one quoted word behind `eval`
//! (gitlab-runner, shells/bash.go). Names that the profile denies lose their values there; those values are then looked for
//! everywhere, since a job may have given them other names.

use std::collections::BTreeSet;

/// In place of a value that stands elsewhere than behind its own name: what is around it keeps its shape.
const MASK: &[u8] = b"MASKED";
/// What is shorter is a word like others.
const SHORTEST: usize = 8;
/// A line of a value, such as one of a key in PEM, counts by itself if it is one word as long as this. Others are `kind: Config`.
const SHORTEST_LINE: usize = 20;
/// How often a value may have been quoted: within what is evaluated, in a line of it, and in an `echo` of that line.
const LEVELS: usize = 3;
const EVAL: &[u8] = b"eval ";
const EXPORT: &[u8] = b"export ";
const PRINTF: &[u8] = b"printf '%s' ";
/// Behind all variables. No value can look like it: a newline is quoted, or the `"` and `$` behind it are.
const END: &[u8] = br#"while read -r line; do export "$line"; done < "#;

/// How a word is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `$'…'`
    Ansi,
    /// `"…"`, with FF_POSIXLY_CORRECT_ESCAPES
    Posix,
}

/// Values that must not be shown, with the name that each is known by.
#[derive(Debug)]
pub(super) struct Secrets {
    /// By their first byte, the longest first.
    values: Vec<Vec<(Vec<u8>, String)>>,
}

impl Secrets {
    pub(super) fn new<'a>(named: impl IntoIterator<Item = (String, &'a [u8])>) -> Self {
        let mut forms = BTreeSet::new();
        for (name, value) in named {
            let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            let lines = lines.filter(|line| line.len() >= SHORTEST_LINE && !line.iter().any(u8::is_ascii_whitespace));
            let whole = Some(value.trim_ascii()).filter(|value| value.len() >= SHORTEST);
            for text in whole.into_iter().chain(lines) {
                for style in [Style::Ansi, Style::Posix] {
                    let mut form = text.to_vec();
                    for _ in 0..LEVELS {
                        let next = style.quoted(&form);
                        forms.insert((form, name.clone()));
                        form = next;
                    }
                    forms.insert((form, name.clone()));
                }
            }
        }
        let mut values: Vec<Vec<(Vec<u8>, String)>> = vec![Vec::new(); 256];
        for (form, name) in forms {
            let first = form.first().map_or(0, |byte| usize::from(*byte));
            if let Some(bucket) = values.get_mut(first) {
                bucket.push((form, name));
            }
        }
        for bucket in &mut values {
            bucket.sort_by_key(|(form, _)| std::cmp::Reverse(form.len()));
        }
        Self { values }
    }

    /// The text without them, and the names of those that were in it.
    pub(super) fn mask(&self, text: &[u8]) -> (Vec<u8>, BTreeSet<&str>) {
        let mut clean = Vec::with_capacity(text.len());
        let mut found = BTreeSet::new();
        let mut rest = text;
        while let Some((first, behind)) = rest.split_first() {
            let bucket = self.values.get(usize::from(*first)).map_or(&[][..], Vec::as_slice);
            let hit = bucket.iter().find_map(|(form, name)| Some((rest.strip_prefix(form.as_slice())?, name)));
            match hit {
                Some((behind, name)) => {
                    found.insert(name.as_str());
                    clean.extend_from_slice(MASK);
                    rest = behind;
                }
                None => {
                    clean.push(*first);
                    rest = behind;
                }
            }
        }
        (clean, found)
    }
}

/// A script without the values of denied names, and without these secrets; and the names of secrets that stood elsewhere than
/// behind their own names. None, if it can't be read.
pub(super) fn without_secrets<'a>(
    script: &[u8],
    is_denied: impl Fn(&[u8]) -> bool,
    secrets: &'a Secrets,
) -> Option<(Vec<u8>, BTreeSet<&'a str>)> {
    let Some(at) = find(script, EVAL) else {
        return Some(secrets.mask(&without_denied(script, is_denied)));
    };
    let (before, found) = script.split_at(at + EVAL.len());
    let (style, payload, after) = unquote(found)?;
    let payload = without_denied(&payload, is_denied);
    let (payload, mut names) = secrets.mask(&payload);
    let (mut clean, in_front) = secrets.mask(before);
    clean.extend(style.word(&payload));
    let (after, behind) = secrets.mask(after);
    clean.extend(after);
    names.extend(in_front);
    names.extend(behind);
    Some((clean, names))
}

/// Line by line, up to where the variables end: what comes then is the author's.
fn without_denied(text: &[u8], is_denied: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut clean = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() && !rest.starts_with(END) {
        let cleaned = exported(rest, &is_denied).or_else(|| printed(rest, &is_denied));
        rest = match cleaned {
            Some((kept, behind)) => {
                clean.extend(kept);
                behind
            }
            None => {
                let (line, behind) = rest.split_at(find(rest, b"\n").map_or(rest.len(), |at| at + 1));
                clean.extend_from_slice(line);
                behind
            }
        };
    }
    clean.extend_from_slice(rest);
    clean
}

/// A line `export NAME=…` of a denied name: what stays of it, and what follows.
fn exported(line: &[u8], is_denied: impl Fn(&[u8]) -> bool) -> Option<(Vec<u8>, &[u8])> {
    let assignment = line.strip_prefix(EXPORT)?;
    let (name, value) = assignment.split_at(assignment.iter().position(|byte| matches!(byte, b'=' | b'\n'))?);
    let value = value.strip_prefix(b"=").filter(|_| is_denied(name))?;
    let kept = [EXPORT, name, b"="].concat();
    Some((kept, value.get(end_of_line(value)..).unwrap_or_default()))
}

/// A line `printf '%s' … > "…/NAME"` of a denied name.
fn printed(line: &[u8], is_denied: impl Fn(&[u8]) -> bool) -> Option<(Vec<u8>, &[u8])> {
    let value = line.strip_prefix(PRINTF)?;
    let (whole, behind) = value.split_at(end_of_line(value));
    let at = whole.windows(4).rposition(|part| part == b" > \"")?;
    let redirection = whole.get(at..)?;
    let file = redirection.strip_prefix(b" > \"")?.strip_suffix(b"\"")?;
    file.rsplit(|byte| *byte == b'/').next().filter(|name| is_denied(name))?;
    Some(([PRINTF, b"''", redirection].concat(), behind))
}

/// Where a newline is that no quotes hold; the first newline, if they are not closed.
fn end_of_line(text: &[u8]) -> usize {
    let mut quote = None;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        match (quote, byte) {
            (None, b'\n') => return at,
            (None, b'\'') => quote = Some(if before == Some(&b'$') { b'$' } else { b'\'' }),
            (None, b'"') => quote = Some(b'"'),
            (Some(b'$' | b'\''), b'\'') | (Some(b'"'), b'"') => quote = None,
            (None | Some(b'$' | b'"'), b'\\') => at += 1,
            _ => {}
        }
        at += 1;
    }
    let first = find(text, b"\n").unwrap_or(text.len());
    if quote.is_some() { first } else { text.len() }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// The first word of a text, without its quotes, and what is behind it. None for quotes that the runner does not write.
fn unquote(text: &[u8]) -> Option<(Style, Vec<u8>, &[u8])> {
    let (style, end, mut rest) = match text {
        [b'$', b'\'', rest @ ..] => (Style::Ansi, b'\'', rest),
        [b'"', rest @ ..] => (Style::Posix, b'"', rest),
        _ => return None,
    };
    let mut word = Vec::with_capacity(text.len());
    loop {
        rest = match rest {
            [byte, behind @ ..] if *byte == end => return Some((style, word, behind)),
            [b'\\', b'x', high, low, behind @ ..] if style == Style::Ansi => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                word.push(digit(high)? << 4 | digit(low)?);
                behind
            }
            [b'\\', letter, behind @ ..] => {
                word.push(style.escaped(*letter)?);
                behind
            }
            [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
            [] => return None,
        };
    }
}

/// What has a letter of its own behind a backslash.
const LETTERS: &[(u8, u8)] = &[
    (b'a', 7),
    (b'b', 8),
    (b't', b'\t'),
    (b'n', b'\n'),
    (b'v', 11),
    (b'f', 12),
    (b'r', b'\r'),
    (b'\'', b'\''),
    (b'\\', b'\\'),
];

impl Style {
    /// What a backslash and this stand for.
    fn escaped(self, letter: u8) -> Option<u8> {
        match self {
            Style::Ansi => LETTERS.iter().find(|(name, _)| *name == letter).map(|(_, byte)| *byte),
            Style::Posix => matches!(letter, b'`' | b'"' | b'\\' | b'$').then_some(letter),
        }
    }

    /// As it stands between quotes.
    fn quoted(self, text: &[u8]) -> Vec<u8> {
        let mut quoted = Vec::with_capacity(text.len() + text.len() / 8);
        for byte in text {
            match self {
                Style::Ansi => match LETTERS.iter().find(|(_, meant)| meant == byte) {
                    Some((letter, _)) => quoted.extend([b'\\', *letter]),
                    None if matches!(byte, b' '..=b'~') => quoted.push(*byte),
                    None => quoted.extend(format!("\\x{byte:02x}").into_bytes()),
                },
                Style::Posix if matches!(byte, b'`' | b'"' | b'\\' | b'$') => quoted.extend([b'\\', *byte]),
                Style::Posix => quoted.push(*byte),
            }
        }
        quoted
    }

    fn word(self, text: &[u8]) -> Vec<u8> {
        let (open, close): (&[u8], &[u8]) = match self {
            Style::Ansi => (b"$'", b"'"),
            Style::Posix => (b"\"", b"\""),
        };
        [open, &self.quoted(text), close].concat()
    }
}

#[cfg(test)]
mod tests;
