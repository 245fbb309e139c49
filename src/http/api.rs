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
use crate::engine::position::ClusterTime;
use crate::engine::progress::{ApplyForm, InitialSync, Link, Phase, Problem, Totals, Unsupported};
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
    /// How far the stream is applied.
    applied_cluster_time: Option<ClusterTime>,
    message: String,
    problem: Option<&'a Problem>,
    source: &'a Link,
    target: &'a Link,
    initial_sync: Option<InitialCopy<'a>>,
    unsupported: &'a [Unsupported],
    apply_form: Option<ApplyForm>,
    totals: &'a Totals,
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
            applied_cluster_time: progress.position,
            message: snapshot.message(),
            problem: snapshot.problem.as_ref(),
            source: &progress.source,
            target: &progress.target,
            initial_sync: progress.initial_sync.as_ref().map(|sync| InitialCopy {
                counts: sync,
                percent: sync.percent(),
                started_at: time(sync.started_at),
                completed_at: time(sync.completed_at),
            }),
            unsupported: &progress.unsupported,
            apply_form: progress.apply_form,
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
        None => error(
            StatusCode::NOT_FOUND,
            &format!("there is no mirror {key} here; GET /api/v1/mirrors lists all"),
        ),
    }
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
    use crate::runner::registry::tests::{listing, mirroring};

    #[test]
    fn a_mirror_reads_as_documented() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let mut progress = mirroring(now);
        progress.consistent_at = Some(ClusterTime {
            seconds: 1_789_999_999,
            increment: 4,
        });
        progress.initial_sync = Some(InitialSync {
            documents_total: 10,
            documents_copied: 10,
            started_at: Some(now),
            completed_at: Some(now),
            ..InitialSync::default()
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
            ("/problem", Value::Null),
            ("/initialSync/documentsCopied", 10.into()),
            ("/initialSync/percent", 100.into()),
            ("/initialSync/completedAt", "2026-09-21T14:13:20Z".into()),
            ("/totals/eventsApplied", 0.into()),
        ] {
            assert_eq!(json.pointer(field), Some(&value), "{field}");
        }
    }
}
