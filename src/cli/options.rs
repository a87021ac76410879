//! What `run`'s options say over a profile.

use super::args::{Net, Options};
use crate::profile::{LimitsEntry, NetworkKey, Overrides, Quantity, WorkspaceMode};

impl Options {
    /// What these options say over the profile.
    pub(super) fn overrides(&self) -> Overrides {
        let text = |text: &Option<String>| text.clone().map(Quantity::Text);
        Overrides {
            ro: self.ro.clone(),
            rw: self.rw.clone(),
            tmpfs: self.tmpfs.clone(),
            hide: self.hide.clone(),
            workspace: self.workspace.clone(),
            workspace_mode: self.workspace_mode.map(WorkspaceMode::from),
            caches: self.cache.clone(),
            secrets: Vec::new(),
            env: self.env.clone(),
            env_pass: self.env_pass.clone(),
            inherit_env: self.inherit_env,
            chdir: self.chdir.clone(),
            hostname: self.hostname.clone(),
            seccomp: self.seccomp.clone(),
            exec_once: self.exec_once,
            net: self.net.map(|net| match net {
                Net::None => NetworkKey::None,
                Net::Loopback => NetworkKey::Loopback,
                Net::Host => NetworkKey::Host,
            }),
            limits: LimitsEntry {
                timeout: text(&self.timeout),
                kill_after: text(&self.kill_after),
                memory: text(&self.memory),
                pids: self.pids,
                cpus: text(&self.cpus),
                file_size: text(&self.file_size),
                open_files: self.open_files,
                tmpfs_size: text(&self.tmpfs_size),
            },
            backend: Some(self.backend.into()),
            require: self.require.clone(),
            allow_degraded: self.allow_degraded.clone(),
        }
    }
}
