//! The status API: what is to be seen of the mirrors, as JSON.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::Shared;
use crate::engine::headroom::{Headroom, Trend};
use crate::engine::position::ClusterTime;
use crate::engine::progress::{
    ApplyForm, InitialSync, Link, Phase, Problem, Totals, Unsupported, VerificationResult,
    VerificationRun,
};
use crate::engine::quarantine::Quarantined;
use crate::runner::registry::{MirrorKey, Snapshot};
use crate::runner::words;

/// All mirrors.
#[derive(Serialize)]
struct List<'a> {
    mirrors: Vec<Mirror<'a>>,
}

/// One mirror.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Mirror<'a> {
    namespace: &'a str,
    name: &'a str,
    enabled: bool,
    connected: bool,
    source_db_name: &'a str,
    db_name: &'a str,
    phase: Phase,
    lag: String,
    lag_milliseconds: Option<u64>,
    /// The cluster time at which the target is exactly the source, on a wall clock.
    consistent_at: Option<String>,
    /// The same, exactly: `<seconds>.<increment>`.
    consistent_at_cluster_time: Option<ClusterTime>,
    /// The target's own cluster time at which it was that.
    target_cluster_time: Option<ClusterTime>,
    /// How far the stream is applied.
    applied_cluster_time: Option<ClusterTime>,
    message: String,
    problem: Option<&'a Problem>,
    /// When a mirror that could not go on is tried again, by itself.
    next_attempt: Option<String>,
    source: &'a Link,
    target: &'a Link,
    initial_sync: Option<InitialCopy<'a>>,
    verification: Verified<'a>,
    unsupported: &'a [Unsupported],
    quarantined_documents: usize,
    apply_form: Option<ApplyForm>,
    oplog_headroom: Option<OplogHeadroom<'a>>,
    totals: &'a Totals,
}

/// How long the source's oplog still holds the position.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OplogHeadroom<'a> {
    /// `unknown` if it cannot be told.
    time: String,
    seconds: Option<u64>,
    bytes: Option<u64>,
    /// How long a time it holds when it is full.
    window_seconds: Option<u64>,
    low: Option<bool>,
    trend: Option<String>,
    shrinking_seconds_per_hour: Option<u64>,
    lost_in_seconds: Option<u64>,
    /// Why it is unknown.
    message: Option<&'a str>,
    measured_at: Option<String>,
}

impl<'a> From<&'a Headroom> for OplogHeadroom<'a> {
    fn from(headroom: &'a Headroom) -> Self {
        let (left, trend, at, message) = match headroom {
            Headroom::Measured { left, trend, at } => (Some(left), Some(*trend), Some(*at), None),
            Headroom::Unknown { why } => (None, None, None, Some(why.as_str())),
        };
        let (shrinking, lost_in) = match trend {
            Some(Trend::Shrinking {
                seconds_per_hour,
                lost_in,
            }) => (Some(seconds_per_hour), Some(lost_in.as_secs())),
            _ => (None, None),
        };
        Self {
            time: left.map_or_else(|| "unknown".to_owned(), |left| words::duration(left.time)),
            seconds: left.map(|left| left.time.as_secs()),
            bytes: left.map(|left| left.bytes),
            window_seconds: left.map(|left| left.window.as_secs()),
            low: left.map(|left| left.is_low()),
            trend: trend.map(words::trend),
            shrinking_seconds_per_hour: shrinking,
            lost_in_seconds: lost_in,
            message,
            measured_at: at.map(words::rfc3339),
        }
    }
}

/// The initial copy, with what the engine leaves to its readers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InitialCopy<'a> {
    #[serde(flatten)]
    counts: &'a InitialSync,
    percent: u8,
    started_at: Option<String>,
    completed_at: Option<String>,
}

/// The comparison of both sides.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified<'a> {
    running: Option<VerificationRun>,
    last: Option<VerifiedLast<'a>>,
    failed: Option<&'a str>,
}

/// A comparison that came to its end, with what the engine leaves to its readers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedLast<'a> {
    #[serde(flatten)]
    counts: &'a VerificationResult,
    time: String,
    duration_milliseconds: u64,
}

/// A comparison as documented.
pub fn verification_result(result: &VerificationResult) -> VerifiedLast<'_> {
    VerifiedLast {
        counts: result,
        time: words::rfc3339(result.time),
        duration_milliseconds: u64::try_from(result.duration.as_millis()).unwrap_or(u64::MAX),
    }
}

impl<'a> From<&'a Snapshot> for Mirror<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        let progress = &snapshot.progress;
        let time = |time: Option<SystemTime>| time.map(words::rfc3339);
        Self {
            namespace: &snapshot.key.namespace,
            name: &snapshot.key.name,
            enabled: snapshot.enabled,
            connected: snapshot.connected(),
            source_db_name: &snapshot.source_database,
            db_name: &snapshot.target_database,
            phase: snapshot.phase(),
            lag: snapshot.lag(),
            lag_milliseconds: snapshot.lag_milliseconds(),
            consistent_at: time(progress.consistent_at.map(ClusterTime::as_system_time)),
            consistent_at_cluster_time: progress.consistent_at,
            target_cluster_time: progress.snapshot_time(),
            applied_cluster_time: progress.position,
            message: snapshot.message(),
            problem: snapshot.problem.as_ref(),
            next_attempt: time(snapshot.next_attempt()),
            source: &progress.source,
            target: &progress.target,
            initial_sync: progress.initial_sync.as_ref().map(|sync| InitialCopy {
                counts: sync,
                percent: sync.percent(),
                started_at: time(sync.started_at),
                completed_at: time(sync.completed_at),
            }),
            verification: Verified {
                running: progress.verification.running,
                last: progress.verification.last.as_ref().map(verification_result),
                failed: progress.verification.failed.as_deref(),
            },
            unsupported: &progress.unsupported,
            quarantined_documents: progress.quarantine.len(),
            apply_form: progress.apply_form,
            oplog_headroom: progress.headroom.as_ref().map(OplogHeadroom::from),
            totals: &progress.totals,
        }
    }
}

/// `GET /api/v1/mirrors`
pub async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let snapshots = shared.registry.snapshots();
    let mirrors: Vec<_> = snapshots.iter().map(Mirror::from).collect();
    Json(List { mirrors }).into_response()
}

/// `GET /api/v1/mirrors/{namespace}/{name}`
pub async fn one(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let key = MirrorKey::new(namespace, name);
    match shared.registry.snapshot(&key) {
        Some(snapshot) => Json(Mirror::from(&snapshot)).into_response(),
        None => not_found(&key),
    }
}

/// The documents that a target refuses.
#[derive(Serialize)]
struct Quarantine<'a> {
    documents: Vec<QuarantinedDocument<'a>>,
}

/// One of them, with what the engine leaves to its readers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QuarantinedDocument<'a> {
    #[serde(flatten)]
    document: &'a Quarantined,
    first_refused: String,
    last_refused: String,
}

/// `GET /api/v1/mirrors/{namespace}/{name}/quarantine`
pub async fn quarantine(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let key = MirrorKey::new(namespace, name);
    let Some(snapshot) = shared.registry.snapshot(&key) else {
        return not_found(&key);
    };
    let documents = snapshot.progress.quarantine.iter();
    let documents = documents
        .map(|document| QuarantinedDocument {
            document,
            first_refused: words::rfc3339(document.first),
            last_refused: words::rfc3339(document.last),
        })
        .collect();
    Json(Quarantine { documents }).into_response()
}

/// No such mirror.
pub fn not_found(key: &MirrorKey) -> Response {
    error(
        StatusCode::NOT_FOUND,
        &format!("there is no mirror {key} here; GET /api/v1/mirrors lists all"),
    )
}

/// An error as JSON.
pub fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::engine::headroom::Left;
    use crate::runner::registry::tests::{listing, mirroring};

    #[test]
    fn a_mirror_reads_as_documented() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let mut progress = mirroring(now);
        progress.consistent_at = Some(ClusterTime {
            seconds: 1_789_999_999,
            increment: 4,
        });
        progress.target_time = Some(ClusterTime {
            seconds: 1_790_000_001,
            increment: 2,
        });
        progress.initial_sync = Some(InitialSync {
            documents_total: 10,
            documents_copied: 10,
            started_at: Some(now),
            completed_at: Some(now),
            ..InitialSync::default()
        });
        progress.headroom = Some(Headroom::Measured {
            left: Left {
                time: Duration::from_secs(7205),
                bytes: 1 << 20,
                window: Duration::from_secs(90_000),
            },
            trend: Trend::Steady,
            at: now,
        });
        let snapshot = Snapshot::new(MirrorKey::new("shop", "orders"), listing(progress), now);
        let json = serde_json::to_value(Mirror::from(&snapshot)).unwrap();
        for (field, value) in [
            ("/namespace", Value::from("shop")),
            ("/name", "orders".into()),
            ("/enabled", true.into()),
            ("/connected", true.into()),
            ("/dbName", "orders_backup".into()),
            ("/phase", "Mirroring".into()),
            ("/lag", "38ms".into()),
            ("/lagMilliseconds", 38.into()),
            ("/consistentAt", "2026-09-21T14:13:19Z".into()),
            ("/consistentAtClusterTime", "1789999999.4".into()),
            ("/targetClusterTime", "1790000001.2".into()),
            ("/problem", Value::Null),
            ("/initialSync/documentsCopied", 10.into()),
            ("/initialSync/percent", 100.into()),
            ("/initialSync/completedAt", "2026-09-21T14:13:20Z".into()),
            ("/totals/eventsApplied", 0.into()),
            ("/oplogHeadroom/time", "2h0m".into()),
            ("/oplogHeadroom/seconds", 7205.into()),
            ("/oplogHeadroom/bytes", (1 << 20).into()),
            ("/oplogHeadroom/low", false.into()),
            ("/oplogHeadroom/trend", "steady".into()),
            ("/oplogHeadroom/measuredAt", "2026-09-21T14:13:20Z".into()),
        ] {
            assert_eq!(json.pointer(field), Some(&value), "{field}");
        }
    }
}
