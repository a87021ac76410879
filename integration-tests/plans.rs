//! Golden plans: what each shipped profile becomes on a plain host, line by line. SHANNOT_UPDATE_GOLDEN=1 writes them
//! again, for a person to read the difference.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use shannot::host::{Capabilities, Files, Found, Ground, Host, Identity, Kind, Landlock, Program, Trial};
use shannot::plan::Plan;
use shannot::profile::{Caller, Overrides, Profile};

use crate::support::sources;

/// A merged-/usr distribution in memory.
struct Distribution(BTreeMap<PathBuf, Kind>);

impl Distribution {
    fn new() -> Self {
        let mut files = BTreeMap::new();
        for folder in [
            "/",
            "/usr",
            "/usr/bin",
            "/usr/sbin",
            "/usr/lib",
            "/usr/lib64",
            "/etc",
            "/proc",
            "/sys",
            "/var",
            "/var/log",
            "/tmp",
            "/run",
            "/var/tmp",
            "/home",
            "/home/me",
            "/home/me/work",
            "/home/me/.ssh",
            "/root",
        ] {
            files.insert(PathBuf::from(folder), Kind::Directory);
        }
        for (link, text) in [("/bin", "usr/bin"), ("/sbin", "usr/sbin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")] {
            files.insert(PathBuf::from(link), Kind::Link(text.into()));
        }
        for command in ["ls", "cat", "grep", "find", "head", "tail", "df", "free", "ps", "uptime", "stat", "wc", "env"]
        {
            files.insert(Path::new("/usr/bin").join(command), Kind::File { executable: true });
        }
        for file in ["/etc/shadow", "/proc/keys", "/proc/timer_list"] {
            files.insert(file.into(), Kind::File { executable: false });
        }
        Self(files)
    }

    fn follow(&self, path: &Path) -> io::Result<PathBuf> {
        let mut here = PathBuf::from("/");
        for part in path.components().skip(1) {
            here.push(part);
            if let Some(Kind::Link(text)) = self.0.get(&here) {
                here.pop();
                here.push(text);
            }
        }
        Ok(here)
    }
}

impl Files for Distribution {
    fn kind(&self, path: &Path) -> io::Result<Kind> {
        self.0.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn target_kind(&self, path: &Path) -> io::Result<Kind> {
        self.kind(&self.follow(path)?)
    }

    fn find(&self, path: &Path) -> io::Result<Found> {
        let path = self.follow(path)?;
        Ok(Found { identity: self.identity(&path)?, path })
    }

    fn identity(&self, path: &Path) -> io::Result<Identity> {
        let place = self.0.keys().position(|known| known == path);
        let inode = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Identity { device: 1, inode: inode as u64 + 1 })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        Ok(self
            .0
            .keys()
            .filter(|path| path.parent() == Some(directory))
            .filter_map(|path| path.file_name().map(OsStr::to_owned))
            .collect())
    }

    fn program(&self, _: &Path) -> io::Result<Program> {
        // Static programs: no loader, no libraries.
        Ok(Program::Elf(shannot::host::Elf::default()))
    }

    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::Error::from(io::ErrorKind::NotFound))
    }

    fn cached_libraries(&self, _: &str) -> Vec<PathBuf> {
        Vec::new()
    }
}

fn host() -> Host {
    Host {
        capabilities: Capabilities::default(),
        uid: 1000,
        gid: 1000,
        environment: vec![
            ("HOME".into(), "/home/me".into()),
            ("PATH".into(), "/usr/bin".into()),
            ("TOKEN".into(), "secret".into()),
        ],
        cwd: Some("/home/me/work".into()),
        landlock: Landlock::Abi(6),
        mount_api: true,
        terminal: None,
        trial: None,
        scratch: None,
        files: Box::new(Distribution::new()),
    }
}

fn plan(name: &str, host: &Host) -> Plan {
    let caller = Caller { home: Some("/home/me".into()), cwd: host.cwd.clone(), profile: None, cache: None };
    let text = std::fs::read(sources().join(format!("profiles/{name}.json"))).unwrap();
    let profile = Profile::parse(&text, Path::new("/etc/shannot/x.json"), &caller).unwrap();
    let mut policy = profile.policy(&Overrides::default(), &caller).unwrap();
    policy.command = vec!["ls".into(), "/".into()];
    Plan::new(&policy, host).unwrap()
}

#[test]
fn each_shipped_profile_has_its_golden_plan() {
    for name in ["minimal", "readonly", "diagnostics", "host"] {
        compare(name, &plan(name, &host()).to_string());
    }
}

fn compare(name: &str, text: &str) {
    let folder = sources().join("integration-tests/golden");
    let path = folder.join(format!("{name}.txt"));
    if std::env::var_os("SHANNOT_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == golden, "{} is not the plan any more:\n{text}", path.display());
}

#[test]
fn without_namespaces_each_shipped_profile_has_its_golden_plan() {
    let mut host = host();
    let refused = |_| Err(nix::errno::Errno::EINVAL);
    host.trial = Some(Trial { user: Ground::of(refused), plain: Ground::of(refused), keyring: Ok(()) });
    host.scratch = Some("/tmp/shannot-0123456789abcdef".into());
    for name in ["minimal", "readonly", "diagnostics", "host"] {
        compare(&format!("{name}-in-place"), &plan(name, &host).to_string());
    }
}

#[test]
fn the_lowest_rung_says_what_an_older_landlock_leaves_to_filters() {
    let mut host = host();
    let refused = |_| Err(nix::errno::Errno::EINVAL);
    host.trial = Some(Trial { user: Ground::of(refused), plain: Ground::of(refused), keyring: Ok(()) });
    for (abi, truncation, signals) in
        [(1, true, true), (2, true, true), (3, false, true), (5, false, true), (6, false, false), (7, false, false)]
    {
        host.landlock = Landlock::Abi(abi);
        let text = plan("minimal", &host).to_string();
        assert!(text.contains("rung       landlock: this kernel has no user namespaces"), "{text}");
        assert!(text.contains("seccomp in-place-no-sockets"), "{text}");
        assert_eq!(text.contains("seccomp in-place-truncation"), truncation, "ABI {abi}: {text}");
        assert_eq!(text.contains("seccomp in-place-signals"), signals, "ABI {abi}: {text}");
        assert!(text.contains(&format!("landlock-fs        full (Landlock ABI {abi}")), "{text}");
    }
}

#[test]
fn a_plan_says_what_an_older_kernel_lacks() {
    let mut host = host();
    host.landlock = Landlock::Abi(2);
    let text = plan("minimal", &host).to_string();
    assert!(
        text.contains("landlock-fs        partial (without refusing truncation, refusing device ioctls)"),
        "{text}"
    );
    assert!(text.contains("new session"), "kill(0) is not confined by this ABI: {text}");
    host.landlock = Landlock::NotEnabled;
    let text = plan("minimal", &host).to_string();
    assert!(text.contains("descriptors        partial (without keeping files behind stdin"), "{text}");
    assert!(text.contains("landlock-fs        off (Landlock is built in but not enabled at boot)"), "{text}");
}

#[test]
fn a_plan_is_pure() {
    let json = |plan: &Plan| serde_json::to_string(plan).unwrap();
    assert_eq!(json(&plan("host", &host())), json(&plan("host", &host())));
    let text = json(&plan("host", &host()));
    assert!(!text.contains("TOKEN"), "what is not passed is not in the plan");
}
