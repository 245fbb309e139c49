//! When both sides are compared, and what users ask of a running mirror.

use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinError;
use tokio::time::Instant;

use super::Owner;
use crate::engine::error::Result;
use crate::engine::progress::{Phase, VerificationResult, VerificationRun};
use crate::engine::request::{Refusal, Request};
use crate::engine::state::Way;
use crate::engine::sync::Sync;
use crate::engine::verify::Verifier;

/// A verification that failed is tried again after this long.
const AGAIN: Duration = Duration::from_secs(60);

/// A mirror that is farther behind is not verified: the source would no longer have the state that
/// the target is at before much of it is read.
const MOST_LAG: Duration = Duration::from_secs(60);

/// However much is found to be written by strangers, this is between two verifications.
const CALM: Duration = Duration::from_secs(60);

/// Times and durations are remembered in whole milliseconds.
const ROUNDED: Duration = Duration::from_millis(2);

/// Requests of users at work at a time; further ones wait.
const MOST_SYNCS: usize = 4;

/// Whoever waits for a verification.
pub(super) type Waiting = oneshot::Sender<Result<VerificationResult, Refusal>>;

/// What decides whether to verify.
#[derive(Clone, Copy, Debug)]
struct Situation {
    mirroring: bool,
    lag: Option<Duration>,
    asked: bool,
    suspicious: bool,
    /// When the last one began.
    begun: Option<SystemTime>,
    /// When it ended, and the copy before.
    verified: Option<SystemTime>,
    copied: Option<SystemTime>,
    every: Option<Duration>,
}

/// Why a verification begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Copied,
    Asked,
    Suspicion,
    Interval,
}

fn due(situation: Situation, now: SystemTime) -> Option<Why> {
    let near = situation.lag.is_some_and(|lag| lag < MOST_LAG);
    if !situation.mirroring || !near {
        return None;
    }
    if situation.asked {
        return Some(Why::Asked);
    }
    let Some(verified) = situation.verified else {
        return Some(Why::Copied);
    };
    // What was copied meanwhile was not compared.
    let begun = situation.begun.unwrap_or(verified);
    if situation.copied.is_some_and(|copied| copied > begun) {
        return Some(Why::Copied);
    }
    let is_over = |pause| verified.checked_add(pause).is_some_and(|next| next <= now);
    if situation.suspicious && is_over(CALM) {
        return Some(Why::Suspicion);
    }
    is_over(situation.every?).then_some(Why::Interval)
}

impl Owner<'_> {
    /// Begins a verification if one is due.
    pub(super) fn verify_if_due(&mut self) {
        let asked = !self.verify_waiting.is_empty();
        let failed_lately = self
            .verify_failed
            .is_some_and(|failed| failed.elapsed() < AGAIN);
        if !self.verifications.is_empty() || failed_lately && !asked {
            return;
        }
        let completed = self.plan.figures.completed_at;
        let last = self.progress.verification.last.as_ref();
        let situation = Situation {
            begun: last.and_then(|last| last.time.checked_sub(last.duration)?.checked_add(ROUNDED)),
            mirroring: self.progress.phase == Phase::Mirroring && self.is_copied(),
            lag: self.progress.lag,
            asked,
            suspicious: self.suspicious,
            verified: last.map(|last| last.time),
            copied: completed.map(bson::DateTime::to_system_time),
            every: self.config.verify_every,
        };
        let Some(why) = due(situation, SystemTime::now()) else {
            return;
        };
        tracing::info!(mirror = %self.config.name, ?why, "comparing both sides");
        self.suspicious = false;
        let run = VerificationRun {
            started_at: SystemTime::now(),
            documents: 0,
            bytes: 0,
            differences: 0,
        };
        let (told, how_far) = watch::channel(run);
        let verifier = Verifier {
            source: self.plan.source.clone(),
            target: self.plan.target.db.clone(),
            selection: self.config.selection.clone(),
            asks: self.asks.0.clone(),
            bytes_per_second: self.config.limits.verify_bytes_per_second,
            told,
        };
        self.verifications.spawn(verifier.run());
        self.verifying = Some(how_far);
        self.verify_answers = std::mem::take(&mut self.verify_waiting);
    }

    /// A verification came to its end.
    pub(super) async fn verified(
        &mut self,
        joined: Result<Result<VerificationResult>, JoinError>,
    ) -> Result<()> {
        self.verifying = None;
        let outcome = match joined {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        // Whoever asked meanwhile wants to know of what has happened since it began: the next one.
        let waiting = std::mem::take(&mut self.verify_answers);
        let answer = match outcome {
            Ok(result) => {
                tracing::info!(
                    mirror = %self.config.name,
                    documents = result.documents,
                    differences = result.differences,
                    repaired = result.repaired,
                    seconds = result.duration.as_secs_f32(),
                    "compared both sides"
                );
                self.plan.state.put_verification(&result).await?;
                self.verify_failed = None;
                self.progress.verification.failed = None;
                self.progress.verification.last = Some(result.clone());
                Ok(result)
            }
            Err(message) => {
                tracing::warn!(mirror = %self.config.name, "comparing both sides did not succeed: {message}");
                self.verify_failed = Some(Instant::now());
                self.progress.verification.failed = Some(message.clone());
                Err(Refusal::Failed(message))
            }
        };
        for waiting in waiting {
            // Whoever asked may be gone.
            let _ = waiting.send(answer.clone());
        }
        Ok(())
    }

    /// Whether another request can be taken.
    pub(super) fn has_room_for_requests(&self) -> bool {
        self.syncs.len() < MOST_SYNCS
    }

    pub(super) fn requested(&mut self, request: Request) {
        match request {
            // Not only in the phase Mirroring: for moments, documents are ahead of the position.
            Request::Verify { done } if self.caught_up && self.is_copied() => {
                // Who hung up is forgotten when the next one asks.
                self.verify_waiting.retain(|waiting| !waiting.is_closed());
                self.verify_waiting.push(done);
            }
            // The loop itself takes the other.
            Request::Verify { .. } | Request::Resync { .. } => {
                request.refuse(Refusal::NotMirroring);
            }
            Request::Sync {
                collection,
                filter,
                done,
            } => match self.sync_of(collection) {
                Ok(sync) => {
                    self.syncs.spawn(async move {
                        let outcome = sync.run(filter).await;
                        let _ = done.send(outcome);
                    });
                }
                Err(refusal) => drop(done.send(Err(refusal))),
            },
        }
    }

    fn sync_of(&self, collection: String) -> Result<Sync, Refusal> {
        let Some(index) = self.plan.catalog.by_name(&collection) else {
            return Err(Refusal::NotFound(collection));
        };
        if self.plan.ranges.contains_key(&index) {
            return Err(Refusal::Copying(collection));
        }
        if self.plan.catalog.get(index).entry.way() != Way::Transactional {
            return Err(Refusal::NotByDocument(collection));
        }
        Ok(Sync {
            source: self.plan.source.clone(),
            target: self.plan.target.db.clone(),
            uuid: self.plan.catalog.get(index).entry.uuid,
            collection,
            asks: self.asks.0.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(seconds)
    }

    fn calm() -> Situation {
        Situation {
            mirroring: true,
            lag: Some(Duration::ZERO),
            asked: false,
            suspicious: false,
            begun: Some(at(90)),
            verified: Some(at(100)),
            copied: Some(at(50)),
            every: None,
        }
    }

    #[test]
    fn a_copy_is_verified_once() {
        assert_eq!(due(calm(), at(1000)), None);
        let fresh = Situation {
            verified: None,
            ..calm()
        };
        assert_eq!(due(fresh, at(1000)), Some(Why::Copied));
        let copied_again = Situation {
            copied: Some(at(200)),
            ..calm()
        };
        assert_eq!(due(copied_again, at(1000)), Some(Why::Copied));
        let copied_meanwhile = Situation {
            copied: Some(at(95)),
            ..calm()
        };
        assert_eq!(due(copied_meanwhile, at(1000)), Some(Why::Copied));
    }

    #[test]
    fn the_interval_counts_from_the_last_one() {
        let every = Situation {
            every: Some(Duration::from_secs(60)),
            ..calm()
        };
        assert_eq!(due(every, at(159)), None);
        assert_eq!(due(every, at(160)), Some(Why::Interval));
    }

    #[test]
    fn signs_of_a_stranger_are_looked_into_but_not_all_the_time() {
        let suspicious = Situation {
            suspicious: true,
            ..calm()
        };
        assert_eq!(due(suspicious, at(159)), None);
        assert_eq!(due(suspicious, at(160)), Some(Why::Suspicion));
    }

    #[test]
    fn a_mirror_that_is_far_behind_is_not_verified_even_if_asked() {
        for lag in [None, Some(MOST_LAG)] {
            let behind = Situation {
                lag,
                asked: true,
                ..calm()
            };
            assert_eq!(due(behind, at(1000)), None);
        }
        let asked = Situation {
            asked: true,
            ..calm()
        };
        assert_eq!(due(asked, at(1000)), Some(Why::Asked));
    }
}
