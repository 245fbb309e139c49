//! The one repair primitive: what the source holds for these keys.
//!
//! Documents are read as of the mirror's position, which makes them exactly what the target must
//! hold. Where the source no longer keeps that state (five minutes by default, `facts` mongodb
//! 6.17), they are read as of a later time, and the caller must remember that they are ahead.

use bson::RawDocumentBuf;
use futures::StreamExt;
use mongodb::Database;

use super::bson::encode::Encoder;
use super::bson::order::Value;
use super::bson::scan::find;
use super::command::within;
use super::connection::probe::operation_time;
use super::error::{Result, Side};
use super::position::ClusterTime;
use super::snapshot::{READ_LIMIT, ReadEnd, SnapshotFind};
use super::stream::event::Uuid;

/// Keys asked for at once.
const KEYS: usize = 500;

/// Documents of one collection as of one time.
#[derive(Debug)]
pub struct Fetched {
    /// In the order of the keys; `None` where there is no such document.
    pub documents: Vec<Option<Vec<u8>>>,
    /// The time they were read at: the one asked for, or a later one.
    pub as_of: ClusterTime,
}

/// Reads documents by key.
///
/// # Errors
/// What the exchange met. A collection that is gone holds no documents; that is not an error.
pub async fn fetch(
    source: &Database,
    collection: &str,
    uuid: Uuid,
    keys: &[&Value],
    at: ClusterTime,
) -> Result<Fetched> {
    let mut name = collection.to_owned();
    let mut as_of = at;
    'again: loop {
        let mut documents: Vec<Option<Vec<u8>>> = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(KEYS) {
            match read(source, &name, uuid, chunk, as_of).await {
                Ok(found) => documents.extend(found),
                Err(ReadEnd::Renamed(now)) => {
                    name = now;
                    continue 'again;
                }
                Err(ReadEnd::Gone) => documents.extend(chunk.iter().map(|_| None)),
                Err(ReadEnd::TooOld) => {
                    as_of = operation_time(source.client()).await?.max(at);
                    continue 'again;
                }
                Err(ReadEnd::Failed(error)) => return Err(error),
            }
        }
        return Ok(Fetched { documents, as_of });
    }
}

async fn read(
    source: &Database,
    collection: &str,
    uuid: Uuid,
    keys: &[&Value],
    at: ClusterTime,
) -> Result<Vec<Option<Vec<u8>>>, ReadEnd> {
    let filter = filter(keys);
    let find_keys = SnapshotFind {
        collection,
        uuid,
        at,
        filter: &filter,
        by_id: false,
        batch_size: 101,
    };
    let mut cursor = find_keys.run(source).await?;
    let mut documents = vec![None; keys.len()];
    loop {
        let next = async { cursor.next().await.transpose() };
        let batch = within(Side::Source, "read documents", READ_LIMIT, next)
            .await
            .map_err(ReadEnd::of)?;
        let Some(batch) = batch else {
            return Ok(documents);
        };
        let Ok(found) = batch.doc_slices() else {
            continue;
        };
        for document in found
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_document())
        {
            let Some(id) = find(document.as_bytes(), b"_id") else {
                continue;
            };
            let key = keys
                .iter()
                .position(|key| key.kind == id.kind && key.bytes == id.value);
            if let Some(key) = key {
                documents[key] = Some(document.as_bytes().to_vec());
            }
        }
    }
}

/// `{_id: {$in: […]}}`.
fn filter(keys: &[&Value]) -> RawDocumentBuf {
    let mut encoder = Encoder::default();
    let root = encoder.begin();
    let condition = encoder.begin_document("_id");
    let list = encoder.begin_array("$in");
    for (index, key) in keys.iter().enumerate() {
        encoder.raw_value(index, key.kind, &key.bytes);
    }
    encoder.end(list);
    encoder.end(condition);
    encoder.end(root);
    encoder.finish()
}
