//! The one task that owns a running mirror: what it knows, and what happens next.
//!
//! Other tasks are thin: the stream reader, the writer, the copy lanes and the monitor do as they
//! are told and report. All decisions are here and in the pure parts it calls, so there are no
//! locks and no orders of events to think about but one.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bson::{DateTime, doc};
use mongodb::ClientSession;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::apply::ddl::{IndexProblem, create_indexes};
use super::apply::gather::{Batch, CollectionIndex, RangeDone};
use super::apply::writer::{Names, Prepared, Writer, Written};
use super::bson::order::Value;
use super::command::Commands;
use super::config::MirrorConfig;
use super::copy::lane::{Job, Lane, Report as LaneReport};
use super::copy::ranges::{Route, released};
use super::error::{Error, Result, Side};
use super::lag::{Monitor, Sample};
use super::plan::Planned;
use super::position::{ClusterTime, Position, StartPoint};
use super::progress::{ApplyForm, InitialSync, Phase, Progress, Unsupported};
use super::state::{Ahead, StateStore, encode_figures};
use super::stream::event::{Event, Operation, Transaction, Uuid, parse};
use super::stream::reader::{self, Reply, Report as StreamReport};

/// A batch is closed at this many documents: transactions of a thousand cost no more per document
/// than plain writes, and beyond some thousands only the wait for a batch grows.
const BATCH_DOCUMENTS: usize = 4000;

/// A position without changes is written at most this often: where source and target are one
/// deployment, each such write moves the source's own clock again.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(10);

/// Progress is published at most this often while things run.
const PUBLISH: Duration = Duration::from_millis(200);

/// What was synced is logged at most this often.
const LOG: Duration = Duration::from_secs(10);

/// Documents of the source read in one batch by a copy lane, in bytes.
const COPY_BATCH: u64 = 1_500_000;

/// Shares of the memory budget, in eighths: replies read ahead, the batch being gathered (as much
/// again is being written), events that wait for a range.
const EIGHTHS: (usize, usize, usize) = (2, 1, 2);

/// Why the processing of a reply stopped before its end.
#[derive(PartialEq, Eq, Debug)]
enum Pause {
    /// The batch is full.
    Full,
    /// A collection command is next.
    Barrier,
    /// Too many events wait for ranges that are being copied.
    Waiting,
}

/// A running mirror.
pub struct Owner<'a> {
    config: &'a MirrorConfig,
    publish: &'a watch::Sender<Progress>,
    pub(super) plan: Planned,
    progress: Progress,
    published: Instant,
    logged: (Instant, Progress),

    /// The batch being gathered, and where the mirror stands after it.
    gather: Batch,
    position: Position,
    /// The source transaction that the batch ends in the middle of.
    open: Option<Transaction>,
    /// A reply that is not yet processed to its end, and how far it is.
    reply: Option<(Reply, usize)>,
    paused: Option<Pause>,
    waiting_bytes: usize,
    ahead: HashMap<(Uuid, Value), ClusterTime>,
    ahead_changed: bool,

    /// Where the target stands for certain.
    committed: Position,
    checkpointed: Instant,
    writer: WriterTask,
    in_flight: Option<InFlight>,

    lanes: JoinSet<ClientSession>,
    lane_reports: (mpsc::Sender<LaneReport>, mpsc::Receiver<LaneReport>),
    lane_sessions: Vec<ClientSession>,
    lane_stops: HashMap<(CollectionIndex, u32), CancellationToken>,
    builds: JoinSet<Result<(CollectionIndex, Vec<IndexProblem>)>>,
    building: HashSet<CollectionIndex>,
    index_problems: HashMap<(CollectionIndex, String), String>,

    monitor: Monitor,
    caught_up: bool,
}

/// A batch on its way.
struct InFlight {
    position: Position,
    counts: super::apply::gather::Counts,
    collections: Vec<CollectionIndex>,
}

struct WriterTask {
    batches: mpsc::Sender<Prepared>,
    outcomes: mpsc::Receiver<Result<Written>>,
    task: JoinHandle<()>,
}

impl WriterTask {
    fn start(mut writer: Writer) -> Self {
        let (batches, mut next) = mpsc::channel::<Prepared>(1);
        let (done, outcomes) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            while let Some(prepared) = next.recv().await {
                let outcome = writer.write(&prepared).await;
                if done.send(outcome).await.is_err() {
                    return;
                }
            }
        });
        Self {
            batches,
            outcomes,
            task,
        }
    }
}

impl<'a> Owner<'a> {
    /// Takes a plan over.
    pub fn new(
        config: &'a MirrorConfig,
        mut plan: Planned,
        publish: &'a watch::Sender<Progress>,
    ) -> Self {
        let mut sessions = std::mem::take(&mut plan.sessions);
        let writer = Writer {
            target: plan.target.clone(),
            state: plan.state.clone(),
            source: plan.source.clone(),
            epoch: plan.epoch,
            abilities: plan.abilities,
            session: sessions.pop(),
        };
        let ahead = plan
            .ahead
            .iter()
            .map(|ahead| ((ahead.uuid, ahead.id.clone()), ahead.until))
            .collect();
        let mut progress = publish.borrow().clone();
        progress.apply_form = Some(if plan.abilities.internal_delta {
            ApplyForm::InternalDelta
        } else {
            ApplyForm::Refetch
        });
        let now = Instant::now();
        Self {
            config,
            publish,
            position: plan.position.clone(),
            committed: plan.position.clone(),
            monitor: Monitor::start(&plan.source),
            published: now,
            logged: (now, progress.clone()),
            progress,
            gather: Batch::default(),
            open: None,
            reply: None,
            paused: None,
            waiting_bytes: 0,
            ahead,
            ahead_changed: false,
            checkpointed: now,
            writer: WriterTask::start(writer),
            in_flight: None,
            lanes: JoinSet::new(),
            lane_reports: mpsc::channel(64),
            lane_sessions: sessions,
            lane_stops: HashMap::new(),
            builds: JoinSet::new(),
            building: HashSet::new(),
            index_problems: HashMap::new(),
            caught_up: false,
            plan,
        }
    }

    /// Runs until asked to stop, then finishes the batch in hand.
    ///
    /// # Errors
    /// What made it impossible to go on; the checkpoint is where to start over from.
    pub async fn run(mut self, stop: &CancellationToken) -> Result<()> {
        let (reports, mut stream) = mpsc::channel(4);
        let budget = reader::budget(self.share(EIGHTHS.0));
        let reading = tokio::spawn(reader::read(
            self.plan.source.clone(),
            self.plan.position.clone(),
            self.plan.flags,
            budget,
            reports,
        ));
        let outcome = self.attend(stop, &mut stream).await;
        drop(stream);
        // Leave nothing running that still writes: the next run must find a quiet target.
        self.stop_lanes(None).await;
        self.builds.abort_all();
        let finished = match outcome {
            Ok(()) => self.finish().await,
            Err(error) => Err(error),
        };
        self.monitor.stop();
        self.writer.task.abort();
        reading.abort();
        finished
    }

    /// The loop: one thing after the other.
    async fn attend(
        &mut self,
        stop: &CancellationToken,
        stream: &mut mpsc::Receiver<StreamReport>,
    ) -> Result<()> {
        let mut tick = tokio::time::interval(PUBLISH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.finish_copied_collections();
        loop {
            self.start_lanes();
            self.advance().await?;
            if !self.plan.ranges.is_empty() {
                self.drop_passed_ranges().await?;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                outcome = self.writer.outcomes.recv(), if self.in_flight.is_some() => {
                    self.written(outcome)?;
                }
                Some(report) = self.lane_reports.1.recv() => self.lane_reported(report)?,
                Some(joined) = self.lanes.join_next() => {
                    if let Ok(session) = joined {
                        self.lane_sessions.push(session);
                    }
                }
                Some(built) = self.builds.join_next() => self.built(built).await?,
                report = stream.recv(), if self.reply.is_none() => self.stream_reported(report)?,
                sample = self.monitor.next() => self.sampled(sample),
                _ = tick.tick() => {}
            }
            self.publish_if_due();
        }
    }

    /// Everything that can be done without waiting for a report.
    async fn advance(&mut self) -> Result<()> {
        loop {
            self.process()?;
            self.hand_over_if_possible().await;
            let idle = self.in_flight.is_none() && self.gather.is_empty();
            match self.paused {
                Some(Pause::Barrier) if idle => self.barrier().await?,
                Some(Pause::Full) if self.gather.is_empty() => self.paused = None,
                Some(Pause::Waiting) if self.waiting_bytes < self.share(EIGHTHS.2) => {
                    self.paused = None;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Routes the events of the reply in hand.
    fn process(&mut self) -> Result<()> {
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
                if self.is_full() {
                    paused = Some(Pause::Full);
                    break;
                }
            }
            if event.operation.is_document() {
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
            count += 1;
            self.progress.totals.events_read += 1;
            last = Some((event.time, event.token));
            if !goes_on {
                self.open = event.transaction.map(|transaction| transaction.to_owned());
            }
        }
        if let Some((time, token)) = last {
            self.position = Position {
                time,
                start: StartPoint::After(super::position::ResumeToken::from_raw(token)),
            };
        }
        self.paused = paused;
        if self.paused.is_some() {
            self.reply = Some((reply, count));
            return Ok(());
        }
        if count == 0 {
            // Nothing more is to come of a transaction that was open: an empty reply means that
            // the server has shown everything up to its token.
            self.open = None;
        }
        if self.open.is_none() {
            self.position = Position {
                time: reply.time.max(self.position.time),
                start: StartPoint::After(reply.resume.clone()),
            };
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.gather.entities().len() >= BATCH_DOCUMENTS
            || self.gather.bytes() >= self.share(EIGHTHS.1)
    }

    /// One document event: into the batch, into a range's queue, or nowhere.
    fn route(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(collection) = event
            .uuid
            .as_ref()
            .and_then(|uuid| self.plan.catalog.find(uuid))
        else {
            return Ok(());
        };
        let id = event.id.ok_or_else(|| malformed("no documentKey._id"))?;
        if let Some(ranges) = self.plan.ranges.get_mut(&collection) {
            match ranges.route(id, event.time) {
                Route::Apply => {}
                Route::Skip => return Ok(()),
                Route::Wait(place) => {
                    // The bytes of the event outlive its reply.
                    let raw = event.raw.as_bytes().to_vec();
                    self.waiting_bytes += raw.len();
                    ranges.get_mut(place).waiting.push((event.time, raw));
                    return Ok(());
                }
            }
        }
        if !self.ahead.is_empty() && self.is_ahead(event, id) {
            return Ok(());
        }
        let refetch = !self.plan.abilities.internal_delta;
        self.gather
            .add(collection, event, refetch)
            .map_err(malformed)
    }

    /// Whether the document was read later than this event.
    fn is_ahead(&mut self, event: &Event<'_>, id: super::bson::scan::Element<'_>) -> bool {
        let Some(uuid) = event.uuid else {
            return false;
        };
        let key = (uuid, Value::of(id));
        match self.ahead.get(&key) {
            Some(until) if event.time <= *until => true,
            Some(_) => {
                self.ahead.remove(&key);
                self.ahead_changed = true;
                false
            }
            None => false,
        }
    }

    /// Gives the batch to the writer if that is free and the batch ends between transactions.
    async fn hand_over_if_possible(&mut self) {
        let at_barrier = self.paused == Some(Pause::Barrier);
        if self.in_flight.is_some() || (self.open.is_some() && !at_barrier) {
            return;
        }
        let moved = self.position != self.committed;
        let due = self.checkpointed.elapsed() >= IDLE_CHECKPOINT || self.would_complete_copy();
        if self.gather.is_empty() && !(moved && due) {
            if moved {
                // An idle source needs no write to be mirrored up to its token.
                self.reached(self.position.clone(), false);
            }
            return;
        }
        self.hand_over().await;
    }

    /// Whether the copy of a collection only waits for the position to be durable.
    fn would_complete_copy(&self) -> bool {
        self.plan.ranges.iter().any(|(collection, ranges)| {
            self.plan.catalog.get(*collection).entry.copied
                && ranges.applied_through().is_some_and(|through| {
                    through > self.committed.time && through <= self.position.time
                })
        })
    }

    async fn hand_over(&mut self) {
        let batch = std::mem::take(&mut self.gather);
        let mut names = Names::new();
        let touched = batch.entities().iter().map(|entity| entity.collection);
        let touched = touched.chain(batch.ranges_done.iter().map(|range| range.collection));
        for collection in touched {
            names.entry(collection).or_insert_with(|| {
                let entry = &self.plan.catalog.get(collection).entry;
                (entry.name.clone(), entry.uuid)
            });
        }
        if self
            .ahead
            .values()
            .any(|until| *until <= self.position.time)
        {
            let passed = self.position.time;
            self.ahead.retain(|_, until| *until > passed);
            self.ahead_changed = true;
        }
        let ahead = std::mem::take(&mut self.ahead_changed).then(|| self.ahead_list());
        self.in_flight = Some(InFlight {
            position: self.position.clone(),
            counts: batch.counts,
            collections: batch
                .ranges_done
                .iter()
                .map(|range| range.collection)
                .collect(),
        });
        let prepared = Prepared {
            batch,
            position: self.position.clone(),
            names,
            ahead: ahead.or_else(|| (!self.ahead.is_empty()).then(|| self.ahead_list())),
        };
        // The channel is empty while nothing is in flight; a closed one shows as a lost outcome.
        let _ = self.writer.batches.send(prepared).await;
    }

    fn ahead_list(&self) -> Vec<Ahead> {
        self.ahead
            .iter()
            .map(|((uuid, id), until)| Ahead {
                uuid: *uuid,
                id: id.clone(),
                until: *until,
            })
            .collect()
    }

    /// A batch is committed.
    fn written(&mut self, outcome: Option<Result<Written>>) -> Result<()> {
        let written = outcome.ok_or_else(|| Error::Reply {
            side: Side::Target,
            doing: "write a batch",
            what: "the writer has ended".into(),
        })??;
        let Some(in_flight) = self.in_flight.take() else {
            return Ok(());
        };
        let totals = &mut self.progress.totals;
        totals.events_applied += in_flight.counts.total();
        totals.inserts += in_flight.counts.inserts;
        totals.updates += in_flight.counts.updates;
        totals.deletes += in_flight.counts.deletes;
        totals.operations_written += written.operations;
        totals.batches += 1;
        totals.repaired += written.repaired;
        totals.retries += written.retries;
        if written.repaired > 0 {
            tracing::warn!(mirror = %self.config.name, documents = written.repaired, "documents on the target were not as the source left them; repaired");
        }
        for ahead in written.ahead {
            self.ahead.insert((ahead.uuid, ahead.id), ahead.until);
        }
        self.checkpointed = Instant::now();
        self.reached(in_flight.position, true);
        if !in_flight.collections.is_empty() {
            self.finish_copied_collections();
        }
        Ok(())
    }

    /// The target now holds everything up to here.
    fn reached(&mut self, position: Position, durable: bool) {
        self.monitor.reached(position.time);
        self.progress.position = Some(position.time);
        if durable {
            self.committed = position;
        }
        self.update_phase();
    }

    fn is_copied(&self) -> bool {
        self.plan.ranges.is_empty()
    }

    /// Copying, until no range is left; catching up, until the source's own time was reached once.
    fn update_phase(&mut self) {
        let phase = if !self.is_copied() {
            Phase::Copying
        } else if self.caught_up || self.monitor.is_caught_up() {
            self.caught_up = true;
            Phase::Mirroring
        } else {
            Phase::CatchingUp
        };
        if self.is_copied() {
            self.progress.consistent_at = self.progress.position;
        }
        if phase != self.progress.phase {
            self.progress.phase = phase;
            self.published = Instant::now()
                .checked_sub(PUBLISH)
                .unwrap_or_else(Instant::now);
            tracing::info!(mirror = %self.config.name, phase = ?phase, position = ?self.progress.position.map(|p| p.to_string()), "phase");
        }
        self.progress.lag = self.monitor.lag();
    }

    /// Sends idle lanes to the next pending ranges.
    fn start_lanes(&mut self) {
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
            range.state = super::state::RangeState::Copying;
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
                batch_size: size.documents_in(COPY_BATCH),
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
                stop,
            };
            // Invariant: checked by the loop's condition.
            if let Some(session) = self.lane_sessions.pop() {
                self.lanes.spawn(lane.copy(job, session));
            }
        }
    }

    fn lane_reported(&mut self, report: LaneReport) -> Result<()> {
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
            } => {
                self.lane_stops.remove(&(collection, number));
                self.range_done(collection, number, at, (documents, bytes))?;
            }
            LaneReport::Gone { collection, number } => {
                // Its drop is on the way in the stream; until then there is nothing to hold.
                self.lane_stops.remove(&(collection, number));
                let now = self.position.time;
                self.range_done(collection, number, now, (0, 0))?;
            }
            LaneReport::Stopped { collection, number } => {
                self.lane_stops.remove(&(collection, number));
            }
            LaneReport::Retrying(error) => {
                self.progress.totals.retries += 1;
                tracing::warn!(mirror = %self.config.name, %error, "copying a range again");
            }
            LaneReport::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// A range is on the target as of `at`: what waited for it joins the batch, which also makes
    /// it durable, so that range and position always agree.
    fn range_done(
        &mut self,
        collection: CollectionIndex,
        number: u32,
        at: ClusterTime,
        (documents, bytes): (u64, u64),
    ) -> Result<()> {
        let refetch = !self.plan.abilities.internal_delta;
        let Some(ranges) = self.plan.ranges.get_mut(&collection) else {
            return Ok(());
        };
        let Some(range) = ranges.numbered(number) else {
            return Ok(());
        };
        range.documents = documents;
        range.bytes = bytes;
        range.state = super::state::RangeState::Done(at);
        let waiting = std::mem::take(&mut range.waiting);
        ranges.note_progress();
        let freed: usize = waiting.iter().map(|(_, raw)| raw.len()).sum();
        self.waiting_bytes = self.waiting_bytes.saturating_sub(freed);
        let mut batch = released(waiting, at, collection, refetch).map_err(malformed)?;
        batch.ranges_done.push(RangeDone {
            collection,
            number,
            update: StateStore::range_done(at, documents, bytes),
        });
        self.gather.absorb(batch);
        Ok(())
    }

    /// Builds the indexes of collections whose ranges are all durable.
    fn finish_copied_collections(&mut self) {
        let pending: HashSet<CollectionIndex> = self
            .gather
            .ranges_done
            .iter()
            .map(|range| range.collection)
            .collect();
        let copied: Vec<CollectionIndex> = self
            .plan
            .ranges
            .iter()
            .filter(|(collection, ranges)| {
                ranges.is_done()
                    && !pending.contains(collection)
                    && !self.building.contains(collection)
            })
            .map(|(collection, _)| *collection)
            .collect();
        for collection in copied {
            self.building.insert(collection);
            let entry = self.plan.catalog.get(collection).entry.clone();
            let target: Commands = self.plan.target.clone();
            self.builds.spawn(async move {
                let problems =
                    create_indexes(&target, &entry.name, &entry.pending_indexes, entry.collated)
                        .await?;
                Ok((collection, problems))
            });
        }
        if self.plan.ranges.is_empty() {
            self.update_phase();
        }
    }

    async fn built(
        &mut self,
        built: Result<Result<(CollectionIndex, Vec<IndexProblem>)>, tokio::task::JoinError>,
    ) -> Result<()> {
        let Ok(built) = built else {
            return Ok(());
        };
        let (collection, problems) = built?;
        self.building.remove(&collection);
        self.note_index_problems(collection, problems);
        self.try_complete(collection).await
    }

    /// A collection is copied and its indexes are built: its ranges are history once the position
    /// has passed the last of their times.
    async fn try_complete(&mut self, collection: CollectionIndex) -> Result<()> {
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        entry.copied = true;
        let entry = entry.clone();
        self.plan.state.put_collection(&entry).await?;
        self.drop_passed_ranges().await
    }

    /// Forgets ranges that no event can fall before any more.
    pub(super) async fn drop_passed_ranges(&mut self) -> Result<()> {
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
            let set = doc! {"copy": encode_figures(&self.plan.figures)};
            self.plan.state.update(self.plan.epoch, set).await?;
        }
        if self.plan.ranges.is_empty() && self.plan.figures.completed_at.is_none() {
            self.plan.figures.completed_at = Some(DateTime::now());
            let set = doc! {"copy": encode_figures(&self.plan.figures)};
            self.plan.state.update(self.plan.epoch, set).await?;
        }
        Ok(())
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

    pub(super) fn note_index_problems(
        &mut self,
        collection: CollectionIndex,
        problems: Vec<IndexProblem>,
    ) {
        for problem in problems {
            self.index_problems
                .insert((collection, problem.index), problem.reason);
        }
    }

    pub(super) fn forget_index_problem(&mut self, collection: CollectionIndex, index: &str) {
        self.index_problems.remove(&(collection, index.to_owned()));
    }

    /// Stops the lanes of one collection, or all, and waits until nothing of theirs is under way.
    pub(super) async fn stop_lanes(&mut self, collection: Option<CollectionIndex>) {
        let concerned =
            |lane: &(CollectionIndex, u32)| collection.is_none_or(|only| lane.0 == only);
        for (lane, stop) in &self.lane_stops {
            if concerned(lane) {
                stop.cancel();
            }
        }
        while self.lane_stops.keys().any(concerned) {
            tokio::select! {
                report = self.lane_reports.1.recv() => {
                    let Some(report) = report else { break };
                    match report {
                        LaneReport::Stopped { collection, number }
                        | LaneReport::Gone { collection, number }
                        | LaneReport::Done { collection, number, .. }
                            if concerned(&(collection, number)) =>
                        {
                            self.lane_stops.remove(&(collection, number));
                        }
                        LaneReport::Failed(_) => break,
                        // Of another collection: as usual. An error would show again.
                        other => drop(self.lane_reported(other)),
                    }
                }
                Some(joined) = self.lanes.join_next() => match joined {
                    Ok(session) => self.lane_sessions.push(session),
                    Err(_) => break,
                }
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
    }

    fn stream_reported(&mut self, report: Option<StreamReport>) -> Result<()> {
        match report {
            Some(StreamReport::Reply(reply)) => {
                self.progress.source.set(true, "");
                self.clear_problem();
                self.reply = Some((reply, 0));
            }
            Some(StreamReport::Lost(error)) => {
                let message = error.to_string();
                tracing::warn!(mirror = %self.config.name, "connection to the source lost: {message}");
                self.progress.source.set(false, message.clone());
                self.progress.totals.retries += 1;
                self.progress.problem = Some(super::progress::Problem {
                    reason: error.reason(),
                    message,
                    needs_human: false,
                    since: SystemTime::now(),
                });
            }
            Some(StreamReport::Regained) => {
                tracing::info!(mirror = %self.config.name, "connection to the source regained");
                self.progress.source.set(true, "");
                self.clear_problem();
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

    fn clear_problem(&mut self) {
        self.progress.problem = None;
    }

    fn sampled(&mut self, sample: Sample) {
        self.monitor.note(sample);
        self.update_phase();
        self.progress.measured_at = Some(SystemTime::now());
    }

    /// Writes what is gathered; the last thing before the mirror ends.
    async fn finish(&mut self) -> Result<()> {
        if self.in_flight.is_some() {
            let outcome = self.writer.outcomes.recv().await;
            self.written(outcome)?;
        }
        if self.open.is_none() && (!self.gather.is_empty() || self.position != self.committed) {
            self.hand_over().await;
            let outcome = self.writer.outcomes.recv().await;
            self.written(outcome)?;
        }
        self.publish_now();
        Ok(())
    }

    pub(super) fn gathered_is_empty(&self) -> bool {
        self.gather.is_empty() && self.in_flight.is_none()
    }

    /// The reply at a barrier, its event's place, and the owner itself.
    pub(super) fn take_reply(&mut self) -> Option<(Reply, usize)> {
        self.reply.take()
    }

    /// The barrier is passed: the next event follows.
    pub(super) fn pass_barrier(&mut self, reply: Reply, place: usize, position: Position) {
        self.paused = None;
        self.position = position;
        self.open = None;
        self.reply = Some((reply, place + 1));
        self.progress.totals.commands += 1;
        self.progress.totals.events_read += 1;
        // A command is cheap to repeat, but not for ever.
        self.checkpointed = Instant::now()
            .checked_sub(IDLE_CHECKPOINT)
            .unwrap_or_else(Instant::now);
    }

    pub(super) fn mirror_name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn config(&self) -> &MirrorConfig {
        self.config
    }

    /// Waits for the index builds of one collection.
    pub(super) async fn await_build(&mut self, collection: CollectionIndex) -> Result<()> {
        while self.building.contains(&collection) {
            let Some(built) = self.builds.join_next().await else {
                self.building.remove(&collection);
                break;
            };
            self.built(built).await?;
        }
        Ok(())
    }

    fn share(&self, eighths: usize) -> usize {
        self.config.limits.memory_bytes / 8 * eighths
    }

    fn publish_if_due(&mut self) {
        if self.published.elapsed() >= PUBLISH {
            self.publish_now();
        }
        if self.logged.0.elapsed() >= LOG {
            self.log();
        }
    }

    fn publish_now(&mut self) {
        self.published = Instant::now();
        self.progress.initial_sync = Some(self.initial_sync());
        self.progress.unsupported = self.unsupported();
        self.progress.target.set(true, "");
        self.progress.lag = self.monitor.lag();
        self.publish.send_replace(self.progress.clone());
    }

    fn initial_sync(&self) -> InitialSync {
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

    fn unsupported(&self) -> Vec<Unsupported> {
        let mut all: Vec<Unsupported> = self.plan.catalog.left_out().cloned().collect();
        for ((collection, index), reason) in &self.index_problems {
            let collection = self.plan.catalog.get(*collection);
            if collection.alive {
                all.push(Unsupported {
                    name: format!("{} (index {index})", collection.entry.name),
                    reason: reason.clone(),
                });
            }
        }
        all.sort();
        all
    }

    /// One line about what was synced since the last one, if anything was.
    fn log(&mut self) {
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

pub(super) fn malformed(what: &str) -> Error {
    Error::Reply {
        side: Side::Source,
        doing: "read a change event",
        what: what.to_owned(),
    }
}
