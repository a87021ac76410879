//! The allowlist as the kernel can hold it: which files may be executed inside, and which libraries they need
//! mapped. Everything else is mounted noexec, so that not even the dynamic loader can map it
//! (mmap(2): EPERM for PROT_EXEC on a noexec mount), and Landlock EXECUTE names the commands and loaders.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::view::{Seen, View};
use super::{PlanError, Step, inside, search_path, variable};
use crate::host::{Elf, Host, Identity, Kind, Program};
use crate::policy::{CommandEnforcement, Policy, SandboxPath};
use crate::sys;

/// What may be executed inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Executables {
    /// The files that allowed words mean.
    pub commands: BTreeSet<SandboxPath>,
    /// Folders that a pattern such as `/usr/bin/*` allows in whole.
    pub folders: BTreeSet<SandboxPath>,
    /// Dynamic loaders, which the kernel executes for the commands.
    pub loaders: BTreeSet<SandboxPath>,
    /// Libraries that are mapped but can't be executed.
    pub libraries: BTreeSet<SandboxPath>,
    /// Folders of libraries, where single libraries can't be told.
    pub library_folders: BTreeSet<SandboxPath>,
    /// Allowed scripts whose interpreter is not allowed: they can't start.
    pub scripts_without_interpreter: BTreeSet<(SandboxPath, PathBuf)>,
    /// Which files and folders of the host all these are: no other one under such a name becomes executable.
    #[serde(skip)]
    pub identities: BTreeMap<SandboxPath, Identity>,
    /// Allowed files that are many commands in one, which the kernel can't tell apart.
    pub many_commands: BTreeSet<SandboxPath>,
}

/// Above so many commands, libraries are allowed by the folder: a mount for each would cost more than it tells.
const MOST_FILES: usize = 48;

/// Folders of libraries on the distributions there are. Followed inside, so that merged /usr counts once.
const LIBRARY_FOLDERS: &[&str] =
    &["/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32", "/usr/local/lib", "/usr/local/lib64"];

/// Loaders by the paths that the ABIs fix.
const LOADERS: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-linux-riscv64-lp64d.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
    "/lib/ld-musl-riscv64.so.1",
];

/// Folders below glibc-hwcaps; others than x86-64 have none yet.
const CPU_LEVELS: [&str; 3] = ["x86-64-v4", "x86-64-v3", "x86-64-v2"];

/// Of ldconfig(8).
const LOADER_CACHE: &str = "/etc/ld.so.cache";

/// Names of programs that look at argv\[0\] to see which command they are.
const MULTI_CALL: &[&str] = &["busybox", "toybox", "coreutils", "uutils", "sbase-box"];

impl Executables {
    /// What is bound over itself without noexec, parents before what lies in them.
    pub fn mounts(&self) -> impl Iterator<Item = &SandboxPath> {
        let folders = self.folders.union(&self.library_folders);
        let in_folder =
            |path: &SandboxPath| self.folders.iter().chain(&self.library_folders).any(|folder| path.is_under(folder));
        let files = self.commands.iter().chain(&self.loaders).chain(&self.libraries);
        folders.chain(files.filter(move |path| !in_folder(path)))
    }

    /// What Landlock lets be executed.
    pub fn executable(&self) -> impl Iterator<Item = &SandboxPath> {
        self.folders.iter().chain(&self.commands).chain(&self.loaders)
    }
}

pub(super) fn build(
    policy: &Policy,
    host: &Host,
    steps: &[Step],
    environment: &[(OsString, OsString)],
) -> Result<Option<Executables>, PlanError> {
    let patterns = &policy.allowed_commands;
    if patterns.is_empty()
        || policy.command_enforcement == CommandEnforcement::Argv0
        || patterns.iter().any(|p| p == "*")
    {
        return Ok(None);
    }
    let mut search = Search {
        view: View::new(steps, host.files.as_ref()),
        host,
        path: search_path(environment),
        library_path: variable(environment, "LD_LIBRARY_PATH")
            .map(|path| std::env::split_paths(path).collect())
            .unwrap_or_default(),
        library_folders: OnceCell::new(),
        has_cache: false,
        found: Executables::default(),
    };
    let cache = search.view.resolve(Path::new(LOADER_CACHE));
    search.has_cache = cache.and_then(|seen| seen.host).is_some_and(|host| host == Path::new(LOADER_CACHE));
    for pattern in patterns {
        search.allow(pattern);
    }
    search.follow_programs();
    search.identify();
    Ok(Some(search.found))
}

struct Search<'a> {
    view: View<'a>,
    host: &'a Host,
    path: Vec<PathBuf>,
    library_path: Vec<PathBuf>,
    library_folders: OnceCell<Vec<SandboxPath>>,
    /// The loader inside reads the host's cache.
    has_cache: bool,
    found: Executables,
}

impl Search<'_> {
    fn allow(&mut self, pattern: &str) {
        let is_wild = pattern.contains(['*', '?', '[']);
        let (folder, name) = match pattern.rsplit_once('/') {
            Some(("", name)) => (Some("/"), name),
            Some((folder, name)) => (Some(folder), name),
            None => (None, pattern),
        };
        match (folder, is_wild) {
            (None, false) => {
                // As execvp(3): the first that is there and executable.
                let seen = self.path.iter().find_map(|dir| self.executable_file(&dir.join(name)));
                self.allow_file(name, seen);
            }
            (Some(_), false) => self.allow_file(name, self.executable_file(Path::new(pattern))),
            (None, true) => {
                for folder in self.path.clone() {
                    self.allow_matching(&folder, name);
                }
            }
            (Some(folder), true) if !folder.contains(['*', '?', '[']) => self.allow_matching(Path::new(folder), name),
            // A wildcard in the middle of the path: whatever is below its fixed part may be meant.
            (Some(folder), true) => {
                let fixed: PathBuf = Path::new(folder)
                    .components()
                    .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']))
                    .collect();
                self.allow_matching(&fixed, "*");
            }
        }
    }

    fn executable_file(&self, path: &Path) -> Option<Seen> {
        self.view.resolve(path).filter(|seen| matches!(seen.kind, Kind::File { executable: true }))
    }

    fn allow_file(&mut self, word: &str, seen: Option<Seen>) {
        let Some(seen) = seen else { return };
        let name =
            seen.inside.as_path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name != word && MULTI_CALL.iter().any(|multi| name == *multi || name.starts_with(&format!("{multi}."))) {
            self.found.many_commands.insert(seen.inside.clone());
        }
        self.found.commands.insert(seen.inside);
    }

    fn allow_matching(&mut self, folder: &Path, pattern: &str) {
        let Some(Seen { inside, host: Some(host), kind: Kind::Directory }) = self.view.resolve(folder) else { return };
        if pattern == "*" {
            self.found.folders.insert(inside);
            return;
        }
        let names = self.host.files.names(&host).unwrap_or_default();
        for name in names.iter().filter(|name| sys::fnmatch(pattern, name)) {
            let seen = self.executable_file(&inside.as_path().join(name));
            self.allow_file(&name.to_string_lossy(), seen);
        }
    }

    /// Adds loaders and libraries of the commands found.
    fn follow_programs(&mut self) {
        let by_folder = !self.found.folders.is_empty() || self.found.commands.len() > MOST_FILES;
        if by_folder {
            self.found.library_folders = self.folders(LIBRARY_FOLDERS.iter().map(PathBuf::from)).into_iter().collect();
            let loaders = LOADERS.iter().filter_map(|loader| self.executable_file(Path::new(loader)));
            self.found.loaders = loaders.map(|seen| seen.inside).collect();
        }
        let mut todo: Vec<SandboxPath> = self.found.commands.iter().cloned().collect();
        let mut seen_files: BTreeSet<SandboxPath> = todo.iter().cloned().collect();
        while let Some(path) = todo.pop() {
            let Some(Seen { host: Some(host), .. }) = self.view.resolve(path.as_path()) else { continue };
            match self.host.files.program(&host) {
                Ok(Program::Elf(elf)) if !by_folder => {
                    let more = self.follow_elf(&path, &elf);
                    todo.extend(more.into_iter().filter(|library| seen_files.insert(library.clone())));
                }
                Ok(Program::Script { interpreter }) => self.check_interpreter(path, interpreter),
                // Unreadable or no program: the kernel will say so when it is tried.
                _ => {}
            }
        }
    }

    /// What the sandbox itself makes is nobody else's to change, and has no file of the host behind it.
    fn identify(&mut self) {
        let found = &self.found;
        let folders = found.folders.iter().chain(&found.library_folders);
        let all = folders.chain(&found.commands).chain(&found.loaders).chain(&found.libraries);
        let of_host = all.filter_map(|path| Some((path, self.view.look(path)?.host?)));
        // What can't be looked at any more is no file: none has the number 0.
        let identity = |host: &Path| self.host.files.identity(host).unwrap_or_default();
        self.found.identities = of_host.map(|(path, host)| (path.clone(), identity(&host))).collect();
    }

    fn check_interpreter(&mut self, script: SandboxPath, interpreter: PathBuf) {
        let allowed = self.view.resolve(&interpreter).is_some_and(|seen| {
            self.found.commands.contains(&seen.inside)
                || self.found.folders.iter().any(|folder| seen.inside.is_under(folder))
        });
        if !allowed {
            self.found.scripts_without_interpreter.insert((script, interpreter));
        }
    }

    fn follow_elf(&mut self, path: &SandboxPath, elf: &Elf) -> Vec<SandboxPath> {
        if let Some(loader) = elf.loader.as_deref().and_then(|loader| self.view.resolve(loader)) {
            self.found.loaders.insert(loader.inside);
        }
        let origin = path.as_path().parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let own =
            elf.search.iter().map(|dir| PathBuf::from(dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin)));
        let own = self.folders(own.chain(self.library_path.clone()).collect::<Vec<_>>());
        let mut found = Vec::new();
        for name in &elf.needed {
            found.extend(self.find_library(name, &own));
        }
        self.found.libraries.extend(found.iter().filter(|library| !self.found.loaders.contains(library)).cloned());
        found
    }

    /// Every file that the loader might take for a library name (ld.so(8)): those in the folders that the program
    /// names, those that the loader's cache names (one for each CPU level), and only where there is none of either,
    /// those in the standard folders.
    fn find_library(&self, name: &str, own: &[SandboxPath]) -> Vec<SandboxPath> {
        let file = |path: &Path| {
            self.view.resolve(path).filter(|seen| matches!(seen.kind, Kind::File { .. })).map(|seen| seen.inside)
        };
        if name.contains('/') {
            return file(Path::new(name)).into_iter().collect();
        }
        let in_folders = |folders: &[SandboxPath]| -> Vec<SandboxPath> {
            folders.iter().filter_map(|folder| file(folder.join(name).as_path())).collect()
        };
        let mut found = in_folders(own);
        if self.has_cache {
            found.extend(self.host.files.cached_libraries(name).iter().filter_map(|path| file(path)));
        }
        if found.is_empty() {
            found = in_folders(self.standard_folders());
        }
        found
    }

    /// The loader's default folders and their CPU variants, found once.
    fn standard_folders(&self) -> &[SandboxPath] {
        self.library_folders.get_or_init(|| {
            let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
            let names = ["/usr/local/lib", "/usr/lib", "/lib"].map(|lib| format!("{lib}/{multiarch}"));
            let names = names.into_iter().chain(LIBRARY_FOLDERS.iter().map(|&name| name.to_owned()));
            let plain = self.folders(names.map(PathBuf::from));
            let variants = plain.iter().map(|folder| folder.join("glibc-hwcaps"));
            let variants = variants.filter(|folder| self.view.resolve(folder.as_path()).is_some());
            let variants: Vec<PathBuf> =
                variants.flat_map(|folder| CPU_LEVELS.map(|level| folder.as_path().join(level))).collect();
            let mut all = self.folders(variants);
            all.extend(plain);
            all
        })
    }

    /// The folders among `paths` that exist inside, each once, in order.
    fn folders(&self, paths: impl IntoIterator<Item = PathBuf>) -> Vec<SandboxPath> {
        let mut found = Vec::new();
        for path in paths {
            if let Some(Seen { inside: folder, kind: Kind::Directory, .. }) =
                inside(&path).and_then(|path| self.view.resolve(path.as_path()))
                && !found.contains(&folder)
            {
                found.push(folder);
            }
        }
        found
    }
}
