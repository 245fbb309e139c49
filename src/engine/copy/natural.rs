//! Copies a collection that no transaction may write, as one range.
//!
//! A system collection, as the buckets of a time series, is read by `_id` at one time, and at a
//! newer one where the source no longer shows that.
//!
//! A capped collection keeps the order of insertion, and cannot be read at one cluster time. It is
//! read in its natural order while it changes, between two times: what the copy holds of a
//! document is of some moment between both. Laying the events of that window over it, in order,
//! makes it exactly what it is at the later time (`owner/batches.rs` sends them to the writer's
//! window). That ends however fast others insert, as long as the copy reads faster than the
//! collection rolls over.
//!
//! The inserts are not fenced by a transaction. So the target's collection is made anew for each
//! try, and named by its UUID: what a process that was replaced still sends reaches nothing.

use bson::{RawDocument, RawDocumentBuf, Timestamp};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::lane::{Job, Lane, Reached, Report, Try};
use super::writing::Inserted;
use crate::engine::apply::commands::{Place, after_insert};
use crate::engine::apply::ddl;
use crate::engine::apply::stepping::Steps;
use crate::engine::bson::encode::Encoder;
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::command::number;
use crate::engine::connection::probe::operation_time;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::position::ClusterTime;
use crate::engine::quarantine::Refused;
use crate::engine::snapshot::{Order, ReadEnd, SnapshotFind, next, open};
use crate::engine::state::{BUCKETS, Way};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

/// What is particular about a copy outside of transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfenced {
    /// The collection's UUID on the target.
    pub guard: Uuid,
    /// Of a capped collection: when the reading began. Changes between then and the range's time
    /// may be in the copy already.
    pub from: Option<ClusterTime>,
}

impl Lane {
    pub(super) async fn copy_outside(&self, job: &Job, source_name: &str) -> Result<Try, Try> {
        if job.dirty {
            // It may be remembered as done, as of a time that the position had not reached when the
            // last process ended. What is about to be dropped no longer is.
            self.state
                .begin_range(self.epoch, job.uuid, job.number)
                .await?;
            // What was refused may be taken this time.
            self.state.release_collection(job.uuid).await?;
            let _ = self.reports.send(Report::Anew(job.uuid)).await;
        }
        let guard = self.make_anew(job).await?;
        // Fenced, and behind the look at the UUID: whoever replaces us from here on makes the
        // collection anew once more.
        self.state
            .begin_range(self.epoch, job.uuid, job.number)
            .await?;
        let place = Place {
            name: &job.name,
            outside: Some(guard),
            in_order: job.way == Way::InOrder,
        };
        let from = operation_time(self.source.client(), Side::Source).await?;
        let mut range = Reached::nothing(from);
        loop {
            let before = range.documents;
            match self.read_outside(job, source_name, place, &mut range).await {
                Ok(true) => break,
                Ok(false) => return Ok(Try::Stopped),
                // What is there stays, and the rest is read as of a newer time.
                Err(Try::Again(None)) if job.way == Way::Loose && range.documents > before => {
                    range.at.to = operation_time(self.source.client(), Side::Source).await?;
                }
                Err(end) => return Err(end),
            }
        }
        let in_order = job.way == Way::InOrder;
        let at = if in_order {
            operation_time(self.source.client(), Side::Source)
                .await?
                .into()
        } else {
            range.at
        };
        Ok(Try::Done {
            at,
            documents: range.documents,
            bytes: range.bytes,
            unfenced: Some(Unfenced {
                guard,
                from: in_order.then_some(from),
            }),
        })
    }

    /// Copies on from where the range is reached, at one time; returns whether that was not
    /// stopped before its end.
    async fn read_outside(
        &self,
        job: &Job,
        source_name: &str,
        place: Place<'_>,
        range: &mut Reached,
    ) -> Result<bool, Try> {
        // The document that the last piece ended with comes once more.
        let begin = range.last.clone();
        let mut seen = begin.as_ref();
        let at = range.at.to;
        let mut cursor = self.open(job, source_name, at, seen).await?;
        let mut batch = next(Side::Source, &mut cursor).await?;
        while let Some(current) = batch {
            // The next batch is read while this one is written: a capped collection rolls over.
            let (read, written) = tokio::join!(
                next(Side::Source, &mut cursor),
                self.insert_outside(job, place, (&current, at), seen.take())
            );
            if let Some(written) = written? {
                range.last = Some(written.last);
                range.documents += written.documents;
                range.bytes += written.bytes;
                if job.way != Way::InOrder {
                    // That has to be faster than the collection rolls over.
                    self.keep_pace(written.bytes).await;
                }
            }
            self.tell(job, range);
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            batch = read?;
        }
        Ok(true)
    }

    async fn make_anew(&self, job: &Job) -> Result<Uuid> {
        let public = job.name.strip_prefix(BUCKETS).unwrap_or(&job.name);
        if job.dirty {
            ddl::drop(&self.target, public).await?;
        }
        ddl::create(&self.target, public, &job.options).await?;
        ddl::uuid(&self.target, &job.name)
            .await?
            .ok_or_else(|| Error::Reply {
                side: Side::Target,
                doing: "create a collection",
                what: "it is not there".into(),
            })
    }

    async fn open(
        &self,
        job: &Job,
        source_name: &str,
        at: ClusterTime,
        begin: Option<&Value>,
    ) -> Result<RawBatchCursor, ReadEnd> {
        if job.way != Way::InOrder {
            let filter = bson::rawdoc! {};
            let read = SnapshotFind {
                collection: source_name,
                uuid: Some(job.uuid),
                at: Some(at),
                filter: &filter,
                order: Order::ById {
                    min: begin,
                    max: None,
                },
                batch_size: job.batch_size,
            };
            return read.run(Side::Source, &self.source).await;
        }
        let find = natural_find(source_name, job, at);
        let members = self.source.selection_criteria();
        open(Side::Source, &self.source, members, find, job.batch_size)
            .await
            .map_err(ReadEnd::of)
    }

    /// Inserts a batch, read at this time; `seen` is a document that is on the target already.
    async fn insert_outside(
        &self,
        job: &Job,
        place: Place<'_>,
        (batch, at): (&RawBatch, ClusterTime),
        seen: Option<&Value>,
    ) -> Result<Option<Inserted>> {
        let malformed = || Error::Reply {
            side: Side::Source,
            doing: "read documents",
            what: "it holds no batch".into(),
        };
        let array = batch.doc_slices().map_err(|_| malformed())?;
        let is_seen = |document: &&[u8]| {
            let id = find(document, b"_id");
            id.is_some_and(|id| {
                seen.is_some_and(|seen| id.kind == seen.kind && id.value == seen.bytes)
            })
        };
        let all = array
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_document())
            .map(RawDocument::as_bytes);
        let documents: Vec<&[u8]> = all.skip_while(is_seen).collect();
        let Some(last) = documents.last() else {
            return Ok(None);
        };
        let id_of = |document: &[u8]| find(document, b"_id").map(Value::of).ok_or_else(malformed);
        let last = id_of(last)?;
        let mut refused = Vec::new();
        let mut steps = Steps::new(documents.len());
        let mut is_allowed = false;
        while let Some(now) = steps.next() {
            // The reply's array becomes the command's as it is, where all of it is wanted.
            let is_whole = seen.is_none() && now.len() == documents.len();
            let whole = is_whole.then(|| array.as_bytes());
            match self.insert_some(place, whole, &documents[now]).await {
                Ok(()) => steps.taken(),
                Err(error) if error.code() == Some(code::MIXED_SCHEMA) && !is_allowed => {
                    is_allowed = true;
                    ddl::allow_mixed_schema(&self.target, place.name).await?;
                    steps.taken_some(error.statement().unwrap_or(0));
                }
                Err(error) if error.is_refused_for_certain() => {
                    let Some(one) = steps.refused(0, error.statement()) else {
                        continue;
                    };
                    refused.push(Refused {
                        key: (job.uuid, id_of(documents[one])?),
                        at,
                        collection: job.name.clone(),
                        reason: error.to_string(),
                        is_only_here: false,
                    });
                    job.room.check(&refused)?;
                }
                Err(error) => return Err(error),
            }
        }
        for document in &documents {
            for command in after_insert(place, document, self.abilities) {
                self.target
                    .write_raw(Write::InsertOutside, command.body)
                    .await?;
            }
        }
        if !refused.is_empty() {
            self.state.quarantine(&refused).await?;
            self.tell_refused(refused).await;
        }
        Ok(Some(Inserted {
            last,
            documents: documents.len() as u64,
            bytes: documents.iter().map(|one| one.len() as u64).sum(),
        }))
    }

    async fn insert_some(
        &self,
        place: Place<'_>,
        whole: Option<&[u8]>,
        documents: &[&[u8]],
    ) -> Result<()> {
        let command = self.insert_command(place, whole, documents);
        let permit = self.pace.write().await;
        let reply = self.target.write_raw(Write::InsertOutside, command).await?;
        drop(permit);
        if u64::try_from(number(&reply, "n")) == Ok(documents.len() as u64) {
            return Ok(());
        }
        Err(Error::Reply {
            side: Side::Target,
            doing: Write::InsertOutside.doing(),
            what: "not all documents were inserted".into(),
        })
    }
}

/// What a majority holds, not before `from`, in the order of insertion.
fn natural_find(collection: &str, job: &Job, from: ClusterTime) -> RawDocumentBuf {
    let mut encoder = Encoder::with_capacity(256);
    let root = encoder.begin();
    encoder.string("find", collection);
    let sort = encoder.begin_document("sort");
    encoder.int("$natural", 1);
    encoder.end(sort);
    encoder.int(
        "batchSize",
        i32::try_from(job.batch_size).unwrap_or(i32::MAX),
    );
    let concern = encoder.begin_document("readConcern");
    encoder.string("level", "majority");
    encoder.timestamp("afterClusterTime", Timestamp::from(from));
    encoder.end(concern);
    encoder.uuid("collectionUUID", job.uuid);
    encoder.end(root);
    encoder.finish()
}
