//! Copies one range: raw batches of the source straight into raw inserts.

use std::time::Duration;

use bson::{Document, RawDocument, RawDocumentBuf};
use mongodb::{ClientSession, Database};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::natural::Unfenced;
use super::pace::Pace;
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::bson::encode::Encoder;
use crate::engine::bson::order::Value;
use crate::engine::command::Commands;
use crate::engine::connection::probe::{TargetAbilities, await_committed, operation_time};
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::{ClusterTime, Span};
use crate::engine::quarantine::{Refused, Room};
use crate::engine::snapshot::{MAX_KEY, Order, ReadEnd, SnapshotFind, next, only_max_key};
use crate::engine::state::{StateStore, Way};
use crate::engine::stream::event::Uuid;

/// First and longest pause before a range is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// What a lane is told to copy.
#[derive(Clone, Debug)]
pub struct Job {
    /// The collection.
    pub collection: CollectionIndex,
    /// Its identity on the source.
    pub uuid: Uuid,
    /// Its name on the target, and the first guess on the source.
    pub name: String,
    /// The range.
    pub number: u32,
    /// Where it begins.
    pub low: Option<Value>,
    /// Where it ends.
    pub high: Option<Value>,
    /// Some of it may already be on the target.
    pub dirty: bool,
    /// What is on the target is compared, and only what differs is written.
    pub compare: bool,
    /// Documents to read at once.
    pub batch_size: u32,
    /// How its documents may be written.
    pub way: Way,
    /// The options to create it with, where each try makes it anew.
    pub options: Document,
    /// How much of it the target may refuse.
    pub room: Room,
}

/// What a lane reports.
#[derive(Debug)]
pub enum Report {
    /// So much of the range is on the target.
    Progress {
        /// The collection.
        collection: CollectionIndex,
        /// The range.
        number: u32,
        /// Documents so far.
        documents: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// All of it is.
    Done {
        /// The collection.
        collection: CollectionIndex,
        /// The range.
        number: u32,
        /// The cluster times it was read at.
        at: Span,
        /// Documents in it.
        documents: u64,
        /// Bytes in it.
        bytes: u64,
        /// Of a copy outside of transactions.
        unfenced: Option<Unfenced>,
    },
    /// The collection no longer exists on the source: its drop is on the way.
    Gone {
        /// The collection.
        collection: CollectionIndex,
        /// The range.
        number: u32,
    },
    /// It was asked to stop; nothing more of it is under way.
    Stopped {
        /// The collection.
        collection: CollectionIndex,
        /// The range.
        number: u32,
    },
    /// A collection is made anew on the target: nothing of it counts as refused any more.
    Anew(Uuid),
    /// The target does not take these documents; they are left out, and noted.
    Refused(Vec<Refused>),
    /// It is tried again; once per outage.
    Retrying(Error),
    /// It cannot be copied; nothing more of it is under way.
    Failed {
        /// The collection.
        collection: CollectionIndex,
        /// The range.
        number: u32,
        /// Why.
        error: Error,
    },
}

/// Everything a lane works with.
#[derive(Clone)]
pub struct Lane {
    /// The source database.
    pub source: Database,
    /// The target database.
    pub target: Commands,
    /// The mirror's memory.
    pub state: StateStore,
    /// Our fencing epoch.
    pub epoch: i64,
    /// What the target accepts.
    pub abilities: TargetAbilities,
    /// Where to report.
    pub reports: mpsc::Sender<Report>,
    /// How fast all lanes may copy.
    pub pace: Pace,
    /// Asks the lane to stop between two batches.
    pub stop: CancellationToken,
}

/// What of a range is on the target for certain, so that a read which ends early is gone on with.
///
/// The source shows a state for five minutes only, by default: whatever takes longer to be read is
/// read in pieces, each at a time of its own.
#[derive(Debug)]
pub(super) struct Reached {
    /// When it was read.
    pub(super) at: Span,
    /// Everything before this document in the order of `_id` is there, and itself where it was
    /// copied.
    pub(super) last: Option<Value>,
    pub(super) documents: u64,
    pub(super) bytes: u64,
}

impl Reached {
    pub(super) fn nothing(at: ClusterTime) -> Self {
        Self {
            at: at.into(),
            last: None,
            documents: 0,
            bytes: 0,
        }
    }
}

/// What is read at one time.
#[derive(Clone, Copy)]
struct Piece<'a> {
    source_name: &'a str,
    filter: &'a RawDocument,
    at: ClusterTime,
}

/// Why a piece did not come to its end.
enum Broken {
    Read(ReadEnd),
    Write(Error),
}

/// How one try ended.
pub(super) enum Try {
    Done {
        at: Span,
        documents: u64,
        bytes: u64,
        unfenced: Option<Unfenced>,
    },
    Gone,
    /// Read on at a newer time, under this name.
    Again(Option<String>),
    Stopped,
    Failed(Error),
}

impl From<Error> for Try {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<ReadEnd> for Try {
    fn from(end: ReadEnd) -> Self {
        match end {
            ReadEnd::Renamed(name) => Self::Again(Some(name)),
            ReadEnd::Gone => Self::Gone,
            ReadEnd::TooOld => Self::Again(None),
            ReadEnd::Failed(error) => Self::Failed(error),
        }
    }
}

impl Lane {
    /// Copies the range, trying again as often as it takes. Gives the session back: its id is in
    /// the checkpoint, so that what it leaves open after a crash can be ended at once.
    pub async fn copy(self, mut job: Job, mut session: ClientSession) -> ClientSession {
        let mut source_name = job.name.clone();
        let mut pause = BACKOFF.0;
        let mut told = false;
        let mut is_gone = false;
        let mut reached = None;
        let (collection, number) = (job.collection, job.number);
        let report = loop {
            let attempt = self.attempt(&job, &source_name, &mut reached, &mut session);
            match attempt.await {
                Try::Done {
                    at,
                    documents,
                    bytes,
                    unfenced,
                } => {
                    break Report::Done {
                        collection,
                        number,
                        at,
                        documents,
                        bytes,
                        unfenced,
                    };
                }
                Try::Gone if is_gone => break Report::Gone { collection, number },
                Try::Gone => match self.all_is_committed().await {
                    // The drop, if that is what it was, cannot be taken back any more.
                    Ok(()) => is_gone = true,
                    Err(error) => tracing::debug!(%error, "whether a collection is gone"),
                },
                Try::Stopped => break Report::Stopped { collection, number },
                Try::Again(name) => {
                    if let Some(name) = name {
                        source_name = name;
                    }
                    pause = BACKOFF.0;
                }
                Try::Failed(error) if error.needs_human() || error.is_full() => {
                    break Report::Failed {
                        collection,
                        number,
                        error,
                    };
                }
                Try::Failed(error) => {
                    if !std::mem::replace(&mut told, true)
                        && self.reports.send(Report::Retrying(error)).await.is_err()
                    {
                        return session;
                    }
                }
            }
            // Some documents may have been written.
            job.dirty = true;
            tokio::select! {
                () = self.stop.cancelled() => break Report::Stopped { collection, number },
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BACKOFF.1);
        };
        // If nobody listens any more, the range's state tells the next process.
        let _ = self.reports.send(report).await;
        session
    }

    /// Waits until a majority has what the source has now.
    async fn all_is_committed(&self) -> Result<()> {
        let source = Commands {
            side: Side::Source,
            db: self.source.clone(),
        };
        let now = operation_time(self.source.client(), Side::Source).await?;
        await_committed(&source, now).await
    }

    async fn attempt(
        &self,
        job: &Job,
        source_name: &str,
        reached: &mut Option<Reached>,
        session: &mut ClientSession,
    ) -> Try {
        match self.try_once(job, source_name, reached, session).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_once(
        &self,
        job: &Job,
        source_name: &str,
        reached: &mut Option<Reached>,
        session: &mut ClientSession,
    ) -> Result<Try, Try> {
        if job.way != Way::Transactional {
            return self.copy_outside(job, source_name).await;
        }
        if reached.is_none() {
            self.state
                .begin_range(self.epoch, job.uuid, job.number)
                .await?;
        }
        if job.compare {
            return self.align(job, source_name, reached, session).await;
        }
        if reached.is_none() && job.dirty {
            self.clear(job, session).await?;
        }
        let at = operation_time(self.source.client(), Side::Source).await?;
        let filter = range_filter(job.low.as_ref(), job.high.as_ref());
        let mut range = reached.take().unwrap_or_else(|| Reached::nothing(at));
        range.at.to = at;
        let piece = Piece {
            source_name,
            filter: &filter,
            at,
        };
        match self.read_piece(job, piece, &mut range, session).await {
            Ok(end) => Ok(end),
            Err(Broken::Read(end)) => {
                *reached = range.last.is_some().then_some(range);
                Err(end.into())
            }
            // What was on its way to the target may be there or not: the range begins anew.
            Err(Broken::Write(error)) => Err(error.into()),
        }
    }

    /// Waits as long as the copy is to be slower than it could; not once it is to stop.
    pub(super) async fn keep_pace(&self, bytes: u64) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.pace.keep(bytes) => {}
        }
    }

    /// Tells how far a range is, which is only shown; the owner task may be busy.
    pub(super) fn tell(&self, job: &Job, range: &Reached) {
        let _ = self.reports.try_send(Report::Progress {
            collection: job.collection,
            number: job.number,
            documents: range.documents,
            bytes: range.bytes,
        });
    }

    /// Copies from where the range is reached to its end, at one time.
    async fn read_piece(
        &self,
        job: &Job,
        piece: Piece<'_>,
        range: &mut Reached,
        session: &mut ClientSession,
    ) -> Result<Try, Broken> {
        let begin = range.last.clone();
        let is_last = |last: &Option<Value>| last.as_ref().is_some_and(|id| id.kind == MAX_KEY);
        if !is_last(&begin) {
            let read = SnapshotFind {
                collection: piece.source_name,
                uuid: Some(job.uuid),
                at: Some(piece.at),
                filter: piece.filter,
                // With a beginning alone, the server would look through all that is behind the end.
                order: Order::ById {
                    min: begin.as_ref(),
                    max: job.high.as_ref().filter(|_| begin.is_some()),
                },
                batch_size: job.batch_size,
            };
            if !self.copy_all(job, &read, range, session).await? {
                return Ok(Try::Stopped);
            }
        }
        // Where a beginning is given, the end of an index is open, and MaxKey is not in it (but in
        // that of a clustered collection).
        if begin.is_some() && job.high.is_none() && !is_last(&range.last) {
            let filter = only_max_key();
            let read = SnapshotFind {
                collection: piece.source_name,
                uuid: Some(job.uuid),
                at: Some(piece.at),
                filter: &filter,
                order: Order::Any,
                batch_size: 1,
            };
            self.copy_all(job, &read, range, session).await?;
        }
        Ok(Try::Done {
            at: range.at,
            documents: range.documents,
            bytes: range.bytes,
            unfenced: None,
        })
    }

    /// Copies all that a read shows; returns whether that was not stopped before its end.
    async fn copy_all(
        &self,
        job: &Job,
        read: &SnapshotFind<'_>,
        range: &mut Reached,
        session: &mut ClientSession,
    ) -> Result<bool, Broken> {
        let source = Side::Source;
        let mut cursor = read.run(source, &self.source).await.map_err(Broken::Read)?;
        // The document that the last piece ended with comes once more.
        let mut seen = match read.order {
            Order::ById { min, .. } => min,
            Order::Any => None,
        };
        let mut batch = next(source, &mut cursor).await.map_err(Broken::Read)?;
        while let Some(current) = batch {
            // The next batch is read while this one is written.
            let insert = self.insert(job, (&current, range.at.to), seen.take(), session);
            let (read, written) = tokio::join!(next(source, &mut cursor), insert);
            if let Some(written) = written.map_err(Broken::Write)? {
                range.last = Some(written.last);
                range.documents += written.documents;
                range.bytes += written.bytes;
                self.tell(job, range);
                self.keep_pace(written.bytes).await;
            }
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            batch = read.map_err(Broken::Read)?;
        }
        Ok(true)
    }
}

/// `$expr` compares across types; a plain `$gte` or `$lt` would lose every document whose `_id`
/// is of another type than the bound (`facts` mongodb 3.6).
pub(super) fn range_filter(low: Option<&Value>, high: Option<&Value>) -> RawDocumentBuf {
    let mut encoder = Encoder::default();
    let root = encoder.begin();
    if low.is_some() || high.is_some() {
        let expression = encoder.begin_document("$expr");
        let both = encoder.begin_array("$and");
        let bounds = [("$gte", low), ("$lt", high)];
        let bounds = bounds
            .iter()
            .filter_map(|(name, bound)| Some((name, (*bound)?)));
        for (index, (operator, bound)) in bounds.enumerate() {
            let condition = encoder.begin_element(index);
            let operands = encoder.begin_array(operator);
            encoder.string("0", "$_id");
            let literal = encoder.begin_element(1);
            encoder.raw(bound.kind, b"$literal", &bound.bytes);
            encoder.end(literal);
            encoder.end(operands);
            encoder.end(condition);
        }
        encoder.end(both);
        encoder.end(expression);
    }
    encoder.end(root);
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::bson::scan::kind;
    use bson::doc;

    #[test]
    fn ranges_are_asked_for_across_types() {
        let five = Value {
            kind: kind::INT32,
            bytes: vec![5, 0, 0, 0],
        };
        let decoded = |filter: RawDocumentBuf| Document::try_from(filter).unwrap();
        assert_eq!(decoded(range_filter(None, None)), doc! {});
        assert_eq!(
            decoded(range_filter(Some(&five), None)),
            doc! {"$expr": {"$and": [{"$gte": ["$_id", {"$literal": 5}]}]}}
        );
        assert_eq!(
            decoded(range_filter(Some(&five), Some(&five))),
            doc! {"$expr": {"$and": [{"$gte": ["$_id", {"$literal": 5}]}, {"$lt": ["$_id", {"$literal": 5}]}]}}
        );
    }
}
