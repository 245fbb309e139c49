//! The CustomResourceDefinition, as it is applied to a cluster.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::CustomResourceExt;
use serde_json::{Value, json};

use super::spec::MongoMirror;

const HEADER: &str = "# The MongoMirror resource. Written by `mongomirror crd`; do not edit.\n";

/// The definition of the MongoMirror resource.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = serde_json::to_value(MongoMirror::crd())
        .expect("a definition made of plain structs is JSON");
    for version in definition["spec"]["versions"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        remove_nullable(schema);
        // A resource the operator has not seen yet must neither look finished (kstatus takes a
        // resource without status for ready) nor print blanks.
        schema["properties"]["status"]["default"] = json!({ "observedGeneration": -1 });
    }
    serde_json::from_value(definition).expect("only documented fields of a definition were changed")
}

/// The definition as YAML.
pub fn yaml() -> String {
    let yaml = serde_saphyr::to_string(&definition())
        .expect("a definition made of maps, lists and scalars is YAML");
    format!("{HEADER}{yaml}")
}

/// Takes `nullable` out of the schema: an absent field is left out, a null is a mistake.
fn remove_nullable(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // As a keyword it is a boolean; a property of that name would hold a schema.
            if fields.get("nullable").is_some_and(Value::is_boolean) {
                fields.remove("nullable");
            }
            fields.values_mut().for_each(remove_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nullable),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_the_repository_are_the_generated_one() {
        // The chart has one of its own: it may not reach outside of its folder.
        let files = [
            include_str!("../../crds/mongomirrors.yaml"),
            include_str!("../../charts/mongomirror/files/mongomirrors.yaml"),
        ];
        assert!(
            files.iter().all(|file| *file == yaml()),
            "the CustomResourceDefinition is out of date: run `make crds`"
        );
    }

    #[test]
    fn the_schema_is_structural_and_free_of_formats_api_servers_warn_of() {
        fn check(path: &str, schema: &Value) {
            assert!(schema["type"].is_string(), "{path} has no type");
            assert!(schema.get("nullable").is_none(), "{path} is nullable");
            if let Some(format) = schema["format"].as_str() {
                assert!(
                    ["int32", "int64", "date-time"].contains(&format),
                    "{path} has the format {format}"
                );
            }
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                check(&format!("{path}.{name}"), property);
            }
            if schema["type"] == "array" {
                check(&format!("{path}[]"), &schema["items"]);
            }
        }
        let definition = serde_json::to_value(definition()).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        check("spec", &schema["properties"]["spec"]);
        check("status", &schema["properties"]["status"]);
    }

    #[test]
    fn every_field_is_documented() {
        fn check(path: &str, schema: &Value) {
            assert!(
                schema["description"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{path} has no description"
            );
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                check(&format!("{path}.{name}"), property);
            }
            for (name, property) in schema["items"]["properties"]
                .as_object()
                .into_iter()
                .flatten()
            {
                check(&format!("{path}[].{name}"), property);
            }
        }
        let definition = serde_json::to_value(definition()).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        check("spec", &schema["properties"]["spec"]);
        check("status", &schema["properties"]["status"]);
    }

    #[test]
    fn a_new_resource_is_in_progress_and_prints_no_blank_lag() {
        let definition = serde_json::to_value(definition()).unwrap();
        let status =
            &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        assert_eq!(status["default"], json!({ "observedGeneration": -1 }));
        let properties = &status["properties"];
        assert_eq!(properties["observedGeneration"]["default"], -1);
        assert_eq!(properties["lag"]["default"], "unknown");
        assert_eq!(properties["phase"]["default"], "Pending");
        assert_eq!(properties["connected"]["default"], false);
        assert_eq!(
            properties["conditions"]["x-kubernetes-list-map-keys"],
            json!(["type"])
        );
    }
}
