//! What a policy document means for one machine: the rules that apply there, with values that can be. Shared with the
//! build script.
//!
//! Semantics are those on which runc, containers/common and libseccomp agree.

use std::collections::BTreeSet;

use super::abi::Abi;
use super::action::Action;
use super::errno;
use super::oci::{self, ActionName, Document, Flag, Operator};

/// For which process, on which machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The kernel's own ABI.
    pub native: Abi,
    /// Capabilities in the bounding set of the process to be started, as CAP_SYS_ADMIN. A sandbox has none.
    pub capabilities: BTreeSet<String>,
    /// Version of the kernel: major and minor.
    pub kernel: (u32, u32),
}

/// Rules, resolved for a [`Context`].
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// For calls that no rule decides.
    pub default: Action,
    /// Interfaces that are filtered, the native one first; others kill.
    pub abis: Vec<Abi>,
    /// In the document's order, without those that say what the default says.
    pub rules: Vec<Rule>,
    /// How to install it.
    pub flags: BTreeSet<Flag>,
}

/// What happens to some calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Index in the document's `syscalls`.
    pub place: usize,
    /// Which calls; some may not exist anywhere.
    pub names: Vec<String>,
    /// All must hold. None: always.
    pub conditions: Vec<Condition>,
    /// Then.
    pub action: Action,
}

/// A comparison of an argument. Unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Condition {
    /// 0–5.
    pub argument: u8,
    /// How.
    pub operator: Operator,
    /// With what.
    pub value: u64,
    /// Bits that are compared; all but for [`Operator::MaskedEqual`].
    pub mask: u64,
}

impl Condition {
    /// Whether it holds for each value up to `most`: a rule for "otherwise" is written so.
    pub(super) fn always_holds(&self, most: u64) -> bool {
        match self.operator {
            Operator::GreaterOrEqual => self.value == 0,
            Operator::LessOrEqual => self.value >= most,
            Operator::MaskedEqual => self.mask == 0,
            Operator::NotEqual | Operator::Less | Operator::Equal | Operator::Greater => false,
        }
    }

    /// Whether there is a value up to `most` for which it holds.
    pub(super) fn may_hold(&self, most: u64) -> bool {
        match self.operator {
            Operator::Less => self.value > 0,
            Operator::Greater => self.value < most,
            _ => true,
        }
    }
}

/// A value that can't be, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct PolicyError {
    /// As a path through the document.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// EPERM, where a policy names no errno.
const EPERM: u16 = 1;

/// The specification's names of architectures (config-linux.md).
const ARCHITECTURES: &[&str] = &[
    "AARCH64",
    "ARM",
    "LOONGARCH64",
    "M68K",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PARISC",
    "PARISC64",
    "PPC",
    "PPC64",
    "PPC64LE",
    "RISCV64",
    "S390",
    "S390X",
    "SH",
    "SHEB",
    "X32",
    "X86",
    "X86_64",
];

impl Policy {
    /// Resolves a document.
    ///
    /// # Errors
    /// [`PolicyError`] for values that can't be, contradictions, and notifications that would hang.
    pub fn new(document: &Document, context: &Context) -> Result<Self, PolicyError> {
        let default = action(
            document.default_action,
            (document.default_errno_ret, "defaultErrnoRet"),
            (document.default_errno.as_deref(), "defaultErrno"),
        )
        .map_err(|(key, reason)| PolicyError { path: key.to_owned(), reason })?;
        if default == Action::Notify {
            // The listener's own calls would wait for the listener.
            return Err(refuse("defaultAction", "SCMP_ACT_NOTIFY can't be the default: nothing could ever answer"));
        }
        let mut rules = Vec::new();
        for (place, rule) in document.syscalls.iter().flatten().enumerate() {
            // Each rule is looked at, also those that don't apply here: a typo is one everywhere.
            let resolved = resolve(place, rule)?;
            if applies(place, rule, context)? {
                rules.extend(resolved.into_iter().filter(|rule| rule.action != default));
            }
        }
        let flags = document.flags.iter().flatten().copied().collect();
        Ok(Self { default, abis: abis(document, context.native)?, rules, flags })
    }
}

fn refuse(path: impl Into<String>, reason: impl Into<String>) -> PolicyError {
    PolicyError { path: path.into(), reason: reason.into() }
}

fn abis(document: &Document, native: Abi) -> Result<Vec<Abi>, PolicyError> {
    let known = |path: String, name: &str| match name.strip_prefix("SCMP_ARCH_") {
        Some(rest) if ARCHITECTURES.contains(&rest) => Ok(Abi::ALL.into_iter().find(|abi| abi.oci_name() == name)),
        _ => Err(refuse(path, format!("unknown architecture {name:?}"))),
    };
    let mut wanted = vec![];
    match (&document.architectures, &document.arch_map) {
        (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
            return Err(refuse("archMap", "there is `architectures` too, and only one of them can be meant"));
        }
        (list, map) => {
            for (index, name) in list.iter().flatten().enumerate() {
                wanted.extend(known(format!("architectures[{index}]"), name)?);
            }
            for (index, entry) in map.iter().flatten().enumerate() {
                let main = known(format!("archMap[{index}].architecture"), &entry.architecture)?;
                for (at, name) in entry.sub_architectures.iter().flatten().enumerate() {
                    let sub = known(format!("archMap[{index}].subArchitectures[{at}]"), name)?;
                    wanted.extend(sub.filter(|_| main == Some(native)));
                }
            }
        }
    }
    let wanted = |abi: &Abi| *abi != native && native.may_run(*abi) && wanted.contains(abi);
    Ok(std::iter::once(native).chain(Abi::ALL.into_iter().filter(wanted)).collect())
}

fn action(
    name: ActionName,
    (number, number_key): (Option<u32>, &'static str),
    (text, text_key): (Option<&str>, &'static str),
) -> Result<Action, (&'static str, String)> {
    let by_name = match text.filter(|text| !text.is_empty()) {
        Some(text) => Some(errno::number(text).ok_or_else(|| (text_key, format!("unknown errno {text:?}")))?),
        None => None,
    };
    let by_number = match number {
        Some(number) => {
            let small = u16::try_from(number).ok().filter(|number| *number <= errno::MOST || name == ActionName::Trace);
            Some(small.ok_or_else(|| (number_key, format!("{number} is no errno, they end at {}", errno::MOST)))?)
        }
        None => None,
    };
    let key = if by_name.is_some() { text_key } else { number_key };
    let value = by_name.or(by_number);
    let plain = match name {
        ActionName::Errno => return Ok(Action::Errno(value.unwrap_or(EPERM))),
        ActionName::Trace => return Ok(Action::Trace(value.unwrap_or(EPERM))),
        ActionName::Kill | ActionName::KillThread => Action::KillThread,
        ActionName::KillProcess => Action::KillProcess,
        ActionName::Trap => Action::Trap(0),
        ActionName::Allow => Action::Allow,
        ActionName::Log => Action::Log,
        ActionName::Notify => Action::Notify,
    };
    match value {
        Some(_) => Err((key, format!("action {plain:?} takes no errno"))),
        None => Ok(plain),
    }
}

fn resolve(place: usize, rule: &oci::Rule) -> Result<Vec<Rule>, PolicyError> {
    let at = |key: &str| format!("syscalls[{place}].{key}");
    let names = match (&rule.names, &rule.name) {
        (Some(names), Some(name)) if !names.is_empty() && !name.is_empty() => {
            return Err(refuse(at("name"), "there is `names` too, and only one of them can be meant"));
        }
        (names, name) => {
            let name = name.iter().filter(|name| !name.is_empty());
            names.iter().flatten().chain(name).cloned().collect::<Vec<_>>()
        }
    };
    if names.is_empty() {
        return Err(refuse(at("names"), "it names no call"));
    }
    if let Some(index) = names.iter().position(String::is_empty) {
        return Err(refuse(at(&format!("names[{index}]")), "it is empty"));
    }
    let action = action(rule.action, (rule.errno_ret, "errnoRet"), (rule.errno.as_deref(), "errno"))
        .map_err(|(key, reason)| refuse(at(key), reason))?;
    if action == Action::Notify && names.iter().any(|name| name == "write") {
        return Err(refuse(at("action"), "SCMP_ACT_NOTIFY on write would keep the listener itself from answering"));
    }
    let conditions = rule.args.iter().flatten().enumerate().map(|(index, argument)| {
        condition(argument).map_err(|(key, reason)| refuse(at(&format!("args[{index}].{key}")), reason))
    });
    let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
    let indices: BTreeSet<u8> = conditions.iter().map(|condition| condition.argument).collect();
    let alternatives = if indices.len() < conditions.len() {
        // libseccomp takes one comparison for each argument, so runc makes every condition a rule of its own.
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    };
    let alternative = |conditions| Rule { place, names: names.clone(), conditions, action };
    Ok(alternatives.into_iter().map(alternative).collect())
}

fn condition(argument: &oci::Argument) -> Result<Condition, (&'static str, String)> {
    let index = u8::try_from(argument.index).ok().filter(|index| *index <= 5);
    let index = index.ok_or_else(|| ("index", format!("{} is not one of 0 to 5", argument.index)))?;
    let two = argument.value_two.unwrap_or(0);
    let (value, mask) = match argument.op {
        // Bits outside of the mask say nothing (libseccomp).
        Operator::MaskedEqual => (two & argument.value, argument.value),
        _ => (argument.value, u64::MAX),
    };
    Ok(Condition { argument: index, operator: argument.op, value, mask })
}

fn applies(place: usize, rule: &oci::Rule, context: &Context) -> Result<bool, PolicyError> {
    let none = oci::Selector::default();
    let include = held(&format!("syscalls[{place}].includes"), rule.includes.as_ref().unwrap_or(&none), context)?;
    let exclude = held(&format!("syscalls[{place}].excludes"), rule.excludes.as_ref().unwrap_or(&none), context)?;
    let included = include.capabilities.iter().all(|held| *held) && include.others.iter().all(|held| *held);
    let excluded = exclude.capabilities.iter().chain(&exclude.others).any(|held| *held);
    Ok(included && !excluded)
}

/// Which parts of a selector hold: each capability, and what else is there.
struct Held {
    capabilities: Vec<bool>,
    others: Vec<bool>,
}

fn held(path: &str, selector: &oci::Selector, context: &Context) -> Result<Held, PolicyError> {
    let mut capabilities = Vec::new();
    for (index, name) in selector.caps.iter().flatten().enumerate() {
        if !name.starts_with("CAP_") {
            return Err(refuse(
                format!("{path}.caps[{index}]"),
                format!("{name:?} is no capability: they begin with CAP_"),
            ));
        }
        capabilities.push(context.capabilities.contains(name));
    }
    let mut others = Vec::new();
    if let Some(arches) = selector.arches.as_ref().filter(|arches| !arches.is_empty()) {
        others.push(arches.iter().any(|arch| arch == context.native.go_name()));
    }
    if let Some(version) = selector.min_kernel.as_ref().filter(|version| !version.is_empty()) {
        let least = kernel_version(version).ok_or_else(|| {
            refuse(format!("{path}.minKernel"), format!("{version:?} is no kernel version such as 4.8"))
        })?;
        others.push(context.kernel >= least);
    }
    Ok(Held { capabilities, others })
}

/// Major and minor of `6.1.0-13-amd64`.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.splitn(3, '.');
    let minor = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    Some((numbers.next()?.parse().ok()?, minor(numbers.next()?)?))
}
