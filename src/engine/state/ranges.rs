//! One document per range of a collection that is being copied.

use bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};

use super::codec::{Fields, binary, fenced_unless, from_bson, integer, raw, to_bson};
use super::fence::Noted;
use super::{RANGES, StateStore, delete};
use crate::engine::bson::order::Value;
use crate::engine::command::number;
use crate::engine::error::Result;
use crate::engine::position::{ClusterTime, Span};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

/// How far a range of the copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeState {
    /// Nothing of it is on the target.
    Pending,
    /// Some of it may be on the target.
    Copying,
    /// All of it is, as of these times and the position.
    Done(Span),
}

/// A range as remembered: `low <= _id < high`.
#[derive(Clone, PartialEq, Debug)]
pub struct RangeEntry {
    /// Its collection.
    pub uuid: Uuid,
    /// Its number within the collection.
    pub number: u32,
    /// Where it begins; `None` is below everything.
    pub low: Option<Value>,
    /// Where it ends; `None` is above everything.
    pub high: Option<Value>,
    /// How far it is.
    pub state: RangeState,
    /// The target holds something of it already, which is compared instead of copied over.
    pub compare: bool,
    /// Documents copied, once done.
    pub documents: u64,
    /// Bytes copied, once done.
    pub bytes: u64,
}

/// Whether all that there is of a collection was there before, and is compared; nothing is of one
/// without ranges.
pub fn is_compared<'a>(ranges: impl IntoIterator<Item = &'a RangeEntry>) -> bool {
    let mut ranges = ranges.into_iter().peekable();
    ranges.peek().is_some() && ranges.all(|range| range.compare)
}

impl StateStore {
    /// The command that changes a range, fenced like the checkpoint; must match one document.
    ///
    /// # Errors
    /// As [`Self::checkpoint_command`].
    pub fn range_command(
        &self,
        epoch: i64,
        uuid: Uuid,
        range: u32,
        update: Document,
    ) -> Result<RawDocumentBuf> {
        raw(&doc! {
            "update": RANGES,
            "updates": [{"q": {"_id": self.range_id(uuid, range), "epoch": epoch}, "u": update}],
        })
    }

    /// Forgets a collection's ranges.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn remove_ranges(&self, uuid: Uuid) -> Result<()> {
        self.note(&[self.without_ranges(uuid)?]).await
    }

    /// Forgets all ranges of this target.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn remove_all_ranges(&self) -> Result<()> {
        let remove = delete(RANGES, &doc! {"_id.t": &self.target})?;
        self.note(&[(Write::ClearRanges, remove)]).await
    }

    /// The ranges of a collection are forgotten.
    pub(super) fn without_ranges(&self, uuid: Uuid) -> Result<Noted> {
        let filter = doc! {"_id.t": &self.target, "_id.u": binary(uuid)};
        Ok((Write::RemoveRanges, delete(RANGES, &filter)?))
    }

    /// New ranges are remembered.
    pub(super) fn inserted_ranges(&self, epoch: i64, ranges: &[RangeEntry]) -> Result<Noted> {
        let documents = ranges.iter().map(|range| self.encode_range(epoch, range));
        let documents: Vec<Document> = documents.collect();
        let insert = doc! {"insert": RANGES, "documents": documents};
        Ok((Write::InsertRanges, raw(&insert)?))
    }

    fn encode_range(&self, epoch: i64, range: &RangeEntry) -> Document {
        let mut document = doc! {
            "_id": self.range_id(range.uuid, range.number),
            "epoch": epoch,
            "state": "pending",
        };
        if range.compare {
            document.insert("compare", true);
        }
        for (name, bound) in [("low", &range.low), ("high", &range.high)] {
            if let Some(bound) = bound {
                document.insert(name, to_bson(bound));
            }
        }
        document
    }

    /// Makes the ranges ours: whoever held them with an older epoch can no longer copy.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn claim_ranges(&self, epoch: i64) -> Result<()> {
        let claim = doc! {
            "update": RANGES,
            "updates": [{
                "q": {"_id.t": &self.target},
                "u": {"$set": {"epoch": epoch}},
                "multi": true,
            }],
        };
        self.note(&[(Write::ClaimRanges, raw(&claim)?)]).await
    }

    /// Notes that a range is about to be copied.
    ///
    /// # Errors
    /// [`Error::Fenced`]; what the exchange met.
    pub async fn begin_range(&self, epoch: i64, uuid: Uuid, range: u32) -> Result<()> {
        let update = doc! {"$set": {"state": "copying"}};
        let reply = self
            .commands
            .write(
                Write::BeginRange,
                doc! {
                    "update": RANGES,
                    "updates": [{"q": {"_id": self.range_id(uuid, range), "epoch": epoch}, "u": update}],
                    "writeConcern": {"w": "majority"},
                },
            )
            .await?;
        fenced_unless(number(&reply, "n") == 1, epoch)
    }

    /// All ranges, in no order.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn load_ranges(&self) -> Result<Vec<RangeEntry>> {
        let mut entries = Vec::new();
        for document in self.find(RANGES).await? {
            entries.push(parse(&document)?);
        }
        Ok(entries)
    }

    /// The update that completes a range.
    pub fn range_done(at: Span, documents: u64, bytes: u64) -> Document {
        let long = |value| i64::try_from(value).unwrap_or(i64::MAX);
        doc! {"$set": {
            "state": "done",
            "from": Timestamp::from(at.from),
            "at": Timestamp::from(at.to),
            "documents": long(documents),
            "bytes": long(bytes),
        }}
    }
}

fn parse(document: &Document) -> Result<RangeEntry> {
    let fields = Fields::new("a document in ranges", document);
    let (id, uuid) = fields.id()?;
    let state = match fields.required("state", Bson::as_str)? {
        "pending" => RangeState::Pending,
        "copying" => RangeState::Copying,
        "done" => {
            let to: ClusterTime = fields.required("at", Bson::as_timestamp)?.into();
            let from = fields.optional("from", Bson::as_timestamp)?;
            RangeState::Done(Span {
                from: from.map_or(to, Into::into),
                to,
            })
        }
        _ => return Err(fields.damaged("state", "is not what it should be")),
    };
    Ok(RangeEntry {
        uuid,
        number: id.required("n", |n| u32::try_from(integer(n)?).ok())?,
        low: fields.optional("low", from_bson)?,
        high: fields.optional("high", from_bson)?,
        state,
        compare: fields.optional("compare", Bson::as_bool)?.unwrap_or(false),
        documents: fields.count("documents")?,
        bytes: fields.count("bytes")?,
    })
}
