//! A plan as text, for `--dry-run`: a line a step, in the order in which they will be done.

use std::fmt;

use super::{Attributes, CapabilityPlan, InPlace, Plan, ProcCover, Rights, RuleObject, Skipped, Step};
use crate::policy::{OverlayTop, Placement};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.command.argv.iter().map(|word| word.to_string_lossy()).collect();
        writeln!(f, "profile    {}", self.name)?;
        writeln!(f, "command    {}", words.join(" "))?;
        let ids = self.ids_inside();
        writeln!(f, "ids        uid {}, gid {}", ids.uid, ids.gid)?;
        match &self.in_place {
            None => self.fmt_new_root(f)?,
            Some(in_place) => fmt_in_place(f, in_place)?,
        }
        for skipped in &self.skipped {
            writeln!(f, "  skip {skipped}")?;
        }
        self.fmt_confinement(f)?;
        writeln!(f, "\nstart:")?;
        let workdir: Vec<_> = self.command.workdir.iter().map(|dir| dir.display().to_string()).collect();
        writeln!(f, "  directory   {}", workdir.join(", else "))?;
        let candidates: Vec<_> = self.command.candidates.iter().map(|path| path.display().to_string()).collect();
        writeln!(f, "  executable  {}", candidates.join(", else "))?;
        for (name, value) in &self.command.environment {
            writeln!(f, "  environment {}={}", name.to_string_lossy(), value.to_string_lossy())?;
        }
        if let Some(timeout) = &self.timeout {
            writeln!(f, "  timeout     SIGTERM after {:?}, SIGKILL {:?} later", timeout.after, timeout.kill_after)?;
        }
        writeln!(f, "\nexpected protection:")?;
        for (layer, state) in &self.expected {
            writeln!(f, "  {:<18} {state}", layer.name())?;
        }
        Ok(())
    }
}

fn fmt_in_place(f: &mut fmt::Formatter<'_>, in_place: &InPlace) -> fmt::Result {
    writeln!(f, "rung       landlock: {}", in_place.because)?;
    writeln!(f, "\nin the host's own root:")?;
    if let Some(scratch) = &in_place.scratch {
        writeln!(f, "  make the private folder {}, and remove it afterwards", scratch.path.display())?;
    }
    for lost in &in_place.lost {
        writeln!(f, "  without {lost}")?;
    }
    for folder in &in_place.devices {
        writeln!(f, "  open no device in {}", folder.display())?;
    }
    if let Some(mappings) = &in_place.mappings {
        let count = mappings.files.len();
        write!(f, "  be asked about each executable mapping, which only {count} files can have")?;
        for folder in &mappings.folders {
            write!(f, ", and those in {}", folder.display())?;
        }
        writeln!(f)?;
    }
    Ok(())
}

impl Plan {
    fn fmt_new_root(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "namespaces mount{}", self.more_namespaces())?;
        if let Some(hostname) = &self.hostname {
            writeln!(f, "hostname   {hostname}")?;
        }
        writeln!(f, "\nnew root:")?;
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        if self.root.guard_submounts {
            writeln!(f, "  cover a procfs that a bind brings along; make a sysfs and the like read-only")?;
        }
        if self.root.seal {
            writeln!(f, "  make the root itself read-only")?;
        }
        Ok(())
    }

    fn more_namespaces(&self) -> String {
        let names = [
            (self.namespaces.pid, ", pid"),
            (self.namespaces.ipc, ", ipc"),
            (self.namespaces.uts, ", uts"),
            (self.namespaces.cgroup, ", cgroup"),
            (self.namespaces.user, ", user"),
            (self.namespaces.nested_user, ", user (second)"),
            (self.namespaces.network, ", network"),
        ];
        names.iter().filter(|(wanted, _)| *wanted).map(|(_, name)| *name).collect()
    }

    fn fmt_confinement(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nconfine:")?;
        let session = if self.new_session { ", new session" } else { "" };
        match &self.bubblewrap {
            None if self.new_keyring => writeln!(f, "  close descriptors above 2, new session keyring{session}")?,
            None => writeln!(f, "  close descriptors above 2{session}")?,
            Some(asked) => {
                let first = if asked.init { "a process of ours reaps" } else { "the command is the first process" };
                writeln!(f, "  {first}{session}")?;
            }
        }
        for limit in &self.rlimits {
            writeln!(f, "  limit {:?} to {}", limit.resource, limit.value)?;
        }
        for cgroup in &self.cgroups {
            let settings = cgroup.settings.iter().map(|setting| format!("{} {}", setting.file, setting.value));
            writeln!(f, "  cgroup {}: {}", cgroup.path.display(), settings.collect::<Vec<_>>().join(", "))?;
        }
        if let Some(cpus) = self.cpus {
            writeln!(f, "  limit to {cpus} CPUs")?;
        }
        match self.bubblewrap.as_ref().map(|asked| asked.capabilities) {
            None | Some(CapabilityPlan::Only(0)) => writeln!(f, "  drop all capabilities, set no_new_privs")?,
            Some(CapabilityPlan::Only(kept)) => writeln!(f, "  keep the capabilities {kept:#x}, set no_new_privs")?,
            Some(CapabilityPlan::Unchanged) => writeln!(f, "  keep root's capabilities, set no_new_privs")?,
        }
        if let Some(landlock) = &self.landlock {
            let tcp = if landlock.refuse_tcp { ", no TCP" } else { "" };
            let scope = if landlock.scope { ", signals and abstract sockets confined" } else { "" };
            writeln!(f, "  Landlock ABI {}{tcp}{scope}", landlock.abi)?;
            for rule in &landlock.rules {
                let object = match &rule.object {
                    RuleObject::Path(path) => path.to_string(),
                    RuleObject::Descriptor(number) => format!("terminal on descriptor {number}"),
                };
                writeln!(f, "    {:<12} {object}", rights(rule.rights))?;
            }
        }
        for filter in &self.filters {
            writeln!(f, "  seccomp {} ({} instructions)", filter.origin, filter.program.instructions().len())?;
        }
        Ok(())
    }
}

fn rights(rights: Rights) -> &'static str {
    match rights {
        Rights::Read => "read",
        Rights::ReadExecute => "read+execute",
        Rights::Execute => "execute",
        Rights::Write => "write",
        Rights::WriteFiles => "write files",
        Rights::Devices => "devices",
        Rights::List => "list",
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "bind {} to {} ({})", source.display(), self.target, self.why),
            None => write!(f, "tmpfs {} ({})", self.target, self.why),
        }
    }
}

impl fmt::Display for ProcCover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProcCover::Nothing => "",
            ProcCover::ReadOnly => ", control files read-only",
            ProcCover::Masked => ", control files masked",
        })
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set, name| if set { name } else { "" };
        let access = if self.read_only { "ro" } else { "rw" };
        write!(f, "{access}{}{}", flag(!self.nodev, ", devices"), flag(self.noexec, ", noexec"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Bind { source, target, attributes, cover, .. } => {
                write!(f, "bind {}", source.display())?;
                if source != target.as_path() {
                    write!(f, " to {target}")?;
                }
                write!(f, " ({attributes})")?;
                cover.map_or(Ok(()), |cover| write!(f, "{cover}"))
            }
            Step::Tmpfs { target, mode, size: None } => write!(f, "tmpfs {target} (mode {mode:o})"),
            Step::Tmpfs { target, mode, size: Some(size) } => {
                write!(f, "tmpfs {target} (mode {mode:o}, {size} bytes)")
            }
            Step::Proc { target, cover } => write!(f, "procfs {target}{cover}"),
            Step::BindDescriptor { fd, target, attributes } => {
                write!(f, "bind descriptor {fd} to {target} ({attributes})")
            }
            Step::Data { fd, target, placement, .. } => {
                let how = match placement {
                    Placement::File => "write",
                    Placement::Bind => "bind a file (rw) of",
                    Placement::RoBind => "bind a file (ro) of",
                };
                write!(f, "{how} what descriptor {fd} has to {target}")
            }
            Step::Overlay { sources, top, target, .. } => {
                let sources: Vec<_> = sources.iter().map(|source| source.display().to_string()).collect();
                let top = match top {
                    OverlayTop::Host { upper, .. } => format!("changes go to {}", upper.display()),
                    OverlayTop::Tmpfs => "changes are lost".to_owned(),
                    OverlayTop::Nothing => "ro".to_owned(),
                };
                write!(f, "overlay of {} at {target} ({top})", sources.join(" < "))
            }
            Step::Dev { target, console: None, .. } => write!(f, "minimal /dev at {target}"),
            Step::Dev { target, console: Some(console), .. } => {
                write!(f, "minimal /dev at {target}, console {}", console.display())
            }
            Step::Mqueue { target } => write!(f, "message queues {target}"),
            Step::Dir { target, mode } => write!(f, "directory {target} (mode {mode:o})"),
            Step::Symlink { text, target } => write!(f, "link {target} -> {}", text.display()),
            Step::Chmod { target, mode } => write!(f, "mode of {target} {mode:o}"),
            Step::RemountReadOnly { target } => write!(f, "make the mount {target} read-only"),
            Step::Hide { target } => write!(f, "hide {target}"),
            Step::Executable { target } => write!(f, "allow execution of {target}"),
        }
    }
}
