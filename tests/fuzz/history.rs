//! Was the target really a state that the source had?
//!
//! The checkpoint and all documents of the target are read in one snapshot, so they belong
//! together: the target says that it is the source as of time T. Then the source is read as of T,
//! which servers allow for some minutes, and both are compared byte for byte. None of the
//! product's code takes part.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocument, RawDocumentBuf, Timestamp, doc};
use futures::{StreamExt, TryStreamExt};
use mongodb::options::ReadConcern;
use mongodb::raw_batch_cursor::RawBatch;
use mongodb::{ClientSession, Database};

use crate::Result;
use crate::servers::Databases;

/// Collections come and go under the reader; then it looks again, so many times.
const TRIES: u32 = 5;

/// Longest time for one look: a server may be frozen or away.
const LIMIT: Duration = Duration::from_secs(30);

/// Longest chain of oplog entries of one transaction; a plan's are far smaller.
const CHAIN: u32 = 50;

/// What a check found.
pub enum Checked {
    /// Everything compared was equal.
    Same {
        /// So many collections.
        collections: usize,
        /// So many documents.
        documents: usize,
    },
    /// Nothing could be compared.
    Unclear(String),
    /// The target was not what it said to be.
    Different(String),
}

/// Compares the target with the source's past.
pub async fn check(databases: &Databases) -> Checked {
    let mut last = Checked::Unclear(String::new());
    for _ in 0..TRIES {
        last = match tokio::time::timeout(LIMIT, look(databases)).await {
            Ok(Ok(checked)) => checked,
            Ok(Err(error)) => Checked::Unclear(error.to_string()),
            Err(_) => Checked::Unclear("no answer".to_owned()),
        };
        if !matches!(last, Checked::Unclear(_)) {
            break;
        }
    }
    last
}

async fn look(databases: &Databases) -> Result<Checked> {
    let before = listed(&databases.target).await?;
    let mut session = databases.target.client().start_session().await?;
    session
        .start_transaction()
        .read_concern(ReadConcern::snapshot())
        .await?;
    let read = Copy::read(&databases.target, &before, &mut session).await;
    let _ = session.abort_transaction().await;
    let Some(copy) = read? else {
        return Ok(Checked::Unclear("nothing is copied yet".to_owned()));
    };
    // A command on collections is not atomic with what the mirror remembers of them.
    if listed(&databases.target).await? != before {
        return Ok(Checked::Unclear(
            "the target's collections change".to_owned(),
        ));
    }
    if creates_collections(databases, copy.at).await? {
        let why = "a transaction that creates collections is applied in parts";
        return Ok(Checked::Unclear(why.to_owned()));
    }
    let (mut collections, mut documents) = (0, 0);
    for (name, uuid, there) in &copy.collections {
        // Gone or changed since: its past can no longer be read.
        let Ok(mut past) = past(&databases.source, uuid, copy.at).await else {
            continue;
        };
        past.sort_unstable();
        if past != *there {
            let at = (copy.at.time, copy.at.increment);
            return Ok(Checked::Different(format!(
                "{name} was not what the source was at {at:?}: {}",
                differences(&past, there)
            )));
        }
        collections += 1;
        documents += there.len();
    }
    if collections == 0 {
        return Ok(Checked::Unclear(
            "no collection could be compared".to_owned(),
        ));
    }
    Ok(Checked::Same {
        collections,
        documents,
    })
}

/// The target at one moment.
struct Copy {
    /// What it says of itself: the source as of this time.
    at: Timestamp,
    /// Name, the source's UUID, and sorted documents of what is copied.
    collections: Vec<(String, Bson, Vec<Vec<u8>>)>,
}

impl Copy {
    async fn read(
        target: &Database,
        listed: &BTreeMap<String, String>,
        session: &mut ClientSession,
    ) -> Result<Option<Self>> {
        let state = target.client().database("mongomirror");
        let ours = target.name().to_owned();
        let checkpoints = state.collection::<Document>("checkpoints");
        let filter = doc! {"_id": &ours};
        let Some(checkpoint) = checkpoints.find_one(filter).session(&mut *session).await? else {
            return Ok(None);
        };
        let Ok(position) = checkpoint.get_document("position") else {
            return Ok(None);
        };
        // Both sides are about to be compared, after lost history.
        if checkpoint.get_bool("resync").unwrap_or(false) {
            return Ok(None);
        }
        let at = position.get_timestamp("time")?;
        // Some documents were read as of a later time, which is not reached yet.
        let ahead = checkpoint.get_timestamp("aheadUntil");
        if ahead.is_ok_and(|until| until > at) {
            return Ok(None);
        }
        let mut being_copied = BTreeSet::new();
        for range in all(&state, "ranges", &ours, session).await? {
            being_copied.insert(uuid_of(&range).to_string());
        }
        let mut collections = Vec::new();
        for entry in all(&state, "catalog", &ours, session).await? {
            let (name, uuid) = (entry.get_str("name")?, uuid_of(&entry));
            let copied = entry.get_bool("copied")? && !being_copied.contains(&uuid.to_string());
            let left_out = entry.get_str("leftOut").is_ok();
            if !copied || left_out || !listed.contains_key(name) {
                continue;
            }
            let find = doc! {"find": name};
            let cursor = target
                .run_cursor_command(find)
                .session(&mut *session)
                .batch();
            let mut cursor = cursor.await?;
            let mut documents = Vec::new();
            let mut batches = cursor.stream(session);
            while let Some(batch) = batches.next().await {
                take(&batch?, &mut documents)?;
            }
            documents.sort_unstable();
            collections.push((name.to_owned(), uuid, documents));
        }
        Ok(Some(Self { at, collections }))
    }
}

async fn all(
    state: &Database,
    collection: &str,
    ours: &str,
    session: &mut ClientSession,
) -> Result<Vec<Document>> {
    let collection = state.collection::<Document>(collection);
    let mut cursor = collection
        .find(doc! {"_id.t": ours})
        .session(&mut *session)
        .await?;
    Ok(cursor.stream(session).try_collect().await?)
}

fn uuid_of(entry: &Document) -> Bson {
    let id = entry.get_document("_id").ok();
    id.and_then(|id| id.get("u")).cloned().unwrap_or(Bson::Null)
}

/// Names and identities of plain collections. Capped ones cannot be part of transactions, so the
/// target is not at one time there.
async fn listed(target: &Database) -> Result<BTreeMap<String, String>> {
    let filter = doc! {"type": "collection", "options.capped": {"$ne": true}};
    let command = doc! {"listCollections": 1, "filter": filter};
    let cursor = target.run_cursor_command(command).await?;
    let listed: Vec<Document> = cursor.try_collect().await?;
    let pairs = listed.iter().filter_map(|listed| {
        let uuid = listed.get_document("info").ok()?.get("uuid")?;
        Some((listed.get_str("name").ok()?.to_owned(), uuid.to_string()))
    });
    Ok(pairs
        .filter(|(name, _)| !name.starts_with("system."))
        .collect())
}

/// All documents of a collection of the source as of some time, whatever it is called now.
async fn past(source: &Database, uuid: &Bson, at: Timestamp) -> Result<Vec<Vec<u8>>> {
    let uuid = match uuid {
        Bson::Binary(binary) => Bson::Binary(Binary {
            subtype: BinarySubtype::Uuid,
            bytes: binary.bytes.clone(),
        }),
        _ => return Err("a catalog entry without a UUID".into()),
    };
    let concern = doc! {"level": "snapshot", "atClusterTime": at};
    documents(source, doc! {"find": uuid, "readConcern": concern}).await
}

/// The raw documents that a command finds.
pub async fn documents(database: &Database, command: Document) -> Result<Vec<Vec<u8>>> {
    let mut cursor = database.run_cursor_command(command).batch().await?;
    let mut documents = Vec::new();
    while let Some(batch) = cursor.next().await {
        take(&batch?, &mut documents)?;
    }
    Ok(documents)
}

fn take(batch: &RawBatch, documents: &mut Vec<Vec<u8>>) -> Result<()> {
    for document in batch.doc_slices()? {
        let document = document?;
        let document = document.as_document().ok_or("a batch of something else")?;
        documents.push(document.as_bytes().to_vec());
    }
    Ok(())
}

/// Whether the transaction that the source committed at that time creates collections.
async fn creates_collections(databases: &Databases, at: Timestamp) -> Result<bool> {
    let local = databases.source.client().database("local");
    let oplog = local.collection::<RawDocumentBuf>("oplog.rs");
    let mut at = at;
    for _ in 0..CHAIN {
        let Some(entry) = oplog.find_one(doc! {"ts": at}).await? else {
            return Ok(false);
        };
        if entry.get_document("o").is_ok_and(has_command) {
            return Ok(true);
        }
        let earlier = entry
            .get_document("prevOpTime")
            .and_then(|earlier| earlier.get_timestamp("ts"));
        match earlier {
            Ok(earlier) if earlier.time > 0 => at = earlier,
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn has_command(operation: &RawDocument) -> bool {
    let Ok(operations) = operation.get_array("applyOps") else {
        return false;
    };
    operations.into_iter().flatten().any(|operation| {
        let operation = operation.as_document();
        operation.is_some_and(|operation| operation.get_str("op").is_ok_and(|op| op == "c"))
    })
}

/// The first documents that are in one only, for people. Both must be sorted.
pub fn differences(source: &[Vec<u8>], target: &[Vec<u8>]) -> String {
    let only = |these: &[Vec<u8>], those: &[Vec<u8>]| {
        let missing = these.iter().filter(|one| those.binary_search(one).is_err());
        let shown = missing
            .take(3)
            .map(|bytes| match RawDocument::from_bytes(bytes) {
                Ok(document) => format!("\n    {document:?}"),
                Err(error) => error.to_string(),
            });
        shown.collect::<String>()
    };
    format!(
        "{} documents against {}\n  only on the source:{}\n  only on the target:{}",
        source.len(),
        target.len(),
        only(source, target),
        only(target, source),
    )
}
