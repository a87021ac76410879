//! `shannot-bwrap` beyond what bubblewrap's own suite asks for: the holes that are closed, and that what is asked for is
//! in force, each as *works inside / denied inside*.

use std::fs;
use std::path::Path;

use crate::support::{Caller, Result, Scratch, Shannot, bwrap_binary, callers, is_root, tool};

/// A shell script of the caller's in a folder of its own, which knows the program as `$BWRAP`.
pub fn script(caller: Caller, folder: &Path, script: &str) -> Result {
    let mut run = Shannot::through(caller, Path::new("/bin/sh"), ["-c", script]);
    run.command.current_dir(folder).env("BWRAP", bwrap_binary());
    run.output()
}

/// A folder of the caller's.
pub fn folder(caller: Caller) -> (Scratch, std::path::PathBuf) {
    let scratch = Scratch::new();
    let folder = scratch.folder("work", caller);
    (scratch, folder)
}

#[test]
fn no_link_and_no_dots_in_a_destination_reach_the_host() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let work = folder.display();
        let host = folder.join("host");
        fs::create_dir(&host).unwrap();
        crate::support::own(&host, caller);
        let tries = [
            // GHSA-pxhw-h44j-8pfx, as measured on 0.11.1 and 0.8.0.
            format!("--ro-bind /usr /usr --symlink ../../oldroot{work}/host /tmp/l --dir /tmp/l/E"),
            format!("--ro-bind /usr /usr --symlink {work}/host /l --dir /l/E"),
            format!("--ro-bind / / --tmpfs /run --symlink /../../../..{work}/host /run/l --file 3 /run/l/E"),
            format!("--ro-bind / / --tmpfs /run --dir /run/../../../..{work}/host/E"),
            // Through descriptors and other processes.
            "--ro-bind / / --tmpfs /run --symlink /proc/self/fd/9 /run/l --dir /run/l/E".to_owned(),
            "--ro-bind / / --tmpfs /run --symlink /proc/self/cwd/host /run/l --dir /run/l/E".to_owned(),
            format!("--ro-bind / / --tmpfs /run --symlink /proc/1/root{work}/host /run/l --dir /run/l/E"),
            format!("--ro-bind / / --tmpfs /run --symlink /proc/self/root{work}/host /run/l --bind /usr /run/l/E"),
            // A mount on a link would be a mount somewhere else.
            format!("--ro-bind / / --tmpfs /run --symlink {work}/host /run/l --tmpfs /run/l"),
        ];
        for options in tries {
            for way in ["", "--debug-opt=force-openat-fallback "] {
                // What it ends with is not the point; most of them can't be.
                script(caller, &folder, &format!("\"$BWRAP\" {way}{options} true 9<host 3</etc/hostname"));
                assert_eq!(fs::read_dir(&host).unwrap().count(), 0, "{options}");
            }
        }
        // What is asked for works: the folder is bound, so the link leads into it.
        let options = format!("--ro-bind / / --bind {work}/host {work}/host --tmpfs /run --symlink {work}/host /run/l");
        script(caller, &folder, &format!("\"$BWRAP\" {options} --dir /run/l/made true")).expect_code(0);
        assert!(host.join("made").is_dir());
    }
}

#[test]
fn no_source_leads_to_what_the_new_root_is_built_on() {
    let system = "--ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64";
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        fs::write(folder.join("mine"), "").unwrap();
        std::os::unix::fs::symlink("/proc/self/cwd", folder.join("link")).unwrap();
        for source in ["/proc/self/cwd", "link", "/proc/self/fd/9", "/proc/thread-self/cwd"] {
            let line = format!("\"$BWRAP\" {system} --bind {source} /x ls /x 9<.");
            assert_eq!(script(caller, &folder, &line).expect_code(0).stdout, "link\nmine\n", "{source}");
        }
        // Numbers of ours, if they are any.
        for fd in 3..8 {
            let line = format!("\"$BWRAP\" {system} --bind-try /proc/self/fd/{fd} /x ls /x");
            assert!(!script(caller, &folder, &line).stdout.contains("host"), "{fd}");
        }
    }
}

#[test]
fn what_is_mounted_is_complete_before_others_can_change_its_name() {
    if !is_root() {
        return;
    }
    // A folder of somebody else's, who swaps it with a link to a folder of root's all the time.
    let (scratch, folder) = folder(Caller::Nobody);
    let victim = scratch.folder("victim", Caller::Own);
    fs::create_dir(folder.join("d")).unwrap();
    std::os::unix::fs::symlink(&victim, folder.join("l")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let (d, l) = (folder.join("d"), folder.join("l"));
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &d, nix::fcntl::AT_FDCWD, &l, flags).unwrap();
            }
        });
        for _ in 0..150 {
            let line = "\"$BWRAP\" --bind / / --unshare-pid --dev $PWD/d true; \
                        \"$BWRAP\" --bind / / --unshare-pid --proc $PWD/d grep ' proc proc ' /proc/self/mountinfo";
            script(Caller::Own, &folder, line);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
}

#[test]
fn a_descriptor_binds_what_it_names_and_nothing_that_has_taken_its_place() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let result = script(
            caller,
            &folder,
            "mkdir a b; echo one >a/f; echo two >b/f; exec 5<a; \
             \"$BWRAP\" --ro-bind / / --tmpfs /run --ro-bind-fd 5 /run/x cat /run/x/f; \
             mv a c; mv b a; \
             \"$BWRAP\" --ro-bind / / --tmpfs /run --ro-bind-fd 5 /run/x cat /run/x/f; \
             ln -s /etc/hostname link; mv c d; mkdir c; \
             \"$BWRAP\" --ro-bind / / --tmpfs /run --bind /proc/self/fd/5 /run/x cat /run/x/f",
        );
        // The kernel knows the new name of what was moved.
        assert_eq!(result.stdout, "one\none\none\n", "{result:#?}");
        let gone = script(
            caller,
            &folder,
            "mkdir e; exec 5<e; rmdir e; \"$BWRAP\" --ro-bind / / --tmpfs /run --bind-fd 5 /run/x true",
        );
        gone.expect_code(1).expect_stderr("bwrap: ");
    }
}

#[test]
fn sysctls_of_real_root_are_read_only() {
    let (_scratch, folder) = folder(Caller::Own);
    let write = "cat /proc/sys/kernel/hostname >/dev/null && echo read; \
                 (echo x >/proc/sys/kernel/core_pattern) 2>&1; (echo h >/proc/sysrq-trigger) 2>&1";
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for options in ["", "--unshare-user", "--unshare-pid", "--unshare-all --cap-drop ALL"] {
        let line = format!("\"$BWRAP\" --dev-bind / / {options} --proc /proc sh -c '{write}'");
        let result = script(Caller::Own, &folder, &line).expect_stdout("read");
        let refused = result.stdout.matches(if is_root() { "Read-only file system" } else { "Permission denied" });
        assert!(refused.count() >= 1, "{options}: {result:#?}");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
    }
}

#[test]
fn the_mode_of_the_hosts_proc_stays() {
    let mode = || fs::metadata("/proc").unwrap().permissions();
    let (_scratch, folder) = folder(Caller::Own);
    let before = mode();
    let line =
        |options: &str| format!("\"$BWRAP\" --ro-bind / / {options} --proc /mnt --chmod 0711 /mnt stat -c %a /mnt");
    let refused = script(Caller::Own, &folder, &line(""));
    let after = mode();
    if after != before {
        // Not to leave it so.
        fs::set_permissions("/proc", before.clone()).unwrap();
    }
    assert_eq!(after, before);
    refused.expect_code(1).expect_stderr("bwrap: Can't chmod 0711 /mnt: Operation not permitted");
    if is_root() {
        assert_eq!(script(Caller::Own, &folder, &line("--unshare-pid")).stdout, "711\n");
    }
}

#[test]
fn binds_can_be_written_or_not_as_asked_and_submounts_too() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let work = folder.display();
        let options = format!("--ro-bind / / --bind {work} {work} --ro-bind {work}/ro {work}/ro --dev /dev");
        let line = format!(
            "mkdir ro; \"$BWRAP\" {options} sh -c 'echo x >new && echo written; echo x >ro/new; echo x >/etc/new; \
             echo x >/dev/null && echo device'"
        );
        let result = script(caller, &folder, &line).expect_stdout("written").expect_stdout("device");
        assert_eq!(result.stderr.matches("Read-only file system").count(), 2, "{result:#?}");
        assert!(folder.join("new").exists() && !folder.join("ro/new").exists());
        assert!(!Path::new("/etc/new").exists());
    }
}

#[test]
fn capabilities_are_those_that_were_asked_for() {
    let sets = |text: &str| -> Vec<u64> {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        sets.iter().map(|name| u64::from_str_radix(value(name).unwrap(), 16).unwrap()).collect()
    };
    let net_raw = 1 << 13;
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let held = |options: &str| {
            let line = format!("\"$BWRAP\" --dev-bind / / {options} cat /proc/self/status");
            sets(&script(caller, &folder, &line).expect_code(0).stdout)
        };
        assert_eq!(held("--unshare-user --cap-drop ALL"), [0; 5]);
        assert_eq!(held("--unshare-user --cap-drop ALL --cap-add CAP_NET_RAW"), [net_raw; 5]);
        assert_eq!(held("--unshare-user --cap-drop ALL --cap-add 13"), [net_raw; 5]);
        if caller == Caller::Nobody || !is_root() {
            assert_eq!(held(""), [0; 5]);
        }
        let unknown = script(caller, &folder, "\"$BWRAP\" --dev-bind / / --cap-add NET_RAW true");
        unknown.expect_code(1).expect_stderr("bwrap: unknown cap: NET_RAW");
    }
}

#[test]
fn a_user_namespace_gives_root_nothing_that_it_did_not_have() {
    if !is_root() || tool("setpriv").is_none() {
        return;
    }
    let (_scratch, folder) = folder(Caller::Own);
    let work = folder.display();
    let line = |options: &str| {
        format!(
            "setpriv --bounding-set -sys_admin --inh-caps=-all \"$BWRAP\" {options} --ro-bind / / --ro-bind {work} {work} \
             sh -c 'mount -o remount,rw,bind {work} && echo x >{work}/new'"
        )
    };
    let refused = script(Caller::Own, &folder, &line("--unshare-user"));
    assert!(refused.code != 0 && !folder.join("new").exists(), "{refused:#?}");
}

#[test]
fn user_namespaces_can_be_turned_off_for_good() {
    if tool("unshare").is_none() {
        return;
    }
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let nested = "unshare -U true && echo nested";
        let line = |options: &str| format!("\"$BWRAP\" --unshare-user {options} --dev-bind / / sh -c '{nested}'");
        script(caller, &folder, &line("")).expect_stdout("nested");
        let off = script(caller, &folder, &line("--disable-userns"));
        assert!(!off.stdout.contains("nested"), "{off:#?}");
        let asserted = script(caller, &folder, &line("--assert-userns-disabled"));
        asserted.expect_code(1).expect_stderr("creation of new user namespaces was not disabled as requested");
    }
}

#[test]
fn a_network_namespace_shuts_off_the_hosts_sockets() {
    let Some(python) = tool("python3") else { return };
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let program = "import socket,subprocess,sys,os\n\
            s=socket.socket(socket.AF_UNIX); s.bind('\\0shannot-bwrap-test-%d' % os.getpid()); s.listen()\n\
            t='import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1].encode().decode(\"unicode_escape\"))'\n\
            n='\\\\0shannot-bwrap-test-%d' % os.getpid()\n\
            for o in ([], ['--unshare-net']):\n \
              r=subprocess.run([os.environ['BWRAP'],'--dev-bind','/','/',*o,sys.executable,'-c',t,n],stderr=subprocess.PIPE)\n \
              print(r.returncode, b'refused' in r.stderr)\n";
        let mut run = Shannot::through(caller, &python, ["-c", program]);
        run.command.current_dir(&folder).env("BWRAP", bwrap_binary());
        assert_eq!(run.output().stdout, "0 False\n1 True\n");
    }
}

#[test]
fn explain_shows_the_plan_and_says_what_is_weaker_than_it_could_be() {
    for caller in callers() {
        let line = ["bwrap", "--explain", "--bind", "/", "/", "--proc", "/proc", "--setenv", "A", "b c", "ls"];
        let result = Shannot::new(caller).args(line).output().expect_code(0);
        for part in
            ["bind / (rw)", "--setenv A \"b c\"", "lets the command change all that the caller can", "landlock-fs"]
        {
            assert!(result.stdout.contains(part), "no {part:?} in {}", result.stdout);
        }
    }
}

#[test]
fn the_profile_of_a_command_line_does_the_same_or_there_is_none() {
    for caller in callers() {
        let (scratch, folder) = folder(caller);
        let work = folder.display().to_string();
        let options =
            ["--unshare-all", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "--bind", &work, &work, "--chdir", &work];
        let line = ["bwrap", "--to-profile"].into_iter().chain(options).chain(["--setenv", "GREETING", "hi"]);
        let made = Shannot::new(caller).args(line).output().expect_code(0).expect_stderr("stricter: ");
        let profile: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
        assert_eq!(profile["binds"][1]["read_only"], false, "{profile:#}");
        let path = scratch.file("made.json", &made.stdout);
        let run = Shannot::new(caller).args(["-p", path.to_str().unwrap(), "run", "sh", "-c"]);
        run.args(["pwd; echo $GREETING; echo x >new; echo x >/etc/new"])
            .output()
            .expect_stdout(&format!("{work}\nhi\n"))
            .expect_stderr("Read-only file system");
        assert!(folder.join("new").exists());

        // The order matters here, so it is kept as options.
        let line = ["bwrap", "--to-profile", "--ro-bind", "/usr", "/usr", "--tmpfs", "/usr/share"];
        let kept = Shannot::new(caller).args(line).output().expect_code(0);
        assert!(kept.stdout.contains("additional_args") && !kept.stdout.contains("tmpfs_paths"), "{kept:#?}");

        let line = ["bwrap", "--to-profile", "--cap-add", "CAP_KILL", "--uid", "0", "--ro-bind", "/", "/"];
        let none = Shannot::new(caller).args(line).output().expect_code(1);
        none.expect_stderr("no profile does the same: --cap-add").expect_stderr("--uid");
    }
}

#[test]
fn overlays_keep_changes_where_they_belong() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let work = folder.display();
        let prepare = "mkdir -p 'low,:er' low2 up work; echo 1 >'low,:er/a'; echo 2 >low2/a; echo 2 >low2/b; ";
        let overlay = "\"$BWRAP\" --ro-bind / / --tmpfs /run --overlay-src 'low,:er' --overlay-src low2";
        let show = "sh -c 'cat /run/o/a /run/o/b; echo 3 >/run/o/b; cat /run/o/b'";
        let line = |top: &str| format!("{prepare}{overlay} {top} /run/o {show}");
        let temporary = script(caller, &folder, &line("--tmp-overlay"));
        if temporary.stderr.contains("overlay") {
            crate::support::skip("no overlayfs for this caller");
            continue;
        }
        assert_eq!(temporary.stdout, "2\n2\n3\n", "{temporary:#?}");
        let read_only = script(caller, &folder, &line("--ro-overlay"));
        read_only.expect_stdout("2\n2\n").expect_stderr("Read-only file system");
        assert_eq!(fs::read_dir(folder.join("up")).unwrap().count(), 0);
        let kept = script(caller, &folder, &line(&format!("--overlay {work}/up work")));
        assert_eq!(kept.stdout, "2\n2\n3\n", "{kept:#?}");
        assert_eq!(fs::read_to_string(folder.join("up/b")).unwrap(), "3\n");
        assert_eq!(fs::read_to_string(folder.join("low2/b")).unwrap(), "2\n");
    }
}
