//! What is hidden can't be read under any name that a bind gives it, and what is named on the command line is shown.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::*;

/// A home with things to hide, `alias` a link to it, and `vault` beside it, which its `.aws` is a link to.
struct Home {
    scratch: Scratch,
    caller: Caller,
    home: PathBuf,
}

impl Home {
    fn new(caller: Caller) -> Self {
        let scratch = Scratch::new();
        let home = scratch.folder("home", caller);
        for folder in ["home/.ssh", "home/work", "home/.config", "home/.config/gh", "vault"] {
            scratch.folder(folder, caller);
        }
        for file in ["home/.ssh/id", "home/.config/gh/hosts", "vault/token"] {
            own(&scratch.file(file, "secret"), caller);
        }
        for file in ["home/.ssh/known", "home/open", "home/work/file", "home/.config/plain"] {
            own(&scratch.file(file, "open"), caller);
        }
        symlink("home", scratch.path().join("alias")).unwrap();
        symlink("../vault", home.join(".aws")).unwrap();
        symlink("../.ssh", home.join("work/planted")).unwrap();
        Self { scratch, caller, home }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.scratch.path().join(path)
    }

    /// What can be read below `place`: the names of files with "secret" or "open" in them.
    fn look(&self, profile: &Value, options: &[String], place: &Path) -> (Vec<String>, Vec<String>) {
        let run = |word: &str| {
            let run = Shannot::new(self.caller).profile(profile).env("HOME", self.home.to_str().unwrap());
            let result = run.args(["run"]).args(options).args(["grep", "-rl", word]).args([place]).output();
            assert!(result.code < 3, "{result:?}");
            let name = |line: &str| line.rsplit('/').next().unwrap_or_default().to_owned();
            let mut names: Vec<String> = result.stdout.lines().map(name).collect();
            names.sort();
            names
        };
        (run("secret"), run("open"))
    }
}

fn hiding(paths: &[PathBuf], binds: &[Value]) -> Value {
    with_binds(binds, json!({"hide": paths}))
}

#[test]
fn links_and_dots_in_a_source_show_nothing_that_is_hidden() {
    for caller in callers() {
        let home = Home::new(caller);
        for source in ["alias", "home/work/..", "alias/work/../../home"] {
            let bind = json!({"source": home.at(source), "target": "/mnt"});
            let profile = hiding(&[home.at("home/.ssh"), home.at("home/.config/gh")], &[bind]);
            let (secrets, open) = home.look(&profile, &[], Path::new("/mnt"));
            assert!(secrets.is_empty(), "{source}: {secrets:?}");
            assert_eq!(open, ["file", "open", "plain"], "{source}");
        }
    }
}

#[test]
fn links_in_the_hidden_path_hide_what_they_lead_to() {
    for caller in callers() {
        let home = Home::new(caller);
        for (hidden, shown, others) in
            [("alias/.ssh", "home", vec!["file", "open", "plain"]), ("home/.aws", "vault", vec![])]
        {
            for target in [PathBuf::from("/mnt"), home.at(shown)] {
                let bind = json!({"source": home.at(shown), "target": target});
                let hidden = [home.at(hidden), home.at("home/.config/gh")];
                let (secrets, open) = home.look(&hiding(&hidden, &[bind]), &[], &target);
                assert!(secrets.is_empty(), "{hidden:?} at {target:?}: {secrets:?}");
                assert_eq!(open, others, "{hidden:?} at {target:?}");
            }
        }
    }
}

#[test]
fn a_bind_of_something_hidden_or_of_a_part_of_it_is_empty() {
    for caller in callers() {
        let home = Home::new(caller);
        for source in ["home/.ssh", "home/.ssh/id", "alias/.ssh", "home/work/planted", "home/work/planted/id"] {
            let bind = json!({"source": home.at(source), "target": "/mnt"});
            let profile = hiding(&[home.at("home/.ssh")], &[bind]);
            let run = Shannot::new(caller).profile(&profile).args(["run", "grep", "-r", "", "/mnt"]);
            let result = run.output().expect_code(2).expect_stderr("/mnt: Permission denied");
            assert_eq!(result.stdout, "", "{source}");
        }
    }
}

#[test]
fn a_path_inside_is_hidden_under_the_other_names_of_what_it_shows() {
    for caller in callers() {
        let home = Home::new(caller);
        let binds =
            [json!({"source": home.home, "target": "/data"}), json!({"source": home.scratch.path(), "target": "/mnt"})];
        let hidden = ["/data/.ssh", "/data/.config/gh", "/data/.aws"].map(PathBuf::from);
        let profile = hiding(&hidden, &binds);
        for place in ["/data", "/mnt"] {
            let (secrets, open) = home.look(&profile, &[], Path::new(place));
            // The link leads nowhere below /data: there is no vault to hide.
            let expected: &[&str] = if place == "/mnt" { &["token"] } else { &[] };
            assert_eq!(secrets, expected, "{place}");
            assert_eq!(open, ["file", "open", "plain"], "{place}");
        }
    }
}

#[test]
fn what_is_named_on_the_command_line_is_shown_and_nothing_around_it() {
    for caller in callers() {
        let home = Home::new(caller);
        let whole = json!({"source": home.home, "target": home.home});
        let hidden = [home.at("home/.ssh"), home.at("home/.config"), home.at("home/.config/gh")];
        let profile = hiding(&hidden, &[whole]);
        let text = |path: &str| home.at(path).display().to_string();
        let ro = |words: &[String]| -> Vec<String> {
            words.iter().flat_map(|word| ["--ro".to_owned(), word.clone()]).collect()
        };
        for (named, place, secrets, open) in [
            // By its own name, below a folder that stays hidden.
            (vec![text("home/.ssh/known")], text("home/.ssh"), vec![], vec!["known"]),
            (vec![text("home/.ssh/known"), text("home/.ssh/id")], text("home/.ssh"), vec!["id"], vec!["known"]),
            (vec![format!("{}:/mnt/file", text("home/.ssh/known"))], "/mnt".into(), vec![], vec!["file"]),
            (vec![text("home/.ssh")], text("home/.ssh"), vec!["id"], vec!["known"]),
            (vec![format!("{}:/mnt", text("home/.ssh"))], "/mnt".into(), vec!["id"], vec!["known"]),
            // What else is hidden stays so, also in what is named.
            (vec![text("home/.config")], text("home/.config"), vec![], vec!["plain"]),
            (vec![text("home/.config/gh")], text("home/.config"), vec!["hosts"], vec![]),
            // A link to it does not name it, whoever has made that.
            (vec![format!("{}:/mnt", text("alias"))], "/mnt".into(), vec![], vec!["file", "open"]),
        ] {
            let found = home.look(&profile, &ro(&named), Path::new(&place));
            let found = (found.0.iter().map(String::as_str).collect(), found.1.iter().map(String::as_str).collect());
            assert_eq!(found, (secrets, open), "{named:?} at {place} as {caller:?}");
        }
        let planted = format!("{}:/mnt", text("home/work/planted"));
        let run = Shannot::new(caller).profile(&profile).args(["run", "--ro", &planted, "ls", "/mnt"]);
        run.output().expect_code(2).expect_stderr("Permission denied");
        // The place that was made for it is no place to write.
        let (known, ssh) = (text("home/.ssh/known"), text("home/.ssh"));
        let script = format!("ls -A {ssh}; touch {ssh}/x; cat {ssh}/id");
        let run = Shannot::new(caller).profile(&profile).args(["run", "--ro", &known, "sh", "-c", &script]);
        let result = run.output().expect_stderr("Read-only file system").expect_stderr("No such file");
        assert_eq!(result.stdout, "known\n");
        assert_eq!(fs::read_dir(home.at("home/.ssh")).unwrap().count(), 2);
    }
}
