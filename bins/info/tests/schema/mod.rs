//! Holds JSON against `docs/info.schema.json`.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use system_tests::bare::{keys, project_file};

/// Fails unless `value` is the form of the schema with this name; the empty name is the list itself.
pub fn check_form(name: &str, value: &Value) {
    let schema: Value = serde_json::from_str(&project_file("docs/info.schema.json")).unwrap();
    let form = match name {
        "" => &schema,
        name => &schema["$defs"][name],
    };
    assert!(form.is_object(), "{name}");
    check(&schema, form, value, "report");
}

/// Fails unless `value` is what `schema` says. As much of JSON Schema as the schema uses: type, properties, required,
/// additionalProperties, items, $ref.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return check(root, &root["$defs"][name.trim_start_matches("#/$defs/")], value, at);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() || number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        one => vec![one.clone()],
    };
    assert!(
        allowed
            .iter()
            .any(|one| one == kind || (one == "number" && kind == "integer")),
        "{at} is {kind}, not {allowed:?}"
    );
    match value {
        Value::Object(entries) if schema["additionalProperties"].is_object() => {
            for (key, value) in entries {
                check(root, &schema["additionalProperties"], value, &format!("{at}.{key}"));
            }
        }
        Value::Object(_) => {
            assert_eq!(keys(value), keys(&schema["properties"]), "{at}");
            let mut required: Vec<&str> = schema["required"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(Value::as_str)
                .collect();
            required.sort_unstable();
            assert_eq!(required, keys(value), "{at}: all fields are always there");
            for (key, value) in value.as_object().unwrap() {
                check(root, &schema["properties"][key], value, &format!("{at}.{key}"));
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                check(root, &schema["items"], item, &format!("{at}[{number}]"));
            }
        }
        _ => {}
    }
}
