//! Reads at one cluster time: of the source, pinned to a collection by UUID, or of the target.

use std::time::Duration;

use bson::{RawBson, RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use futures::StreamExt;
use mongodb::Database;
use mongodb::error::ErrorKind;
use mongodb::options::SelectionCriteria;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::bson::encode::Encoder;
use super::bson::order::Value;
use super::bson::scan::kind;
use super::command::within;
use super::error::{Error, Result, Side, code};
use super::position::ClusterTime;
use super::stream::event::Uuid;

/// Longest wait for the first or the next batch of a read.
pub const READ_LIMIT: Duration = Duration::from_secs(60);

/// The type of the value behind all others.
pub const MAX_KEY: u8 = 0x7F;

/// The document behind all others, which no read shows that begins somewhere ([`Order::ById`]).
pub fn only_max_key() -> RawDocumentBuf {
    rawdoc! {"_id": RawBson::MaxKey}
}

/// A read at one time.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotFind<'a> {
    /// The collection's name now.
    pub collection: &'a str,
    /// The collection's identity: another collection of this name is not read. Unknown for the
    /// target's collections, which only this mirror renames.
    pub uuid: Option<Uuid>,
    /// The time whose state is read; without one, what is there now.
    pub at: Option<ClusterTime>,
    /// The filter.
    pub filter: &'a RawDocument,
    /// In which order, and how much of it.
    pub order: Order<'a>,
    /// Documents in one batch.
    pub batch_size: u32,
}

/// The order of a read.
#[derive(Clone, Copy, Debug)]
pub enum Order<'a> {
    /// As the server likes.
    Any,
    /// By the index on `_id`, from `min` (inclusive) to `max` (exclusive). These are bounds in the
    /// index itself: they hold for ids of all types, and under any collation (`facts` mongodb
    /// 3.6). With `min` alone the end is open: an `_id` MaxKey is not shown, but in a clustered
    /// collection.
    ById {
        /// Where to begin; without one, at the first id of all.
        min: Option<&'a Value>,
        /// Where to end; without one, behind the last id of all.
        max: Option<&'a Value>,
    },
}

impl Order<'_> {
    /// Everything, by `_id`.
    pub const BY_ID: Self = Self::ById {
        min: None,
        max: None,
    };
}

/// How a read can end other than with documents.
#[derive(Debug)]
pub enum ReadEnd {
    /// The collection has another name now.
    Renamed(String),
    /// The collection no longer exists.
    Gone,
    /// The server no longer has (or cannot show) the state of that time; a newer one will do.
    TooOld,
    /// Anything else.
    Failed(Error),
}

impl SnapshotFind<'_> {
    /// Sends the read.
    ///
    /// # Errors
    /// See [`ReadEnd`].
    pub async fn run(&self, side: Side, db: &Database) -> Result<RawBatchCursor, ReadEnd> {
        match self.send(side, db).await {
            // Of a capped collection no state is shown, and that is said before it is told that
            // the one which was meant has another name now.
            Err(error) if error.code() == Some(code::SNAPSHOT_UNAVAILABLE) => {
                let now = Self { at: None, ..*self };
                Err(now
                    .send(side, db)
                    .await
                    .map_or_else(ReadEnd::of, |_| ReadEnd::TooOld))
            }
            outcome => outcome.map_err(ReadEnd::of),
        }
    }

    async fn send(&self, side: Side, db: &Database) -> Result<RawBatchCursor, Error> {
        // Any member that has reached the time shows the same; what is there now, only the primary
        // knows.
        let members = self.at.and(db.selection_criteria());
        open(side, db, members, self.command(), self.batch_size).await
    }

    fn command(&self) -> RawDocumentBuf {
        let mut encoder = Encoder::with_capacity(256 + self.filter.as_bytes().len());
        let root = encoder.begin();
        encoder.string("find", self.collection);
        encoder.raw(kind::DOCUMENT, b"filter", self.filter.as_bytes());
        if let Order::ById { min, max } = self.order {
            for name in ["hint", "sort"] {
                let document = encoder.begin_document(name);
                encoder.int("_id", 1);
                encoder.end(document);
            }
            for (name, bound) in [("min", min), ("max", max)] {
                if let Some(bound) = bound {
                    let document = encoder.begin_document(name);
                    encoder.raw(bound.kind, b"_id", &bound.bytes);
                    encoder.end(document);
                }
            }
        }
        encoder.int(
            "batchSize",
            i32::try_from(self.batch_size).unwrap_or(i32::MAX),
        );
        if let Some(at) = self.at {
            let concern = encoder.begin_document("readConcern");
            encoder.string("level", "snapshot");
            encoder.timestamp("atClusterTime", Timestamp::from(at));
            encoder.end(concern);
        }
        if let Some(uuid) = self.uuid {
            encoder.uuid("collectionUUID", uuid);
        }
        encoder.end(root);
        encoder.finish()
    }
}

/// Sends a read to these members; without any, to the primary.
///
/// # Errors
/// What the exchange met.
pub async fn open(
    side: Side,
    db: &Database,
    members: Option<&SelectionCriteria>,
    command: RawDocumentBuf,
    batch_size: u32,
) -> Result<RawBatchCursor> {
    let mut read = db.run_raw_cursor_command(command).batch_size(batch_size);
    if let Some(members) = members {
        read = read.selection_criteria(members.clone());
    }
    within(side, "read documents", READ_LIMIT, read.batch()).await
}

/// The next batch of a read; `None` behind the last.
///
/// # Errors
/// See [`ReadEnd`].
pub async fn next(side: Side, cursor: &mut RawBatchCursor) -> Result<Option<RawBatch>, ReadEnd> {
    let next = async { cursor.next().await.transpose() };
    within(side, "read documents", READ_LIMIT, next)
        .await
        .map_err(ReadEnd::of)
}

impl ReadEnd {
    /// Sorts an error of a read.
    pub fn of(error: Error) -> Self {
        match error.code() {
            Some(code::UUID_MISMATCH) => match actual_collection(&error) {
                Some(name) => Self::Renamed(name),
                None => Self::Gone,
            },
            Some(code::NAMESPACE_NOT_FOUND) => Self::Gone,
            Some(code::SNAPSHOT_TOO_OLD | code::SNAPSHOT_UNAVAILABLE) => Self::TooOld,
            _ => Self::Failed(error),
        }
    }
}

/// The name that the server says the UUID has now.
fn actual_collection(error: &Error) -> Option<String> {
    let Error::Driver { error, .. } = error else {
        return None;
    };
    if !matches!(error.kind.as_ref(), ErrorKind::Command(_)) {
        return None;
    }
    let reply = error.server_response()?;
    reply.get_str("actualCollection").ok().map(str::to_owned)
}
