//! Writes a mirror's status, as rarely as its readers allow.
//!
//! A status is a write to etcd and an event for everyone who watches. So: at once when something
//! happened, every few seconds while a copy makes progress, a few times a minute while the lag does,
//! once a minute while only time goes by, and not at all when nothing does.
//!
//! It is written only over the version that was seen last, so nothing that was under way for long,
//! nor a leader of yesterday, undoes what is newer. What others write into it is overwritten.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::events::Recorder;
use kube::{Api, Resource};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::Instant;

use super::backoff::{Backoff, Outage};
use super::{crash, events};
use crate::resource::status::{Condition, ConditionStatus};
use crate::resource::{MongoMirror, MongoMirrorStatus};
use crate::runner::registry::MirrorKey;
use crate::runner::words;

/// Who owns the status fields in server-side apply.
const FIELD_MANAGER: &str = "mongomirror";
/// A write that takes longer is tried again; the API server answers in milliseconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two writes while a copy makes progress, for the first few; then [`SOON`]. Most copies come
/// to their end in moments, and those that do not are not looked at every second.
const PROGRESS: Duration = Duration::from_secs(3);
/// So many.
const FEW: u32 = 5;
/// Between two writes while the lag moves.
const SOON: Duration = Duration::from_secs(10);
/// Between two writes while something is tried again and again, as by all mirrors of a source that
/// is away.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two writes over what others have written.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two writes while only time goes by. Five hundred idle mirrors are eight writes a second.
const CALM: Duration = Duration::from_secs(60);

/// "Too Many Requests": the API server has its hands full.
const BUSY: u16 = 429;

/// How soon a status must be written. Ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Haste {
    /// It says what is already written.
    Never,
    /// Only times and small changes of the lag differ.
    Calm,
    /// It is tried again at another time.
    Again,
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
    #[error("the resource is gone")]
    Gone,
    #[error("the resource has changed, or another one has its name")]
    Changed,
    #[error("failed to write the status")]
    Api(#[source] Box<kube::Error>),
}

impl PublishError {
    /// Whether the API server cannot do its work, whatever it is asked for.
    fn is_outage(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Gone | Self::Changed => false,
            Self::Api(error) => match &**error {
                kube::Error::Api(answer) => answer.code >= 500 || answer.code == BUSY,
                _ => true,
            },
        }
    }
}

/// Writes the status of one resource.
pub struct Publisher {
    api: Api<DeserializeGuard<MongoMirror>>,
    recorder: Recorder,
    resource: ObjectReference,
    name: String,
    uid: String,
    /// What was written last, be it by an earlier process.
    written: MongoMirrorStatus,
    /// What the resource has, as others may have written into it,
    there: MongoMirrorStatus,
    /// in this version.
    version: String,
    insists: bool,
    written_at: Option<Instant>,
    /// So many of the last writes told of nothing but a copy's progress.
    progressed: u32,
    /// Intervals are so much of what they are called, each publisher's a little different.
    pace: f64,
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Publisher {
    /// For one resource, which has the status `written` in this version. What happens to it is
    /// recorded, too.
    pub fn new(
        api: Api<DeserializeGuard<MongoMirror>>,
        recorder: Recorder,
        key: &MirrorKey,
        uid: String,
        version: String,
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
            there: written.clone(),
            written,
            version,
            insists: false,
            written_at: None,
            progressed: 0,
            pace: rand::random_range(0.85..=1.0),
            not_before: None,
            backoff: Backoff::default(),
        }
    }

    /// The resource's UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The status that was written last.
    pub fn written(&self) -> &MongoMirrorStatus {
        &self.written
    }

    /// This is what the watch has told last.
    pub fn saw(&mut self, resource: &DeserializeGuard<MongoMirror>) {
        let meta = resource.meta();
        let version = meta.resource_version.as_deref().unwrap_or_default();
        if meta.uid.as_ref() != Some(&self.uid) || !is_later(version, &self.version) {
            return;
        }
        version.clone_into(&mut self.version);
        self.not_before = None;
        // One that cannot be read may have any status.
        let Ok(mirror) = &resource.0 else { return };
        let status = mirror.status.clone().unwrap_or_default();
        if status != self.there {
            self.there = status;
            // Whoever writes into it again and again is not answered each time.
            self.not_before = self.written_at.map(|written_at| written_at + ANSWER);
        }
    }

    /// What is written next is written over whatever is there: the watch has ended.
    pub fn insist(&mut self) {
        self.insists = true;
        self.not_before = None;
    }

    /// When this must be written, `now` at the earliest; `None` if that is what is written.
    pub fn due(&self, status: &MongoMirrorStatus, now: Instant) -> Option<Instant> {
        // Many mirrors that came together must not write in step.
        let after = |wait: Duration| {
            let wait = wait.mul_f64(self.pace);
            self.written_at.map_or(now, |written_at| written_at + wait)
        };
        let due = match haste(&self.there, status) {
            Haste::Never => return None,
            Haste::Now => now,
            Haste::Progress if self.progressed < FEW => after(PROGRESS),
            Haste::Progress => after(SOON),
            Haste::Soon => after(SOON),
            Haste::Again => after(AGAIN),
            Haste::Calm => after(CALM),
        };
        Some(due.max(self.not_before.unwrap_or(now)))
    }

    /// Writes the status if it is due. Does not take longer than twice [`WRITE_TIMEOUT`], and a
    /// while for events.
    pub async fn publish(&mut self, status: MongoMirrorStatus, outage: &Outage) {
        let now = Instant::now();
        if self.due(&status, now).is_none_or(|due| due > now) {
            return;
        }
        if let Some(later) = outage.not_before(now) {
            self.not_before = Some(later);
            return;
        }
        let written = self.write(&status).await;
        let is_outage = written.as_ref().is_err_and(PublishError::is_outage);
        if !is_outage {
            outage.answered();
        }
        let error = match written {
            Ok(version) => {
                self.version = version;
                self.backoff.succeeded();
                self.not_before = None;
                self.progressed = match haste(&self.written, &status) {
                    Haste::Progress => self.progressed.saturating_add(1),
                    _ => 0,
                };
                self.there = status.clone();
                let before = std::mem::replace(&mut self.written, status);
                self.written_at = Some(Instant::now());
                events::tell(&self.recorder, &self.resource, &before, &self.written).await;
                return;
            }
            // The watch will tell; until then there is nobody to tell it to.
            Err(PublishError::Gone) => {
                self.there = status;
                return;
            }
            Err(error) => error,
        };
        let now = Instant::now();
        self.not_before = Some(match is_outage {
            true => outage.failed(now),
            false => now + self.backoff.failed(),
        });
        if matches!(error, PublishError::Changed) {
            // The watch brings what it is now.
            tracing::debug!(resource = %self.name, "{error}");
        } else {
            tracing::warn!(
                resource = %self.name,
                error = words::root_cause(&error),
                "the status could not be written, it will be tried again; the mirror goes on"
            );
        }
    }

    /// Returns the version that the resource has then.
    async fn write(&self, status: &MongoMirrorStatus) -> Result<String, PublishError> {
        let patch = json!({
            "apiVersion": MongoMirror::api_version(&()),
            "kind": MongoMirror::kind(&()),
            "metadata": self.of_version(&self.version),
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let (version, kept) = self.send(&parameters, &Patch::Apply(patch)).await?;
        // Fields that others have made, and this status does not have, stay theirs.
        let Some(rest) = kept.and_then(|kept| difference(&json!(kept), &json!(status))) else {
            return Ok(version);
        };
        let patch = json!({ "metadata": self.of_version(&version), "status": rest });
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let (version, _) = self.send(&parameters, &Patch::Merge(patch)).await?;
        Ok(version)
    }

    /// Makes it a conflict if the resource has changed since, or another one has its name.
    fn of_version(&self, version: &str) -> Value {
        let mut metadata = json!({ "name": self.name, "uid": self.uid });
        // An empty one would be taken for a version, and refused.
        if !self.insists {
            metadata["resourceVersion"] = json!(version);
        }
        metadata
    }

    async fn send(
        &self,
        parameters: &PatchParams,
        patch: &Patch<Value>,
    ) -> Result<(String, Option<MongoMirrorStatus>), PublishError> {
        let write = self.api.patch_status(&self.name, parameters, patch);
        let answer = tokio::time::timeout(WRITE_TIMEOUT, write).await;
        match answer.map_err(|_| PublishError::Timeout)? {
            Ok(now) => {
                crash::written();
                let version = now.meta().resource_version.clone().unwrap_or_default();
                Ok((version, now.0.ok().and_then(|mirror| mirror.status)))
            }
            Err(kube::Error::Api(answer)) if answer.is_not_found() => Err(PublishError::Gone),
            Err(kube::Error::Api(answer)) if answer.is_conflict() => Err(PublishError::Changed),
            Err(error) => Err(PublishError::Api(Box::new(error))),
        }
    }
}

/// Versions of one resource are numbers that grow.
fn is_later(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version > than,
        _ => version != than,
    }
}

/// What has to be merged into the one to make it the other (JSON Merge Patch), if anything.
fn difference(there: &Value, wanted: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (there, wanted) else {
        return (there != wanted).then(|| wanted.clone());
    };
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let changed = new.iter().filter_map(|(name, value)| {
        let there = old.get(name).unwrap_or(&Value::Null);
        Some((name.clone(), difference(there, value)?))
    });
    let all: serde_json::Map<_, _> = gone.chain(changed).collect();
    (!all.is_empty()).then_some(Value::Object(all))
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
        || written.verification != wanted.verification
        || written.consistent_at.is_some() != wanted.consistent_at.is_some()
        || outline(&written.conditions) != outline(&wanted.conditions);
    if happened {
        return Haste::Now;
    }
    if written.initial_sync != wanted.initial_sync {
        return Haste::Progress;
    }
    let moved = written.quarantined_documents != wanted.quarantined_documents
        || written.unsupported != wanted.unsupported
        || written.apply_form != wanted.apply_form
        || written.message != wanted.message
        || written.next_attempt.is_some() != wanted.next_attempt.is_some()
        || magnitude(written.lag_milliseconds) != magnitude(wanted.lag_milliseconds);
    if moved {
        Haste::Soon
    } else if written.next_attempt != wanted.next_attempt {
        Haste::Again
    } else {
        Haste::Calm
    }
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
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        assert_eq!(haste_of(|s| s.next_attempt = at(1)), Haste::Soon);
        let tried = |second| MongoMirrorStatus {
            next_attempt: at(second),
            ..status()
        };
        assert_eq!(haste(&tried(1), &tried(16)), Haste::Again);
    }

    #[test]
    fn jitter_is_told_calmly_and_nothing_is_not_told() {
        assert_eq!(haste_of(|_| {}), Haste::Never);
        assert_eq!(haste_of(|s| s.lag_milliseconds = Some(90)), Haste::Calm);
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let mut before = status();
        before.consistent_at = at(10);
        let mut after = before.clone();
        after.consistent_at = at(20);
        assert_eq!(haste(&before, &after), Haste::Calm);
        assert_eq!(haste_of(|s| s.heartbeat = at(10)), Haste::Calm);
        // That it is known at all is another matter.
        assert_eq!(haste_of(|s| s.consistent_at = at(10)), Haste::Now);
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

    #[test]
    fn what_is_merged_makes_the_one_the_other() {
        let wanted = json!({"a": 1, "b": {"c": 2}, "d": [1, 2]});
        for (there, expected) in [
            (wanted.clone(), None),
            (json!(null), Some(wanted.clone())),
            (
                json!({"a": 1, "b": {"c": 2, "e": 3}, "d": [2], "f": {"g": 4}}),
                Some(json!({"b": {"e": null}, "d": [1, 2], "f": null})),
            ),
        ] {
            assert_eq!(difference(&there, &wanted), expected);
        }
    }

    #[test]
    fn versions_grow() {
        assert!(is_later("10", "9") && !is_later("9", "10") && !is_later("9", "9"));
        assert!(is_later("9", ""));
    }
}
