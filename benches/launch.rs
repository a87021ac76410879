//! `cargo bench`: what a run costs beside the peers that are found on PATH, as medians of interleaved rounds and as
//! ratios to bubblewrap. Figures, no verdicts: machines differ. `SHANNOT_BENCH_ROUNDS` sets the rounds (200).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program for developers, whose way to fail is to panic"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::wait::{WaitStatus, waitpid};

const NOBODY: u32 = 65534;

/// A command line to be measured.
struct Contender {
    name: String,
    words: Vec<String>,
    uid: Option<u32>,
}

impl Contender {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// Wall-clock time to the launcher's exit, and CPU time of all that it started, milliseconds.
    fn measure(&self) -> (f64, f64) {
        let before = cpu_time();
        let start = Instant::now();
        let status = self.command().status().unwrap();
        let wall = start.elapsed();
        assert!(status.success(), "{}: {status}", self.name);
        // A launcher that does not wait for its pid 1 leaves it to us: its time counts too.
        collect_orphans();
        (milliseconds(wall), milliseconds(cpu_time() - before))
    }
}

fn collect_orphans() {
    while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = waitpid(None, None) {}
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let part = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    part(usage.user_time()) + part(usage.system_time())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn on_path(name: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

fn rounds() -> usize {
    std::env::var("SHANNOT_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(200)
}

/// Measures the contenders turn by turn and prints a line each; the ratio is to the contender named bwrap.
fn compare(title: &str, contenders: &[Contender], rounds: usize) {
    println!(
        "\n{title} ({rounds} rounds)\n  {:<22} {:>9} {:>8} {:>9} {:>8}",
        "", "wall ms", "x bwrap", "cpu ms", "x bwrap"
    );
    collect_orphans();
    let mut times: Vec<(Vec<f64>, Vec<f64>)> = contenders.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for (contender, (walls, cpus)) in contenders.iter().zip(&mut times) {
            let (wall, cpu) = contender.measure();
            walls.push(wall);
            cpus.push(cpu);
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let figures: Vec<(f64, f64)> = times.into_iter().map(|(walls, cpus)| (median(walls), mean(&cpus))).collect();
    let base = contenders.iter().position(|contender| contender.name == "bwrap").map(|at| figures[at]);
    for (contender, (wall, cpu)) in contenders.iter().zip(&figures) {
        let ratio =
            |own: f64, other: Option<f64>| other.map_or_else(|| "-".to_owned(), |other| format!("{:.2}", own / other));
        println!(
            "  {:<22} {wall:>9.2} {:>8} {cpu:>9.2} {:>8}",
            contender.name,
            ratio(*wall, base.map(|base| base.0)),
            ratio(*cpu, base.map(|base| base.1))
        );
    }
}

/// Runs a second when eight threads start them as fast as they can.
fn throughput(contender: &Contender) -> f64 {
    let time = Duration::from_secs(2);
    let start = Instant::now();
    let count: usize = std::thread::scope(|scope| {
        let worker = || {
            let mut count = 0;
            while start.elapsed() < time {
                assert!(contender.command().status().unwrap().success());
                count += 1;
            }
            count
        };
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    count as f64 / start.elapsed().as_secs_f64()
}

/// Resident memory of the launcher's own processes while a command runs, KiB.
fn resident(contender: &Contender) -> u64 {
    let mut sleeping = contender.command();
    let mut child = sleeping.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut sum = 0;
    let mut todo = vec![child.id().to_string()];
    while let Some(pid) = todo.pop() {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() == "sleep" {
            continue;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        sum += line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        todo.extend(children.split_whitespace().map(str::to_owned));
    }
    child.wait().unwrap();
    sum
}

/// System calls of a whole run, the command's own included, as strace counts them.
fn syscalls(contender: &Contender) -> Option<u64> {
    let strace = on_path("strace")?;
    let mut command = Command::new(strace);
    command
        .args(["-f", "-c", "-U", "calls", "-o", "/dev/stdout"])
        .args(&contender.words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let output = command.current_dir("/").stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).next_back()
}

/// The pieces that all cases share.
struct Bench {
    shannot: String,
    shannot_bwrap: String,
    command: String,
    folder: tempfile::TempDir,
    uid: Option<u32>,
}

impl Bench {
    fn new(uid: Option<u32>) -> Self {
        let folder = tempfile::Builder::new().prefix("shannot-bench-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let [shannot, shannot_bwrap] =
            [("shannot", env!("CARGO_BIN_EXE_shannot")), ("shannot-bwrap", env!("CARGO_BIN_EXE_shannot-bwrap"))].map(
                |(name, built)| {
                    let copy = folder.path().join(name);
                    fs::copy(built, &copy).unwrap();
                    copy.display().to_string()
                },
            );
        // The command should cost as little as a command can.
        let source = folder.path().join("true.c");
        fs::write(&source, "int main(void) { return 0; }").unwrap();
        let compiled = folder.path().join("true");
        let gcc = Command::new("gcc").args(["-static", "-O2", "-o"]).arg(&compiled).arg(&source).status();
        let command = if gcc.is_ok_and(|status| status.success()) { compiled } else { PathBuf::from("/usr/bin/true") };
        Self { shannot, shannot_bwrap, command: command.display().to_string(), folder, uid }
    }

    /// The shipped profile `minimal` with the command allowed, and its folder bound.
    fn profile(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut profile: serde_json::Value = serde_json::from_str(include_str!("../profiles/minimal.json")).unwrap();
        let commands = profile["allowed_commands"].as_array_mut().unwrap();
        commands.extend([self.command.as_str().into(), "/usr/bin/sleep".into()]);
        profile["binds"]
            .as_array_mut()
            .unwrap()
            .push(serde_json::json!({"source": self.folder.path(), "target": self.folder.path()}));
        change(&mut profile);
        let path = self.folder.path().join(name);
        fs::write(&path, profile.to_string()).unwrap();
        path.display().to_string()
    }

    fn contender(&self, name: &str, words: Vec<String>) -> Contender {
        Contender { name: name.to_owned(), words, uid: self.uid }
    }

    fn shannot(&self, name: &str, profile: &str, command: &[&str]) -> Contender {
        let words = [self.shannot.as_str(), "-p", profile, "run"].into_iter().map(|word| (*word).to_owned());
        self.contender(name, words.chain(command.iter().map(|word| (*word).to_owned())).collect())
    }

    /// bubblewrap and its stand-in with the same mounts and namespaces, without Landlock, filter and allowlist.
    fn bwraps(&self, more: &[String], command: &[&str]) -> Vec<Contender> {
        let bubblewrap = on_path("bwrap").map(|path| ("bwrap", path.display().to_string()));
        let ours = Some(("shannot-bwrap", self.shannot_bwrap.clone()));
        let found = [ours, bubblewrap].into_iter().flatten();
        found.map(|(name, program)| self.contender(name, self.bwrap_words(program, more, command))).collect()
    }

    fn bwrap_words(&self, program: String, more: &[String], command: &[&str]) -> Vec<String> {
        let folder = self.folder.path().display().to_string();
        let options = "--unshare-all --die-with-parent --hostname sandbox --clearenv --setenv PATH /usr/bin:/bin --proc /proc --dev /dev \
                       --tmpfs /tmp --tmpfs /home/sandbox --ro-bind /bin /bin --ro-bind /etc /etc --ro-bind /lib /lib --ro-bind /lib64 /lib64 \
                       --ro-bind /usr /usr";
        let mut words = vec![program];
        words.extend(options.split_whitespace().map(str::to_owned));
        words.extend(["--ro-bind".to_owned(), folder.clone(), folder]);
        words.extend(more.iter().cloned());
        words.extend(["--chdir", "/home/sandbox"].map(str::to_owned));
        words.extend(command.iter().map(|word| (*word).to_owned()));
        words
    }

    fn peers(&self) -> Vec<Contender> {
        let command = self.command.as_str();
        let mut found = vec![self.contender("plain spawn", vec![command.to_owned()])];
        for (name, options) in [
            ("unshare", "-U -r -m -p -i -n -u -C -f --mount-proc"),
            ("nsjail", "-Mo -q -R /usr -R /lib -R /lib64 -R /bin -R /etc"),
            ("minijail0", "-U -m -M -v -p -l -e -r -N --uts"),
            ("firejail", "--quiet --noprofile --net=none"),
        ] {
            if let Some(path) = on_path(name) {
                let words =
                    [path.display().to_string()].into_iter().chain(options.split_whitespace().map(str::to_owned));
                let words = words.chain((name == "nsjail").then(|| "--".to_owned())).chain([command.to_owned()]);
                let contender = self.contender(name, words.collect());
                if contender.command().stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
                    found.push(contender);
                }
            }
        }
        found
    }

    fn run(&self) {
        let command = [self.command.as_str()];
        let minimal = self.profile("minimal.json", |_| {});
        let no_allowlist = self.profile("any.json", |profile| profile["allowed_commands"] = serde_json::json!([]));
        let mut contenders = vec![
            self.shannot("shannot", &minimal, &command),
            self.shannot("shannot, any command", &no_allowlist, &command),
        ];
        contenders.extend(self.bwraps(&[], &command));
        contenders.extend(self.peers());
        compare("a trivial command under `minimal`", &contenders, rounds());
        println!("\nothers");
        let is_launcher = |contender: &&Contender| contender.name.starts_with("shannot") || contender.name == "bwrap";
        for contender in contenders.iter().filter(is_launcher) {
            let calls = syscalls(contender).map_or_else(|| "-".to_owned(), |calls| calls.to_string());
            println!("  {:<22} {:>7.0} runs/s at 8   {calls:>5} system calls", contender.name, throughput(contender));
        }
        let mut sleeping = vec![self.shannot("shannot", &no_allowlist, &["/usr/bin/sleep", "1"])];
        sleeping.extend(self.bwraps(&[], &["/usr/bin/sleep", "1"]));
        for contender in sleeping {
            println!("  {:<22} {:>7} KiB resident while a command runs", contender.name, resident(&contender));
        }
        for (name, program) in [("shannot", &self.shannot), ("shannot-bwrap", &self.shannot_bwrap)] {
            println!("  {name:<22} {:>7} KiB on disk", fs::metadata(program).unwrap().len() / 1024);
        }
        self.many_binds(&no_allowlist);
    }

    fn many_binds(&self, _: &str) {
        let source = self.folder.path().display().to_string();
        for count in [100, 1000] {
            let target = |index: usize| format!("/many/{index}");
            let profile = self.profile(&format!("binds-{count}.json"), |profile| {
                profile["allowed_commands"] = serde_json::json!([]);
                let binds = profile["binds"].as_array_mut().unwrap();
                binds.extend((0..count).map(|index| serde_json::json!({"source": source, "target": target(index)})));
            });
            let more: Vec<String> =
                (0..count).flat_map(|index| ["--ro-bind".to_owned(), source.clone(), target(index)]).collect();
            let mut contenders = vec![self.shannot("shannot", &profile, &[&self.command])];
            contenders.extend(self.bwraps(&more, &[&self.command]));
            compare(&format!("{count} binds"), &contenders, rounds() / if count > 100 { 40 } else { 10 });
        }
    }
}

/// In a mount namespace of its own that has a thousand mounts more.
fn many_host_mounts() {
    let bench = Bench::new(None);
    let mounts = bench.folder.path().join("mounts");
    let make = "mount --make-rprivate / && mkdir -p $0 && mount -t tmpfs none $0 && cd $0 && for i in $(seq 1000); do mkdir $i && mount -t tmpfs none $i; done";
    assert!(Command::new("sh").args(["-c", make]).arg(&mounts).status().unwrap().success());
    let profile = bench.profile("any.json", |profile| {
        profile["allowed_commands"] = serde_json::json!([]);
        profile["binds"].as_array_mut().unwrap().pop();
        profile["binds"].as_array_mut().unwrap().push(serde_json::json!({"source": bench.command, "target": "/true"}));
    });
    let mut contenders = vec![bench.shannot("shannot", &profile, &["/true"])];
    for mut bwrap in bench.bwraps(&[], &["/true"]) {
        // The command alone, not the folder with the thousand mounts.
        let folder = bench.folder.path().display().to_string();
        let at = bwrap.words.iter().position(|word| *word == folder).unwrap();
        bwrap.words[at].clone_from(&bench.command);
        "/true".clone_into(&mut bwrap.words[at + 1]);
        contenders.push(bwrap);
    }
    compare("a host with 1,000 more mounts", &contenders, rounds() / 4);
}

fn main() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    if std::env::args().any(|word| word == "many-host-mounts") {
        return many_host_mounts();
    }
    let is_root = nix::unistd::geteuid().is_root();
    println!("as {}", if is_root { "root" } else { "an ordinary user" });
    Bench::new(None).run();
    if is_root {
        println!("\nas an ordinary user");
        Bench::new(Some(NOBODY)).run();
        // The mounts vanish with their namespace.
        let own = std::env::current_exe().unwrap();
        let status = Command::new("unshare").args(["-m", "--"]).arg(own).arg("many-host-mounts").status().unwrap();
        assert!(status.success());
    }
}
