//! From replies of the stream to batches for the writer, and back from it.

use super::{EIGHTHS, IDLE_CHECKPOINT, InFlight, Owner, Pause, malformed, whole};
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::apply::merge::{Form, Home};
use crate::engine::apply::writer::{Named, Names, Part, Prepared, Written};
use crate::engine::copy::ranges::Route;
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::{Position, ResumeToken};
use crate::engine::state::Way;
use crate::engine::stream::event::{Event, Operation, parse};
use tokio::time::Instant;

impl Owner<'_> {
    /// Routes the events of the reply in hand.
    pub(super) fn process(&mut self) -> Result<()> {
        if self.paused.is_some() {
            return Ok(());
        }
        let Some((reply, from)) = self.reply.take() else {
            return Ok(());
        };
        let mut last = None;
        let mut count = from;
        let mut paused = None;
        for raw in reply.events().skip(from) {
            let event = parse(raw).map_err(malformed)?;
            let goes_on = match (&self.open, event.transaction) {
                (Some(open), Some(transaction)) => transaction.is(open),
                _ => false,
            };
            if !goes_on {
                self.open = None;
                if self.in_pieces {
                    // The last piece is written by itself: what no transaction may write is
                    // announced in the checkpoint, which the open one would conflict with then.
                    paused = Some(Pause::Full);
                    break;
                }
                let reached = last.map_or(self.position.time, |(time, _)| time);
                if self.may_hold(reached, Some(event.time)) {
                    paused = Some(Pause::Hold);
                    break;
                }
                if self.is_full() {
                    paused = Some(Pause::Full);
                    break;
                }
            } else if self.is_too_large() {
                paused = Some(Pause::Full);
                break;
            }
            let held = self.position.holds(event.time);
            if held {
                // The plan and every copy were made since.
            } else if event.operation.is_document() {
                if self.waiting_bytes >= self.share(EIGHTHS.2) {
                    paused = Some(Pause::Waiting);
                    break;
                }
                self.route(&event)?;
            } else if event.operation != Operation::Other {
                paused = Some(Pause::Barrier);
                break;
            } else {
                tracing::debug!(mirror = %self.config.name, event = event.operation_name, "event without effect");
            }
            // A command that an earlier process had begun would have come first.
            self.plan.in_command &= held;
            count += 1;
            self.progress.totals.events_read += 1;
            last = Some((event.time, event.token));
            if !goes_on {
                self.open = event.transaction.map(|transaction| transaction.to_owned());
            }
        }
        if let Some((time, token)) = last {
            self.position.advance(time, ResumeToken::from_raw(token));
        }
        self.paused = paused;
        if self.paused.is_some() {
            self.reply = Some((reply, count));
            return Ok(());
        }
        if count == 0 && reply.committed >= self.position.time {
            // Nothing more is to come of a transaction that was open: all of it was committed
            // before the server was asked, and it had nothing to show.
            self.open = None;
            self.plan.in_command = false;
        }
        if self.open.is_none() {
            self.position.advance(reply.time, reply.resume.clone());
        }
        Ok(())
    }

    /// How many documents may still join the batch. A busy source does not keep all of them out.
    pub(super) fn room_in_batch(&self) -> usize {
        let most = self.kept.batch_size.documents();
        let left = most.saturating_sub(self.gather.documents());
        left.max(most / 8).max(1)
    }

    pub(super) fn is_full(&self) -> bool {
        self.gather.documents() >= self.kept.batch_size.documents()
            || self.gather.bytes() >= self.share(EIGHTHS.1)
    }

    /// A transaction of the source that outgrows the memory that a batch may take.
    fn is_too_large(&self) -> bool {
        self.gather.bytes() >= 2 * self.share(EIGHTHS.1)
    }

    /// One document event: into the batch, into a range's queue, or nowhere.
    pub(super) fn route(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(collection) = event
            .uuid
            .as_ref()
            .and_then(|uuid| self.plan.catalog.find(uuid))
        else {
            return Ok(());
        };
        let id = match event.id {
            Some(id) => id,
            None if event.slim => {
                // Its `_id` alone is too large: only comparing both sides finds it.
                return Err(Error::EventTooLarge {
                    position: event.time,
                });
            }
            None => return Err(malformed("no documentKey._id")),
        };
        let mut home = self.home(collection);
        if let Some(ranges) = self.plan.ranges.get_mut(&collection) {
            match ranges.route(id, event.time) {
                Route::Apply => {}
                Route::ReadAgain => home.form = Form::ReadAgain,
                Route::Skip => return Ok(()),
                Route::Wait(place) => {
                    // The bytes of the event outlive its reply.
                    let raw = event.raw.as_bytes().to_vec();
                    self.waiting_bytes += raw.len();
                    ranges.get_mut(place).waiting.push((event.time, raw));
                    return Ok(());
                }
                Route::Window(place) => {
                    if let Some(window) = &mut ranges.get_mut(place).window {
                        window.note(event).map_err(malformed)?;
                    }
                    return self.gather.add_to_window(home, event).map_err(malformed);
                }
            }
        }
        if home.way != Way::InOrder && self.is_quarantined(collection, id) {
            self.gather.compare(home, event, id);
            return Ok(());
        }
        self.gather.add(home, event).map_err(malformed)
    }

    /// How events of a collection are gathered now. Capped collections are never ahead: they cannot
    /// be read document by document.
    pub(super) fn home(&self, collection: CollectionIndex) -> Home {
        let way = self.plan.catalog.get(collection).entry.way();
        let survives = self.plan.abilities.survives_duplicate_names();
        let exact = self.plan.abilities.internal_delta;
        let form = if way == Way::InOrder {
            Form::Deltas
        } else if self.ahead.is_any() || self.plan.careful {
            Form::ReadAgain
        } else if self.in_pieces && !(exact && survives) {
            // In the middle of a transaction, what was read again is as after its end: no change
            // may follow.
            Form::ReadAgain
        } else if !exact {
            Form::Documents
        } else if survives {
            Form::Deltas
        } else {
            Form::PlainDeltas
        };
        Home {
            collection,
            way,
            form,
        }
    }

    /// Gives the batch to the writer if that is free and the batch ends between transactions.
    pub(super) fn hand_over_if_possible(&mut self) {
        let at_barrier = self.paused == Some(Pause::Barrier);
        if self.in_flight.is_some() {
            return;
        }
        // A command may stand within a transaction.
        let ends_here = self.open.is_none() || at_barrier;
        if !ends_here {
            if self.is_too_large() {
                self.hand_over(Part::More);
                self.in_pieces = true;
            }
            return;
        }
        if std::mem::take(&mut self.in_pieces) {
            self.hand_over(Part::Last);
            return;
        }
        let moved = self.position != self.committed;
        // Before a command the position is durable, so that a process that dies within it finds the
        // command right behind its position.
        let due = at_barrier
            || self.checkpointed.elapsed() >= IDLE_CHECKPOINT
            || self.would_complete_copy();
        if self.gather.is_empty() && !(moved && due) {
            if moved {
                // An idle source needs no write to be mirrored up to its token.
                let is_torn = self.open.is_some();
                self.reached(self.position.clone(), false, is_torn);
            }
            return;
        }
        self.hand_over(Part::Whole);
    }

    /// Whether the copy of a collection only waits for the position to be durable.
    pub(super) fn would_complete_copy(&self) -> bool {
        self.plan.ranges.iter().any(|(collection, ranges)| {
            self.plan.catalog.get(*collection).entry.copied
                && ranges.applied_through().is_some_and(|through| {
                    through > self.committed.time && through <= self.position.time
                })
        })
    }

    pub(super) fn hand_over(&mut self, part: Part) {
        let mut batch = std::mem::take(&mut self.gather);
        if part == Part::More {
            // Their notes go with the position, which moves with the last piece.
            self.gather.ranges_done = std::mem::take(&mut batch.ranges_done);
        }
        let mut names = Names::new();
        let documents = batch.entities().iter().chain(batch.outside());
        let documents = documents.chain(batch.window());
        let touched = documents.map(|entity| entity.collection);
        let touched = touched.chain(batch.ranges_done.iter().map(|range| range.collection));
        for collection in touched {
            names.entry(collection).or_insert_with(|| {
                let known = self.plan.catalog.get(collection);
                Named {
                    name: known.entry.name.clone(),
                    uuid: known.entry.uuid,
                    way: known.entry.way(),
                    guard: known.guard,
                    is_connected: known.entry.is_connected(),
                }
            });
        }
        let is_torn = self.open.is_some();
        self.in_flight = Some(InFlight {
            part,
            is_torn,
            position: self.position.clone(),
            counts: batch.counts,
            collections: batch
                .ranges_done
                .iter()
                .map(|range| range.collection)
                .collect(),
            repairing: self.repairing.take(),
        });
        let (quarantined, missing) = self.quarantined_in(&batch);
        let known = quarantined.iter().map(|(key, _)| key).chain(&missing);
        let prepared = Prepared {
            part,
            room: self.quarantine.room(known.cloned()),
            quarantined,
            missing,
            batch,
            position: self.position.clone(),
            before: self.committed.time,
            names,
            ahead: self.ahead,
            in_command: self.plan.in_command || is_torn,
        };
        // The channel is empty while nothing is in flight; a closed one shows as a lost outcome.
        let _ = self.writer.batches.try_send(prepared);
    }

    /// A batch is committed.
    pub(super) fn written(&mut self, outcome: Option<Result<Written>>) -> Result<()> {
        let written = outcome.ok_or_else(|| Error::Reply {
            side: Side::Target,
            doing: "write a batch",
            what: "the writer has ended".into(),
        })??;
        let Some(in_flight) = self.in_flight.take() else {
            return Ok(());
        };
        self.progress.target.set(true, "");
        self.clear_problem();
        self.progress.target_time = written.target_time.or(self.progress.target_time);
        let totals = &mut self.progress.totals;
        totals.events_applied += in_flight.counts.total();
        totals.inserts += in_flight.counts.inserts;
        totals.updates += in_flight.counts.updates;
        totals.deletes += in_flight.counts.deletes;
        totals.operations_written += written.operations;
        totals.batches += 1;
        totals.repaired += written.repaired;
        totals.retries += written.retries;
        if let Some(repairing) = in_flight.repairing {
            self.repaired(repairing, written.reconciled);
        }
        if written.repaired > written.reconciled.written + written.reconciled.deleted {
            self.suspicious = true;
            tracing::warn!(mirror = %self.config.name, documents = written.repaired, "documents on the target were not as the source left them; repaired");
        }
        self.ahead = self.ahead.and(written.ahead_until);
        if written.ahead_until.is_some() {
            // What is already gathered must not be laid over newer documents.
            self.gather.read_all_again();
        }
        for collection in written.relaxed {
            self.relaxed(collection);
        }
        self.note_refused(written.refused, &written.healed);
        self.go_on_repairing();
        match in_flight.part {
            Part::More => return Ok(()),
            Part::Last => self.plan.careful = false,
            Part::Whole => {
                self.plan.careful &= !self.monitor.is_caught_up();
                self.kept.batch_size.managed();
            }
        }
        self.checkpointed = Instant::now();
        self.plan.state.shown();
        self.reached(in_flight.position, true, in_flight.is_torn);
        if !in_flight.collections.is_empty() {
            self.finish_copied_collections();
        }
        Ok(())
    }

    /// The target now holds everything up to here, and if `is_torn` not yet all of the last
    /// transaction.
    pub(super) fn reached(&mut self, position: Position, durable: bool, is_torn: bool) {
        self.is_torn = is_torn;
        self.ahead = self.ahead.at(position.time);
        self.monitor.reached(whole(position.time, is_torn));
        self.progress.position = Some(position.time);
        if durable {
            self.committed = position;
        }
        self.update_phase();
    }
}
