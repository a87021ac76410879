//! Golden plans: what each shipped profile becomes on a plain host, line by line. SHANNOT_UPDATE_GOLDEN=1 writes them
//! again, for a person to read the difference.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use shannot::host::{
    Capabilities, Cause, Ceiling, CgroupPlace, CgroupRefusal, CgroupVersion, Cgroups, Controller, Files, Found, Ground,
    Host, Identity, Kind, Landlock, Program, Trial,
};
use shannot::plan::{Plan, PlanError, RlimitResource};
use shannot::policy::{Limits, parse_cpus};
use shannot::profile::{Caller, Overrides, Profile};
use shannot::report::Layer;

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
        cgroups: None,
        scratch: None,
        files: Box::new(Distribution::new()),
    }
}

fn plan(name: &str, host: &Host) -> Plan {
    limited(name, host, Limits::default(), &[]).unwrap()
}

/// With limits, some of which are required.
fn limited(name: &str, host: &Host, limits: Limits, require: &[Layer]) -> Result<Plan, PlanError> {
    let caller = Caller { home: Some("/home/me".into()), cwd: host.cwd.clone(), profile: None, cache: None };
    let text = std::fs::read(sources().join(format!("profiles/{name}.json"))).unwrap();
    let profile = Profile::parse(&text, Path::new("/etc/shannot/x.json"), &caller).unwrap();
    let mut policy = profile.policy(&Overrides::default(), &caller).unwrap();
    policy.command = vec!["ls".into(), "/".into()];
    policy.limits = limits;
    policy.require.extend(require);
    Plan::new(&policy, host)
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

const NAME: &str = "shannot-0123456789abcdef";

fn place(version: CgroupVersion, folder: &str, has: &[Controller]) -> CgroupPlace {
    CgroupPlace {
        version,
        folder: folder.into(),
        has: has.to_vec(),
        can_enable: Vec::new(),
        limits_swap: has.contains(&Controller::Memory).then_some(true),
        ceiling: Ceiling::default(),
        limits_sockets: true,
    }
}

fn all_limits() -> Limits {
    Limits { memory: Some(64 << 20), pids: Some(20), cpus: parse_cpus("1.5").ok(), ..Limits::default() }
}

/// `file value` of every cgroup, by its folder.
fn settings(plan: &Plan) -> Vec<(String, Vec<String>)> {
    let lines = |cgroup: &shannot::plan::CgroupPlan| {
        let lines = cgroup.settings.iter().map(|setting| {
            let mark = if setting.optional { "?" } else { "" };
            format!("{}{mark} {}", setting.file, setting.value)
        });
        (cgroup.path.display().to_string(), lines.collect())
    };
    plan.cgroups.iter().map(lines).collect()
}

fn by(plan: &Plan, layer: Layer) -> String {
    plan.expected.get(&layer).unwrap().to_string()
}

#[test]
fn version_2_holds_all_limits_in_one_cgroup() {
    let mut host = host();
    let mut near = place(CgroupVersion::V2, "/c/app.slice", &[Controller::Memory, Controller::Pids]);
    near.can_enable = vec![Controller::Cpu];
    let far = place(CgroupVersion::V2, "/c", &Controller::ALL);
    host.cgroups = Some(Cgroups { name: NAME.into(), places: vec![near, far], swap: true, refused: Vec::new() });
    let require = [Layer::LimitMemory, Layer::LimitPids, Layer::LimitCpus];
    let plan = limited("minimal", &host, all_limits(), &require).unwrap();
    let lines =
        ["memory.max 67108864", "memory.swap.max 0", "memory.oom.group? 1", "pids.max 21", "cpu.max 150000 100000"];
    assert_eq!(settings(&plan), [(format!("/c/app.slice/{NAME}"), lines.map(str::to_owned).to_vec())]);
    assert_eq!(plan.cgroups[0].enable, [Controller::Cpu]);
    assert_eq!(by(&plan, Layer::LimitMemory), "full (cgroup v2 memory.max, memory.swap.max)");
    assert_eq!(by(&plan, Layer::LimitCpus), "full (cgroup v2 cpu.max)");
    // Nothing else limits what the cgroup does.
    assert_eq!(plan.cpus, None);
    assert!(plan.rlimits.iter().all(|limit| limit.resource == RlimitResource::Core), "{:?}", plan.rlimits);
    // Who asks for nothing gets none, and who asks for one thing no controller besides.
    assert_eq!(settings(&limited("minimal", &host, Limits::default(), &[]).unwrap()), []);
    let only = Limits { pids: Some(20), ..Limits::default() };
    let plan = limited("minimal", &host, only, &[]).unwrap();
    assert_eq!(settings(&plan), [(format!("/c/app.slice/{NAME}"), vec!["pids.max 21".to_owned()])]);
    assert!(plan.cgroups[0].enable.is_empty());
}

#[test]
fn the_command_gets_no_more_than_its_caller_has() {
    let mut host = host();
    let mut near = place(CgroupVersion::V2, "/c", &Controller::ALL);
    near.ceiling = Ceiling { memory: Some(1 << 20), pids: Some(500), cpus: Some(1000) };
    host.cgroups = Some(Cgroups { name: NAME.into(), places: vec![near], ..Cgroups::default() });
    let only = Limits { memory: Some(64 << 20), ..Limits::default() };
    let plan = limited("minimal", &host, only, &[]).unwrap();
    let lines =
        ["memory.max 1048576", "memory.swap.max? 0", "memory.oom.group? 1", "pids.max 500", "cpu.max 100000 100000"];
    assert_eq!(settings(&plan)[0].1, lines);
    // What was not asked for is no layer of the report.
    assert!(!plan.expected.contains_key(&Layer::LimitPids));
}

#[test]
fn version_1_holds_each_limit_in_its_own_hierarchy() {
    let mut host = host();
    let v1 = CgroupVersion::V1;
    let places = vec![
        place(v1, "/c/pids/job", &[Controller::Pids]),
        place(v1, "/c/memory", &[Controller::Memory]),
        place(v1, "/c/cpu,cpuacct", &[Controller::Cpu]),
    ];
    host.cgroups = Some(Cgroups { name: NAME.into(), places, swap: true, refused: Vec::new() });
    let plan = limited("minimal", &host, all_limits(), &[]).unwrap();
    let memory = [
        "memory.limit_in_bytes 67108864",
        "memory.memsw.limit_in_bytes 67108864",
        "memory.oom_control? 0",
        "memory.kmem.tcp.limit_in_bytes 67108864",
    ];
    assert_eq!(
        settings(&plan),
        [
            (format!("/c/memory/{NAME}"), memory.map(str::to_owned).to_vec()),
            (format!("/c/pids/job/{NAME}"), vec!["pids.max 21".into()]),
            (
                format!("/c/cpu,cpuacct/{NAME}"),
                vec!["cpu.cfs_period_us 100000".into(), "cpu.cfs_quota_us 150000".into()]
            ),
        ]
    );
    assert_eq!(by(&plan, Layer::LimitPids), "full (cgroup v1 pids.max)");
    assert_eq!(by(&plan, Layer::LimitCpus), "full (cgroup v1 cpu.cfs_quota_us)");
    // Swap that nobody counts is said, and not written to.
    let cgroups = host.cgroups.as_mut().unwrap();
    cgroups.places[1].limits_swap = Some(false);
    let plan = limited("minimal", &host, all_limits(), &[]).unwrap();
    assert!(by(&plan, Layer::LimitMemory).starts_with("partial (without swap"), "{plan}");
    assert!(settings(&plan)[0].1.iter().all(|line| !line.contains("memsw")));
    // Nor are buffers of sockets where the kernel has no limit for them.
    let memory = &mut host.cgroups.as_mut().unwrap().places[1];
    (memory.limits_swap, memory.limits_sockets) = (Some(true), false);
    let plan = limited("minimal", &host, all_limits(), &[]).unwrap();
    assert!(by(&plan, Layer::LimitMemory).starts_with("partial (without buffers of sockets"), "{plan}");
    assert!(settings(&plan)[0].1.iter().all(|line| !line.contains("kmem")));
}

#[test]
fn without_cgroups_the_report_says_what_is_missing_and_why() {
    let mut host = host();
    let cause = Cause { cause: "cgroup /x belongs to others".into(), cure: Some("systemd-run".into()) };
    let refused = vec![CgroupRefusal { controllers: Controller::ALL.to_vec(), cause }];
    host.cgroups = Some(Cgroups { name: NAME.into(), refused, ..Cgroups::default() });
    let plan = limited("minimal", &host, all_limits(), &[]).unwrap();
    assert_eq!(settings(&plan), []);
    assert_eq!(plan.cpus, Some(2));
    for (layer, words) in [
        (Layer::LimitMemory, "partial (without a sum over processes: RLIMIT_AS"),
        (Layer::LimitPids, "partial (without a count per sandbox: RLIMIT_NPROC"),
        (Layer::LimitCpus, "partial (without a part of a CPU: affinity holds it to 2;"),
    ] {
        let text = by(&plan, layer);
        assert!(text.starts_with(words) && text.contains("; cgroup /x belongs to others"), "{text}");
        let error = limited("minimal", &host, all_limits(), &[layer]).unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("systemd-run"), "{error}");
    }
    let whole = Limits { cpus: parse_cpus("2").ok(), ..Limits::default() };
    let plan = limited("minimal", &host, whole, &[]).unwrap();
    assert!(by(&plan, Layer::LimitCpus).starts_with("partial (without a hold: a process may choose its CPUs anew"));
    // Root is not bound by the count of processes.
    host.uid = 0;
    let text = by(&limited("minimal", &host, all_limits(), &[]).unwrap(), Layer::LimitPids);
    assert!(text.starts_with("off (RLIMIT_NPROC, which it is set by, does not bind the host's root; "), "{text}");
}
