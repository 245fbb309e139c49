//! A batch as raw commands: deletes, then inserts, then updates, collection by collection.

use super::builder::Builder;
pub use super::builder::{Command, Place};
use super::delta::query;
use super::entity::{CollectionIndex, Entity, Outcome};
use super::forms::{Form, form_of_replace, is_readable};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::connection::probe::TargetAbilities;

/// Encodes all entities of one collection.
pub fn encode<'a, 'b>(
    collection: impl Into<Place<'b>>,
    entities: impl Iterator<Item = &'a Entity> + Clone,
    abilities: TargetAbilities,
) -> Vec<Command> {
    let collection = collection.into();
    let mut commands = encode_first(collection, entities.clone(), abilities);
    commands.extend(encode_last(collection, entities, abilities));
    commands
}

/// The deletes of entities of one collection, and then the inserts.
pub fn encode_first<'a>(
    collection: Place<'_>,
    entities: impl Iterator<Item = &'a Entity> + Clone,
    abilities: TargetAbilities,
) -> Vec<Command> {
    let in_order = collection.in_order;
    let mut commands = Vec::new();
    let mut deletes = Builder::new("delete", "deletes", collection, abilities);
    let mut inserts = Builder::new("insert", "documents", collection, abilities);
    for entity in entities.clone() {
        match &entity.outcome {
            Outcome::Delete => deletes.delete(&entity.id, &mut commands),
            Outcome::Replace { document, .. }
                if form_of_replace(document, in_order, abilities) == Form::Anew =>
            {
                deletes.delete(&entity.id, &mut commands);
            }
            _ => {}
        }
    }
    deletes.flush(&mut commands);
    for entity in entities {
        match &entity.outcome {
            Outcome::Insert { document, .. } => inserts.insert(document, &mut commands),
            Outcome::Replace { document, .. }
                if form_of_replace(document, in_order, abilities) == Form::Anew =>
            {
                inserts.insert(document, &mut commands);
            }
            _ => {}
        }
    }
    inserts.flush(&mut commands);
    commands
}

/// The updates of entities of one collection, also of those that were inserted before.
pub fn encode_last<'a>(
    collection: Place<'_>,
    entities: impl Iterator<Item = &'a Entity>,
    abilities: TargetAbilities,
) -> Vec<Command> {
    let in_order = collection.in_order;
    let mut commands = Vec::new();
    let mut updates = Builder::new("update", "updates", collection, abilities);
    for entity in entities {
        match &entity.outcome {
            Outcome::Insert { document, deltas } => {
                updates.keep_timestamps(&entity.id, document, &mut commands);
                updates.deltas(&entity.id, deltas, &mut commands);
            }
            Outcome::Replace { document, deltas } => {
                let form = form_of_replace(document, in_order, abilities);
                if form != Form::Anew {
                    updates.replace(&entity.id, document, form, false, &mut commands);
                }
                if matches!(form, Form::Anew | Form::Restored) {
                    updates.keep_timestamps(&entity.id, document, &mut commands);
                }
                updates.deltas(&entity.id, deltas, &mut commands);
            }
            Outcome::Update(deltas) => updates.deltas(&entity.id, deltas, &mut commands),
            Outcome::Delete | Outcome::Nothing | Outcome::Refetch | Outcome::Reconcile => {}
        }
    }
    updates.flush(&mut commands);
    commands
}

/// Whether the outcome can only be reached by inserting the document anew, at another place.
pub fn moves(outcome: &Outcome, abilities: TargetAbilities) -> bool {
    matches!(outcome, Outcome::Replace { document, .. }
        if form_of_replace(document, true, abilities) == Form::Anew)
}

/// Statements that make the document what it shall be, whatever is there now.
pub fn put<'a>(
    collection: impl Into<Place<'a>>,
    id: &Value,
    document: &[u8],
    abilities: TargetAbilities,
) -> Vec<Command> {
    put_all(collection, [(id, document)], abilities)
}

/// As [`put`], for many documents of different ids.
pub fn put_all<'a, 'd>(
    collection: impl Into<Place<'a>>,
    documents: impl IntoIterator<Item = (&'d Value, &'d [u8])>,
    abilities: TargetAbilities,
) -> Vec<Command> {
    let collection = collection.into();
    let (mut first, mut then, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut deletes = Builder::new("delete", "deletes", collection, abilities);
    let mut inserts = Builder::new("insert", "documents", collection, abilities);
    let mut updates = Builder::new("update", "updates", collection, abilities);
    for (id, document) in documents {
        let form = form_of_replace(document, collection.in_order, abilities);
        if form == Form::Anew || !is_readable(id) {
            deletes.delete(id, &mut first);
            inserts.insert(document, &mut then);
            updates.keep_timestamps(id, document, &mut last);
        } else {
            updates.replace(id, document, form, true, &mut last);
            if form == Form::Restored {
                updates.keep_timestamps(id, document, &mut last);
            }
        }
    }
    deletes.flush(&mut first);
    inserts.flush(&mut then);
    updates.flush(&mut last);
    first.extend(then);
    first.extend(last);
    first
}

/// Statements that put right what a plain insert has changed of this document.
pub fn after_insert<'a>(
    collection: impl Into<Place<'a>>,
    document: &[u8],
    abilities: TargetAbilities,
) -> Vec<Command> {
    let mut commands = Vec::new();
    if let Some(id) = find(document, b"_id") {
        let mut updates = Builder::new("update", "updates", collection.into(), abilities);
        updates.keep_timestamps(&Value::of(id), document, &mut commands);
        updates.flush(&mut commands);
    }
    commands
}

/// Changes nothing, and finds the document if it is there.
pub fn touch(collection: Place<'_>, id: &Value, abilities: TargetAbilities) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut updates = Builder::new("update", "updates", collection, abilities);
    updates.statement(id.bytes.len() + 64, &mut commands, |encoder, index| {
        let statement = encoder.begin_element(index);
        query(encoder, (id.kind, &id.bytes));
        let update = encoder.begin_document("u");
        let set = encoder.begin_document("$set");
        encoder.end(set);
        encoder.end(update);
        encoder.end(statement);
    });
    updates.flush(&mut commands);
    commands
}

/// One statement that removes the document, if it is there.
pub fn remove<'a>(
    collection: impl Into<Place<'a>>,
    id: &Value,
    abilities: TargetAbilities,
) -> Vec<Command> {
    remove_all(collection, [id], abilities)
}

/// As [`remove`], for many documents.
pub fn remove_all<'a, 'd>(
    collection: impl Into<Place<'a>>,
    ids: impl IntoIterator<Item = &'d Value>,
    abilities: TargetAbilities,
) -> Vec<Command> {
    let collection = collection.into();
    let mut commands = Vec::new();
    let mut deletes = Builder::new("delete", "deletes", collection, abilities);
    for id in ids {
        deletes.delete(id, &mut commands);
    }
    deletes.flush(&mut commands);
    commands
}

/// The entities of a batch, sorted by collection; the order within one is kept.
pub fn by_collection<'a>(
    entities: impl IntoIterator<Item = &'a Entity>,
) -> Vec<(CollectionIndex, Vec<&'a Entity>)> {
    let mut groups: Vec<(CollectionIndex, Vec<&'a Entity>)> = Vec::new();
    for entity in entities {
        match groups
            .iter_mut()
            .find(|(collection, _)| *collection == entity.collection)
        {
            Some((_, group)) => group.push(entity),
            None => groups.push((entity.collection, vec![entity])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::delta::Deltas;
    use super::*;
    use crate::engine::bson::scan::kind;
    use bson::{Bson, Document, Timestamp, doc, rawdoc};

    const OLD: TargetAbilities = TargetAbilities {
        internal_delta: true,
        keeps_empty_timestamps: false,
    };

    fn entity(id: i32, outcome: Outcome) -> Entity {
        Entity {
            collection: 0,
            id: Value {
                kind: kind::INT32,
                bytes: id.to_le_bytes().to_vec(),
            },
            outcome,
        }
    }

    fn replace(document: &Document) -> Outcome {
        Outcome::Replace {
            document: document.to_vec().unwrap(),
            deltas: Deltas::default(),
        }
    }

    fn encoded(entities: &[Entity]) -> Vec<Document> {
        encode("c", entities.iter(), OLD)
            .into_iter()
            .map(|command| Document::try_from(command.body).unwrap())
            .collect()
    }

    #[test]
    fn deletes_come_before_inserts_and_inserts_before_updates() {
        let insert = Outcome::Insert {
            document: doc! {"_id": 2}.to_vec().unwrap(),
            deltas: Deltas::default(),
        };
        let commands = encoded(&[
            entity(1, replace(&doc! {"_id": 1, "a": 1})),
            entity(2, insert),
            entity(3, Outcome::Delete),
            entity(4, Outcome::Nothing),
        ]);
        let names: Vec<_> = commands
            .iter()
            .map(|command| command.keys().next().unwrap().as_str())
            .collect();
        assert_eq!(names, ["delete", "insert", "update"]);
        assert_eq!(
            commands[0].get_array("deletes").unwrap(),
            &vec![Bson::from(doc! {"q": {"_id": 3}, "limit": 1})]
        );
    }

    #[test]
    fn documents_that_classic_forms_would_change_take_another() {
        let zero = Timestamp {
            time: 0,
            increment: 0,
        };
        let with_zero = doc! {"_id": 1, "t": zero};
        let updates = encoded(&[entity(1, replace(&with_zero))]);
        let updates = updates[0].get_array("updates").unwrap();
        let statement = |n: usize| updates[n].as_document().unwrap();
        assert_eq!(statement(0).get_document("u").unwrap(), &with_zero);
        assert_eq!(
            statement(1).get_document("u").unwrap(),
            &doc! {"$set": {"t": zero}}
        );
        let dotted = doc! {"_id": 1, "a.b": zero};
        let updates = encoded(&[entity(1, replace(&dotted))]);
        let updates = updates[0].get_array("updates").unwrap();
        let restored = updates[1].as_document().unwrap();
        assert!(restored.get_array("u").is_ok(), "no $set reaches it");
        let with_dollar = [entity(1, replace(&doc! {"_id": 1, "$a": 1}))];
        let names = |commands: &[Command]| -> Vec<String> {
            let first = commands.iter().map(|command| command.body.iter().next());
            first
                .map(|first| first.unwrap().unwrap().0.as_str().to_owned())
                .collect()
        };
        let commands = encode("c", with_dollar.iter(), OLD);
        assert_eq!(names(&commands), ["delete", "insert"]);
        let new = TargetAbilities {
            keeps_empty_timestamps: true,
            ..OLD
        };
        let capped = Place {
            in_order: true,
            ..Place::from("c")
        };
        assert_eq!(names(&encode(capped, with_dollar.iter(), new)), ["update"]);
        assert!(!moves(&with_dollar[0].outcome, new));
        assert!(moves(&with_dollar[0].outcome, OLD));
    }

    #[test]
    fn a_name_twice_meets_no_pipeline() {
        let twice = rawdoc! {"_id": 1, "a": 1, "t": zero(), "a": 2, "p.q": zero()};
        let updates = put("c", &entity(1, Outcome::Delete).id, twice.as_bytes(), OLD);
        let all: Vec<Document> = updates
            .iter()
            .flat_map(|command| {
                let command = Document::try_from(command.body.clone()).unwrap();
                let updates = command.get_array("updates").unwrap().clone();
                updates
                    .into_iter()
                    .map(|update| update.as_document().unwrap().clone())
            })
            .collect();
        assert_eq!(all.len(), 2);
        assert_eq!(
            all[1].get_document("u").unwrap(),
            &doc! {"$set": {"t": zero()}}
        );
    }

    #[test]
    fn an_id_that_no_driver_reads_is_never_upserted() {
        for (kind, bytes) in [
            (kind::STRING, vec![2, 0, 0, 0, 0xFF, 0]),
            (kind::BINARY, vec![1, 0, 0, 0, 2, 9]),
            (kind::DOCUMENT, vec![5, 0, 0, 0, 0]),
        ] {
            let id = Value { kind, bytes };
            let commands = put("c", &id, rawdoc! {"_id": 1}.as_bytes(), OLD);
            let names = commands.iter().map(|command| {
                let (name, _) = command.body.iter().next().unwrap().unwrap();
                name.as_str()
            });
            assert_eq!(names.collect::<Vec<_>>(), ["delete", "insert"]);
        }
    }

    fn zero() -> Timestamp {
        Timestamp {
            time: 0,
            increment: 0,
        }
    }

    #[test]
    fn every_insert_has_its_place() {
        let insert = |id: i32, stamp: Bson| {
            let document = doc! {"_id": id, "t": stamp}.to_vec().unwrap();
            let deltas = Deltas::default();
            entity(id, Outcome::Insert { document, deltas })
        };
        let entities = [insert(1, zero().into()), insert(2, Bson::Null)];
        let commands = encode("c", entities.iter(), OLD);
        let expected: Vec<i64> = commands.iter().map(|command| command.expected).collect();
        assert_eq!(expected, [2, 1]);
    }

    #[test]
    fn commands_are_cut_to_size_and_count_their_statements() {
        let big = doc! {"_id": 1, "text": "x".repeat(1_000_000)};
        let entities = [1, 2, 3].map(|id| entity(id, replace(&big)));
        let commands = encode("c", entities.iter(), OLD);
        assert_eq!(commands.len(), 3);
        assert!(commands.iter().all(|command| command.expected == 1));
    }
}
