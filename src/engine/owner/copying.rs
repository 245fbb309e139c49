//! The initial copy as its owner sees it: lanes, ranges, indexes.

use std::collections::HashSet;

use bson::{DateTime, doc};
use tokio_util::sync::CancellationToken;

use super::{COPY_BATCH, Owner, malformed};
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::apply::gather::RangeDone;
use crate::engine::catalog::target_options;
use crate::engine::copy::lane::{Job, Lane, Report as LaneReport};
use crate::engine::copy::natural::Unfenced;
use crate::engine::copy::ranges::{Window, released};
use crate::engine::error::Result;
use crate::engine::position::{ClusterTime, Span};
use crate::engine::state::{RangeState, StateStore, encode_figures};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

impl Owner<'_> {
    pub(super) fn is_copied(&self) -> bool {
        self.plan.ranges.is_empty()
    }

    /// Sends idle lanes to the next pending ranges.
    pub(super) fn start_lanes(&mut self) {
        if self.plan.in_command || self.is_in_pieces() {
            return;
        }
        while !self.lane_sessions.is_empty() {
            // Collections that are dropped or cancelled are no longer in the map.
            let next = self
                .plan
                .ranges
                .iter_mut()
                .find_map(|(collection, ranges)| {
                    ranges.next_pending().map(|range| (*collection, range))
                });
            let Some((collection, range)) = next else {
                return;
            };
            range.state = RangeState::Copying;
            let entry = &self.plan.catalog.get(collection).entry;
            let size = self
                .plan
                .sizes
                .get(&collection)
                .copied()
                .unwrap_or_default();
            let job = Job {
                collection,
                uuid: entry.uuid,
                name: entry.name.clone(),
                number: range.number,
                low: range.low.clone(),
                high: range.high.clone(),
                dirty: range.dirty,
                compare: range.compare,
                batch_size: size.documents_in(COPY_BATCH),
                way: entry.way(),
                options: target_options(&entry.options),
                room: self
                    .quarantine
                    .room(self.quarantine.of(entry.uuid).cloned()),
            };
            range.dirty = true;
            let stop = CancellationToken::new();
            self.lane_stops
                .insert((collection, job.number), stop.clone());
            let lane = Lane {
                source: self.plan.source.clone(),
                target: self.plan.target.clone(),
                state: self.plan.state.clone(),
                epoch: self.plan.epoch,
                abilities: self.plan.abilities,
                reports: self.lane_reports.0.clone(),
                pace: self.pace.clone(),
                stop,
            };
            // Invariant: checked by the loop's condition.
            if let Some(session) = self.lane_sessions.pop() {
                self.lanes.spawn(lane.copy(job, session));
            }
        }
    }

    pub(super) fn lane_reported(&mut self, report: LaneReport) -> Result<()> {
        match report {
            LaneReport::Progress {
                collection,
                number,
                documents,
                bytes,
            } => {
                if let Some(range) = self
                    .plan
                    .ranges
                    .get_mut(&collection)
                    .and_then(|ranges| ranges.numbered(number))
                {
                    range.documents = documents;
                    range.bytes = bytes;
                }
            }
            LaneReport::Done {
                collection,
                number,
                at,
                documents,
                bytes,
                unfenced,
            } => {
                self.lane_stops.remove(&(collection, number));
                self.range_done(collection, number, at, (documents, bytes), unfenced)?;
            }
            LaneReport::Gone { collection, number } => {
                // Its drop is on the way in the stream; whatever comes before it is of no use.
                self.lane_stops.remove(&(collection, number));
                self.range_done(collection, number, ClusterTime::NEVER.into(), (0, 0), None)?;
            }
            LaneReport::Stopped { collection, number } => {
                self.lane_stops.remove(&(collection, number));
            }
            LaneReport::Anew(uuid) => self.quarantine.forget(uuid),
            LaneReport::Refused(refused) => {
                // Other lanes may have used up the room meanwhile.
                let known = refused.iter().map(|one| one.key.clone());
                let known = known.filter(|key| self.quarantine.refused_at(key).is_some());
                let room = self.quarantine.room(known);
                let checked = room.check(&refused);
                self.note_refused(refused, &[]);
                checked?;
            }
            LaneReport::Retrying(error) => {
                self.progress.totals.retries += 1;
                tracing::warn!(mirror = %self.config.name, %error, "copying a range again");
            }
            LaneReport::Failed {
                collection,
                number,
                error,
            } => {
                self.lane_stops.remove(&(collection, number));
                return Err(error);
            }
        }
        Ok(())
    }

    /// A range is on the target as of `at`: what waited for it joins the batch, which also makes
    /// it durable, so that range and position always agree.
    pub(super) fn range_done(
        &mut self,
        collection: CollectionIndex,
        number: u32,
        at: Span,
        (documents, bytes): (u64, u64),
        unfenced: Option<Unfenced>,
    ) -> Result<()> {
        let home = self.home(collection);
        if let Some(unfenced) = unfenced {
            self.plan.catalog.get_mut(collection).guard = Some(unfenced.guard);
        }
        let Some(ranges) = self.plan.ranges.get_mut(&collection) else {
            return Ok(());
        };
        let Some(range) = ranges.numbered(number) else {
            return Ok(());
        };
        range.documents = documents;
        range.bytes = bytes;
        range.state = RangeState::Done(at);
        range.window = unfenced.and_then(|it| it.from).map(Window::new);
        let waiting = std::mem::take(&mut range.waiting);
        let freed: usize = waiting.iter().map(|(_, raw)| raw.len()).sum();
        self.waiting_bytes = self.waiting_bytes.saturating_sub(freed);
        let window = range.window.as_mut();
        let mut batch = released(waiting, at, home, window).map_err(malformed)?;
        ranges.note_progress();
        batch.ranges_done.push(RangeDone {
            collection,
            number,
            update: StateStore::range_done(at, documents, bytes),
        });
        self.gather.absorb(batch);
        Ok(())
    }

    /// Builds the indexes of collections whose ranges are all durable.
    pub(super) fn finish_copied_collections(&mut self) {
        if self.plan.in_command {
            return;
        }
        let gathered = self.gather.ranges_done.iter();
        let on_its_way = self.in_flight.iter().flat_map(|it| &it.collections);
        let pending: HashSet<CollectionIndex> = gathered
            .map(|range| range.collection)
            .chain(on_its_way.copied())
            .collect();
        let copied: Vec<CollectionIndex> = self
            .plan
            .ranges
            .iter()
            .filter(|(collection, ranges)| {
                ranges.is_done()
                    && !self.plan.catalog.get(**collection).entry.copied
                    && !pending.contains(collection)
                    && !self.building.contains(collection)
            })
            .map(|(collection, _)| *collection)
            .collect();
        for collection in copied {
            self.start_tending(collection, false);
        }
        if self.plan.ranges.is_empty() {
            self.update_phase();
        }
    }

    /// Takes a collection in, to be copied.
    pub(super) async fn take(&mut self, uuid: Uuid, name: &str) -> Result<()> {
        self.plan.take(self.config, uuid, name).await?;
        self.quarantine.forget(uuid);
        self.update_phase();
        Ok(())
    }

    /// A collection is copied and its indexes are built: its ranges are history once the position
    /// has passed the last of their times.
    pub(super) async fn try_complete(&mut self, collection: CollectionIndex) -> Result<()> {
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        entry.copied = true;
        let entry = entry.clone();
        self.plan.state.put_collection(&entry).await?;
        self.drop_passed_ranges().await
    }

    /// Forgets ranges that no event can fall before any more.
    pub(super) async fn drop_passed_ranges(&mut self) -> Result<()> {
        // What is on its way would conflict with what is noted in the checkpoint meanwhile.
        if self.in_pieces || self.in_flight.is_some() {
            return Ok(());
        }
        let passed: Vec<CollectionIndex> = self
            .plan
            .ranges
            .iter()
            .filter(|(collection, ranges)| {
                self.plan.catalog.get(**collection).entry.copied
                    && ranges
                        .applied_through()
                        .is_some_and(|through| through <= self.committed.time)
            })
            .map(|(collection, _)| *collection)
            .collect();
        for collection in passed {
            self.forget_ranges(collection);
            let uuid = self.plan.catalog.get(collection).entry.uuid;
            self.plan.state.remove_ranges(uuid).await?;
            self.note_figures().await?;
        }
        if !self.plan.ranges.is_empty() {
            return Ok(());
        }
        self.kept.resynced();
        if self.plan.figures.completed_at.is_none() {
            self.plan.figures.completed_at = Some(DateTime::now());
            self.note_figures().await?;
        }
        Ok(())
    }

    async fn note_figures(&self) -> Result<()> {
        let set = doc! {"copy": encode_figures(&self.plan.figures)};
        self.plan
            .state
            .update(Write::NoteFigures, self.plan.epoch, set)
            .await
    }

    /// The copied counts of ranges that go away stay in the totals.
    pub(super) fn forget_ranges(&mut self, collection: CollectionIndex) {
        if let Some(ranges) = self.plan.ranges.remove(&collection) {
            for range in ranges.iter() {
                self.plan.figures.documents_copied += range.documents;
                self.plan.figures.bytes_copied += range.bytes;
                let freed: usize = range.waiting.iter().map(|(_, raw)| raw.len()).sum();
                self.waiting_bytes = self.waiting_bytes.saturating_sub(freed);
            }
        }
    }

    /// Stops the lanes of one collection, or all, and waits until nothing of theirs is under way.
    ///
    /// # Errors
    /// What a lane failed with meanwhile, after all concerned have ended.
    pub(super) async fn stop_lanes(&mut self, collection: Option<CollectionIndex>) -> Result<()> {
        let concerned =
            |lane: &(CollectionIndex, u32)| collection.is_none_or(|only| lane.0 == only);
        for (lane, stop) in &self.lane_stops {
            if concerned(lane) {
                stop.cancel();
            }
        }
        let mut failed = Ok(());
        while self.lane_stops.keys().any(concerned) {
            tokio::select! {
                biased;
                Some(report) = self.lane_reports.1.recv() => match report {
                    // Of a range that is interrupted below, whatever it has reached.
                    LaneReport::Gone { collection, number }
                    | LaneReport::Done { collection, number, .. }
                        if concerned(&(collection, number)) =>
                    {
                        self.lane_stops.remove(&(collection, number));
                    }
                    other => failed = failed.and(self.lane_reported(other)),
                },
                joined = self.lanes.join_next() => match joined {
                    Some(Ok(session)) => self.lane_sessions.push(session),
                    // Nothing runs any more: what has not reported has panicked.
                    None => self.lane_stops.retain(|lane, _| !concerned(lane)),
                    Some(Err(panic)) => {
                        tracing::error!(mirror = %self.config.name, %panic, "a copy lane panicked");
                    }
                },
            }
        }
        for (index, ranges) in &mut self.plan.ranges {
            if collection.is_none_or(|only| only == *index) {
                for range in ranges.iter() {
                    let freed: usize = range.waiting.iter().map(|(_, raw)| raw.len()).sum();
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(freed);
                }
                ranges.interrupt();
            }
        }
        failed
    }
}
