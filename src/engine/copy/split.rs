//! Cuts a collection into ranges.

use bson::{Document, doc};
use futures::StreamExt;
use mongodb::Database;

use crate::engine::bson::order::{Value, compare_with_plain};
use crate::engine::bson::scan::find;
use crate::engine::command::{COMMAND_LIMIT, Commands, number, within};
use crate::engine::error::{Result, Side, code};

/// Ids sampled for each bound: enough that ranges differ by a quarter or so in size.
const SAMPLES_PER_RANGE: u64 = 12;

/// Most ranges of one collection; beyond that they grow.
const MOST_RANGES: u64 = 100_000;

/// How large a collection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Size {
    /// Documents.
    pub documents: u64,
    /// Bytes of BSON.
    pub bytes: u64,
}

impl Size {
    /// Documents of this size that make about `bytes`.
    pub fn documents_in(&self, bytes: u64) -> u32 {
        let average = (self.bytes / self.documents.max(1)).max(1);
        u32::try_from(bytes / average)
            .unwrap_or(u32::MAX)
            .clamp(1, 10_000)
    }
}

/// Asks for a collection's size; nothing if it is gone.
///
/// # Errors
/// What the exchange met.
pub async fn size(source: &Commands, collection: &str) -> Result<Size> {
    match source
        .read(
            "ask for a collection's size",
            doc! {"collStats": collection},
        )
        .await
    {
        Ok(reply) => {
            let count = |name| u64::try_from(number(&reply, name)).unwrap_or(0);
            let series = reply.get_document("timeseries").ok();
            let buckets =
                series.map(|series| u64::try_from(number(series, "bucketCount")).unwrap_or(0));
            Ok(Size {
                // Of the buckets of a time series no count is told.
                documents: buckets.unwrap_or_else(|| count("count")),
                bytes: count("size"),
            })
        }
        Err(error) if error.code() == Some(code::NAMESPACE_NOT_FOUND) => Ok(Size::default()),
        Err(error) => Err(error),
    }
}

/// The bounds between the ranges of a collection, ascending; none if one range will do.
///
/// # Errors
/// What the exchange met.
pub async fn bounds(
    source: &Database,
    collection: &str,
    size: Size,
    range_bytes: u64,
) -> Result<Vec<Value>> {
    let ranges = size.bytes.div_ceil(range_bytes.max(1)).min(MOST_RANGES);
    if ranges < 2 {
        return Ok(Vec::new());
    }
    let samples = sample(source, collection, ranges * SAMPLES_PER_RANGE).await?;
    Ok(choose(
        &samples,
        usize::try_from(ranges).unwrap_or(usize::MAX),
    ))
}

async fn sample(source: &Database, collection: &str, samples: u64) -> Result<Vec<Value>> {
    let doing = "sample a collection";
    let samples = i64::try_from(samples).unwrap_or(i64::MAX);
    let sampled = source.collection::<Document>(collection);
    let open = sampled
        .aggregate([
            doc! {"$sample": {"size": samples}},
            doc! {"$project": {"_id": 1}},
            doc! {"$sort": {"_id": 1}},
        ])
        .batch();
    let mut cursor = within(Side::Source, doing, COMMAND_LIMIT, open).await?;
    let mut ids = Vec::new();
    loop {
        let next = async { cursor.next().await.transpose() };
        let Some(batch) = within(Side::Source, doing, COMMAND_LIMIT, next).await? else {
            return Ok(ids);
        };
        let Ok(documents) = batch.doc_slices() else {
            continue;
        };
        ids.extend(
            documents
                .into_iter()
                .flatten()
                .filter_map(|document| find(document.as_document()?.as_bytes(), b"_id"))
                .map(Value::of),
        );
    }
}

/// Every n-th sampled id that may be a bound, strictly ascending by our own order: where that
/// differs from the server's, the id is not used.
fn choose(sorted: &[Value], ranges: usize) -> Vec<Value> {
    let step = (sorted.len() / ranges).max(1);
    let mut bounds: Vec<Value> = Vec::new();
    for candidate in sorted.iter().skip(step).step_by(step) {
        if !candidate.is_plain() {
            continue;
        }
        let ascends = bounds
            .last()
            .is_none_or(|last| compare_with_plain(last.kind, &last.bytes, candidate).is_lt());
        if ascends {
            bounds.push(candidate.clone());
        }
    }
    bounds.truncate(ranges.saturating_sub(1));
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::bson::scan::kind;

    fn int(n: i32) -> Value {
        Value {
            kind: kind::INT32,
            bytes: n.to_le_bytes().to_vec(),
        }
    }

    #[test]
    fn bounds_are_spread_over_the_sample() {
        let samples: Vec<Value> = (0..40).map(int).collect();
        assert_eq!(choose(&samples, 4), [int(10), int(20), int(30)]);
    }

    #[test]
    fn repeated_and_unusual_ids_are_no_bounds() {
        let null = Value {
            kind: 0x0A,
            bytes: Vec::new(),
        };
        let samples = vec![null.clone(), null, int(1), int(1), int(2), int(2)];
        assert_eq!(choose(&samples, 6), [int(1), int(2)]);
    }

    #[test]
    fn batches_are_sized_by_the_average_document() {
        let size = Size {
            documents: 10,
            bytes: 10_000,
        };
        assert_eq!(size.documents_in(1_500_000), 1500);
        assert_eq!(Size::default().documents_in(1_500_000), 10_000);
    }
}
