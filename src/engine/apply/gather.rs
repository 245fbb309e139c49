//! Gathers events into a batch, merged per document.
//!
//! Within one batch the order of events on *different* documents does not matter, because the
//! batch becomes visible as a whole; so every document is written once, in the cheapest way that
//! has the same result as all its events.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::delta::Deltas;
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{Element, find};
use crate::engine::position::Position;
use crate::engine::stream::event::{Event, Operation};

/// Bytes that a document's entry takes beside its content.
const ENTRY: usize = 160;

/// Which collection, as an index into the catalog.
pub type CollectionIndex = u32;

/// What becomes of one document.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It was absent before the batch and is there after it.
    Insert {
        /// As it was inserted.
        document: Vec<u8>,
        /// Then changed.
        deltas: Deltas,
    },
    /// It was there before and has another content.
    Replace {
        /// As it was replaced.
        document: Vec<u8>,
        /// Then changed.
        deltas: Deltas,
    },
    /// It was there before and is changed.
    Update(Deltas),
    /// It was there before and is gone.
    Delete,
    /// Inserted and deleted within the batch.
    Nothing,
    /// To be read again from the source at the batch's cluster time.
    Refetch,
}

/// One document of a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Entity {
    /// Its collection.
    pub collection: CollectionIndex,
    /// Its `_id`, as stored.
    pub id: Value,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// How many events of which kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Inserts.
    pub inserts: u64,
    /// Updates and replaces.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
}

impl Counts {
    /// All events.
    pub fn total(&self) -> u64 {
        self.inserts + self.updates + self.deletes
    }
}

/// A range of the copy that is complete with this batch.
#[derive(Clone, PartialEq, Debug)]
pub struct RangeDone {
    /// The range's collection.
    pub collection: CollectionIndex,
    /// Its number within the collection.
    pub number: u32,
    /// What its state document becomes.
    pub update: bson::Document,
}

/// Everything that is written in one transaction.
#[derive(Default, Debug)]
pub struct Batch {
    entities: Vec<Entity>,
    index: HashMap<(CollectionIndex, Value), usize>,
    bytes: usize,
    /// The events in it.
    pub counts: Counts,
    /// Ranges that this batch completes.
    pub ranges_done: Vec<RangeDone>,
    /// Where the mirror stands after it.
    pub position: Option<Position>,
}

impl Batch {
    /// The documents, in the order of their first event.
    pub fn entities(&self) -> &[Entity] {
        &self.entities
    }

    /// Roughly the memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing but perhaps a position.
    pub fn is_empty(&self) -> bool {
        self.entities.is_empty() && self.ranges_done.is_empty()
    }

    /// Adds a document event. `refetch` leaves updates to the source's own state.
    ///
    /// # Errors
    /// Says what the event lacks.
    pub fn add(
        &mut self,
        collection: CollectionIndex,
        event: &Event<'_>,
        refetch: bool,
    ) -> Result<(), &'static str> {
        let id = event.id.ok_or("no documentKey._id")?;
        match event.operation {
            Operation::Insert => {
                let document = event.full_document.ok_or("no fullDocument")?;
                self.counts.inserts += 1;
                self.set(collection, id, Some(document));
            }
            Operation::Replace => {
                let document = event.full_document.ok_or("no fullDocument")?;
                self.counts.updates += 1;
                self.replace(collection, id, document);
            }
            Operation::Delete => {
                self.counts.deletes += 1;
                self.set(collection, id, None);
            }
            Operation::Update => {
                self.counts.updates += 1;
                match event.raw_update {
                    Some(raw) if !refetch => self.update(collection, id, raw),
                    _ => self.refetch(collection, id),
                }
            }
            _ => return Err("not a document event"),
        }
        Ok(())
    }

    /// Takes over the events that waited for a range, behind what is already there. The documents
    /// are disjoint: until now none of that range could be in this batch.
    pub fn absorb(&mut self, waiting: Self) {
        self.counts.inserts += waiting.counts.inserts;
        self.counts.updates += waiting.counts.updates;
        self.counts.deletes += waiting.counts.deletes;
        self.bytes += waiting.bytes;
        self.ranges_done.extend(waiting.ranges_done);
        for entity in waiting.entities {
            let key = (entity.collection, entity.id.clone());
            self.index.insert(key, self.entities.len());
            self.entities.push(entity);
        }
    }

    /// A replace can change how the `_id` is represented (1 to 1.0; `facts` mongodb 3.5), which an
    /// update must not; deleting comes first when a batch is written, so that pair is exact.
    fn replace(&mut self, collection: CollectionIndex, id: Element<'_>, document: &[u8]) {
        match find(document, b"_id") {
            Some(new) if new.kind != id.kind || new.value != id.value => {
                self.set(collection, id, None);
                self.set(collection, new, Some(document));
            }
            _ => {
                let entity = self.entity(collection, id, || Outcome::Replace {
                    document: Vec::new(),
                    deltas: Deltas::default(),
                });
                let deltas = Deltas::default();
                let document = document.to_vec();
                let more = document.len();
                entity.outcome = match entity.outcome {
                    Outcome::Insert { .. } | Outcome::Nothing => {
                        Outcome::Insert { document, deltas }
                    }
                    _ => Outcome::Replace { document, deltas },
                };
                self.bytes += more;
            }
        }
    }

    /// The document is inserted, or (without `document`) deleted.
    fn set(&mut self, collection: CollectionIndex, id: Element<'_>, document: Option<&[u8]>) {
        let more = document.map_or(0, <[u8]>::len);
        // What was there before the batch is told by the first event of the document.
        let entity = self.entity(collection, id, || match document {
            Some(_) => Outcome::Nothing,
            None => Outcome::Delete,
        });
        let was_absent = matches!(entity.outcome, Outcome::Insert { .. } | Outcome::Nothing);
        entity.outcome = match (document, was_absent) {
            (Some(document), absent) => {
                let (document, deltas) = (document.to_vec(), Deltas::default());
                if absent {
                    Outcome::Insert { document, deltas }
                } else {
                    Outcome::Replace { document, deltas }
                }
            }
            (None, true) => Outcome::Nothing,
            (None, false) => Outcome::Delete,
        };
        self.bytes += more;
    }

    fn update(&mut self, collection: CollectionIndex, id: Element<'_>, raw: &[u8]) {
        let entity = self.entity(collection, id, || Outcome::Update(Deltas::default()));
        let more = match &mut entity.outcome {
            Outcome::Insert { deltas, .. }
            | Outcome::Replace { deltas, .. }
            | Outcome::Update(deltas) => deltas.push(raw),
            // An update of a document that the stream said is gone: let the source decide.
            Outcome::Delete | Outcome::Nothing => {
                entity.outcome = Outcome::Refetch;
                0
            }
            Outcome::Refetch => 0,
        };
        self.bytes += more;
    }

    /// A document that is in the batch is read from the source instead.
    pub fn read_again(&mut self, collection: CollectionIndex, id: &Value) {
        if let Some(at) = self.index.get(&(collection, id.clone())) {
            self.entities[*at].outcome = Outcome::Refetch;
        }
    }

    fn refetch(&mut self, collection: CollectionIndex, id: Element<'_>) {
        let entity = self.entity(collection, id, || Outcome::Refetch);
        entity.outcome = Outcome::Refetch;
    }

    fn entity(
        &mut self,
        collection: CollectionIndex,
        id: Element<'_>,
        first: impl FnOnce() -> Outcome,
    ) -> &mut Entity {
        let key = (collection, Value::of(id));
        let at = match self.index.entry(key) {
            Entry::Occupied(there) => *there.get(),
            Entry::Vacant(free) => {
                let at = self.entities.len();
                self.bytes += ENTRY + id.value.len();
                self.entities.push(Entity {
                    collection,
                    id: Value::of(id),
                    outcome: first(),
                });
                free.insert(at);
                at
            }
        };
        &mut self.entities[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stream::event::parse;
    use bson::{Document, RawDocument, doc};

    fn outcome_of(events: &[Document]) -> Vec<Outcome> {
        let mut batch = Batch::default();
        for event in events {
            let mut whole = doc! {"_id": {"_data": "82"}};
            whole.extend(event.clone());
            let raw = whole.to_vec().unwrap();
            let event = parse(RawDocument::from_bytes(&raw).unwrap()).unwrap();
            batch.add(0, &event, false).unwrap();
        }
        batch
            .entities
            .into_iter()
            .map(|entity| entity.outcome)
            .collect()
    }

    fn insert(document: Document) -> Document {
        let id = document.get("_id").unwrap().clone();
        doc! {"operationType": "insert", "documentKey": {"_id": id}, "fullDocument": document}
    }

    fn replace(id: impl Into<bson::Bson>, document: Document) -> Document {
        doc! {"operationType": "replace", "documentKey": {"_id": id.into()}, "fullDocument": document}
    }

    fn update(id: i32, diff: Document) -> Document {
        doc! {"operationType": "update", "documentKey": {"_id": id}, "rawUpdateDescription": {"$v": 2, "diff": diff}}
    }

    fn delete(id: i32) -> Document {
        doc! {"operationType": "delete", "documentKey": {"_id": id}}
    }

    fn bytes(document: Document) -> Vec<u8> {
        document.to_vec().unwrap()
    }

    #[test]
    fn inserted_and_deleted_is_nothing() {
        assert_eq!(
            outcome_of(&[insert(doc! {"_id": 1}), delete(1)]),
            [Outcome::Nothing]
        );
    }

    #[test]
    fn deleted_and_inserted_is_a_replace() {
        let outcomes = outcome_of(&[delete(1), insert(doc! {"_id": 1, "a": 2})]);
        assert_eq!(
            outcomes,
            [Outcome::Replace {
                document: bytes(doc! {"_id": 1, "a": 2}),
                deltas: Deltas::default()
            }]
        );
    }

    #[test]
    fn a_replace_forgets_earlier_updates_but_not_later_ones() {
        let outcomes = outcome_of(&[
            update(1, doc! {"u": {"a": 1}}),
            replace(1, doc! {"_id": 1, "b": 1}),
            update(1, doc! {"u": {"b": 2}}),
        ]);
        let [Outcome::Replace { document, deltas }] = outcomes.as_slice() else {
            panic!("{outcomes:?}");
        };
        assert_eq!(document, &bytes(doc! {"_id": 1, "b": 1}));
        assert_eq!(deltas.statements(), 1);
    }

    #[test]
    fn many_updates_of_one_document_are_one_statement() {
        let events: Vec<_> = (0..100).map(|n| update(1, doc! {"u": {"a": n}})).collect();
        let outcomes = outcome_of(&events);
        let [Outcome::Update(deltas)] = outcomes.as_slice() else {
            panic!("{outcomes:?}");
        };
        assert_eq!(deltas.statements(), 1);
    }

    #[test]
    fn a_replace_that_changes_the_ids_representation_deletes_and_inserts() {
        assert_eq!(
            outcome_of(&[replace(1, doc! {"_id": 1.0})]),
            [
                Outcome::Delete,
                Outcome::Insert {
                    document: bytes(doc! {"_id": 1.0}),
                    deltas: Deltas::default()
                }
            ]
        );
    }

    #[test]
    fn an_update_without_its_raw_delta_is_read_again() {
        let mut event = update(1, doc! {});
        event.remove("rawUpdateDescription");
        assert_eq!(outcome_of(&[event]), [Outcome::Refetch]);
    }
}
