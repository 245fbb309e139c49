//! One document per collection: what it is on the source, what it is called on the target, and
//! what is still to be done.

use bson::{Bson, Document, doc};

use super::codec::{Fields, raw};
use super::fence::Noted;
use super::ranges::RangeEntry;
use super::{CATALOG, StateStore, delete};
use crate::engine::bson::definition::Definition;
use crate::engine::error::Result;
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

/// Time-series collections keep their data in a collection of this name and theirs.
pub const BUCKETS: &str = "system.buckets.";

/// A collection as remembered.
#[derive(Clone, PartialEq, Debug)]
pub struct CatalogEntry {
    /// Its identity on the source.
    pub uuid: Uuid,
    /// What it is called at the position.
    pub name: String,
    /// Its options on the source at the position, as listed there.
    pub options: Definition,
    /// Whether data and indexes are there as of the position.
    pub copied: bool,
    /// Its indexes on the source at the position, without the one on `_id`.
    pub indexes: Vec<Index>,
    /// Why it is not mirrored at all, if so.
    pub left_out: Option<String>,
}

/// An index of the source, and how far it is on the target.
#[derive(Clone, PartialEq, Debug)]
pub struct Index {
    /// As specified on the source.
    pub spec: Definition,
    /// How far it is.
    pub stage: Stage,
    /// What the target's server last said against it.
    pub problem: Option<String>,
}

/// How far an index is on the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// It is not there.
    Missing,
    /// It is there, but does not yet enforce that its keys are unique.
    Ordinary,
    /// It does all that the source's does; but nothing expires on a target.
    Whole,
}

/// How the documents of a collection may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// In transactions, in any order.
    Transactional,
    /// Outside of transactions and in the source's order: capped collections, which keep the order
    /// of insertion.
    InOrder,
    /// Outside of transactions, in any order: system collections, the buckets of time-series
    /// collections among them.
    Loose,
}

impl CatalogEntry {
    /// A collection of which nothing is on the target yet.
    pub fn new(
        uuid: Uuid,
        name: &str,
        options: impl Into<Definition>,
        indexes: Vec<Document>,
    ) -> Self {
        Self {
            uuid,
            name: name.to_owned(),
            options: options.into(),
            copied: false,
            indexes: indexes.into_iter().map(Index::missing).collect(),
            left_out: None,
        }
    }

    /// A collection that takes no part, for this reason.
    pub fn left_out(uuid: Uuid, name: &str, reason: &str) -> Self {
        Self {
            copied: true,
            left_out: Some(reason.to_owned()),
            ..Self::new(uuid, name, Document::new(), Vec::new())
        }
    }

    /// Nothing of it is on the target any more.
    pub fn begins_anew(&mut self) {
        self.copied = false;
        for index in &mut self.indexes {
            index.stage = Stage::Missing;
        }
    }

    /// Whether it compares strings otherwise than byte by byte.
    pub fn is_collated(&self) -> bool {
        self.options
            .get_document("collation")
            .is_ok_and(|collation| {
                collation
                    .get_str("locale")
                    .is_ok_and(|locale| locale != "simple")
            })
    }

    /// Whether its documents depend on each other: two may have one unique key one after the other,
    /// or ids that are equal without being the same.
    pub fn is_connected(&self) -> bool {
        self.is_collated() || self.indexes.iter().any(Index::is_enforcing)
    }

    /// How its documents may be written.
    pub fn way(&self) -> Way {
        if self.name.starts_with("system.") {
            Way::Loose
        } else if self.options.get_bool("capped").unwrap_or(false) {
            Way::InOrder
        } else {
            Way::Transactional
        }
    }

    /// What its users call it: the buckets of a time-series collection are created and dropped
    /// with it.
    pub fn public_name(&self) -> &str {
        self.name.strip_prefix(BUCKETS).unwrap_or(&self.name)
    }

    /// The index of this name.
    pub fn index(&mut self, name: &str) -> Option<&mut Index> {
        self.indexes.iter_mut().find(|index| index.name() == name)
    }

    /// An index takes the place of what was called so.
    pub fn put_index(&mut self, spec: Document) {
        let new = Index::missing(spec);
        self.indexes.retain(|index| index.name() != new.name());
        self.indexes.push(new);
    }
}

impl Index {
    /// An index that is not on the target.
    pub fn missing(spec: Document) -> Self {
        Self {
            spec: spec.into(),
            stage: Stage::Missing,
            problem: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.spec.get_str("name").unwrap_or_default()
    }

    /// Whether it is unique, or lets no new duplicates in.
    pub fn is_enforcing(&self) -> bool {
        ["unique", "prepareUnique"]
            .iter()
            .any(|option| self.spec.get_bool(option).unwrap_or(false))
    }
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Ordinary => "ordinary",
            Self::Whole => "whole",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name {
            "missing" => Some(Self::Missing),
            // Whether it still enforces is asked again: only the target knows for certain.
            "ordinary" | "whole" => Some(Self::Ordinary),
            _ => None,
        }
    }
}

impl StateStore {
    /// Remembers a collection.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn put_collection(&self, entry: &CatalogEntry) -> Result<()> {
        self.note(&[self.put(entry)?]).await
    }

    /// Remembers a collection that is about to be copied, and its ranges; what was known of it is
    /// forgotten.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn plan_collection(
        &self,
        epoch: i64,
        entry: &CatalogEntry,
        ranges: &[RangeEntry],
    ) -> Result<()> {
        // What is copied anew is tried anew.
        let mut notes = vec![self.release(entry.uuid)?, self.without_ranges(entry.uuid)?];
        for ranges in ranges.chunks(1000) {
            notes.push(self.inserted_ranges(epoch, ranges)?);
        }
        notes.push(self.put(entry)?);
        self.note(&notes).await
    }

    /// Forgets a collection, its ranges and what the target refused of it.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn remove_collection(&self, uuid: Uuid) -> Result<()> {
        let remove = delete(CATALOG, &doc! {"_id": self.collection_id(uuid)})?;
        self.note(&[
            self.without_ranges(uuid)?,
            self.release(uuid)?,
            (Write::RemoveCollection, remove),
        ])
        .await
    }

    fn put(&self, entry: &CatalogEntry) -> Result<Noted> {
        let indexes: Vec<Document> = entry
            .indexes
            .iter()
            .map(|index| {
                doc! {
                    "spec": &index.spec,
                    "stage": index.stage.as_str(),
                    "problem": &index.problem,
                }
            })
            .collect();
        let update = doc! {
            "name": &entry.name,
            "options": &entry.options,
            "copied": entry.copied,
            "indexes": indexes,
            "leftOut": &entry.left_out,
        };
        let id = self.collection_id(entry.uuid);
        let put = doc! {
            "update": CATALOG,
            "updates": [{"q": {"_id": id}, "u": update, "upsert": true}],
        };
        Ok((Write::PutCollection, raw(&put)?))
    }

    /// All collections.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn load_catalog(&self) -> Result<Vec<CatalogEntry>> {
        let mut entries = Vec::new();
        for document in self.find(CATALOG).await? {
            entries.push(parse(&document)?);
        }
        Ok(entries)
    }
}

fn parse(document: &Document) -> Result<CatalogEntry> {
    let fields = Fields::new("a collection's document in catalog", document);
    let (_, uuid) = fields.id()?;
    Ok(CatalogEntry {
        uuid,
        name: fields.text("name")?,
        options: fields
            .required("options", Bson::as_document)?
            .clone()
            .into(),
        copied: fields.required("copied", Bson::as_bool)?,
        indexes: fields.list("indexes", parse_index)?,
        left_out: fields.optional("leftOut", Bson::as_str)?.map(str::to_owned),
    })
}

fn parse_index(index: &Bson) -> Option<Index> {
    let index = index.as_document()?;
    let problem = index.get("problem").and_then(Bson::as_str);
    Some(Index {
        spec: index.get_document("spec").ok()?.clone().into(),
        stage: Stage::parse(index.get_str("stage").ok()?)?,
        problem: problem.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, options: Document) -> CatalogEntry {
        CatalogEntry::new([1; 16], name, options, Vec::new())
    }

    #[test]
    fn a_collections_kind_says_how_it_may_be_written() {
        assert_eq!(entry("orders", doc! {}).way(), Way::Transactional);
        assert_eq!(entry("log", doc! {"capped": true}).way(), Way::InOrder);
        assert_eq!(entry("system.js", doc! {}).way(), Way::Loose);
        assert_eq!(entry("system.buckets.t", doc! {}).way(), Way::Loose);
        assert_eq!(entry("system.buckets.t", doc! {}).public_name(), "t");
    }

    #[test]
    fn a_newer_index_takes_the_older_ones_place() {
        let mut entry = entry("orders", doc! {});
        entry.put_index(doc! {"name": "a", "key": {"a": 1}});
        entry.put_index(doc! {"name": "a", "key": {"a": -1}, "unique": true});
        assert_eq!(entry.indexes.len(), 1);
        assert!(entry.indexes[0].is_enforcing());
    }
}
