//! STUB
use crate::policy::Policy;
#[derive(Debug, thiserror::Error)]
#[error("unknown {0}")]
pub struct BwrapError(String);
pub fn apply_additional_args(args: &[String], policy: &mut Policy) -> Result<(), BwrapError> {
    let mut it = args.iter();
    while let Some(a) = it.next() {
        match a.as_str() {
            "--hostname" => policy.hostname = it.next().cloned(),
            "--chdir" => {
                policy.workdir =
                    crate::policy::Workdir::Path(crate::policy::SandboxPath::new(it.next().unwrap()).unwrap())
            }
            "--dir" => policy.fs.push(crate::policy::FsOp::Dir {
                target: crate::policy::SandboxPath::new(it.next().unwrap()).unwrap(),
                mode: 0o755,
            }),
            _ => return Err(BwrapError(a.clone())),
        }
    }
    Ok(())
}
