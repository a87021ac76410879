//! How tests run the binary: as whom, with which profile, and what came of it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The project's folder. CI runs the tests from a copy as well, for a user who can't look into the checkout.
pub fn sources() -> PathBuf {
    std::env::var_os("SHANNOT_TEST_SOURCES").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Whose promises are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The user that runs the tests: root in CI.
    Own,
    /// `nobody`, where the tests run as root.
    Nobody,
}

pub const NOBODY: u32 = 65534;

/// Every caller that this host lets the tests be.
pub fn callers() -> Vec<Caller> {
    if nix::unistd::geteuid().is_root() {
        vec![Caller::Own, Caller::Nobody]
    } else {
        eprintln!("skipped as another user: the tests do not run as root");
        vec![Caller::Own]
    }
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says why a test can't be made here; an error where nothing may be skipped.
pub fn skip(why: &str) {
    assert!(std::env::var_os("SHANNOT_TEST_NO_SKIP").is_none(), "nothing may be skipped, but: {why}");
    eprintln!("skipped: {why}");
}

/// A program that a test needs; without it the test is skipped.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found =
        std::env::split_paths("/usr/bin:/bin:/usr/sbin:/sbin").map(|dir| dir.join(name)).find(|path| path.exists());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// The binary, where every caller can execute it.
pub fn binary() -> &'static Path {
    &binaries()[0]
}

/// The same of what stands in for bubblewrap.
pub fn bwrap_binary() -> &'static Path {
    &binaries()[1]
}

/// And of the shell.
pub fn sh_binary() -> &'static Path {
    &binaries()[2]
}

/// All at once: a process that another test forks meanwhile would hold a copy open for writing, and what is open for writing
/// can't be executed (ETXTBSY). The variables name the files where the tests do not run in the folder that they were built in.
fn binaries() -> &'static [PathBuf; 3] {
    static BINARIES: OnceLock<[PathBuf; 3]> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let folder = folder_of_binaries();
        [
            ("shannot", "SHANNOT_TEST_BINARY", env!("CARGO_BIN_EXE_shannot")),
            ("shannot-bwrap", "SHANNOT_TEST_BWRAP", env!("CARGO_BIN_EXE_shannot-bwrap")),
            ("shannot-sh", "SHANNOT_TEST_SH", env!("CARGO_BIN_EXE_shannot-sh")),
        ]
        .map(|(name, variable, built)| {
            let copy = folder.join(name);
            fs::copy(std::env::var_os(variable).unwrap_or_else(|| built.into()), &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
            copy
        })
    })
}

/// Nothing runs at the end of all tests, so that it goes with the next ones.
fn folder_of_binaries() -> PathBuf {
    const PREFIX: &str = "shannot-test-of-";
    for entry in fs::read_dir(scratch_parent()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let is_left = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if name.strip_prefix(PREFIX).is_some_and(is_left) {
            // Another test run may be faster; another user's stays.
            fs::remove_dir_all(entry.path()).unwrap_or_default();
        }
    }
    let folder = scratch_parent().join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Not below /tmp, which the profiles under test cover with a tmpfs.
fn scratch_parent() -> &'static Path {
    Path::new(if is_root() { "/var/lib" } else { "/var/tmp" })
}

/// A folder that every caller can look into, gone after the test.
pub struct Scratch(tempfile::TempDir);

impl Drop for Scratch {
    /// Folders in it may have no permissions: overlayfs makes such.
    fn drop(&mut self) {
        let mut todo = vec![self.path().to_owned()];
        while let Some(folder) = todo.pop() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap_or_default();
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            todo.extend(
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
    }
}

impl Scratch {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("shannot-test-").tempdir_in(scratch_parent()).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file with this text that all can read.
    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// A folder that belongs to the caller.
    pub fn folder(&self, name: &str, caller: Caller) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).unwrap();
        own(&path, caller);
        path
    }
}

/// Gives a file to the caller.
pub fn own(path: &Path, caller: Caller) {
    if caller == Caller::Nobody {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A profile with the system's folders, /tmp, and nothing else.
pub fn base_profile() -> Value {
    let binds: Vec<Value> = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"]
        .iter()
        .map(|path| json!({"source": path, "target": path}))
        .collect();
    json!({
        "name": "test",
        "binds": binds,
        "tmpfs_paths": ["/tmp"],
        "environment": {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        "workdir": "/tmp",
    })
}

/// [`base_profile`] with other keys.
pub fn profile(changes: Value) -> Value {
    let mut profile = base_profile();
    for (key, value) in changes.as_object().unwrap() {
        profile[key] = value.clone();
    }
    profile
}

/// [`base_profile`] with more binds.
pub fn with_binds(binds: &[Value], changes: Value) -> Value {
    let mut profile = profile(changes);
    profile["binds"].as_array_mut().unwrap().extend(binds.iter().cloned());
    profile
}

/// A run of the binary.
pub struct Shannot {
    pub command: Command,
    scratch: Scratch,
}

impl Shannot {
    pub fn new(caller: Caller) -> Self {
        Self::through(caller, binary(), [] as [&str; 0])
    }

    /// Started by another program, whose last arguments are Shannot's.
    pub fn through(caller: Caller, program: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").current_dir("/");
        if caller == Caller::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        Self { command, scratch: Scratch::new() }
    }

    /// As root, with a program before it, where the cgroup tree is covered and nothing can be made in it.
    pub fn without_cgroups(through: &[&str]) -> Self {
        let cover = "[ ! -d /sys/fs/cgroup ] || mount -t tmpfs none /sys/fs/cgroup; exec \"$@\"";
        let words = ["-m", "sh", "-c", cover, "sh"].into_iter().chain(through.iter().copied());
        Self::through(Caller::Own, Path::new("/usr/bin/unshare"), words).args([binary()])
    }

    /// With a profile.
    pub fn profile(mut self, profile: &Value) -> Self {
        let path = self.scratch.file("profile.json", profile.to_string());
        self.command.arg("-p").arg(path);
        self
    }

    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn output(mut self) -> Result {
        Result::new(self.command.stdin(Stdio::null()).output().unwrap())
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Result {
    /// The exit code, 128+n for a signal that ended shannot itself.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Result {
    pub fn new(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn expect_stdout(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no {text:?} in {self:#?}");
        self
    }

    #[track_caller]
    pub fn expect_stderr(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} in {self:#?}");
        self
    }
}

/// Processes of the host's whose command line has this word. Only numbers are processes: `self` would count twice.
pub fn running(word: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let processes = entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes())).count()
}

/// A shell script under a profile.
pub fn sh(caller: Caller, profile: &Value, script: &str) -> Result {
    Shannot::new(caller).profile(profile).args(["run", "sh", "-c", script]).output()
}

/// Before a Python program: `call(nr, …)` gives errno's name or "ok".
pub const PRELUDE: &str = "\
import ctypes, errno, os, sys, socket, struct, fcntl, mmap
libc = ctypes.CDLL(None, use_errno=True)
def call(nr, *args):
    args = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in args]
    r = libc.syscall(ctypes.c_long(nr), *args)
    return 'ok' if r != -1 else errno.errorcode[ctypes.get_errno()]
def attempt(f, *args):
    try:
        f(*args)
        return 'ok'
    except OSError as e:
        return errno.errorcode[e.errno]
";

/// A Python program under a profile: for system calls that no command makes. `call(nr, …)` gives errno's name or "ok".
pub fn python(caller: Caller, profile: &Value, program: &str) -> Option<Result> {
    python_with(caller, profile, &["run"], program)
}

/// The same under options of its own.
pub fn python_with(caller: Caller, profile: &Value, run: &[&str], program: &str) -> Option<Result> {
    tool("python3")?;
    let program = format!("{PRELUDE}{program}");
    Some(Shannot::new(caller).profile(profile).args(run).args(["--", "/usr/bin/python3", "-c", &program]).output())
}
