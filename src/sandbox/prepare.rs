//! What the child needs, made before the clone: strings for system calls, so that nothing of it can fail there.

use std::cell::RefCell;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;

use super::failure::Fault;
use super::scratch::Folder;
use crate::plan::{Plan, Step};
use crate::seccomp::Flag;

/// Standard descriptors of the command; `None` inherits the caller's.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
}

/// A program that is executed by its descriptor instead of a path: it needs no place in the new root.
#[derive(Debug)]
pub struct Image(pub OwnedFd);

/// The plan with its strings ready.
pub(super) struct Prepared<'a> {
    pub(super) plan: &'a Plan,
    pub(super) argv: Vec<CString>,
    pub(super) environment: Vec<CString>,
    /// `PWD=…` for each directory that the command may start in, where the variable is set.
    pub(super) pwd: Vec<CString>,
    pub(super) candidates: Vec<CString>,
    pub(super) sources: Vec<CString>,
    pub(super) filters: Vec<(Vec<libc::sock_filter>, libc::c_ulong)>,
    pub(super) stdio: &'a Stdio,
    pub(super) image: Option<&'a Image>,
    /// The private folder, where there is no root of its own.
    pub(super) folder: Option<&'a Folder>,
    /// What goes to the supervisor besides a fault, in the child.
    told: RefCell<Told>,
}

/// What the child says besides its fault.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// What was found in a target's place.
    pub(super) detail: OsString,
    /// Faults that are worth a warning.
    pub(super) warnings: Vec<Fault>,
}

/// NUL bytes were refused by `plan`, so nothing is lost here.
pub(super) fn c_string(text: impl AsRef<OsStr>) -> CString {
    CString::new(text.as_ref().as_bytes()).unwrap_or_default()
}

impl<'a> Prepared<'a> {
    pub(super) fn new(plan: &'a Plan, stdio: &'a Stdio, image: Option<&'a Image>) -> Self {
        let command = &plan.command;
        let variable = |(name, value): &(OsString, OsString)| {
            let mut text = name.clone();
            text.push("=");
            text.push(value);
            c_string(text)
        };
        let pwd = |directory: &PathBuf| variable(&("PWD".into(), directory.clone().into_os_string()));
        let source = |step: &Step| match step {
            Step::Bind { source, .. } => c_string(source),
            _ => CString::default(),
        };
        let filter = |filter: &crate::seccomp::Filter| {
            let instructions = filter.program.instructions().iter();
            let instructions = instructions.map(|i| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k });
            // How calls wait for a listener is for the filter that has one.
            let is_gate = plan.gate && plan.filters.first().is_some_and(|first| std::ptr::eq(first, filter));
            let flags = filter.flags.iter().filter(|flag| is_gate || **flag != Flag::WaitKillableRecv);
            (instructions.collect(), flags.fold(0, |bits, flag| bits | flag_bits(*flag)))
        };
        Self {
            plan,
            argv: command.argv.iter().map(c_string).collect(),
            environment: command.environment.iter().map(variable).collect(),
            pwd: if plan.bubblewrap.is_some() { command.workdir.iter().map(pwd).collect() } else { Vec::new() },
            candidates: command.candidates.iter().map(c_string).collect(),
            sources: plan.steps.iter().map(source).collect(),
            filters: plan.filters.iter().map(filter).collect(),
            stdio,
            image,
            folder: None,
            told: RefCell::default(),
        }
    }

    /// The private folder, if that is its path.
    pub(super) fn folder_at(&self, path: &Path) -> Option<&'a Folder> {
        let planned = self.plan.in_place.as_ref()?.scratch.as_ref()?;
        self.folder.filter(|_| planned.path == path)
    }

    /// Keeps what was found in a target's place.
    pub(super) fn note(&self, detail: OsString) {
        self.told.borrow_mut().detail = detail;
    }

    /// Keeps a fault that is worth a warning.
    pub(super) fn warn(&self, fault: Fault) {
        self.told.borrow_mut().warnings.push(fault);
    }

    pub(super) fn take_told(&self) -> Told {
        self.told.take()
    }
}

/// seccomp(2), SECCOMP_FILTER_FLAG_*.
fn flag_bits(flag: Flag) -> libc::c_ulong {
    match flag {
        Flag::Log => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::WaitKillableRecv => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        // There is one thread.
        Flag::Tsync => 0,
    }
}
