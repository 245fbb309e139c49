//! Reads the change stream ahead of the owner task, and opens it again for ever.
//!
//! The driver's own change stream can lose events when it resumes (`facts` rust, finding 1), so
//! this is a plain aggregation whose replies are passed on raw, and our own loop around it.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use futures::StreamExt;
use mongodb::Database;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::engine::command::{Commands, within};
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::position::{ClusterTime, Position, ResumeToken, StartPoint};
use crate::engine::stream::slim::{Steps, Unreadable, View};
use crate::reason::Reason;

/// How long the server holds an empty reply back. It also bounds how late the end of a source
/// transaction is seen on an idle source: only the next reply tells that it is complete.
const AWAIT: Duration = Duration::from_millis(100);

/// The same, for a stream that has been quiet: what happens is told at once all the same, and
/// a thousand quiet streams ask a thousand times a second, not ten thousand.
const AWAIT_QUIET: Duration = Duration::from_secs(1);

/// A stream without events for so long is quiet.
const QUIET: Duration = Duration::from_secs(2);

/// Longest wait for a reply. Behind a resume the server may scan a long stretch of the oplog
/// first (0.12 s for 60 000 entries, `facts` mongodb 13), so this is generous; and it is doubled as
/// long as a server answers other questions meanwhile, up to a day.
const REPLY_LIMIT: (Duration, Duration) =
    (Duration::from_secs(120), Duration::from_secs(24 * 3600));

/// Events in one reply; the server's own bound is 16 MiB.
const BATCH: u32 = 2000;

/// A server that does not answer the smallest question within this time is not merely refusing
/// to show an event.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Replies are accounted in units of this many bytes.
const UNIT: usize = 1024;

/// First and longest pause before the stream is opened again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// One reply of the stream.
pub struct Reply {
    batch: RawBatch,
    /// Everything up to here is in this reply or was in an earlier one.
    pub resume: ResumeToken,
    /// The token's cluster time.
    pub time: ClusterTime,
    /// What the server knew to be committed before it was asked for this reply: if this holds no
    /// events, there are none up to then. Zero in the first reply of a stream that was opened
    /// again, perhaps by a new primary that does not know yet how much is committed.
    pub committed: ClusterTime,
    /// How long the server may keep from us that nothing happens, beyond the ordinary: what does
    /// happen it tells at once. More than zero on a quiet stream.
    pub patience: Duration,
    /// Gives the bytes back when the reply is dropped.
    _bytes: OwnedSemaphorePermit,
}

impl Reply {
    /// The events, raw.
    pub fn events(&self) -> impl Iterator<Item = &bson::RawDocument> {
        self.batch
            .doc_slices()
            .ok()
            .into_iter()
            .flat_map(|events| events.into_iter().flatten())
            .filter_map(|event| event.as_document())
    }
}

/// What the reader tells the owner task.
pub enum Report {
    /// Events, or their absence.
    Reply(Reply),
    /// The stream broke and is being opened again. Once for each reason that follows another.
    Lost(Error),
    /// It is open again.
    Regained,
    /// It cannot be opened again; the reader has ended.
    Ended(Error),
}

/// What the stream is asked to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags {
    /// Raw deltas, system collections and migrated inserts: needed for exact deltas, for
    /// time-series collections and for `convertToCapped` (`facts` mongodb 1.1, 2.2, 6.9). Internal
    /// server interface.
    pub internal: bool,
}

/// Reads until the receiver is dropped or the stream cannot go on. As long as it `may_be_quiet`,
/// nobody waits for a reply without events.
pub async fn read(
    source: Database,
    from: Position,
    flags: Flags,
    bytes: Arc<Semaphore>,
    reports: mpsc::Sender<Report>,
    may_be_quiet: watch::Receiver<bool>,
) {
    let mut reader = Reader {
        source,
        position: from,
        flags,
        budget: bytes.available_permits(),
        bytes,
        reports,
        steps: Steps::new(BATCH),
        limit: REPLY_LIMIT.0,
        may_be_quiet,
        is_quiet: false,
        last_event: Instant::now(),
    };
    let mut pause = BACKOFF.0;
    let mut lost = None;
    loop {
        let error = match reader.read_on(&mut pause, &mut lost).await {
            Ok(Read::Enough) => return,
            Ok(Read::InAnotherForm) => continue,
            Err(error) => error,
        };
        let ended = match error.code() {
            _ if reader.source.selection_criteria().is_some()
                && (is_lost(&error) || error.is_refused_token()) =>
            {
                // Other members know less or more than this one; the primary decides.
                let name = reader.source.name().to_owned();
                reader.source = reader.source.client().database(&name);
                continue;
            }
            Some(code::HISTORY_LOST | code::CAPPED_POSITION_LOST) => Some(Error::HistoryLost {
                position: reader.position.time,
            }),
            _ if error.is_refused_token() => Some(Error::CheckpointDamaged(format!(
                "the source does not know the position's token: {error}"
            ))),
            Some(code::TOO_LARGE) => match reader.steps.too_large() {
                Ok(()) => continue,
                Err(Unreadable) => Some(reader.too_large()),
            },
            None if matches!(error, Error::Timeout { .. }) && reader.source_answers().await => {
                reader.limit = (reader.limit * 2).min(REPLY_LIMIT.1);
                None
            }
            None if error.is_cut() && reader.source_answers().await => {
                match reader.steps.closed() {
                    Ok(true) => continue,
                    Ok(false) => None,
                    Err(Unreadable) => Some(reader.too_large()),
                }
            }
            _ => None,
        };
        if let Some(error) = ended {
            let _ = reader.reports.send(Report::Ended(error)).await;
            return;
        }
        // What ends a connection often says less than what keeps the next one from being opened.
        if lost != Some(error.reason()) {
            lost = Some(error.reason());
            if reader.reports.send(Report::Lost(error)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = reader.reports.closed() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(code::HISTORY_LOST | code::CAPPED_POSITION_LOST)
    )
}

/// Opens the stream once, to find out whether the source lets us and shows the internal flags.
///
/// # Errors
/// What the exchange met, other than an unknown flag.
pub async fn probe_flags(source: &Database) -> Result<Flags> {
    let internal = Flags { internal: true };
    let form = Form {
        view: View::Whole,
        silence: AWAIT,
    };
    let limit = REPLY_LIMIT.0;
    match open(source, None, internal, form, limit).await {
        Ok(_) => Ok(internal),
        Err(error) if error.code() == Some(code::UNKNOWN_FIELD) => {
            let plain = Flags { internal: false };
            open(source, None, plain, form, limit).await?;
            Ok(plain)
        }
        Err(error) => Err(error),
    }
}

/// In which form a cursor shows the stream.
#[derive(Clone, Copy)]
struct Form {
    view: View,
    silence: Duration,
}

async fn open(
    source: &Database,
    from: Option<&StartPoint>,
    flags: Flags,
    form: Form,
    limit: Duration,
) -> Result<RawBatchCursor> {
    let mut stage = doc! {"showExpandedEvents": true};
    if flags.internal {
        stage.insert("showRawUpdateDescription", true);
        stage.insert("showMigrationEvents", true);
        stage.insert("showSystemEvents", true);
    }
    match from {
        Some(StartPoint::At(time)) => {
            stage.insert("startAtOperationTime", bson::Timestamp::from(*time));
        }
        Some(StartPoint::After(token)) => {
            // Invariant: the token came from a server, so it is a document the driver can read.
            let token = Document::try_from(token.as_raw()).unwrap_or_default();
            stage.insert("startAfter", token);
        }
        None => {}
    }
    let mut stages = vec![doc! {"$changeStream": stage}];
    stages.extend(form.view.stage());
    let open = source
        .aggregate(stages)
        .max_await_time(form.silence)
        .batch_size(if form.view == View::Whole { BATCH } else { 1 })
        .batch();
    within(Side::Source, "open the change stream", limit, open).await
}

struct Reader {
    source: Database,
    position: Position,
    flags: Flags,
    budget: usize,
    bytes: Arc<Semaphore>,
    reports: mpsc::Sender<Report>,
    steps: Steps,
    limit: Duration,
    may_be_quiet: watch::Receiver<bool>,
    /// The server holds empty replies back for longer.
    is_quiet: bool,
    last_event: Instant,
}

/// Why reading ended without an error.
enum Read {
    /// Nobody listens any more.
    Enough,
    /// It goes on in another form.
    InAnotherForm,
}

impl Reader {
    fn too_large(&self) -> Error {
        Error::EventTooLarge {
            position: self.position.time,
        }
    }

    async fn source_answers(&self) -> bool {
        let commands = Commands {
            side: Side::Source,
            db: self.source.clone(),
        };
        let answer = commands.read("hear from it", doc! {"ping": 1});
        let in_time = tokio::time::timeout(PING_LIMIT, answer).await;
        in_time.is_ok_and(|answer| answer.is_ok())
    }

    /// Reads until something breaks.
    async fn read_on(&mut self, pause: &mut Duration, lost: &mut Option<Reason>) -> Result<Read> {
        let view = self.steps.view();
        let silence = if self.is_quiet { AWAIT_QUIET } else { AWAIT };
        let form = Form { view, silence };
        let start = Some(&self.position.start);
        let mut cursor = open(&self.source, start, self.flags, form, self.limit).await?;
        let mut committed = ClusterTime::ZERO;
        loop {
            let doing = "read the change stream";
            let next = async { cursor.next().await.transpose() };
            let next = within(Side::Source, doing, self.limit, next);
            let Some(batch) = next.await? else {
                // An invalidate closed the cursor; its token was the last one.
                return Err(Error::Reply {
                    side: Side::Source,
                    doing,
                    what: "the stream was closed".into(),
                });
            };
            *pause = BACKOFF.0;
            self.limit = REPLY_LIMIT.0;
            if lost.take().is_some() && self.reports.send(Report::Regained).await.is_err() {
                return Ok(Read::Enough);
            }
            let known = std::mem::replace(&mut committed, operation_time(&batch));
            let Some(mut reply) = self.account(batch, known).await? else {
                return Ok(Read::Enough);
            };
            self.position = Position {
                time: reply.time,
                start: StartPoint::After(reply.resume.clone()),
            };
            let is_empty = reply.events().next().is_none();
            let events = match view {
                View::Whole => 1,
                _ => u32::try_from(reply.events().count()).unwrap_or(u32::MAX),
            };
            let turns = self.turns(is_empty);
            if self.is_quiet {
                reply.patience = AWAIT_QUIET;
            }
            if self.reports.send(Report::Reply(reply)).await.is_err() {
                return Ok(Read::Enough);
            }
            if matches!(view, View::Slim | View::Bare) && events > 0 {
                tracing::debug!(position = %self.position.time, ?view, "stepped over an event that is too large");
            }
            if self.steps.delivered(events) || turns {
                return Ok(Read::InAnotherForm);
            }
        }
    }

    /// Whether the stream becomes quiet behind a reply, or is it no longer.
    fn turns(&mut self, is_empty: bool) -> bool {
        if !is_empty {
            self.last_event = Instant::now();
        }
        let is_quiet = self.last_event.elapsed() > QUIET && *self.may_be_quiet.borrow();
        std::mem::replace(&mut self.is_quiet, is_quiet) != is_quiet
    }

    /// Waits until the reply fits into the budget; `None` when nobody listens any more.
    async fn account(&self, batch: RawBatch, committed: ClusterTime) -> Result<Option<Reply>> {
        let reply = batch.as_raw_document();
        let malformed = |what: &str| Error::Reply {
            side: Side::Source,
            doing: "read the change stream",
            what: what.to_owned(),
        };
        let resume = reply
            .get_document("cursor")
            .and_then(|cursor| cursor.get_document("postBatchResumeToken"))
            .map(ResumeToken::from_raw)
            .map_err(|_| malformed("it holds no postBatchResumeToken"))?;
        let time = resume
            .cluster_time()
            .ok_or_else(|| malformed("its resume token holds no cluster time"))?;
        // A reply larger than the whole budget must still pass, alone.
        let units = (reply.as_bytes().len() / UNIT + 1).min(self.budget);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let permit = tokio::select! {
            () = self.reports.closed() => return Ok(None),
            permit = Arc::clone(&self.bytes).acquire_many_owned(units) => permit,
        };
        Ok(permit.ok().map(|bytes| Reply {
            batch,
            resume,
            time,
            committed,
            patience: Duration::ZERO,
            _bytes: bytes,
        }))
    }
}

/// What a majority had when the server answered. Every member of a replica set says it.
fn operation_time(batch: &RawBatch) -> ClusterTime {
    let time = batch.as_raw_document().get_timestamp("operationTime");
    time.map_or(ClusterTime::ZERO, ClusterTime::from)
}

/// A budget for replies in flight.
pub fn budget(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((bytes / UNIT).max(1)))
}
