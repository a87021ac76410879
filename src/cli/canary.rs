//! What `shannot verify` runs inside the sandbox: this binary again, trying what the profile promises to refuse.
//! Reads its task from its only argument, writes findings as JSON to stdout.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

/// The word that makes this binary a canary. Not a path, so no command of that name is lost.
pub(super) const WORD: &str = "\u{1f424}canary";

/// What to try.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Task {
    /// Read-only binds.
    pub(super) read_only: Vec<PathBuf>,
    /// Hidden paths.
    pub(super) hidden: Vec<PathBuf>,
    /// Places that must be writable.
    pub(super) writable: Vec<PathBuf>,
    /// Names of all variables that may be set.
    pub(super) environment: BTreeSet<String>,
    /// No network but loopback.
    pub(super) network_isolated: bool,
    /// Not even TCP on loopback.
    pub(super) no_tcp: bool,
    /// A fresh procfs shows only the sandbox's processes.
    pub(super) fresh_proc: bool,
    /// Landlock is expected; descriptor 0 is a file of the host that must not be opened again.
    pub(super) landlock: bool,
    /// A filter is expected.
    pub(super) seccomp: bool,
    /// The root itself is read-only.
    pub(super) root_is_sealed: bool,
    /// Of the capability sets the bounding set need not be empty.
    pub(super) bounding_set_may_stay: bool,
    /// Programs in memory files can't be executed either.
    pub(super) no_memory_files: bool,
    /// Nothing but Landlock and filters stands between the command and the host's files.
    pub(super) in_place: bool,
    /// Folders of devices that can't be opened.
    pub(super) devices: Vec<PathBuf>,
    /// New user namespaces are to be refused.
    pub(super) no_user_namespaces: bool,
    /// Nothing can be executed after the canary itself.
    pub(super) exec_once: bool,
    /// A program that is not on the allowlist.
    pub(super) forbidden: Option<PathBuf>,
    /// The dynamic loader, which must not start it either.
    pub(super) loader: Option<PathBuf>,
    /// The process id of the supervisor, outside.
    pub(super) supervisor: i32,
}

/// One promise and whether it held.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Finding {
    /// What was promised.
    pub(super) promise: String,
    /// Whether it held.
    pub(super) holds: bool,
    /// What was seen.
    pub(super) seen: String,
}

/// Tries everything and writes the findings.
pub(super) fn run(task: &str) -> io::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    let mut findings = Vec::new();
    let mut add = |promise: String, result: Result<String, String>| {
        let (holds, seen) = match result {
            Ok(seen) => (true, seen),
            Err(seen) => (false, seen),
        };
        findings.push(Finding { promise, holds, seen });
    };
    for path in &task.read_only {
        add(format!("{} can't be written", path.display()), write_is_refused(path));
    }
    for path in &task.writable {
        add(format!("{} can be written", path.display()), write_works(path));
    }
    // What does not exist need not be hidden; what can't even be looked at does exist.
    let exists =
        |path: &&PathBuf| !matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
    for path in task.hidden.iter().filter(exists) {
        add(format!("{} is hidden", path.display()), open_is_refused(path));
    }
    if task.root_is_sealed {
        add("the root can't be written".into(), write_is_refused(Path::new("/")));
    }
    let is_empty = |value: &str| value.trim_start_matches('0').is_empty();
    let sets: &[&str] =
        if task.bounding_set_may_stay { &["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] } else { &["Cap"] };
    let held = sets.iter().map(|set| status_is(set, is_empty)).find(Result::is_err);
    add("no capability is held".into(), held.unwrap_or_else(|| status_is("CapEff:", is_empty)));
    add("no_new_privs is set".into(), status_is("NoNewPrivs:", |value| value == "1"));
    add("only descriptors 0 to 2 are open".into(), only_standard_descriptors());
    add("the environment is the profile's".into(), environment_is(&task.environment));
    add("mounts are refused".into(), refused(nix::mount::umount("/proc")));
    if task.seccomp {
        add("a seccomp filter is in force".into(), status_is("Seccomp:", |value| value == "2"));
    }
    if task.no_user_namespaces {
        add("no new user namespace".into(), refused(unshare(CloneFlags::CLONE_NEWUSER)));
    }
    if task.landlock {
        // The way around the new root: the descriptor is open, and leads to a writable mount outside.
        let reopened = OpenOptions::new().append(true).open("/proc/self/fd/0");
        add("a file outside can't be opened through a descriptor".into(), refusal(reopened));
    }
    without_a_root_of_its_own(&task, &mut add);
    if task.network_isolated {
        add("no network outside can be reached".into(), network_is_refused());
    }
    if task.no_tcp {
        add("no TCP on loopback either".into(), tcp_is_refused());
    }
    if task.fresh_proc {
        add("processes outside are invisible".into(), processes_are_few(task.supervisor));
    }
    if task.exec_once {
        let result = execution_is_refused(Path::new("/proc/self/exe"), &[]);
        add("nothing can be executed after the command".into(), result);
    }
    if let Some(program) = &task.forbidden {
        add(format!("{} can't be executed", program.display()), execution_is_refused(program, &[]));
        if let Some(loader) = &task.loader {
            add("the dynamic loader does not start it either".into(), execution_is_refused(loader, &[program]));
        }
    }
    if task.no_memory_files {
        let memory_file = memfd_create("canary", MFdFlags::empty());
        add("no program can be put into a memory file".into(), refused(memory_file));
    }
    let mut stdout = io::stdout();
    serde_json::to_writer(&mut stdout, &findings)?;
    stdout.flush()
}

/// What only Landlock and filters can refuse there.
fn without_a_root_of_its_own(task: &Task, add: &mut impl FnMut(String, Result<String, String>)) {
    if task.in_place {
        add("no watch on a folder tells what is in it".into(), refused(watch(Path::new("/"))));
        add("attributes of files can't be asked for by name".into(), refused(crate::sys::attributes_length(c"/")));
    }
    for folder in &task.devices {
        add(format!("devices in {} can't be opened", folder.display()), devices_are_refused(folder));
    }
}

fn refused<T>(result: nix::Result<T>) -> Result<String, String> {
    match result {
        Ok(_) => Err("it was allowed".into()),
        Err(errno) => Ok(errno.desc().into()),
    }
}

fn refusal<T>(result: io::Result<T>) -> Result<String, String> {
    match result {
        Ok(_) => Err("it was allowed".into()),
        Err(error) => Ok(error.to_string()),
    }
}

fn canary_in(directory: &Path) -> PathBuf {
    directory.join(format!(".shannot-canary-{}", std::process::id()))
}

fn write_is_refused(path: &Path) -> Result<String, String> {
    let Ok(metadata) = path.metadata() else { return Ok("it can't even be seen".into()) };
    let result = if metadata.is_dir() {
        let canary = canary_in(path);
        let created = OpenOptions::new().write(true).create_new(true).open(&canary);
        if created.is_ok() && std::fs::remove_file(&canary).is_err() {
            return Err(format!("{} was created, and can't be removed", canary.display()));
        }
        created
    } else {
        OpenOptions::new().append(true).open(path)
    };
    refusal(result)
}

fn write_works(path: &Path) -> Result<String, String> {
    let canary = canary_in(path);
    match File::create_new(&canary).and_then(|_| std::fs::remove_file(&canary)) {
        Ok(()) => Ok("a file was made and removed".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn open_is_refused(path: &Path) -> Result<String, String> {
    let readable = |mut file: File| file.read(&mut [0]).map(drop);
    let result = match path.metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::read_dir(path).map(drop),
        _ => File::open(path).and_then(readable),
    };
    refusal(result)
}

fn watch(path: &Path) -> nix::Result<()> {
    let instance = Inotify::init(InitFlags::IN_CLOEXEC)?;
    instance.add_watch(path, AddWatchFlags::IN_CREATE).map(drop)
}

/// Tries one that every /dev and devpts has and that harms nobody. What a minimal /dev has can be opened under all its names.
fn devices_are_refused(folder: &Path) -> Result<String, String> {
    let node = folder.join("ptmx");
    if node.exists() { open_is_refused(&node) } else { Ok("no device is known there".into()) }
}

fn status_is(key: &str, good: impl Fn(&str) -> bool) -> Result<String, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let lines: Vec<&str> = status.lines().filter(|line| line.starts_with(key)).collect();
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default();
    let seen = lines.join(", ").replace('\t', " ");
    if !lines.is_empty() && lines.iter().all(|line| good(&value(line))) { Ok(seen) } else { Err(seen) }
}

fn only_standard_descriptors() -> Result<String, String> {
    let open =
        (3..1024).filter(|fd| nix::fcntl::fcntl(crate::sys::borrow_number(*fd), nix::fcntl::FcntlArg::F_GETFD).is_ok());
    let open: Vec<String> = open.map(|fd| fd.to_string()).collect();
    if open.is_empty() { Ok("none above 2".into()) } else { Err(format!("open: {}", open.join(", "))) }
}

fn environment_is(expected: &BTreeSet<String>) -> Result<String, String> {
    let seen: BTreeSet<String> = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    if seen == *expected {
        return Ok(format!("{} variables", seen.len()));
    }
    let extra: Vec<_> = seen.difference(expected).cloned().collect();
    let missing: Vec<_> = expected.difference(&seen).cloned().collect();
    Err(format!("not the profile's: {}; missing: {}", extra.join(", "), missing.join(", ")))
}

/// TEST-NET-2 (RFC 5737): no host has this address, so nothing is disturbed where the network is open.
const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 9);

fn network_is_refused() -> Result<String, String> {
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect(NOWHERE));
    let tcp = TcpStream::connect_timeout(&NOWHERE.into(), Duration::from_secs(2));
    match (udp, tcp) {
        (Ok(()), _) => Err("there is a route to the outside".into()),
        (_, Ok(_)) => Err("a connection was made".into()),
        (_, Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err("packets leave".into()),
        (Err(udp), Err(_)) => Ok(udp.to_string()),
    }
}

fn tcp_is_refused() -> Result<String, String> {
    match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(_) => Err("a TCP port could be bound".into()),
        Err(error) => Ok(error.to_string()),
    }
}

fn processes_are_few(supervisor: i32) -> Result<String, String> {
    let entries = std::fs::read_dir("/proc").map_err(|error| format!("/proc: {error}"))?;
    let pids: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Init, and this process.
    match pids.len() {
        0..=2 => Ok(format!("{} processes, the supervisor ({supervisor}) not among them", pids.len())),
        count => Err(format!("{count} processes can be seen")),
    }
}

fn execution_is_refused(program: &Path, arguments: &[&Path]) -> Result<String, String> {
    let status =
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok("it does not exist inside".into()),
        Err(error) => Ok(error.to_string()),
        // The loader starts, and fails to map the program.
        Ok(status) if !arguments.is_empty() && !status.success() => Ok(format!("the loader failed ({status})")),
        Ok(status) => Err(format!("it ran ({status})")),
    }
}
