//! `--report`: one JSON object for a run, written to a descriptor that was opened before the command could touch
//! anything.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::SystemTime;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use serde::Serialize;

use super::output::Complaint;
use crate::plan::{InPlace, Plan, Rung, Skipped};
use crate::profile::Profile;
use crate::report::{Denial, Effective, Outcome};
use crate::sys;

/// What becomes known of a run on its way.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) profile: Option<Profile>,
    pub(super) plan: Option<Plan>,
    pub(super) outcome: Option<Outcome>,
}

/// One run, however far it came.
#[derive(Debug, Serialize)]
pub(super) struct Record<'a> {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<ProfileRecord<'a>>,
    pub(super) command: Vec<String>,
    pub(super) start: String,
    end: String,
    /// Shannot's own.
    pub(super) exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<&'a Outcome>,
    /// Why nothing was executed, or what failed afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<&'a Complaint>,
    /// How the command was kept from the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    rung: Option<Rung>,
    /// Why it was the one without namespaces, and what was missing besides protection.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_place: Option<&'a InPlace>,
    /// What was in force: empty where nothing was executed.
    pub(super) effective: Effective,
    skipped: &'a [Skipped],
    pub(super) denials: &'a [Denial],
    /// Neither Landlock nor an ERRNO filter tells a parent what it refused.
    denials_complete: bool,
}

#[derive(Debug, Serialize)]
struct ProfileRecord<'a> {
    name: &'a str,
    origin: String,
    sha256: String,
}

impl<'a> Record<'a> {
    pub(super) fn new(
        command: &[OsString],
        known: &'a Known,
        started: SystemTime,
        result: Result<u8, &'a Complaint>,
    ) -> Self {
        let time = |time| humantime::format_rfc3339_millis(time).to_string();
        let (plan, outcome) = (known.plan.as_ref(), known.outcome.as_ref());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            profile: known.profile.as_ref().map(|profile| ProfileRecord {
                name: profile.name(),
                origin: profile.origin().to_string(),
                sha256: profile.digest(),
            }),
            command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            start: time(started),
            end: time(SystemTime::now()),
            exit_code: result.unwrap_or_else(|complaint| complaint.code),
            outcome,
            error: result.err(),
            rung: plan.map(|plan| plan.rung),
            in_place: plan.and_then(|plan| plan.in_place.as_ref()),
            // A step that fails means that nothing is executed: what was expected is what was in force.
            effective: plan.filter(|_| outcome.is_some()).map(|plan| plan.expected.clone()).unwrap_or_default(),
            skipped: plan.map_or(&[], |plan| &plan.skipped),
            denials: outcome.map_or(&[], |outcome| &outcome.denials),
            denials_complete: false,
        }
    }
}

impl Record<'_> {
    /// The command word.
    pub(super) fn word(&self) -> String {
        self.command.first().cloned().unwrap_or_default()
    }

    /// Empty where none could be read.
    pub(super) fn profile_name(&self) -> &str {
        self.profile.as_ref().map_or("", |profile| profile.name)
    }

    /// Empty where nothing was planned.
    pub(super) fn rung(&self) -> &'static str {
        self.rung.map_or("", Rung::name)
    }

    /// How the run ended, in words.
    pub(super) fn ending(&self) -> String {
        match (self.error, self.outcome) {
            (Some(error), _) => error.message.clone(),
            (None, Some(outcome)) => outcome.to_string(),
            (None, None) => String::new(),
        }
    }

    /// How long the command ran.
    pub(super) fn seconds(&self) -> f64 {
        self.outcome.map_or(0.0, |outcome| outcome.resources.elapsed_seconds)
    }
}

fn cannot_write(name: &OsStr, error: &io::Error) -> Complaint {
    Complaint::new("report", error, None).about(format!("cannot write the report to {name:?}"))
}

/// Where the record goes.
#[derive(Debug)]
pub(super) struct RecordFile {
    file: File,
    /// As it was named.
    name: OsString,
    /// What was in it goes. Not so for a descriptor: where it stands is its owner's business.
    replace: bool,
}

impl RecordFile {
    /// `FILE`, or `fd:N`.
    pub(super) fn open(destination: &OsStr) -> Result<Self, Complaint> {
        let refuse = |error: io::Error| cannot_write(destination, &error);
        let name = destination.to_owned();
        if let Some(number) = destination.to_str().and_then(|text| text.strip_prefix("fd:")) {
            let invalid =
                || Complaint::plain("report", format!("cannot write the report to {destination:?}: not a descriptor"));
            let number: i32 = number.parse().ok().filter(|number| *number >= 0).ok_or_else(invalid)?;
            let fd = sys::borrow_number(number);
            let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|errno| refuse(errno.into()))?;
            if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY {
                return Err(refuse(nix::errno::Errno::EBADF.into()));
            }
            let file = fd.try_clone_to_owned().map_err(refuse)?.into();
            return Ok(Self { file, name, replace: false });
        }
        // A link in the last place may be a trap of the previous job's: as root it would choose what is overwritten.
        // A pipe that nobody reads is an error, and no reason to wait; one that is read may be written to slowly.
        let flags = libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK;
        let file = File::options().write(true).create(true).truncate(false).custom_flags(flags).open(destination);
        let file = file.map_err(refuse)?;
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| refuse(errno.into()))?;
        Ok(Self { file, name, replace: true })
    }

    pub(super) fn write(self, record: &Record<'_>) -> Result<(), Complaint> {
        let text = serde_json::to_string(record).map_err(|error| Complaint::new("report", &error, None))?;
        self.write_text(&format!("{text}\n"))
    }

    /// Something else than JSON.
    pub(super) fn write_text(mut self, text: &str) -> Result<(), Complaint> {
        let emptied = match self.file.metadata() {
            Ok(metadata) if self.replace && metadata.is_file() => self.file.set_len(0),
            _ => Ok(()),
        };
        emptied.and_then(|()| self.file.write_all(text.as_bytes())).map_err(|error| cannot_write(&self.name, &error))
    }
}
