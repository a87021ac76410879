//! Caches of tools, by name: folders of the caller's that jobs share, each where its tool looks for it.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::load::Caller;
use crate::policy::{Access, Cache, FsOp, OverlayTop, Policy, SandboxPath};
use crate::spelling::nearest;

/// What each tool keeps, below its home.
const KNOWN: &[(&str, &[&str])] = &[
    ("bundler", &[".bundle/cache"]),
    ("cargo", &[".cargo/registry", ".cargo/git"]),
    ("ccache", &[".cache/ccache"]),
    ("composer", &[".cache/composer"]),
    ("go", &["go/pkg/mod", ".cache/go-build"]),
    ("gradle", &[".gradle/caches"]),
    ("maven", &[".m2/repository"]),
    ("npm", &[".npm"]),
    ("pip", &[".cache/pip"]),
    ("pnpm", &[".local/share/pnpm/store"]),
    ("poetry", &[".cache/pypoetry"]),
    ("sccache", &[".cache/sccache"]),
    ("uv", &[".cache/uv"]),
    ("yarn", &[".cache/yarn"]),
];

#[derive(Debug, Clone, Copy)]
enum Mode {
    /// Nothing is changed.
    Ro,
    /// What a job adds is there for the next.
    Rw,
    /// What a job adds is gone with it.
    Overlay,
}

/// Adds the folders of the host's, which must be there, and the operations that show them in the home inside.
pub(super) fn add(words: &[String], policy: &mut Policy, caller: &Caller) -> Result<(), String> {
    if words.is_empty() {
        return Ok(());
    }
    let home = policy.environment.set.get(OsStr::new("HOME")).map(PathBuf::from);
    let home = home.or_else(|| caller.home.clone()).unwrap_or_default();
    let kept = caller.cache.as_ref().ok_or("there is no place for caches: neither HOME nor XDG_CACHE_HOME is set")?;
    // Where it is there already.
    let kept = &kept.canonicalize().unwrap_or_else(|_| kept.clone());
    for word in words.iter().flat_map(|words| words.split(',')) {
        let (name, mode) = match word.split_once(':') {
            None => (word, Mode::Rw),
            Some((name, "rw")) => (name, Mode::Rw),
            Some((name, "ro")) => (name, Mode::Ro),
            Some((name, "overlay")) => (name, Mode::Overlay),
            Some((_, mode)) => return Err(format!("{mode:?} is none of ro, rw and overlay")),
        };
        let Some((_, below)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            let known = || KNOWN.iter().map(|(name, _)| *name);
            let hint = nearest(name, known()).map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
            let known: Vec<&str> = known().collect();
            return Err(format!("{name:?} is no cache that is known ({}){hint}", known.join(", ")));
        };
        for path in *below {
            let cache = Cache { base: kept.clone(), below: PathBuf::from("shannot").join(name).join(path) };
            let source = cache.base.join(&cache.below);
            let target = SandboxPath::new(home.join(path)).map_err(|error| error.to_string())?;
            let bind = |access| FsOp::Bind { source: source.clone(), target: target.clone(), access, optional: false };
            policy.fs.push(match mode {
                Mode::Ro => bind(Access::ReadOnly),
                Mode::Rw => bind(Access::ReadWrite),
                Mode::Overlay => {
                    FsOp::Overlay { sources: vec![source.clone()], top: OverlayTop::Tmpfs, target: target.clone() }
                }
            });
            policy.caches.push(cache);
        }
    }
    Ok(())
}
