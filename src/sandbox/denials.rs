//! What is known of what was refused. Landlock and a filter's errno tell nobody but the process that asked: those are not in here.

use std::collections::BTreeMap;

use nix::libc;

use crate::plan::Plan;
use crate::report::{Counted, Denial, Ending, Layer};

/// Different ones that are told apart. A hostile command could make any number of them.
const MOST: usize = 64;

/// What the gate refused, and how often.
#[derive(Debug, Default)]
pub(super) struct Denied(BTreeMap<(Layer, &'static str, Option<String>), u64>);

impl Denied {
    pub(super) fn add(&mut self, layer: Layer, action: &'static str, object: Option<String>) {
        let key = (layer, action, object);
        let is_one_too_many = self.0.len() >= MOST && !self.0.contains_key(&key);
        let key = if is_one_too_many { (layer, action, None) } else { key };
        let count = self.0.entry(key).or_default();
        *count = count.saturating_add(1);
    }

    /// All that is known in the end.
    pub(super) fn all(&self, ending: Ending, counted: Option<Counted>, plan: &Plan) -> Vec<Denial> {
        let asked = self.0.iter().map(|((layer, action, object), count)| Denial {
            layer: *layer,
            action,
            object: object.clone(),
            count: *count,
        });
        let counted = counted.unwrap_or_default();
        let by_signal = |signal, is_ours| u64::from(is_ours && ending == Ending::Signalled { signal });
        let is_limited = |layer| plan.expected.contains_key(&layer);
        let more = [
            (Layer::LimitPids, "start a process or thread", counted.pids_refused.unwrap_or(0)),
            (Layer::LimitMemory, "use more memory", counted.oom_kills.unwrap_or(0)),
            (Layer::LimitFileSize, "write a larger file", by_signal(libc::SIGXFSZ, is_limited(Layer::LimitFileSize))),
            (
                Layer::Seccomp,
                "make a system call that a filter kills",
                by_signal(libc::SIGSYS, !plan.filters.is_empty()),
            ),
        ];
        let more = more.into_iter().filter(|(_, _, count)| *count > 0);
        asked.chain(more.map(|(layer, action, count)| Denial { layer, action, object: None, count })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_counted_and_not_kept() {
        let mut denied = Denied::default();
        for number in 0..1000 {
            denied.add(Layer::ExecOnce, "execute", Some(format!("/{}", number % 500)));
        }
        assert_eq!(denied.0.len(), MOST + 1);
        assert_eq!(denied.0.values().sum::<u64>(), 1000);
    }
}
