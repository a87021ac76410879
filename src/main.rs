use shannot::{host::Host, plan::Plan, policy::*, sandbox};
fn main() {
    let p = |s: &str| SandboxPath::new(s).unwrap();
    let mut policy = Policy::new("test");
    policy.command = std::env::args_os().skip(1).collect();
    if std::env::var("AL").is_ok() {
        policy.allowed_commands = vec!["ls".into(), "cat".into(), "grep".into(), "find".into()];
    }
    policy.fs = vec![
        FsOp::Proc { target: p("/proc") },
        FsOp::Dev { target: p("/dev") },
        FsOp::Tmpfs { target: p("/tmp"), mode: 0o1777, size: None },
        FsOp::Tmpfs { target: p("/home/sandbox"), mode: 0o755, size: None },
    ];
    for b in ["/bin", "/etc", "/lib", "/lib64", "/usr"] {
        policy.fs.push(FsOp::Bind { source: b.into(), target: p(b), access: Access::ReadOnly, optional: true });
    }
    policy.environment.set.insert("PATH".into(), "/usr/bin:/bin".into());
    policy.hostname = Some("sandbox".into());
    let host = Host::probe();
    let plan = Plan::new(&policy, &host).unwrap();
    if std::env::var("DRY").is_ok() {
        print!("{plan}");
        return;
    }
    match sandbox::run(&plan, &Default::default(), None) {
        Ok(o) => std::process::exit(o.exit_code().into()),
        Err(e) => {
            eprintln!("{e:?}\n{e}");
            std::process::exit(125)
        }
    }
}
