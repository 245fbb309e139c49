//! The practical limit: the same data, moved by as little code as possible.
//!
//! No ranges to persist, no transactions, no checkpoint, no order, no second look; but the same
//! bytes, the same batches, as many lanes, and the same write concern as the mirror.

use bson::{RawDocumentBuf, doc};
use futures::StreamExt;
use mongodb::raw_batch_cursor::RawBatch;
use mongodb::{Client, Database};
use mongomirror::engine::bson::encode::Encoder;
use mongomirror::engine::bson::scan::kind;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Result;
use crate::orders::{Backlog, ORDERS, majority};

/// Bytes in one insert command, as in the mirror's copy lanes.
const BATCH: u64 = 1_500_000;

/// Bytes in one range, as the mirror's default.
const RANGE: u64 = 64 << 20;

/// Updates in one command.
const STATEMENTS: u32 = 1000;

/// What is to be copied: `_id` is 0 to `documents`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// How many.
    pub documents: u32,
    /// Their size in BSON, all together.
    pub bytes: u64,
}

impl Orders {
    /// Bytes of one.
    pub fn average(self) -> f64 {
        self.bytes as f64 / f64::from(self.documents.max(1))
    }

    fn documents_in(self, bytes: u64) -> u32 {
        let average = (self.bytes / u64::from(self.documents.max(1))).max(1);
        u32::try_from(bytes / average).unwrap_or(u32::MAX).max(1)
    }

    /// The first ids of its ranges, and what is behind the last.
    fn ranges(self) -> Vec<(u32, u32)> {
        let step = self.documents_in(RANGE);
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        (0..self.documents)
            .step_by(step)
            .map(|low| (low, low.saturating_add(self.documents_in(RANGE))))
            .collect()
    }
}

/// Copies the orders with `lanes` readers, each beside its writer; returns how many it copied.
pub async fn copy(
    source: &Database,
    target: &Database,
    orders: Orders,
    lanes: usize,
) -> Result<u64> {
    let ranges = orders.ranges();
    let mut running = JoinSet::new();
    for lane in 0..lanes {
        let own: Vec<_> = ranges.iter().skip(lane).step_by(lanes).copied().collect();
        let (read, batches) = mpsc::channel(1);
        let (source, target) = (source.clone(), target.clone());
        let batch = orders.documents_in(BATCH);
        running.spawn(async move {
            let (read, written) = tokio::join!(
                read_ranges(source, own, batch, read),
                write(target, batches)
            );
            read?;
            written
        });
    }
    let mut copied = 0;
    while let Some(lane) = running.join_next().await {
        copied += lane??;
    }
    Ok(copied)
}

async fn read_ranges(
    source: Database,
    ranges: Vec<(u32, u32)>,
    batch: u32,
    read: mpsc::Sender<RawBatch>,
) -> Result<()> {
    for (low, high) in ranges {
        let orders = source.collection::<RawDocumentBuf>(ORDERS);
        let mut cursor = orders
            .find(doc! {"_id": {"$gte": low, "$lt": high}})
            .sort(doc! {"_id": 1})
            .batch_size(batch)
            .batch()
            .await?;
        while let Some(batch) = cursor.next().await {
            // The writer ends early only with an error, which is the one to tell.
            if read.send(batch?).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn write(target: Database, mut batches: mpsc::Receiver<RawBatch>) -> Result<u64> {
    let mut copied = 0;
    while let Some(batch) = batches.recv().await {
        let documents = batch.doc_slices()?.as_bytes();
        if documents.len() <= 5 {
            continue;
        }
        let mut encoder = Encoder::with_capacity(documents.len() + 256);
        let root = encoder.begin();
        encoder.string("insert", ORDERS);
        encoder.raw(kind::ARRAY, b"documents", documents);
        encoder.bool("ordered", false);
        encoder.bool("bypassDocumentValidation", true);
        majority(&mut encoder);
        encoder.end(root);
        copied += run(&target, encoder.finish(), "n").await?;
    }
    Ok(copied)
}

/// Makes all updates of the backlog, one command after the other; returns how many changed
/// something.
pub async fn update(db: &Database, backlog: Backlog) -> Result<u64> {
    let mut changed = 0;
    let mut from = 0;
    while from < backlog.updates {
        let to = backlog.updates.min(from + STATEMENTS);
        changed += run(db, backlog.command(from, to), "nModified").await?;
        from = to;
    }
    Ok(changed)
}

/// Runs a write command; returns the reply's count of this name.
pub async fn run(db: &Database, command: RawDocumentBuf, count: &str) -> Result<u64> {
    let reply = db.run_raw_command(command).await?;
    if reply.contains_key("writeErrors") || reply.contains_key("writeConcernError") {
        return Err(format!("the server refused a write: {reply}").into());
    }
    Ok(u64::try_from(reply.get_i32(count)?)?)
}

/// A client as the mirror's: room for all lanes, quickly connected.
pub async fn connect(uri: &str) -> Result<Client> {
    let mut options = mongodb::options::ClientOptions::parse(uri).await?;
    options.max_pool_size = Some(24);
    options.max_connecting = Some(8);
    Ok(Client::with_options(options)?)
}
