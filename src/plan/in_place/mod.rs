//! The lowest rung: no namespaces, no root of its own. Landlock allows what the policy shows and nothing else, filters close
//! what Landlock leaves open, and a private folder stands in for each tmpfs. What is known not to hold here is refused or
//! reported (README lists the gaps); what only makes the place look right may be missing, and is named.

mod expected;
mod layout;
mod mounts;
mod rules;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::layout::{Access, Content, Layout, Shown, real_path};
use self::mounts::{DEV, Mounts};
use self::rules::Rules;
use super::confinement::{ABI_NET, ABI_SCOPE};
use super::ladder::Choice;
use super::view::View;
use super::{DEVICES, LandlockPlan, Plan, PlanError, Rights, Skipped, Step, inside, lossy_path, terminal_rule};
use crate::host::{Host, Identity};
use crate::policy::{Network, Policy, SandboxPath};
use crate::report::{Enforcement, Layer};

/// What there is in place of namespaces.
#[derive(Debug, Clone, Serialize)]
pub struct InPlace {
    /// Why there are no namespaces.
    pub because: String,
    /// What is missing of the place that the policy describes. What is missing of protection is in `expected`.
    pub lost: Vec<String>,
    /// The private folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Scratch>,
    /// Folders of devices, other than /dev, that are shown and whose nodes can't be opened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<PathBuf>,
    /// What may be mapped executable under an allowlist. No mount is noexec here, so each such mapping is asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mappings: Option<Mappings>,
}

/// What an allowlist's commands may map executable: themselves and their libraries.
#[derive(Debug, Clone, Serialize)]
pub struct Mappings {
    /// These files.
    #[serde(skip)]
    pub files: Vec<Identity>,
    /// And all that lie in these folders of the host's.
    pub folders: Vec<PathBuf>,
}

/// A folder of the host's for one run, gone afterwards.
#[derive(Debug, Clone, Serialize)]
pub struct Scratch {
    /// It must not exist yet.
    #[serde(serialize_with = "lossy_path")]
    pub path: PathBuf,
    /// Folders in it, parents first.
    pub folders: Vec<PathBuf>,
}

/// Turns a plan whose steps are those of a new root into one that stays in the host's.
pub(super) fn decide(plan: &mut Plan, policy: &Policy, host: &Host, choice: &Choice) -> Result<(), PlanError> {
    let layout = Layout::new(&plan.steps, host);
    let mut decision =
        Decision { policy, host, choice, layout, lost: Vec::new(), degraded: Vec::new(), devices: Vec::new() };
    decision.refuse_impossible(plan)?;
    let scratch = decision.scratch(plan);
    let landlock = decision.landlock(plan, scratch.as_ref())?;
    let mappings = decision.mappings(plan)?;
    decision.move_to_scratch(plan, scratch.as_ref());
    let Decision { layout, lost, degraded, devices, .. } = decision;
    let lost = layout.lost.iter().cloned().chain(lost).collect();
    plan.steps.clear();
    plan.hostname = None;
    plan.landlock = Some(landlock);
    plan.in_place = Some(InPlace { because: choice.cause().cause, lost, scratch, devices, mappings });
    plan.expected = expected::layers(plan, policy, host);
    for (layer, promise) in degraded {
        plan.expected.insert(layer, Enforcement::Partial { missing: promise });
    }
    Ok(())
}

struct Decision<'a> {
    policy: &'a Policy,
    host: &'a Host,
    choice: &'a Choice,
    layout: Layout,
    lost: Vec<String>,
    /// Promises that do not hold and that the caller gives up.
    degraded: Vec<(Layer, String)>,
    devices: Vec<PathBuf>,
}

impl Decision<'_> {
    /// A promise that can't be kept: refused, unless the caller said that it may be missing.
    fn give_up(&mut self, layer: Layer, promise: String) -> Result<(), PlanError> {
        if self.policy.allow_degraded.contains(&layer) {
            self.degraded.push((layer, promise));
            return Ok(());
        }
        Err(PlanError::NotInPlace { promise, layer, cause: self.choice.cause(), needed: false })
    }

    fn refuse_impossible(&mut self, plan: &mut Plan) -> Result<(), PlanError> {
        for step in std::mem::take(&mut self.layout.impossible) {
            if matches!(step, Step::Overlay { .. } | Step::Data { .. }) {
                // What is written to an overlay would go nowhere, and a secret not be there.
                let (promise, layer) = (step.to_string(), Layer::MountNamespace);
                return Err(PlanError::NotInPlace { promise, layer, cause: self.choice.cause(), needed: true });
            }
            self.give_up(Layer::MountNamespace, step.to_string())?;
            let why = "there is no root of its own".to_owned();
            plan.skipped.push(Skipped { source: None, target: step.target().clone(), why });
        }
        Ok(())
    }

    /// One folder with all that the policy wants empty in it, each under its own path.
    fn scratch(&mut self, plan: &Plan) -> Option<Scratch> {
        let entries = self.layout.entries.iter().filter(|entry| entry.content == Content::Scratch);
        let mut wanted: Vec<SandboxPath> = entries.map(|entry| entry.target.clone()).collect();
        // The command starts where it was told to, if that is in one of them.
        wanted.extend(plan.command.workdir.iter().filter_map(inside).filter(|path| self.is_scratch(path)));
        wanted.sort();
        wanted.dedup();
        if wanted.is_empty() {
            return None;
        }
        let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let Some(path) = self.host.scratch.clone() else {
            self.lost.push(format!("empty folders at {}: there is no place for a private folder", names.join(", ")));
            return None;
        };
        self.lost.push(format!(
            "empty folders at {}: a private folder stands in for them in HOME, TMPDIR and as working directory",
            names.join(", ")
        ));
        let mut folders: Vec<PathBuf> = Vec::new();
        for target in wanted.iter().map(SandboxPath::as_path).chain([Path::new("/tmp")]) {
            let below = target.strip_prefix("/").unwrap_or(target);
            let mut parents: Vec<PathBuf> = below.ancestors().map(Path::to_owned).collect();
            parents.reverse();
            for folder in parents.into_iter().filter(|folder| !folder.as_os_str().is_empty()) {
                if !folders.contains(&folder) {
                    folders.push(folder);
                }
            }
        }
        Some(Scratch { path, folders })
    }

    fn is_scratch(&self, path: &SandboxPath) -> bool {
        self.layout.at(path).is_some_and(|entry| entry.content == Content::Scratch)
    }

    fn landlock(&mut self, plan: &Plan, scratch: Option<&Scratch>) -> Result<LandlockPlan, PlanError> {
        let base = if plan.executables.is_some() { Rights::Read } else { Rights::ReadExecute };
        let mut holes = self.layout.holes(self.host);
        holes.extend(self.hidden_inside(plan));
        let shown = self.layout.shown(self.host);
        let mounts = Mounts::new(self.host);
        holes.extend(mounts.procs.iter().cloned());
        self.check_writable(&shown, &holes, &mounts)?;
        self.check_proc(&holes)?;
        self.check_executable_folders(plan, holes.iter().chain(&mounts.devices))?;
        for Shown { target, source, .. } in shown.iter().filter(|shown| shown.target.as_path() != shown.source) {
            if real_path(self.host, target.as_path()).as_ref() != Some(source) {
                self.lost.push(format!("{target}, which is {} on the host", source.display()));
            }
        }
        if shown.iter().all(|shown| shown.source.as_os_str() != "/") {
            self.lost.push("listing / and other folders above what is shown".to_owned());
        }
        let mut rules = Rules::new(self.host, &holes, &mounts.devices, base);
        self.allow_shown(&mut rules, &shown, &mounts);
        for folder in std::mem::take(&mut rules.not_listed) {
            self.lost.push(format!("listing {}, which a hidden folder lies below", folder.display()));
        }
        if self.layout.has(&Content::Proc) {
            rules.rule(Path::new("/proc"), true, Rights::Read);
        }
        if self.layout.has(&Content::Dev) {
            for name in DEVICES {
                let path = Path::new("/dev").join(name);
                if self.host.files.kind(&path).is_ok() && !holes.contains(&path) {
                    rules.rule(&path, false, Rights::Devices);
                }
            }
        }
        if let Some(scratch) = scratch {
            rules.rule(&scratch.path, true, base);
            rules.rule(&scratch.path, true, Rights::Write);
        }
        if let Some(executables) = &plan.executables {
            for folder in self.on_host(&plan.steps, &executables.folders) {
                rules.rule(&folder, true, Rights::Execute);
            }
            for file in self.on_host(&plan.steps, executables.commands.iter().chain(&executables.loaders)) {
                rules.rule(&file, false, Rights::Execute);
            }
        }
        let mut rules = rules.rules;
        rules.extend(terminal_rule(self.host, self.policy.new_session));
        if self.host.terminal.is_some() && !self.policy.new_session {
            self.lost.push("job control: the command is in a session of its own".to_owned());
        }
        let abi = self.host.landlock.abi();
        Ok(LandlockPlan {
            abi,
            rules,
            refuse_tcp: abi >= ABI_NET && self.policy.network != Network::Host,
            scope: abi >= ABI_SCOPE,
        })
    }

    /// Rules for what is shown of the host, but for what a bind in a new root would not let be opened.
    fn allow_shown(&mut self, rules: &mut Rules<'_>, shown: &[Shown], mounts: &Mounts) {
        for Shown { source, directory, access, .. } in shown {
            if let Some(proc) = mounts.procs.iter().find(|proc| source.starts_with(proc)) {
                // Landlock keeps the command from other processes there, and not from sysctls.
                self.lost.push(format!("{}, which is of the procfs at {}", source.display(), proc.display()));
            } else if *access != Access::Device && mounts.has_devices(self.host, source) {
                // Their nodes can't be opened where a bind shows them.
                if *directory {
                    rules.names(source);
                    self.lost.push(format!("opening what lies in {}, where devices are", source.display()));
                }
            } else {
                rules.tree(source, *directory, *access);
            }
        }
        let is_shown = |point: &&PathBuf| {
            point.as_os_str() != DEV
                && shown.iter().any(|shown| shown.access != Access::Device && point.starts_with(&shown.source))
        };
        self.devices = mounts.devices.iter().filter(is_shown).cloned().collect();
    }

    /// What hidden paths show inside, links followed as they would be there.
    fn hidden_inside(&self, plan: &Plan) -> Vec<PathBuf> {
        let shown: Vec<Step> = plan.steps.iter().filter(|step| !matches!(step, Step::Hide { .. })).cloned().collect();
        let hidden = self.layout.entries.iter().filter(|entry| entry.content == Content::Nothing);
        self.on_host(&shown, hidden.map(|entry| &entry.target))
    }

    /// What paths inside show of the host, without links; nothing for those that show nothing of it.
    fn on_host<'a>(&self, steps: &[Step], paths: impl IntoIterator<Item = &'a SandboxPath>) -> Vec<PathBuf> {
        let view = View::new(steps, self.host.files.as_ref());
        let shows = |path: &SandboxPath| real_path(self.host, &view.resolve(path.as_path())?.host?);
        paths.into_iter().filter_map(shows).collect()
    }

    /// Processes come and go: no rule for /proc leaves something out.
    fn check_proc(&mut self, holes: &[PathBuf]) -> Result<(), PlanError> {
        let below = |hole: &&PathBuf| hole.starts_with("/proc") && hole.as_os_str() != "/proc";
        match holes.iter().find(below).filter(|_| self.layout.has(&Content::Proc)) {
            Some(hole) => self.give_up(Layer::LandlockFs, format!("hide {}", hole.display())),
            None => Ok(()),
        }
    }

    /// A folder whose files may all be executed has one rule, which also lets them be read.
    fn check_executable_folders<'a>(
        &mut self,
        plan: &Plan,
        holes: impl Iterator<Item = &'a PathBuf> + Clone,
    ) -> Result<(), PlanError> {
        let Some(executables) = &plan.executables else { return Ok(()) };
        for folder in self.on_host(&plan.steps, &executables.folders) {
            if let Some(hole) = holes.clone().find(|hole| hole.starts_with(&folder)) {
                let promise =
                    format!("hide {} in {}, where everything may be executed", hole.display(), folder.display());
                self.give_up(Layer::LandlockFs, promise)?;
            }
        }
        Ok(())
    }

    /// Landlock can't take back below a folder what it allows there.
    fn check_writable(&mut self, shown: &[Shown], holes: &[PathBuf], mounts: &Mounts) -> Result<(), PlanError> {
        for Shown { source: writable, access, .. } in shown.iter().filter(|shown| shown.access != Access::Read) {
            let below = |path: &PathBuf| path != writable && path.starts_with(writable);
            // Devices that are asked for are shown.
            let devices = mounts.devices.iter().filter(|_| *access == Access::Write);
            if let Some(hole) = holes.iter().chain(devices).find(|hole| below(hole)) {
                let promise = format!("hide {} below {}, which is writable", hole.display(), writable.display());
                self.give_up(Layer::LandlockFs, promise)?;
            }
            let read_only = shown.iter().filter(|shown| shown.access == Access::Read).map(|shown| &shown.source);
            if let Some(kept) = read_only.chain(&mounts.controls).find(|kept| below(kept)) {
                let promise =
                    format!("keep {} read-only below {}, which is writable", kept.display(), writable.display());
                self.give_up(Layer::LandlockFs, promise)?;
            }
        }
        Ok(())
    }

    /// What the commands of an allowlist may map executable; none of it may become something else.
    fn mappings(&mut self, plan: &Plan) -> Result<Option<Mappings>, PlanError> {
        let Some(executables) = &plan.executables else { return Ok(None) };
        let files = executables.commands.iter().chain(&executables.loaders).chain(&executables.libraries);
        let folders = self.on_host(&plan.steps, executables.folders.iter().chain(&executables.library_folders));
        let entries = self.layout.entries.iter();
        let writable: Vec<PathBuf> = entries
            .filter_map(|entry| match &entry.content {
                Content::Host { source, access: Access::Write | Access::Device, .. } => Some(source.clone()),
                _ => None,
            })
            .collect();
        for path in self.on_host(&plan.steps, files.clone()).iter().chain(&folders) {
            let is_folder = folders.contains(path);
            let changes = |writable: &&PathBuf| path.starts_with(writable) || is_folder && writable.starts_with(path);
            if let Some(writable) = writable.iter().find(changes) {
                let promise = format!(
                    "keep {}, which may be executed, from being changed: {} is writable",
                    path.display(),
                    writable.display()
                );
                self.give_up(Layer::Allowlist, promise)?;
            }
        }
        let files = files.filter_map(|path| executables.identities.get(path).copied()).collect();
        Ok(Some(Mappings { files, folders }))
    }

    /// Where a path would be one of the empty folders, the private folder has it.
    fn move_to_scratch(&self, plan: &mut Plan, scratch: Option<&Scratch>) {
        let moved = |path: &Path| {
            let below = inside(path).filter(|path| self.is_scratch(path))?;
            scratch.map(|scratch| scratch.path.join(below.as_path().strip_prefix("/").unwrap_or(below.as_path())))
        };
        let view = View::new(&plan.steps, self.host.files.as_ref());
        let exists = |path: &Path| path == Path::new("/") || view.resolve(path).is_some_and(|seen| seen.host.is_some());
        let workdir = plan.command.workdir.iter();
        let workdir = workdir.filter_map(|path| moved(path).or_else(|| exists(path).then(|| path.clone())));
        let mut workdir: Vec<PathBuf> = workdir.collect();
        if workdir.is_empty() {
            // There was no place for the private folder.
            workdir.push(PathBuf::from("/"));
        }
        plan.command.workdir = workdir;
        if let Some(scratch) = scratch {
            for (_, value) in &mut plan.command.environment {
                if let Some(path) = moved(Path::new(value)) {
                    *value = path.into();
                }
            }
            let temporary: OsString = scratch.path.join("tmp").into();
            if !plan.command.environment.iter().any(|(name, _)| name == "TMPDIR") {
                plan.command.environment.push(("TMPDIR".into(), temporary));
            }
        }
    }
}
