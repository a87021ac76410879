//! GitLab Runner's custom executor (<https://docs.gitlab.com/runner/executors/custom/>). Whoever writes a job's .gitlab-ci.yml
//! has a say in every script of the runner's (hooks, and variables such as PATH), so that each of them runs in a sandbox, with
//! a folder of the job's own as the one place to write. What the author calls a script has the administrator's profile and no
//! secrets; the runner's own stages (sources, caches, artifacts) have a network and what the runner gives them.

mod folder;
mod leftovers;
mod script;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use self::folder::{Folder, base};
use self::script::{Secrets, without_secrets};
use super::System;
use crate::cli::args::{Backend, Common, Mode, Options};
use crate::cli::output::{self, Complaint, note};
use crate::cli::{launch, run};
use crate::plan::is_denied;
use crate::policy::Environment;
use crate::profile::Caller;

/// The runner hands its exit codes over, so that a job that failed is told from a machine that did.
const BUILD_FAILURE: &str = "BUILD_FAILURE_EXIT_CODE";
const SYSTEM_FAILURE: &str = "SYSTEM_FAILURE_EXIT_CODE";
/// A file for the job's own exit code, which `allow_failure: exit_codes` looks at.
const BUILD_EXIT_CODE: &str = "BUILD_EXIT_CODE_FILE";
/// A file with what GitLab said of the job.
const JOB_RESPONSE: &str = "JOB_RESPONSE_FILE";
/// The runner puts this before each variable of the job; those without it are its own, and of `config`'s `job_env`.
const PREFIX: &str = "CUSTOM_ENV_";
const FOLDER: &str = "SHANNOT_GITLAB_FOLDER";
const CACHE: &str = "SHANNOT_GITLAB_CACHE";
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
const OF_CACHES: &[&str] = &["restore_cache", "archive_cache", "archive_cache_on_failure"];
/// As `ci`, with the host's network.
const RUNNERS_PROFILE: &str = "install";
const AUTHORS_PROFILE: &str = "ci";
/// The key of the runner's certificate for GitLab. The runner writes it for git, into a file, in each script.
const NEVER_SHOWN: &str = "CI_SERVER_TLS_KEY_FILE";
const SHELL: &str = "/bin/bash";

/// The executor's stages, as the runner's configuration calls them.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Stage {
    /// `config_exec`: makes the job's folder
    Config {
        /// Where jobs have their folders
        #[arg(long, value_name = "DIR", default_value = "/builds")]
        builds: PathBuf,
        /// Keep caches from job to job, each project's in a folder of its own here; default: they end with the job
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
    },
    /// `prepare_exec`: whether this host can run the job
    Prepare,
    /// `run_exec`: one script
    Run {
        /// The script that the runner wrote
        script: PathBuf,
        /// Which stage of the job it is
        stage: String,
    },
    /// `cleanup_exec`: removes the job's folder
    Cleanup,
}

/// Whose fault it is.
enum Failed {
    Job(String),
    Host(Complaint),
}

impl<E: Into<Complaint>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Host(error.into())
    }
}

/// Runs a stage; its exit code is one of the runner's two, or 0.
pub(in crate::cli) fn gitlab(common: &Common, stage: &Stage) -> u8 {
    let ended = match stage {
        Stage::Config { builds, cache } => config(builds, cache.as_deref()).map(|()| 0),
        Stage::Prepare => prepare(common).map(|()| 0),
        Stage::Run { script, stage } => run_script(common, script, stage),
        Stage::Cleanup => cleanup().map(|()| 0),
    };
    let code = |variable: &str, default| {
        std::env::var(variable).ok().and_then(|code| code.parse().ok()).filter(|code| *code != 0).unwrap_or(default)
    };
    match ended.and_then(|code| if code == 0 { Ok(code) } else { tell(code).map(|()| code) }) {
        Ok(0) => 0,
        Ok(_) => code(BUILD_FAILURE, 1),
        Err(complaint) => {
            complaint.say(common.error_format);
            code(SYSTEM_FAILURE, 2)
        }
    }
}

/// The job's own exit code, for the runner.
fn tell(code: u8) -> Result<(), Complaint> {
    let Some(file) = std::env::var_os(BUILD_EXIT_CODE).filter(|file| !file.is_empty()) else { return Ok(()) };
    fs::write(&file, code.to_string())
        .map_err(|error| failed(&format!("cannot write the exit code to {}", file.display()), &error))
}

fn failed(what: &str, error: &io::Error) -> Complaint {
    Complaint::new("gitlab", error, None).about(what.to_owned())
}

fn config(builds: &Path, cache: Option<&Path>) -> Result<(), Complaint> {
    let cache = cache.map(cache_of_project).transpose()?;
    let path = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| Complaint::plain("gitlab", format!("cannot use {}: it is not UTF-8", path.display())))
    };
    let builds = base(builds)?;
    path(&builds)?;
    let folder = Folder::make(&builds)?;
    let mut environment = BTreeMap::from([(FOLDER, path(folder.path())?)]);
    if let Some(cache) = &cache {
        environment.insert(CACHE, path(cache)?);
    }
    let config = json!({
        "driver": {"name": "shannot", "version": env!("CARGO_PKG_VERSION")},
        "builds_dir": path(&folder.builds())?,
        "cache_dir": path(cache.as_ref().unwrap_or(&folder.cache()))?,
        "builds_dir_is_shared": false,
        "job_env": environment,
    });
    output::result(&format!("{config}\n"))
}

/// What GitLab said of the job, if the runner tells.
fn response() -> Result<Option<Value>, Complaint> {
    let Some(file) = std::env::var_os(JOB_RESPONSE).filter(|file| !file.is_empty()) else { return Ok(None) };
    let what = format!("cannot read what GitLab said of the job from {}", file.display());
    let text = fs::read(&file).map_err(|error| failed(&what, &error))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| Complaint::new("gitlab", &error, None).about(what))
}

/// The project's folder below that for caches. Its number is GitLab's word, and no variable.
fn cache_of_project(cache: &Path) -> Result<PathBuf, Complaint> {
    let project = response()?.and_then(|job| job.get("job_info")?.get("project_id")?.as_u64());
    let project = project.filter(|project| *project > 0).ok_or_else(|| {
        let what = format!("cannot keep caches: {JOB_RESPONSE} names no project of the job's");
        Complaint::plain("gitlab", what).with_hint("leave --cache away, or update GitLab Runner")
    })?;
    let folder = base(cache)?.join(project.to_string());
    if folder.as_os_str().as_bytes().contains(&b':') {
        return Err(Complaint::plain("gitlab", format!("cannot use {}: it has a colon", folder.display())));
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(|error| failed(&format!("cannot make {}", folder.display()), &error))?;
    Ok(folder)
}

/// The folder that `config` made.
fn folder() -> Result<(PathBuf, Option<Folder>), Complaint> {
    let path = std::env::var_os(FOLDER).filter(|path| !path.is_empty()).map(PathBuf::from).ok_or_else(|| {
        Complaint::plain("gitlab", format!("cannot find the job's folder: {FOLDER} is not set"))
            .with_hint("set config_exec and config_args = [\"ci\", \"gitlab\", \"config\"] in the runner's config.toml")
    })?;
    let folder = Folder::take(&path)?;
    Ok((path, folder))
}

fn own_folder() -> Result<Folder, Complaint> {
    let (path, folder) = folder()?;
    folder.ok_or_else(|| Complaint::plain("gitlab", format!("cannot find the job's folder {}", path.display())))
}

fn cleanup() -> Result<(), Complaint> {
    // Without one, nothing of the job is there.
    if std::env::var_os(FOLDER).is_none() {
        return Ok(());
    }
    folder()?.1.map_or(Ok(()), Folder::remove)
}

/// The profile and the options of a stage in a job's folder.
fn sandbox(common: &Common, folder: &Folder, stage: &str) -> (Common, Options) {
    let mut common = Common { profile_from_outside: true, ..common.clone() };
    let mut options = Options {
        workspace: Some(folder.job().into_os_string()),
        workspace_mode: Some(Mode::Rw),
        chdir: Some(folder.job().into_os_string()),
        // git gives its files modes, as do archives; on the rung below nothing can.
        backend: Backend::Namespaces,
        ..Options::default()
    };
    if OF_THE_RUNNER.contains(&stage) {
        common.profile = vec![RUNNERS_PROFILE.to_owned()];
        let cache = std::env::var_os(CACHE).filter(|_| OF_CACHES.contains(&stage));
        options.rw.extend(cache);
    } else {
        if common.profile.is_empty() {
            common.profile.push(AUTHORS_PROFILE.to_owned());
        }
        options.ci = Some(System::Gitlab);
    }
    (common, options)
}

/// The job's folder becomes the current directory.
fn enter(folder: &Folder) -> Result<Caller, Complaint> {
    let job = folder.job();
    folder.unlock();
    std::env::set_current_dir(&job).map_err(|error| failed(&format!("cannot enter {}", job.display()), &error))?;
    Ok(Caller::current())
}

fn prepare(common: &Common) -> Result<(), Complaint> {
    let folder = own_folder()?;
    let caller = enter(&folder)?;
    let mut text = String::new();
    for (whose, stage) in [("the runner's stages", "get_sources"), ("scripts", "build_script")] {
        let (common, options) = sandbox(common, &folder, stage);
        let profile = common.profile(&caller)?;
        let mut policy = profile.policy(&options.overrides(), &caller)?;
        policy.command = vec![SHELL.into()];
        let plan = launch::plan(&policy)?;
        text.push_str(&format!("shannot: {whose}: profile {}, rung {}\n", profile.name(), plan.rung.name()));
    }
    output::result(&text)
}

fn run_script(common: &Common, script: &Path, stage: &str) -> Result<u8, Complaint> {
    match run_stage(common, script, stage) {
        Ok(code) => Ok(code),
        Err(Failed::Host(complaint)) => Err(complaint),
        Err(Failed::Job(what)) => {
            note(&format!("shannot: {what}"));
            Ok(1)
        }
    }
}

fn run_stage(common: &Common, script: &Path, stage: &str) -> Result<u8, Failed> {
    let folder = own_folder()?;
    let text = fs::read(script)
        .map_err(|error| failed(&format!("cannot read the runner's script {}", script.display()), &error))?;
    let caller = enter(&folder)?;
    let job = folder.job();
    if job.join(".git").symlink_metadata().is_ok() {
        return Err(Failed::Job(format!("cannot work in {}: the job made a repository of it", job.display())));
    }
    let project = project(&job)?;
    let (common, options) = sandbox(common, &folder, stage);
    let text = if OF_THE_RUNNER.contains(&stage) {
        text
    } else {
        let environment = common.profile(&caller)?.policy(&options.overrides(), &caller)?.environment;
        clean(&text, &environment, &job, project)?
    };
    let script = folder.script(&text)?;
    let command: Vec<OsString> = vec![SHELL.into(), script.path().into()];
    Ok(run::run(&common, &options, command)?)
}

/// Where the project is, and the folder for files of the runner's, below the job's.
fn project(job: &Path) -> Result<Option<(PathBuf, PathBuf)>, Failed> {
    let inside = |name: &str| -> Result<Option<PathBuf>, Failed> {
        let Some(path) = std::env::var_os(format!("{PREFIX}{name}")).map(PathBuf::from) else { return Ok(None) };
        let below = path.strip_prefix(job).ok().filter(|below| {
            below.file_name().is_some() && below.components().all(|part| matches!(part, Component::Normal(_)))
        });
        let what =
            || format!("cannot use {name}={}: it lies outside of the job's folder {}", path.display(), job.display());
        Ok(Some(below.ok_or_else(|| Failed::Job(what()))?.to_owned()))
    };
    let project = inside("CI_PROJECT_DIR")?;
    // The runner puts this one behind the job's variables, so that none can stand in for it.
    let files = inside("RUNNER_TEMP_PROJECT_DIR")?;
    let real = files.as_ref().and_then(|files| files.as_os_str().as_bytes().strip_suffix(b".tmp"));
    let Some(project) = real.map(|real| OsString::from_vec(real.to_vec()).into()).or(project) else { return Ok(None) };
    let beside = || {
        let mut files = project.clone().into_os_string();
        files.push(".tmp");
        files.into()
    };
    Ok(Some((project.clone(), files.unwrap_or_else(beside))))
}

/// The author's script without the values of variables that the profile denies; in the job's folder there are none then either.
fn clean(
    text: &[u8],
    environment: &Environment,
    job: &Path,
    project: Option<(PathBuf, PathBuf)>,
) -> Result<Vec<u8>, Failed> {
    let denied = |name: &OsStr| name == NEVER_SHOWN || is_denied(environment, name);
    let values = values(&response()?.unwrap_or_default(), denied);
    let secrets = Secrets::new(values.iter().map(|(name, value)| (name.clone(), value.as_slice())));
    let Some((project, files)) = project else {
        let what = format!("cannot tell where the project is: {PREFIX}CI_PROJECT_DIR is not set");
        return Err(Complaint::plain("gitlab", what).into());
    };
    leftovers::remove(job, &files, &project, &secrets).map_err(|errno| {
        Failed::Job(format!("cannot take the runner's files away from {}: {errno}", job.join(&files).display()))
    })?;
    let Some((clean, found)) = without_secrets(text, |name| denied(OsStr::from_bytes(name)), &secrets) else {
        let what = "cannot take secrets out of the runner's script: it is not quoted as known runners quote theirs";
        return Err(Complaint::plain("gitlab", what)
            .with_hint("set shell = \"bash\" in the runner's config.toml")
            .into());
    };
    // Those of GitLab's own are never passed on; one of the project's may be missed.
    let withheld: Vec<&str> =
        values.iter().map(|(name, _)| name.as_str()).filter(|name| !name.starts_with("CI_")).collect();
    if !withheld.is_empty() {
        note(&format!("shannot: withheld from the script, as the profile's env_deny says: {}", withheld.join(", ")));
    }
    if !found.is_empty() {
        let names: Vec<&str> = found.into_iter().collect();
        note(&format!("shannot: MASKED stands in the script for what is the value of {}", names.join(", ")));
    }
    Ok(clean)
}

/// The values of denied variables, by their names: what the runner says, and what GitLab said, which a job's variable of the same
/// name does not stand in for. What GitLab itself says in public is no secret, `registry.example.org` or `overlay2`.
fn values(job: &Value, is_denied: impl Fn(&OsStr) -> bool) -> Vec<(String, Vec<u8>)> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let is = |value: &Value, key: &str| value.get(key).and_then(Value::as_bool) == Some(true);
    let (mut secret, mut public) = (Vec::new(), Vec::new());
    for variable in job.get("variables").and_then(Value::as_array).into_iter().flatten() {
        let (Some(name), Some(value)) = (text(variable, "key"), text(variable, "value")) else { continue };
        let list = if is(variable, "public") && !is(variable, "masked") { &mut public } else { &mut secret };
        list.push((name, value.into_bytes()));
    }
    let token = text(job, "token").map(|token| ("CI_JOB_TOKEN".to_owned(), token.into_bytes()));
    let of_the_job = |(name, value): (OsString, OsString)| {
        let name = name.as_bytes().strip_prefix(PREFIX.as_bytes())?;
        Some((String::from_utf8_lossy(name).into_owned(), value.into_vec()))
    };
    let told = std::env::vars_os().filter_map(of_the_job).filter(|variable| !public.contains(variable));
    let denied = told.chain(secret).filter(|(name, _)| is_denied(OsStr::new(name)));
    token.into_iter().chain(denied).collect()
}
