//! Documents that a user wants to be right now: chosen by a filter, compared and put right.

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures::StreamExt;
use mongodb::Database;
use mongodb::options::{ReadPreference, SelectionCriteria};
use std::collections::HashSet;
use tokio::sync::{mpsc, oneshot};

use super::bson::order::Value;
use super::bson::scan::find;
use super::command::within;
use super::error::{Error, Result, Side};
use super::owner::asking::{Ask, Repair};
use super::request::{Refusal, Synced};
use super::snapshot::READ_LIMIT;
use super::stream::event::Uuid;

/// Ids that are put right in one batch.
const AT_ONCE: usize = 500;

/// Most documents of one request: their ids are held in memory.
const MOST: usize = 100_000;

/// Operators that run code of whoever sends them.
const CODE: [&str; 3] = ["$where", "$function", "$accumulator"];

/// Everything that a request works with.
pub struct Sync {
    /// The source database.
    pub source: Database,
    /// The target database.
    pub target: Database,
    /// The collection's name, the same on both sides.
    pub collection: String,
    /// Its identity.
    pub uuid: Uuid,
    /// The owner.
    pub asks: mpsc::Sender<Ask>,
}

impl Sync {
    /// Puts the documents right that match on either side.
    ///
    /// # Errors
    /// Why not.
    pub async fn run(self, filter: Document) -> Result<Synced, Refusal> {
        if let Some(operator) = runs_code(&filter) {
            return Err(Refusal::Code(operator));
        }
        let mut keys = HashSet::new();
        for (side, db) in [(Side::Source, &self.source), (Side::Target, &self.target)] {
            self.matching(side, db, &filter, &mut keys)
                .await
                .map_err(|error| Refusal::Failed(error.to_string()))?;
        }
        let mut synced = Synced {
            matched: keys.len() as u64,
            ..Synced::default()
        };
        let keys: Vec<Value> = keys.into_iter().collect();
        for keys in keys.chunks(AT_ONCE) {
            let (done, outcome) = oneshot::channel();
            let repair = Repair {
                uuid: self.uuid,
                keys: keys.to_vec(),
                done,
            };
            if self.asks.send(Ask::Repair(repair)).await.is_err() {
                return Err(Refusal::NotMirroring);
            }
            let reconciled = outcome.await.map_err(|_| Refusal::NotMirroring)?;
            synced.written += reconciled.written;
            synced.deleted += reconciled.deleted;
            synced.unchanged += reconciled.unchanged;
            synced.refused += reconciled.refused;
        }
        Ok(synced)
    }

    async fn matching(
        &self,
        side: Side,
        db: &Database,
        filter: &Document,
        keys: &mut HashSet<Value>,
    ) -> Result<()> {
        let doing = "look for the documents";
        let collection = db.collection::<RawDocumentBuf>(&self.collection);
        let read = collection
            .find(filter.clone())
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .projection(doc! {"_id": 1})
            .max_time(READ_LIMIT)
            .batch();
        let mut cursor = within(side, doing, READ_LIMIT, read).await?;
        loop {
            let next = async { cursor.next().await.transpose() };
            let Some(batch) = within(side, doing, READ_LIMIT, next).await? else {
                return Ok(());
            };
            let documents = batch.doc_slices().ok().into_iter();
            for document in documents.flat_map(|all| all.into_iter().flatten()) {
                let id = document
                    .as_document()
                    .and_then(|document| find(document.as_bytes(), b"_id"));
                keys.extend(id.map(Value::of));
            }
            if keys.len() > MOST {
                return Err(Error::Reply {
                    side,
                    doing,
                    what: format!("more than {MOST} match: take a narrower filter"),
                });
            }
        }
    }
}

fn runs_code(filter: &Document) -> Option<&'static str> {
    filter.iter().find_map(|(name, value)| {
        let named = CODE.into_iter().find(|operator| operator == name);
        named.or_else(|| in_value(value))
    })
}

fn in_value(value: &Bson) -> Option<&'static str> {
    match value {
        Bson::Document(document) => runs_code(document),
        Bson::Array(values) => values.iter().find_map(in_value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_runs_code_is_found_at_any_depth() {
        assert_eq!(runs_code(&doc! {"a": 1, "b": {"$gt": 5}}), None);
        assert_eq!(runs_code(&doc! {"$where": "1"}), Some("$where"));
        let deep = doc! {"$or": [{"a": 1}, {"$expr": {"$function": {"body": "x"}}}]};
        assert_eq!(runs_code(&deep), Some("$function"));
    }
}
