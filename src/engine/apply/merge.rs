//! Merges the events of a batch per document.
//!
//! Within one batch the order of events on *different* documents does not matter, because the
//! batch becomes visible as a whole; so every document is written once, in the cheapest way that
//! has the same result as all its events.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::delta::Deltas;
use super::entity::{CollectionIndex, Entity, Outcome};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{Element, find};
use crate::engine::state::Way;
use crate::engine::stream::event::{Event, Operation};

/// Bytes that a document's entry takes beside its content.
const ENTRY: usize = 160;

/// What is reckoned for a document that was too large for its event: it may have 16 MiB itself, or
/// be a small one that changed in very many places.
const LARGE: usize = 4 << 20;

/// How events are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Each as it is; the deltas of updates are exact.
    Deltas,
    /// The same, but changed documents are read again where a delta would need a pipeline.
    PlainDeltas,
    /// Changed documents are read again; inserted, replaced and deleted ones are as their events
    /// say.
    Documents,
    /// Every document is read again: the target may hold a later state of it than its events.
    ReadAgain,
    /// Each as it is, and may be laid over a later state.
    OverLater,
}

/// Where an event's document is, and how it may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Home {
    /// Its collection.
    pub collection: CollectionIndex,
    /// How that is written.
    pub way: Way,
    /// How its events are taken.
    pub form: Form,
}

/// Documents with their events merged.
#[derive(Default, Debug)]
pub(super) struct Documents {
    entities: Vec<Entity>,
    index: HashMap<(CollectionIndex, Value), usize>,
    bytes: usize,
}

impl Documents {
    /// The documents, in the order of their first event; where the order of insertion counts, a
    /// document that came back is there once more.
    pub(super) fn all(&self) -> &[Entity] {
        &self.entities
    }

    pub(super) fn into_all(self) -> Vec<Entity> {
        self.entities
    }

    /// Deals them out, in their order. Nothing can be added to what comes of it.
    pub(super) fn deal(self, parts: usize, places: &[usize]) -> Vec<Self> {
        let mut dealt: Vec<Self> = std::iter::repeat_with(Self::default).take(parts).collect();
        for (entity, place) in self.entities.into_iter().zip(places) {
            dealt[*place].entities.push(entity);
        }
        dealt
    }

    /// Roughly the memory they take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn holds(&self, collection: CollectionIndex, id: &Value) -> bool {
        self.index.contains_key(&(collection, id.clone()))
    }

    /// The document is compared with the source, whatever else happens to it.
    pub(super) fn reconcile(&mut self, collection: CollectionIndex, id: &Value) {
        let id = Element {
            kind: id.kind,
            name: b"_id",
            value: &id.bytes,
        };
        let entity = self.entity(collection, id, || Outcome::Reconcile);
        entity.outcome = Outcome::Reconcile;
    }

    /// All are read from the source, whatever their events say.
    pub(super) fn read_all_again(&mut self) {
        for entity in &mut self.entities {
            entity.ask(Outcome::Refetch);
        }
    }

    /// Adds an event.
    ///
    /// # Errors
    /// Says what the event lacks.
    pub(super) fn add(&mut self, home: Home, event: &Event<'_>) -> Result<(), &'static str> {
        let id = event.id.ok_or("no documentKey._id")?;
        let collection = home.collection;
        let in_order = home.way == Way::InOrder;
        match event.operation {
            operation
                if (event.slim || home.form == Form::ReadAgain) && operation.is_document() =>
            {
                if event.slim {
                    self.bytes += LARGE;
                }
                self.refetch(collection, id);
            }
            Operation::Insert => {
                let document = event.full_document.ok_or("no fullDocument")?;
                if in_order {
                    // Its place is behind all that were inserted before it, whatever was there.
                    self.index.remove(&(collection, Value::of(id)));
                }
                self.set(collection, id, Some(document));
            }
            Operation::Replace if in_order => {
                let document = event.full_document.ok_or("no fullDocument")?;
                self.replace_in_place(collection, id, document);
            }
            Operation::Replace => {
                let document = event.full_document.ok_or("no fullDocument")?;
                self.replace(collection, id, document);
            }
            Operation::Delete => self.set(collection, id, None),
            Operation::Update => match event.raw_update {
                Some(raw) if !matches!(home.form, Form::Documents | Form::ReadAgain) => {
                    self.update(home, id, raw);
                }
                _ => self.refetch(collection, id),
            },
            _ => return Err("not a document event"),
        }
        Ok(())
    }

    /// The collection is gone.
    pub(super) fn forget(&mut self, collection: CollectionIndex) {
        if self.entities.iter().all(|it| it.collection != collection) {
            return;
        }
        self.entities.retain(|it| it.collection != collection);
        // Of documents in order only the last change of each is in the index.
        let known = std::mem::take(&mut self.index);
        for (place, entity) in self.entities.iter().enumerate() {
            let key = (entity.collection, entity.id.clone());
            if known.contains_key(&key) {
                self.index.insert(key, place);
            }
        }
    }

    /// Takes over others, none of which is here.
    pub(super) fn absorb(&mut self, waiting: Self) {
        self.bytes += waiting.bytes;
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
            _ => self.replace_in_place(collection, id, document),
        }
    }

    fn replace_in_place(&mut self, collection: CollectionIndex, id: Element<'_>, document: &[u8]) {
        let entity = self.entity(collection, id, || Outcome::Replace {
            document: Vec::new(),
            deltas: Deltas::default(),
        });
        // What the source has, has this too.
        if entity.outcome.is_asked() {
            return;
        }
        let deltas = Deltas::default();
        let document = document.to_vec();
        let more = document.len();
        entity.outcome = match entity.outcome {
            Outcome::Insert { .. } | Outcome::Nothing => Outcome::Insert { document, deltas },
            _ => Outcome::Replace { document, deltas },
        };
        self.bytes += more;
    }

    /// The document is inserted, or (without `document`) deleted.
    fn set(&mut self, collection: CollectionIndex, id: Element<'_>, document: Option<&[u8]>) {
        let more = document.map_or(0, <[u8]>::len);
        // What was there before the batch is told by the first event of the document.
        let entity = self.entity(collection, id, || match document {
            Some(_) => Outcome::Nothing,
            None => Outcome::Delete,
        });
        if entity.outcome.is_asked() {
            return;
        }
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

    fn update(&mut self, home: Home, id: Element<'_>, raw: &[u8]) {
        let entity = self.entity(home.collection, id, || Outcome::Update(Deltas::default()));
        let more = match &mut entity.outcome {
            Outcome::Insert { deltas, .. }
            | Outcome::Replace { deltas, .. }
            | Outcome::Update(deltas) => {
                if home.form == Form::Deltas {
                    deltas.push(raw)
                } else if home.form == Form::OverLater {
                    deltas.push_raw(raw)
                } else if let Some(more) = deltas.push_plain(raw) {
                    more
                } else {
                    entity.outcome = Outcome::Refetch;
                    0
                }
            }
            // An update of a document that the stream said is gone: let the source decide.
            Outcome::Delete | Outcome::Nothing => {
                entity.outcome = Outcome::Refetch;
                0
            }
            Outcome::Refetch | Outcome::Reconcile => 0,
        };
        self.bytes += more;
    }

    fn refetch(&mut self, collection: CollectionIndex, id: Element<'_>) {
        let entity = self.entity(collection, id, || Outcome::Refetch);
        entity.ask(Outcome::Refetch);
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
        outcomes(events, Form::Deltas)
    }

    fn outcomes(events: &[Document], form: Form) -> Vec<Outcome> {
        merged(events, Way::Transactional, form)
    }

    fn merged(events: &[Document], way: Way, form: Form) -> Vec<Outcome> {
        let home = Home {
            collection: 0,
            way,
            form,
        };
        let mut documents = Documents::default();
        for event in events {
            let mut whole = doc! {"_id": {"_data": "82"}};
            whole.extend(event.clone());
            let raw = whole.to_vec().unwrap();
            let event = parse(RawDocument::from_bytes(&raw).unwrap()).unwrap();
            documents.add(home, &event).unwrap();
        }
        let all = documents.into_all().into_iter();
        all.map(|entity| entity.outcome).collect()
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
    fn what_needs_a_pipeline_can_be_read_again_instead() {
        let plain = update(1, doc! {"u": {"a": 1}});
        let appended = update(1, doc! {"i": {"b": 1}});
        assert!(matches!(
            outcomes(std::slice::from_ref(&plain), Form::PlainDeltas).as_slice(),
            [Outcome::Update(_)]
        ));
        let both = [plain, appended];
        assert_eq!(outcomes(&both, Form::PlainDeltas), [Outcome::Refetch]);
        assert!(matches!(outcome_of(&both).as_slice(), [Outcome::Update(_)]));
    }

    #[test]
    fn an_update_without_its_raw_delta_is_read_again() {
        let mut event = update(1, doc! {});
        event.remove("rawUpdateDescription");
        assert_eq!(outcome_of(&[event]), [Outcome::Refetch]);
    }

    #[test]
    fn in_a_capped_collection_an_insert_is_always_the_last() {
        let again = [
            insert(doc! {"_id": 1}),
            insert(doc! {"_id": 2}),
            delete(1),
            insert(doc! {"_id": 1, "again": true}),
            update(1, doc! {"u": {"again": false}}),
        ];
        let outcomes = merged(&again, Way::InOrder, Form::Deltas);
        let [
            Outcome::Nothing,
            Outcome::Insert { .. },
            Outcome::Insert { document, deltas },
        ] = outcomes.as_slice()
        else {
            panic!("{outcomes:?}");
        };
        assert_eq!(document, &bytes(doc! {"_id": 1, "again": true}));
        assert!(!deltas.is_empty());
    }

    #[test]
    fn in_a_capped_collection_a_replace_keeps_the_place() {
        let outcomes = merged(&[replace(1, doc! {"_id": 1.0})], Way::InOrder, Form::Deltas);
        assert!(matches!(outcomes.as_slice(), [Outcome::Replace { .. }]));
    }

    #[test]
    fn a_document_that_is_read_again_is_so_whatever_follows() {
        let mut slim = insert(doc! {"_id": 1});
        slim.remove("fullDocument");
        slim.insert("mongomirrorSlim", true);
        let events = [
            slim,
            update(1, doc! {"u": {"a": 1}}),
            replace(1, doc! {"_id": 1}),
            delete(1),
            insert(doc! {"_id": 1}),
        ];
        for n in 1..=events.len() {
            assert_eq!(outcome_of(&events[..n]), [Outcome::Refetch]);
        }
    }

    #[test]
    fn as_long_as_documents_are_ahead_all_are_read_again() {
        let events = [insert(doc! {"_id": 1}), delete(2), update(3, doc! {})];
        let all = [Outcome::Refetch, Outcome::Refetch, Outcome::Refetch];
        assert_eq!(outcomes(&events, Form::ReadAgain), all);
    }

    #[test]
    fn without_deltas_only_changed_documents_are_read_again() {
        let events = [insert(doc! {"_id": 1}), delete(2), update(3, doc! {})];
        let outcomes = outcomes(&events, Form::Documents);
        assert!(matches!(outcomes[0], Outcome::Insert { .. }));
        assert_eq!(outcomes[1..], [Outcome::Delete, Outcome::Refetch]);
    }
}
