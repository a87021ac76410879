//! What makes a process powerless, in the order that the kernel dictates. Irreversible. `exec` takes the proof that
//! it was done, so executing unconfined does not compile.

use std::error::Error;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use landlock::{
    ABI, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::libc;
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::{execve, execveat};

use super::descriptors::close_all_but;
use super::executable::open_planned;
use super::failure::{At, Fault, Stage};
use super::message::Message;
use super::prepare::Prepared;
use crate::host::open_without_links;
use crate::plan::{CapabilityPlan, LandlockPlan, Rights, RuleObject};
use crate::sys;

/// Proof that the capabilities are those of the plan, and that none can be gained.
#[derive(Debug)]
pub(super) struct Settled(());

/// Proof that every layer of the plan is in force on this process.
#[derive(Debug)]
pub(super) struct Confined(());

/// Proof that a signal from here reaches no process outside this one's Landlock domain.
#[derive(Debug)]
pub(super) struct Scoped(());

/// Whether the bounding set must be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounding {
    Emptied,
    /// Without CAP_SETPCAP it stays: no_new_privs keeps it from being drawn on (execve(2)).
    MayStay,
}

/// Empties the capability sets, sets no_new_privs, and reads the state back.
pub(super) fn drop_privileges(bounding: Bounding) -> Result<Settled, Fault> {
    let held = |_| Errno::EPERM;
    // Bounding first: dropping from it needs CAP_SETPCAP. By number until the kernel knows no more, since a newer
    // kernel has more capabilities than any list.
    let mut count = 0;
    loop {
        match sys::drop_bounding(count) {
            Ok(true) => count += 1,
            Ok(false) => break,
            Err(Errno::EPERM) if count == 0 && bounding == Bounding::MayStay => break,
            Err(errno) => return Err(errno).at_index(Stage::Capabilities, count.into()),
        }
    }
    caps::clear(None, caps::CapSet::Ambient).map_err(held).at(Stage::Capabilities)?;
    // Effective before permitted, as capset(2) wants the one to be a subset of the other.
    for set in [caps::CapSet::Effective, caps::CapSet::Inheritable, caps::CapSet::Permitted] {
        caps::clear(None, set).map_err(held).at(Stage::Capabilities)?;
    }
    prctl::set_no_new_privs().at(Stage::NoNewPrivileges)?;
    verify(count)?;
    Ok(Settled(()))
}

/// Under bubblewrap's contract: sets no_new_privs and leaves what the plan leaves, in all sets.
pub(super) fn keep_capabilities(plan: CapabilityPlan) -> Result<Settled, Fault> {
    prctl::set_no_new_privs().at(Stage::NoNewPrivileges)?;
    let permitted = held(caps::CapSet::Permitted)?;
    let kept = match plan {
        CapabilityPlan::Unchanged => held(caps::CapSet::Effective)?,
        CapabilityPlan::Only(wanted) => {
            let kept = wanted & permitted;
            drop_others(kept)?;
            kept
        }
    };
    // So that a program without file capabilities has them too, where the inheritable set allows it.
    for number in (0..u8::MAX).take(64).filter(|number| kept & (1 << number) != 0) {
        match sys::raise_ambient(number) {
            Ok(()) | Err(Errno::EPERM | Errno::EINVAL) => {}
            Err(errno) => return Err(errno).at_index(Stage::Capabilities, number.into()),
        }
    }
    if held(caps::CapSet::Effective)? & !kept != 0 {
        return Err(Errno::EPERM).at(Stage::CapabilitiesHeld);
    }
    match prctl::get_no_new_privs() {
        Ok(true) => Ok(Settled(())),
        Ok(false) | Err(_) => Err(Errno::EPERM).at(Stage::NoNewPrivileges),
    }
}

/// Empties the sets but for `kept`, and reads them back.
fn drop_others(kept: u64) -> Result<(), Fault> {
    let refused = |_| Errno::EPERM;
    for number in (0..u8::MAX).filter(|number| *number >= 64 || kept & (1 << number) == 0) {
        match sys::drop_bounding(number) {
            // Root of a container without CAP_SETPCAP; no_new_privs keeps the set from being drawn on.
            Ok(true) | Err(Errno::EPERM) => {}
            Ok(false) => break,
            Err(errno) => return Err(errno).at_index(Stage::Capabilities, number.into()),
        }
    }
    caps::clear(None, caps::CapSet::Ambient).map_err(refused).at(Stage::Capabilities)?;
    let wanted = caps::all().into_iter().filter(|capability| kept & capability.bitmask() != 0).collect();
    // Inheritable and effective before permitted, which bounds both (capset(2)).
    for set in [caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::set(None, set, &wanted).map_err(refused).at(Stage::Capabilities)?;
    }
    for set in [caps::CapSet::Inheritable, caps::CapSet::Permitted] {
        if held(set)? & !kept != 0 {
            return Err(Errno::EPERM).at(Stage::CapabilitiesHeld);
        }
    }
    Ok(())
}

fn held(set: caps::CapSet) -> Result<u64, Fault> {
    crate::host::capability_bits(set).map_err(|_| Errno::EPERM).at(Stage::CapabilitiesHeld)
}

/// The kernel's own word for it. Ambient is a subset of permitted (capabilities(7)), so it needs no look.
fn verify(count: u8) -> Result<(), Fault> {
    for set in [caps::CapSet::Effective, caps::CapSet::Inheritable, caps::CapSet::Permitted] {
        let left = caps::read(None, set).map_err(|_| Errno::EPERM).at(Stage::CapabilitiesHeld)?;
        if !left.is_empty() {
            return Err(Errno::EPERM).at(Stage::CapabilitiesHeld);
        }
    }
    for capability in 0..count {
        if sys::in_bounding(capability).at(Stage::CapabilitiesHeld)? != Some(false) {
            return Err(Errno::EPERM).at_index(Stage::CapabilitiesHeld, capability.into());
        }
    }
    match prctl::get_no_new_privs() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Errno::EPERM).at(Stage::NoNewPrivileges),
        Err(errno) => Err(errno).at(Stage::NoNewPrivileges),
    }
}

/// Enters a Landlock domain in which only signals are confined: the command's own lies below it. A domain that says nothing of
/// moves between folders refuses them (landlock(7), LANDLOCK_ACCESS_FS_REFER).
pub(super) fn confine_signals(_: &Settled) -> Result<Scoped, Fault> {
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).at(Stage::LandlockRestrict)?;
    let enter = || {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let ruleset = ruleset.handle_access(AccessFs::Refer)?.scope(Scope::Signal)?;
        ruleset.create()?.add_rule(PathBeneath::new(root.as_fd(), AccessFs::Refer))?.restrict_self()
    };
    let status = enter().map_err(|error| errno_of(&error)).at(Stage::LandlockRestrict)?;
    if status.ruleset == RulesetStatus::FullyEnforced {
        Ok(Scoped(()))
    } else {
        Err(Errno::ENOTSUP).at(Stage::LandlockRestrict)
    }
}

/// Builds the Landlock ruleset. After pivot_root: a domain forbids mounts, and paths must be those inside.
pub(super) fn ruleset(prepared: &Prepared<'_>, plan: &LandlockPlan) -> Result<RulesetCreated, Fault> {
    let whole = prepared.plan;
    let abi = known_abi(plan.abi);
    let create = || {
        // Everything that the plan relies on must be handled: a kernel that can't is an error, not a smaller set.
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        ruleset = ruleset.handle_access(all_rights(abi))?;
        if plan.refuse_tcp {
            ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
        }
        if plan.scope {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
        }
        ruleset.create()
    };
    let mut ruleset = create().map_err(|error| errno_of(&error)).at(Stage::LandlockRuleset)?;
    for (index, rule) in plan.rules.iter().enumerate() {
        let mut rights = rights(rule.rights, abi);
        if !rule.directory {
            rights &= AccessFs::from_file(abi);
        }
        let added = match &rule.object {
            RuleObject::Path(path) if whole.in_place.is_some() => match prepared.folder_at(path.as_path()) {
                Some(folder) => {
                    folder.check(path.as_path()).at(Stage::Scratch)?;
                    add_rule(ruleset, folder, rights)
                }
                None => match open_without_links(path.as_path()) {
                    Ok(fd) => add_rule(ruleset, &fd, rights),
                    // Gone since the plan was made: there is nothing to allow.
                    Err(Errno::ENOENT) => continue,
                    Err(errno) => Err(errno),
                },
            },
            RuleObject::Path(path) => open_planned(whole, path).and_then(|fd| add_rule(ruleset, &fd, rights)),
            RuleObject::Descriptor(number) => add_rule(ruleset, &sys::borrow_number(i32::from(*number)), rights),
        };
        ruleset = added.at_index(Stage::LandlockRule, index)?;
    }
    Ok(ruleset)
}

fn add_rule(ruleset: RulesetCreated, object: &impl AsFd, rights: BitFlags<AccessFs>) -> nix::Result<RulesetCreated> {
    if rights.is_empty() {
        return Ok(ruleset);
    }
    ruleset.add_rule(PathBeneath::new(object.as_fd(), rights)).map_err(|error| errno_of(&error))
}

/// The newest ABI that both sides know.
fn known_abi(abi: i32) -> ABI {
    match abi {
        ..=0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        _ => ABI::V6,
    }
}

fn all_rights(abi: ABI) -> BitFlags<AccessFs> {
    AccessFs::from_read(abi) | AccessFs::from_write(abi)
}

fn rights(rights: Rights, abi: ABI) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let wanted = match rights {
        Rights::Read => read,
        Rights::ReadExecute | Rights::Execute => read | AccessFs::Execute,
        // Device nodes can't be made without CAP_MKNOD, and are not to be opened where binds are nodev.
        Rights::Write => {
            (AccessFs::from_write(abi) | read) & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev)
        }
        Rights::WriteFiles => AccessFs::ReadFile | AccessFs::WriteFile,
        Rights::List => AccessFs::ReadDir.into(),
        Rights::Devices => read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev,
    };
    wanted & all_rights(abi)
}

/// Crate landlock keeps the errno at the end of the chain of causes.
fn errno_of(error: &(dyn Error + 'static)) -> Errno {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Errno::from_raw(number);
        }
        cause = error.source();
    }
    Errno::EINVAL
}

/// Enters the Landlock domain and installs the filters. Nothing may fail to be in force.
pub(super) fn confine(
    _: &Settled,
    ruleset: Option<RulesetCreated>,
    prepared: &Prepared<'_>,
    channel: &OwnedFd,
) -> Result<Confined, Fault> {
    if let Some(ruleset) = ruleset {
        let status = ruleset.restrict_self().map_err(|error| errno_of(&error)).at(Stage::LandlockRestrict)?;
        if status.ruleset != RulesetStatus::FullyEnforced {
            return Err(Errno::ENOTSUP).at(Stage::LandlockRestrict);
        }
    }
    // All of ours are close-on-exec; this is for one that some day is not. Before the filters, which may refuse it.
    let image = prepared.image.map(|image| image.0.as_raw_fd());
    let channel = prepared.plan.gate.then_some(channel);
    let kept: Vec<_> = image.into_iter().chain(channel.map(AsRawFd::as_raw_fd)).collect();
    close_all_but(3, &kept).at(Stage::Descriptors)?;
    install_filters(prepared, channel)?;
    Ok(Confined(()))
}

/// Under bubblewrap's contract there are only filters, and descriptors are passed on.
pub(super) fn confine_by_filters(_: &Settled, prepared: &Prepared<'_>) -> Result<Confined, Fault> {
    install_filters(prepared, None)?;
    Ok(Confined(()))
}

/// `gate` is where the listener of the first filter goes, if that is the launch gate.
fn install_filters(prepared: &Prepared<'_>, gate: Option<&OwnedFd>) -> Result<(), Fault> {
    for (index, (instructions, flags)) in prepared.filters.iter().enumerate() {
        match gate {
            // The gate comes first: sending is up to no other filter yet.
            Some(channel) if index == 0 => {
                let listener = install_gate(instructions, *flags).at_index(Stage::Filter, index)?;
                Message::Listening.send_with(channel, listener).at(Stage::Listener)?;
            }
            _ if index < prepared.plan.prctl_from => {
                sys::install_filter(instructions, *flags).at_index(Stage::Filter, index)?;
            }
            _ => sys::install_filter_by_prctl(instructions).at_index(Stage::Filter, index)?,
        }
    }
    Ok(())
}

/// A call that waits for its answer is interrupted by nothing but death (Linux 5.19), so that no loader sees EINTR.
fn install_gate(instructions: &[libc::sock_filter], flags: libc::c_ulong) -> nix::Result<OwnedFd> {
    match sys::install_asking_filter(instructions, flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(Errno::EINVAL) => sys::install_asking_filter(instructions, flags),
        installed => installed,
    }
}

/// Executes, in the directory with this place in the plan. Comes back only with the reason why it could not.
pub(super) fn exec(_: &Confined, prepared: &Prepared<'_>, path: &CString, directory: usize) -> Fault {
    let argv = &prepared.argv;
    let environment: Vec<_> = prepared.environment.iter().chain(prepared.pwd.get(directory)).collect();
    let environment = environment.as_slice();
    let failed = match prepared.image {
        Some(image) => execveat(&image.0, c"", argv, environment, AtFlags::AT_EMPTY_PATH),
        None => execve(path, argv, environment),
    };
    let mut errno = failed.err().unwrap_or(Errno::ENOEXEC);
    if errno == Errno::ENOEXEC && prepared.plan.bubblewrap.is_some() {
        // As execvp(3): a text without "#!" is the shell's.
        let shell = [c"/bin/sh", path.as_c_str()];
        let argv: Vec<&CStr> = shell.into_iter().chain(argv.iter().skip(1).map(CString::as_c_str)).collect();
        errno = execve(c"/bin/sh", &argv, environment).err().unwrap_or(errno);
    }
    Fault { stage: Stage::Exec, index: 0, errno }
}
