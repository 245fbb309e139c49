//! The one repair primitive: what the source holds for these keys.
//!
//! Documents are read as of the mirror's position, which makes them exactly what the target must
//! hold. Where the source no longer keeps that state (five minutes by default, `facts` mongodb
//! 6.17), they are read as of a later time, and the caller must remember that they are ahead.

use std::collections::{HashMap, HashSet};

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use futures::StreamExt;
use mongodb::raw_batch_cursor::RawBatch;
use mongodb::{ClientSession, Database};

use super::bson::encode::Encoder;
use super::bson::order::Value;
use super::bson::scan::find;
use super::command::{COMMAND_LIMIT, within};
use super::connection::probe::operation_time;
use super::error::{Result, Side};
use super::position::ClusterTime;
use super::snapshot::{Order, ReadEnd, SnapshotFind, next};
use super::stream::event::Uuid;

/// Keys asked for at once.
const KEYS: usize = 500;

/// Documents in one reply; a server ends it at 16 MiB.
const REPLY: u32 = 101;

/// Documents of one collection as of one time.
#[derive(Debug)]
pub struct Fetched {
    /// In the order of the keys; `None` where there is no such document.
    pub documents: Vec<Option<Vec<u8>>>,
    /// Documents whose `_id` is equal to a key although its bytes are not: 1.0 for the key 1, or
    /// another spelling under a collation. The target can hold only one of both.
    pub others: Vec<Vec<u8>>,
    /// The time they were read at: the one asked for, or a later one.
    pub as_of: ClusterTime,
    /// All of them were read. Otherwise there were too many bytes, and nothing is known of the keys
    /// whose documents are not among these. Of a single key all is always read.
    pub is_whole: bool,
}

/// Reads documents by key, at most so many bytes and one reply of the server more.
///
/// # Errors
/// What the exchange met. A collection that is gone holds no documents; that is not an error.
pub async fn fetch(
    source: &Database,
    collection: &str,
    uuid: Uuid,
    keys: &[&Value],
    at: ClusterTime,
    bytes: usize,
) -> Result<Fetched> {
    let mut name = collection.to_owned();
    let mut as_of = at;
    let mut gone_at = at;
    'again: loop {
        let mut documents: Vec<Option<Vec<u8>>> = Vec::with_capacity(keys.len());
        let mut others = Vec::new();
        let mut is_whole = true;
        for chunk in keys.chunks(KEYS) {
            if !is_whole {
                documents.extend(chunk.iter().map(|_| None));
                continue;
            }
            match read(source, &name, uuid, chunk, as_of, bytes).await {
                Ok(found) => {
                    documents.extend(found.documents);
                    others.extend(found.others);
                    is_whole = found.is_whole;
                }
                Err(ReadEnd::Renamed(now)) => {
                    name = now;
                    continue 'again;
                }
                Err(ReadEnd::Gone) => {
                    // Later than asked for: its drop is still on the way.
                    gone_at = operation_time(source.client(), Side::Source).await?.max(at);
                    documents.extend(chunk.iter().map(|_| None));
                }
                Err(ReadEnd::TooOld) => {
                    as_of = operation_time(source.client(), Side::Source).await?.max(at);
                    continue 'again;
                }
                Err(ReadEnd::Failed(error)) => return Err(error),
            }
        }
        return Ok(Fetched {
            documents,
            others,
            as_of: as_of.max(gone_at),
            is_whole,
        });
    }
}

async fn read(
    source: &Database,
    collection: &str,
    uuid: Uuid,
    keys: &[&Value],
    at: ClusterTime,
    bytes: usize,
) -> Result<Fetched, ReadEnd> {
    let filter = filter(keys);
    let find_keys = SnapshotFind {
        collection,
        uuid: Some(uuid),
        at: Some(at),
        filter: &filter,
        order: Order::Any,
        batch_size: REPLY,
    };
    let mut cursor = find_keys.run(Side::Source, source).await?;
    let mut documents = vec![None; keys.len()];
    let mut others = Vec::new();
    let mut read = 0;
    loop {
        let batch = next(Side::Source, &mut cursor).await?;
        let is_whole = batch.is_none();
        let batch = batch.filter(|_| read < bytes || keys.len() == 1);
        let Some(batch) = batch else {
            return Ok(Fetched {
                documents,
                others,
                as_of: at,
                is_whole,
            });
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
            let document = document.as_bytes().to_vec();
            read += document.len();
            match key {
                Some(key) => documents[key] = Some(document),
                None => others.push(document),
            }
        }
    }
}

/// What the target holds of these keys now, within the session's transaction.
///
/// # Errors
/// What the exchange met.
pub async fn there(
    target: &Database,
    collection: &str,
    keys: &[&Value],
    session: &mut ClientSession,
) -> Result<HashMap<Value, Vec<u8>>> {
    let mut found = HashMap::new();
    for chunk in keys.chunks(KEYS) {
        let doing = "read documents to compare";
        let command = rawdoc! {"find": collection, "filter": filter(chunk)};
        let exchange = async {
            let read = target.run_raw_cursor_command(command);
            let mut cursor = read.session(&mut *session).batch().await?;
            let mut stream = cursor.stream(session);
            let mut batches = Vec::new();
            while let Some(batch) = stream.next().await.transpose()? {
                batches.push(batch);
            }
            Ok(batches)
        };
        for batch in within(Side::Target, doing, COMMAND_LIMIT, exchange).await? {
            for document in documents(&batch) {
                if let Some(id) = find(document.as_bytes(), b"_id") {
                    found.insert(Value::of(id), document.as_bytes().to_vec());
                }
            }
        }
    }
    Ok(found)
}

/// Which of the documents that the target holds of these keys now are such ones. Outside of
/// transactions, which capped collections cannot be read in at one time.
///
/// # Errors
/// What the exchange met.
pub async fn which(
    target: &Database,
    collection: &str,
    keys: &[&Value],
    is_it: impl Fn(&RawDocument) -> bool,
) -> Result<HashSet<Value>> {
    let mut which = HashSet::new();
    for chunk in keys.chunks(KEYS) {
        let command = rawdoc! {"find": collection, "filter": filter(chunk)};
        let read = target.run_raw_cursor_command(command).batch_size(REPLY);
        let doing = "read documents of a capped collection";
        let mut cursor = within(Side::Target, doing, COMMAND_LIMIT, read.batch()).await?;
        loop {
            let more = async { cursor.next().await.transpose() };
            match within(Side::Target, doing, COMMAND_LIMIT, more).await? {
                Some(batch) => {
                    let such = documents(&batch).filter(|document| is_it(document));
                    let ids = such.filter_map(|document| find(document.as_bytes(), b"_id"));
                    which.extend(ids.map(Value::of));
                }
                None => break,
            }
        }
    }
    Ok(which)
}

fn documents(batch: &RawBatch) -> impl Iterator<Item = &RawDocument> {
    let all = batch.doc_slices().ok().into_iter();
    let all = all.flat_map(|all| all.into_iter().flatten());
    all.filter_map(|value| value.as_document())
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
