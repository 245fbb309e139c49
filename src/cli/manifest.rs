//! The file of `run`: YAML documents as one would apply them, Secrets and MongoMirrors.
//!
//! All or nothing: a file in which one mirror is wrong is wrong as a whole, so that a slip of the
//! editor does not stop what runs.

use std::collections::BTreeMap;
use std::io;

use k8s_openapi::ByteString;
use kube::Resource;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::resource::{MongoMirror, MongoMirrorSpec, shape};
use crate::runner::decide::Desired;
use crate::runner::registry::MirrorKey;
use crate::runner::slot::Names;
use crate::runner::translate::{SecretValues, Secrets, desired};

/// Where a document without a namespace is.
const DEFAULT_NAMESPACE: &str = "default";

/// A file that cannot be used. Never repeats a value: it may be a credential.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error("failed to read {path}: name a file with MongoMirror and Secret manifests with -f")]
    Read {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is not YAML.
    #[error("the file is not YAML: {0}")]
    Yaml(String),
    /// A document is not a Kubernetes manifest.
    #[error("document {document} of the file is not a manifest: {reason}")]
    Document {
        /// Which document, from 1.
        document: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A mirror's spec is wrong.
    #[error("MongoMirror {key}: {reason}")]
    Mirror {
        /// Which mirror.
        key: MirrorKey,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to do.
    #[error(
        "the file holds no MongoMirror: add a document with kind: MongoMirror (see the README)"
    )]
    Empty,
}

/// What a file asks for.
#[derive(Debug)]
pub struct Manifest {
    /// What to run, by mirror.
    pub mirrors: BTreeMap<MirrorKey, (Desired, Names)>,
    /// Documents that were left out, for a warning.
    pub skipped: Vec<String>,
}

impl Manifest {
    /// Parses and checks a file.
    ///
    /// # Errors
    /// If anything in it cannot be used, with what to change.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let mut read = Documents::default();
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| ManifestError::Yaml(error.without_snippet().to_string()))?;
        for (index, document) in documents.into_iter().enumerate() {
            read.add(index + 1, document)?;
        }
        if read.mirrors.is_empty() {
            return Err(ManifestError::Empty);
        }
        let mut mirrors = BTreeMap::new();
        for (key, spec) in &read.mirrors {
            let secrets = read.secrets_of(&key.namespace);
            let desired = desired(key, None, spec, Ok(secrets));
            if let Desired::Refused { problem } | Desired::Unavailable { problem, .. } = desired {
                return Err(ManifestError::Mirror {
                    key: key.clone(),
                    reason: problem.message,
                });
            }
            mirrors.insert(key.clone(), (desired, Names::from(spec)));
        }
        Ok(Self {
            mirrors,
            skipped: read.skipped,
        })
    }
}

#[derive(Default)]
struct Documents {
    mirrors: BTreeMap<MirrorKey, MongoMirrorSpec>,
    secrets: BTreeMap<(String, String), SecretValues>,
    skipped: Vec<String>,
}

impl Documents {
    fn add(&mut self, number: usize, document: Value) -> Result<(), ManifestError> {
        let fail = |reason: String| ManifestError::Document {
            document: number,
            reason,
        };
        let Value::Object(document) = document else {
            // Nothing between two `---`.
            return if document.is_null() {
                Ok(())
            } else {
                Err(fail("it is not a map of fields".into()))
            };
        };
        let Some(kind) = document.get("kind").and_then(Value::as_str) else {
            return Err(fail("it has no kind".into()));
        };
        if kind == "List" || kind == "MongoMirrorList" {
            let items = document.get("items").and_then(Value::as_array);
            for item in items.into_iter().flatten() {
                self.add(number, item.clone())?;
            }
            return Ok(());
        }
        let version = document.get("apiVersion").and_then(Value::as_str);
        let text = |field: &str| {
            let metadata = document.get("metadata")?;
            metadata.get(field)?.as_str().map(str::to_owned)
        };
        let name = text("name").unwrap_or_default();
        if name.is_empty() && matches!(kind, "Secret" | "MongoMirror") {
            return Err(fail(format!("the {kind} has no metadata.name")));
        }
        let namespace = text("namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        match kind {
            "Secret" => {
                let values = secret_values(&document).map_err(|reason| {
                    fail(format!("in the Secret {namespace}/{name}, {reason}"))
                })?;
                self.secrets.insert((namespace, name), values);
            }
            "MongoMirror" => {
                let expected = MongoMirror::api_version(&());
                if version != Some(&*expected) {
                    return Err(fail(format!("a MongoMirror has apiVersion: {expected}")));
                }
                let key = MirrorKey::new(namespace, name);
                let spec = spec(&key, &document)?;
                if self.mirrors.insert(key.clone(), spec).is_some() {
                    return Err(fail(format!(
                        "there is a second MongoMirror {key}: give each a name of its own"
                    )));
                }
            }
            _ => self.skipped.push(format!("{kind} {namespace}/{name}")),
        }
        Ok(())
    }

    fn secrets_of(&self, namespace: &str) -> Secrets {
        self.secrets
            .iter()
            .filter(|((of, _), _)| of == namespace)
            .map(|((_, name), values)| (name.clone(), Some(values.clone())))
            .collect()
    }
}

fn spec(key: &MirrorKey, document: &Map<String, Value>) -> Result<MongoMirrorSpec, ManifestError> {
    let fail = |reason: String| ManifestError::Mirror {
        key: key.clone(),
        reason,
    };
    let spec = document
        .get("spec")
        .ok_or_else(|| fail("it has no spec".into()))?;
    let faults = shape::faults(spec);
    if !faults.is_empty() {
        return Err(fail(faults.join("; ")));
    }
    // The schema has let it pass; what serde might still say could repeat a value.
    serde_json::from_value(spec.clone())
        .map_err(|_| fail("the spec cannot be read: compare it with the README".into()))
}

fn secret_values(secret: &Map<String, Value>) -> Result<SecretValues, String> {
    let entries = |field: &str| -> Result<Vec<(String, String)>, String> {
        let Some(values) = secret.get(field).filter(|values| !values.is_null()) else {
            return Ok(Vec::new());
        };
        let Value::Object(values) = values else {
            return Err(format!("{field} must be a map of texts"));
        };
        values
            .iter()
            .map(|(key, value)| match value {
                Value::String(value) => Ok((key.clone(), value.clone())),
                _ => Err(format!("{field}.{key} must be a text, put it into quotes")),
            })
            .collect()
    };
    let mut values = BTreeMap::new();
    for (key, encoded) in entries("data")? {
        // YAML folds long lines; white space means nothing in base64.
        let compact: String = encoded.split_whitespace().collect();
        let ByteString(decoded) = serde_json::from_value(compact.into())
            .map_err(|_| format!("data.{key} is not base64: plain text goes under stringData"))?;
        values.insert(key, decoded);
    }
    // As the API server does: stringData wins.
    for (key, text) in entries("stringData")? {
        values.insert(key, text.into_bytes());
    }
    Ok(SecretValues(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "
apiVersion: v1
kind: Secret
metadata: {name: a}
stringData: {uri: 'mongodb://u:s3cret@h:27017/?replicaSet=rs0'}
";
    const MIRROR: &str = "
apiVersion: mongomirror.dev/v1alpha1
kind: MongoMirror
metadata: {name: orders}
spec:
  source: {uriSecretRef: {name: a}, database: orders}
";

    fn error(text: &str) -> String {
        let error = Manifest::parse(text).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
        error
    }

    #[test]
    fn mirrors_find_their_secrets_in_any_order() {
        for text in [
            format!("{SECRET}---{MIRROR}"),
            format!("---\n# a comment\n---{MIRROR}---{SECRET}---\n"),
        ] {
            let manifest = Manifest::parse(&text).unwrap();
            let (desired, names) = &manifest.mirrors[&MirrorKey::new("default", "orders")];
            assert!(matches!(desired, Desired::Running { .. }));
            assert_eq!(names.target_database, "orders_backup");
            assert!(!format!("{manifest:?}").contains("s3cret"));
        }
    }

    #[test]
    fn secrets_may_be_base64_and_text_wins() {
        let data = "
apiVersion: v1
kind: Secret
metadata: {name: a}
data: {uri: bW9uZ29kYjovL2g=}
";
        Manifest::parse(&format!("{data}---{MIRROR}")).unwrap();
        let both = format!("{data}stringData: {{uri: nonsense}}\n---{MIRROR}");
        assert!(error(&both).contains("mongodb://"));
        let broken = data.replace("bW9uZ29kYjovL2g=", "s3cret!");
        assert!(error(&format!("{broken}---{MIRROR}")).contains("data.uri is not base64"));
    }

    #[test]
    fn a_secret_of_another_namespace_does_not_count() {
        let elsewhere = SECRET.replace("{name: a}", "{name: a, namespace: other}");
        assert!(error(&format!("{elsewhere}---{MIRROR}")).contains("does not exist"));
    }

    #[test]
    fn a_switched_off_mirror_needs_no_secret() {
        let off = MIRROR.replace("spec:", "spec:\n  enabled: false");
        let manifest = Manifest::parse(&off).unwrap();
        let (desired, _) = &manifest.mirrors[&MirrorKey::new("default", "orders")];
        assert!(matches!(desired, Desired::Paused { .. }));
    }

    #[test]
    fn other_kinds_are_left_out_and_lists_are_opened() {
        let text = format!("{SECRET}---\nkind: ConfigMap\nmetadata: {{name: x}}\n---{MIRROR}");
        assert_eq!(
            Manifest::parse(&text).unwrap().skipped,
            ["ConfigMap default/x"]
        );
        let item = |text: &str| text.trim().replace('\n', "\n  ");
        let list = format!(
            "kind: List\nitems:\n- {}\n- {}\n",
            item(SECRET),
            item(MIRROR)
        );
        assert_eq!(Manifest::parse(&list).unwrap().mirrors.len(), 1);
    }

    #[test]
    fn mistakes_are_told_without_credentials() {
        for (text, part) in [
            (String::new(), "no MongoMirror"),
            (SECRET.into(), "no MongoMirror"),
            (MIRROR.into(), "Secret \"a\" does not exist"),
            ("a: [s3cret".into(), "not YAML"),
            ("- s3cret".into(), "document 1"),
            (MIRROR.replace("v1alpha1", "v9"), "v1alpha1"),
            (format!("{SECRET}---{MIRROR}---{MIRROR}"), "second"),
            (
                format!("{SECRET}---{}", MIRROR.replace("source:", "sauce:")),
                "no field \"sauce\"",
            ),
            (
                MIRROR.replace("{name: a}", "mongodb://u:s3cret@h"),
                "spec.source.uriSecretRef must be",
            ),
            (SECRET.replace("rs0'}", "rs0"), "not YAML"),
            (
                format!(
                    "{SECRET}---{}",
                    MIRROR.replace("database: orders", "database: admin")
                ),
                "default/orders",
            ),
        ] {
            let error = error(&text);
            assert!(error.contains(part), "{error}\n{text}");
        }
    }
}
