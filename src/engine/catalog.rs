//! Which source collection is which target collection, and how options and indexes are carried
//! over.
//!
//! Collections are known by their UUID on the source: names can be swapped, UUIDs cannot.

use std::collections::{HashMap, HashSet};

use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use mongodb::Database;

use super::apply::ddl::{DROPPED, SCRIPTS};
use super::apply::entity::CollectionIndex;
use super::bson::definition::Definition;
use super::command::{COMMAND_LIMIT, number, within};
use super::error::{Result, Side, code};
use super::progress::Unsupported;
use super::state::{BUCKETS, CatalogEntry, Index, Way, uuid_of};
use super::stream::event::Uuid;
use super::stream::reader::Flags;

/// The largest value a TTL index takes: 68 years. A second TTL clock would delete documents that
/// the source still changes (`facts` mongodb 6.5); the source's own deletes arrive as events.
pub const TTL_DISARMED: i32 = i32::MAX;

/// The largest size of a capped collection (a petabyte): it takes no space. On the target nothing
/// may be evicted that the source still has, not even for a moment.
const SIZE_DISARMED: i64 = 1 << 50;

/// A collection of the source as `listCollections` shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its UUID; views have none.
    pub uuid: Option<Uuid>,
    /// `collection`, `view` or `timeseries`; or buckets without one.
    pub kind: String,
    /// Its options as listed.
    pub options: Definition,
}

impl Listed {
    /// Whether nothing of it is data: the definitions of views are mirrored as such, time-series
    /// collections as their buckets.
    pub fn is_shown_elsewhere(&self) -> bool {
        self.name == "system.views" || self.kind == "timeseries"
    }

    /// Whether it is a collection that the mirror of it must know by this name.
    pub fn is_data(&self) -> bool {
        let is_system = self.name.starts_with("system.") || self.name == DROPPED;
        self.kind == "collection" && !is_system
    }

    /// Why it cannot be mirrored, if so.
    pub fn unsupported(&self, possible: Possible) -> Option<&'static str> {
        if self.kind == FACELESS {
            return Some(FACELESS_REASON);
        }
        unsupported(&self.name, &self.options, possible)
    }
}

/// Servers take a database's and a collection's name of so many bytes together, the dot between
/// them included.
const LONGEST_NAMESPACE: usize = 255;

/// What both sides together can do.
#[derive(Clone, Copy, Debug)]
pub struct Possible {
    /// What the source shows.
    pub flags: Flags,
    /// How long a collection's name may be on the target.
    pub longest_name: usize,
}

impl Possible {
    /// Of these flags and this target.
    pub fn new(flags: Flags, target: &Database) -> Self {
        Self {
            flags,
            longest_name: LONGEST_NAMESPACE.saturating_sub(target.name().len() + 1),
        }
    }
}

/// What we call the kind of buckets that no time-series collection shows.
const FACELESS: &str = "faceless buckets";

/// Servers make both in two steps, and somebody may take the name in between; such buckets cannot
/// be made a time series any more, and no client reads them.
pub const FACELESS_REASON: &str = "buckets of a time series that was never completed, as another collection took its name: \
     nothing shows their content on the source; drop them there";

fn note_faceless(listed: &mut [Listed]) {
    let faces: HashSet<String> = listed
        .iter()
        .filter(|listed| listed.kind == "timeseries")
        .map(|face| format!("{BUCKETS}{}", face.name))
        .collect();
    for listed in listed {
        if listed.name.starts_with(BUCKETS) && !faces.contains(&listed.name) {
            FACELESS.clone_into(&mut listed.kind);
        }
    }
}

/// Why a collection of this name with these options cannot be mirrored, if so.
pub fn unsupported(name: &str, options: &Document, possible: Possible) -> Option<&'static str> {
    if name.len() > possible.longest_name {
        return Some(
            "its name is too long together with the name of the target database: servers take 255 \
             bytes for both",
        );
    }
    let entry = CatalogEntry::new([0; 16], name, options.clone(), Vec::new());
    if entry.way() == Way::Loose && name != SCRIPTS && !name.starts_with(BUCKETS) {
        return Some("system collections of this name belong to one server and are not mirrored");
    }
    if entry.way() != Way::Transactional && !possible.flags.internal {
        return Some(
            "only mirrored with the internal flags of change streams, which are not in use \
             (see applyForm)",
        );
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
                options: options_listed(&document).into(),
            })
        })
        .collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    note_faceless(&mut listed);
    Ok(listed)
}

/// A collection's options; that its index on `_id` is of the first version is one of them.
fn options_listed(listed: &Document) -> Document {
    let mut options = listed.get_document("options").cloned().unwrap_or_default();
    if let Ok(index) = listed.get_document("idIndex")
        && number(index, "v") == 1
    {
        options.insert("idIndex", index.clone());
    }
    without_app_metadata(&mut options);
    options
}

/// What a server notes for itself among the options of its storage engine is none: that a time
/// series may hold buckets of a mixed schema, which depends on the server's version.
fn without_app_metadata(options: &mut Document) {
    const ENGINE: [&str; 3] = ["storageEngine", "wiredTiger", "configString"];
    let engine = options.get_document_mut(ENGINE[0]);
    let Ok(tiger) = engine.and_then(|engine| engine.get_document_mut(ENGINE[1])) else {
        return;
    };
    let Ok(config) = tiger.get_str(ENGINE[2]) else {
        return;
    };
    let Some(begin) = config.find("app_metadata=(timeseries") else {
        return;
    };
    let end = config[begin..]
        .find(')')
        .map_or(config.len(), |end| begin + end + 1);
    let (before, behind) = (&config[..begin], &config[end..]);
    let rest = [before.trim_end_matches(','), behind.trim_start_matches(',')];
    let rest: Vec<&str> = rest.into_iter().filter(|part| !part.is_empty()).collect();
    if rest.is_empty() {
        options.remove(ENGINE[0]);
    } else {
        let rest = rest.join(",");
        tiger.insert(ENGINE[2], rest);
    }
}

/// The options of a collection as its event describes them. An index on `_id` that is not named is
/// of the first version, unless there is none at all.
pub fn options_told(mut described: Document) -> Document {
    let has_none = ["clusteredIndex", "viewOn", "idIndex"];
    if has_none.iter().all(|name| !described.contains_key(name)) {
        described.insert("idIndex", doc! {"v": 1});
    }
    described
}

/// Lists a collection's indexes without the one on `_id`, and without those that are still being
/// built, which may yet fail; none if the collection is gone.
///
/// # Errors
/// What the exchange met.
pub async fn list_indexes(db: &Database, collection: &str, side: Side) -> Result<Vec<Document>> {
    let exchange = async {
        let cursor = db
            .run_cursor_command(doc! {"listIndexes": collection, "includeBuildUUIDs": true})
            .await?;
        cursor.try_collect::<Vec<Document>>().await
    };
    match within(side, "list the indexes", COMMAND_LIMIT, exchange).await {
        Ok(indexes) => Ok(indexes.into_iter().filter(is_secondary).collect()),
        Err(error) if error.code() == Some(code::NAMESPACE_NOT_FOUND) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Neither the index on `_id` nor the pseudo index of a clustered collection; what is still being
/// built has its name within its `spec`.
fn is_secondary(index: &Document) -> bool {
    index.get_str("name").is_ok_and(|name| name != "_id_")
        && !index.get_bool("clustered").unwrap_or(false)
}

/// The options to create the target's collection with. What would remove documents by itself (a
/// TTL, a cap) is disarmed; [`armed_options`] sets it right.
pub fn target_options(options: &Document) -> Document {
    let mut target = portable_options(options);
    target.remove("expireAfterSeconds");
    if target.get_bool("capped").unwrap_or(false) {
        target.insert("size", SIZE_DISARMED);
        target.remove("max");
    }
    target
}

/// Options without what has a meaning on one server only (`facts` mongodb 1.3).
pub fn portable_options(options: &Document) -> Document {
    let mut target = options.clone();
    let id_index = target.get_document("idIndex");
    let is_old = id_index.is_ok_and(|index| number(index, "v") == 1);
    for internal in ["uuid", "temp", "idIndex", "autoIndexId"] {
        target.remove(internal);
    }
    if is_old {
        let first = doc! {"v": 1, "key": {"_id": 1}, "name": "_id_"};
        target.insert("idIndex", first);
    }
    strip_collation_version(&mut target);
    if let Ok(series) = target.get_document_mut("timeseries") {
        // Follows from the granularity.
        series.remove("bucketMaxSpanSeconds");
        // The server makes these itself.
        target.remove("validator");
        target.remove("clusteredIndex");
    }
    target
}

/// The `collMod` that arms what [`target_options`] disarmed, if there is anything.
pub fn armed_options(options: &Document) -> Option<Document> {
    let mut armed = Document::new();
    if options.get_bool("capped").unwrap_or(false) {
        armed.extend(
            options
                .get("size")
                .map(|size| ("cappedSize".to_owned(), size.clone())),
        );
        armed.extend(
            options
                .get("max")
                .map(|max| ("cappedMax".to_owned(), max.clone())),
        );
    }
    if let Some(after) = options.get("expireAfterSeconds") {
        armed.insert("expireAfterSeconds", after.clone());
    }
    (!armed.is_empty()).then_some(armed)
}

/// Whether the target would remove documents by itself once it is armed.
pub fn has_clock(entry: &CatalogEntry) -> bool {
    let expires = |index: &Index| index.spec.contains_key("expireAfterSeconds");
    armed_options(&entry.options).is_some() || entry.indexes.iter().any(expires)
}

/// Lays what a `collMod` was told over a collection's options; returns what of it is carried out
/// on the target now.
pub fn modify_options(options: &mut Document, changes: &Document) -> Document {
    let mut now = Document::new();
    for (name, value) in changes {
        match (name.as_str(), value) {
            ("index", _) => {}
            ("cappedSize", size) => {
                options.insert("size", size.clone());
            }
            ("cappedMax", max) => {
                options.insert("max", max.clone());
            }
            ("expireAfterSeconds", Bson::String(_)) => {
                options.remove("expireAfterSeconds");
            }
            ("expireAfterSeconds", after) => {
                options.insert("expireAfterSeconds", after.clone());
            }
            ("timeseries", Bson::Document(series)) => {
                if let Ok(there) = options.get_document_mut("timeseries") {
                    there.extend(series.clone());
                }
                now.insert(name, value.clone());
            }
            _ => {
                options.insert(name, value.clone());
                now.insert(name, value.clone());
            }
        }
    }
    now
}

/// An index as it is on the target while mirrored: nothing expires.
pub fn whole_index(index: &Document, collated: bool) -> Document {
    let mut target = index.clone();
    target.remove("ns");
    if target.contains_key("expireAfterSeconds") {
        target.insert("expireAfterSeconds", TTL_DISARMED);
    }
    if collated && !target.contains_key("collation") {
        // Listed without a collation, it has the simple one; created so, it would inherit the
        // collection's (`facts` mongodb 1.4).
        target.insert("collation", doc! {"locale": "simple"});
    }
    strip_collation_version(&mut target);
    // The index of a time series as it was specified: servers keep that beside the one on its
    // buckets, with a collation of its own.
    if let Ok(original) = target.get_document_mut("originalSpec") {
        if collated && !original.contains_key("collation") {
            original.insert("collation", doc! {"locale": "simple"});
        }
        strip_collation_version(original);
    }
    target
}

/// Whether nothing expires by this index of a target.
pub fn is_disarmed(index: &Document) -> bool {
    !index.contains_key("expireAfterSeconds")
        || number(index, "expireAfterSeconds") == i64::from(TTL_DISARMED)
}

/// An index as it is built at first: duplicates may be there while documents are of different
/// times (`facts` mongodb 6.4).
pub fn ordinary_index(index: &Document, collated: bool) -> Document {
    let mut target = whole_index(index, collated);
    target.remove("unique");
    target.remove("prepareUnique");
    target
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
    /// Its UUID on the target, where it is known: writes outside of transactions name it, so that
    /// a process that was replaced cannot reach what the next one has made anew.
    pub guard: Option<Uuid>,
}

/// All collections that take part. An index is stable as long as its collection lives; nothing
/// may hold on to it afterwards.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    collections: Vec<Collection>,
    /// Places of collections that are gone, to be taken by others.
    free: Vec<CollectionIndex>,
    by_uuid: HashMap<Uuid, CollectionIndex>,
    unsupported: HashMap<Uuid, Unsupported>,
}

impl Catalog {
    /// Adds a collection, or brings it back.
    pub fn insert(&mut self, entry: CatalogEntry) -> CollectionIndex {
        self.unsupported.remove(&entry.uuid);
        let uuid = entry.uuid;
        let collection = Collection {
            entry,
            alive: true,
            guard: None,
        };
        let place = self.by_uuid.get(&uuid).copied().or_else(|| self.free.pop());
        if let Some(index) = place {
            self.collections[index as usize] = collection;
            self.by_uuid.insert(uuid, index);
            return index;
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

    /// Nothing is left out any more.
    pub fn forget_left_out(&mut self) {
        self.unsupported.clear();
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

    /// Buckets that are left out because nothing of this name showed them.
    pub fn faceless(&self, name: &str) -> Option<Uuid> {
        let is_it = |told: &Unsupported| told.name == name && told.reason == FACELESS_REASON;
        let mut all = self.unsupported.iter();
        all.find(|(_, told)| is_it(told)).map(|(uuid, _)| *uuid)
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
        if let Some(index) = self.by_uuid.remove(uuid) {
            let gone = &mut self.collections[index as usize];
            gone.alive = false;
            gone.entry = CatalogEntry::new(*uuid, "", Document::new(), Vec::new());
            self.free.push(index);
        }
    }

    /// All living collections.
    pub fn alive(&self) -> impl Iterator<Item = (CollectionIndex, &Collection)> {
        (0..)
            .zip(&self.collections)
            .filter(|(_, collection)| collection.alive)
    }

    /// What is left out, by its UUID.
    pub fn left_out_by_uuid(&self) -> impl Iterator<Item = (&Uuid, &Unsupported)> {
        self.unsupported.iter()
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
    fn buckets_belong_to_a_time_series() {
        let of = |name: &str, kind: &str| Listed {
            name: name.into(),
            uuid: None,
            kind: kind.into(),
            options: doc! {}.into(),
        };
        let mut listed = [
            of("system.buckets.a", "collection"),
            of("system.buckets.b", "collection"),
            of("a", "timeseries"),
            of("b", "collection"),
        ];
        note_faceless(&mut listed);
        let possible = Possible {
            flags: Flags { internal: true },
            longest_name: 200,
        };
        let reasons = listed.map(|one| one.unsupported(possible));
        assert_eq!(reasons, [None, Some(FACELESS_REASON), None, None]);
    }

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
    fn clocks_and_caps_are_disarmed_and_armed_again() {
        let capped = doc! {"capped": true, "size": 4096, "max": 10};
        let target = target_options(&capped);
        assert_eq!(target, doc! {"capped": true, "size": SIZE_DISARMED});
        assert_eq!(
            armed_options(&capped),
            Some(doc! {"cappedSize": 4096, "cappedMax": 10})
        );
        let clustered = doc! {"clusteredIndex": {"v": 2}, "expireAfterSeconds": 5_i64};
        assert!(!target_options(&clustered).contains_key("expireAfterSeconds"));
        assert_eq!(
            armed_options(&clustered),
            Some(doc! {"expireAfterSeconds": 5_i64})
        );
        assert_eq!(armed_options(&doc! {"validator": {}}), None);
        let index = doc! {"v": 2, "key": {"t": 1}, "name": "t_1", "expireAfterSeconds": 60};
        let target = whole_index(&index, false);
        assert_eq!(target.get_i32("expireAfterSeconds").ok(), Some(i32::MAX));
    }

    #[test]
    fn time_series_options_lose_what_the_server_makes_itself() {
        let options = doc! {
            "validator": {}, "clusteredIndex": true, "expireAfterSeconds": 9_i64,
            "timeseries": {"timeField": "t", "granularity": "hours", "bucketMaxSpanSeconds": 5},
        };
        assert_eq!(
            target_options(&options),
            doc! {"timeseries": {"timeField": "t", "granularity": "hours"}}
        );
    }

    #[test]
    fn what_the_target_withholds_is_remembered_but_not_carried_out() {
        let mut options = doc! {"capped": true, "size": 4096};
        let changes = doc! {"cappedSize": 8192, "validator": {"a": 1}, "expireAfterSeconds": 3};
        assert_eq!(
            modify_options(&mut options, &changes),
            doc! {"validator": {"a": 1}}
        );
        assert_eq!(
            options,
            doc! {"capped": true, "size": 8192, "validator": {"a": 1}, "expireAfterSeconds": 3}
        );
        modify_options(&mut options, &doc! {"expireAfterSeconds": "off"});
        assert!(!options.contains_key("expireAfterSeconds"));
    }

    #[test]
    fn a_simple_index_on_a_collated_collection_stays_simple() {
        let index = doc! {"v": 2, "key": {"a": 1}, "name": "a_1"};
        let target = whole_index(&index, true);
        assert_eq!(
            target.get_document("collation").unwrap(),
            &doc! {"locale": "simple"}
        );
        assert_eq!(whole_index(&index, false), index);
    }

    #[test]
    fn a_unique_index_is_an_ordinary_one_at_first() {
        let index = doc! {"v": 2, "key": {"a": 1}, "name": "a_1", "unique": true};
        assert!(!ordinary_index(&index, false).contains_key("unique"));
        assert!(whole_index(&index, false).contains_key("unique"));
    }

    #[test]
    fn a_dropped_collection_is_no_longer_found() {
        let mut catalog = Catalog::default();
        let entry = CatalogEntry::new([1; 16], "a", doc! {}, Vec::new());
        let index = catalog.insert(entry);
        assert_eq!(catalog.find(&[1; 16]), Some(index));
        catalog.remove(&[1; 16]);
        assert_eq!(catalog.find(&[1; 16]), None);
        assert_eq!(catalog.by_name("a"), None);
    }
}
