//! From text to [`Document`], with errors that a person can act on: the place, and the nearest known key.

use schemars::schema_for;
use serde_json::Value;

use super::document::{Document, Object};
use super::error::ProfileError;
use crate::spelling::nearest;

/// Parses a profile.
pub(super) fn parse(text: &[u8], origin: &str) -> Result<Document, ProfileError> {
    match serde_json::from_slice(text) {
        Ok(Object(document)) => Ok(document),
        Err(cause) => Err(explain(text, origin, cause)),
    }
}

/// The JSON Schema of profiles.
pub fn json_schema() -> Value {
    schema_for!(Document).to_value()
}

/// Looks at a document that was refused once more, slowly: the happy path pays nothing for it.
fn explain(text: &[u8], origin: &str, cause: serde_json::Error) -> ProfileError {
    let origin = origin.to_owned();
    if let Ok(document) = serde_json::from_slice::<Value>(text) {
        let schema = json_schema();
        if let Some((key, nearest)) = unknown_key(&document, &schema, &schema, String::new()) {
            return ProfileError::UnknownKey { origin, key, nearest };
        }
    }
    let at = serde_path_to_error::deserialize::<_, Object<Document>>(&mut serde_json::Deserializer::from_slice(text))
        .err()
        .map(|error| error.path().to_string())
        .filter(|path| path != ".");
    ProfileError::Syntax { origin, at: at.unwrap_or_default(), cause }
}

/// The first key that the schema does not have at its place, and the nearest that it has.
fn unknown_key(value: &Value, schema: &Value, root: &Value, place: String) -> Option<(String, Option<String>)> {
    let schema = follow(schema, root);
    match value {
        Value::Array(items) => {
            let schema = schema.get("items")?;
            items
                .iter()
                .enumerate()
                .find_map(|(index, item)| unknown_key(item, schema, root, format!("{place}[{index}]")))
        }
        Value::Object(members) => {
            let known = schema.get("properties")?.as_object()?;
            members.iter().find_map(|(key, value)| {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                match known.get(key) {
                    Some(schema) => unknown_key(value, schema, root, place),
                    None => Some((place, nearest(key, known.keys().map(String::as_str)).map(str::to_owned))),
                }
            })
        }
        _ => None,
    }
}

/// References and "this or null" lead to the definition that is meant.
fn follow<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let reference = |schema: &'a Value| {
        let name = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
        root.pointer(name)
    };
    let alternatives = schema.get("anyOf").and_then(Value::as_array);
    reference(schema).or_else(|| alternatives?.iter().find_map(reference)).unwrap_or(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> ProfileError {
        parse(text.as_bytes(), "test").unwrap_err()
    }

    #[test]
    fn a_misspelt_key_is_named_with_the_nearest() {
        let check = |text, wrong: &str, right: &str| match refusal(text) {
            ProfileError::UnknownKey { key, nearest, .. } => {
                assert_eq!((key.as_str(), nearest.as_deref()), (wrong, Some(right)));
            }
            other => panic!("{other}"),
        };
        check(r#"{"name": "x", "secomp_profile": "none"}"#, "secomp_profile", "seccomp_profile");
        check(
            r#"{"name": "x", "binds": [{"source": "/", "target": "/", "readonly": true}]}"#,
            "binds[0].readonly",
            "read_only",
        );
        check(r#"{"name": "x", "limits": {"time_out": 3}}"#, "limits.time_out", "timeout");
    }

    #[test]
    fn duplicate_keys_are_refused_at_every_level() {
        for text in [
            r#"{"name": "x", "name": "y"}"#,
            r#"{"name": "x", "environment": {"A": "1", "A": "2"}}"#,
            r#"{"name": "x", "binds": [{"source": "/a", "source": "/b", "target": "/"}]}"#,
        ] {
            assert!(refusal(text).to_string().contains("duplicate"), "{text}");
        }
    }

    #[test]
    fn an_array_of_values_is_no_object() {
        assert!(refusal("[]").to_string().contains("expected an object"));
        let text = refusal(r#"{"name": "x", "binds": [["/usr", "/usr", true, true, null]]}"#).to_string();
        assert!(text.contains("expected an object"), "{text}");
        assert!(refusal(r#"{"name": "x", "limits": []}"#).to_string().contains("expected an object"));
    }

    #[test]
    fn a_wrong_type_is_named_with_its_place() {
        let text = refusal(r#"{"name": "x", "binds": [{"source": 3, "target": "/"}]}"#).to_string();
        assert!(text.contains("binds[0].source") && text.contains("line 1"), "{text}");
        assert!(refusal("").to_string().contains("EOF"));
        assert!(refusal("[]").to_string().contains("test"));
        assert!(refusal("{}").to_string().contains("missing field `name`"));
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let text = format!(r#"{{"name": {}}}"#, "[".repeat(100_000));
        assert!(matches!(refusal(&text), ProfileError::Syntax { .. }));
    }
}
