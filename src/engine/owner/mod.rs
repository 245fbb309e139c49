//! The one task that owns a running mirror: what it knows, and what happens next.
//!
//! Other tasks are thin: the stream reader, the writer and the copy lanes do as they are told and
//! report. All decisions are here and in the pure parts it calls, so there are no
//! locks and no orders of events to think about but one.

pub mod asking;
mod barrier;
mod batch_size;
mod batches;
mod copying;
mod indexes;
mod lag;
mod mending;
mod outward;
mod quarantine;
mod verifying;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bson::{Bson, Document};
use mongodb::ClientSession;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::apply::entity::CollectionIndex;
use super::apply::gather::{Batch, Counts};
use super::apply::indexes::Tended;
use super::apply::lanes::Lanes;
use super::apply::writer::{Part, Prepared, Writer, Written};
use super::config::MirrorConfig;
use super::connection::shared::Connections;
use super::copy::lane::Report as LaneReport;
use super::copy::pace::Pace;
use super::error::{Error, Result, Side};
use super::headroom::History;
use super::plan::Planned;
use super::position::{Ahead, ClusterTime, Position};
use super::progress::{ApplyForm, Progress, VerificationResult, VerificationRun};
use super::quarantine::Quarantine;
use super::request::{Refusal, Request};
use super::stream::event::{Transaction, Uuid};
use super::stream::reader::{self, Reply, Report as StreamReport};
use super::writes::Write;
use asking::{Ask, AtRest, Repairing};
use batch_size::BatchSize;
use indexes::Again;
use lag::Monitor;

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

/// Longest wait for what is in hand when a run ends. A target that does not take it by then gets it
/// again from the checkpoint.
const FINISH: Duration = Duration::from_secs(10);

/// Longest wait for the target when a run ends: nothing depends on it.
const LET_GO: Duration = Duration::from_secs(2);

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
    /// Somebody asked the mirror to stand still for an instant.
    Hold,
}

/// What one run of a process hands on to the next.
#[derive(Default, Debug)]
pub struct Kept {
    /// How large a batch may be.
    batch_size: BatchSize,
    /// What the target refused before was tried again: somebody may have started the process for
    /// that.
    has_retried: bool,
    /// Capped collections of which something was refused that a copy may well bring, and how often
    /// they were copied anew for that.
    copied_anew: HashMap<Uuid, u32>,
    /// Somebody asked for both sides to be compared, and that is not over yet.
    is_resyncing: bool,
}

impl Kept {
    /// Both sides are compared because somebody asked for it.
    pub fn resyncs(&mut self) {
        self.is_resyncing = true;
    }

    fn resynced(&mut self) {
        self.is_resyncing = false;
    }

    /// The target did not manage a batch.
    pub fn batch_failed(&mut self) {
        self.batch_size.failed();
    }
}

/// A running mirror.
pub struct Owner<'a> {
    config: &'a MirrorConfig,
    publish: &'a watch::Sender<Progress>,
    plan: Planned,
    progress: Progress,
    published: Instant,
    logged: (Instant, Progress),

    /// The batch being gathered, and where the mirror stands after it.
    gather: Batch,
    kept: &'a mut Kept,
    position: Position,
    /// The source transaction that the batch ends in the middle of.
    open: Option<Transaction>,
    /// Pieces of that transaction are already with the writer.
    in_pieces: bool,
    /// The target holds a part of a source transaction: one with collection commands in it cannot
    /// become visible as a whole.
    is_torn: bool,
    /// A reply that is not yet processed to its end, and how far it is.
    reply: Option<(Reply, usize)>,
    paused: Option<Pause>,
    waiting_bytes: usize,
    /// What of the target is ahead of the position, as far as is known.
    ahead: Ahead,

    /// Where the target stands for certain.
    committed: Position,
    checkpointed: Instant,
    writer: WriterTask,
    in_flight: Option<InFlight>,

    lanes: JoinSet<ClientSession>,
    lane_reports: (mpsc::Sender<LaneReport>, mpsc::Receiver<LaneReport>),
    lane_sessions: Vec<ClientSession>,
    pace: Pace,
    lane_stops: HashMap<(CollectionIndex, u32), CancellationToken>,
    builds: JoinSet<Result<(CollectionIndex, Vec<Tended>)>>,
    building: HashSet<CollectionIndex>,
    again: HashMap<CollectionIndex, Again>,

    monitor: Monitor,
    /// Nobody waits for the source's time to go on.
    may_be_quiet: watch::Sender<bool>,
    /// What was left of the oplog, counted from `started`.
    headroom: History,
    started: Instant,
    caught_up: bool,
    /// Of the source on its collections, carried out so far.
    commands: u64,

    /// What the target refuses.
    quarantine: Quarantine,

    /// What other tasks ask for: one thing is under way at a time.
    asks: (mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
    hold: Option<AtRest>,
    repairing: Option<Repairing>,
    to_repair: Option<Repairing>,

    /// What users ask for.
    requests: &'a mut mpsc::Receiver<Request>,
    syncs: JoinSet<()>,
    verifications: JoinSet<Result<VerificationResult>>,
    verifying: Option<watch::Receiver<VerificationRun>>,
    /// Who asked for the next verification, and for the one under way.
    verify_waiting: Vec<verifying::Waiting>,
    verify_answers: Vec<verifying::Waiting>,
    verify_failed: Option<Instant>,
    /// Something was found on the target that nobody but a stranger can have written.
    suspicious: bool,
}

/// How a run ended in order.
pub enum End {
    /// The mirror was asked to stop.
    Stopped,
    /// Somebody asked for both sides to be compared and made equal.
    Resync(oneshot::Sender<Result<(), Refusal>>),
}

/// A batch on its way.
struct InFlight {
    part: Part,
    is_torn: bool,
    position: Position,
    counts: Counts,
    collections: Vec<CollectionIndex>,
    /// Who asked for documents of it to be put right.
    repairing: Option<Repairing>,
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
                let outcome = writer.write(prepared).await;
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
        connections: &Connections,
        mut plan: Planned,
        publish: &'a watch::Sender<Progress>,
        requests: &'a mut mpsc::Receiver<Request>,
        kept: &'a mut Kept,
    ) -> Self {
        let mut sessions = std::mem::take(&mut plan.sessions);
        let writer = Writer {
            target: plan.target.clone(),
            state: plan.state.clone(),
            source: plan.source.clone(),
            epoch: plan.epoch,
            abilities: plan.abilities,
            session: sessions.pop(),
            unfinished: None,
            outside: plan.outside.clone(),
            returned: Vec::new(),
            lane: None,
            lanes: Lanes::default(),
        };
        let lanes = sessions.split_off(sessions.len().min(config.limits.copy_lanes));
        let writer = writer.in_lanes(lanes, config.limits.lanes_from);
        let mut progress = publish.borrow().clone();
        progress.apply_form = Some(if plan.abilities.internal_delta {
            ApplyForm::InternalDelta
        } else {
            ApplyForm::Refetch
        });
        progress.verification.last = plan.verified.take();
        progress.verification.running = None;
        progress.position = Some(plan.position.time);
        // A batch of an earlier run may have arrived since.
        progress.target_time = None;
        let now = Instant::now();
        let catalog = &plan.catalog;
        let least = |uuid: Uuid| {
            let goes_on = catalog.find(&uuid).filter(|_| kept.has_retried);
            goes_on.map_or(Duration::ZERO, |it| match kept.copied_anew.get(&uuid) {
                Some(times) => quarantine::soon(*times),
                None => quarantine::least_pause(catalog.get(it).entry.way()),
            })
        };
        let mut quarantine = Quarantine::new(
            std::mem::take(&mut plan.quarantine),
            config.limits.quarantine,
            least,
            now,
            SystemTime::now(),
        );
        progress.quarantine = quarantine.changed().unwrap_or_default();
        Self {
            config,
            publish,
            position: plan.position.clone(),
            committed: plan.position.clone(),
            monitor: Monitor::new(connections, whole(plan.position.time, plan.in_command)),
            published: now,
            logged: (now, progress.clone()),
            progress,
            gather: Batch::default(),
            kept,
            // A position beside a command may be within a transaction.
            open: plan.in_command.then(Transaction::unknown),
            in_pieces: false,
            is_torn: plan.in_command,
            reply: None,
            paused: None,
            waiting_bytes: 0,
            ahead: plan.ahead,
            checkpointed: now,
            writer: WriterTask::start(writer),
            in_flight: None,
            lanes: JoinSet::new(),
            lane_reports: mpsc::channel(64),
            lane_sessions: sessions,
            pace: Pace::new(
                config.limits.copy_bytes_per_second,
                config
                    .limits
                    .copy_writers
                    .unwrap_or(config.limits.copy_lanes),
            ),
            lane_stops: HashMap::new(),
            builds: JoinSet::new(),
            building: HashSet::new(),
            again: HashMap::new(),
            may_be_quiet: watch::Sender::new(false),
            headroom: History::default(),
            started: now,
            caught_up: false,
            commands: 0,
            quarantine,
            asks: mpsc::channel(1),
            hold: None,
            repairing: None,
            to_repair: None,
            requests,
            syncs: JoinSet::new(),
            verifications: JoinSet::new(),
            verifying: None,
            verify_waiting: Vec::new(),
            verify_answers: Vec::new(),
            verify_failed: None,
            suspicious: plan.has_strangers,
            plan,
        }
    }

    /// Runs until asked to stop, then finishes the batch in hand.
    ///
    /// # Errors
    /// What made it impossible to go on; the checkpoint is where to start over from.
    pub async fn run(mut self, stop: &CancellationToken) -> Result<End> {
        let (reports, mut stream) = mpsc::channel(4);
        let budget = reader::budget(self.share(EIGHTHS.0));
        let reading = tokio::spawn(reader::read(
            self.plan.source.clone(),
            self.plan.position.clone(),
            self.plan.flags,
            budget,
            reports,
            self.may_be_quiet.subscribe(),
        ));
        let outcome = self.attend(stop, &mut stream).await;
        drop(stream);
        drop(self.plan.showing.take());
        self.builds.abort_all();
        self.verifications.abort_all();
        self.syncs.abort_all();
        let settled = tokio::time::timeout(FINISH, self.settle(outcome.is_ok())).await;
        let settled = settled.unwrap_or(Err(Error::Timeout {
            side: Side::Target,
            doing: "finish what is in hand",
            after: FINISH,
        }));
        let finished = match outcome {
            Ok(End::Stopped) => settled.map(|()| End::Stopped),
            // The checkpoint is where to begin anew from, or to start over.
            outcome => outcome,
        };
        let in_order = matches!(finished, Ok(End::Stopped));
        if tokio::time::timeout(LET_GO, self.let_go(in_order))
            .await
            .is_err()
        {
            tracing::debug!("the target is not let go in time");
        }
        self.lanes.abort_all();
        self.writer.task.abort();
        reading.abort();
        if self.in_flight.is_some() {
            // What of it is there, nobody knows.
            self.publish
                .send_modify(|progress| progress.consistent_at = None);
        }
        finished
    }

    /// Ends what is still open in our sessions, as long as they are ours: the driver hands them on to
    /// other mirrors of this process. What cannot be ended is left to the next run, as after a kill.
    /// And, if this one ends `in_order`, whoever comes next need not wait to see whether it works.
    async fn let_go(&self, in_order: bool) {
        let mut set = Document::new();
        if self.plan.state.end_sessions(self.plan.in_use.ids()).await {
            set.insert("sessions", Bson::Array(Vec::new()));
        }
        if in_order {
            set.insert("released", true);
        }
        if set.is_empty() {
            return;
        }
        let noted = self
            .plan
            .state
            .update(Write::NoteSessions, self.plan.epoch, set);
        if let Err(error) = noted.await {
            tracing::debug!(%error, "the target is not let go");
        }
    }

    /// The loop: one thing after the other.
    async fn attend(
        &mut self,
        stop: &CancellationToken,
        stream: &mut mpsc::Receiver<StreamReport>,
    ) -> Result<End> {
        let mut tick = tokio::time::interval(PUBLISH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.finish_copied_collections();
        self.drop_passed_ranges().await?;
        self.update_phase();
        loop {
            self.start_lanes();
            if !self.plan.ranges.is_empty() {
                self.drop_passed_ranges().await?;
            }
            // A command of the stream can take long; what is cut off here is met again.
            tokio::select! {
                () = stop.cancelled() => return Ok(End::Stopped),
                advanced = self.advance() => advanced?,
            }
            self.verify_if_due();
            let in_pieces = self.is_in_pieces();
            let can_ask = self.can_be_asked();
            let can_request = self.has_room_for_requests();
            tokio::select! {
                () = stop.cancelled() => return Ok(End::Stopped),
                outcome = self.writer.outcomes.recv(), if self.in_flight.is_some() => {
                    self.written(outcome)?;
                }
                // What a lane has written since the transaction in pieces began is not seen by it.
                Some(report) = self.lane_reports.1.recv(), if !in_pieces => {
                    self.lane_reported(report)?;
                }
                Some(joined) = self.lanes.join_next() => {
                    let session = joined.map_err(|panic| Error::Reply {
                        side: Side::Target,
                        doing: "copy a range",
                        what: panic.to_string(),
                    })?;
                    self.lane_sessions.push(session);
                }
                Some(built) = self.builds.join_next(), if !in_pieces => {
                    self.built(built).await?;
                }
                report = stream.recv(), if self.reply.is_none() => self.stream_reported(report)?,
                Some(ask) = self.asks.1.recv(), if can_ask => self.asked(ask),
                Some(request) = self.requests.recv(), if can_request => match request {
                    // It is under way: whoever asks meanwhile gets what they want.
                    Request::Resync { done } if self.kept.is_resyncing && !self.is_copied() => {
                        let _ = done.send(Ok(()));
                    }
                    Request::Resync { done } => return Ok(End::Resync(done)),
                    request => self.requested(request),
                },
                Some(verified) = self.verifications.join_next() => self.verified(verified).await?,
                Some(_) = self.syncs.join_next() => {}
                measured = self.monitor.next() => self.measured(measured),
                _ = tick.tick() => {
                    if !in_pieces {
                        self.finish_copied_collections();
                        self.tend_indexes();
                    }
                    self.retry_quarantined();
                }
            }
            self.publish_if_due();
        }
    }

    /// A transaction of the target is open, or being committed, that began some pieces ago: it
    /// does not see what others write since, and conflicts with it.
    fn is_in_pieces(&self) -> bool {
        let is_last = |in_flight: &InFlight| in_flight.part == Part::Last;
        self.in_pieces || self.in_flight.as_ref().is_some_and(is_last)
    }

    /// Everything that can be done without waiting for a report.
    async fn advance(&mut self) -> Result<()> {
        loop {
            self.process()?;
            self.hand_over_if_possible();
            let idle = self.in_flight.is_none() && self.gather.is_empty();
            match self.paused {
                Some(Pause::Barrier) if idle => self.barrier().await?,
                Some(Pause::Hold) if idle => {
                    // What was written last may have been read too late.
                    if !self.ahead.is_any() {
                        self.stand_still().await?;
                    }
                    self.paused = None;
                }
                None if idle && self.is_between_changes() => self.stand_still().await?,
                // Behind a transaction in pieces nothing goes on before its last piece does.
                Some(Pause::Full) if self.in_pieces && self.open.is_none() => return Ok(()),
                // Ranges that are done stay in it until the last piece of a large transaction.
                Some(Pause::Full) if !self.gather.has_documents() => self.paused = None,
                Some(Pause::Waiting) if self.waiting_bytes < self.share(EIGHTHS.2) => {
                    self.paused = None;
                }
                // The target's transaction would not live as long as a range takes: what is being
                // copied begins anew when it is over, and sees all of it then.
                Some(Pause::Waiting) if self.in_pieces => self.stop_lanes(None).await?,
                _ => return Ok(()),
            }
        }
    }

    /// Ends what is under way; with `finishes`, in order.
    async fn settle(&mut self, finishes: bool) -> Result<()> {
        // It may have been cut off in the middle of one, which would hold up the next process.
        self.plan.state.give_up_note().await;
        // Leave nothing running that still writes: the next run must find a quiet target.
        let stopped = self.stop_lanes(None).await;
        match finishes {
            true => self.finish().await.and(stopped),
            false => Ok(()),
        }
    }

    /// Writes what is gathered; the last thing before the mirror ends.
    async fn finish(&mut self) -> Result<()> {
        if self.in_flight.is_some() {
            let outcome = self.writer.outcomes.recv().await;
            self.written(outcome)?;
        }
        if self.open.is_none()
            && !self.in_pieces
            && (!self.gather.is_empty() || self.position != self.committed)
        {
            self.hand_over(Part::Whole);
            let outcome = self.writer.outcomes.recv().await;
            self.written(outcome)?;
        }
        self.publish_now();
        Ok(())
    }

    /// The barrier is passed: the next event follows.
    pub(super) fn pass_barrier(
        &mut self,
        reply: Reply,
        place: usize,
        position: Position,
        transaction: Option<Transaction>,
    ) {
        self.paused = None;
        self.plan.in_command = false;
        self.position = position;
        self.is_torn = transaction.is_some();
        self.open = transaction;
        self.reply = Some((reply, place + 1));
        self.progress.totals.commands += 1;
        self.progress.totals.events_read += 1;
        // A command is cheap to repeat, but not for ever.
        self.checkpointed = Instant::now()
            .checked_sub(IDLE_CHECKPOINT)
            .unwrap_or_else(Instant::now);
    }

    fn share(&self, eighths: usize) -> usize {
        self.config.limits.memory_bytes / 8 * eighths
    }
}

/// Up to when the target holds everything, at this position: within a transaction not all of its
/// own time.
fn whole(position: ClusterTime, is_torn: bool) -> ClusterTime {
    if is_torn {
        position.just_before()
    } else {
        position
    }
}

pub(super) fn malformed(what: &str) -> Error {
    Error::Reply {
        side: Side::Source,
        doing: "read a change event",
        what: what.to_owned(),
    }
}
