//! Nothing outside the writable paths is created, changed or deleted; what is not bound or hidden can't be read.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::support::*;

#[test]
fn a_read_only_bind_can_be_read_and_not_changed() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", caller);
        fs::write(folder.join("file"), "content").unwrap();
        own(&folder.join("file"), caller);
        let profile = with_binds(&[json!({"source": folder, "target": "/data"})], json!({}));
        sh(caller, &profile, "cat /data/file").expect_code(0).expect_stdout("content");
        for script in [
            "echo x > /data/file",
            "rm /data/file",
            "touch /data/new",
            "mv /data/file /data/f2",
            "chmod 777 /data/file",
        ] {
            sh(caller, &profile, script).expect_stderr("Read-only file system");
        }
        sh(caller, &profile, "ln /data/file /tmp/f").expect_stderr("ln:");
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "content");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}

#[test]
fn a_writable_bind_can_be_changed_and_nothing_around_it() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("work", caller);
        let bind = json!({"source": folder, "target": "/work", "read_only": false});
        sh(caller, &with_binds(&[bind], json!({})), "echo new > /work/file && mkdir /work/sub && ! touch /work/../x")
            .expect_code(0);
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "new\n");
        assert!(!scratch.path().join("x").exists());
    }
}

#[test]
fn only_tmpfs_and_devices_can_be_written() {
    for caller in callers() {
        let result = sh(
            caller,
            &base_profile(),
            "find / -path /proc -prune -o \\( -type f -o -type d \\) -writable -print 2>/dev/null; touch /tmp/x && test -e /tmp/x",
        )
        .expect_code(0);
        let nodes = ["/dev/full", "/dev/null", "/dev/pts", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"];
        let mut writable: Vec<&str> = result.stdout.lines().filter(|path| !nodes.contains(path)).collect();
        writable.sort_unstable();
        assert_eq!(writable, ["/dev/shm", "/tmp"], "{caller:?}");
        for path in ["/", "/etc", "/usr", "/dev", "/home"] {
            sh(caller, &base_profile(), &format!("touch {path}/shannot-canary")).expect_code(1);
            assert!(!std::path::Path::new(path).join("shannot-canary").exists());
        }
    }
}

#[test]
fn submounts_are_read_only_too() {
    if !is_root() || tool("unshare").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let folder = scratch.folder("tree", Caller::Own);
    fs::create_dir(folder.join("sub")).unwrap();
    let path =
        scratch.file("p.json", with_binds(&[json!({"source": folder, "target": "/tree"})], json!({})).to_string());
    // The mount is made in a namespace of the test's own, so that nothing is left if it fails.
    let script = format!(
        "mount -t tmpfs none {0}/sub && echo kept > {0}/sub/file && {1} -p {2} run sh -c 'cat /tree/sub/file; echo x > /tree/sub/file'",
        folder.display(),
        binary().display(),
        path.display()
    );
    let output = std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    Result::new(output).expect_stdout("kept").expect_stderr("Read-only file system");
}

#[test]
fn what_is_not_bound_does_not_exist_and_what_is_hidden_cannot_be_read() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", caller);
        for name in ["open", "secret"] {
            fs::write(folder.join(name), name).unwrap();
            own(&folder.join(name), caller);
        }
        fs::create_dir(folder.join("vault")).unwrap();
        own(&folder.join("vault"), caller);
        fs::write(folder.join("vault/key"), "key").unwrap();
        let bind = json!({"source": folder, "target": "/data"});
        let hide = json!({"hide": ["/data/secret", "/data/vault", "/data/not-there"]});
        let profile = with_binds(&[bind], hide);
        sh(caller, &profile, "cat /data/open").expect_code(0).expect_stdout("open");
        for path in ["/data/secret", "/data/vault/key"] {
            let result = sh(caller, &profile, &format!("chmod 777 {path}; cat {path}")).expect_code(1);
            assert_eq!(result.stdout, "", "{result:?}");
        }
        sh(caller, &profile, "ls /data/vault").expect_stderr("Permission denied");
        sh(caller, &profile, &format!("cat {}", folder.join("open").display())).expect_stderr("No such file");
    }
}

#[test]
fn a_hidden_path_stays_hidden_under_another_name_and_below_a_wider_bind() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("home", caller);
        fs::create_dir(folder.join(".ssh")).unwrap();
        fs::write(folder.join(".ssh/id"), "secret").unwrap();
        own(&folder.join(".ssh"), caller);
        own(&folder.join(".ssh/id"), caller);
        let hidden = folder.join(".ssh");
        let profile = profile(json!({"hide": [hidden]}));
        for (option, at) in [
            ("--ro", format!("{0}:{0}", folder.display())),
            ("--rw", folder.display().to_string()),
            ("--ro", format!("{}:/mnt", folder.display())),
            ("--ro", format!("{}:/mnt", scratch.path().display())),
        ] {
            let run = Shannot::new(caller).profile(&profile).args(["run", option, &at, "grep", "-r", "secret", "/mnt"]);
            assert_eq!(run.output().stdout, "", "{option} {at}");
            let place = folder.display().to_string();
            let run = Shannot::new(caller).profile(&profile).args(["run", option, &at, "grep", "-r", "secret", &place]);
            assert_eq!(run.output().stdout, "", "{option} {at}");
        }
        // Naming the hidden path itself is asking for it.
        let asked = hidden.display().to_string();
        let run = Shannot::new(caller).profile(&profile).args(["run", "--ro", &asked, "grep", "-r", "secret", &asked]);
        run.output().expect_code(0).expect_stdout("secret");
    }
}

#[test]
fn targets_never_create_anything_on_the_host() {
    for caller in callers() {
        let scratch = Scratch::new();
        let outer = scratch.folder("outer", caller);
        let inner = scratch.folder("inner", caller);
        symlink(&inner, outer.join("absolute")).unwrap();
        symlink("../inner", outer.join("relative")).unwrap();
        let writable = json!({"source": outer, "target": "/outer", "read_only": false});
        for target in ["/outer/new", "/outer/new/deep", "/outer/absolute/x", "/outer/relative/x"] {
            let bind = json!({"source": "/etc", "target": target});
            let profile = with_binds(&[writable.clone(), bind], json!({}));
            let result = sh(caller, &profile, "true").expect_code(125);
            assert!(result.stderr.contains(target) && result.stderr.contains("hint: "), "{result:?}");
        }
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&outer).unwrap().count(), 2);
    }
}

#[test]
fn ordinary_links_inside_go_on_working() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("var", caller);
        symlink("/run", folder.join("run")).unwrap();
        let bind = json!({"source": folder, "target": "/var"});
        // The target lies behind a link that leads to a tmpfs of the sandbox's own.
        let changes = json!({"tmpfs_paths": ["/run", "/tmp"], "additional_args": ["--dir", "/var/run/made"]});
        sh(caller, &with_binds(&[bind], changes), "test -d /run/made && touch /run/made/x").expect_code(0);
        assert!(!std::path::Path::new("/run/made").exists());
    }
}

#[test]
fn a_file_outside_cannot_be_opened_again_through_a_descriptor() {
    for caller in callers() {
        let scratch = Scratch::new();
        let log = scratch.file("log", "precious\n");
        own(&log, caller);
        let script = "echo more; cat /proc/self/fd/1 2>/dev/null; : > /proc/self/fd/1; : > /dev/stdout";
        let mut run = Shannot::new(caller).profile(&base_profile()).args(["run", "bash", "-c", script]);
        run.command.stdout(fs::File::options().append(true).open(&log).unwrap());
        run.command.status().unwrap();
        // Written through the descriptor, never emptied by opening it again.
        assert_eq!(fs::read_to_string(&log).unwrap(), "precious\nmore\n");
    }
}

#[test]
fn the_working_directory_is_resolved_inside() {
    for caller in callers() {
        let run = Shannot::new(caller).profile(&base_profile()).args(["run", "--chdir", "/proc/self/fd/1", "true"]);
        run.output().expect_code(125).expect_stderr("change to directory");
        let run = Shannot::new(caller).profile(&base_profile()).args(["run", "--chdir", "/usr/lib", "pwd"]);
        run.output().expect_code(0).expect_stdout("/usr/lib\n");
    }
}

#[test]
fn a_source_that_leads_to_proc_is_proc_and_none_leads_to_what_the_new_root_is_built_on() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("mine", caller);
        fs::write(folder.join("file"), "").unwrap();
        let link = |name: &str, to: &str| {
            symlink(to, folder.join(name)).unwrap();
            json!({"source": folder.join(name), "target": format!("/{name}"), "read_only": false})
        };
        let binds = [link("proc-link", "/proc"), link("cwd-link", "/proc/self/cwd"), link("root-link", "/")];
        // With the host's /proc, which Landlock has to guard.
        let script = "ls /cwd-link; ls /root-link | head -n 1; for f in /proc-link/sys/kernel/core_pattern \
                      /proc-link/timer_list /root-link/proc/1/status; do cat $f >/dev/null && echo read $f; done; \
                      (: >>/proc-link/sys/kernel/core_pattern) && echo written";
        let profile = with_binds(&binds, json!({}));
        let mut run = Shannot::new(caller).profile(&profile).args(["run", "sh", "-c", script]);
        run.command.current_dir(&folder);
        let result = run.output();
        if result.stderr.contains("only Landlock would keep") {
            skip("no Landlock here");
            continue;
        }
        let lines: Vec<&str> = result.stdout.lines().collect();
        assert_eq!(lines.last(), Some(&"read /proc-link/sys/kernel/core_pattern"), "{result:#?}");
        assert!(lines.contains(&"file") && !lines.contains(&"host") && !lines.contains(&"written"), "{result:#?}");
    }
}

#[test]
fn the_hosts_tree_comes_without_its_procfs_however_it_is_bound() {
    for caller in callers() {
        let profile = json!({
            "name": "test", "environment": {"PATH": "/usr/bin:/bin"}, "workdir": "/",
            "additional_args": ["--ro-bind", "/", "/"],
        });
        let result = sh(caller, &profile, "cat /proc/1/status");
        assert!(!result.stdout.contains("Name:"), "{result:#?}");
        let own = json!({"additional_args": ["--ro-bind", "/", "/", "--proc", "/proc"]});
        let own = own.as_object().unwrap().iter().fold(profile, |mut profile, (key, value)| {
            profile[key] = value.clone();
            profile
        });
        sh(caller, &own, "grep NSpid /proc/1/status").expect_code(0);
    }
}

/// What a profile wants empty below the current directory is so, and what is not there needs no place.
#[test]
fn an_empty_folder_below_the_current_one_is_empty() {
    for caller in callers() {
        for has_cache in [false, true] {
            let scratch = Scratch::new();
            let home = scratch.folder("home", caller);
            if has_cache {
                let cache = scratch.folder("home/.cache", caller);
                fs::write(cache.join("file"), "x").unwrap();
            }
            let mut options: Vec<&[&str]> = vec![&[]];
            options.push(&["--rw", "."]);
            for words in options {
                let script = "ls -A .cache; touch .cache/new && rm .cache/new; true";
                let mut run =
                    Shannot::new(caller).args(["run", "-p", "host"]).args(words).args(["--", "sh", "-c", script]);
                run.command.current_dir(&home).env("HOME", &home);
                let result = run.output().expect_code(0);
                assert_eq!(result.stdout, "", "{words:?}: {result:?}");
                assert_eq!(home.join(".cache").exists(), has_cache);
            }
        }
    }
}
