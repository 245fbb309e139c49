//! A validated spec and its Secrets → what the engine is to do. The one place where the words of
//! the resource become the words of the engine, for the operator and for `run` alike.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::decide::Desired;
use super::registry::MirrorKey;
use crate::engine::config::{
    ApplyMode, Endpoint, Limits, MirrorConfig, OnDeselected, OnExistingData, OnHistoryLost,
    ReadFrom,
};
use crate::engine::connection::tls::Tls;
use crate::engine::connection::uri::{ConnectionUri, UriError};
use crate::engine::progress::Problem;
use crate::engine::selection::{Selection, SelectionError};
use crate::reason::Reason;
use crate::resource::spec::{self, MongoMirrorSpec, SecretKeyRef};
use crate::resource::validation::{
    self, CERTIFICATE, CERTIFICATE_KEY, SpecError, ValidLimits, ValidSide, ValidSpec, ValidTls,
};

/// What a Secret holds. `Debug` shows the keys only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretValues(pub BTreeMap<String, Vec<u8>>);

impl fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The Secrets that were asked for, by name; `None` for one that does not exist.
pub type Secrets = BTreeMap<String, Option<SecretValues>>;

/// Why a sound spec cannot be run as things stand. Never repeats a Secret's content.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TranslateError {
    /// The Secret does not exist.
    #[error(
        "the Secret \"{secret}\" does not exist in the namespace \"{namespace}\": create it with \
         {what} under the key \"{key}\""
    )]
    SecretNotFound {
        /// What it shall hold.
        what: &'static str,
        /// The namespace.
        namespace: String,
        /// The Secret's name.
        secret: String,
        /// The key that will be looked for.
        key: String,
    },
    /// The Secret exists, the key does not.
    #[error(
        "the Secret \"{secret}\" has no key \"{key}\": add {what} under that key, or name the \
         right one in the resource"
    )]
    SecretKeyMissing {
        /// What it shall hold.
        what: &'static str,
        /// The Secret's name.
        secret: String,
        /// The key.
        key: String,
    },
    /// The value is not text.
    #[error(
        "the key \"{key}\" of the Secret \"{secret}\" is not text: put the connection string there"
    )]
    NotText {
        /// The Secret's name.
        secret: String,
        /// The key.
        key: String,
    },
    /// The connection string is refused.
    #[error("the key \"{key}\" of the Secret \"{secret}\" cannot be used")]
    InvalidUri {
        /// The Secret's name.
        secret: String,
        /// The key.
        key: String,
        /// What is wrong with the string.
        source: UriError,
    },
    /// The value is no PEM of that kind.
    #[error(
        "the key \"{key}\" of the Secret \"{secret}\" does not hold {what} as PEM \
         (-----BEGIN …-----), not encrypted"
    )]
    InvalidCertificate {
        /// What it shall hold.
        what: &'static str,
        /// The Secret's name.
        secret: String,
        /// The key.
        key: String,
    },
    /// A certificate and a key that do not belong together, or either is of no use.
    #[error(
        "the Secret \"{secret}\" holds no certificate that can be used with its key: put the \
         mirror's certificate under \"{CERTIFICATE}\", those between it and its authority behind \
         it, and the key of that very certificate under \"{CERTIFICATE_KEY}\""
    )]
    CertificateWithoutKey {
        /// The Secret's name.
        secret: String,
    },
    /// `tls=false`, and certificates.
    #[error(
        "the connection string in the Secret \"{secret}\" says tls=false, but the spec has tls: \
         take one of them out"
    )]
    Unencrypted {
        /// The Secret's name.
        secret: String,
    },
    /// Two Secrets, one and the same database.
    #[error(transparent)]
    SameDatabase(SpecError),
    /// The collection patterns are refused.
    #[error("spec.collections cannot be used")]
    Selection(#[from] SelectionError),
}

impl TranslateError {
    /// One word for programs.
    pub fn reason(&self) -> Reason {
        match self {
            Self::SecretNotFound { .. } => Reason::SecretNotFound,
            Self::SecretKeyMissing { .. } => Reason::SecretKeyMissing,
            Self::NotText { .. } | Self::InvalidUri { .. } | Self::Unencrypted { .. } => {
                Reason::InvalidUri
            }
            Self::InvalidCertificate { .. } | Self::CertificateWithoutKey { .. } => {
                Reason::InvalidCertificate
            }
            Self::SameDatabase(error) => error.reason(),
            Self::Selection(_) => Reason::InvalidSpec,
        }
    }

    /// Whether this is a mistake, or may just be a matter of time: manifests are applied in any
    /// order, a Secret may come a moment after the mirror.
    pub fn needs_human(&self) -> bool {
        !matches!(
            self,
            Self::SecretNotFound { .. } | Self::SecretKeyMissing { .. }
        )
    }
}

/// Reports an error as a mirror's problem, causes included.
pub fn problem(
    reason: Reason,
    needs_human: bool,
    error: &(dyn std::error::Error + 'static),
) -> Problem {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    Problem {
        reason,
        message,
        needs_human,
        since: SystemTime::now(),
        next_attempt: None,
    }
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Self {
        problem(error.reason(), true, &error)
    }
}

impl From<TranslateError> for Problem {
    fn from(error: TranslateError) -> Self {
        problem(error.reason(), error.needs_human(), &error)
    }
}

/// The engine's configuration for a mirror.
///
/// # Errors
/// If a Secret does not hold what the spec says, with what to do about it.
pub fn translate(
    key: &MirrorKey,
    spec: &ValidSpec,
    secrets: &Secrets,
) -> Result<MirrorConfig, TranslateError> {
    let source = endpoint(key, &spec.source, secrets)?;
    let target = endpoint(key, &spec.target, secrets)?;
    // The engine asks the servers whether they are one; this tells the plain case at once.
    if source.uri == target.uri && validation::is_same_name(&source.database, &target.database) {
        return Err(TranslateError::SameDatabase(SpecError::SameDatabase(
            target.database,
        )));
    }
    Ok(MirrorConfig {
        name: key.to_string(),
        holder: None,
        source,
        read_from: match spec.read_preference {
            spec::ReadPreference::Primary => ReadFrom::Primary,
            spec::ReadPreference::PrimaryPreferred => ReadFrom::PrimaryPreferred,
            spec::ReadPreference::Secondary => ReadFrom::Secondary,
            spec::ReadPreference::SecondaryPreferred => ReadFrom::SecondaryPreferred,
            spec::ReadPreference::Nearest => ReadFrom::Nearest,
        },
        target,
        state_database: spec.state_database.clone(),
        selection: Selection::new(spec.include.clone(), spec.exclude.clone())?,
        on_existing_data: match spec.on_existing_data {
            spec::OnExistingData::Refuse => OnExistingData::Refuse,
            spec::OnExistingData::Replace => OnExistingData::Replace,
            spec::OnExistingData::Adopt => OnExistingData::Adopt,
        },
        on_deselected: match spec.on_deselected {
            spec::OnDeselected::Retain => OnDeselected::Retain,
            spec::OnDeselected::Drop => OnDeselected::Drop,
        },
        on_history_lost: match spec.on_history_lost {
            spec::OnHistoryLost::Resync => OnHistoryLost::Resync,
            spec::OnHistoryLost::Stop => OnHistoryLost::Stop,
        },
        apply_mode: match spec.apply_mode {
            spec::ApplyMode::Transactional => ApplyMode::Transactional,
            spec::ApplyMode::Parallel => ApplyMode::Parallel,
        },
        verify_every: spec.verify_every,
        limits: limits(spec.limits),
    })
}

fn limits(spec: ValidLimits) -> Limits {
    let default = Limits::default();
    Limits {
        copy_lanes: spec.readers.unwrap_or(default.copy_lanes),
        copy_writers: spec.writers,
        copy_bytes_per_second: spec.copy_bytes_per_second,
        verify_bytes_per_second: spec
            .verify_bytes_per_second
            .unwrap_or(default.verify_bytes_per_second),
        ..default
    }
}

/// What a spec asks for, given its Secrets or why they cannot be had. `uid` is the resource's, if it
/// is one.
pub fn desired(
    key: &MirrorKey,
    uid: Option<&str>,
    spec: &MongoMirrorSpec,
    secrets: Result<Secrets, Problem>,
) -> Desired {
    let spec = match validation::validate(spec) {
        Ok(spec) => spec,
        Err(error) => {
            return Desired::Refused {
                problem: error.into(),
            };
        }
    };
    let config = secrets.and_then(|secrets| {
        let mut config = translate(key, &spec, &secrets)?;
        config.holder = uid.map(str::to_owned);
        Ok(Box::new(config))
    });
    if !spec.enabled {
        let config = config.ok();
        return Desired::Paused { spec, config };
    }
    match config {
        Ok(config) => Desired::Running { spec, config },
        Err(problem) => Desired::Unavailable { spec, problem },
    }
}

fn endpoint(
    key: &MirrorKey,
    side: &ValidSide,
    secrets: &Secrets,
) -> Result<Endpoint, TranslateError> {
    let held = Held {
        namespace: &key.namespace,
        secrets,
    };
    let uri = held.connection_uri(&side.secret)?;
    let tls = side.tls.as_ref().map(|tls| held.tls(tls)).transpose()?;
    if tls.is_some() && uri.is_unencrypted() {
        return Err(TranslateError::Unencrypted {
            secret: side.secret.name.clone(),
        });
    }
    Ok(Endpoint {
        uri,
        tls,
        database: side.database.clone(),
    })
}

/// The Secrets of a mirror's namespace.
struct Held<'a> {
    namespace: &'a str,
    secrets: &'a Secrets,
}

impl Held<'_> {
    /// What a Secret holds under a key; `what` that shall be, for people.
    fn value(&self, secret: &str, key: &str, what: &'static str) -> Result<&[u8], TranslateError> {
        let values = self.secrets.get(secret).and_then(Option::as_ref);
        let values = values.ok_or_else(|| TranslateError::SecretNotFound {
            what,
            namespace: self.namespace.to_owned(),
            secret: secret.to_owned(),
            key: key.to_owned(),
        })?;
        let value = values.0.get(key).map(Vec::as_slice);
        value.ok_or_else(|| TranslateError::SecretKeyMissing {
            what,
            secret: secret.to_owned(),
            key: key.to_owned(),
        })
    }

    fn connection_uri(&self, reference: &SecretKeyRef) -> Result<ConnectionUri, TranslateError> {
        let (secret, key) = (reference.name.clone(), reference.key.clone());
        let value = self.value(&secret, &key, "the connection string")?;
        let Ok(text) = std::str::from_utf8(value) else {
            return Err(TranslateError::NotText { secret, key });
        };
        ConnectionUri::parse(text).map_err(|source| TranslateError::InvalidUri {
            secret,
            key,
            source,
        })
    }

    fn tls(&self, tls: &ValidTls) -> Result<Tls, TranslateError> {
        let ca = tls.ca.as_ref().map(|reference| {
            let what = "the authorities' certificates";
            let (pem, ()) = self.pem(&reference.name, &reference.key, what, authorities)?;
            Ok::<_, TranslateError>(pem.to_vec())
        });
        let certificate = tls.certificate.as_ref().map(|secret| {
            let what = "the mirror's certificate";
            let (pem, chain) = self.pem(secret, CERTIFICATE, what, certificates)?;
            let what = "the certificate's key";
            let (key_pem, key) = self.pem(secret, CERTIFICATE_KEY, what, |pem| {
                PrivateKeyDer::from_pem_slice(pem).ok()
            })?;
            // What the driver cannot use must not take the place of what it does use.
            CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|_| {
                TranslateError::CertificateWithoutKey {
                    secret: secret.clone(),
                }
            })?;
            Ok::<_, TranslateError>([pem, b"\n", key_pem].concat())
        });
        Ok(Tls {
            ca: ca.transpose()?,
            certificate: certificate.transpose()?,
        })
    }

    /// PEM of a kind, and what it says.
    fn pem<T>(
        &self,
        secret: &str,
        key: &str,
        what: &'static str,
        read: fn(&[u8]) -> Option<T>,
    ) -> Result<(&[u8], T), TranslateError> {
        let value = self.value(secret, key, what)?;
        let read = read(value).ok_or_else(|| TranslateError::InvalidCertificate {
            what,
            secret: secret.to_owned(),
            key: key.to_owned(),
        })?;
        Ok((value, read))
    }
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty())
}

/// Whether others can be checked with one of them at least, as the driver takes them.
fn authorities(pem: &[u8]) -> Option<()> {
    let (usable, _) = RootCertStore::empty().add_parsable_certificates(certificates(pem)?);
    (usable > 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::validation::validate;

    fn key() -> MirrorKey {
        MirrorKey::new("shop", "orders")
    }

    fn spec(yaml: &str) -> ValidSpec {
        validate(&serde_saphyr::from_str(yaml).unwrap()).unwrap()
    }

    fn secret(key: &str, value: &str) -> Option<SecretValues> {
        Some(SecretValues(BTreeMap::from([(
            key.to_owned(),
            value.as_bytes().to_vec(),
        )])))
    }

    const MINIMAL: &str = "source: {uriSecretRef: {name: a}, database: orders}";

    #[test]
    fn one_secret_serves_both_sides_by_default() {
        let secrets = Secrets::from([("a".into(), secret("uri", "mongodb://u:p@h:1/"))]);
        let config = translate(&key(), &spec(MINIMAL), &secrets).unwrap();
        assert_eq!(config.name, "shop/orders");
        assert_eq!(config.source.uri, config.target.uri);
        assert_eq!(config.target.database, "orders_backup");
        assert!(config.selection.is_everything());
    }

    #[test]
    fn each_trouble_with_a_secret_has_its_reason() {
        let not_text = Some(SecretValues(BTreeMap::from([(
            "uri".into(),
            vec![0xFF, 0xFE],
        )])));
        for (secret, reason, needs_human) in [
            (None, "SecretNotFound", false),
            (secret("url", "mongodb://h"), "SecretKeyMissing", false),
            (secret("uri", "localhost"), "InvalidUri", true),
            (not_text, "InvalidUri", true),
        ] {
            let secrets = Secrets::from([("a".into(), secret)]);
            let error = translate(&key(), &spec(MINIMAL), &secrets).unwrap_err();
            assert_eq!(error.reason(), reason, "{error}");
            assert_eq!(error.needs_human(), needs_human, "{error}");
            assert!(error.to_string().contains("\"a\""), "{error}");
        }
    }

    #[test]
    fn a_problem_tells_the_cause_and_no_credential() {
        let secrets = Secrets::from([("a".into(), secret("uri", "mongodb://u:s3cret@h:port"))]);
        let error = translate(&key(), &spec(MINIMAL), &secrets).unwrap_err();
        let problem = Problem::from(error);
        assert!(problem.message.contains("host number 1"), "{problem:?}");
        assert!(!format!("{problem:?} {secrets:?}").contains("s3cret"));
    }

    #[test]
    fn two_secrets_with_one_connection_string_are_one_deployment() {
        let secrets = Secrets::from([
            ("a".into(), secret("uri", "mongodb://h")),
            ("b".into(), secret("uri", "mongodb://h")),
        ]);
        let same = spec(
            "{source: {uriSecretRef: {name: a}, database: x}, \
             target: {uriSecretRef: {name: b}, database: x}}",
        );
        let error = translate(&key(), &same, &secrets).unwrap_err();
        assert_eq!(error.reason(), "SameDatabase");
    }
}
