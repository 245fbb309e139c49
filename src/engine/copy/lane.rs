//! Copies one range: raw batches of the source straight into raw inserts.

use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc};
use futures::{StreamExt, TryStreamExt};
use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use mongodb::{ClientSession, Database};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::apply::commands::put;
use crate::engine::apply::gather::CollectionIndex;
use crate::engine::bson::encode::Encoder;
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{Element, find, kind, shape};
use crate::engine::command::{COMMAND_LIMIT, Commands, number, within};
use crate::engine::connection::probe::{TargetAbilities, operation_time};
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::ClusterTime;
use crate::engine::snapshot::{READ_LIMIT, ReadEnd, SnapshotFind};
use crate::engine::state::StateStore;
use crate::engine::stream::event::Uuid;
use crate::engine::transaction::{abort, begin};

/// First and longest pause before a range is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Documents removed in one transaction.
const CLEARED_AT_ONCE: i64 = 5000;

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
    /// Documents to read at once.
    pub batch_size: u32,
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
        /// The cluster time it was read at.
        at: ClusterTime,
        /// Documents in it.
        documents: u64,
        /// Bytes in it.
        bytes: u64,
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
    /// Asks the lane to stop between two batches.
    pub stop: CancellationToken,
}

/// What is done in one transaction of a lane.
enum Work {
    Insert {
        command: RawDocumentBuf,
        /// Documents that a plain insert would change.
        careful: Vec<Vec<u8>>,
        count: u64,
    },
    Clear(RawDocumentBuf),
}

/// How one try ended.
enum Try {
    Done {
        at: ClusterTime,
        documents: u64,
        bytes: u64,
    },
    Gone,
    /// Read again at a newer time, under this name.
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
        let (collection, number) = (job.collection, job.number);
        let report = loop {
            match self.attempt(&job, &source_name, &mut session).await {
                Try::Done {
                    at,
                    documents,
                    bytes,
                } => {
                    break Report::Done {
                        collection,
                        number,
                        at,
                        documents,
                        bytes,
                    };
                }
                Try::Gone => break Report::Gone { collection, number },
                Try::Stopped => break Report::Stopped { collection, number },
                Try::Again(name) => {
                    if let Some(name) = name {
                        source_name = name;
                    }
                }
                Try::Failed(error) if error.needs_human() => {
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

    async fn attempt(&self, job: &Job, source_name: &str, session: &mut ClientSession) -> Try {
        match self.try_once(job, source_name, session).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_once(
        &self,
        job: &Job,
        source_name: &str,
        session: &mut ClientSession,
    ) -> Result<Try, Try> {
        self.state
            .begin_range(self.epoch, job.uuid, job.number)
            .await?;
        if job.dirty {
            self.clear(job, session).await?;
        }
        let at = operation_time(self.source.client()).await?;
        let filter = range_filter(job.low.as_ref(), job.high.as_ref());
        let read = SnapshotFind {
            collection: source_name,
            uuid: job.uuid,
            at,
            filter: &filter,
            by_id: job.low.is_some() || job.high.is_some(),
            batch_size: job.batch_size,
        };
        let mut cursor = read.run(&self.source).await?;
        let (mut documents, mut bytes) = (0_u64, 0_u64);
        let mut batch = next(&mut cursor).await?;
        while let Some(current) = batch {
            // The next batch is read while this one is written.
            let (read, written) =
                tokio::join!(next(&mut cursor), self.insert(job, &current, session));
            let (more_documents, more_bytes) = written?;
            documents += more_documents;
            bytes += more_bytes;
            if more_documents > 0 {
                let progress = Report::Progress {
                    collection: job.collection,
                    number: job.number,
                    documents,
                    bytes,
                };
                // Progress is only shown; the owner task may be busy.
                let _ = self.reports.try_send(progress);
            }
            if self.stop.is_cancelled() {
                return Ok(Try::Stopped);
            }
            batch = read?;
        }
        Ok(Try::Done {
            at,
            documents,
            bytes,
        })
    }

    /// Inserts a batch, as one transaction that also holds the range: whoever took the mirror
    /// over has changed the range's epoch, and this then writes nothing.
    async fn insert(
        &self,
        job: &Job,
        batch: &RawBatch,
        session: &mut ClientSession,
    ) -> Result<(u64, u64)> {
        let malformed = |what: &str| Error::Reply {
            side: Side::Source,
            doing: "read documents",
            what: what.to_owned(),
        };
        let documents = batch
            .doc_slices()
            .map_err(|_| malformed("it holds no batch"))?;
        let mut count = 0_u64;
        let mut careful = Vec::new();
        for document in documents.into_iter().flatten() {
            count += 1;
            if self.abilities.keeps_empty_timestamps {
                continue;
            }
            if let Some(document) = document.as_document()
                && shape(document.as_bytes()).empty_timestamp
            {
                careful.push(document.as_bytes().to_vec());
            }
        }
        if count == 0 {
            return Ok((0, 0));
        }
        let bytes = documents.as_bytes().len();
        let work = Work::Insert {
            command: self.insert_command(job, documents.as_bytes()),
            careful,
            count,
        };
        self.transaction(job, session, &work).await?;
        Ok((count, bytes as u64))
    }

    /// The reply's array becomes the command's array as it is.
    fn insert_command(&self, job: &Job, documents: &[u8]) -> RawDocumentBuf {
        let mut encoder = Encoder::with_capacity(documents.len() + 256);
        let root = encoder.begin();
        encoder.string("insert", &job.name);
        encoder.raw(kind::ARRAY, b"documents", documents);
        encoder.bool("ordered", false);
        encoder.bool("bypassDocumentValidation", true);
        if self.abilities.keeps_empty_timestamps {
            encoder.bool("bypassEmptyTsReplacement", true);
        }
        encoder.end(root);
        encoder.finish()
    }

    /// Removes what an interrupted try has left on the target, in pieces that fit a transaction.
    async fn clear(&self, job: &Job, session: &mut ClientSession) -> Result<()> {
        let filter = range_filter(job.low.as_ref(), job.high.as_ref());
        let filter = Document::try_from(&*filter).unwrap_or_default();
        loop {
            let doing = "clear a range";
            let left = self.target.db.collection::<RawDocumentBuf>(&job.name);
            let exchange = async {
                let cursor = left
                    .find(filter.clone())
                    .projection(doc! {"_id": 1})
                    .limit(CLEARED_AT_ONCE)
                    .await?;
                cursor.try_collect::<Vec<RawDocumentBuf>>().await
            };
            let left = within(Side::Target, doing, COMMAND_LIMIT, exchange).await?;
            if left.is_empty() {
                return Ok(());
            }
            let ids = left.iter().filter_map(|id| find(id.as_bytes(), b"_id"));
            let command = delete_command(&job.name, ids);
            self.transaction(job, session, &Work::Clear(command))
                .await?;
        }
    }

    /// The statements of a transaction.
    async fn carry_out(&self, job: &Job, work: &Work, session: &mut ClientSession) -> Result<()> {
        let (command, careful, count) = match work {
            Work::Clear(command) => {
                let doing = "clear a range";
                self.target.run_in(doing, command.clone(), session).await?;
                return Ok(());
            }
            Work::Insert {
                command,
                careful,
                count,
            } => (command, careful, *count),
        };
        let doing = "insert documents";
        let reply = self.target.run_in(doing, command.clone(), session).await?;
        if u64::try_from(number(&reply, "n")) != Ok(count) {
            return Err(Error::Reply {
                side: Side::Target,
                doing,
                what: "not all documents were inserted".into(),
            });
        }
        for document in careful {
            let Some(id) = find(document, b"_id") else {
                continue;
            };
            // A plain insert has set the empty timestamp to now; this puts it right.
            for command in put(&job.name, &Value::of(id), document, self.abilities) {
                self.target.run_in(doing, command.body, session).await?;
            }
        }
        Ok(())
    }

    /// Runs `work` in a transaction that is fenced by the range; again if the server asks for it.
    async fn transaction(&self, job: &Job, session: &mut ClientSession, work: &Work) -> Result<()> {
        let mut pause = BACKOFF.0;
        loop {
            begin(session).await?;
            let worked = match self.carry_out(job, work, session).await {
                Ok(()) => self.fence(job, session).await,
                Err(error) => Err(error),
            };
            let outcome = match worked {
                Ok(()) => commit(session).await,
                Err(error) => {
                    abort(session).await;
                    Err(error)
                }
            };
            match outcome {
                Err(error) if error.has_label(TRANSIENT_TRANSACTION_ERROR) => {
                    tracing::debug!(%error, "copying a batch again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                    if pause == BACKOFF.1 {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    async fn fence(&self, job: &Job, session: &mut ClientSession) -> Result<()> {
        let touch = doc! {"$inc": {"batches": 1}};
        let command = self
            .state
            .range_command(self.epoch, job.uuid, job.number, touch)?;
        let state = self.state.commands();
        let reply = state.run_in("hold the range", command, session).await?;
        if number(&reply, "n") == 1 {
            Ok(())
        } else {
            Err(Error::Fenced { epoch: self.epoch })
        }
    }
}

async fn commit(session: &mut ClientSession) -> Result<()> {
    let mut asked = 0;
    loop {
        let commit = session.commit_transaction();
        match within(Side::Target, "commit documents", COMMAND_LIMIT, commit).await {
            Err(error) if error.has_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) && asked < 5 => {
                asked += 1;
                tokio::time::sleep(BACKOFF.0).await;
            }
            outcome => return outcome,
        }
    }
}

async fn next(cursor: &mut RawBatchCursor) -> Result<Option<RawBatch>, ReadEnd> {
    let next = async { cursor.next().await.transpose() };
    within(Side::Source, "read documents", READ_LIMIT, next)
        .await
        .map_err(ReadEnd::of)
}

/// Deletes these documents.
fn delete_command<'a>(collection: &str, ids: impl Iterator<Item = Element<'a>>) -> RawDocumentBuf {
    let mut encoder = Encoder::default();
    let root = encoder.begin();
    encoder.string("delete", collection);
    let deletes = encoder.begin_array("deletes");
    for (index, id) in ids.enumerate() {
        let delete = encoder.begin_element(index);
        let query = encoder.begin_document("q");
        encoder.raw(id.kind, b"_id", id.value);
        encoder.end(query);
        encoder.int("limit", 1);
        encoder.end(delete);
    }
    encoder.end(deletes);
    encoder.end(root);
    encoder.finish()
}

/// `$expr` compares across types; a plain `$gte` or `$lt` would lose every document whose `_id`
/// is of another type than the bound (`facts` mongodb 3.6).
fn range_filter(low: Option<&Value>, high: Option<&Value>) -> RawDocumentBuf {
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
