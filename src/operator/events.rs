//! What happened between two statuses → events, for `kubectl describe` and `kubectl events`.
//!
//! The transitions are found in the statuses that are written, so there is an event for what a
//! reader of the status can see, and none for what nobody could. An event that repeats itself
//! becomes a count on the first one.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::{Event, EventType, Recorder};

use super::crash;
use crate::reason::Reason;
use crate::resource::MongoMirrorStatus;
use crate::resource::status::{
    Condition, ConditionStatus, Phase, RequestKind, RequestState, VerificationStatus, condition,
};
use crate::runner::words;

/// Events that take longer are given up: the status says the same.
const LIMIT: Duration = Duration::from_secs(5);

/// Bytes of an event's note; Kubernetes takes 1024.
const NOTE_BYTES: usize = 1000;

/// Tells what happened. Best effort.
pub async fn tell(
    recorder: &Recorder,
    of: &ObjectReference,
    before: &MongoMirrorStatus,
    now: &MongoMirrorStatus,
) {
    let all = async {
        for event in between(before, now) {
            if let Err(error) = recorder.publish(&event, of).await {
                let error = words::root_cause(&error);
                tracing::debug!(
                    reason = event.reason,
                    error,
                    "an event could not be written"
                );
            }
            crash::written();
        }
    };
    if tokio::time::timeout(LIMIT, all).await.is_err() {
        tracing::debug!("the API server takes no events");
    }
}

/// What happened, in the order in which it is told.
fn between(before: &MongoMirrorStatus, now: &MongoMirrorStatus) -> Vec<Event> {
    let mut events = Vec::new();
    if before.phase != now.phase {
        events.extend(of_phase(before.phase, now));
    }
    match (problem(before), problem(now)) {
        (before, Some(now)) if before.is_none_or(|before| before.reason != now.reason) => {
            events.push(event(
                EventType::Warning,
                &now.reason,
                "Mirror",
                &now.message,
            ));
        }
        (Some(_), None) if before.phase == now.phase => {
            events.push(normal(Reason::Recovered, "Mirror", &now.message));
        }
        _ => {}
    }
    let news = now.verification.as_ref().filter(|last| {
        let is_new = before.verification.as_ref().map(|it| &it.time) != Some(&last.time);
        is_new && began_before(before, &last.time)
    });
    events.extend(news.map(|last| of_verification(last, now)));
    for (type_, over) in [
        (condition::DEGRADED, Reason::Healed),
        (
            condition::OPLOG_HEADROOM_LOW,
            Reason::OplogHeadroomSufficient,
        ),
    ] {
        let Some(seen) = now.condition(type_) else {
            continue;
        };
        let was = is_true(before.condition(type_));
        match (was, is_true(Some(seen))) {
            // The one is told as what a verification came to.
            (false, true) if news.is_some() && Reason::DifferencesFound == seen.reason.as_str() => {
            }
            (false, true) => {
                let reason = match type_ {
                    condition::OPLOG_HEADROOM_LOW => Reason::OplogHeadroomLow.as_str(),
                    _ => &seen.reason,
                };
                events.push(event(EventType::Warning, reason, "Mirror", &seen.message));
            }
            (true, false) => events.push(normal(over, "Mirror", &seen.message)),
            _ => {}
        }
    }
    for one in now.requests.iter().filter(|one| one.state.is_over()) {
        if before.requests.contains(one) {
            continue;
        }
        events.extend(match (one.kind, one.state) {
            (_, RequestState::Refused) => Some(warning(Reason::RequestRefused, "Ask", &one.result)),
            (RequestKind::Sync, _) => Some(normal(Reason::Synced, "Ask", &one.result)),
            (RequestKind::Resync, _) => Some(normal(Reason::ResyncBegun, "Ask", &one.result)),
            // What it came to is told as such.
            (RequestKind::Verify, _) => None,
        });
    }
    let known = |name: &String| before.unsupported.iter().any(|one| one.name == *name);
    for new in now.unsupported.iter().filter(|one| !known(&one.name)) {
        let note = format!("{} is not mirrored: {}", new.name, new.reason);
        events.push(warning(Reason::NotMirrored, "Mirror", &note));
    }
    events
}

fn of_phase(before: Phase, now: &MongoMirrorStatus) -> Option<Event> {
    let (reason, action) = match now.phase {
        Phase::Pending if before == Phase::Paused => (Reason::Resumed, "Resume"),
        Phase::Paused => (Reason::Paused, "Pause"),
        Phase::Copying => (Reason::Copying, "Copy"),
        Phase::CatchingUp => (Reason::CatchingUp, "Mirror"),
        Phase::Mirroring => (Reason::Mirroring, "Mirror"),
        // What failed is told as a problem.
        Phase::Pending | Phase::Failed => return None,
    };
    Some(normal(reason, action, &now.message))
}

/// The condition `Ready`, if it says what is wrong, or that nobody knows.
fn problem(status: &MongoMirrorStatus) -> Option<&Condition> {
    let retries = status
        .condition(condition::RECONCILING)
        .is_some_and(|seen| Reason::Retrying == seen.reason.as_str());
    let ready = status.condition(condition::READY)?;
    let is_wrong = retries
        || is_true(status.condition(condition::STALLED))
        || ready.status == ConditionStatus::Unknown;
    is_wrong.then_some(ready)
}

/// Whether the resource had a status by then: what an earlier one of its name had is no news of it.
fn began_before(status: &MongoMirrorStatus, time: &Time) -> bool {
    let times = status.conditions.iter().map(|it| &it.last_transition_time);
    times.min().is_some_and(|first| first <= time)
}

fn of_verification(last: &VerificationStatus, now: &MongoMirrorStatus) -> Event {
    let verified = now.condition(condition::VERIFIED);
    let note = verified.map_or("", |verified| verified.message.as_str());
    if last.differences == 0 {
        normal(Reason::Verified, "Verify", note)
    } else {
        warning(Reason::DifferencesFound, "Verify", note)
    }
}

fn is_true(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|condition| condition.status == ConditionStatus::True)
}

fn normal(reason: Reason, action: &str, note: &str) -> Event {
    event(EventType::Normal, reason.as_str(), action, note)
}

fn warning(reason: Reason, action: &str, note: &str) -> Event {
    event(EventType::Warning, reason.as_str(), action, note)
}

fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    let end = note.floor_char_boundary(NOTE_BYTES);
    Event {
        type_,
        reason: reason.to_owned(),
        note: (end > 0).then(|| note[..end].to_owned()),
        action: action.to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::status::UnsupportedStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn condition(type_: &str, status: ConditionStatus, reason: &str) -> Condition {
        Condition {
            type_: type_.into(),
            status,
            reason: reason.into(),
            message: format!("{reason}, in words"),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: Some(1),
        }
    }

    fn status(phase: Phase, ready: &str, reconciling: &str, is_stalled: bool) -> MongoMirrorStatus {
        let stalled = match is_stalled {
            true => ConditionStatus::True,
            false => ConditionStatus::False,
        };
        MongoMirrorStatus {
            phase,
            message: "in a sentence".into(),
            conditions: vec![
                condition(condition::READY, ConditionStatus::False, ready),
                condition(
                    condition::RECONCILING,
                    ConditionStatus::Unknown,
                    reconciling,
                ),
                condition(condition::STALLED, stalled, ready),
            ],
            ..MongoMirrorStatus::default()
        }
    }

    fn mirroring() -> MongoMirrorStatus {
        status(Phase::Mirroring, "Mirroring", "Mirroring", false)
    }

    fn told(before: &MongoMirrorStatus, now: &MongoMirrorStatus) -> Vec<String> {
        let said = |event: Event| format!("{:?} {}", event.type_, event.reason);
        between(before, now).into_iter().map(said).collect()
    }

    #[test]
    fn nothing_is_told_when_only_numbers_move() {
        let mut now = mirroring();
        now.lag = "3ms".into();
        assert!(told(&mirroring(), &now).is_empty());
    }

    #[test]
    fn the_phases_of_a_life_are_told() {
        let phases = [
            Phase::Pending,
            Phase::Copying,
            Phase::CatchingUp,
            Phase::Mirroring,
            Phase::Paused,
            Phase::Pending,
            Phase::Mirroring,
        ];
        let all = phases.map(|phase| status(phase, "x", "x", false));
        let events = all.windows(2).flat_map(|pair| told(&pair[0], &pair[1]));
        assert_eq!(
            events.collect::<Vec<_>>(),
            [
                "Normal Copying",
                "Normal CatchingUp",
                "Normal Mirroring",
                "Normal Paused",
                "Normal Resumed",
                "Normal Mirroring"
            ]
        );
    }

    #[test]
    fn a_problem_is_told_once_and_so_is_its_end() {
        let lost = status(Phase::Mirroring, "SourceUnreachable", "Retrying", false);
        assert_eq!(told(&mirroring(), &lost), ["Warning SourceUnreachable"]);
        assert!(told(&lost, &lost).is_empty());
        assert_eq!(told(&lost, &mirroring()), ["Normal Recovered"]);
        let mut stale = status(Phase::Mirroring, "Stale", "Mirroring", false);
        stale.conditions[0].status = ConditionStatus::Unknown;
        assert_eq!(told(&mirroring(), &stale), ["Warning Stale"]);
        assert_eq!(told(&stale, &mirroring()), ["Normal Recovered"]);
        let failed = status(Phase::Failed, "AuthenticationFailed", "x", true);
        assert_eq!(told(&lost, &failed), ["Warning AuthenticationFailed"]);
    }

    #[test]
    fn what_verifications_come_to_is_told() {
        let verified = |differences, second| {
            let time = Time(Timestamp::from_second(second).unwrap());
            let mut now = mirroring();
            now.verification = Some(VerificationStatus {
                time: time.clone(),
                consistent_at: time,
                collections: 1,
                documents: 10,
                bytes: 100,
                differences,
                repaired: 0,
                duration: "1s".into(),
            });
            now
        };
        assert_eq!(told(&mirroring(), &verified(0, 1)), ["Normal Verified"]);
        assert!(told(&verified(0, 1), &verified(0, 1)).is_empty());
        // Of an earlier resource of the name.
        assert!(told(&mirroring(), &verified(2, -9)).is_empty());
        assert_eq!(
            told(&verified(0, 1), &verified(2, 9)),
            ["Warning DifferencesFound"]
        );
    }

    #[test]
    fn what_is_abnormal_and_what_is_left_out_is_told() {
        let abnormal = |type_, reason, status| {
            let mut now = mirroring();
            now.conditions.push(condition(type_, status, reason));
            now
        };
        let (yes, no) = (ConditionStatus::True, ConditionStatus::False);
        let refused = abnormal(condition::DEGRADED, "DocumentsRefused", yes);
        let fine = abnormal(condition::DEGRADED, "AsExpected", no);
        assert_eq!(told(&fine, &refused), ["Warning DocumentsRefused"]);
        assert_eq!(told(&refused, &fine), ["Normal Healed"]);
        let low = abnormal(condition::OPLOG_HEADROOM_LOW, "Low", yes);
        assert_eq!(told(&mirroring(), &low), ["Warning OplogHeadroomLow"]);
        let mut now = mirroring();
        now.unsupported = vec![UnsupportedStatus {
            name: "system.profile".into(),
            reason: "of one server".into(),
        }];
        assert_eq!(told(&mirroring(), &now), ["Warning NotMirrored"]);
        assert!(told(&now, &now).is_empty());
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = "ü".repeat(NOTE_BYTES);
        let cut = normal(Reason::Mirroring, "Mirror", &note).note.unwrap();
        assert_eq!(cut.len(), NOTE_BYTES);
    }
}
