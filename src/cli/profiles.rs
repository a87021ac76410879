//! `shannot export` and `shannot profile …`.

use super::args::{Common, Profile as What};
use super::launch;
use super::output::{self, Complaint};
use crate::plan::Plan;
use crate::profile::{Caller, Overrides, Profile, json_schema, list};
use crate::report::Enforcement;

pub(super) fn export(common: &Common) -> Result<u8, Complaint> {
    let caller = Caller::current();
    let profile = common.profile(&caller)?;
    output::result_json(&profile.export(&caller)?).map(|()| 0)
}

pub(super) fn profile(common: &Common, what: &What) -> Result<u8, Complaint> {
    let caller = Caller::current();
    let load = |name: &Option<String>| match name {
        Some(name) => Ok(Profile::load(&[name], &caller)?),
        None => common.profile(&caller),
    };
    match what {
        What::List => {
            let lines = list(&caller).into_iter().map(|(name, origin)| format!("{name:<16} {origin}\n"));
            let text: String = lines.collect();
            output::result(&text)?;
        }
        What::Show { which } => output::result_json(&load(which)?.export(&caller)?)?,
        What::Check { which } => {
            let profile = load(which)?;
            let policy = profile.policy(&Overrides::default(), &caller)?;
            let plan = launch::plan(&policy)?;
            let mut text = format!("profile {} can be applied on this host\n", profile.origin());
            for warning in warnings(&plan) {
                text.push_str(&format!("note: {warning}\n"));
            }
            output::result(&text)?;
        }
        What::Schema => output::result_json(&json_schema())?,
    }
    Ok(0)
}

/// What a person should know about a plan before relying on it.
pub(super) fn warnings(plan: &Plan) -> Vec<String> {
    let mut warnings: Vec<String> = plan.skipped.iter().map(|skipped| format!("skipped: {skipped}")).collect();
    if let Some(executables) = &plan.executables {
        for path in &executables.many_commands {
            warnings.push(format!(
                "{path} is many commands in one file: the kernel can't tell them apart, so allowing one allows all of them"
            ));
        }
        for (script, interpreter) in &executables.scripts_without_interpreter {
            warnings.push(format!(
                "{script} is a script, and its interpreter {} is not in allowed_commands: it can't start",
                interpreter.display()
            ));
        }
        for folder in &executables.library_folders {
            warnings.push(format!(
                "{folder} holds libraries and stays mappable: programs in there can be started through the dynamic loader"
            ));
        }
    }
    warnings.extend(unknown_names(plan));
    for (layer, state) in &plan.expected {
        if let Enforcement::Partial { .. } = state {
            warnings.push(format!("{layer}: {state}"));
        }
    }
    warnings
}

/// Names in policies that no architecture has.
pub(super) fn unknown_names(plan: &Plan) -> impl Iterator<Item = String> {
    plan.filters.iter().flat_map(|filter| {
        filter.unknown_names.iter().map(|name| format!("{}: no architecture has a call {name:?}", filter.origin))
    })
}
