//! What is to be seen of a mirror → the status of its resource. Pure.

use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::{Past, conditions, truncated};
use crate::engine::headroom::Headroom;
use crate::engine::progress::{self, InitialSync, VerificationResult};
use crate::reason::Reason;
use crate::resource::status::{
    ApplyForm, ConditionStatus, InitialSyncStatus, MongoMirrorStatus, OplogHeadroomStatus, Phase,
    RequestStatus, UNKNOWN_LAG, UnsupportedStatus, VerificationStatus, condition,
};
use crate::runner::registry::Snapshot;
use crate::runner::words;

/// As many unsupported things are listed one by one.
const UNSUPPORTED_LISTED: usize = 50;

/// After so many seconds a measurement that says what an earlier one said is shown as a new one.
const MEASURED_AGAIN: i64 = 300;

/// The status to be written.
///
/// `previous` is the status that the resource has. What a stopped mirror cannot tell (as of when
/// the target is consistent, how the copy went) stays what it was, if it is about the same two
/// databases. `requests` is what was asked for by annotations.
pub fn status(
    snapshot: &Snapshot,
    generation: i64,
    previous: &MongoMirrorStatus,
    requests: Vec<RequestStatus>,
    now: SystemTime,
) -> MongoMirrorStatus {
    let progress = &snapshot.progress;
    let phase = phase(snapshot.phase());
    let is_same_pair = previous.db_name.as_deref() == Some(snapshot.target_database.as_str())
        && previous.source_db_name.as_deref() == Some(snapshot.source_database.as_str());
    let fresh = MongoMirrorStatus::default();
    let past = if is_same_pair { previous } else { &fresh };
    let is_at_rest = matches!(phase, Phase::Pending | Phase::Paused | Phase::Failed);

    let completed_before = past
        .condition(condition::INITIAL_SYNC_COMPLETED)
        .is_some_and(|condition| condition.status == ConditionStatus::True);
    let initial_sync_completed = match phase {
        Phase::Copying => false,
        Phase::CatchingUp | Phase::Mirroring => true,
        Phase::Pending | Phase::Paused | Phase::Failed => match &progress.initial_sync {
            Some(sync) => sync.completed_at.is_some(),
            None => completed_before,
        },
    };
    let initial_sync = match &progress.initial_sync {
        Some(sync) => Some(initial_sync(sync)),
        None if phase == Phase::Copying => None,
        None => past.initial_sync.clone(),
    };
    let consistent_at = match progress.consistent_at {
        Some(time) => Some(Time(words::timestamp(time.as_system_time()))),
        None if phase == Phase::Paused && ended_in_order(past) => past.consistent_at.clone(),
        None => None,
    };
    let unsupported = if progress.unsupported.is_empty() && is_at_rest {
        past.unsupported.clone()
    } else {
        unsupported(&progress.unsupported)
    };

    let verification = match &progress.verification.last {
        Some(result) => Some(verification(result)),
        None => past.verification.clone(),
    };
    let past_of_it = Past {
        initial_sync_completed,
        verification: verification.as_ref(),
        degraded: past.condition(condition::DEGRADED).filter(|_| is_at_rest),
    };
    let oplog_headroom = oplog_headroom(progress.headroom.as_ref(), past.oplog_headroom.as_ref());
    let conditions = conditions(snapshot, &past_of_it, generation, &previous.conditions, now);

    MongoMirrorStatus {
        observed_generation: generation,
        enabled: Some(snapshot.enabled),
        connected: snapshot.connected(),
        db_name: Some(snapshot.target_database.clone()),
        source_db_name: Some(snapshot.source_database.clone()),
        lag: snapshot.lag(),
        lag_milliseconds: snapshot.lag_milliseconds().map(signed),
        phase,
        target_time: progress.snapshot_time().map(|time| time.to_string()),
        consistent_at,
        message: truncated(snapshot.message()),
        next_attempt: snapshot
            .next_attempt()
            .map(|time| Time(words::timestamp(time))),
        heartbeat: heartbeat(snapshot, oplog_headroom.as_ref(), now),
        initial_sync,
        verification,
        unsupported,
        quarantined_documents: match phase {
            Phase::Pending | Phase::Paused | Phase::Failed if progress.quarantine.is_empty() => {
                past.quarantined_documents
            }
            _ => i64::try_from(progress.quarantine.len()).unwrap_or(i64::MAX),
        },
        apply_form: progress.apply_form.map(apply_form).or(past.apply_form),
        oplog_headroom,
        requests,
        conditions,
    }
}

/// As of when this is so, as long as something can change that the operator is not told of: a status
/// must not look well when nobody looks after the mirror any more. Of a paused mirror only the oplog
/// is measured; that is told every few minutes, and no more often.
fn heartbeat(
    snapshot: &Snapshot,
    headroom: Option<&OplogHeadroomStatus>,
    now: SystemTime,
) -> Option<Time> {
    if snapshot.phase() == progress::Phase::Paused {
        return headroom?.measured_at.clone();
    }
    let is_moving = snapshot.live || snapshot.next_attempt().is_some();
    is_moving.then(|| Time(words::timestamp(now)))
}

/// Rounded, and with the time of an earlier measurement that said the same: it is measured every
/// few seconds, but a status that says nothing new is not to be written.
fn oplog_headroom(
    headroom: Option<&Headroom>,
    past: Option<&OplogHeadroomStatus>,
) -> Option<OplogHeadroomStatus> {
    let (status, at) = match headroom? {
        Headroom::Measured { left, trend, at } => {
            let status = OplogHeadroomStatus {
                time: words::rough(left.time),
                bytes: Some(signed(words::rough_count(left.bytes))),
                trend: Some(words::trend(*trend)),
                ..OplogHeadroomStatus::default()
            };
            (status, Some(words::timestamp(*at)))
        }
        Headroom::Unknown { why } => {
            let status = OplogHeadroomStatus {
                time: UNKNOWN_LAG.to_owned(),
                message: Some(truncated(why.clone())),
                ..OplogHeadroomStatus::default()
            };
            (status, None)
        }
    };
    let earlier = past
        .filter(|past| {
            let same = OplogHeadroomStatus {
                measured_at: None,
                ..(*past).clone()
            };
            same == status
        })
        .and_then(|past| past.measured_at.clone());
    let is_recent = |earlier: &Time| {
        at.is_some_and(|at| at.as_second() - earlier.0.as_second() < MEASURED_AGAIN)
    };
    Some(OplogHeadroomStatus {
        measured_at: earlier.filter(is_recent).or(at.map(Time)),
        ..status
    })
}

fn phase(phase: progress::Phase) -> Phase {
    match phase {
        progress::Phase::Pending => Phase::Pending,
        progress::Phase::Copying => Phase::Copying,
        progress::Phase::CatchingUp => Phase::CatchingUp,
        progress::Phase::Mirroring => Phase::Mirroring,
        progress::Phase::Paused => Phase::Paused,
        progress::Phase::Failed => Phase::Failed,
    }
}

fn apply_form(form: progress::ApplyForm) -> ApplyForm {
    match form {
        progress::ApplyForm::InternalDelta => ApplyForm::InternalDelta,
        progress::ApplyForm::Refetch => ApplyForm::Refetch,
    }
}

fn initial_sync(sync: &InitialSync) -> InitialSyncStatus {
    let time = |time: Option<SystemTime>| time.map(|time| Time(words::timestamp(time)));
    InitialSyncStatus {
        documents_total: signed(sync.documents_total),
        documents_copied: signed(sync.documents_copied),
        bytes_total: signed(sync.bytes_total),
        bytes_copied: signed(sync.bytes_copied),
        percent: i32::from(sync.percent()),
        progress: format!("{}%", sync.percent()),
        collections_total: signed(sync.collections_total),
        collections_done: signed(sync.collections_done),
        started_at: time(sync.started_at),
        completed_at: time(sync.completed_at),
    }
}

/// Whether this status was the last word of a mirror: otherwise nobody knows what its last batch
/// did.
fn ended_in_order(past: &MongoMirrorStatus) -> bool {
    let ready = past.condition(condition::READY);
    let stopped = ready.is_some_and(|ready| Reason::OperatorStopped == ready.reason.as_str());
    past.phase == Phase::Paused || stopped
}

fn verification(result: &VerificationResult) -> VerificationStatus {
    let time = |time: SystemTime| Time(words::timestamp(time));
    VerificationStatus {
        time: time(result.time),
        consistent_at: time(result.consistent_at.as_system_time()),
        collections: signed(result.collections),
        documents: signed(result.documents),
        bytes: signed(result.bytes),
        differences: signed(result.differences),
        repaired: signed(result.repaired),
        duration: words::duration(result.duration),
    }
}

fn unsupported(all: &[progress::Unsupported]) -> Vec<UnsupportedStatus> {
    let mut listed: Vec<_> = all
        .iter()
        .take(UNSUPPORTED_LISTED)
        .map(|unsupported| UnsupportedStatus {
            name: unsupported.name.clone(),
            reason: truncated(unsupported.reason.clone()),
        })
        .collect();
    if all.len() > UNSUPPORTED_LISTED {
        listed.push(UnsupportedStatus {
            name: format!("{} more", all.len() - UNSUPPORTED_LISTED),
            reason: "the status API of the operator lists all of them".to_owned(),
        });
    }
    listed
}

/// Kubernetes counts in signed numbers.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use crate::engine::bson::order::Value;
    use crate::engine::quarantine::{Quarantine, Refused};
    use std::time::Duration;

    use super::*;
    use crate::engine::headroom::{Left, Trend};
    use crate::engine::position::ClusterTime;
    use crate::engine::progress::{Problem, Progress, Unsupported};
    use crate::resource::status::Condition;
    use crate::runner::registry::tests::{listing, mirroring};
    use crate::runner::registry::{Feed, Listing, MirrorKey};
    use crate::runner::slot::at_rest;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn snapshot(listing: Listing) -> Snapshot {
        Snapshot::new(MirrorKey::new("n", "m"), listing, now())
    }

    fn status_of(progress: Progress, previous: &MongoMirrorStatus) -> MongoMirrorStatus {
        status(&snapshot(listing(progress)), 3, previous, Vec::new(), now())
    }

    fn condition<'a>(status: &'a MongoMirrorStatus, type_: &str) -> &'a Condition {
        status.condition(type_).unwrap()
    }

    /// `Ready=True/Mirroring` and so on, in one line.
    fn summary(status: &MongoMirrorStatus) -> String {
        let words: Vec<_> = status
            .conditions
            .iter()
            .map(|c| format!("{}={:?}/{}", c.type_, c.status, c.reason))
            .collect();
        words.join(" ")
    }

    fn problem(reason: Reason, needs_human: bool) -> Problem {
        Problem {
            reason,
            message: "it is so".into(),
            needs_human,
            since: now(),
            next_attempt: None,
        }
    }

    fn consistent() -> Progress {
        Progress {
            consistent_at: Some(ClusterTime {
                seconds: 1_789_999_999,
                increment: 4,
            }),
            initial_sync: Some(InitialSync {
                completed_at: Some(now()),
                ..InitialSync::default()
            }),
            ..mirroring(now())
        }
    }

    #[test]
    fn a_mirroring_mirror_is_ready() {
        let status = status_of(consistent(), &MongoMirrorStatus::default());
        assert_eq!(
            summary(&status),
            "Ready=True/Mirroring SourceConnected=True/Connected TargetConnected=True/Connected \
             InitialSyncCompleted=True/Completed Replicating=True/Streaming \
             Verified=Unknown/NotCompared Reconciling=False/Mirroring Stalled=False/NoActionNeeded \
             Degraded=False/AsExpected"
        );
        assert_eq!(status.phase, Phase::Mirroring);
        assert_eq!(status.observed_generation, 3);
        assert!(status.connected);
        assert_eq!(status.lag, "38ms");
        assert_eq!(status.lag_milliseconds, Some(38));
        assert_eq!(status.db_name.as_deref(), Some("orders_backup"));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["consistentAt"], "2026-09-21T14:13:19Z");
        assert_eq!(json["initialSync"]["percent"], 100);
    }

    #[test]
    fn no_lag_is_a_lag_of_zero_and_an_unknown_one_is_not() {
        let mut progress = consistent();
        progress.lag = Some(Duration::ZERO);
        let status = status_of(progress.clone(), &MongoMirrorStatus::default());
        assert_eq!(
            (status.lag.as_str(), status.lag_milliseconds),
            ("0s", Some(0))
        );
        progress.lag = None;
        let status = status_of(progress, &MongoMirrorStatus::default());
        assert_eq!(
            (status.lag.as_str(), status.lag_milliseconds),
            ("unknown", None)
        );
    }

    #[test]
    fn a_copying_mirror_is_on_its_way_and_tells_how_far() {
        let mut progress = mirroring(now());
        progress.phase = progress::Phase::Copying;
        progress.lag = None;
        progress.initial_sync = Some(InitialSync {
            documents_total: 100,
            documents_copied: 42,
            bytes_total: 1 << 30,
            bytes_copied: 450 << 20,
            collections_total: 7,
            collections_done: 3,
            ..InitialSync::default()
        });
        let status = status_of(progress, &MongoMirrorStatus::default());
        assert_eq!(
            summary(&status),
            "Ready=False/Copying SourceConnected=True/Connected TargetConnected=True/Connected \
             InitialSyncCompleted=False/Copying Replicating=False/Copying \
             Verified=Unknown/NotCompared \
             Reconciling=True/Copying Stalled=False/NoActionNeeded \
             Degraded=False/AsExpected"
        );
        assert_eq!(
            status.message,
            "Copying: 43%, 450.0 MiB of 1.0 GiB, 3 of 7 collections done."
        );
        assert_eq!(status.initial_sync.unwrap().progress, "43%");
    }

    #[test]
    fn a_paused_mirror_is_ready_and_keeps_what_it_knew() {
        let at_rest = |progress| at_rest(progress, progress::Phase::Paused);
        let before = status_of(at_rest(consistent()), &MongoMirrorStatus::default());
        assert!(before.consistent_at.is_some());
        let mut paused = listing(at_rest(Progress::default()));
        paused.enabled = false;
        let status = status(&snapshot(paused), 4, &before, Vec::new(), now());
        assert_eq!(
            summary(&status),
            "Ready=True/Suspended SourceConnected=False/Suspended \
             TargetConnected=False/Suspended InitialSyncCompleted=True/Completed \
             Replicating=False/Suspended Verified=Unknown/NotCompared \
             Reconciling=False/Suspended \
             Stalled=False/NoActionNeeded \
             Degraded=False/AsExpected"
        );
        assert_eq!(status.enabled, Some(false));
        assert_eq!(status.phase, Phase::Paused);
        assert!(!status.connected);
        assert_eq!(status.lag, "unknown");
        assert_eq!(status.consistent_at, before.consistent_at);
        assert_eq!(status.initial_sync, before.initial_sync);
        assert!(status.message.contains("spec.enabled"));
    }

    #[test]
    fn a_mirror_that_did_not_end_in_order_is_not_said_to_be_consistent() {
        let running = status_of(consistent(), &MongoMirrorStatus::default());
        for phase in [progress::Phase::Paused, progress::Phase::Failed] {
            let rest = at_rest(Progress::default(), phase);
            assert_eq!(status_of(rest, &running).consistent_at, None);
        }
    }

    #[test]
    fn nothing_is_kept_of_another_pair_of_databases() {
        let mut before = status_of(consistent(), &MongoMirrorStatus::default());
        before.source_db_name = Some("customers".into());
        let status = status_of(Progress::default(), &before);
        assert_eq!(status.consistent_at, None);
        assert_eq!(status.initial_sync, None);
        assert_eq!(
            condition(&status, condition::INITIAL_SYNC_COMPLETED).status,
            ConditionStatus::False
        );
    }

    #[test]
    fn a_copy_from_scratch_ends_the_old_consistency() {
        let before = status_of(consistent(), &MongoMirrorStatus::default());
        let mut progress = mirroring(now());
        progress.phase = progress::Phase::Copying;
        let status = status_of(progress, &before);
        assert_eq!(status.consistent_at, None);
        assert_eq!(
            condition(&status, condition::INITIAL_SYNC_COMPLETED).status,
            ConditionStatus::False
        );
    }

    #[test]
    fn what_needs_a_human_is_stalled_and_what_heals_is_not() {
        let with = |problem: Problem, phase| {
            let progress = at_rest(Progress::default(), phase);
            let mut listing = listing(progress);
            listing.problem = Some(problem);
            status(
                &snapshot(listing),
                3,
                &MongoMirrorStatus::default(),
                Vec::new(),
                now(),
            )
        };
        let stalled = with(
            problem(Reason::TargetForbidden, true),
            progress::Phase::Failed,
        );
        assert_eq!(
            summary(&stalled),
            "Ready=False/TargetForbidden SourceConnected=Unknown/NotTried \
             TargetConnected=Unknown/NotTried InitialSyncCompleted=False/NotCompleted \
             Replicating=False/Failed Verified=Unknown/NotCompared \
             Reconciling=False/TargetForbidden \
             Stalled=True/TargetForbidden \
             Degraded=False/AsExpected"
        );
        assert_eq!(stalled.message, "it is so");
        assert_eq!(condition(&stalled, condition::READY).message, "it is so");

        let waiting = with(
            problem(Reason::SecretNotFound, false),
            progress::Phase::Pending,
        );
        assert_eq!(
            summary(&waiting),
            "Ready=False/SecretNotFound SourceConnected=Unknown/NotTried \
             TargetConnected=Unknown/NotTried InitialSyncCompleted=False/NotCompleted \
             Replicating=False/Pending Verified=Unknown/NotCompared \
             Reconciling=True/Retrying Stalled=False/NoActionNeeded \
             Degraded=False/AsExpected"
        );
    }

    /// What kstatus makes of a status, as Helm and Flux do: the generation, then `Reconciling`, then
    /// `Stalled`, then `Ready` (facts: kubernetes.md 1).
    fn kstatus(status: &MongoMirrorStatus, generation: i64) -> &'static str {
        let is = |type_, wanted| {
            let condition = status.condition(type_);
            condition.is_some_and(|condition| condition.status == wanted)
        };
        if status.observed_generation != generation
            || is(condition::RECONCILING, ConditionStatus::True)
        {
            "InProgress"
        } else if is(condition::STALLED, ConditionStatus::True) {
            "Failed"
        } else if is(condition::READY, ConditionStatus::False)
            || is(condition::READY, ConditionStatus::Unknown)
        {
            "InProgress"
        } else {
            "Current"
        }
    }

    #[test]
    fn tools_that_know_no_mirrors_tell_what_works_from_what_waits_for_a_person() {
        use progress::Phase::{CatchingUp, Copying, Failed, Mirroring, Paused, Pending};
        let of = |phase, trouble: Option<Problem>| {
            let progress = Progress {
                phase,
                problem: trouble,
                ..consistent()
            };
            status_of(progress, &MongoMirrorStatus::default())
        };
        let unreachable = || Some(problem(Reason::SourceUnreachable, false));
        let not_empty = || Some(problem(Reason::TargetNotEmpty, true));
        for (phase, trouble, expected) in [
            (Pending, None, "InProgress"),
            (Copying, None, "InProgress"),
            (CatchingUp, None, "InProgress"),
            (Mirroring, None, "Current"),
            (Paused, None, "Current"),
            (Failed, None, "Failed"),
            (Pending, unreachable(), "InProgress"),
            (Copying, unreachable(), "InProgress"),
            (Mirroring, unreachable(), "InProgress"),
            (Failed, not_empty(), "Failed"),
        ] {
            let told = of(phase, trouble);
            assert_eq!(kstatus(&told, 3), expected, "{}", summary(&told));
            assert_eq!(kstatus(&told, 4), "InProgress", "of an earlier spec");
        }
        let unseen = MongoMirrorStatus::default();
        assert_eq!(kstatus(&unseen, 1), "InProgress", "nobody has looked yet");

        let mut gone = listing(consistent());
        gone.problem = Some(problem(Reason::OperatorStopped, false));
        let told = status(&snapshot(gone), 3, &unseen, Vec::new(), now());
        assert_eq!(kstatus(&told, 3), "InProgress");
    }

    #[test]
    fn a_status_says_when_it_was_said_and_when_the_mirror_is_tried_again() {
        let time = |status: &Option<Time>| status.as_ref().map(|time| time.0.as_second());
        let live = |progress| {
            let mut live = listing(progress);
            if let Feed::Still(progress) = live.feed {
                live.feed = Feed::Live(tokio::sync::watch::channel(*progress).1);
            }
            status(
                &snapshot(live),
                3,
                &MongoMirrorStatus::default(),
                Vec::new(),
                now(),
            )
        };
        let told = live(consistent());
        assert_eq!(time(&told.heartbeat), Some(1_790_000_000));
        assert_eq!(told.next_attempt, None);

        let failed = Progress {
            problem: Some(Problem {
                next_attempt: Some(now() + Duration::from_secs(30)),
                ..problem(Reason::TargetNotEmpty, true)
            }),
            ..at_rest(consistent(), progress::Phase::Failed)
        };
        let told = live(failed);
        assert_eq!(time(&told.heartbeat), Some(1_790_000_000));
        assert_eq!(time(&told.next_attempt), Some(1_790_000_030));

        // Nothing happens to these, and nothing is written.
        let waits = Progress {
            problem: Some(problem(Reason::SecretNotFound, false)),
            ..at_rest(consistent(), progress::Phase::Pending)
        };
        for still in [at_rest(consistent(), progress::Phase::Paused), waits] {
            let still = status_of(still, &told);
            assert_eq!((still.heartbeat, still.next_attempt), (None, None));
        }
        // While it is paused, only its oplog is looked at.
        let measured = now() - Duration::from_secs(200);
        let watched = Progress {
            headroom: Some(headroom(7599, 123_456_789, 90_000, measured)),
            ..at_rest(consistent(), progress::Phase::Paused)
        };
        assert_eq!(time(&live(watched).heartbeat), Some(1_789_999_800));
    }

    #[test]
    fn what_was_not_measured_for_long_is_unknown() {
        for phase in [progress::Phase::Copying, progress::Phase::Mirroring] {
            let old = Progress {
                phase,
                measured_at: Some(now() - Duration::from_secs(31)),
                ..consistent()
            };
            let status = status_of(old, &MongoMirrorStatus::default());
            for type_ in [
                condition::READY,
                condition::SOURCE_CONNECTED,
                condition::TARGET_CONNECTED,
                condition::REPLICATING,
            ] {
                let seen = condition(&status, type_);
                let expected = (ConditionStatus::Unknown, "Stale");
                assert_eq!((seen.status, seen.reason.as_str()), expected, "{type_}");
            }
            assert!(!status.connected);
        }
    }

    #[test]
    fn a_lost_source_is_told_by_side() {
        let mut progress = consistent();
        progress.source.set(false, "h:27017 does not answer");
        progress.problem = Some(problem(Reason::SourceUnreachable, false));
        let status = status_of(progress, &MongoMirrorStatus::default());
        assert_eq!(
            summary(&status),
            "Ready=False/SourceUnreachable SourceConnected=False/Disconnected \
             TargetConnected=True/Connected InitialSyncCompleted=True/Completed \
             Replicating=False/SourceUnreachable Verified=Unknown/NotCompared \
             Reconciling=True/Retrying \
             Stalled=False/NoActionNeeded \
             Degraded=False/AsExpected"
        );
    }

    #[test]
    fn a_source_that_is_a_target_itself_is_told() {
        let progress = Progress {
            comes_from: Some("\"a\" of the replica set rs0".into()),
            ..consistent()
        };
        let status = status_of(progress, &MongoMirrorStatus::default());
        let message = |type_| &condition(&status, type_).message;
        assert!(message(condition::SOURCE_CONNECTED).ends_with("of \"a\" of the replica set rs0."));
        assert!(!message(condition::TARGET_CONNECTED).contains("rs0"));
    }

    #[test]
    fn a_mirror_that_lost_its_secret_still_replicates() {
        let mut listing = listing(consistent());
        listing.problem = Some(problem(Reason::SecretNotFound, false));
        let status = status(
            &snapshot(listing),
            3,
            &MongoMirrorStatus::default(),
            Vec::new(),
            now(),
        );
        assert_eq!(
            condition(&status, condition::READY).reason,
            "SecretNotFound"
        );
        assert_eq!(
            condition(&status, condition::REPLICATING).status,
            ConditionStatus::True
        );
        assert!(status.connected);
    }

    #[test]
    fn conditions_move_their_time_only_when_their_status_changes() {
        let first = status_of(consistent(), &MongoMirrorStatus::default());
        let later = now() + Duration::from_secs(60);
        let mut progress = consistent();
        progress.measured_at = Some(later);
        progress.target.set(false, "gone");
        let snapshot = Snapshot::new(MirrorKey::new("n", "m"), listing(progress), later);
        let second = status(&snapshot, 3, &first, Vec::new(), later);
        let since = |status: &MongoMirrorStatus, type_| {
            condition(status, type_).last_transition_time.clone()
        };
        for type_ in [
            condition::SOURCE_CONNECTED,
            condition::INITIAL_SYNC_COMPLETED,
            condition::STALLED,
        ] {
            assert_eq!(since(&first, type_), since(&second, type_), "{type_}");
        }
        for type_ in [condition::READY, condition::TARGET_CONNECTED] {
            assert_ne!(since(&first, type_), since(&second, type_), "{type_}");
        }
    }

    fn headroom(seconds: u64, bytes: u64, window: u64, at: SystemTime) -> Headroom {
        Headroom::Measured {
            left: Left {
                time: Duration::from_secs(seconds),
                bytes,
                window: Duration::from_secs(window),
            },
            trend: Trend::Steady,
            at,
        }
    }

    #[test]
    fn headroom_that_moves_a_little_is_no_new_status() {
        let mut progress = consistent();
        progress.headroom = Some(headroom(7599, 123_456_789, 90_000, now()));
        let first = status_of(progress.clone(), &MongoMirrorStatus::default());
        let shown = first.oplog_headroom.clone().unwrap();
        assert_eq!(
            (shown.time.as_str(), shown.bytes, shown.trend.as_deref()),
            ("2h5m", Some(123_000_000), Some("steady"))
        );
        let later = now() + Duration::from_secs(10);
        progress.headroom = Some(headroom(7589, 123_400_000, 90_000, later));
        assert_eq!(status_of(progress.clone(), &first), first);
        let much_later = now() + Duration::from_secs(400);
        progress.headroom = Some(headroom(7580, 123_400_000, 90_000, much_later));
        assert_ne!(status_of(progress, &first), first);
    }

    #[test]
    fn little_headroom_is_a_condition_also_while_paused() {
        let mut progress = at_rest(consistent(), progress::Phase::Paused);
        let before = status_of(progress.clone(), &MongoMirrorStatus::default());
        assert_eq!(before.condition(condition::OPLOG_HEADROOM_LOW), None);
        for (seconds, expected, reason) in [
            (50_000, ConditionStatus::False, "Sufficient"),
            (600, ConditionStatus::True, "Low"),
        ] {
            progress.headroom = Some(headroom(seconds, 9, 90_000, now()));
            let status = status_of(progress.clone(), &before);
            let low = condition(&status, condition::OPLOG_HEADROOM_LOW);
            assert_eq!((low.status, low.reason.as_str()), (expected, reason));
            assert!(status.message.contains("oplog"), "{}", status.message);
            assert_eq!(
                condition(&status, condition::READY).status,
                ConditionStatus::True
            );
        }
        progress.headroom = Some(Headroom::Unknown {
            why: "grant clusterMonitor".into(),
        });
        let status = status_of(progress, &before);
        let low = condition(&status, condition::OPLOG_HEADROOM_LOW);
        assert_eq!(low.status, ConditionStatus::Unknown);
        assert!(low.message.contains("clusterMonitor"));
        assert_eq!(status.oplog_headroom.unwrap().time, "unknown");
    }

    #[test]
    fn documents_that_the_target_refuses_are_counted_and_told() {
        let mut quarantine = Quarantine::default();
        let refused = Refused {
            key: (
                [7; 16],
                Value {
                    kind: 0x10,
                    bytes: vec![5, 0, 0, 0],
                },
            ),
            at: ClusterTime::ZERO,
            collection: "orders".into(),
            reason: "cannot index parallel arrays (171)".into(),
            is_only_here: false,
        };
        quarantine.note(refused, Duration::ZERO, tokio::time::Instant::now(), now());
        let progress = progress::Progress {
            quarantine: quarantine.list(),
            consistent_at: None,
            ..consistent()
        };
        let status = status_of(progress, &MongoMirrorStatus::default());
        assert_eq!(status.quarantined_documents, 1);
        assert_eq!(status.consistent_at, None);
        let degraded = condition(&status, condition::DEGRADED);
        assert_eq!(degraded.status, ConditionStatus::True);
        assert_eq!(degraded.reason, "DocumentsRefused");
        for told in [&degraded.message, &status.message] {
            assert!(
                told.contains("orders: cannot index parallel arrays"),
                "{told}"
            );
        }
        // A process that has just begun knows nothing of it, and does not say that it is over.
        let begins = status_of(Progress::default(), &status);
        assert_eq!(begins.quarantined_documents, 1);
        assert_eq!(condition(&begins, condition::DEGRADED), degraded);
        let healed = status_of(consistent(), &begins);
        let degraded = condition(&healed, condition::DEGRADED);
        assert_eq!(degraded.status, ConditionStatus::False);
    }

    #[test]
    fn what_cannot_be_mirrored_is_listed_within_bounds() {
        let mut progress = consistent();
        progress.unsupported = (0..80)
            .map(|n| Unsupported {
                name: format!("c{n}"),
                reason: "because".into(),
            })
            .collect();
        let status = status_of(progress, &MongoMirrorStatus::default());
        assert_eq!(status.unsupported.len(), 51);
        assert_eq!(status.unsupported[50].name, "30 more");
    }
}
