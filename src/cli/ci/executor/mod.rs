//! GitLab Runner's custom executor (<https://docs.gitlab.com/runner/executors/custom/>): the stages of the runner itself (sources,
//! caches, artifacts) run on the host, what the job's author wrote runs in the sandbox.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Subcommand;
use serde_json::json;

use crate::cli::args::{Common, Options};
use crate::cli::output::{self, Complaint};
use crate::cli::{launch, run};
use crate::plan::is_denied;
use crate::profile::{Caller, Overrides};

/// The runner hands its exit codes over, so that a job that failed is told from a machine that did.
const BUILD_FAILURE: &str = "BUILD_FAILURE_EXIT_CODE";
const SYSTEM_FAILURE: &str = "SYSTEM_FAILURE_EXIT_CODE";
/// The runner puts this before each variable of the job.
const PREFIX: &str = "CUSTOM_ENV_";
/// The runner's own scripts. Every other is the job's author's: `build_script`, `after_script`, `step_NAME`, and what may come.
const OF_THE_RUNNER: &[&str] = &[
    "prepare_script",
    "get_sources",
    "clear_worktree",
    "restore_cache",
    "download_artifacts",
    "archive_cache",
    "archive_cache_on_failure",
    "upload_artifacts_on_success",
    "upload_artifacts_on_failure",
    "cleanup_file_variables",
];
/// A file for the job's own exit code, which `allow_failure: exit_codes` looks at.
const BUILD_EXIT_CODE: &str = "BUILD_EXIT_CODE_FILE";

/// The executor's stages, as the runner's configuration calls them.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Stage {
    /// `config_exec`: where builds are
    Config,
    /// `prepare_exec`: whether this host can run the profile
    Prepare,
    /// `run_exec`: one script
    Run {
        /// The script that the runner wrote
        script: PathBuf,
        /// Which stage of the job it is
        stage: String,
    },
    /// `cleanup_exec`
    Cleanup,
}

/// Runs a stage; its exit code is one of the runner's two, or 0.
pub(in crate::cli) fn gitlab(common: &Common, stage: &Stage) -> Result<u8, Complaint> {
    match stage {
        Stage::Config => config().map(|()| 0),
        Stage::Prepare => Ok(or_system_failure(prepare(common))),
        Stage::Run { script, stage } => Ok(or_system_failure(run_script(common, script, stage))),
        // Nothing of a run outlives it.
        Stage::Cleanup => Ok(0),
    }
}

fn exit_code(variable: &str, default: u8) -> u8 {
    std::env::var(variable).ok().and_then(|code| code.parse().ok()).unwrap_or(default)
}

fn or_system_failure(result: Result<u8, Complaint>) -> u8 {
    result.unwrap_or_else(|complaint| {
        complaint.say(output::ErrorFormat::Text);
        exit_code(SYSTEM_FAILURE, 2)
    })
}

fn config() -> Result<(), Complaint> {
    let driver = json!({"name": "shannot", "version": env!("CARGO_PKG_VERSION")});
    output::result(&format!("{}\n", json!({"driver": driver, "builds_dir_is_shared": false})))
}

fn with_default(common: &Common) -> Common {
    let mut common = common.clone();
    if common.profile.is_empty() {
        common.profile.push("ci".to_owned());
    }
    common
}

fn prepare(common: &Common) -> Result<u8, Complaint> {
    let caller = Caller { cwd: Some(PathBuf::from("/tmp")), ..Caller::current() };
    let policy = with_default(common).profile(&caller)?.policy(&Overrides::default(), &caller)?;
    let plan = launch::plan(&policy)?;
    output::result(&format!("shannot {}: rung {}\n", env!("CARGO_PKG_VERSION"), plan.rung.name())).map(|()| 0)
}

fn run_script(common: &Common, script: &Path, stage: &str) -> Result<u8, Complaint> {
    let code = if !OF_THE_RUNNER.contains(&stage) {
        in_sandbox(common, script)?
    } else {
        let status = Command::new("bash").arg(script).status().map_err(|error| {
            Complaint::new("gitlab", &error, None).about(format!("cannot run the runner's script of {stage}"))
        })?;
        let signal = status.signal().and_then(|signal| u8::try_from(128 + signal).ok());
        status.code().and_then(|code| u8::try_from(code).ok()).or(signal).unwrap_or(1)
    };
    if code == 0 {
        return Ok(0);
    }
    if let Some(file) = std::env::var_os(BUILD_EXIT_CODE).filter(|file| !file.is_empty()) {
        fs::write(&file, code.to_string()).map_err(|error| {
            Complaint::new("gitlab", &error, None).about(format!("cannot write the exit code to {}", file.display()))
        })?;
    }
    Ok(exit_code(BUILD_FAILURE, 1))
}

fn in_sandbox(common: &Common, script: &Path) -> Result<u8, Complaint> {
    let failed = |what: &str, error: &std::io::Error| Complaint::new("gitlab", error, None).about(what.to_owned());
    let project = std::env::var_os(format!("{PREFIX}CI_PROJECT_DIR")).map(PathBuf::from);
    if let Some(project) = &project {
        std::env::set_current_dir(project).map_err(|error| failed("cannot enter the project's folder", &error))?;
    }
    let text = fs::read_to_string(script)
        .map_err(|error| failed(&format!("cannot read the runner's script {}", script.display()), &error))?;
    let common = with_default(common);
    let caller = Caller::current();
    let environment = common.profile(&caller)?.policy(&Overrides::default(), &caller)?.environment;
    let text = without_secrets(&text, |name| is_denied(&environment, name.as_ref()));
    let cleaned = std::env::temp_dir().join(format!("shannot-script-{}", std::process::id()));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&cleaned)
        .map_err(|error| failed("cannot make the script for the sandbox", &error))?;
    file.write_all(text.as_bytes()).map_err(|error| failed("cannot write the script for the sandbox", &error))?;
    let command: Vec<OsString> = vec!["/bin/bash".into(), cleaned.clone().into()];
    let ran = run::run(&common, &Options::default(), command);
    fs::remove_file(&cleaned).map_err(|error| failed("cannot remove the script for the sandbox", &error))?;
    ran
}

/// The runner writes every variable of the job into each script, tokens too: `export NAME=…` up to the end of the line, within
/// a quoted text where the end of a line is written `\n`. Values of names that are denied become empty.
fn without_secrets(script: &str, is_denied: impl Fn(&str) -> bool) -> String {
    const EXPORT: &str = "export ";
    let mut clean = String::with_capacity(script.len());
    let mut rest = script;
    while let Some(at) = rest.find(EXPORT) {
        let (before, found) = rest.split_at(at);
        clean.push_str(before);
        let after = found.strip_prefix(EXPORT).unwrap_or(found);
        clean.push_str(EXPORT);
        let length = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, value) = after.split_at(length);
        clean.push_str(name);
        rest = value;
        if value.starts_with('=') && is_denied(name) {
            clean.push('=');
            rest = value.get(end_of_line(value)..).unwrap_or_default();
        }
    }
    clean.push_str(rest);
    clean
}

/// Where a line ends: at a newline, or at `\n` with an even number of backslashes before it.
fn end_of_line(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (b'\n', _) | (b'\\', Some(b'n')) => return at,
            (b'\\', Some(_)) => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_denied_names_are_taken_out_of_a_runners_script() {
        let script = r#"set -eo pipefail
: | eval $'export CI=true\nexport CI_JOB_TOKEN=$\'a\\nb c\'\nexport X=\'1\'\necho $\'export CI_JOB_TOKEN=x\'\n'
export MY_TOKEN="abc def"
exit 0
"#;
        let clean = without_secrets(script, |name| name.contains("TOKEN"));
        assert!(!clean.contains("a\\\\nb") && !clean.contains("abc"), "{clean}");
        assert!(clean.contains(r"export CI=true\nexport CI_JOB_TOKEN=\nexport X=\'1\'\necho"), "{clean}");
        assert!(clean.contains("export MY_TOKEN=\nexit 0\n"), "{clean}");
    }
}
