//! Which source collection is which target collection, and how options and indexes are carried
//! over.
//!
//! Collections are known by their UUID on the source: names can be swapped, UUIDs cannot.

use std::collections::HashMap;

use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use mongodb::Database;

use super::apply::gather::CollectionIndex;
use super::command::{COMMAND_LIMIT, within};
use super::error::{Result, Side, code};
use super::progress::Unsupported;
use super::state::{CatalogEntry, uuid_of};
use super::stream::event::Uuid;

/// The largest value a TTL index takes: 68 years. A second TTL clock would delete documents that
/// the source still changes (`facts` mongodb 6.5); the source's own deletes arrive as events.
const TTL_DISARMED: i32 = i32::MAX;

/// A collection of the source as `listCollections` shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its UUID; views have none.
    pub uuid: Option<Uuid>,
    /// `collection`, `view` or `timeseries`.
    pub kind: String,
    /// Its options as listed.
    pub options: Document,
}

impl Listed {
    /// Why it cannot be mirrored, if so.
    pub fn unsupported(&self) -> Option<&'static str> {
        if self.name.starts_with("system.") {
            return Some("system collections are not mirrored yet");
        }
        unsupported_options(&self.kind, &self.options)
    }
}

/// Why a collection of this kind with these options cannot be mirrored, if so.
pub fn unsupported_options(kind: &str, options: &Document) -> Option<&'static str> {
    if kind == "timeseries" || options.contains_key("timeseries") {
        return Some("time-series collections are not mirrored yet");
    }
    if options.get_bool("capped").unwrap_or(false) {
        return Some("capped collections are not mirrored yet");
    }
    if options.contains_key("encryptedFields") {
        return Some("collections with queryable encryption are not mirrored yet");
    }
    None
}

/// Lists the collections and views of a database, by name.
///
/// # Errors
/// What the exchange met.
pub async fn list(db: &Database, side: Side) -> Result<Vec<Listed>> {
    let exchange = async {
        let cursor = db.run_cursor_command(doc! {"listCollections": 1}).await?;
        cursor.try_collect::<Vec<Document>>().await
    };
    let documents = within(side, "list the collections", COMMAND_LIMIT, exchange).await?;
    let mut listed: Vec<Listed> = documents
        .into_iter()
        .filter_map(|document| {
            Some(Listed {
                name: document.get_str("name").ok()?.to_owned(),
                uuid: document
                    .get_document("info")
                    .ok()
                    .and_then(|info| info.get("uuid"))
                    .and_then(uuid_of),
                kind: document.get_str("type").unwrap_or("collection").to_owned(),
                options: document
                    .get_document("options")
                    .cloned()
                    .unwrap_or_default(),
            })
        })
        .collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

/// Lists a collection's indexes without the one on `_id`; none if the collection is gone.
///
/// # Errors
/// What the exchange met.
pub async fn list_indexes(db: &Database, collection: &str, side: Side) -> Result<Vec<Document>> {
    let exchange = async {
        let cursor = db
            .run_cursor_command(doc! {"listIndexes": collection})
            .await?;
        cursor.try_collect::<Vec<Document>>().await
    };
    match within(side, "list the indexes", COMMAND_LIMIT, exchange).await {
        Ok(indexes) => Ok(indexes.into_iter().filter(is_secondary).collect()),
        Err(error) if error.code() == Some(code::NAMESPACE_NOT_FOUND) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Neither the index on `_id` nor the pseudo index of a clustered collection.
fn is_secondary(index: &Document) -> bool {
    index.get_str("name").is_ok_and(|name| name != "_id_")
        && !index.get_bool("clustered").unwrap_or(false)
}

/// The options to create the target's collection with (`facts` mongodb 1.3).
pub fn target_options(options: &Document) -> Document {
    let mut target = options.clone();
    for internal in ["uuid", "temp", "idIndex", "autoIndexId"] {
        target.remove(internal);
    }
    strip_collation_version(&mut target);
    if target.contains_key("expireAfterSeconds") {
        // A clustered collection's TTL; the same second clock as an index's.
        target.insert("expireAfterSeconds", i64::from(TTL_DISARMED));
    }
    target
}

/// Whether the collection compares strings otherwise than byte by byte.
pub fn is_collated(options: &Document) -> bool {
    options.get_document("collation").is_ok_and(|collation| {
        collation
            .get_str("locale")
            .is_ok_and(|locale| locale != "simple")
    })
}

/// An index as it is built on the target, and what is different about it there.
pub fn target_index(index: &Document, collated: bool) -> (Document, Option<&'static str>) {
    let mut target = index.clone();
    let mut differs = None;
    target.remove("ns");
    target.remove("background");
    if target
        .remove("unique")
        .is_some_and(|unique| unique == Bson::Boolean(true))
    {
        differs = Some("unique on the source, but not yet enforced on the target");
    }
    target.remove("prepareUnique");
    if target.contains_key("expireAfterSeconds") {
        target.insert("expireAfterSeconds", TTL_DISARMED);
    }
    if collated && !target.contains_key("collation") {
        // Listed without a collation, it has the simple one; created so, it would inherit the
        // collection's (`facts` mongodb 1.4).
        target.insert("collation", doc! {"locale": "simple"});
    }
    strip_collation_version(&mut target);
    (target, differs)
}

/// ICU versions differ between servers, and a stored one is refused (161).
fn strip_collation_version(options: &mut Document) {
    if let Ok(collation) = options.get_document_mut("collation") {
        collation.remove("version");
    }
}

/// A collection that takes part.
#[derive(Clone, PartialEq, Debug)]
pub struct Collection {
    /// What is remembered of it.
    pub entry: CatalogEntry,
    /// Whether it still exists on the source, as of the position.
    pub alive: bool,
}

/// All collections that the mirror has met. Indexes are stable for the mirror's life.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    collections: Vec<Collection>,
    by_uuid: HashMap<Uuid, CollectionIndex>,
    unsupported: HashMap<Uuid, Unsupported>,
}

impl Catalog {
    /// Adds a collection, or brings it back.
    pub fn insert(&mut self, entry: CatalogEntry) -> CollectionIndex {
        self.unsupported.remove(&entry.uuid);
        let uuid = entry.uuid;
        let collection = Collection { entry, alive: true };
        if let Some(index) = self.by_uuid.get(&uuid) {
            self.collections[*index as usize] = collection;
            return *index;
        }
        // Invariant: nobody has four billion collections.
        let index = CollectionIndex::try_from(self.collections.len()).unwrap_or(u32::MAX);
        self.collections.push(collection);
        self.by_uuid.insert(uuid, index);
        index
    }

    /// Notes a collection that is left out, with the reason.
    pub fn leave_out(&mut self, uuid: Uuid, name: &str, reason: &str) {
        self.unsupported.insert(
            uuid,
            Unsupported {
                name: name.to_owned(),
                reason: reason.to_owned(),
            },
        );
    }

    /// The collection with this UUID, if it takes part and is alive.
    pub fn find(&self, uuid: &Uuid) -> Option<CollectionIndex> {
        let index = *self.by_uuid.get(uuid)?;
        self.collections[index as usize].alive.then_some(index)
    }

    /// Whether the UUID is known to be left out.
    pub fn is_left_out(&self, uuid: &Uuid) -> bool {
        self.unsupported.contains_key(uuid)
    }

    /// One collection.
    pub fn get(&self, index: CollectionIndex) -> &Collection {
        &self.collections[index as usize]
    }

    /// One collection, to be changed.
    pub fn get_mut(&mut self, index: CollectionIndex) -> &mut Collection {
        &mut self.collections[index as usize]
    }

    /// The living collection of this name on the target.
    pub fn by_name(&self, name: &str) -> Option<CollectionIndex> {
        self.alive()
            .find(|(_, collection)| collection.entry.name == name)
            .map(|(index, _)| index)
    }

    /// The collection is gone.
    pub fn remove(&mut self, uuid: &Uuid) {
        self.unsupported.remove(uuid);
        if let Some(index) = self.by_uuid.get(uuid) {
            self.collections[*index as usize].alive = false;
        }
    }

    /// All living collections.
    pub fn alive(&self) -> impl Iterator<Item = (CollectionIndex, &Collection)> {
        (0..)
            .zip(&self.collections)
            .filter(|(_, collection)| collection.alive)
    }

    /// What is left out.
    pub fn left_out(&self) -> impl Iterator<Item = &Unsupported> {
        self.unsupported.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_lose_what_create_refuses() {
        let options = doc! {
            "uuid": 1, "temp": true, "validator": {"a": 1},
            "collation": {"locale": "de", "version": "57.1"},
        };
        assert_eq!(
            target_options(&options),
            doc! {"validator": {"a": 1}, "collation": {"locale": "de"}}
        );
    }

    #[test]
    fn ttl_is_disarmed() {
        let index = doc! {"v": 2, "key": {"t": 1}, "name": "t_1", "expireAfterSeconds": 60};
        let (target, _) = target_index(&index, false);
        assert_eq!(target.get_i32("expireAfterSeconds").ok(), Some(i32::MAX));
    }

    #[test]
    fn a_simple_index_on_a_collated_collection_stays_simple() {
        let index = doc! {"v": 2, "key": {"a": 1}, "name": "a_1"};
        let (target, _) = target_index(&index, true);
        assert_eq!(
            target.get_document("collation").unwrap(),
            &doc! {"locale": "simple"}
        );
        assert_eq!(target_index(&index, false).0, index);
    }

    #[test]
    fn a_unique_index_is_reported_as_different() {
        let index = doc! {"v": 2, "key": {"a": 1}, "name": "a_1", "unique": true};
        let (target, differs) = target_index(&index, false);
        assert!(!target.contains_key("unique"));
        assert!(differs.is_some());
    }

    #[test]
    fn a_dropped_collection_is_no_longer_found() {
        let mut catalog = Catalog::default();
        let entry = CatalogEntry {
            uuid: [1; 16],
            name: "a".into(),
            collated: false,
            copied: true,
            pending_indexes: Vec::new(),
            index_problems: Vec::new(),
            left_out: None,
        };
        let index = catalog.insert(entry);
        assert_eq!(catalog.find(&[1; 16]), Some(index));
        catalog.remove(&[1; 16]);
        assert_eq!(catalog.find(&[1; 16]), None);
        assert_eq!(catalog.by_name("a"), None);
    }
}
