//! Job control: the command is in the caller's foreground group, and a shell sees it stop, go on and be interrupted.

use serde_json::json;

use crate::support::*;

/// Drives a shell on a pseudo-terminal: `(what to type, what to wait for)`.
const DRIVER: &str = "
import os, pty, sys, time, select, re
steps = eval(sys.argv[1])
pid, fd = pty.fork()
if pid == 0:
    os.execv('/bin/bash', ['bash', '--norc', '--noprofile', '-i'])
seen = ''
def wait(text, limit=15):
    global seen
    end = time.time() + limit
    while not re.search(text, seen):
        left = end - time.time()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            print('TIMEOUT waiting for', repr(text), 'in', repr(seen)); sys.exit(1)
        try:
            data = os.read(fd, 4096)
        except OSError:
            print('END before', repr(text), 'in', repr(seen)); sys.exit(1)
        seen += data.decode(errors='replace')
    seen = seen[re.search(text, seen).end():]
os.write(fd, b\"PS1='prompt> '; stty -echo\\n\")
wait('prompt> '); time.sleep(0.2)
for typed, expected in steps:
    os.write(fd, typed.encode())
    wait(expected)
print('DONE')
os.write(fd, b'exit\\n')
";

fn drive(caller: Caller, profile: &serde_json::Value, steps: &[(&str, &str)]) {
    if tool("python3").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("p.json", profile.to_string());
    let shannot = format!("{} -p {} run", binary().display(), path.display());
    let quoted = |text: &str| {
        format!("{:?}", text.replace("SHANNOT", &shannot))
            .replace("\\u{3}", "\\x03")
            .replace("\\u{1a}", "\\x1a")
            .replace("\\u{1c}", "\\x1c")
    };
    let steps: Vec<String> =
        steps.iter().map(|(typed, expected)| format!("({}, {})", quoted(typed), quoted(expected))).collect();
    let steps = format!("[{}]", steps.join(", "));
    let result = Shannot::through(caller, std::path::Path::new("/usr/bin/python3"), ["-c", DRIVER, &steps])
        .env("TERM", "xterm")
        .output();
    assert!(result.stdout.contains("DONE"), "{caller:?}: {result:#?}");
}

#[test]
fn interrupt_ends_the_command_and_the_shells_loop() {
    for caller in callers() {
        drive(
            caller,
            &base_profile(),
            &[
                ("SHANNOT sh -c 'echo started; exec sleep 60'\n", "started"),
                ("\x03", "prompt> "),
                ("echo code $?\n", "code 130"),
                ("for i in 1 2 3; do SHANNOT sh -c 'echo loop; exec sleep 60'; done; echo over\n", "loop"),
                ("\x03", "prompt> "),
                ("echo alive\n", "alive"),
            ],
        );
    }
}

#[test]
fn a_command_that_handles_the_interrupt_goes_on() {
    for caller in callers() {
        drive(
            caller,
            &base_profile(),
            &[
                ("SHANNOT bash -c 'trap \"echo caught\" INT; echo started; sleep 2; echo over'\n", "started"),
                ("\x03", "caught"),
                ("", "over"),
                ("", "prompt> "),
                ("echo code $?\n", "code 0"),
            ],
        );
    }
}

#[test]
fn stop_and_continue_work_as_for_any_command() {
    for caller in callers() {
        drive(
            caller,
            &base_profile(),
            &[
                ("SHANNOT sh -c 'echo started; read line; echo read $line'\n", "started"),
                ("\x1a", "Stopped"),
                ("", "prompt> "),
                ("jobs\n", "Stopped"),
                ("fg\n", "SHANNOT|read line"),
                ("word\n", "read word"),
                ("", "prompt> "),
            ],
        );
    }
}

#[test]
fn the_command_knows_its_terminal() {
    for caller in callers() {
        drive(
            caller,
            &base_profile(),
            &[
                (
                    "SHANNOT sh -c 'test -t 0 && test -t 1 && echo is-a-tty; stty size; echo x > /dev/tty && echo wrote'\n",
                    "is-a-tty",
                ),
                ("", "wrote"),
                ("", "prompt> "),
            ],
        );
        // A session of its own has no terminal to type into.
        let own_session = profile(json!({"additional_args": ["--new-session"]}));
        drive(
            caller,
            &own_session,
            &[("SHANNOT sh -c 'echo x > /dev/tty || echo no-terminal' 2>&1\n", "no-terminal"), ("", "prompt> ")],
        );
    }
}

#[test]
fn quit_ends_the_command() {
    for caller in callers() {
        drive(
            caller,
            &base_profile(),
            &[
                ("SHANNOT sh -c 'echo started; exec sleep 60'\n", "started"),
                ("\x1c", "prompt> "),
                ("echo code $?\n", "code 131"),
            ],
        );
    }
}

#[test]
fn a_command_that_stops_itself_does_not_stop_the_clock() {
    let Some(script) = tool("script") else { return };
    for caller in callers() {
        let scratch = Scratch::new();
        let path = scratch.file("p.json", base_profile().to_string());
        let line = format!(
            "{} -p {} run --timeout 1 --kill-after 1 -- sh -c '(sleep 6; echo alive) & kill -STOP $$'",
            binary().display(),
            path.display()
        );
        let started = std::time::Instant::now();
        let result = Shannot::through(caller, &script, ["-qec", &line, "/dev/null"]).output().expect_code(124);
        assert!(!result.stdout.contains("alive") && started.elapsed().as_secs() < 6, "{result:?}");
    }
}

/// The kernel stops the whole process group of who reads from a terminal that another group has: the launcher would be in it.
#[test]
fn a_command_that_gives_the_terminal_away_does_not_stop_the_clock() {
    let program = "import os,signal,time\n\
                   signal.signal(signal.SIGTTOU, signal.SIG_IGN)\n\
                   pid = os.fork()\n\
                   if pid == 0: os.setpgid(0, 0); time.sleep(60)\n\
                   time.sleep(0.2)\n\
                   try: os.tcsetpgrp(0, pid)\n\
                   except OSError: pass\n\
                   os.read(0, 1); time.sleep(60)\n";
    for caller in callers() {
        let scratch = Scratch::new();
        let script = scratch.file("give.py", program);
        for backend in ["namespaces", "landlock"] {
            let bind = json!({"source": scratch.path(), "target": scratch.path()});
            let command = format!(
                "SHANNOT --backend {backend} --timeout 2s --kill-after 1s -- python3 {}; echo code $?\n",
                script.display()
            );
            drive(caller, &with_binds(&[bind], json!({})), &[(&command, "code 124")]);
        }
    }
}

/// Without a pid namespace another job of the shell's has a number that means something inside.
#[test]
fn other_jobs_of_the_shell_are_not_stopped_through_the_terminal() {
    let program = "import os,sys,signal\n\
                   signal.signal(signal.SIGTTIN, signal.SIG_DFL)\n\
                   for f in (lambda: os.setpgid(0, int(sys.argv[1])), lambda: os.tcsetpgrp(0, int(sys.argv[1])), lambda: os.open('/dev/tty', os.O_RDWR)):\n    \
                   \n    try: f(); print('reached')\n    except OSError: print('refused')\n";
    for caller in callers() {
        let scratch = Scratch::new();
        let script = scratch.file("join.py", program);
        let bind = json!({"source": scratch.path(), "target": scratch.path()});
        let command = format!(
            "SHANNOT --backend landlock -- python3 {} $!; echo code $? $(ps -o stat= -p $!)\n",
            script.display()
        );
        let steps = [("sleep 77 &\n", "prompt> "), (command.as_str(), "refused\r\nrefused\r\nrefused\r\ncode 0 S")];
        drive(caller, &with_binds(&[bind], json!({})), &steps);
    }
}
