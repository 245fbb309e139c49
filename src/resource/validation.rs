//! Spec → what it means, defaults filled in; or a sentence that says what to change.
//!
//! The API server checks shapes by the schema. Here is everything else, and the shapes again:
//! `mongomirror run` reads manifests that no API server has seen.

use std::time::Duration;

use thiserror::Error;

use super::spec::{LimitsSpec, MongoMirrorSpec, OnHistoryLost, SecretKeyRef, VerificationSpec};
use crate::reason::Reason;

/// Databases of MongoDB itself, and the one in which mirrors keep their checkpoints.
const RESERVED: &[&str] = &["admin", "config", "local", "mongomirror"];

/// What a target is called by default: the source's name and this.
const DEFAULT_TARGET_SUFFIX: &str = "_backup";

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
    /// The database that becomes equal to it.
    pub target: ValidSide,
    /// Patterns of collections that take part; empty means all.
    pub include: Vec<String>,
    /// Patterns of collections that do not.
    pub exclude: Vec<String>,
    /// What to do when history is lost.
    pub on_history_lost: OnHistoryLost,
    /// How often both sides are compared.
    pub verify_every: Option<Duration>,
    /// Bytes that a comparison reads of each side per second, if limited otherwise than by
    /// default.
    pub verify_bytes_per_second: Option<u64>,
}

/// One side of a mirror.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValidSide {
    /// Where the connection string is.
    pub secret: SecretKeyRef,
    /// The database's name.
    pub database: String,
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
        database: check_database("spec.source.database", &spec.source.database)?,
    };
    let target = spec.target.clone().unwrap_or_default();
    let secret = match &target.uri_secret_ref {
        Some(secret) => check_secret("spec.target.uriSecretRef", secret)?,
        None => source.secret.clone(),
    };
    let database = match &target.database {
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
    let target = ValidSide { secret, database };
    if target.secret == source.secret && is_same_name(&target.database, &source.database) {
        return Err(SpecError::SameDatabase(target.database));
    }
    let collections = spec.collections.clone().unwrap_or_default();
    Ok(ValidSpec {
        enabled: spec.enabled,
        source,
        target,
        include: check_patterns("spec.collections.include", collections.include)?,
        exclude: check_patterns("spec.collections.exclude", collections.exclude)?,
        on_history_lost: spec.on_history_lost,
        verify_every: check_interval(spec.verification.as_ref())?,
        verify_bytes_per_second: check_pace(spec.limits.as_ref())?,
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

fn check_pace(spec: Option<&LimitsSpec>) -> Result<Option<u64>, SpecError> {
    let pace = spec.and_then(|spec| spec.verification_mebibytes_per_second);
    match pace.map(u64::try_from) {
        None => Ok(None),
        Some(Ok(pace)) if pace > 0 => Ok(Some(pace << 20)),
        Some(_) => Err(SpecError::Field {
            field: "spec.limits.verificationMebibytesPerSecond".to_owned(),
            reason: "1 is the least; without the field, the pace is 64",
        }),
    }
}

/// Whether two database names cannot exist side by side: MongoDB refuses names that differ in
/// case only.
pub fn is_same_name(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn is_reserved(database: &str) -> bool {
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
        } else if pattern.contains('\0') {
            "it holds a NUL byte, which no collection name can"
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
