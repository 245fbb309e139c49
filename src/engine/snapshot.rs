//! Reads of the source at one cluster time, pinned to a collection by UUID.

use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf, Timestamp};
use mongodb::Database;
use mongodb::error::ErrorKind;
use mongodb::raw_batch_cursor::RawBatchCursor;

use super::bson::encode::Encoder;
use super::bson::scan::kind;
use super::command::within;
use super::error::{Error, Result, Side, code};
use super::position::ClusterTime;
use super::stream::event::Uuid;

/// Longest wait for the first or the next batch of a read.
pub const READ_LIMIT: Duration = Duration::from_secs(60);

/// A read at one time.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotFind<'a> {
    /// The collection's name now; another collection of this name is not read.
    pub collection: &'a str,
    /// The collection's identity.
    pub uuid: Uuid,
    /// The time whose state is read.
    pub at: ClusterTime,
    /// The filter.
    pub filter: &'a RawDocument,
    /// Read by the index on `_id`, in its order.
    pub by_id: bool,
    /// Documents in one batch.
    pub batch_size: u32,
}

/// How a read can end other than with documents.
#[derive(Debug)]
pub enum ReadEnd {
    /// The collection has another name now.
    Renamed(String),
    /// The collection no longer exists.
    Gone,
    /// The source no longer has (or cannot show) the state of that time; a newer one will do.
    TooOld,
    /// Anything else.
    Failed(Error),
}

impl SnapshotFind<'_> {
    /// Sends the read.
    ///
    /// # Errors
    /// See [`ReadEnd`].
    pub async fn run(&self, source: &Database) -> Result<RawBatchCursor, ReadEnd> {
        let cursor = source
            .run_raw_cursor_command(self.command())
            .batch_size(self.batch_size)
            .batch();
        within(Side::Source, "read documents", READ_LIMIT, cursor)
            .await
            .map_err(ReadEnd::of)
    }

    fn command(&self) -> RawDocumentBuf {
        let mut encoder = Encoder::with_capacity(256 + self.filter.as_bytes().len());
        let root = encoder.begin();
        encoder.string("find", self.collection);
        encoder.raw(kind::DOCUMENT, b"filter", self.filter.as_bytes());
        if self.by_id {
            for name in ["hint", "sort"] {
                let document = encoder.begin_document(name);
                encoder.int("_id", 1);
                encoder.end(document);
            }
        }
        encoder.int(
            "batchSize",
            i32::try_from(self.batch_size).unwrap_or(i32::MAX),
        );
        let concern = encoder.begin_document("readConcern");
        encoder.string("level", "snapshot");
        encoder.timestamp("atClusterTime", Timestamp::from(self.at));
        encoder.end(concern);
        encoder.uuid("collectionUUID", self.uuid);
        encoder.end(root);
        encoder.finish()
    }
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
