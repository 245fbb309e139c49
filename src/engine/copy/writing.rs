//! What a lane writes: each of its transactions also holds the range.

use bson::{RawDocumentBuf, doc, rawdoc};
use futures::TryStreamExt;
use mongodb::ClientSession;
use mongodb::raw_batch_cursor::RawBatch;

use super::lane::{Job, Lane, Report, range_filter};
use crate::engine::apply::commands::{Command, Place, after_insert, remove};
use crate::engine::apply::refused::Search;
use crate::engine::bson::encode::Encoder;
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{find, kind, shape};
use crate::engine::command::{COMMAND_LIMIT, number, within};
use crate::engine::error::{Error, Result, Side};
use crate::engine::position::ClusterTime;
use crate::engine::quarantine::Refused;
use crate::engine::transaction::{Tries, abort, begin, commit};
use crate::engine::writes::Write;

/// Documents removed in one transaction.
const CLEARED_AT_ONCE: i64 = 5000;

/// What is done in one transaction of a lane.
pub(super) enum Work {
    Insert {
        /// What goes first.
        before: Vec<Command>,
        command: RawDocumentBuf,
        /// Documents that a plain insert would change.
        careful: Vec<Vec<u8>>,
        count: u64,
        /// What is left out, and noted.
        refused: Vec<Refused>,
    },
    Clear(RawDocumentBuf),
    /// Nothing but to hold the range.
    Nothing,
    /// What makes a part of the target equal to the source; and what is left out, and noted.
    Align(Vec<Command>, Vec<Refused>),
}

/// What a batch added.
pub(super) struct Inserted {
    pub(super) last: Value,
    pub(super) documents: u64,
    pub(super) bytes: u64,
}

impl Lane {
    /// Inserts a batch, as one transaction that also holds the range: whoever took the mirror
    /// over has changed the range's epoch, and this then writes nothing. `seen` is a document that
    /// is on the target already; `at` is when the source was like that.
    pub(super) async fn insert(
        &self,
        job: &Job,
        (batch, at): (&RawBatch, ClusterTime),
        seen: Option<&Value>,
        session: &mut ClientSession,
    ) -> Result<Option<Inserted>> {
        let malformed = |what: &str| Error::Reply {
            side: Side::Source,
            doing: "read documents",
            what: what.to_owned(),
        };
        let array = batch
            .doc_slices()
            .map_err(|_| malformed("it holds no batch"))?;
        let mut documents: Vec<&[u8]> = Vec::new();
        for document in array.into_iter().flatten() {
            let document = document
                .as_document()
                .ok_or_else(|| malformed("it holds something other than a document"))?;
            documents.push(document.as_bytes());
        }
        let mut before = Vec::new();
        let mut first = 0;
        if let (Some(seen), Some(document)) = (seen, documents.first())
            && let Some(id) = find(document, b"_id")
        {
            if id.kind == seen.kind && id.value == seen.bytes {
                first = 1;
            } else {
                // It may be equal without being the same (1.0 for 1), and takes its place then.
                before = remove(&job.name, &Value::of(id), self.abilities);
            }
        }
        let new = &documents[first..];
        let Some(last) = new.last() else {
            return Ok(None);
        };
        let last = find(last, b"_id").map(Value::of);
        let last = last.ok_or_else(|| malformed("a document has no _id"))?;
        // The reply's array becomes the command's as it is, where all of it is wanted.
        let whole = (first == 0).then(|| array.as_bytes());
        let work = self.inserting(job, before.clone(), whole, new, Vec::new());
        match self.transaction(job, session, &work).await {
            Err(error) if error.is_refused_document() => {
                let refused = self.refused(job, new, at, session).await?;
                if refused.is_empty() {
                    return Err(error);
                }
                let kept = taken(new, &refused);
                let work = self.inserting(job, before, None, &kept, refused.clone());
                self.transaction(job, session, &work).await?;
                self.tell_refused(refused).await;
            }
            outcome => outcome?,
        }
        Ok(Some(Inserted {
            last,
            documents: new.len() as u64,
            bytes: new.iter().map(|document| document.len() as u64).sum(),
        }))
    }

    fn inserting(
        &self,
        job: &Job,
        before: Vec<Command>,
        whole: Option<&[u8]>,
        new: &[&[u8]],
        refused: Vec<Refused>,
    ) -> Work {
        let is_careful = |document: &&&[u8]| {
            !self.abilities.keeps_empty_timestamps && shape(document).empty_timestamp
        };
        let careful = new.iter().filter(is_careful);
        Work::Insert {
            before,
            command: self.insert_command(Place::from(job.name.as_str()), whole, new),
            careful: careful.map(|document| document.to_vec()).collect(),
            count: new.len() as u64,
            refused,
        }
    }

    /// Which of these documents the target refuses. None that is told if the lane is to stop.
    ///
    /// # Errors
    /// [`Error::QuarantineFull`] if there is no room for them; what the exchanges met.
    pub(super) async fn refused(
        &self,
        job: &Job,
        documents: &[&[u8]],
        at: ClusterTime,
        session: &mut ClientSession,
    ) -> Result<Vec<Refused>> {
        let with_ids = documents.iter().filter_map(|document| {
            let id = find(document, b"_id").map(Value::of)?;
            Some((id, *document))
        });
        let with_ids: Vec<(Value, &[u8])> = with_ids.collect();
        let search = Search {
            target: &self.target,
            abilities: self.abilities,
            collection: (job.uuid, &job.name),
            at,
        };
        let is_enough = |some: &[Refused]| self.stop.is_cancelled() || job.room.is_exceeded(some);
        let refused = search.run(&with_ids, session, is_enough).await?;
        if self.stop.is_cancelled() {
            return Ok(Vec::new());
        }
        // Before anything is noted, so that there are not more of them with each try.
        job.room.check(&refused)?;
        Ok(refused)
    }

    /// It is noted already; if nobody listens any more, the next process finds it there.
    pub(super) async fn tell_refused(&self, refused: Vec<Refused>) {
        let _ = self.reports.send(Report::Refused(refused)).await;
    }

    /// Inserts into this place; outside of transactions in order, and held by a majority. `whole`
    /// are the same documents as an array.
    pub(super) fn insert_command(
        &self,
        place: Place<'_>,
        whole: Option<&[u8]>,
        new: &[&[u8]],
    ) -> RawDocumentBuf {
        let bytes: usize = new.iter().map(|document| document.len() + 16).sum();
        let mut encoder = Encoder::with_capacity(bytes + 256);
        let root = encoder.begin();
        encoder.string("insert", place.name);
        if let Some(array) = whole {
            encoder.raw(kind::ARRAY, b"documents", array);
        } else {
            let array = encoder.begin_array("documents");
            for (index, document) in new.iter().enumerate() {
                encoder.raw_element(index, document);
            }
            encoder.end(array);
        }
        encoder.bool("ordered", place.outside.is_some());
        encoder.bool("bypassDocumentValidation", true);
        if self.abilities.keeps_empty_timestamps {
            encoder.bool("bypassEmptyTsReplacement", true);
        }
        if let Some(guard) = place.outside {
            encoder.uuid("collectionUUID", guard);
            let concern = encoder.begin_document("writeConcern");
            encoder.string("w", "majority");
            encoder.end(concern);
        }
        encoder.end(root);
        encoder.finish()
    }

    /// Removes what an interrupted try has left on the target, in pieces that fit a transaction.
    pub(super) async fn clear(&self, job: &Job, session: &mut ClientSession) -> Result<()> {
        // A commit of this session whose outcome is unknown comes to its end before another
        // transaction of it begins: what it wrote must be seen here.
        self.transaction(job, session, &Work::Nothing).await?;
        let filter = range_filter(job.low.as_ref(), job.high.as_ref());
        loop {
            let doing = "clear a range";
            let left = rawdoc! {
                "find": job.name.as_str(),
                "filter": filter.clone(),
                "projection": {"_id": 1},
                "limit": CLEARED_AT_ONCE,
            };
            let exchange = async {
                let cursor = self.target.db.run_raw_cursor_command(left).batch().await?;
                cursor.try_collect::<Vec<RawBatch>>().await
            };
            let batches = within(Side::Target, doing, COMMAND_LIMIT, exchange).await?;
            let Some(command) = delete_command(&job.name, &batches) else {
                return Ok(());
            };
            self.transaction(job, session, &Work::Clear(command))
                .await?;
        }
    }

    /// The statements of a transaction.
    async fn carry_out(&self, job: &Job, work: &Work, session: &mut ClientSession) -> Result<()> {
        let (before, command, careful, count) = match work {
            Work::Clear(command) => {
                self.target
                    .write_in(Write::ClearRange, command.clone(), session)
                    .await?;
                return Ok(());
            }
            Work::Nothing => return Ok(()),
            Work::Align(commands, refused) => {
                self.state.quarantine_in(refused, session).await?;
                return self.run_aligning(commands, session).await;
            }
            Work::Insert {
                before,
                command,
                careful,
                count,
                refused,
            } => {
                self.state.quarantine_in(refused, session).await?;
                (before, command, careful, *count)
            }
        };
        for first in before {
            self.target
                .write_in(Write::InsertDocuments, first.body.clone(), session)
                .await?;
        }
        if count == 0 {
            return Ok(());
        }
        let reply = self
            .target
            .write_in(Write::InsertDocuments, command.clone(), session)
            .await?;
        if u64::try_from(number(&reply, "n")) != Ok(count) {
            return Err(Error::Reply {
                side: Side::Target,
                doing: Write::InsertDocuments.doing(),
                what: "not all documents were inserted".into(),
            });
        }
        for document in careful {
            for command in after_insert(&job.name, document, self.abilities) {
                self.target
                    .write_in(Write::PutDocument, command.body, session)
                    .await?;
            }
        }
        Ok(())
    }

    /// Runs `work` in a transaction that is fenced by the range; again if the server asks for it.
    pub(super) async fn transaction(
        &self,
        job: &Job,
        session: &mut ClientSession,
        work: &Work,
    ) -> Result<()> {
        let _permit = self.pace.write().await;
        let mut tries = Tries::default();
        loop {
            begin(session).await?;
            let worked = match self.carry_out(job, work, session).await {
                Ok(()) => self.fence(job, session).await,
                Err(error) => Err(error),
            };
            let outcome = match worked {
                Ok(()) => commit(Write::CommitCopy, session).await,
                Err(error) => {
                    abort(session).await;
                    Err(error)
                }
            };
            let Err(error) = outcome else {
                return Ok(());
            };
            if !tries.again(&error).await {
                return Err(error);
            }
            tracing::debug!(%error, "copying a batch again");
        }
    }

    async fn fence(&self, job: &Job, session: &mut ClientSession) -> Result<()> {
        let touch = doc! {"$inc": {"batches": 1}};
        let command = self
            .state
            .range_command(self.epoch, job.uuid, job.number, touch)?;
        let state = self.state.commands();
        let reply = state.write_in(Write::HoldRange, command, session).await?;
        if number(&reply, "n") == 1 {
            Ok(())
        } else {
            Err(Error::Fenced { epoch: self.epoch })
        }
    }
}

/// Those of these documents that are not refused.
fn taken<'a>(documents: &[&'a [u8]], refused: &[Refused]) -> Vec<&'a [u8]> {
    let is_refused = |document: &&&[u8]| {
        let id = find(document, b"_id").map(Value::of);
        refused.iter().any(|one| Some(&one.key.1) == id.as_ref())
    };
    let documents = documents.iter().filter(|document| !is_refused(document));
    documents.copied().collect()
}

/// Deletes the documents of these batches, if there are any.
fn delete_command(collection: &str, batches: &[RawBatch]) -> Option<RawDocumentBuf> {
    let left = batches.iter().filter_map(|batch| batch.doc_slices().ok());
    let left = left.flat_map(|batch| batch.into_iter().flatten());
    let left = left.filter_map(|document| document.as_document());
    let ids = left.filter_map(|document| find(document.as_bytes(), b"_id"));
    let mut encoder = Encoder::default();
    let root = encoder.begin();
    encoder.string("delete", collection);
    let deletes = encoder.begin_array("deletes");
    let mut count = 0;
    for id in ids {
        let delete = encoder.begin_element(count);
        let query = encoder.begin_document("q");
        encoder.raw(id.kind, b"_id", id.value);
        encoder.end(query);
        encoder.int("limit", 1);
        encoder.end(delete);
        count += 1;
    }
    encoder.end(deletes);
    encoder.end(root);
    (count > 0).then(|| encoder.finish())
}
