//! Remedies that a program can apply to a policy document.

use super::oci::{ActionName, Document, Rule};

/// A change of a policy that cures a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fix {
    /// Let these calls through.
    Allow(Vec<String>),
    /// Answer these as a kernel without them does.
    Enosys(Vec<String>),
    /// Take these out of the rules that let them through.
    Remove(Vec<String>),
    /// Correct a name.
    Rename {
        /// Index of the rule.
        place: usize,
        /// As it is.
        from: String,
        /// As it should be.
        to: String,
    },
}

const ENOSYS: u32 = 38;

impl Document {
    /// Applies remedies.
    pub fn fix<'a>(&mut self, fixes: impl IntoIterator<Item = &'a Fix>) {
        // Names first: the others may take rules out, and places are counted with them.
        let (names, others): (Vec<_>, Vec<_>) = fixes.into_iter().partition(|fix| matches!(fix, Fix::Rename { .. }));
        for fix in names.into_iter().chain(others) {
            self.apply(fix);
        }
    }

    fn apply(&mut self, fix: &Fix) {
        match fix {
            Fix::Allow(names) => {
                self.take_out(names, |_| true);
                self.add(names, ActionName::Allow, None, "needed by ordinary programs");
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
            Fix::Rename { place, from, to } => {
                if let Some(rule) = self.syscalls.iter_mut().flatten().nth(*place) {
                    let names = rule.names.iter_mut().flatten().chain(&mut rule.name);
                    for name in names.filter(|name| *name == from) {
                        name.clone_from(to);
                    }
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
