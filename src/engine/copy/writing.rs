//! What a lane writes: each of its transactions also holds the range.

use bson::{Document, RawDocumentBuf, doc};
use futures::TryStreamExt;
use mongodb::ClientSession;
use mongodb::raw_batch_cursor::RawBatch;

use super::lane::{Job, Lane, range_filter};
use crate::engine::apply::commands::{Command, Place, after_insert, remove};
use crate::engine::bson::encode::Encoder;
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{Element, find, kind, shape};
use crate::engine::command::{COMMAND_LIMIT, number, within};
use crate::engine::error::{Error, Result, Side};
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
    },
    Clear(RawDocumentBuf),
    /// What makes a part of the target equal to the source.
    Align(Vec<Command>),
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
    /// is on the target already.
    pub(super) async fn insert(
        &self,
        job: &Job,
        batch: &RawBatch,
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
        let careful = new
            .iter()
            .filter(|document| {
                !self.abilities.keeps_empty_timestamps && shape(document).empty_timestamp
            })
            .map(|document| document.to_vec())
            .collect();
        // The reply's array becomes the command's as it is, where all of it is wanted.
        let whole = (first == 0).then(|| array.as_bytes());
        let count = new.len() as u64;
        let work = Work::Insert {
            before,
            command: self.insert_command(Place::from(job.name.as_str()), whole, new),
            careful,
            count,
        };
        self.transaction(job, session, &work).await?;
        Ok(Some(Inserted {
            last,
            documents: count,
            bytes: new.iter().map(|document| document.len() as u64).sum(),
        }))
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
        let (before, command, careful, count) = match work {
            Work::Clear(command) => {
                self.target
                    .write_in(Write::ClearRange, command.clone(), session)
                    .await?;
                return Ok(());
            }
            Work::Align(commands) => return self.run_aligning(commands, session).await,
            Work::Insert {
                before,
                command,
                careful,
                count,
            } => (before, command, careful, *count),
        };
        for first in before {
            self.target
                .write_in(Write::InsertDocuments, first.body.clone(), session)
                .await?;
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
