//! What the operator reports. The doc comments are what `kubectl explain mongomirror.status`
//! prints.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What the mirror does, as the operator last saw it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MongoMirrorStatus {
    /// The generation of the spec that this status is about. -1 as long as the operator has not
    /// seen the resource.
    #[serde(default = "unobserved")]
    pub observed_generation: i64,

    /// Whether the mirror is switched on (`spec.enabled`), as the operator last saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,

    /// Whether both the source and the target answer. False while the mirror is paused.
    #[serde(default)]
    pub connected: bool,

    /// The target database's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_name: Option<String>,

    /// The source database's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_db_name: Option<String>,

    /// How far the target is behind the source, for people: `0s`, `38ms`, `2m10s`; `unknown`
    /// while it cannot be told, as in a paused mirror.
    #[serde(default = "unknown")]
    pub lag: String,

    /// How far the target is behind the source, in milliseconds. Absent while it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub lag_milliseconds: Option<i64>,

    /// Where the mirror is in its life. Pending: connecting, or waiting for something. Copying:
    /// the initial copy runs. CatchingUp: everything is copied, the changes made meanwhile are
    /// being applied. Mirroring: the target is exactly the source as of `consistentAt`. Paused:
    /// switched off. Failed: stopped by something that needs you, see `message`.
    #[serde(default)]
    pub phase: Phase,

    /// The target is exactly what the source was at this time of the source's cluster. Absent
    /// until the first such time. Refreshed every minute, and whenever something else changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub consistent_at: Option<Time>,

    /// The time of the target's own cluster, as `<seconds>.<increment>`, at which it was that: what
    /// is read there in a snapshot at this cluster time is exactly what the source was. It matters
    /// with `apply.mode: Parallel`, and as long as the target keeps its past, five minutes by default.
    /// Absent until the operator has written a first batch, and whenever `consistentAt` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 21))]
    pub target_time: Option<String>,

    /// What the mirror does; or what is wrong, and what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,

    /// When a mirror that could not go on is tried again, by itself. Absent while it runs, and while
    /// it waits for something that the operator is told of, as a Secret or an edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub next_attempt: Option<Time>,

    /// When the operator last said all this; refreshed every minute, and while the mirror is paused
    /// every five minutes. If it is much older, no operator looks after the mirror, and nobody knows
    /// whether the rest of this status is still so. Absent while nothing can change before a Secret
    /// does, or this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub heartbeat: Option<Time>,

    /// The initial copy, from the moment it is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_sync: Option<InitialSyncStatus>,

    /// The last comparison of both sides. Absent before the first one came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,

    /// What of the source is not mirrored, and why. Everything else is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub unsupported: Vec<UnsupportedStatus>,

    /// Documents that the target refuses although the source has them, as one that an index of the
    /// target cannot hold. Everything else is mirrored, they are tried again and again, and
    /// `consistentAt` is absent meanwhile. The API over HTTP lists them.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub quarantined_documents: i64,

    /// How the harder updates reach the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply_form: Option<ApplyForm>,

    /// How long the source's oplog still holds what the mirror has not applied yet. When it is used
    /// up, the mirror has lost its place. Measured all the time, also while the mirror is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oplog_headroom: Option<OplogHeadroomStatus>,

    /// What was asked for by the annotations `mongomirror.dev/verify`, `mongomirror.dev/resync` and
    /// `mongomirror.dev/sync`, and what came of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into()]))]
    pub requests: Vec<RequestStatus>,

    /// Observations of the mirror's state. Ready: it does what the spec asks for.
    /// SourceConnected, TargetConnected: that side answers. InitialSyncCompleted: everything is
    /// copied. Replicating: changes of the source are being applied. Verified: the last comparison of
    /// both sides found them equal, or made them so. Reconciling: on the way to
    /// what the spec asks for. Stalled: stopped by something that needs you. OplogHeadroomLow: the
    /// source's oplog soon drops what the mirror has not applied yet. Degraded: the mirror goes on,
    /// but the target is not wholly what the source is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Nothing has been seen yet.
impl Default for MongoMirrorStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            enabled: None,
            connected: false,
            db_name: None,
            source_db_name: None,
            lag: unknown(),
            lag_milliseconds: None,
            phase: Phase::default(),
            consistent_at: None,
            target_time: None,
            message: String::new(),
            next_attempt: None,
            heartbeat: None,
            initial_sync: None,
            verification: None,
            unsupported: Vec::new(),
            quarantined_documents: 0,
            apply_form: None,
            oplog_headroom: None,
            requests: Vec::new(),
            conditions: Vec::new(),
        }
    }
}

impl MongoMirrorStatus {
    /// The condition of that type.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| condition.type_ == type_)
    }
}

/// Where a mirror is in its life.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, or waiting for something.
    #[default]
    Pending,
    /// The initial copy runs.
    Copying,
    /// Everything is copied; the changes made meanwhile are being applied.
    CatchingUp,
    /// The target is exactly the source as of a known time.
    Mirroring,
    /// Switched off.
    Paused,
    /// Stopped by something that needs a human.
    Failed,
}

/// How updates that a plain `$set` cannot express reach the target. InternalDelta: as the server's
/// own deltas. Refetch: the changed documents are read again from the source, because the servers
/// refuse those deltas.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyForm {
    /// As the server's own deltas.
    InternalDelta,
    /// The changed documents are read again from the source.
    Refetch,
}

/// The initial copy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InitialSyncStatus {
    /// Documents to copy, as estimated when the copy was planned.
    #[schemars(range(min = 0))]
    pub documents_total: i64,
    /// Documents copied so far.
    #[schemars(range(min = 0))]
    pub documents_copied: i64,
    /// Bytes to copy (uncompressed), as estimated when the copy was planned.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Bytes copied so far (uncompressed).
    #[schemars(range(min = 0))]
    pub bytes_copied: i64,
    /// How much is copied, from 0 to 100. 100 only when the copy is complete.
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    /// How much is copied, for people: `42%`.
    pub progress: String,
    /// Collections that take part.
    #[schemars(range(min = 0))]
    pub collections_total: i64,
    /// Collections copied to the end, indexes included.
    #[schemars(range(min = 0))]
    pub collections_done: i64,
    /// When the copy was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub started_at: Option<Time>,
    /// When the copy was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub completed_at: Option<Time>,
}

/// A comparison of both sides, as of a time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// When it ended.
    #[schemars(schema_with = "time")]
    pub time: Time,
    /// The time of the source's cluster that the target was compared with.
    #[schemars(schema_with = "time")]
    pub consistent_at: Time,
    /// Collections compared.
    #[schemars(range(min = 0))]
    pub collections: i64,
    /// Documents of the source that were compared.
    #[schemars(range(min = 0))]
    pub documents: i64,
    /// Their bytes (uncompressed).
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// What was not equal: documents, options, indexes.
    #[schemars(range(min = 0))]
    pub differences: i64,
    /// How many of these were put right.
    #[schemars(range(min = 0))]
    pub repaired: i64,
    /// How long it took, for people: `42s`.
    pub duration: String,
}

/// Something of the source that is not mirrored.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UnsupportedStatus {
    /// The collection, index or option.
    pub name: String,
    /// Why it is not mirrored.
    pub reason: String,
}

/// How long the source's oplog still holds the mirror's position. Numbers are rounded, so that they
/// do not change all the time; the status API has them exactly.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OplogHeadroomStatus {
    /// How long, for people, if the source goes on writing as it did: `3h5m`; `unknown`.
    pub time: String,
    /// How many bytes the source may write until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub bytes: Option<i64>,
    /// Where it is going: `steady`, `unknown`, or how fast it shrinks and when it is used up then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trend: Option<String>,
    /// Why it is unknown, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was measured; refreshed every few minutes while nothing else changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub measured_at: Option<Time>,
}

/// Something that an annotation asks for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// Verify: compare both sides. Resync: begin anew over what the target holds. Sync: put
    /// documents right.
    pub kind: RequestKind,
    /// The annotation's value. It is done once; another value asks again.
    #[schemars(length(max = 1024))]
    pub token: String,
    /// Waiting: it cannot be done now, `result` says why; it is tried again. Running, Done, Refused.
    pub state: RequestState,
    /// What came of it, or why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub result: String,
    /// Since when that is so.
    #[schemars(schema_with = "time")]
    pub time: Time,
}

/// What can be asked for by annotations.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum RequestKind {
    /// Compare both sides.
    Verify,
    /// Put documents right.
    Sync,
    /// Begin anew over what the target holds.
    Resync,
}

impl RequestKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Verify, Self::Sync, Self::Resync];

    /// The annotation's name, without the prefix.
    pub fn annotation(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Sync => "sync",
            Self::Resync => "resync",
        }
    }
}

/// How far a request is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// It cannot be done now, and is tried again.
    Waiting,
    /// It is under way.
    Running,
    /// It is done.
    Done,
    /// It cannot be done.
    Refused,
}

impl RequestState {
    /// Whether nothing more comes of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Refused)
    }
}

/// One observation of the mirror's state.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is observed.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// Whether it is so.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word for programs.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    )]
    pub reason: String,
    /// Why, in a sentence for people.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Since when `status` is what it is.
    #[schemars(schema_with = "time")]
    pub last_transition_time: Time,
    /// The generation of the spec that was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// It cannot be told.
    Unknown,
}

/// The types of conditions.
pub mod condition {
    /// The mirror does what its spec asks for.
    pub const READY: &str = "Ready";
    /// The source answers.
    pub const SOURCE_CONNECTED: &str = "SourceConnected";
    /// The target answers.
    pub const TARGET_CONNECTED: &str = "TargetConnected";
    /// Everything is copied.
    pub const INITIAL_SYNC_COMPLETED: &str = "InitialSyncCompleted";
    /// Changes of the source are being applied.
    pub const REPLICATING: &str = "Replicating";
    /// On the way to what the spec asks for.
    pub const RECONCILING: &str = "Reconciling";
    /// Stopped by something that needs a human.
    pub const STALLED: &str = "Stalled";
    /// The source's oplog soon drops what the mirror has not applied yet.
    pub const OPLOG_HEADROOM_LOW: &str = "OplogHeadroomLow";
    /// The last comparison of both sides found them equal, or made them so.
    pub const VERIFIED: &str = "Verified";
    /// The mirror goes on, but the target is not wholly what the source is.
    pub const DEGRADED: &str = "Degraded";
}

/// The word for a lag that cannot be told.
pub const UNKNOWN_LAG: &str = "unknown";

fn unknown() -> String {
    UNKNOWN_LAG.to_owned()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn unobserved() -> i64 {
    -1
}

fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}
