//! Logs what happens to the mirrors: phases, troubles, and how far a copy is.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::registry::{MirrorKey, Registry, Snapshot};
use super::words;
use crate::engine::progress::Phase;
use crate::reason::Reason;

/// How often the mirrors are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the progress of a copy is logged.
const COPY_EVERY: Duration = Duration::from_secs(10);

/// What was logged of a mirror.
struct Told {
    phase: Phase,
    trouble: Option<(Reason, String)>,
    copy_at: Instant,
}

/// Logs until `stop`.
pub async fn run(registry: Registry, stop: CancellationToken) {
    let mut told: BTreeMap<MirrorKey, Told> = BTreeMap::new();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let snapshots = registry.snapshots();
        told.retain(|key, _| snapshots.iter().any(|snapshot| snapshot.key == *key));
        for snapshot in snapshots {
            tell(&mut told, &snapshot);
        }
    }
}

fn tell(told: &mut BTreeMap<MirrorKey, Told>, snapshot: &Snapshot) {
    let now = Instant::now();
    let phase = snapshot.phase();
    let trouble = snapshot
        .problem
        .as_ref()
        .map(|problem| (problem.reason, problem.message.clone()));
    let before = told.get(&snapshot.key);
    let is_new_phase = before.is_none_or(|told| told.phase != phase);
    let is_new_trouble = before.map(|told| &told.trouble) != Some(&trouble);
    let is_copy_due = before.is_none_or(|told| told.copy_at + COPY_EVERY <= now);
    let tells_copy = phase == Phase::Copying && (is_new_phase || is_copy_due);

    match &trouble {
        Some((reason, message)) if is_new_trouble || is_new_phase => {
            tracing::warn!(mirror = %snapshot.key, ?phase, %reason, "{message}");
        }
        Some(_) => {}
        None if is_new_phase || is_new_trouble && before.is_some() || tells_copy => {
            tracing::info!(
                mirror = %snapshot.key,
                ?phase,
                lag = snapshot.progress.lag.map(words::duration),
                "{}",
                snapshot.message()
            );
        }
        None => {}
    }
    let copy_at = match before {
        Some(told) if !tells_copy => told.copy_at,
        _ => now,
    };
    told.insert(
        snapshot.key.clone(),
        Told {
            phase,
            trouble,
            copy_at,
        },
    );
}
