//! GitLab's runner, played: scripts in its formats (gitlab-runner's shells/bash.go and abstract.go, made anew), and the stages of
//! a job as it calls them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::*;

pub const TOKEN: &str = "glcbt-64_Abc1dEfGhIjKlMnOp";
pub const KEY: &str = "-----BEGIN KEY-----\nc2VjcmV0IGtleSBvbmUgdHdv\n'odd' \"$x\" `y` \\ \n-----END KEY-----\n";

/// How the runner quotes: its feature flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    pub posix: bool,
    pub legacy: bool,
}

impl Flags {
    pub fn word(self, text: &str) -> String {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b",-./@_".contains(&byte);
        match self.posix {
            _ if text.is_empty() => "''".to_owned(),
            true => {
                let quoted = ["\\", "\"", "$", "`"]
                    .iter()
                    .fold(text.to_owned(), |text, special| text.replace(special, &format!("\\{special}")));
                let needs = quoted.contains(|c| " !#%&()*<=>?[|\"\\$`".contains(c));
                if needs { format!("\"{quoted}\"") } else { quoted }
            }
            false if text.bytes().all(is_plain) => text.to_owned(),
            false => {
                let escape = |byte: u8| match byte {
                    b'\n' => "\\n".to_owned(),
                    b'\r' => "\\r".to_owned(),
                    b'\'' => "\\'".to_owned(),
                    b'\\' => "\\\\".to_owned(),
                    b' '..=b'~' => char::from(byte).to_string(),
                    _ => format!("\\x{byte:02x}"),
                };
                format!("$'{}'", text.bytes().map(escape).collect::<String>())
            }
        }
    }

    pub fn script(self, lines: &str) -> String {
        let word = self.word(lines);
        let eval = if self.legacy {
            format!(": | eval {word}")
        } else {
            format!("(trap 'exit 1' TERM; eval {word}) < /dev/null")
        };
        let options = "case \"$(set -o)\" in *\"pipefail\"*) set -o pipefail;; esac; set -o errexit\nset +o noclobber";
        format!("#!/usr/bin/env bash\n\ntrap 'exit 1' TERM\n\n{options}\n{eval}\nexit 0\n")
    }
}

/// The runner, with one job.
pub struct Runner {
    pub caller: Caller,
    pub scratch: Scratch,
    pub flags: Flags,
    pub profile: &'static str,
    /// `job_env`.
    pub environment: BTreeMap<String, String>,
    pub project: PathBuf,
    pub folder: PathBuf,
    pub variables: Vec<(String, String)>,
    pub files: Vec<(String, String)>,
}

impl Runner {
    pub fn new(caller: Caller) -> Self {
        let scratch = Scratch::new();
        for name in ["home", "builds", "runner", "cache"] {
            scratch.folder(name, caller);
        }
        let ssh = scratch.folder("home/.ssh", caller);
        fs::write(ssh.join("id_ed25519"), "precious").unwrap();
        own(&ssh.join("id_ed25519"), caller);
        let (environment, variables, files) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (project, folder) = (PathBuf::new(), PathBuf::new());
        let (flags, profile) = (Flags::default(), "ci");
        Self { caller, scratch, flags, profile, environment, project, folder, variables, files }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// With a folder for the job.
    pub fn begun(caller: Caller) -> Self {
        let mut runner = Self::new(caller);
        runner.begin(&[]);
        runner.set("CI_JOB_TOKEN", TOKEN);
        runner
    }

    pub fn executor(&self, words: &[&str]) -> Shannot {
        let mut run = Shannot::new(self.caller).args(words);
        run.command.current_dir(self.path("runner")).env("HOME", self.path("home"));
        run.command.env("BUILD_EXIT_CODE_FILE", self.path("runner/code"));
        run.command.envs(&self.environment);
        for (name, value) in self.variables.iter().chain(&self.files) {
            run.command.env(format!("CUSTOM_ENV_{name}"), value);
        }
        run.env("BUILD_FAILURE_EXIT_CODE", "71").env("SYSTEM_FAILURE_EXIT_CODE", "72")
    }

    pub fn config(&self, words: &[&str]) -> Result {
        let builds = self.path("builds").display().to_string();
        self.executor(&[&["ci", "gitlab", "config", "--builds", &builds], words].concat()).output()
    }

    pub fn begin(&mut self, words: &[&str]) -> Value {
        let config: Value = serde_json::from_str(&self.config(words).expect_code(0).stdout).unwrap();
        self.environment = serde_json::from_value(config["job_env"].clone()).unwrap();
        self.folder = self.environment["SHANNOT_GITLAB_FOLDER"].clone().into();
        self.project = Path::new(config["builds_dir"].as_str().unwrap()).join("group/project");
        let project = self.project.display().to_string();
        self.set("CI_PROJECT_DIR", &project);
        self.set("RUNNER_TEMP_PROJECT_DIR", &format!("{project}.tmp"));
        config
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(other, _)| other != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub fn tmp(&self) -> String {
        format!("{}.tmp", self.project.display())
    }

    /// What is in front of nearly every script.
    pub fn exports(&self) -> String {
        let (tmp, mut lines) = (self.tmp(), String::new());
        for (name, value) in &self.variables {
            lines += &format!("export {name}={}\n", self.flags.word(value));
        }
        for (name, value) in &self.files {
            lines += &format!("mkdir -p \"{tmp}\"\nprintf '%s' {} > \"{tmp}/{name}\"\n", self.flags.word(value));
            lines += &format!("export {name}=\"{tmp}/{name}\"\n");
        }
        lines += &format!("export GITLAB_ENV={}\n", self.flags.word(&format!("{tmp}/gitlab_runner_env")));
        lines += &format!("mkdir -p \"{tmp}\"\ntouch \"{tmp}/gitlab_runner_env\"\n");
        lines + &format!("while read -r line; do export \"$line\"; done < \"{tmp}/gitlab_runner_env\"\n")
    }

    pub fn stage(&self, stage: &str, lines: &str) -> Result {
        let script = self.path("runner/script");
        fs::write(&script, self.flags.script(lines)).unwrap();
        let script = script.display().to_string();
        let result = self.executor(&["-p", self.profile, "ci", "gitlab", "run", &script, stage]).output();
        // Nothing but what the job left.
        let left: Vec<_> = fs::read_dir(&self.folder).into_iter().flatten().map(|entry| entry.unwrap()).collect();
        assert!(left.len() <= 1, "{left:?}");
        result
    }

    /// A stage of the runner's, with a project for the scripts that follow.
    pub fn sources(&self, hook: &str) -> Result {
        let project = self.project.display();
        self.stage("get_sources", &format!("{}{hook}\nmkdir -p {project}\n", self.exports()))
    }

    /// What the author calls a script.
    pub fn script(&self, commands: &str) -> Result {
        let echo = self.flags.word(&format!("\x1b[32;1m$ {commands}\x1b[0;m"));
        let cd = self.flags.word(&self.project.display().to_string());
        self.stage("step_script", &format!("{}cd {cd}\necho {echo}\n{commands}\n", self.exports()))
    }

    pub fn cleanup(&self) -> Result {
        self.executor(&["ci", "gitlab", "cleanup"]).output()
    }

    #[track_caller]
    pub fn end(&self) {
        self.cleanup().expect_code(0);
        assert_eq!(fs::read_dir(self.path("builds")).unwrap().count(), 0);
        self.cleanup().expect_code(0);
    }
}

/// Serves a folder as an old web server would.
pub struct Server(Child);

impl Server {
    pub fn start(folder: &Path) -> Option<(Self, u16)> {
        let python = tool("python3")?;
        let program = "import functools, http.server as h, sys
handler = functools.partial(h.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = h.ThreadingHTTPServer(('127.0.0.1', 0), handler)
print(server.server_port, flush=True)
server.serve_forever()";
        let mut child = Command::new(python)
            .args(["-c", program])
            .arg(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        Some((Self(child), line.trim().parse().unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
