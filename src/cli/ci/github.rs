//! GitHub Actions: workflow commands and the job summary
//! (<https://docs.github.com/actions/reference/workflow-commands-for-github-actions>).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use super::{denials, layers};
use crate::cli::output::{self, Complaint};
use crate::cli::record::Record;
use crate::sys;

/// Where markdown for the summary goes.
const SUMMARY: &str = "GITHUB_STEP_SUMMARY";

#[derive(Debug)]
pub(super) struct Github {
    /// While it holds, what the job prints is no command to the runner: a stranger's output sets no mask, no output, no group.
    token: String,
    summary: Option<File>,
}

impl Github {
    pub(super) fn new() -> Result<Self, Complaint> {
        let summary = std::env::var_os(SUMMARY).filter(|path| !path.is_empty()).map(|path| {
            let file = File::options().append(true).create(true).custom_flags(libc::O_NOFOLLOW).open(&path);
            file.map_err(|error| {
                Complaint::new("report", &error, None).about(format!("cannot open {SUMMARY} {}", path.display()))
            })
        });
        let half = sys::unguessable;
        Ok(Self { token: format!("shannot-{:016x}{:016x}", half(), half()), summary: summary.transpose()? })
    }

    pub(super) fn begin(&self) -> String {
        format!("::stop-commands::{}\n", self.token)
    }

    pub(super) fn end(self, record: &Record<'_>) -> Result<String, Complaint> {
        // The job may have left its last line open.
        let mut text = format!("\n::{}::\n", self.token);
        if record.exit_code != 0 {
            let title = property(&format!("{} (profile {})", record.word(), record.profile_name()));
            text.push_str(&format!("::error title={title}::{}\n", data(&record.ending())));
        }
        for (layer, state) in layers(record).iter().filter(|(_, state)| state.starts_with("partial")) {
            text.push_str(&format!("::debug::{}\n", data(&format!("{layer}: {state}"))));
        }
        // Whatever comes of the summary: the runner must listen again.
        let summary = self.summary.map(|mut summary| summary.write_all(markdown(record).as_bytes()));
        match summary.transpose() {
            Ok(_) => Ok(text),
            Err(error) => {
                output::result(&text)?;
                Err(Complaint::new("report", &error, None).about(format!("cannot write to {SUMMARY}")))
            }
        }
    }
}

/// As the runner decodes it (actions/toolkit, core/src/command.ts).
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

fn markdown(record: &Record<'_>) -> String {
    let mark = if record.exit_code == 0 { "✅" } else { "❌" };
    let mut text = format!(
        "### {mark} {} in the sandbox\n\n{} after {:.1} s, profile {}, rung `{}`\n\n",
        code(&record.word()),
        code(&record.ending()),
        record.seconds(),
        code(record.profile_name()),
        record.rung(),
    );
    for denial in denials(record) {
        text.push_str(&format!("- {}\n", code(&denial)));
    }
    text.push_str("\n<details><summary>What was in force</summary>\n\n| layer | |\n|---|---|\n");
    for (layer, state) in layers(record) {
        text.push_str(&format!("| {layer} | {} |\n", code(&state).replace('|', "\\|")));
    }
    text.push_str("\n</details>\n\n");
    text
}

/// Text of the caller's in markdown: whatever it is, it stays text.
fn code(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() || c == '`' { ' ' } else { c }).collect();
    format!("`{plain}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(data("a%\n::error::b"), "a%25%0A::error::b");
        assert_eq!(property("a:b,c"), "a%3Ab%2Cc");
        assert_eq!(code("a`b\nc"), "`a b c`");
    }
}
