//! Checks a spec against the schema of the CustomResourceDefinition, as an API server does with
//! strict validation: for manifests that no API server has seen.
//!
//! What is found is told by path, without the value: that may be a connection string in the wrong
//! place.

use serde_json::{Map, Value};

use super::crd;

/// What is wrong with the shape of a spec, one sentence for each field. Empty if nothing is.
pub fn faults(spec: &Value) -> Vec<String> {
    let definition = serde_json::to_value(crd::definition())
        .expect("a definition made of plain structs is JSON");
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut faults = Vec::new();
    check("spec", spec, &schema["properties"]["spec"], &mut faults);
    faults
}

fn check(path: &str, value: &Value, schema: &Value, faults: &mut Vec<String>) {
    let expected = schema["type"].as_str().unwrap_or_default();
    match (expected, value) {
        (_, Value::Null) => faults.push(format!("{path} is empty: give it a value or take it out")),
        ("object", Value::Object(fields)) => check_fields(path, fields, schema, faults),
        ("array", Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                check(&format!("{path}[{index}]"), item, &schema["items"], faults);
            }
        }
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) => {}
        ("integer", Value::Number(number)) if number.is_i64() => {}
        _ => faults.push(format!("{path} must be {}", words(expected))),
    }
}

fn check_fields(path: &str, fields: &Map<String, Value>, schema: &Value, faults: &mut Vec<String>) {
    let properties = schema["properties"].as_object();
    for required in schema["required"].as_array().into_iter().flatten() {
        if let Some(name) = required.as_str()
            && !fields.contains_key(name)
        {
            faults.push(format!("{path}.{name} is missing"));
        }
    }
    for (name, value) in fields {
        match properties.and_then(|properties| properties.get(name)) {
            Some(schema) => check(&format!("{path}.{name}"), value, schema, faults),
            None => {
                let known: Vec<_> = properties
                    .into_iter()
                    .flat_map(|properties| properties.keys().map(String::as_str))
                    .collect();
                faults.push(format!(
                    "{path} has no field \"{name}\", only {}",
                    known.join(", ")
                ));
            }
        }
    }
}

fn words(kind: &str) -> &'static str {
    match kind {
        "object" => "a map of fields",
        "array" => "a list",
        "string" => "a text",
        "boolean" => "true or false",
        "integer" => "a whole number",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(yaml: &str) -> Vec<String> {
        faults(&serde_saphyr::from_str(yaml).unwrap())
    }

    #[test]
    fn a_good_spec_has_no_faults() {
        assert_eq!(
            faults_of(
                "{enabled: true, source: {uriSecretRef: {name: a, key: b}, database: x}, \
                 target: {database: z}, collections: {include: [a, 'b*'], exclude: []}}"
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn faults_are_told_by_path_and_without_the_value() {
        for (yaml, expected) in [
            ("{}", "spec.source is missing"),
            ("[]", "spec must be a map of fields"),
            (
                "{source: {uriSecretRef: 'mongodb://u:s3cret@h', database: x}}",
                "spec.source.uriSecretRef must be a map of fields",
            ),
            (
                "{source: {uriSecretRef: {name: a}, database: x}, enabled: 'no'}",
                "spec.enabled must be true or false",
            ),
            (
                "{source: {uriSecretRef: {name: a}, database: x}, target: }",
                "spec.target is empty: give it a value or take it out",
            ),
            (
                "{source: {uriSecretRef: {name: a}, database: x}, colections: {}}",
                "spec has no field \"colections\", only apply, collections, deletionPolicy, enabled, limits, onHistoryLost, source, target, verification",
            ),
            (
                "{source: {uriSecretRef: {name: a}, database: x}, collections: {include: [1]}}",
                "spec.collections.include[0] must be a text",
            ),
        ] {
            assert_eq!(faults_of(yaml), [expected], "{yaml}");
        }
    }
}
