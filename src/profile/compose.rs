//! Profiles that are made of others: `extends`, `remove`, and several `-p`. Each is parsed, trusted and made absolute for itself;
//! what is laid over what is the JSON that was written, so that a key which says nothing changes nothing.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::document::{Document, Object, OneOrMore, RemoveEntry};
use super::error::ProfileError;
use super::load::{self, Caller, Loaded, Origin};

/// Enough for every sane chain.
const DEEPEST: usize = 16;

/// Keys of a profile that are its own and not inherited.
const OWN: &[&str] = &["$schema", "name", "description", "extends", "remove"];

/// A profile with all that it extends.
pub(super) fn whole(loaded: Loaded, caller: &Caller) -> Result<Loaded, ProfileError> {
    if loaded.document.extends.is_empty() && loaded.document.remove.is_none() {
        return Ok(loaded);
    }
    let origin = loaded.origin.clone();
    let name = loaded.document.name.clone();
    let mut pile = Pile::new(caller);
    let keys = pile.whole(loaded)?;
    pile.finish(keys, name, origin)
}

/// Several, a later one over those before.
pub(super) fn lay_over(several: Vec<Loaded>, caller: &Caller) -> Result<Loaded, ProfileError> {
    let mut pile = Pile::new(caller);
    let names: Vec<String> = several.iter().map(|loaded| loaded.document.name.clone()).collect();
    let origin = Origin::Several(several.iter().map(|loaded| loaded.origin.clone()).collect());
    let mut keys = Map::new();
    for loaded in several {
        let over = pile.whole(loaded)?;
        lay(&mut keys, over);
    }
    pile.finish(keys, names.join("+"), origin)
}

struct Pile<'a> {
    caller: &'a Caller,
    /// What is being extended, outermost first.
    chain: Vec<Origin>,
    /// All texts that were used, and the files that they are from.
    text: Vec<u8>,
    files: Vec<PathBuf>,
}

impl<'a> Pile<'a> {
    fn new(caller: &'a Caller) -> Self {
        Self { caller, chain: Vec::new(), text: Vec::new(), files: Vec::new() }
    }

    /// Its keys over those that it extends.
    fn whole(&mut self, loaded: Loaded) -> Result<Map<String, Value>, ProfileError> {
        let Loaded { origin, text, mut document, files } = loaded;
        let refuse = |key: &str, reason: String| ProfileError::Value {
            origin: origin.to_string(),
            key: key.to_owned(),
            reason,
            hint: None,
        };
        if self.chain.contains(&origin) {
            return Err(refuse("extends", "it extends itself".to_owned()));
        }
        if self.chain.len() >= DEEPEST {
            return Err(refuse("extends", format!("more than {DEEPEST} profiles extend each other")));
        }
        self.chain.push(origin.clone());
        let mut keys = Map::new();
        for word in &document.extends {
            let base = if load::is_path(OsStr::new(word)) {
                let path = origin.host_path(word, self.caller).map_err(|reason| refuse("extends", reason))?;
                load::file(path)?
            } else {
                load::named(OsStr::new(word), self.caller, &self.chain)?
            };
            let base = self.whole(base)?;
            lay(&mut keys, base);
        }
        if let Some(remove) = &document.remove {
            take_away(&mut keys, remove).map_err(|(key, reason)| refuse(&format!("remove.{key}"), reason))?;
        }
        make_absolute(&mut document, &origin, self.caller)?;
        lay(&mut keys, written(&text, &document, &origin)?);
        self.chain.pop();
        self.text.extend_from_slice(&text);
        self.files.extend(files);
        Ok(keys)
    }

    fn finish(self, mut keys: Map<String, Value>, name: String, origin: Origin) -> Result<Loaded, ProfileError> {
        keys.insert("name".to_owned(), name.into());
        let Object(document) = serde_json::from_value(Value::Object(keys)).map_err(|cause| not_json(&origin, cause))?;
        Ok(Loaded { origin, text: self.text, document, files: self.files })
    }
}

fn not_json(origin: &Origin, cause: serde_json::Error) -> ProfileError {
    ProfileError::Syntax { origin: origin.to_string(), at: String::new(), cause }
}

/// The keys that a profile writes, with its absolute paths.
fn written(text: &[u8], document: &Document, origin: &Origin) -> Result<Map<String, Value>, ProfileError> {
    let said: Map<String, Value> = serde_json::from_slice(text).map_err(|cause| not_json(origin, cause))?;
    let Value::Object(mut absolute) = serde_json::to_value(document).map_err(|cause| not_json(origin, cause))? else {
        return Ok(Map::new());
    };
    let own = said.into_iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
    Ok(own.map(|(key, value)| (key.clone(), absolute.remove(&key).unwrap_or(value))).collect())
}

/// Lists are added up, members of objects replace those of the same name, everything else is replaced.
fn lay(keys: &mut Map<String, Value>, over: Map<String, Value>) {
    // Two keys that say the same thing in other words: who says the one does not inherit the other.
    let says = |key: &str| over.get(key).is_some_and(|value| !value.is_null());
    for (key, twin) in [("network", "network_isolation"), ("network_isolation", "network")] {
        // An isolated network is not less so by being called isolated.
        let is_as_closed = key == "network_isolation" && over.get(key) == Some(&Value::Bool(true));
        let is_kept = is_as_closed && keys.get(twin).is_some_and(|network| network != "host");
        if says(key) && !says(twin) && !is_kept {
            keys.remove(twin);
        }
    }
    for (key, value) in over {
        match (keys.get_mut(&key), value) {
            (Some(Value::Array(list)), Value::Array(more)) if key == "binds" => {
                // One target shows one thing.
                list.retain(|bind| !more.iter().any(|over| target(over) == target(bind)));
                list.extend(more);
            }
            // Words that belong together: the same one again means something else.
            (Some(Value::Array(list)), Value::Array(more)) if key == "additional_args" => list.extend(more),
            (Some(Value::Array(list)), Value::Array(more)) if key != "seccomp_profile" => {
                let new: Vec<Value> = more.into_iter().filter(|item| !list.contains(item)).collect();
                list.extend(new);
            }
            (Some(Value::Object(members)), Value::Object(more)) => members.extend(more),
            // Says nothing.
            (Some(_), Value::Null) => {}
            (_, value) => {
                keys.insert(key, value);
            }
        }
    }
}

/// Where a bind is shown: paths are compared, not their spelling.
fn target(bind: &Value) -> Option<&Path> {
    bind.get("target").and_then(Value::as_str).map(Path::new)
}

/// What `remove` names, which must be there. The error names the key.
fn take_away(keys: &mut Map<String, Value>, remove: &RemoveEntry) -> Result<(), (&'static str, String)> {
    for (key, names) in remove.lists() {
        for name in names {
            let was_there = match keys.get_mut(key) {
                Some(Value::Array(list)) => {
                    let before = list.len();
                    let is_it =
                        |item: &Value| item == name || target(item).is_some_and(|target| target == Path::new(name));
                    list.retain(|item| !is_it(item));
                    list.len() < before
                }
                Some(Value::Object(members)) => members.remove(name).is_some(),
                _ => false,
            };
            if !was_there {
                return Err((key, format!("nothing that is inherited is {name:?}")));
            }
        }
        let is_empty = keys.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty);
        if key == "allowed_commands" && !names.is_empty() && is_empty {
            return Err((key, "an empty list would allow every command".to_owned()));
        }
    }
    Ok(())
}

/// Paths of the host that are relative to the profile's folder.
pub(super) fn make_absolute(document: &mut Document, origin: &Origin, caller: &Caller) -> Result<(), ProfileError> {
    let absolute = |key: &str, text: &str| match origin.host_path(text, caller) {
        Ok(path) => Ok(path.to_string_lossy().into_owned()),
        Err(reason) => Err(ProfileError::Value { origin: origin.to_string(), key: key.to_owned(), reason, hint: None }),
    };
    for bind in &mut document.binds {
        bind.source = absolute("binds", &bind.source)?;
    }
    let is_preset = |word: &str| word.parse::<crate::seccomp::Preset>().is_ok();
    let words = match &mut document.seccomp_profile {
        Some(OneOrMore::One(word)) => std::slice::from_mut(word),
        Some(OneOrMore::More(words)) => words.as_mut_slice(),
        None => &mut [],
    };
    for word in words.iter_mut().filter(|word| !is_preset(word)) {
        *word = absolute("seccomp_profile", word)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keys(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn lists_are_added_up_and_the_rest_is_replaced() {
        let mut base = keys(json!({
            "hide": ["/a", "/b"], "network": "none", "environment": {"A": "1", "B": "2"},
            "binds": [{"source": "/x", "target": "/t"}, {"source": "/y", "target": "/u"}],
            "limits": {"pids": 3}, "workdir": "/w",
        }));
        let over = json!({
            "hide": ["/b", "/c"], "network": "host", "environment": {"B": "3"}, "workdir": null,
            "binds": [{"source": "/z", "target": "/t"}], "limits": {"memory": "1G"},
        });
        lay(&mut base, keys(over));
        assert_eq!(
            Value::Object(base),
            json!({
                "hide": ["/a", "/b", "/c"], "network": "host", "environment": {"A": "1", "B": "3"},
                "binds": [{"source": "/y", "target": "/u"}, {"source": "/z", "target": "/t"}],
                "limits": {"pids": 3, "memory": "1G"}, "workdir": "/w",
            })
        );
    }

    #[test]
    fn who_says_one_of_two_keys_does_not_inherit_the_other() {
        let laid = |over: Value| {
            let mut base = keys(json!({"network": "none", "network_isolation": true}));
            lay(&mut base, keys(over));
            Value::Object(base)
        };
        assert_eq!(laid(json!({"network": "host"})), json!({"network": "host"}));
        assert_eq!(laid(json!({"network_isolation": false})), json!({"network_isolation": false}));
        let both = json!({"network": "none", "network_isolation": true});
        assert_eq!(laid(both.clone()), both);
        assert_eq!(laid(json!({"network": null})), both);
        let mut base = keys(json!({"network": "none"}));
        lay(&mut base, keys(json!({"network_isolation": true})));
        assert_eq!(Value::Object(base), json!({"network": "none", "network_isolation": true}));
    }

    #[test]
    fn what_is_removed_must_be_there_and_an_allowlist_never_becomes_empty() {
        let base = json!({"hide": ["/a"], "allowed_commands": ["ls"], "binds": [{"source": "/x", "target": "/t"}], "environment": {"A": "1"}});
        let removed = |remove: Value| {
            let mut base = keys(base.clone());
            let remove: RemoveEntry = serde_json::from_value(remove).unwrap();
            take_away(&mut base, &remove).map(|()| base)
        };
        let left = removed(json!({"hide": ["/a"], "binds": ["/t"], "environment": ["A"]})).unwrap();
        assert_eq!(
            Value::Object(left),
            json!({"hide": [], "allowed_commands": ["ls"], "binds": [], "environment": {}})
        );
        assert_eq!(removed(json!({"hide": ["/b"]})).unwrap_err().0, "hide");
        assert_eq!(removed(json!({"allowed_commands": ["ls"]})).unwrap_err().0, "allowed_commands");
    }
}
