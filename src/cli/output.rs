//! What Shannot itself says: errors on stderr, as text or as JSON, and results on stdout. Nothing else.

use std::error::Error;
use std::io::{self, Write};

use serde::Serialize;

use crate::plan::PlanError;
use crate::profile::ProfileError;
use crate::sandbox::SandboxError;
use crate::workspace;

/// `--error-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum ErrorFormat {
    /// `shannot: cannot …`, then hints.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// An error on its way to the user.
#[derive(Debug, Serialize)]
pub(super) struct Complaint {
    /// The room or stage that failed.
    pub(super) stage: String,
    /// What it was about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object: Option<String>,
    /// The errno, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) errno: Option<i32>,
    /// The sentence.
    pub(super) message: String,
    /// The cure, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
    /// The exit code.
    #[serde(skip)]
    pub(super) code: u8,
}

impl Complaint {
    /// Exit code of Shannot's own failures.
    pub(super) const FAILED: u8 = 125;
    /// Exit code for a command that the allowlist refuses, or that can't be executed.
    pub(super) const NOT_ALLOWED: u8 = 126;
    /// Exit code for a command that is not there.
    pub(super) const NOT_FOUND: u8 = 127;

    /// From an error and all its causes.
    pub(super) fn new(stage: &str, error: &(dyn Error + 'static), hint: Option<String>) -> Self {
        let mut message = error.to_string();
        let mut errno = errno_of(error);
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            errno = errno.or_else(|| errno_of(error));
            cause = error.source();
        }
        Self { stage: stage.to_owned(), object: None, errno, message, hint, code: Self::FAILED }
    }

    /// Without an error type behind it.
    pub(super) fn plain(stage: &str, message: impl Into<String>) -> Self {
        Self {
            stage: stage.to_owned(),
            object: None,
            errno: None,
            message: message.into(),
            hint: None,
            code: Self::FAILED,
        }
    }

    /// With a sentence before the cause.
    pub(super) fn about(self, what: String) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// With a cure.
    pub(super) fn with_hint(self, hint: &str) -> Self {
        Self { hint: Some(hint.to_owned()), ..self }
    }

    /// With one more.
    pub(super) fn and_hint(self, hint: &str) -> Self {
        let hints = self.hint.iter().map(String::as_str).chain([hint]).collect::<Vec<_>>().join("\n");
        self.with_hint(&hints)
    }

    /// With another exit code.
    pub(super) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Says it on stderr and gives the exit code.
    pub(super) fn say(&self, format: ErrorFormat) -> u8 {
        let text = match format {
            ErrorFormat::Json => serde_json::to_string(self).unwrap_or_else(|_| self.message.clone()),
            ErrorFormat::Text => {
                let hints = self.hint.iter().flat_map(|hint| hint.lines());
                let message = format!("shannot: {}", visible(&self.message));
                hints.fold(message, |text, hint| format!("{text}\nhint: {}", visible(hint)))
            }
        };
        note(&text);
        self.code
    }
}

impl From<ProfileError> for Complaint {
    fn from(error: ProfileError) -> Self {
        Self::new("profile", &error, error.hint())
    }
}

impl From<workspace::Error> for Complaint {
    fn from(error: workspace::Error) -> Self {
        Self::new("workspace", &error, error.hint())
    }
}

impl From<PlanError> for Complaint {
    fn from(error: PlanError) -> Self {
        let code = if matches!(error, PlanError::NotAllowed { .. }) { Self::NOT_ALLOWED } else { Self::FAILED };
        Self::new("plan", &error, error.hint()).with_code(code)
    }
}

impl From<SandboxError> for Complaint {
    fn from(error: SandboxError) -> Self {
        match &error {
            SandboxError::Failed(failure) => Self {
                stage: failure.stage.to_string(),
                object: failure.object.clone(),
                errno: Some(failure.errno as i32),
                message: failure.to_string(),
                hint: failure.hint(),
                code: failure.exit_code(),
            },
            SandboxError::Threads(_) | SandboxError::InitLost(_) => Self::new("supervise", &error, None),
        }
    }
}

fn errno_of(error: &(dyn Error + 'static)) -> Option<i32> {
    error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error)
}

/// What controls a terminal, turns the direction of writing, or can't be seen.
fn is_treacherous(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(letter, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Text that may have names of a job's in it, on one line and as it is.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_treacherous(letter) { shown.extend(letter.escape_debug()) } else { shown.push(letter) }
    }
    shown
}

/// A line on stderr, in one piece. If that fails there is nowhere left to say so.
pub(super) fn note(text: &str) {
    let text: Vec<String> = text.lines().map(visible).collect();
    let text = text.join("\n");
    if io::stderr().write_all(format!("{text}\n").as_bytes()).is_err() {}
}

/// A result on stdout. A reader that has gone away (`| head`) is no failure.
pub(super) fn result(text: &str) -> Result<(), Complaint> {
    result_bytes(text.as_bytes())
}

/// A result that is not known to be text.
pub(super) fn result_bytes(bytes: &[u8]) -> Result<(), Complaint> {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Complaint::plain("output", format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// A result as JSON, for programs and, on a terminal, for people.
pub(super) fn result_json(value: &impl Serialize) -> Result<(), Complaint> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Complaint::new("output", &error, None))?;
    result(&format!("{}\n", escaped(&text)))
}

fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        // A line's end is none of a string's: those are escaped already.
        if letter != '\n' && is_treacherous(letter) {
            text.extend(letter.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            text.push(letter);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_steers_no_terminal() {
        let name = "a\u{9b}31m\u{202e}\u{7f}\u{e0041}\u{200b}\nzoë \u{1f600}";
        let json = serde_json::to_string_pretty(&[name]).unwrap();
        let safe = escaped(&json);
        assert_eq!(safe, "[\n  \"a\\u009b31m\\u202e\\u007f\\udb40\\udc41\\u200b\\nzoë \u{1f600}\"\n]");
        assert_eq!(serde_json::from_str::<[String; 1]>(&safe).unwrap(), [name]);
        assert_eq!(visible(name), "a\\u{9b}31m\\u{202e}\\u{7f}\\u{e0041}\\u{200b}\\nzoë \u{1f600}");
    }
}
