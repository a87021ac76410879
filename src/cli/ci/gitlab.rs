//! GitLab: a collapsed section of the job log (<https://docs.gitlab.com/ci/jobs/job_logs/#custom-collapsible-sections>).

use std::time::{SystemTime, UNIX_EPOCH};

use super::{denials, layers};
use crate::cli::output::visible;
use crate::cli::record::Record;

const NAME: &str = "shannot";

pub(super) fn section(record: &Record<'_>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let head = format!("{}: {} after {:.1} s", visible(&record.word()), visible(&record.ending()), record.seconds());
    // The job may have left its last line open.
    let mut text = format!("\n\x1b[0Ksection_start:{now}:{NAME}[collapsed=true]\r\x1b[0K{head}\n");
    text.push_str(&format!("profile {}, rung {}\n", visible(record.profile_name()), record.rung()));
    for (layer, state) in layers(record) {
        text.push_str(&format!("{layer:<18} {}\n", visible(&state)));
    }
    for denial in denials(record) {
        text.push_str(&format!("{}\n", visible(&denial)));
    }
    text.push_str(&format!("\x1b[0Ksection_end:{now}:{NAME}\r\x1b[0K\n"));
    text
}
