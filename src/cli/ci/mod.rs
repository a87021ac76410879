//! How CI systems want to hear of a run: annotations, sections and summaries of theirs, and JUnit.

mod executor;
mod github;
mod gitlab;
mod junit;
mod stream;

use std::ffi::OsStr;

use super::output::{self, Complaint};
use super::record::{Record, RecordFile};

pub(super) use executor::{Stage, gitlab as gitlab_executor};
pub(super) use stream::OneStream;

/// `--ci`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum System {
    /// GitHub Actions, and what understands its commands (Gitea, Forgejo)
    Github,
    /// GitLab CI
    Gitlab,
    /// The one whose variables are set; none, if there are none
    Auto,
}

/// What is said about a run besides the report.
#[derive(Debug)]
pub(super) struct Voice {
    github: Option<github::Github>,
    gitlab: bool,
    junit: Option<RecordFile>,
}

impl Voice {
    /// Opens what will be written to, before the command can touch it. `None`: nobody is to be told anything.
    pub(super) fn new(system: Option<System>, junit: Option<&OsStr>) -> Result<Option<Self>, Complaint> {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| value == "true");
        let system = match system {
            Some(System::Auto) if is_set("GITHUB_ACTIONS") => Some(System::Github),
            Some(System::Auto) if is_set("GITLAB_CI") => Some(System::Gitlab),
            Some(System::Auto) => None,
            system => system,
        };
        if system.is_none() && junit.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            github: (system == Some(System::Github)).then(github::Github::new).transpose()?,
            gitlab: system == Some(System::Gitlab),
            junit: junit.map(RecordFile::open).transpose()?,
        }))
    }

    /// What the command writes to, where the runner takes orders from it.
    pub(super) fn one_stream(&self) -> Result<Option<OneStream>, Complaint> {
        self.github.is_some().then(OneStream::start).transpose()
    }

    /// Before the command runs.
    pub(super) fn begin(&self) -> Result<(), Complaint> {
        if let Some(github) = &self.github {
            output::result(&github.begin())?;
        }
        Ok(())
    }

    /// After it has ended, or could not be started.
    pub(super) fn end(self, record: &Record<'_>) -> Result<(), Complaint> {
        if let Some(github) = self.github {
            output::result(&github.end(record)?)?;
        }
        if self.gitlab {
            output::result(&gitlab::section(record))?;
        }
        match self.junit {
            Some(file) => file.write_text(&junit::suite(record)),
            None => Ok(()),
        }
    }
}

/// What was in force, a line a layer, for people.
fn layers(record: &Record<'_>) -> Vec<(String, String)> {
    record.effective.iter().map(|(layer, state)| (layer.to_string(), state.to_string())).collect()
}

/// What is known to have been refused, a line each.
fn denials(record: &Record<'_>) -> Vec<String> {
    record.denials.iter().map(ToString::to_string).collect()
}
