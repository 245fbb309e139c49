//! What the owner hears of the source, and what it tells of the mirror.

use std::time::{Duration, SystemTime};

use bson::DateTime;
use tokio::time::Instant;

use super::lag::Measured;
use super::{LOG, Owner, PUBLISH};
use crate::engine::error::{Error, Result, Side};
use crate::engine::headroom;
use crate::engine::progress::{InitialSync, Phase, Problem, Unsupported};
use crate::engine::stream::reader::Report as StreamReport;

impl Owner<'_> {
    pub(super) fn stream_reported(&mut self, report: Option<StreamReport>) -> Result<()> {
        match report {
            Some(StreamReport::Reply(reply)) => {
                self.source_answers();
                self.monitor.bear_with(reply.patience);
                self.reply = Some((reply, 0));
            }
            Some(StreamReport::Lost(error)) => {
                let message = error.to_string();
                tracing::debug!(mirror = %self.config.name, "connection to the source lost: {message}");
                self.progress.source.set(false, message.clone());
                self.progress.totals.retries += 1;
                self.progress.problem = Some(Problem {
                    reason: error.reason(),
                    message,
                    needs_human: false,
                    since: SystemTime::now(),
                    next_attempt: None,
                });
            }
            Some(StreamReport::Regained) => {
                tracing::debug!(mirror = %self.config.name, "connection to the source regained");
                self.source_answers();
            }
            Some(StreamReport::Ended(error)) => return Err(error),
            None => {
                return Err(Error::Reply {
                    side: Side::Source,
                    doing: "read the change stream",
                    what: "the reader has ended".into(),
                });
            }
        }
        Ok(())
    }

    /// The source answers: what was wrong with it is over. What is wrong with the target shows
    /// until a batch is written.
    fn source_answers(&mut self) {
        self.progress.source.set(true, "");
        let target = |problem: &Problem| problem.reason.as_str().starts_with("Target");
        if self.in_flight.is_none() || !self.progress.problem.as_ref().is_some_and(target) {
            self.clear_problem();
        }
    }

    /// One side does what it should. Nothing is wrong any more, unless the other side is silent.
    pub(super) fn clear_problem(&mut self) {
        let sides = [&self.progress.source, &self.progress.target];
        if sides.iter().all(|side| side.connected != Some(false)) {
            self.progress.problem = None;
        }
    }

    pub(super) fn measured(&mut self, measured: Measured) {
        match measured {
            Measured::Source(Ok(sample)) => {
                self.monitor.note(sample);
                self.progress.measured_at = Some(SystemTime::now());
            }
            Measured::Source(Err(error)) => self.silent(Side::Source, &error),
            Measured::Target(Ok(())) => {
                if self.progress.target.set(true, "") {
                    self.clear_problem();
                }
            }
            Measured::Target(Err(error)) => self.silent(Side::Target, &error),
            Measured::Oplog(oplog) => {
                let position = self.committed.time;
                let now = self.started.elapsed();
                let headroom = headroom::told(oplog, position, &mut self.headroom, now);
                self.progress.headroom = Some(headroom);
            }
        }
        self.update_phase();
    }

    /// A side does not answer: shown until it does. What works with it tries again by itself.
    fn silent(&mut self, side: Side, error: &Error) {
        let message = error.to_string();
        let link = match side {
            Side::Source => &mut self.progress.source,
            Side::Target => &mut self.progress.target,
        };
        if link.set(false, message.clone()) || self.progress.problem.is_none() {
            self.progress.problem = Some(Problem {
                reason: error.reason(),
                message,
                needs_human: false,
                since: SystemTime::now(),
                next_attempt: None,
            });
        }
    }

    /// Copying, until no range is left; catching up, until the source's own time was reached once.
    pub(super) fn update_phase(&mut self) {
        let phase = if !self.is_copied() {
            self.caught_up = false;
            Phase::Copying
        } else if self.ahead.is_any() {
            Phase::CatchingUp
        } else if self.caught_up || self.monitor.is_caught_up() {
            self.caught_up = true;
            Phase::Mirroring
        } else {
            Phase::CatchingUp
        };
        let is_waiting = self.open.is_some() || !self.verifications.is_empty();
        self.may_be_quiet
            .send_replace(phase == Phase::Mirroring && !is_waiting);
        let is_between = !self.is_torn && !self.plan.in_command;
        let is_exact = self.is_consistent() && is_between && self.quarantine.is_empty();
        self.progress.consistent_at = self.progress.position.filter(|_| is_exact);
        if phase != self.progress.phase {
            self.progress.phase = phase;
            self.published = Instant::now()
                .checked_sub(PUBLISH)
                .unwrap_or_else(Instant::now);
            tracing::debug!(mirror = %self.config.name, ?phase, "phase");
        }
        self.progress.lag = self.lag();
    }

    /// Everything is copied, and no document is ahead of the position. A collection that joins later
    /// takes the consistency back until it is copied.
    fn is_consistent(&self) -> bool {
        self.is_copied() && !self.ahead.is_any()
    }

    /// A target that is not yet consistent has no lag: it is not at any time of the source.
    fn lag(&self) -> Option<Duration> {
        if self.is_consistent() {
            self.monitor.lag()
        } else {
            None
        }
    }

    pub(super) fn publish_if_due(&mut self) {
        if self.published.elapsed() >= PUBLISH {
            self.publish_now();
        }
        if self.logged.0.elapsed() >= LOG {
            self.log();
        }
    }

    pub(super) fn publish_now(&mut self) {
        self.published = Instant::now();
        self.progress.initial_sync = Some(self.initial_sync());
        self.progress.unsupported = self.unsupported();
        self.progress.lag = self.lag();
        if let Some(quarantine) = self.quarantine.changed() {
            self.progress.quarantine = quarantine;
        }
        self.progress.verification.running =
            self.verifying.as_ref().map(|how_far| *how_far.borrow());
        self.publish.send_replace(self.progress.clone());
    }

    pub(super) fn initial_sync(&self) -> InitialSync {
        let figures = &self.plan.figures;
        let mut sync = InitialSync {
            documents_total: figures.documents_total,
            bytes_total: figures.bytes_total,
            documents_copied: figures.documents_copied,
            bytes_copied: figures.bytes_copied,
            started_at: figures.started_at.map(DateTime::to_system_time),
            completed_at: figures.completed_at.map(DateTime::to_system_time),
            ..InitialSync::default()
        };
        for (index, _) in self.plan.catalog.alive() {
            sync.collections_total += 1;
            match self.plan.ranges.get(&index) {
                None => sync.collections_done += 1,
                Some(ranges) => {
                    for range in ranges.iter() {
                        sync.documents_copied += range.documents;
                        sync.bytes_copied += range.bytes;
                    }
                }
            }
        }
        sync
    }

    pub(super) fn unsupported(&self) -> Vec<Unsupported> {
        let mut all: Vec<Unsupported> = self.plan.catalog.left_out().cloned().collect();
        for (_, collection) in self.plan.catalog.alive() {
            for index in &collection.entry.indexes {
                if let Some(reason) = &index.problem {
                    all.push(Unsupported {
                        name: format!(
                            "{} (index {})",
                            collection.entry.public_name(),
                            index.name()
                        ),
                        reason: reason.clone(),
                    });
                }
            }
        }
        all.sort();
        all
    }

    /// One line about what was synced since the last one, if anything was.
    pub(super) fn log(&mut self) {
        let (now, before) = (self.progress.totals, self.logged.1.totals);
        if self.progress.phase == Phase::Copying {
            let sync = self.initial_sync();
            tracing::info!(
                mirror = %self.config.name,
                documents = sync.documents_copied,
                of = sync.documents_total,
                percent = sync.percent(),
                "copying"
            );
        }
        if now.events_applied > before.events_applied {
            tracing::info!(
                mirror = %self.config.name,
                inserts = now.inserts - before.inserts,
                updates = now.updates - before.updates,
                deletes = now.deletes - before.deletes,
                batches = now.batches - before.batches,
                lag_ms = self.progress.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
                "synced"
            );
        }
        self.logged = (Instant::now(), self.progress.clone());
    }
}
