//! Writes a mirror's status, as rarely as its readers allow.
//!
//! A status is a write to etcd and an event for everyone who watches. So: at once when something
//! happened, every few seconds while a copy makes progress, a few times a minute while the lag does,
//! once a minute while only time goes by, and not at all when nothing does.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::events::Recorder;
use kube::{Api, Resource};
use serde_json::json;
use thiserror::Error;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::{crash, events};
use crate::resource::status::{Condition, ConditionStatus};
use crate::resource::{MongoMirror, MongoMirrorStatus};
use crate::runner::registry::MirrorKey;
use crate::runner::words;

/// Who owns the status fields in server-side apply.
const FIELD_MANAGER: &str = "mongomirror";
/// A write that takes longer is tried again; the API server answers in milliseconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two writes while a copy, which comes to an end, makes progress.
const PROGRESS: Duration = Duration::from_secs(3);
/// Between two writes while the lag moves.
const SOON: Duration = Duration::from_secs(10);
/// Between two writes while only time goes by. Five hundred idle mirrors are eight writes a second.
const CALM: Duration = Duration::from_secs(60);

/// How soon a status must be written. Ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Haste {
    /// It says what is already written.
    Never,
    /// Only times and small changes of the lag differ.
    Calm,
    /// Numbers or texts differ.
    Soon,
    /// A copy made progress.
    Progress,
    /// Something happened.
    Now,
}

/// A status that could not be written.
#[derive(Debug, Error)]
enum PublishError {
    #[error("the API server did not answer within {} s", WRITE_TIMEOUT.as_secs())]
    Timeout,
    #[error("the resource is gone or another one has its name")]
    Gone,
    #[error("failed to write the status")]
    Api(#[source] Box<kube::Error>),
}

/// Writes the status of one resource.
pub struct Publisher {
    api: Api<DeserializeGuard<MongoMirror>>,
    recorder: Recorder,
    resource: ObjectReference,
    name: String,
    uid: String,
    written: MongoMirrorStatus,
    written_at: Option<Instant>,
    /// Intervals are so much of what they are called, each publisher's a little different.
    pace: f64,
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Publisher {
    /// For one resource, which has the status `written`. What happens to it is recorded, too.
    pub fn new(
        api: Api<DeserializeGuard<MongoMirror>>,
        recorder: Recorder,
        key: &MirrorKey,
        uid: String,
        written: MongoMirrorStatus,
    ) -> Self {
        let resource = ObjectReference {
            api_version: Some(MongoMirror::api_version(&()).into_owned()),
            kind: Some(MongoMirror::kind(&()).into_owned()),
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        };
        Self {
            api,
            recorder,
            resource,
            name: key.name.clone(),
            uid,
            written,
            written_at: None,
            pace: rand::random_range(0.85..=1.0),
            not_before: None,
            backoff: Backoff::default(),
        }
    }

    /// The resource's UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The status that the resource has.
    pub fn written(&self) -> &MongoMirrorStatus {
        &self.written
    }

    /// Writes the status if it is time to; returns when to come back, if it must be written
    /// later. Does not take longer than [`WRITE_TIMEOUT`], and as long for events.
    pub async fn publish(&mut self, status: MongoMirrorStatus) -> Option<Instant> {
        let now = Instant::now();
        // Many mirrors that came together must not write in step.
        let after = |wait: Duration| {
            let wait = wait.mul_f64(self.pace);
            self.written_at.map_or(now, |written_at| written_at + wait)
        };
        let due = match haste(&self.written, &status) {
            Haste::Never => return None,
            Haste::Now => now,
            Haste::Progress => after(PROGRESS),
            Haste::Soon => after(SOON),
            Haste::Calm => after(CALM),
        };
        let due = due.max(self.not_before.unwrap_or(now));
        if due > now {
            return Some(due);
        }
        match self.write(&status).await {
            Ok(()) => {
                crash::written();
                self.backoff.succeeded();
                self.not_before = None;
                let before = std::mem::replace(&mut self.written, status);
                self.written_at = Some(Instant::now());
                events::tell(&self.recorder, &self.resource, &before, &self.written).await;
                None
            }
            // The watch will tell; until then there is nobody to tell it to.
            Err(PublishError::Gone) => {
                self.written = status;
                None
            }
            Err(error) => {
                let again = Instant::now() + self.backoff.failed();
                self.not_before = Some(again);
                tracing::warn!(
                    resource = %self.name,
                    error = words::root_cause(&error),
                    "the status could not be written, it will be tried again; the mirror goes on"
                );
                Some(again)
            }
        }
    }

    async fn write(&self, status: &MongoMirrorStatus) -> Result<(), PublishError> {
        // The UID makes it a conflict if the name meanwhile belongs to another resource.
        let patch = json!({
            "apiVersion": MongoMirror::api_version(&()),
            "kind": MongoMirror::kind(&()),
            "metadata": { "name": self.name, "uid": self.uid },
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(patch);
        let write = self.api.patch_status(&self.name, &parameters, &patch);
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Err(_) => Err(PublishError::Timeout),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(answer))) if answer.is_not_found() || answer.is_conflict() => {
                Err(PublishError::Gone)
            }
            Ok(Err(error)) => Err(PublishError::Api(Box::new(error))),
        }
    }
}

/// How soon `wanted` must replace `written`.
fn haste(written: &MongoMirrorStatus, wanted: &MongoMirrorStatus) -> Haste {
    if written == wanted {
        return Haste::Never;
    }
    let happened = written.observed_generation != wanted.observed_generation
        || written.phase != wanted.phase
        || written.enabled != wanted.enabled
        || written.connected != wanted.connected
        || written.db_name != wanted.db_name
        || written.requests != wanted.requests
        || outline(&written.conditions) != outline(&wanted.conditions);
    if happened {
        return Haste::Now;
    }
    if written.initial_sync != wanted.initial_sync {
        return Haste::Progress;
    }
    let moved = written.unsupported != wanted.unsupported
        || written.apply_form != wanted.apply_form
        || written.message != wanted.message
        || magnitude(written.lag_milliseconds) != magnitude(wanted.lag_milliseconds);
    if moved { Haste::Soon } else { Haste::Calm }
}

fn outline(conditions: &[Condition]) -> Vec<(&str, ConditionStatus, &str)> {
    conditions
        .iter()
        .map(|condition| {
            (
                condition.type_.as_str(),
                condition.status,
                condition.reason.as_str(),
            )
        })
        .collect()
}

/// The lag's order of magnitude: below a tenth of a second all lags are one, above it a doubling
/// is a change.
fn magnitude(lag_milliseconds: Option<i64>) -> Option<u32> {
    let tenths = u64::try_from(lag_milliseconds?).unwrap_or(0) / 100;
    Some(u64::BITS - tenths.leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::status::{InitialSyncStatus, Phase};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn status() -> MongoMirrorStatus {
        MongoMirrorStatus {
            observed_generation: 1,
            phase: Phase::Mirroring,
            lag: "5ms".into(),
            lag_milliseconds: Some(5),
            conditions: vec![Condition {
                type_: "Ready".into(),
                status: ConditionStatus::True,
                reason: "Mirroring".into(),
                message: "all is well".into(),
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
                observed_generation: Some(1),
            }],
            ..MongoMirrorStatus::default()
        }
    }

    fn haste_of(change: impl FnOnce(&mut MongoMirrorStatus)) -> Haste {
        let mut wanted = status();
        change(&mut wanted);
        haste(&status(), &wanted)
    }

    #[test]
    fn what_happens_is_told_at_once() {
        assert_eq!(haste_of(|s| s.phase = Phase::Failed), Haste::Now);
        assert_eq!(haste_of(|s| s.connected = true), Haste::Now);
        assert_eq!(haste_of(|s| s.observed_generation = 2), Haste::Now);
        assert_eq!(
            haste_of(|s| s.conditions[0].reason = "Disconnected".into()),
            Haste::Now
        );
    }

    #[test]
    fn what_moves_is_told_soon() {
        assert_eq!(
            haste_of(|s| s.initial_sync = Some(InitialSyncStatus::default())),
            Haste::Progress
        );
        assert_eq!(haste_of(|s| s.lag_milliseconds = Some(2000)), Haste::Soon);
        assert_eq!(haste_of(|s| s.lag_milliseconds = None), Haste::Soon);
        assert_eq!(haste_of(|s| s.message = "x".into()), Haste::Soon);
    }

    #[test]
    fn jitter_is_told_calmly_and_nothing_is_not_told() {
        assert_eq!(haste_of(|_| {}), Haste::Never);
        assert_eq!(haste_of(|s| s.lag_milliseconds = Some(90)), Haste::Calm);
        assert_eq!(
            haste_of(|s| s.consistent_at = Some(Time(Timestamp::UNIX_EPOCH))),
            Haste::Calm
        );
    }

    #[test]
    fn magnitudes_double() {
        for (lag, expected) in [
            (0, 0),
            (99, 0),
            (100, 1),
            (199, 1),
            (200, 2),
            (399, 2),
            (400, 3),
        ] {
            assert_eq!(magnitude(Some(lag)), Some(expected), "{lag}");
        }
        assert_eq!(magnitude(None), None);
    }
}
