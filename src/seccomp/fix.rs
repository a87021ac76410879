//! Remedies that a program can apply to a policy document.

use super::oci::{ActionName, Argument, Document, Operator, Rule};

/// A change of a policy that cures a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fix {
    /// Let these calls through.
    Allow(Vec<String>),
    /// Answer these as a kernel without them does.
    Enosys(Vec<String>),
    /// Take these out of the rules that let them through.
    Remove(Vec<String>),
}

const ENOSYS: u32 = 38;
/// Of clone's flags, no CLONE_NEW* (linux/sched.h).
const NO_NAMESPACES: Argument =
    Argument { index: 0, value: 0x7e02_0000, value_two: Some(0), op: Operator::MaskedEqual };

impl Document {
    /// Applies remedies.
    pub fn fix<'a>(&mut self, fixes: impl IntoIterator<Item = &'a Fix>) {
        for fix in fixes {
            self.apply(fix);
        }
    }

    fn apply(&mut self, fix: &Fix) {
        match fix {
            Fix::Allow(names) => {
                self.take_out(names, |_| true);
                let (clone, others): (Vec<String>, Vec<String>) =
                    names.iter().cloned().partition(|name| name == "clone");
                self.add(&others, Rule { action: ActionName::Allow, ..rule("needed by ordinary programs") });
                let args = Some(vec![NO_NAMESPACES]);
                let clone_rule = rule("processes and threads, but no namespaces");
                self.add(&clone, Rule { action: ActionName::Allow, args, ..clone_rule });
            }
            Fix::Enosys(names) => {
                self.take_out(names, |_| true);
                let enosys = rule("programs go on with an older call after ENOSYS only");
                self.add(names, Rule { errno_ret: Some(ENOSYS), ..enosys });
            }
            Fix::Remove(names) => {
                self.take_out(names, |rule| matches!(rule.action, ActionName::Allow | ActionName::Log));
                if matches!(self.default_action, ActionName::Allow | ActionName::Log) {
                    self.add(names, rule("changes the machine, or reaches out of a sandbox"));
                }
            }
        }
    }

    fn take_out(&mut self, names: &[String], of: impl Fn(&Rule) -> bool) {
        for rule in self.syscalls.iter_mut().flatten().filter(|rule| of(rule)) {
            if let Some(all) = &mut rule.names {
                all.retain(|name| !names.contains(name));
            }
            rule.name = rule.name.take().filter(|name| !names.contains(name));
        }
        let names_any = |rule: &Rule| rule.names.as_ref().is_some_and(|names| !names.is_empty()) || rule.name.is_some();
        if let Some(rules) = &mut self.syscalls {
            rules.retain(names_any);
        }
    }

    /// Adds names to the rule, which is made when there is none with this comment.
    fn add(&mut self, names: &[String], rule: Rule) {
        if names.is_empty() {
            return;
        }
        let rules = self.syscalls.get_or_insert_default();
        match rules.iter_mut().find(|known| known.comment == rule.comment) {
            Some(known) => known.names.get_or_insert_default().extend(names.iter().cloned()),
            None => rules.push(Rule { names: Some(names.to_vec()), ..rule }),
        }
    }
}

/// A rule that refuses, with the reason why it was added.
fn rule(why: &str) -> Rule {
    Rule {
        names: None,
        name: None,
        action: ActionName::Errno,
        errno_ret: None,
        errno: None,
        args: None,
        comment: Some(format!("shannot seccomp check --fix: {why}")),
        includes: None,
        excludes: None,
    }
}
