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
                if !others.is_empty() {
                    self.add(&others, ActionName::Allow, None, "needed by ordinary programs");
                }
                if !clone.is_empty() {
                    self.add_clone();
                }
            }
            Fix::Enosys(names) => {
                self.take_out(names, |_| true);
                self.add(names, ActionName::Errno, Some(ENOSYS), "programs go on with an older call after ENOSYS only");
            }
            Fix::Remove(names) => {
                self.take_out(names, |rule| matches!(rule.action, ActionName::Allow | ActionName::Log));
                if matches!(self.default_action, ActionName::Allow | ActionName::Log) {
                    self.add(names, ActionName::Errno, None, "changes the machine, or reaches out of a sandbox");
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

    /// clone without new namespaces (linux/sched.h, CLONE_NEW*).
    fn add_clone(&mut self) {
        let no_namespaces = Argument { index: 0, value: 0x7e02_0000, value_two: Some(0), op: Operator::MaskedEqual };
        self.add(&["clone".to_owned()], ActionName::Allow, None, "processes and threads, but no namespaces");
        if let Some(rule) = self.syscalls.iter_mut().flatten().last() {
            rule.args = Some(vec![no_namespaces]);
        }
    }

    fn add(&mut self, names: &[String], action: ActionName, errno: Option<u32>, why: &str) {
        let comment = format!("shannot seccomp check --fix: {why}");
        let rules = self.syscalls.get_or_insert_default();
        if let Some(rule) = rules.iter_mut().find(|rule| rule.comment.as_deref() == Some(&comment)) {
            rule.names.get_or_insert_default().extend(names.iter().cloned());
            return;
        }
        rules.push(Rule {
            names: Some(names.to_vec()),
            name: None,
            action,
            errno_ret: errno,
            errno: None,
            args: None,
            comment: Some(comment),
            includes: None,
            excludes: None,
        });
    }
}
