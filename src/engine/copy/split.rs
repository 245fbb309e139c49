//! Cuts a collection into ranges.

use bson::{Document, doc};
use futures::StreamExt;
use mongodb::Database;

use crate::engine::bson::order::{Value, compare_with_plain};
use crate::engine::bson::scan::find;
use crate::engine::command::{COMMAND_LIMIT, Commands, number, within};
use crate::engine::error::{Error, Result, Side, code};

/// Ids sampled for each bound: enough that ranges differ by a quarter or so in size.
const SAMPLES_PER_RANGE: u64 = 12;

/// Most ids sampled of one collection: beyond that ranges differ more in size.
const MOST_SAMPLES: u64 = 60_000;

/// Ids sampled in one go: as many random reads are over within seconds, on a cold disk too.
const SAMPLED_AT_ONCE: u64 = 2000;

/// Of a collection of more bytes at most one document in 25 is sampled: beyond one in 20 a server
/// reads all of it instead.
const SCANNED: u64 = 256 << 20;
const SAMPLED_OF: u64 = 25;

/// Bytes of the longest `_id` that is a bound: thousands of them are held, and noted at once. Longer
/// ones fall between others.
const LONGEST_BOUND: usize = 512;

/// Most ranges of one collection; beyond that they grow.
const MOST_RANGES: u64 = 20_000;

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
    let mut left = samples(size, ranges);
    let mut ids: Vec<Value> = Vec::new();
    while left > 0 {
        let now = left.min(SAMPLED_AT_ONCE);
        match sample(source, collection, now).await {
            Ok(more) => ids.extend(more),
            // Ranges that differ in size are better than none.
            Err(error @ Error::Timeout { .. }) => {
                tracing::warn!(collection, "{error}; cutting it by what is known");
                break;
            }
            Err(error) => return Err(error),
        }
        left -= now;
    }
    ids.sort_by(|a, b| compare_with_plain(a.kind, &a.bytes, b));
    Ok(choose(&ids, usize::try_from(ranges).unwrap_or(usize::MAX)))
}

/// How many ids to sample for so many ranges.
fn samples(size: Size, ranges: u64) -> u64 {
    let wanted = (ranges * SAMPLES_PER_RANGE).min(MOST_SAMPLES);
    if size.bytes <= SCANNED {
        wanted
    } else {
        wanted.min(size.documents / SAMPLED_OF)
    }
}

/// Some ids that may be bounds, ascending by our own order: where that differs from the server's,
/// the id is not used.
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
            return Ok(ascending(ids));
        };
        let Ok(documents) = batch.doc_slices() else {
            continue;
        };
        ids.extend(
            documents
                .into_iter()
                .flatten()
                .filter_map(|document| find(document.as_document()?.as_bytes(), b"_id"))
                .filter(|id| id.value.len() <= LONGEST_BOUND)
                .map(Value::of),
        );
    }
}

/// Those that may be bounds, and are not before the one before.
fn ascending(ids: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for id in ids.into_iter().filter(Value::is_plain) {
        let ascends = kept
            .last()
            .is_none_or(|last| compare_with_plain(last.kind, &last.bytes, &id).is_le());
        if ascends {
            kept.push(id);
        }
    }
    kept
}

/// Sampled ids that cut the sample into so many equal parts, strictly ascending.
fn choose(sorted: &[Value], ranges: usize) -> Vec<Value> {
    let places = (1..ranges).map(|n| n * sorted.len() / ranges);
    // Nothing that is known lies before the first.
    let bounds = places.filter(|place| *place > 0);
    let mut bounds: Vec<Value> = bounds.filter_map(|it| sorted.get(it).cloned()).collect();
    bounds.dedup_by(|a, b| compare_with_plain(a.kind, &a.bytes, b).is_eq());
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
        // Seven ids for each of five ranges would leave 12 for the last one.
        assert_eq!(choose(&samples, 5).last(), Some(&int(32)));
    }

    #[test]
    fn long_strings_are_bounds() {
        let text = |length: i32| {
            let mut bytes = (length + 1).to_le_bytes().to_vec();
            bytes.resize(usize::try_from(length).unwrap() + 5, b'x');
            *bytes.last_mut().unwrap() = 0;
            Value {
                kind: kind::STRING,
                bytes,
            }
        };
        for length in [0, 100, 127, 200, 254, 300, 500] {
            assert!(text(length).is_plain(), "{length}");
        }
    }

    #[test]
    fn repeated_and_unusual_ids_are_no_bounds() {
        let null = Value {
            kind: 0x0A,
            bytes: Vec::new(),
        };
        let sampled = vec![null.clone(), int(0), int(1), int(1), null, int(2), int(2)];
        let sampled = ascending(sampled);
        assert_eq!(sampled.len(), 5);
        assert_eq!(choose(&sampled, 6), [int(1), int(2)]);
    }

    #[test]
    fn no_id_is_used_where_the_servers_order_is_another() {
        let sampled = vec![int(1), int(3), int(2), int(4)];
        assert_eq!(ascending(sampled), [int(1), int(3), int(4)]);
    }

    #[test]
    fn a_large_collection_is_not_read_as_a_whole_to_cut_it() {
        let large = Size {
            documents: 100_000,
            bytes: 30 << 30,
        };
        assert_eq!(samples(large, 480), 4000);
        let small = Size {
            documents: 60,
            bytes: 12_000,
        };
        assert_eq!(samples(small, 8), 96);
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
