//! What is to be seen of a mirror → its conditions. Pure.
//!
//! Made for kstatus: `Stalled` is true for what needs a human, so that whoever waits gives up at
//! once; `Reconciling` is true on the way to what the spec asks for; a paused mirror is ready,
//! because paused is what its spec asks for.

use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::engine::headroom::Headroom;
use crate::engine::progress::{Link, Phase};
use crate::reason::Reason;
use crate::resource::status::{Condition, ConditionStatus, VerificationStatus, condition};
use crate::runner::registry::{Snapshot, refused};
use crate::runner::words;

/// The longest message that is written into status.
pub const MESSAGE_CHARS: usize = 1024;

/// One condition before it is known since when.
struct Observation {
    type_: &'static str,
    status: ConditionStatus,
    reason: Reason,
    message: String,
}

/// What a mirror that does not run cannot tell any more.
pub struct Past<'a> {
    /// Everything is copied.
    pub initial_sync_completed: bool,
    /// What the last comparison of both sides came to.
    pub verification: Option<&'a VerificationStatus>,
    /// What was known to be different, where nothing is known by now.
    pub degraded: Option<&'a Condition>,
}

/// The conditions of a mirror. `previous` tells since when what did not change is so.
pub fn conditions(
    snapshot: &Snapshot,
    past: &Past<'_>,
    generation: i64,
    previous: &[Condition],
    now: SystemTime,
) -> Vec<Condition> {
    let chain = snapshot.progress.comes_from.as_ref();
    let chain = chain.map_or_else(String::new, |origin| {
        format!(
            " When the mirror began, the source was the target of a mirror itself, of {origin}."
        )
    });
    [
        ready(snapshot),
        connected(
            snapshot,
            condition::SOURCE_CONNECTED,
            &snapshot.progress.source,
            &chain,
        ),
        connected(
            snapshot,
            condition::TARGET_CONNECTED,
            &snapshot.progress.target,
            "",
        ),
        initial_sync(snapshot, past.initial_sync_completed),
        replicating(snapshot),
        verified(past.verification),
        reconciling(snapshot),
        stalled(snapshot),
        degraded(snapshot),
    ]
    .into_iter()
    .chain(oplog_headroom(snapshot))
    .map(|seen| {
        let nothing_known = seen.type_ == condition::DEGRADED && seen.reason == Reason::AsExpected;
        if let Some(then) = past.degraded.filter(|_| nothing_known) {
            return Condition {
                observed_generation: Some(generation),
                ..then.clone()
            };
        }
        let since = previous
            .iter()
            .find(|old| old.type_ == seen.type_ && old.status == seen.status)
            .map_or_else(
                || Time(words::timestamp(now)),
                |old| old.last_transition_time.clone(),
            );
        Condition {
            type_: seen.type_.to_owned(),
            status: seen.status,
            reason: seen.reason.to_string(),
            message: truncated(seen.message),
            last_transition_time: since,
            observed_generation: Some(generation),
        }
    })
    .collect()
}

/// Cuts a message that is too long for status.
pub fn truncated(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS) {
        message.truncate(end);
        message.push('…');
    }
    message
}

fn ready(snapshot: &Snapshot) -> Observation {
    let (status, reason) = match (&snapshot.problem, snapshot.phase()) {
        (Some(problem), _) => (ConditionStatus::False, problem.reason),
        (None, Phase::Paused) => (ConditionStatus::True, Reason::Suspended),
        (None, _) if snapshot.stale => (ConditionStatus::Unknown, Reason::Stale),
        (None, Phase::Mirroring) if !snapshot.connected() => {
            (ConditionStatus::False, Reason::Disconnected)
        }
        (None, Phase::Mirroring) => (ConditionStatus::True, Reason::Mirroring),
        (None, phase) => (ConditionStatus::False, word(phase)),
    };
    Observation {
        type_: condition::READY,
        status,
        reason,
        message: snapshot.message(),
    }
}

/// `more` is what there is to say of a server that answers.
fn connected(snapshot: &Snapshot, type_: &'static str, link: &Link, more: &str) -> Observation {
    let (status, reason, message) = match link.connected {
        _ if snapshot.phase() == Phase::Paused => (
            ConditionStatus::False,
            Reason::Suspended,
            "A paused mirror is not connected.".to_owned(),
        ),
        Some(true) if snapshot.stale => {
            (ConditionStatus::Unknown, Reason::Stale, snapshot.message())
        }
        None => (
            ConditionStatus::Unknown,
            Reason::NotTried,
            "No connection was made yet.".to_owned(),
        ),
        Some(true) => (
            ConditionStatus::True,
            Reason::Connected,
            format!("The last exchange with the server succeeded.{more}"),
        ),
        Some(false) => (
            ConditionStatus::False,
            Reason::Disconnected,
            link.message.clone(),
        ),
    };
    Observation {
        type_,
        status,
        reason,
        message,
    }
}

fn initial_sync(snapshot: &Snapshot, completed: bool) -> Observation {
    let (status, reason, message) = if completed {
        (
            ConditionStatus::True,
            Reason::Completed,
            "Everything that was there at the start is copied.".to_owned(),
        )
    } else if snapshot.phase() == Phase::Copying {
        (
            ConditionStatus::False,
            word(Phase::Copying),
            snapshot.message(),
        )
    } else {
        (
            ConditionStatus::False,
            Reason::NotCompleted,
            "The initial copy is not complete and does not run now.".to_owned(),
        )
    };
    Observation {
        type_: condition::INITIAL_SYNC_COMPLETED,
        status,
        reason,
        message,
    }
}

fn replicating(snapshot: &Snapshot) -> Observation {
    // A problem outside of the engine, as a Secret that vanished, does not stop the stream.
    let (status, reason) = match (&snapshot.progress.problem, snapshot.phase()) {
        (Some(problem), _) => (ConditionStatus::False, problem.reason),
        (None, Phase::Paused) => (ConditionStatus::False, Reason::Suspended),
        (None, _) if snapshot.stale => (ConditionStatus::Unknown, Reason::Stale),
        (None, Phase::CatchingUp | Phase::Mirroring) if snapshot.connected() => {
            (ConditionStatus::True, Reason::Streaming)
        }
        (None, Phase::CatchingUp | Phase::Mirroring) => {
            (ConditionStatus::False, Reason::Disconnected)
        }
        (None, phase) => (ConditionStatus::False, word(phase)),
    };
    let message = if status == ConditionStatus::True {
        "The source's changes are applied to the target as they come.".to_owned()
    } else {
        snapshot.message()
    };
    Observation {
        type_: condition::REPLICATING,
        status,
        reason,
        message,
    }
}

fn reconciling(snapshot: &Snapshot) -> Observation {
    let (status, reason) = match (&snapshot.problem, snapshot.phase()) {
        (Some(problem), _) if problem.needs_human => (ConditionStatus::False, problem.reason),
        (Some(_), _) => (ConditionStatus::True, Reason::Retrying),
        (None, Phase::Paused) => (ConditionStatus::False, Reason::Suspended),
        (None, Phase::Mirroring) if !snapshot.connected() => {
            (ConditionStatus::True, Reason::Retrying)
        }
        (None, phase @ (Phase::Mirroring | Phase::Failed)) => (ConditionStatus::False, word(phase)),
        (None, phase) => (ConditionStatus::True, word(phase)),
    };
    Observation {
        type_: condition::RECONCILING,
        status,
        reason,
        message: snapshot.message(),
    }
}

fn stalled(snapshot: &Snapshot) -> Observation {
    let (status, reason, message) = match &snapshot.problem {
        Some(problem) if problem.needs_human => (
            ConditionStatus::True,
            problem.reason,
            problem.message.clone(),
        ),
        _ if snapshot.phase() == Phase::Failed => (
            ConditionStatus::True,
            word(Phase::Failed),
            snapshot.message(),
        ),
        _ => (
            ConditionStatus::False,
            Reason::NoActionNeeded,
            "Nothing waits for you.".to_owned(),
        ),
    };
    Observation {
        type_: condition::STALLED,
        status,
        reason,
        message,
    }
}

/// Whether both sides were compared, and equal in the end.
fn verified(last: Option<&VerificationStatus>) -> Observation {
    let (status, reason, message) = match last {
        None => (
            ConditionStatus::Unknown,
            Reason::NotCompared,
            "Both sides were not compared yet.".to_owned(),
        ),
        Some(last) if last.differences == 0 => {
            (ConditionStatus::True, Reason::Equal, compared(last))
        }
        Some(last) if last.repaired >= last.differences => {
            (ConditionStatus::True, Reason::Repaired, compared(last))
        }
        Some(last) => (
            ConditionStatus::False,
            Reason::DifferencesFound,
            compared(last),
        ),
    };
    Observation {
        type_: condition::VERIFIED,
        status,
        reason,
        message,
    }
}

fn compared(last: &VerificationStatus) -> String {
    let count = |count: i64| u64::try_from(count).unwrap_or_default();
    format!(
        "Compared as of {}: {}, {}.",
        last.consistent_at.0,
        words::count(count(last.documents), "document", "documents"),
        words::differences(count(last.differences), count(last.repaired))
    )
}

/// Whether the target is not wholly what the source is, although the mirror goes on.
fn degraded(snapshot: &Snapshot) -> Observation {
    let progress = &snapshot.progress;
    let (status, reason, message) = if !progress.quarantine.is_empty() {
        let message = refused(&progress.quarantine);
        (ConditionStatus::True, Reason::DocumentsRefused, message)
    } else if let Some(last) = progress.verification.last.as_ref()
        && !last.is_equal()
    {
        let message = format!(
            "The last verification found {}. {}",
            words::differences(last.differences, last.repaired),
            last.definitions.join("; ")
        );
        (ConditionStatus::True, Reason::DifferencesFound, message)
    } else if let Some(why) = &progress.verification.failed {
        let message = format!("The last verification did not come to its end: {why}");
        (ConditionStatus::True, Reason::VerificationFailed, message)
    } else {
        (
            ConditionStatus::False,
            Reason::AsExpected,
            "Nothing is known to be different.".to_owned(),
        )
    };
    Observation {
        type_: condition::DEGRADED,
        status,
        reason,
        message,
    }
}

/// Whether the source's oplog soon drops what is missing; nothing before it was looked at.
fn oplog_headroom(snapshot: &Snapshot) -> Option<Observation> {
    let (status, reason, message) = match snapshot.progress.headroom.as_ref()? {
        Headroom::Unknown { why } => (ConditionStatus::Unknown, Reason::NotMeasured, why.clone()),
        Headroom::Measured { left, .. } => {
            let (status, reason) = if left.is_low() {
                (ConditionStatus::True, Reason::Low)
            } else {
                (ConditionStatus::False, Reason::Sufficient)
            };
            let share = format!(
                " It reaches back {} when it is full.",
                words::rough(left.window)
            );
            let message = snapshot.headroom().unwrap_or_default() + &share;
            (status, reason, message)
        }
    };
    Some(Observation {
        type_: condition::OPLOG_HEADROOM_LOW,
        status,
        reason,
        message,
    })
}

/// The phase as a reason.
fn word(phase: Phase) -> Reason {
    match phase {
        Phase::Pending => Reason::Pending,
        Phase::Copying => Reason::Copying,
        Phase::CatchingUp => Reason::CatchingUp,
        Phase::Mirroring => Reason::Mirroring,
        Phase::Paused => Reason::Suspended,
        Phase::Failed => Reason::Failed,
    }
}
