//! What `shannot-bwrap` is handed and hands on: descriptors, locks, namespaces, filters, the lives of its processes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bwrap::{folder, script};
use crate::support::{Caller, callers, is_root, tool};

#[test]
fn a_descriptor_that_is_named_twice_brings_its_data_twice() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let line = "printf data | \"$BWRAP\" --ro-bind / / --tmpfs /run --file 0 /run/a --ro-bind-data 0 /run/b --bind-data 0 /run/c \
                    sh -c 'cat /run/a /run/b /run/c; echo x >/run/c; echo x >/run/b'";
        let result = script(caller, &folder, line).expect_stderr("Read-only file system");
        assert_eq!(result.stdout, "datadatadata");
        // As codex does it.
        let line =
            "\"$BWRAP\" --ro-bind / / --tmpfs /run --ro-bind-data 7 /run/a --ro-bind-data 7 /run/b ls /run 7</dev/null";
        assert_eq!(script(caller, &folder, line).expect_code(0).stdout, "a\nb\n");
    }
}

#[test]
fn the_command_gets_what_the_caller_left_open_and_not_what_was_used_up() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let line = "printf -- '--dir\\0/run/made\\0' >args; \
                    \"$BWRAP\" --ro-bind / / --tmpfs /run --dev /dev --unshare-pid --proc /proc --args 3 --file 4 /run/f --sync-fd 6 \
                    --info-fd 7 --json-status-fd 8 sh -c 'ls -d /run/made; for fd in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$fd && echo $fd; done; true' \
                    3<args 4</etc/hostname 5</etc/passwd 6</etc/passwd 7>info 8>json 9>/dev/null";
        let result = script(caller, &folder, line).expect_code(0);
        let passed: Vec<&str> = result.stdout.lines().skip(1).collect();
        assert_eq!(passed, ["0", "1", "2", "5", "9"], "{result:#?}");
        let closed = script(caller, &folder, "\"$BWRAP\" --ro-bind / / --info-fd 33 true");
        closed.expect_code(1).expect_stderr("bwrap: Invalid fd: 33: Bad file descriptor");
    }
}

#[test]
fn what_is_told_outside_is_true() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let line = "\"$BWRAP\" --ro-bind / / --unshare-all --unshare-user --proc /proc --info-fd 7 --json-status-fd 8 \
                    sh -c 'stat -L -c %i /proc/self/ns/pid /proc/self/ns/mnt; kill -9 $$' 7>info 8>json";
        let result = script(caller, &folder, line).expect_code(137);
        let info: serde_json::Value = serde_json::from_str(&fs::read_to_string(folder.join("info")).unwrap()).unwrap();
        let inodes: Vec<String> =
            ["pid-namespace", "mnt-namespace"].iter().map(|name| info[name].to_string()).collect();
        assert_eq!(result.stdout.lines().collect::<Vec<_>>(), inodes);
        let json = fs::read_to_string(folder.join("json")).unwrap();
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["child-pid"], info["child-pid"]);
        assert_eq!(lines[1]["exit-code"], 137);
        // What was not executed has no exit code.
        let failed = "\"$BWRAP\" --ro-bind / / --json-status-fd 8 /nonexistent 8>json";
        script(caller, &folder, failed)
            .expect_code(1)
            .expect_stderr("bwrap: execvp /nonexistent: No such file or directory");
        assert!(!fs::read_to_string(folder.join("json")).unwrap().contains("exit-code"));
    }
}

#[test]
fn a_reader_that_goes_away_ends_nothing() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let line = "mkfifo json; head -c 1 json >/dev/null & \
                    \"$BWRAP\" --ro-bind / / --unshare-pid --json-status-fd 3 sh -c 'sleep 0.3; exit 7' 3>json";
        script(caller, &folder, line).expect_code(7);
    }
}

#[test]
fn a_pid_namespace_can_be_joined_or_be_the_parent_of_a_new_one() {
    if tool("unshare").is_none() {
        return;
    }
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let line = "mkfifo ready; unshare -U -r -p -f --kill-child --mount-proc sh -c 'echo >ready; exec sleep 30' & read x <ready; \
            outer=$(pgrep -P $!); exec 6</proc/$outer/ns/user 7</proc/$outer/ns/pid; \
            join='--dev-bind / / --userns 6 --pidns 7'; \
            \"$BWRAP\" $join sh -c 'readlink /proc/self/ns/pid; exit 3'; echo $?; readlink /proc/$outer/ns/pid; \
            \"$BWRAP\" $join --unshare-pid --proc /proc sh -c 'echo $$; exit 4'; echo $?; kill -9 $outer";
        let result = script(caller, &folder, line);
        let lines: Vec<&str> = result.stdout.lines().collect();
        assert!(lines.len() == 5 && lines[1] == "3" && lines[3] == "2" && lines[4] == "4", "{result:#?}");
    }
}

#[test]
fn a_filter_holds_for_the_command_and_for_process_1() {
    let Some(python) = tool("python3") else { return };
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        // LD nr; JEQ mkdir, mkdirat: ERRNO(EUCLEAN); ALLOW. The architecture is this one.
        let make = format!(
            "{} -c \"import struct,platform,sys; n={{'x86_64':(83,258),'aarch64':(34,34),'riscv64':(34,34)}}[platform.machine()]; \
             p=lambda *i: struct.pack('HBBI',*i); \
             sys.stdout.buffer.write(p(0x20,0,0,0)+p(0x15,1,0,n[0])+p(0x15,0,1,n[1])+p(6,0,0,0x50075)+p(6,0,0,0x7fff0000))\" >filter",
            python.display()
        );
        let inside = "grep Seccomp: /proc/1/status; mkdir /run/x";
        for option in ["--seccomp", "--add-seccomp-fd"] {
            let line = format!(
                "{make}; \"$BWRAP\" --ro-bind / / --tmpfs /run --unshare-pid --proc /proc {option} 3 sh -c '{inside}' 3<filter"
            );
            let result = script(caller, &folder, &line).expect_stdout("Seccomp:\t2");
            result.expect_stderr("Structure needs cleaning");
        }
        let without =
            "\"$BWRAP\" --ro-bind / / --tmpfs /run --unshare-pid --proc /proc sh -c 'mkdir /run/x && echo made'";
        script(caller, &folder, without).expect_stdout("made");
        // Its report comes through the filter too.
        let line = format!("{make}; \"$BWRAP\" --ro-bind / / --unshare-pid --seccomp 3 /nonexistent 3<filter");
        script(caller, &folder, &line).expect_code(1).expect_stderr("bwrap: execvp /nonexistent: No such file");
        let line = "printf 12345678 >odd; \"$BWRAP\" --ro-bind / / --seccomp 3 true 3<odd";
        script(caller, &folder, line)
            .expect_code(1)
            .expect_stderr("Unable to set up system call filtering as requested");
    }
}

#[test]
fn a_lock_is_held_as_long_as_the_sandbox_lives() {
    let Some(python) = tool("python3") else { return };
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let work = folder.display();
        // POSIX locks, which flock(1) knows nothing of.
        let attempt = format!(
            "{} -c \"import fcntl; fcntl.lockf(open('lock','a'), fcntl.LOCK_EX|fcntl.LOCK_NB)\" 2>/dev/null && echo free || echo taken",
            python.display()
        );
        let line = format!(
            "touch lock; mkfifo go ready; \"$BWRAP\" --ro-bind / / --bind {work} {work} --lock-file {work}/lock \
             sh -c 'echo >ready; cat go' & read x <ready; {attempt}; echo >go; wait; {attempt}"
        );
        assert_eq!(script(caller, &folder, &line).stdout, "taken\n\nfree\n");
        let missing = script(caller, &folder, "\"$BWRAP\" --ro-bind / / --lock-file /nonexistent true");
        missing.expect_code(1).expect_stderr("bwrap: Unable to open lock file /nonexistent: No such file");
    }
}

#[test]
fn the_block_fds_hold_the_command_back() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let line = "mkfifo go; \"$BWRAP\" --ro-bind / / --block-fd 3 echo started >out 3<>go & sleep 0.3; cat out; echo waited; \
                    echo >go; wait; cat out";
        assert_eq!(script(caller, &folder, line).stdout, "waited\nstarted\n");
    }
}

#[test]
fn others_can_map_the_ids() {
    if !is_root() {
        // As with the other caller in `callers`: no fault of the host's.
        eprintln!("skipped: only root can map more than its own ids");
        return;
    }
    let (_scratch, folder) = folder(Caller::Own);
    let line = "mkfifo go info; \
        \"$BWRAP\" --dev-bind / / --unshare-user --userns-block-fd 3 --info-fd 4 cat /proc/self/uid_map 3<>go 4>info & \
        pid=$(sed -n 's/.*child-pid\": \\([0-9]*\\).*/\\1/p' info); \
        echo '0 0 4000' >/proc/$pid/uid_map; echo '0 0 4000' >/proc/$pid/gid_map; echo >go; wait";
    let result = script(Caller::Own, &folder, line);
    assert_eq!(result.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "0", "4000"], "{result:#?}");
}

#[test]
fn ids_and_processes_inside_are_as_asked() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let line = "\"$BWRAP\" --ro-bind / / --dev /dev --unshare-user --uid 5 --gid 6 sh -c 'id -u; id -g'; \
                    \"$BWRAP\" --ro-bind / / --unshare-pid --as-pid-1 sh -c 'echo $$'; \
                    \"$BWRAP\" --ro-bind / / --unshare-pid sh -c 'echo $$'; \
                    \"$BWRAP\" --ro-bind / / --unshare-uts --hostname inside --argv0 other sh -c 'hostname; echo $0'";
        assert_eq!(script(caller, &folder, line).stdout, "5\n6\n1\n2\ninside\nother\n");
    }
}

/// Whether a process with this word in its command line lives.
fn lives(word: &str) -> bool {
    let own = std::process::id().to_string();
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let name = entry.file_name();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        name.to_string_lossy() != own && line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    })
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn with_die_with_parent_nothing_outlives_the_launcher_or_its_parent() {
    for (index, caller) in callers().into_iter().enumerate() {
        let (_scratch, folder) = folder(caller);
        for (variant, options) in
            ["", "--unshare-pid", "--lock-file /etc/hostname", "--unshare-pid --as-pid-1"].iter().enumerate()
        {
            let word = format!("3{index}{variant}.{}", std::process::id());
            let start = |kill: &str| {
                let line =
                    format!("\"$BWRAP\" --dev-bind / / --die-with-parent {options} sleep {word} & pid=$!; {kill}");
                script(caller, &folder, &line);
                wait_until(&format!("{options}: {word} is still there"), || !lives(&word));
            };
            // At any moment of setting up, and when it runs.
            for delay in 0..12 {
                start(&format!("sleep 0.00{delay}; kill -9 $pid"));
            }
            start("sleep 0.1; kill -9 $pid");
            // The parent of the launcher: this shell.
            start("sleep 0.1; kill -9 $$");
        }
    }
}

#[test]
fn without_it_the_launcher_comes_back_with_the_command_and_the_rest_goes_on() {
    for caller in callers() {
        let (_scratch, folder) = folder(caller);
        let word = format!("4{}.{}", u8::from(caller == Caller::Nobody), std::process::id());
        for options in ["", "--unshare-pid"] {
            let line = format!("\"$BWRAP\" --dev-bind / / {options} sh -c 'sleep {word} >/dev/null 2>&1 & exit 3'");
            script(caller, &folder, &line).expect_code(3);
            assert!(lives(&word), "{options}");
            script(Caller::Own, Path::new("/"), &format!("pkill -9 -f 'sleep {word}'"));
            wait_until("it does not go", || !lives(&word));
        }
    }
}
