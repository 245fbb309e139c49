//! Secrets: watched by metadata only, read one by one and only when a mirror needs them.
//!
//! The watch tells that a Secret changed, never what is in it; so a cluster's Secrets do not pass
//! through this process because one mirror runs in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::ObjectRef;
use thiserror::Error;
use tokio::sync::Semaphore;

use super::watched::Seen;
use crate::resource::MongoMirrorSpec;
use crate::runner::translate::{SecretValues, Secrets};

/// A read that takes longer is tried again later; the API server answers in milliseconds.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The metadata of all Secrets that are watched.
pub type SecretVersions = Seen<PartialObjectMeta<Secret>>;

/// A Secret that could not be read.
#[derive(Debug, Error)]
pub enum SecretError {
    /// RBAC says no.
    #[error(
        "the operator may not read the Secret \"{secret}\": allow its service account the verbs \
         get, list and watch on secrets in the namespace \"{namespace}\""
    )]
    Forbidden {
        /// The namespace.
        namespace: String,
        /// The Secret's name.
        secret: String,
    },
    /// The API server did not answer in time.
    #[error("reading the Secret \"{secret}\" took longer than {} s", READ_TIMEOUT.as_secs())]
    Timeout {
        /// The Secret's name.
        secret: String,
    },
    /// Others are being read, and do not come.
    #[error(
        "waited {} s for other Secrets to be read before \"{secret}\"",
        READ_TIMEOUT.as_secs()
    )]
    Queue {
        /// The Secret's name.
        secret: String,
    },
    /// Anything else.
    #[error("failed to read the Secret \"{secret}\"")]
    Api {
        /// The Secret's name.
        secret: String,
        /// The cause.
        source: Box<kube::Error>,
    },
}

impl SecretError {
    /// Whether it may go away without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Forbidden { .. })
    }
}

/// The names of the Secrets that a spec refers to.
pub fn names(spec: &MongoMirrorSpec) -> BTreeSet<&str> {
    let target = spec.target.as_ref();
    let uris = [
        Some(&spec.source.uri_secret_ref),
        target.and_then(|target| target.uri_secret_ref.as_ref()),
    ];
    let uris = uris.into_iter().flatten().map(|it| it.name.as_str());
    let tls = [
        spec.source.tls.as_ref(),
        target.and_then(|target| target.tls.as_ref()),
    ];
    let certificates = tls.into_iter().flatten().flat_map(|tls| {
        let ca = tls.ca_secret_ref.as_ref().map(|it| it.name.as_str());
        let own = tls.client_certificate_secret_ref.as_ref();
        [ca, own.map(|it| it.name.as_str())]
    });
    uris.chain(certificates.flatten()).collect()
}

/// Reads the Secrets of one mirror and remembers them until they change.
pub struct SecretReader {
    api: Api<Secret>,
    namespace: String,
    versions: SecretVersions,
    turns: Arc<Semaphore>,
    known: BTreeMap<String, Known>,
}

struct Known {
    version: String,
    values: SecretValues,
}

impl SecretReader {
    /// For mirrors of one namespace. All readers share their turns.
    pub fn new(
        client: kube::Client,
        namespace: &str,
        versions: SecretVersions,
        turns: Arc<Semaphore>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            versions,
            turns,
            known: BTreeMap::new(),
        }
    }

    /// Reads those of the Secrets that are not known in their present version, each when it is its
    /// turn.
    ///
    /// # Errors
    /// If one of them cannot be read; one that does not exist is `None`.
    pub async fn read(&mut self, names: BTreeSet<&str>) -> Result<Secrets, SecretError> {
        // What is no longer referred to is forgotten: it holds credentials.
        self.known.retain(|name, _| names.contains(name.as_str()));
        let mut secrets = Secrets::new();
        for name in names {
            secrets.insert(name.to_owned(), self.read_one(name).await?);
        }
        Ok(secrets)
    }

    async fn read_one(&mut self, name: &str) -> Result<Option<SecretValues>, SecretError> {
        if let Some(known) = self.known.get(name)
            && self.watched_version(name).as_ref() == Some(&known.version)
        {
            return Ok(Some(known.values.clone()));
        }
        // A mirror that is to be paused does not wait for ever behind others whose Secrets hang.
        let turn = tokio::time::timeout(READ_TIMEOUT, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| SecretError::Queue {
            secret: name.to_owned(),
        })?;
        let answer = tokio::time::timeout(READ_TIMEOUT, self.api.get_opt(name)).await;
        let secret = match answer {
            Err(_) => {
                return Err(SecretError::Timeout {
                    secret: name.to_owned(),
                });
            }
            Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => {
                return Err(SecretError::Forbidden {
                    namespace: self.namespace.clone(),
                    secret: name.to_owned(),
                });
            }
            Ok(Err(error)) => {
                return Err(SecretError::Api {
                    secret: name.to_owned(),
                    source: Box::new(error),
                });
            }
            Ok(Ok(secret)) => secret,
        };
        let Some(secret) = secret else {
            self.known.remove(name);
            return Ok(None);
        };
        let values = SecretValues(
            secret
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0))
                .collect(),
        );
        if let Some(version) = secret.metadata.resource_version {
            let known = Known {
                version,
                values: values.clone(),
            };
            self.known.insert(name.to_owned(), known);
        }
        Ok(Some(values))
    }

    fn watched_version(&self, name: &str) -> Option<String> {
        let reference = ObjectRef::new(name).within(&self.namespace);
        self.versions
            .get(&reference)?
            .metadata
            .resource_version
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_names_each_of_its_secrets_once() {
        let spec = |yaml| serde_saphyr::from_str::<MongoMirrorSpec>(yaml).unwrap();
        let one = spec("source: {uriSecretRef: {name: a}, database: x}");
        assert_eq!(Vec::from_iter(names(&one)), ["a"]);
        let two = spec(
            "{source: {uriSecretRef: {name: b}, database: x}, \
             target: {uriSecretRef: {name: a, key: k}}}",
        );
        assert_eq!(Vec::from_iter(names(&two)), ["a", "b"]);
        let same = spec(
            "{source: {uriSecretRef: {name: a}, database: x}, \
             target: {uriSecretRef: {name: a, key: k}}}",
        );
        assert_eq!(Vec::from_iter(names(&same)), ["a"]);
    }
}
