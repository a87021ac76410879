//! A profile as it is written: the JSON document, strict, with nothing resolved. Its JSON Schema and `export` come
//! from these types.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A Shannot profile: what a command may see, change and reach.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Shannot profile")]
pub struct Document {
    /// The JSON Schema that an editor checks this file with.
    #[serde(rename = "$schema", default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Identifies the profile in messages and reports.
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Profiles that this one is made of, by name or path (relative to this file), in order: what a later one says wins, lists are added up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extends: Vec<String>,
    /// What of that is taken away again, before this profile's own keys are added.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_object")]
    pub remove: Option<RemoveEntry>,
    /// fnmatch patterns of the command words that may be typed; an empty list allows all.
    #[serde(default)]
    pub allowed_commands: Vec<String>,
    /// Host paths that exist inside; applied sorted by target.
    #[serde(default, deserialize_with = "objects")]
    pub binds: Vec<BindEntry>,
    /// Empty, writable folders in memory; applied sorted, before the binds.
    #[serde(default)]
    pub tmpfs_paths: Vec<String>,
    /// The command's whole environment, but for `env_pass`.
    #[serde(default, deserialize_with = "without_duplicates")]
    pub environment: BTreeMap<String, String>,
    /// Filters of system calls: an OCI policy (.json) or a raw filter (.bpf), relative to this file, or a preset, or a list of them. The preset
    /// `default` is always on unless another preset or `none` is named.
    #[serde(default)]
    pub seccomp_profile: Option<OneOrMore>,
    /// `false` keeps the host's network.
    #[serde(default)]
    pub network_isolation: Option<bool>,
    /// `false` makes no user namespace; needs privilege.
    #[serde(default = "yes")]
    pub user_namespace_isolation: bool,
    /// bubblewrap options, applied last and in order.
    #[serde(default)]
    pub additional_args: Vec<String>,
    /// fnmatch patterns of the caller's environment variables that are passed on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_pass: Vec<String>,
    /// fnmatch patterns of variables that no pattern passes on, whatever it is: tokens and secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_deny: Vec<String>,
    /// The folder that the command works on, shown where it is on the host.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_object")]
    pub workspace: Option<WorkspaceEntry>,
    /// Caches that are kept from run to run, by name, with `:ro` or `:overlay` behind it or not: cargo, npm, pip, go, …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<String>,
    /// The directory to start in; `.` is the caller's, shown read-only where a tmpfs would cover it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The host name inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Paths that are covered by something empty and unreadable, after all binds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<String>,
    /// How much network there is; says more than `network_isolation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkKey>,
    /// How much Landlock matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<LandlockKey>,
    /// Resource limits.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_object")]
    pub limits: Option<LimitsEntry>,
    /// Features that must be enforced in full, or nothing runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<String>,
    /// Features that may be missing without refusing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_degraded: Vec<String>,
    /// What holds `allowed_commands`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_enforcement: Option<EnforcementKey>,
    /// `true`: the command is executed, also under a filter that refuses it, and nothing can be executed after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_once: Option<bool>,
}

/// A host path that exists inside.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BindEntry {
    /// Path on the host; a relative one is relative to the profile's folder.
    pub source: String,
    /// Where it appears inside.
    pub target: String,
    /// Nothing can be changed there.
    #[serde(default = "yes")]
    pub read_only: bool,
    /// Accepted from Shannot 0.3: a target is made whenever it lies on a file system of the sandbox's own.
    #[serde(default = "yes")]
    pub create_target: bool,
    /// A missing source is skipped (the default), or an error when this is `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// What is taken away of inherited lists and objects. Each entry must be there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RemoveEntry {
    /// Patterns. The last one can't be taken away: an empty list allows all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_commands: Vec<String>,
    /// Targets of binds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<String>,
    /// Paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs_paths: Vec<String>,
    /// Names of variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Patterns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_pass: Vec<String>,
    /// Patterns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_deny: Vec<String>,
    /// Caches, as they were written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<String>,
    /// Paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<String>,
    /// Names of limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Features.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<String>,
    /// Features.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_degraded: Vec<String>,
}

impl RemoveEntry {
    /// Each list with the key of a profile that it takes from.
    pub(super) fn lists(&self) -> [(&'static str, &[String]); 11] {
        [
            ("allowed_commands", &self.allowed_commands),
            ("binds", &self.binds),
            ("tmpfs_paths", &self.tmpfs_paths),
            ("environment", &self.environment),
            ("env_pass", &self.env_pass),
            ("env_deny", &self.env_deny),
            ("caches", &self.caches),
            ("hide", &self.hide),
            ("limits", &self.limits),
            ("require", &self.require),
            ("allow_degraded", &self.allow_degraded),
        ]
    }
}

/// The folder that the command works on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkspaceEntry {
    /// Which: `.`, the default, is the caller's directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What may be done there; `rw` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<WorkspaceMode>,
}

/// What may be done in the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceMode {
    /// It is written; what the host's git would execute (hooks, configuration) is read-only.
    Rw,
    /// Changes are kept beside it, to be looked at and applied by `shannot changes`.
    Overlay,
    /// Nothing is changed.
    Ro,
}

/// One word, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "a path, the name of a preset, or a list of them")]
pub enum OneOrMore {
    /// One.
    One(String),
    /// Several, in order.
    More(Vec<String>),
}

impl OneOrMore {
    /// As a list.
    pub fn words(&self) -> &[String] {
        match self {
            OneOrMore::One(word) => std::slice::from_ref(word),
            OneOrMore::More(words) => words,
        }
    }
}

/// How much network there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKey {
    /// None; no TCP on loopback either, where Landlock can refuse it.
    None,
    /// A loopback of its own.
    Loopback,
    /// The host's.
    Host,
}

/// How much Landlock matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LandlockKey {
    /// Refuse to run without it.
    Required,
    /// What the kernel has; the report says what is missing.
    BestEffort,
    /// Not used.
    Off,
}

/// What holds `allowed_commands`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EnforcementKey {
    /// The kernel: nothing else can be executed inside.
    Kernel,
    /// Only the command word is looked at, as in Shannot 0.3.
    Argv0,
}

/// Resource limits.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsEntry {
    /// Wall-clock time: seconds, or `10m`, `1h 30m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Quantity>,
    /// Time between the request to end and the kill; 10 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kill_after: Option<Quantity>,
    /// Memory: bytes, or `2G`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// CPUs that may be used at once: `2`, `1.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Quantity>,
    /// Size that one file may grow to: bytes, or `100M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_size: Option<Quantity>,
    /// Descriptors that one process may have open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Size of all tmpfs together: bytes, or `64M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_size: Option<Quantity>,
}

/// A number, or a number with a unit.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "a number, or a text such as \"10m\" or \"2G\"")]
pub enum Quantity {
    /// Bytes or seconds.
    Number(serde_json::Number),
    /// With a unit.
    Text(String),
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantity::Number(number) => number.fmt(f),
            Quantity::Text(text) => f.write_str(text),
        }
    }
}

fn yes() -> bool {
    true
}

/// A JSON object and nothing else: serde would take an array of the members' values as well.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Members(PhantomData))
    }
}

fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|Object(entry)| entry).collect())
}

fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(entry)| entry))
}

/// serde's own maps let the last of two equal keys win; a profile that says a thing twice says something wrong.
fn without_duplicates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Variables;

    impl<'de> Visitor<'de> for Variables {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of variables and their values")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut variables = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                if variables.contains_key(&name) {
                    return Err(serde::de::Error::custom(format_args!("duplicate variable `{name}`")));
                }
                variables.insert(name, value);
            }
            Ok(variables)
        }
    }

    deserializer.deserialize_map(Variables)
}
