//! Spec → what it means, defaults filled in; or a sentence that says what to change.
//!
//! The API server checks shapes by the schema. Here is everything else, and the shapes again:
//! `mongomirror run` reads manifests that no API server has seen.

use std::time::Duration;

use thiserror::Error;

use super::spec::{
    ApplyMode, LimitsSpec, MongoMirrorSpec, OnDeselected, OnExistingData, OnHistoryLost,
    ReadPreference, SecretKeyRef, TlsSpec, VerificationSpec,
};
use crate::reason::Reason;

/// Databases of MongoDB itself, and the one in which mirrors keep their checkpoints.
const RESERVED: &[&str] = &["admin", "config", "local", "mongomirror"];

/// Where mirrors keep their memory, unless another database is asked for.
pub const DEFAULT_STATE_DATABASE: &str = "mongomirror";

/// What a target is called by default: the source's name and this.
const DEFAULT_TARGET_SUFFIX: &str = "_backup";

/// The keys of a Secret of the type `kubernetes.io/tls`.
pub const CERTIFICATE: &str = "tls.crt";
/// As [`CERTIFICATE`].
pub const CERTIFICATE_KEY: &str = "tls.key";

/// The longest database name MongoDB accepts, in bytes.
const DATABASE_NAME_BYTES: usize = 63;

/// Both sides are not compared more often than this.
const LEAST_INTERVAL: Duration = Duration::from_secs(60);

/// A spec that cannot be run. Names fields, never repeats what does not belong into them: it may
/// be a connection string that was put into the wrong place.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// A name that is no name.
    #[error("{field} is not valid: {reason}")]
    Field {
        /// The field's path.
        field: String,
        /// What is wrong and what to write instead.
        reason: &'static str,
    },
    /// The default name of the target is too long.
    #[error(
        "the default name of the target, the source's name and \"_backup\", is longer than 63 \
         bytes: set spec.target.database"
    )]
    DefaultTargetTooLong,
    /// The source is a database that cannot be mirrored.
    #[error(
        "the database \"{0}\" cannot be mirrored, it belongs to MongoDB or to MongoMirror itself: \
         set spec.source.database to a database of yours"
    )]
    SourceForbidden(String),
    /// The target is a database that must not be overwritten.
    #[error(
        "the database \"{0}\" cannot be a target, it belongs to MongoDB or to MongoMirror itself: \
         set spec.target.database to another name"
    )]
    TargetForbidden(String),
    /// Source and target are one database.
    #[error(
        "source and target are the same database, \"{0}\" of the same deployment: set \
         spec.target.database to another name, or spec.target.uriSecretRef to another deployment"
    )]
    SameDatabase(String),
}

impl SpecError {
    /// One word for programs.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Field { .. } | Self::DefaultTargetTooLong => Reason::InvalidSpec,
            Self::SourceForbidden(_) => Reason::SourceForbidden,
            Self::TargetForbidden(_) => Reason::TargetForbidden,
            Self::SameDatabase(_) => Reason::SameDatabase,
        }
    }
}

/// A spec that was checked, with every default filled in. After this nothing reads the raw spec.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValidSpec {
    /// Whether the mirror shall run.
    pub enabled: bool,
    /// The database that is mirrored.
    pub source: ValidSide,
    /// Which of its members are read from.
    pub read_preference: ReadPreference,
    /// The database that becomes equal to it.
    pub target: ValidSide,
    /// Where the mirror keeps its memory.
    pub state_database: String,
    /// Patterns of collections that take part; empty means all.
    pub include: Vec<String>,
    /// Patterns of collections that do not.
    pub exclude: Vec<String>,
    /// What becomes of collections that are no longer selected.
    pub on_deselected: OnDeselected,
    /// What to do with a target that is not empty when the mirror begins.
    pub on_existing_data: OnExistingData,
    /// What to do when history is lost.
    pub on_history_lost: OnHistoryLost,
    /// How changes are written.
    pub apply_mode: ApplyMode,
    /// How often both sides are compared.
    pub verify_every: Option<Duration>,
    /// Bounds.
    pub limits: ValidLimits,
}

/// Bounds on what a mirror may use, where they are others than by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ValidLimits {
    /// Bytes that a copy reads of the source per second.
    pub copy_bytes_per_second: Option<u64>,
    /// Parts of the source that a copy reads at a time.
    pub readers: Option<usize>,
    /// Batches that a copy writes at a time.
    pub writers: Option<usize>,
    /// Bytes that a comparison reads of each side per second.
    pub verify_bytes_per_second: Option<u64>,
}

/// One side of a mirror.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValidSide {
    /// Where the connection string is.
    pub secret: SecretKeyRef,
    /// How the connection is encrypted, beyond what that says.
    pub tls: Option<ValidTls>,
    /// The database's name.
    pub database: String,
}

/// Where the certificates of a connection are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ValidTls {
    /// The authorities'.
    pub ca: Option<SecretKeyRef>,
    /// The name of the Secret with the mirror's own, and its key.
    pub certificate: Option<String>,
}

/// The name of the target database that a spec asks for, valid or not.
pub fn target_database(spec: &MongoMirrorSpec) -> String {
    spec.target
        .as_ref()
        .and_then(|target| target.database.clone())
        .unwrap_or_else(|| format!("{}{DEFAULT_TARGET_SUFFIX}", spec.source.database))
}

/// Checks a spec and fills in its defaults.
///
/// # Errors
/// Says which field to change, and how.
pub fn validate(spec: &MongoMirrorSpec) -> Result<ValidSpec, SpecError> {
    let source = ValidSide {
        secret: check_secret("spec.source.uriSecretRef", &spec.source.uri_secret_ref)?,
        tls: check_tls("spec.source.tls", spec.source.tls.as_ref())?,
        database: check_database("spec.source.database", &spec.source.database)?,
    };
    let given = spec.target.clone().unwrap_or_default();
    let own_tls = check_tls("spec.target.tls", given.tls.as_ref())?;
    let (secret, tls) = match &given.uri_secret_ref {
        Some(secret) => (check_secret("spec.target.uriSecretRef", secret)?, own_tls),
        None => (source.secret.clone(), own_tls.or(source.tls.clone())),
    };
    let database = match &given.database {
        Some(database) => check_database("spec.target.database", database)?,
        None => target_database(spec),
    };
    if database.len() > DATABASE_NAME_BYTES {
        return Err(SpecError::DefaultTargetTooLong);
    }
    if is_reserved(&source.database) {
        return Err(SpecError::SourceForbidden(source.database));
    }
    if is_reserved(&database) {
        return Err(SpecError::TargetForbidden(database));
    }
    let target = ValidSide {
        secret,
        tls,
        database,
    };
    if target.secret == source.secret && is_same_name(&target.database, &source.database) {
        return Err(SpecError::SameDatabase(target.database));
    }
    let state_database = check_database("spec.target.stateDatabase", &given.state_database)?;
    let others = [
        "admin",
        "config",
        "local",
        &source.database,
        &target.database,
    ];
    if others
        .iter()
        .any(|other| is_same_name(other, &state_database))
    {
        return Err(invalid(
            "spec.target.stateDatabase",
            "it is the source, the target, or a database of MongoDB's: write a name of its own, or \
             leave the field out",
        ));
    }
    let collections = spec.collections.clone().unwrap_or_default();
    Ok(ValidSpec {
        enabled: spec.enabled,
        source,
        read_preference: spec.source.read_preference,
        target,
        state_database,
        include: check_patterns("spec.collections.include", collections.include)?,
        exclude: check_patterns("spec.collections.exclude", collections.exclude)?,
        on_deselected: collections.on_deselected,
        on_existing_data: given.on_existing_data,
        on_history_lost: spec.on_history_lost,
        apply_mode: spec.apply.clone().unwrap_or_default().mode,
        verify_every: check_interval(spec.verification.as_ref())?,
        limits: check_limits(spec.limits.as_ref())?,
    })
}

fn check_interval(spec: Option<&VerificationSpec>) -> Result<Option<Duration>, SpecError> {
    let Some(interval) = spec.and_then(|spec| spec.interval.as_deref()) else {
        return Ok(None);
    };
    let wrong = |reason| SpecError::Field {
        field: "spec.verification.interval".to_owned(),
        reason,
    };
    let interval: kube::core::Duration = interval
        .parse()
        .map_err(|_| wrong("write a duration as 24h, 90m or 1h30m"))?;
    if interval < LEAST_INTERVAL {
        return Err(wrong("a minute is the least, 1m"));
    }
    Ok(Some(interval.into()))
}

fn check_limits(spec: Option<&LimitsSpec>) -> Result<ValidLimits, SpecError> {
    let Some(spec) = spec else {
        return Ok(ValidLimits::default());
    };
    let within = |field: &str, value: Option<i32>, most: u64, reason| {
        let value = value.map(|value| u64::try_from(value).unwrap_or_default());
        if value.is_some_and(|value| value == 0 || value > most) {
            return Err(invalid(&format!("spec.limits.{field}"), reason));
        }
        Ok(value)
    };
    let pace = |field, value| {
        let reason = "write a number of MiB from 1 to 100000, or leave the field out";
        let pace = within(field, value, 100_000, reason)?;
        Ok::<_, SpecError>(pace.map(|mebibytes| mebibytes << 20))
    };
    let concurrency = |field, value| {
        let count = within(field, value, 16, "write a number from 1 to 16")?;
        Ok::<_, SpecError>(count.and_then(|count| usize::try_from(count).ok()))
    };
    Ok(ValidLimits {
        copy_bytes_per_second: pace("copyMiBPerSecond", spec.copy_mebibytes_per_second)?,
        readers: concurrency("readConcurrency", spec.read_concurrency)?,
        writers: concurrency("writeConcurrency", spec.write_concurrency)?,
        verify_bytes_per_second: pace(
            "verificationMiBPerSecond",
            spec.verification_mebibytes_per_second,
        )?,
    })
}

fn check_tls(field: &str, spec: Option<&TlsSpec>) -> Result<Option<ValidTls>, SpecError> {
    let Some(spec) = spec else {
        return Ok(None);
    };
    let check = |which: &str, name: &str, key: &str| {
        let reference = SecretKeyRef {
            name: name.to_owned(),
            key: key.to_owned(),
        };
        check_secret(&format!("{field}.{which}"), &reference)
    };
    let ca = spec.ca_secret_ref.as_ref();
    let ca = ca.map(|it| check("caSecretRef", &it.name, &it.key));
    let certificate = spec.client_certificate_secret_ref.as_ref();
    let certificate =
        certificate.map(|it| check("clientCertificateSecretRef", &it.name, CERTIFICATE));
    Ok(Some(ValidTls {
        ca: ca.transpose()?,
        certificate: certificate.transpose()?.map(|reference| reference.name),
    }))
}

/// Whether two database names cannot exist side by side: MongoDB refuses names that differ in
/// case only.
pub fn is_same_name(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Whether it belongs to MongoDB, or to `MongoMirror` itself.
pub fn is_reserved(database: &str) -> bool {
    RESERVED
        .iter()
        .any(|reserved| is_same_name(reserved, database))
}

/// A database's name, if MongoDB can have one of that name.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_database(field: &str, database: &str) -> Result<String, SpecError> {
    const FORBIDDEN: &[char] = &[
        '/', '\\', '.', ' ', '"', '$', '*', '<', '>', ':', '|', '?', '\0',
    ];
    let reason = if database.is_empty() {
        "it is empty, write the database's name"
    } else if database.len() > DATABASE_NAME_BYTES {
        "a database name has at most 63 bytes"
    } else if database.contains(FORBIDDEN) {
        r#"a database name holds no spaces and none of / \ . " $ * < > : | ?"#
    } else {
        return Ok(database.to_owned());
    };
    Err(invalid(field, reason))
}

fn check_secret(field: &str, secret: &SecretKeyRef) -> Result<SecretKeyRef, SpecError> {
    let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let in_key = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    let is_edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_name = secret.name.len() <= 253
        && secret.name.chars().all(in_name)
        && secret
            .name
            .split('.')
            .all(|label| label.starts_with(is_edge) && label.ends_with(is_edge));
    if !is_name {
        return Err(invalid(
            &format!("{field}.name"),
            "write the name of a Secret in the mirror's namespace: lower-case letters, digits, \
             - and .",
        ));
    }
    if secret.key.is_empty() || secret.key.len() > 253 || !secret.key.chars().all(in_key) {
        return Err(invalid(
            &format!("{field}.key"),
            "write a key of the Secret: letters, digits, -, _ and .",
        ));
    }
    Ok(secret.clone())
}

fn check_patterns(field: &str, patterns: Vec<String>) -> Result<Vec<String>, SpecError> {
    for (index, pattern) in patterns.iter().enumerate() {
        let reason = if pattern.is_empty() {
            "it is empty, write a collection's name, or \"*\" for all"
        } else if pattern.len() > 255 {
            "a collection's name has at most 255 bytes"
        } else if pattern.contains(['$', '\0']) {
            "no collection has a name with $ or a NUL byte in it; write collections' names, * stands \
             for any characters"
        } else {
            continue;
        };
        return Err(invalid(&format!("{field}[{index}]"), reason));
    }
    Ok(patterns)
}

fn invalid(field: &str, reason: &'static str) -> SpecError {
    SpecError::Field {
        field: field.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::spec::TargetSpec;

    fn spec(yaml: &str) -> MongoMirrorSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn minimal() -> MongoMirrorSpec {
        spec("source: {uriSecretRef: {name: orders-mongodb}, database: ordersDB}")
    }

    #[test]
    fn defaults_are_filled_in() {
        let valid = validate(&minimal()).unwrap();
        assert!(valid.enabled);
        assert_eq!(valid.source.secret.key, "uri");
        assert_eq!(valid.target.database, "ordersDB_backup");
        assert_eq!(valid.target.secret, valid.source.secret);
        assert!(valid.include.is_empty() && valid.exclude.is_empty());
    }

    #[test]
    fn everything_given_is_kept() {
        let valid = validate(&spec(
            "{enabled: false, source: {uriSecretRef: {name: a, key: k}, database: x}, \
             target: {uriSecretRef: {name: b}, database: x}, \
             collections: {include: [a*], exclude: [ab]}}",
        ))
        .unwrap();
        assert!(!valid.enabled);
        assert_eq!(valid.source.secret.key, "k");
        assert_eq!(valid.target.secret.name, "b");
        assert_eq!(valid.target.database, "x");
        assert_eq!(valid.include, ["a*"]);
        assert_eq!(valid.exclude, ["ab"]);
    }

    #[test]
    fn a_mirrors_memory_has_a_database_of_its_own() {
        let of = |name: &str| {
            let mut spec = minimal();
            spec.target = Some(TargetSpec {
                state_database: name.into(),
                ..TargetSpec::default()
            });
            validate(&spec)
        };
        assert_eq!(validate(&minimal()).unwrap().state_database, "mongomirror");
        assert_eq!(of("notes").unwrap().state_database, "notes");
        for taken in ["ordersDB", "ORDERSDB_backup", "Admin", "local", "a.b", ""] {
            let error = of(taken).unwrap_err().to_string();
            assert!(error.contains("spec.target.stateDatabase"), "{error}");
        }
    }

    #[test]
    fn databases_that_are_not_the_users_are_refused() {
        for reserved in ["admin", "local", "config", "mongomirror", "Admin"] {
            let mut target = minimal();
            target.target = Some(Default::default());
            target.target.as_mut().unwrap().database = Some(reserved.into());
            assert_eq!(validate(&target).unwrap_err().reason(), "TargetForbidden");

            let mut source = minimal();
            source.source.database = reserved.into();
            assert_eq!(validate(&source).unwrap_err().reason(), "SourceForbidden");
        }
    }

    #[test]
    fn a_database_is_not_mirrored_onto_itself() {
        for name in ["ordersDB", "ORDERSdb"] {
            let mut same = minimal();
            same.target = Some(Default::default());
            same.target.as_mut().unwrap().database = Some(name.into());
            let error = validate(&same).unwrap_err();
            assert_eq!(error.reason(), "SameDatabase");
            assert!(
                error.to_string().contains("spec.target.database"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let wrong = "mongodb://user:s3cret@host";
        let mut specs = vec![minimal(), minimal(), minimal(), minimal()];
        specs[0].source.database = wrong.into();
        specs[1].source.uri_secret_ref.name = wrong.into();
        specs[2].source.uri_secret_ref.key = wrong.into();
        specs[3].target = Some(Default::default());
        specs[3].target.as_mut().unwrap().database = Some(wrong.into());
        for spec in specs {
            let error = validate(&spec).unwrap_err();
            assert_eq!(error.reason(), "InvalidSpec");
            assert!(!error.to_string().contains("s3cret"), "{error}");
            assert!(error.to_string().starts_with("spec."), "{error}");
        }
    }

    #[test]
    fn a_long_source_needs_a_named_target() {
        let mut long = minimal();
        long.source.database = "d".repeat(60);
        assert_eq!(validate(&long), Err(SpecError::DefaultTargetTooLong));
        long.target = Some(Default::default());
        long.target.as_mut().unwrap().database = Some("d_backup".into());
        validate(&long).unwrap();
    }

    #[test]
    fn empty_patterns_are_refused_by_place() {
        let mut empty = minimal();
        empty.collections = Some(Default::default());
        empty.collections.as_mut().unwrap().exclude = vec!["a".into(), String::new()];
        let error = validate(&empty).unwrap_err().to_string();
        assert!(error.starts_with("spec.collections.exclude[1]"), "{error}");
    }
}
