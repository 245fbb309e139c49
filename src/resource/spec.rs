//! What a user asks for. The doc comments are what `kubectl explain mongomirror` prints.

// The columns are told apart by their names, not by the names of their arguments.
#![allow(clippy::duplicated_attributes)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;
use super::status::MongoMirrorStatus;
use super::validation::DEFAULT_STATE_DATABASE;

/// What to mirror, and where to.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "mongomirror.dev",
    version = "v1alpha1",
    kind = "MongoMirror",
    plural = "mongomirrors",
    singular = "mongomirror",
    shortname = "mgm",
    category = "mongomirror",
    namespaced,
    status = "MongoMirrorStatus",
    derive = "PartialEq",
    selectable = ".spec.enabled",
    selectable = ".spec.source.database",
    selectable = ".status.phase",
    selectable = ".status.dbName",
    doc = "A MongoMirror keeps a second MongoDB database (the target) exactly equal to a first one \
           (the source), live. It copies the source once, then follows its change stream, so that \
           the target is, at every moment, exactly what the source was at a known cluster time. \
           Deleting a MongoMirror stops the mirror and leaves the target's data alone, unless \
           `deletionPolicy` and an annotation say otherwise.",
    printcolumn(
        name = "Enabled",
        type_ = "boolean",
        json_path = ".status.enabled",
        description = "Whether the mirror is switched on, as the operator last saw it."
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where the mirror is in its life."
    ),
    printcolumn(
        name = "Connected",
        type_ = "boolean",
        json_path = ".status.connected",
        description = "Whether both the source and the target answer."
    ),
    printcolumn(
        name = "DbName",
        type_ = "string",
        json_path = ".status.dbName",
        description = "The target database's name."
    ),
    printcolumn(
        name = "Lag",
        type_ = "string",
        json_path = ".status.lag",
        description = "How far the target is behind the source."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether the mirror does what its spec asks for."
    ),
    printcolumn(
        name = "Heartbeat",
        type_ = "date",
        json_path = ".status.heartbeat",
        description = "How long ago the operator last said all this: a minute at most, of a paused \
                       mirror five."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "How long ago the resource was created."
    ),
    printcolumn(
        name = "Source",
        type_ = "string",
        json_path = ".spec.source.database",
        description = "The source database's name.",
        priority = "1"
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.initialSync.progress",
        description = "How much of the initial copy is done.",
        priority = "1"
    ),
    printcolumn(
        name = "Consistent-At",
        type_ = "string",
        json_path = ".status.consistentAt",
        description = "The source's time at which the target is exactly the source.",
        priority = "1"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        description = "What the mirror does, or what to do about it.",
        priority = "1"
    )
)]
#[x_kube(
    validation = rules::target_stays(),
    validation = rules::default_target_fits(),
    validation = rules::two_databases(),
    validation = rules::state_stays(),
    validation = rules::state_is_apart()
)]
pub struct MongoMirrorSpec {
    /// Whether the mirror runs. Set it to false to pause: the batch in hand is finished, the
    /// position is kept, and both databases are left in peace. Set it to true to go on from
    /// there.
    #[serde(default = "enabled")]
    pub enabled: bool,

    /// The database that is mirrored. It is only read.
    pub source: SourceSpec,

    /// The database that becomes equal to the source. Without it, the database
    /// `<source database>_backup` of the source's own deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetSpec>,

    /// Which collections take part. Without it, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collections: Option<CollectionsSpec>,

    /// What to do when the source's oplog no longer reaches back to the mirror's position, so that
    /// the changes since cannot be read. Resync: compare both sides, write what differs, and go
    /// on. Stop: do nothing, and wait for you.
    #[serde(default)]
    pub on_history_lost: OnHistoryLost,

    /// How changes are written to the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply: Option<ApplySpec>,

    /// When both sides are compared. Without it, once after each copy, and when you ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationSpec>,

    /// Bounds on what the mirror may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,

    /// What becomes of the target when this resource is deleted. Retain: it stays, as an ordinary
    /// database. DeleteTarget: what the mirror has made on it is dropped, but only if the annotation
    /// `mongomirror.dev/delete-target` holds the target database's name, and an operator runs and
    /// reaches the target within half a minute; the deletion itself waits for nothing.
    /// (`mongomirror run` always leaves the target.)
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What to do when history is lost. Resync: compare both sides, write what differs, and go on.
/// Stop: wait for a person.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHistoryLost {
    /// Compare both sides, write what differs, and go on.
    #[default]
    Resync,
    /// Wait for a person.
    Stop,
}

/// How changes are written to the target.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ApplySpec {
    /// Transactional: each batch of changes is one transaction, so whoever reads the target sees
    /// nothing but states that the source had. Parallel: large batches are several transactions at
    /// the same time, for a target that needs more than one to keep up. The target is then exactly
    /// something in a snapshot at `status.targetTime`; other reads can see a part of a batch.
    #[serde(default)]
    pub mode: ApplyMode,
}

/// How changes are written. Transactional: a batch at a time, as one transaction. Parallel: large
/// batches as several transactions at the same time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApplyMode {
    /// A batch is one transaction.
    #[default]
    Transactional,
    /// A large batch is several.
    Parallel,
}

/// When both sides are compared.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VerificationSpec {
    /// How long after one comparison the next one begins, as `24h` or `90m`; a minute at least.
    /// Without it, both sides are compared after each copy only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32))]
    #[x_kube(validation = rules::interval_is_a_minute())]
    pub interval: Option<String>,
}

/// Bounds on what the mirror may use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// How much a copy reads of the source in a second, in MiB: the initial one, and every later
    /// one. Without it, as fast as both sides can.
    #[serde(
        rename = "copyMiBPerSecond",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 100_000))]
    pub copy_mebibytes_per_second: Option<i32>,

    /// How many parts of the source a copy reads at a time. Without it, 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub read_concurrency: Option<i32>,

    /// How many batches a copy writes to the target at a time. Without it, as many as it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub write_concurrency: Option<i32>,

    /// How much a comparison of both sides reads of each in a second, in MiB. Without it, 64.
    #[serde(
        rename = "verificationMiBPerSecond",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 100_000))]
    pub verification_mebibytes_per_second: Option<i32>,
}

/// What becomes of the target when the resource is deleted. Retain: it stays. DeleteTarget: what the
/// mirror has made on it is dropped.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// It stays, as an ordinary database.
    #[default]
    Retain,
    /// What the mirror has made on it is dropped.
    DeleteTarget,
}

fn enabled() -> bool {
    true
}

/// The database that is mirrored.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SourceSpec {
    /// The Secret that holds the connection string of the source's deployment, a replica set.
    pub uri_secret_ref: SecretKeyRef,

    /// Which members of the source's replica set the documents and changes are read from. Others than
    /// the primary leave it in peace; what they show is as exact, and as late as they are. Names and
    /// definitions are always read from the primary.
    #[serde(default)]
    pub read_preference: ReadPreference,

    /// How the connection to the source is encrypted, beyond what its connection string says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,

    /// The source database's name. It cannot be changed later.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = rules::is_database_name(),
        validation = rules::source_stays(),
        validation = rules::source_is_a_users()
    )]
    pub database: String,
}

/// Which members of a replica set are read from, in MongoDB's own terms. With Secondary nothing is
/// read while there is none.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadPreference {
    /// The primary.
    #[default]
    Primary,
    /// The primary; another one while there is none.
    PrimaryPreferred,
    /// A secondary.
    Secondary,
    /// A secondary; the primary while there is none.
    SecondaryPreferred,
    /// The nearest.
    Nearest,
}

/// The database that becomes equal to the source.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TargetSpec {
    /// The Secret that holds the connection string of the target's deployment, a replica set.
    /// Without it, the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri_secret_ref: Option<SecretKeyRef>,

    /// How the connection to the target is encrypted, beyond what its connection string says.
    /// Without it, and without a connection string of its own, as the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,

    /// What to do if the target database holds collections before the mirror has made any. Refuse:
    /// nothing, and wait for you. Replace: drop all of them, and copy. Adopt: compare them with the
    /// source's, write only what differs, and drop what the source does not have. Once the mirror
    /// has begun, this means nothing any more.
    #[serde(default)]
    pub on_existing_data: OnExistingData,

    /// The target database's name. Without it, `<source database>_backup`. It cannot be changed
    /// later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::is_database_name(), validation = rules::target_is_a_users())]
    pub database: Option<String>,

    /// The database beside the target in which the mirror keeps its memory: checkpoints, what is
    /// copied, what was refused. All mirrors of a deployment may share one. It cannot be changed
    /// later.
    #[serde(default = "state_database")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = rules::is_database_name(),
        validation = rules::state_is_not_mongodbs()
    )]
    pub state_database: String,
}

fn state_database() -> String {
    DEFAULT_STATE_DATABASE.to_owned()
}

impl Default for TargetSpec {
    fn default() -> Self {
        Self {
            uri_secret_ref: None,
            tls: None,
            on_existing_data: OnExistingData::default(),
            database: None,
            state_database: state_database(),
        }
    }
}

/// What to do with a target that holds collections before the mirror has made any. Refuse: nothing,
/// and wait for a person. Replace: drop them, and copy. Adopt: write only what differs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExistingData {
    /// Nothing, and wait for a person.
    #[default]
    Refuse,
    /// Drop all of them, and copy.
    Replace,
    /// Write only what differs.
    Adopt,
}

/// How a connection is encrypted. With it, it is: `tls=true` need not be in the connection string.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// The Secret that holds the certificates (PEM) of the authorities that the servers'
    /// certificates are checked with. Without it, the authorities that browsers trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,

    /// The Secret that holds the certificate that the mirror shows to the servers, and its key, as
    /// for X.509 authentication (`authMechanism=MONGODB-X509` in the connection string).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<ClientCertificateSecretRef>,
}

/// One key of a Secret in the resource's own namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CaSecretRef {
    /// The Secret's name. It is read from the namespace of the MongoMirror, and read again when
    /// it changes.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::is_secret_name())]
    pub name: String,

    /// The key under which the Secret holds the certificates.
    #[serde(default = "ca_key")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::is_secret_key())]
    pub key: String,
}

/// A Secret of the type `kubernetes.io/tls` in the resource's own namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificateSecretRef {
    /// The Secret's name. It holds the certificate under `tls.crt` and its key under `tls.key`,
    /// both as PEM.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::is_secret_name())]
    pub name: String,
}

fn ca_key() -> String {
    "ca.crt".to_owned()
}

/// One key of a Secret in the resource's own namespace.
#[derive(
    KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name. It is read from the namespace of the MongoMirror, and read again when
    /// it changes.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::is_secret_name())]
    pub name: String,

    /// The key under which the Secret holds the connection string, for example
    /// `mongodb://user:password@host:27017/?replicaSet=rs0`.
    #[serde(default = "uri_key")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::is_secret_key())]
    pub key: String,
}

fn uri_key() -> String {
    "uri".to_owned()
}

/// Which collections take part.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CollectionsSpec {
    /// Names of collections to mirror; `*` stands for any characters. Empty or absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255)))]
    #[x_kube(validation = rules::are_collection_names())]
    pub include: Vec<String>,

    /// Names of collections to leave out, even if `include` names them; `*` stands for any
    /// characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255)))]
    #[x_kube(validation = rules::are_collection_names())]
    pub exclude: Vec<String>,

    /// What becomes of the target's copy of a collection that you take out of the selection. Retain:
    /// it stays as it is, and the mirror does not touch it again. Drop: it is dropped. (A collection
    /// that is dropped on the source, or renamed out of the selection, is dropped in any case.)
    #[serde(default)]
    pub on_deselected: OnDeselected,
}

/// What becomes of collections that are no longer selected. Retain: they stay as they are. Drop: they
/// are dropped.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDeselected {
    /// They stay as they are.
    #[default]
    Retain,
    /// They are dropped.
    Drop,
}
