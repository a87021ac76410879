//! GitLab Runner's custom executor: whole jobs, and jobs whose author wants to get out of them.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::gitlab_runner::{Flags, KEY, Runner, Server, TOKEN};
use crate::support::*;

#[test]
fn a_job_lives_from_its_sources_to_its_artifacts() {
    if tool("git").is_none() {
        return;
    }
    for caller in callers() {
        let mut runner = Runner::new(caller);
        let served = runner.scratch.folder("served", Caller::Own);
        let make =
            "git init -q -b main src && cd src && echo 'echo built >out; chmod 640 out' >build.sh && git add . &&
            git -c user.name=x -c user.email=x@y commit -qm one && git clone -q --bare . ../project.git &&
            git -C ../project.git update-server-info && git rev-parse HEAD";
        let made =
            Command::new("sh").args(["-c", make]).current_dir(&served).env("HOME", "/nonexistent").output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let commit = String::from_utf8(made.stdout).unwrap();
        let Some((_server, port)) = Server::start(&served) else { return };
        for flags in [(false, false), (true, true)] {
            runner.flags = Flags { posix: flags.0, legacy: flags.1 };
            runner.variables.clear();
            let config = runner.begin(&[]);
            assert_eq!(config["builds_dir_is_shared"], false);
            assert_eq!(config["driver"]["name"], "shannot");
            runner.set("CI_JOB_TOKEN", TOKEN);
            runner.set("CI_PROJECT_NAME", "it's \"a\" $project");
            runner
                .executor(&["ci", "gitlab", "prepare"])
                .output()
                .expect_code(0)
                .expect_stdout("profile ci, rung namespaces");
            let (project, tmp, word) =
                (runner.project.display().to_string(), runner.tmp(), |text: &str| runner.flags.word(text));
            let prepare = format!(
                "echo \"Running on $(hostname)...\"\nrm -f \"{tmp}/gitlab_runner_env\"\nrm -f \"{tmp}/masking.db\"\n"
            );
            runner.stage("prepare_script", &prepare).expect_code(0).expect_stdout("Running on ci");
            let url = format!("http://127.0.0.1:{port}/project.git");
            let sources = format!(
                "{}export GIT_TERMINAL_PROMPT=0\nmkdir -p {tmp}/git-template\n\
                 git config -f {tmp}/git-template/config init.defaultBranch none\n\
                 git config -f {tmp}/git-template/config gc.autoDetach false\n\
                 rm -f \"{tmp}/.gitlab-runner.ext.conf\"\n\
                 git config --file \"{tmp}/.gitlab-runner.ext.conf\" --replace-all \"url.http://ci:{TOKEN}@127.0.0.1.insteadOf\" \"http://127.0.0.1\" \"^x$\"\n\
                 git config --file \"{tmp}/git-template/config\" --replace-all \"include.path\" \"{tmp}/.gitlab-runner.ext.conf\" \"conf$\"\n\
                 git init {project} --template {tmp}/git-template\ncd {project}\n\
                 if git remote add origin {} >/dev/null 2>&1 ; then\n  echo {}\nelse\n  git remote set-url origin {}\nfi\n\
                 git -c {} fetch origin --no-recurse-submodules {} \n\
                 git -c submodule.recurse=false checkout -f -q {}git clean -ffdx\n",
                runner.exports(),
                word(&url),
                word("Created fresh repository."),
                word(&url),
                word("http.userAgent=gitlab-runner 18 linux/amd64"),
                word("+refs/heads/*:refs/remotes/origin/*"),
                commit,
            );
            runner.stage("get_sources", &sources).expect_code(0).expect_stdout("Created fresh repository.");
            let build = runner.script("sh build.sh; pwd; git log --format=%s; echo \"[$CI_PROJECT_NAME]\"; echo FROM=script >>$GITLAB_ENV; git config --global a.b c; exit 7");
            assert_eq!(fs::read_to_string(runner.path("runner/code")).unwrap(), "7");
            let lines: Vec<&str> = build.stdout.lines().collect();
            assert_eq!(lines[1..4], [project.as_str(), "one", "[it's \"a\" $project]"], "{build:?}");
            build.expect_code(71).expect_stdout("section_start:").expect_stdout("exit code 7");
            let after = format!("{}cd {project}\necho from $FROM; cat out; git status --porcelain\n", runner.exports());
            runner.stage("after_script", &after).expect_code(0).expect_stdout("from script\nbuilt\n?? out\n");
            let cache = config["cache_dir"].as_str().unwrap();
            let archive = format!(
                "{}cd {project}\nif gitlab-runner --version >/dev/null 2>&1; then echo no; else\n  mkdir -p ../../../cache/k\n  cp out {cache}/k/cache.zip\nfi\n",
                runner.exports()
            );
            runner.stage("archive_cache_on_failure", &archive).expect_code(0);
            let upload = format!("{}cd {project}\nstat -c %a out\n", runner.exports());
            runner.stage("upload_artifacts_on_failure", &upload).expect_code(0).expect_stdout("640");
            let clean =
                format!("export CI=true\nrm -f \"{tmp}/gitlab_runner_env\"\nrm -r -f \"{project}/.git/hooks\"\n");
            runner.stage("cleanup_file_variables", &clean).expect_code(0);
            assert_eq!(fs::read_to_string(Path::new(cache).join("k/cache.zip")).unwrap(), "built\n");
            runner.end();
        }
    }
}

#[test]
fn what_an_author_puts_into_the_runners_own_stages_stays_in_the_jobs_folder() {
    for caller in callers() {
        let mut runner = Runner::begun(caller);
        let home = runner.path("home").display().to_string();
        let secret = runner.path("home/.ssh/id_ed25519").display().to_string();
        let hook = format!(
            "echo in; cat {secret} && echo GOT; touch {home}/made; cat /etc/shadow && echo GOT; \
             ls {} && echo GOT; cat $SHANNOT_GITLAB_FOLDER/../*/job && echo GOT; env | grep JOB_RESPONSE && echo GOT; \
             touch {}/x || echo refused; ps ax | grep 'gitlab ru[n]' && echo GOT; echo out; true",
            runner.path("runner").display(),
            runner.folder.display(),
        );
        let result = runner.sources(&hook).expect_code(0).expect_stdout("in\n").expect_stdout("out\n");
        assert!(!result.stdout.contains("GOT") && !result.stdout.contains("precious"), "{result:?}");
        assert!(!runner.folder.join("x").exists());
        // Variables of the job are exported there; what they make the stage execute is inside too.
        let tool = runner.project.with_file_name("bin");
        runner.sources(&format!(
            "mkdir -p {0}; printf '#!/bin/sh\\ncat {secret} && touch {home}/made' >{0}/mkdir; chmod 755 {0}/mkdir",
            tool.display()
        ));
        for stage in ["get_sources", "archive_cache", "cleanup_file_variables", "some_new_stage"] {
            runner.set("PATH", &format!("{}:/usr/bin:/bin", tool.display()));
            runner.set("GIT_SSH_COMMAND", &format!("touch {home}/made"));
            let result = runner.stage(stage, &runner.exports());
            assert!(!result.stdout.contains("precious"), "{result:?}");
            let git = format!(
                "export GIT_CONFIG_COUNT=1\nexport GIT_CONFIG_KEY_0=core.fsmonitor\nexport GIT_CONFIG_VALUE_0=$'touch {home}/made'\ngit init -q x\ngit -C x status"
            );
            runner.stage(stage, &git);
        }
        assert_eq!(fs::read_dir(runner.path("home")).unwrap().count(), 1);
        runner.set("PATH", "/usr/bin:/bin");
        // A repository that the job made of its whole folder is none that Shannot looks at.
        runner.sources(&format!("mkdir {}/.git", runner.folder.join("job").display()));
        runner.script("true").expect_code(71).expect_stderr("made a repository");
        runner.end();
    }
}

#[test]
fn a_jobs_variables_choose_no_folder() {
    for caller in callers() {
        let mut runner = Runner::begun(caller);
        runner.sources("").expect_code(0);
        let other = runner.path("home").display().to_string();
        let job = runner.folder.join("job").display().to_string();
        for forged in [other.as_str(), "/", "", "relative", &job, &format!("{job}/../..{other}"), &format!("{job}x/y")]
        {
            for name in ["CI_PROJECT_DIR", "RUNNER_TEMP_PROJECT_DIR"] {
                let before = runner.variables.clone();
                runner.set(name, forged);
                for stage in ["get_sources", "step_script"] {
                    let result = runner.stage(stage, "echo ran").expect_code(71).expect_stderr(name);
                    assert!(!result.stdout.contains("ran"), "{result:?}");
                }
                runner.variables = before;
            }
        }
        // What leads out of the folder leads nowhere.
        runner.set("CI_PROJECT_DIR", &format!("{job}/builds/link"));
        runner.sources(&format!("ln -s {other} {job}/builds/link; ln -s {other} {}/x", runner.tmp())).expect_code(0);
        let result = runner.script(&format!("ls -A {other}; touch {job}/builds/link/made")).expect_code(0);
        assert!(!result.stdout.contains(".ssh"), "{result:?}");
        assert!(!Path::new(&other).join("made").exists() && Path::new(&other).join(".ssh").exists());
        // The runner's own word is the last of its name, and a job's variables have the prefix.
        runner.set("SHANNOT_GITLAB_FOLDER", &other);
        runner.script("pwd").expect_code(0).expect_stdout(&runner.project.display().to_string());
        runner.sources(&format!("rm -r {0}; ln -s {other} {0}", runner.tmp()));
        runner.script("true").expect_code(71).expect_stderr("project.tmp");
        assert!(Path::new(&other).join(".ssh/id_ed25519").exists());
        runner.end();
    }
}

#[test]
fn each_job_has_a_folder_of_its_own() {
    for caller in callers() {
        let mut one = Runner::begun(caller);
        let first = one.environment.clone();
        one.sources("echo mine >$CI_PROJECT_DIR.tmp/../mine").expect_code(0);
        one.begin(&[]);
        assert_ne!(first, one.environment);
        let other = first["SHANNOT_GITLAB_FOLDER"].clone();
        for folder in [&other, &one.folder.display().to_string()] {
            let metadata = fs::metadata(folder).unwrap();
            let uid = if caller == Caller::Nobody { NOBODY } else { nix::unistd::geteuid().as_raw() };
            assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o700, uid));
        }
        one.sources("").expect_code(0);
        let result = one.sources(&format!(
            "ls -R {}; cat {other}/job/builds/group/mine || ls {other} || echo done",
            one.path("builds").display()
        ));
        let result = result.expect_code(0).expect_stdout("done");
        assert!(!result.stdout.contains("mine"), "{result:?}");
        one.cleanup().expect_code(0);
        assert!(Path::new(&other).exists());
        one.environment = first;
        one.end();
    }
}

#[test]
fn values_of_denied_variables_do_not_reach_the_scripts() {
    for caller in callers() {
        for flags in [(false, false), (false, true), (true, false), (true, true)] {
            let mut runner = Runner::begun(caller);
            runner.flags = Flags { posix: flags.0, legacy: flags.1 };
            runner.set("GREETING", "it's \"fine\" $x");
            runner.set("COPY", TOKEN);
            runner.set("ADDRESS", &format!("https://ci:{TOKEN}@example.org/x"));
            runner.set("DEPLOY_KEY", KEY);
            runner.set("KEY_COPY", KEY);
            runner.set("AFTER_ALL", "seen");
            runner.files = [("KUBECONFIG", "kube precious"), ("PLAIN", "plain text\n"), ("OTHER", KEY)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
            let config = format!("[remote \"origin\"]\n\turl = https://ci:{TOKEN}@example.org/x\n");
            let sources = format!(
                "mkdir -p $CI_PROJECT_DIR/.git/modules/a/b && cd $CI_PROJECT_DIR.tmp && touch .gitlab-runner.ext.conf && cp KUBECONFIG cache_env\n\
                 printf {0} >$CI_PROJECT_DIR/.git/config\nprintf {0} >$CI_PROJECT_DIR/.git/modules/a/b/config; [ $CI_JOB_TOKEN = {TOKEN} ]",
                runner.flags.word(&config)
            );
            runner.sources(&sources).expect_code(0);
            let script =
                "env; cat $0; cat /proc/*/environ | tr '\\0' '\\n' || true; cat .git/config .git/modules/a/b/config; cd $CI_PROJECT_DIR.tmp; tail -n +1 *; ls -A
export X_TOKEN=$(echo minted) && echo \"$X_TOKEN\" && export MY_PASSWORD=\"of my own\"; echo $MY_PASSWORD";
            let result = runner.script(script);
            for secret in [TOKEN, "c2Vjcm", "'odd' \"$x\"", "precious"] {
                assert!(!result.stdout.contains(secret), "{secret} in {:?}: {}", runner.flags, result.stdout);
            }
            for seen in [
                "GREETING=it's \"fine\" $x\n",
                "ADDRESS=https://ci:MASKED@example.org/x\n",
                "AFTER_ALL=seen\n",
                "plain text\n",
                "CI_JOB_TOKEN=\n",
                "url = https://ci:MASKED@example.org/x\n",
                "KUBECONFIG\nOTHER\nPLAIN\n",
                "\nminted\nof my own\n",
            ] {
                assert!(result.stdout.contains(seen), "no {seen} in {:?}: {}", runner.flags, result.stdout);
            }
            result.expect_code(0).expect_stderr("CI_JOB_TOKEN, DEPLOY_KEY");
            runner.end();
        }
    }
}

#[test]
fn what_gitlab_says_in_public_is_no_secret_and_what_a_job_overrides_is_one() {
    let mut runner = Runner::begun(Caller::Own);
    let variable =
        |key: &str, value: &str, public| json!({"key": key, "value": value, "public": public, "masked": false});
    let response = json!({
        "token": TOKEN, "job_info": {"project_id": 7},
        "variables": [variable("CI_REGISTRY", "registry.example.org", true), variable("DOCKER_DRIVER", "overlay-two", true),
            variable("DEPLOY_TOKEN", "the real one", false), variable("DEPLOY_TOKEN", "x", true)],
    });
    let file = runner.path("runner/response.json");
    fs::write(&file, response.to_string()).unwrap();
    runner.environment.insert("JOB_RESPONSE_FILE".to_owned(), file.display().to_string());
    for (name, value) in [
        ("CI_REGISTRY", "registry.example.org"),
        ("CI_JOB_TOKEN", "x"),
        ("DEPLOY_TOKEN", "x"),
        ("IMAGE", "registry.example.org/a:1"),
        ("A", TOKEN),
        ("B", "the real one"),
        ("DOCKER_HOST", "tcp://docker:1"),
    ] {
        runner.set(name, value);
    }
    runner.sources("").expect_code(0);
    let result = runner.script("echo \"$IMAGE $A $B ($CI_REGISTRY) overlay-two tcp://docker:1\"").expect_code(0);
    result.expect_stdout("\nregistry.example.org/a:1 MASKED MASKED () overlay-two MASKED\n");
    fs::write(&file, "{").unwrap();
    runner.script("true").expect_code(72).expect_stderr("response.json");
    runner.end();
}

#[test]
fn exit_codes_tell_a_failing_job_from_a_failing_host() {
    for caller in callers() {
        let mut runner = Runner::begun(caller);
        runner.sources("").expect_code(0);
        let code = runner.path("runner/code");
        for exit in [0, 1, 2, 71, 72, 124, 125, 126, 127, 128, 255] {
            if code.exists() {
                fs::remove_file(&code).unwrap();
            }
            runner.script(&format!("exit {exit}")).expect_code(if exit == 0 { 0 } else { 71 });
            assert_eq!(fs::read_to_string(&code).ok(), (exit != 0).then(|| exit.to_string()));
        }
        for (signal, exit) in [("KILL", "137"), ("SEGV", "139")] {
            // The shell of the script itself.
            runner.stage("step_script", &format!("kill -{signal} $$")).expect_code(71);
            assert_eq!(fs::read_to_string(&code).unwrap(), exit);
        }
        runner.stage("get_sources", "exit 128").expect_code(71);
        // A script in no encoding.
        let script = runner.path("runner/script");
        fs::write(&script, b"echo '\xff\xfe' | od -An -tx1; exit 3").unwrap();
        let run = |words: &[&str], stage: &str, script: &Path| {
            runner.executor(&[words, &["ci", "gitlab", "run", &script.display().to_string(), stage]].concat()).output()
        };
        run(&[], "step_script", &script).expect_code(71).expect_stdout(" ff fe 0a");
        for stage in ["get_sources", "step_script"] {
            run(&[], stage, Path::new("/no/such/script")).expect_code(72).expect_stderr("/no/such/script");
        }
        run(&["-p", "nosuch"], "step_script", &script).expect_code(72).expect_stderr("nosuch");
        run(&["-p", "minimal"], "step_script", &script).expect_code(72).expect_stderr("not allowed");
        let prepare = |profile: &str| runner.executor(&["-p", profile, "ci", "gitlab", "prepare"]).output();
        prepare("nosuch").expect_code(72).expect_stderr("nosuch");
        prepare("minimal").expect_code(72).expect_stderr("not allowed");
        // A profile that the job left.
        let profile = runner.folder.join("job/builds/open.json");
        fs::write(&profile, json!({"name": "open", "binds": [{"source": "/", "target": "/"}]}).to_string()).unwrap();
        own(&profile, caller);
        run(&["-p", &profile.display().to_string()], "step_script", &script)
            .expect_code(72)
            .expect_stderr("lies in the workspace");
        runner.end();
        runner.script("true").expect_code(72).expect_stderr("cannot find the job's folder");
        runner.environment.clear();
        runner.script("true").expect_code(72).expect_stderr("config_exec");
        runner.executor(&["ci", "gitlab", "prepare"]).output().expect_code(72).expect_stderr("config_exec");
        runner.cleanup().expect_code(0);
    }
}

#[test]
fn only_folders_of_jobs_are_used_and_removed() {
    for caller in callers() {
        let mut runner = Runner::begun(caller);
        let base = runner.path("builds");
        let name = "shannot-job-0123456789abcdef";
        let mut refused = vec![
            runner.path("home"),
            base.clone(),
            "/".into(),
            name.into(),
            base.join("shannot-job-1"),
            base.join("../builds/.."),
        ];
        let make = |path: PathBuf, mode| {
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            own(&path, caller);
            path
        };
        refused.push(make(base.join(name), 0o750));
        let link = base.join("shannot-job-00000000000000aa");
        symlink(&runner.folder, &link).unwrap();
        refused.push(link.clone());
        if is_root() {
            let theirs = base.join("shannot-job-00000000000000bb");
            fs::create_dir(&theirs).unwrap();
            let other = if caller == Caller::Nobody { 1 } else { NOBODY };
            std::os::unix::fs::chown(&theirs, Some(other), None).unwrap();
            refused.push(theirs);
        }
        let real = runner.environment.clone();
        for path in refused {
            runner.environment.insert("SHANNOT_GITLAB_FOLDER".to_owned(), path.display().to_string());
            runner.cleanup().expect_code(72);
            runner.script("true").expect_code(72);
            assert!(
                path.is_relative() || path.ends_with("shannot-job-1") || path.symlink_metadata().is_ok(),
                "{path:?}"
            );
        }
        // A place that others can write to, or that can't be made.
        for mode in [0o777, 0o770] {
            let shared = runner.path(&format!("shared{mode:o}"));
            make(shared.clone(), mode);
            let config = |path: &Path| {
                runner.executor(&["ci", "gitlab", "config", "--builds", &path.display().to_string()]).output()
            };
            config(&shared).expect_code(72).expect_stderr("hint: --builds DIR");
            config(&shared.join("below")).expect_code(72).expect_stderr("hint: --builds DIR");
            config(Path::new("/proc/no/such")).expect_code(72).expect_stderr("/proc/no/such");
            config(Path::new("relative")).expect_code(72).expect_stderr("relative");
        }
        runner.environment = real;
        runner.cleanup().expect_code(0);
        assert!(!runner.folder.exists());
    }
}

#[test]
fn a_hostile_tree_is_removed_and_what_it_leads_to_is_not() {
    for caller in callers() {
        let runner = Runner::begun(caller);
        let home = runner.path("home").display().to_string();
        let hostile = format!(
            "cd $CI_PROJECT_DIR.tmp/..; ln -s {home} link; ln -s {home}/.ssh/id_ed25519 file; mkfifo fifo; mkdir -p a/b; ln -s {home} a/b/c
touch ./-rf $'new\\nline' a/b/x; chmod 000 a/b; chmod 500 a; chmod 000 .; chmod 000 ../..\n\
for i in $(seq 600); do mkdir -p $(printf 'd%.0s' $(seq 200)); cd d* 2>/dev/null || break; done; true"
        );
        runner.sources(&hostile);
        runner.script("true").expect_code(71);
        runner.end();
        assert_eq!(fs::read_to_string(runner.path("home/.ssh/id_ed25519")).unwrap(), "precious");
    }
}

#[test]
fn what_a_killed_runner_left_goes_with_a_later_job() {
    for caller in callers() {
        let mut runner = Runner::begun(caller);
        let (old, young) = (runner.folder.clone(), {
            runner.begin(&[]);
            runner.folder.clone()
        });
        let age = |folder: &Path| {
            let then = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
            fs::File::open(folder).unwrap().set_modified(then).unwrap();
        };
        // One that a stage works in is not left, however old it is.
        age(&old);
        age(&young);
        fs::write(runner.path("runner/long"), "echo begun; exec sleep 1000").unwrap();
        let script = runner.path("runner/long").display().to_string();
        let mut stage = runner.executor(&["ci", "gitlab", "run", &script, "get_sources"]);
        let mut child = stage.command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "begun\n");
        age(&young);
        let other = runner.path("builds/else");
        DirBuilder::new().mode(0o700).create(&other).unwrap();
        age(&other);
        runner.begin(&[]);
        assert!(!old.exists() && young.exists() && other.exists());
        child.kill().unwrap();
        child.wait().unwrap();
        // What the killed stage left.
        assert_eq!(fs::read_dir(&young).unwrap().count(), 2);
        for _ in 0..100 {
            age(&young);
            let environment = runner.environment.clone();
            runner.begin(&[]);
            runner.cleanup().expect_code(0);
            runner.environment = environment;
            if !young.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!young.exists());
        fs::remove_dir(&other).unwrap();
        runner.end();
    }
}

#[test]
fn caches_are_kept_for_the_project_that_gitlab_names_and_shown_to_the_stages_of_caches() {
    for caller in callers() {
        let mut runner = Runner::new(caller);
        let cache = runner.path("cache").display().to_string();
        let words = ["--cache", cache.as_str()];
        runner.config(&words).expect_code(72).expect_stderr("JOB_RESPONSE_FILE");
        let response = runner.path("runner/response.json");
        let job = |runner: &mut Runner, project: u64| {
            fs::write(&response, json!({"job_info": {"project_id": project}, "variables": []}).to_string()).unwrap();
            let environment = BTreeMap::from([("JOB_RESPONSE_FILE".to_owned(), response.display().to_string())]);
            runner.environment = environment;
            runner.set("CI_PROJECT_ID", "1");
            runner.begin(&words)["cache_dir"].as_str().unwrap().to_owned()
        };
        let folder = job(&mut runner, 7);
        assert_eq!(folder, format!("{cache}/7"));
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let fill = format!("{}mkdir -p {folder}/key; echo cached >{folder}/key/cache.zip", runner.exports());
        runner.stage("archive_cache", &fill).expect_code(0);
        runner.sources(&format!("[ ! -e {folder} ]")).expect_code(0);
        runner.script(&format!("[ ! -e {cache} ]")).expect_code(0);
        runner.end();
        let again = job(&mut runner, 7);
        runner.stage("restore_cache", &format!("cat {again}/key/cache.zip")).expect_code(0).expect_stdout("cached");
        runner.end();
        let other = job(&mut runner, 8);
        let result = runner.stage("restore_cache", &format!("ls -R {cache}; echo done; touch {other}/x {cache}/y"));
        assert!(!result.stdout.contains("key"), "{result:?}");
        assert!(Path::new(&other).join("x").exists() && !Path::new(&cache).join("y").exists());
        runner.end();
    }
}

#[test]
fn where_namespaces_are_refused_jobs_are_too_before_they_begin() {
    for caller in callers() {
        let runner = Runner::begun(caller);
        let script = runner.path("runner/script");
        fs::write(&script, "echo ran").unwrap();
        // An outer user namespace in which no more can be made; what follows has no capability in it.
        let refuse = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs \"$@\"";
        let script = script.display().to_string();
        for words in [&["prepare"][..], &["run", &script, "get_sources"], &["run", &script, "step_script"]] {
            let host = Shannot::through(caller, Path::new("/usr/bin/unshare"), ["-Ur", "sh", "-c", refuse, "sh"]);
            let mut run =
                host.args([binary()]).args(["ci", "gitlab"]).args(words).env("SYSTEM_FAILURE_EXIT_CODE", "72");
            run.command
                .envs(&runner.environment)
                .envs(runner.variables.iter().map(|(name, value)| (format!("CUSTOM_ENV_{name}"), value)));
            run.command.env("HOME", runner.path("home"));
            let result = run.output().expect_code(72).expect_stderr("user namespaces").expect_stderr("hint: ");
            assert!(!result.stdout.contains("ran"), "{result:?}");
        }
        runner.end();
    }
}

#[test]
fn a_job_that_is_cancelled_ends_with_all_that_it_started() {
    for caller in callers() {
        let runner = Runner::begun(caller);
        runner.sources("").expect_code(0);
        let script = runner.path("runner/script");
        let lines = format!("{}echo begun; sleep 1717 & sleep 1717", runner.exports());
        fs::write(&script, runner.flags.script(&lines)).unwrap();
        let mut run = runner.executor(&["ci", "gitlab", "run", &script.display().to_string(), "step_script"]);
        // As the runner does: to the process group that it made.
        let mut child = run
            .command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        assert_eq!(line, "begun\n");
        let started = std::time::Instant::now();
        let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert!(started.elapsed() < Duration::from_secs(60), "{status:?}");
        assert_eq!(status.code(), Some(71));
        assert_eq!(running("1717"), 0);
        assert_eq!(fs::read_dir(&runner.folder).unwrap().count(), 1);
        runner.end();
    }
}
