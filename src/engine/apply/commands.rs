//! A batch as raw commands: deletes, then inserts, then updates, collection by collection.

use bson::RawDocumentBuf;

use super::delta::Deltas;
use super::gather::{CollectionIndex, Entity, Outcome};
use crate::engine::bson::encode::{Encoder, Open};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{kind, shape};
use crate::engine::connection::probe::TargetAbilities;

/// Commands are cut at this size: allocators and the network carry 1 to 2 MB best (`facts` rust,
/// finding 7), and a single statement of 16 MiB still has its room.
const CUT_AT: usize = 1_500_000;

/// The server's own limit of statements in one command is 100 000.
const MOST_STATEMENTS: usize = 50_000;

/// A write command and what the server must answer if the target is the pre-state.
#[derive(Debug)]
pub struct Command {
    /// The command's bytes.
    pub body: RawDocumentBuf,
    /// Documents that must be found (or inserted).
    pub expected: i64,
}

/// How a document gets to the target byte for byte (`facts` mongodb 3.2 to 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// `insert`, or an update with the document itself.
    Classic,
    /// `[{$replaceWith: {$literal: …}}]`.
    Literal,
    /// Delete, then insert: the only way for `$` names beside duplicate ones.
    Anew,
}

fn form_of_replace(document: &[u8], abilities: TargetAbilities) -> Form {
    let shape = shape(document);
    let rewritten = shape.empty_timestamp && !abilities.keeps_empty_timestamps;
    match (shape.dollar_name, shape.duplicate_name) {
        (false, _) if !rewritten => Form::Classic,
        (_, false) => Form::Literal,
        // A pipeline would crash a 6.0.5 server here; the zero timestamp is lost instead.
        (false, true) => Form::Classic,
        (true, true) => Form::Anew,
    }
}

fn form_of_insert(document: &[u8], abilities: TargetAbilities) -> Form {
    if abilities.keeps_empty_timestamps {
        return Form::Classic;
    }
    let shape = shape(document);
    if shape.empty_timestamp && !shape.duplicate_name {
        Form::Literal
    } else {
        Form::Classic
    }
}

/// Encodes all entities of one collection.
pub fn encode<'a>(
    collection: &str,
    entities: impl Iterator<Item = &'a Entity> + Clone,
    abilities: TargetAbilities,
) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut deletes = Builder::new("delete", "deletes", collection, abilities);
    let mut inserts = Builder::new("insert", "documents", collection, abilities);
    let mut updates = Builder::new("update", "updates", collection, abilities);
    for entity in entities.clone() {
        match &entity.outcome {
            Outcome::Delete => deletes.delete(&entity.id, &mut commands),
            Outcome::Replace { document, .. }
                if form_of_replace(document, abilities) == Form::Anew =>
            {
                deletes.delete(&entity.id, &mut commands);
            }
            _ => {}
        }
    }
    deletes.flush(&mut commands);
    for entity in entities.clone() {
        match &entity.outcome {
            Outcome::Insert { document, .. }
                if form_of_insert(document, abilities) == Form::Classic =>
            {
                inserts.insert(document, &mut commands);
            }
            Outcome::Replace { document, .. }
                if form_of_replace(document, abilities) == Form::Anew =>
            {
                inserts.insert(document, &mut commands);
            }
            _ => {}
        }
    }
    inserts.flush(&mut commands);
    for entity in entities {
        match &entity.outcome {
            Outcome::Insert { document, deltas } => {
                if form_of_insert(document, abilities) == Form::Literal {
                    updates.replace(&entity.id, document, Form::Literal, true, &mut commands);
                }
                updates.deltas(&entity.id, deltas, &mut commands);
            }
            Outcome::Replace { document, deltas } => {
                let form = form_of_replace(document, abilities);
                if form != Form::Anew {
                    updates.replace(&entity.id, document, form, false, &mut commands);
                }
                updates.deltas(&entity.id, deltas, &mut commands);
            }
            Outcome::Update(deltas) => updates.deltas(&entity.id, deltas, &mut commands),
            Outcome::Delete | Outcome::Nothing | Outcome::Refetch => {}
        }
    }
    updates.flush(&mut commands);
    commands
}

/// One statement that makes the document what it shall be, whatever is there now.
pub fn put(
    collection: &str,
    id: &Value,
    document: &[u8],
    abilities: TargetAbilities,
) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut updates = Builder::new("update", "updates", collection, abilities);
    let form = match form_of_replace(document, abilities) {
        Form::Anew => {
            let mut deletes = Builder::new("delete", "deletes", collection, abilities);
            deletes.delete(id, &mut commands);
            deletes.flush(&mut commands);
            let mut inserts = Builder::new("insert", "documents", collection, abilities);
            inserts.insert(document, &mut commands);
            inserts.flush(&mut commands);
            return commands;
        }
        form => form,
    };
    updates.replace(id, document, form, true, &mut commands);
    updates.flush(&mut commands);
    commands
}

/// One statement that removes the document, if it is there.
pub fn remove(collection: &str, id: &Value, abilities: TargetAbilities) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut deletes = Builder::new("delete", "deletes", collection, abilities);
    deletes.delete(id, &mut commands);
    deletes.flush(&mut commands);
    commands
}

/// The entities of a batch, sorted by collection; the order within one is kept.
pub fn by_collection(entities: &[Entity]) -> Vec<(CollectionIndex, Vec<&Entity>)> {
    let mut groups: Vec<(CollectionIndex, Vec<&Entity>)> = Vec::new();
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

/// Builds commands of one kind, cut to size.
struct Builder<'a> {
    name: &'static str,
    array: &'static str,
    collection: &'a str,
    abilities: TargetAbilities,
    open: Option<(Encoder, Open, Open)>,
    statements: usize,
}

impl<'a> Builder<'a> {
    fn new(
        name: &'static str,
        array: &'static str,
        collection: &'a str,
        abilities: TargetAbilities,
    ) -> Self {
        Self {
            name,
            array,
            collection,
            abilities,
            open: None,
            statements: 0,
        }
    }

    /// Writes one statement of about `size` bytes, into a new command if it does not fit.
    fn statement(
        &mut self,
        size: usize,
        commands: &mut Vec<Command>,
        write: impl FnOnce(&mut Encoder, usize),
    ) {
        let full = self.open.as_ref().is_some_and(|(encoder, ..)| {
            encoder.written() + size > CUT_AT || self.statements == MOST_STATEMENTS
        });
        if full {
            self.flush(commands);
        }
        let (name, array, collection) = (self.name, self.array, self.collection);
        let (encoder, ..) = self.open.get_or_insert_with(|| {
            let mut encoder = Encoder::with_capacity(size.max(1024) + 256);
            let root = encoder.begin();
            encoder.string(name, collection);
            let statements = encoder.begin_array(array);
            (encoder, root, statements)
        });
        write(encoder, self.statements);
        self.statements += 1;
    }

    fn delete(&mut self, id: &Value, commands: &mut Vec<Command>) {
        self.statement(id.bytes.len() + 48, commands, |encoder, index| {
            let statement = encoder.begin_element(index);
            let query = encoder.begin_document("q");
            encoder.raw(id.kind, b"_id", &id.bytes);
            encoder.end(query);
            encoder.int("limit", 1);
            encoder.end(statement);
        });
    }

    fn insert(&mut self, document: &[u8], commands: &mut Vec<Command>) {
        self.statement(document.len() + 16, commands, |encoder, index| {
            encoder.raw_element(index, document);
        });
    }

    fn replace(
        &mut self,
        id: &Value,
        document: &[u8],
        form: Form,
        upsert: bool,
        commands: &mut Vec<Command>,
    ) {
        self.statement(
            document.len() + id.bytes.len() + 96,
            commands,
            |encoder, index| {
                let statement = encoder.begin_element(index);
                let query = encoder.begin_document("q");
                encoder.raw(id.kind, b"_id", &id.bytes);
                encoder.end(query);
                if form == Form::Literal {
                    let pipeline = encoder.begin_array("u");
                    let stage = encoder.begin_element(0);
                    let operator = encoder.begin_document("$replaceWith");
                    encoder.raw(kind::DOCUMENT, b"$literal", document);
                    encoder.end(operator);
                    encoder.end(stage);
                    encoder.end(pipeline);
                } else {
                    encoder.raw(kind::DOCUMENT, b"u", document);
                }
                if upsert {
                    encoder.bool("upsert", true);
                }
                encoder.end(statement);
            },
        );
    }

    fn deltas(&mut self, id: &Value, deltas: &Deltas, commands: &mut Vec<Command>) {
        for step in 0..deltas.statements() {
            let size = deltas.bytes_of(step) + id.bytes.len() + 96;
            self.statement(size, commands, |encoder, index| {
                deltas.encode(step, encoder, index, (id.kind, &id.bytes));
            });
        }
    }

    fn flush(&mut self, commands: &mut Vec<Command>) {
        let Some((mut encoder, root, statements)) = self.open.take() else {
            return;
        };
        encoder.end(statements);
        encoder.bool("ordered", true);
        if self.name != "delete" {
            // Validators hold for the source's clients, not for its history (`facts` 6.15).
            encoder.bool("bypassDocumentValidation", true);
            if self.abilities.keeps_empty_timestamps {
                encoder.bool("bypassEmptyTsReplacement", true);
            }
        }
        encoder.end(root);
        commands.push(Command {
            body: encoder.finish(),
            expected: i64::try_from(self.statements).unwrap_or(i64::MAX),
        });
        self.statements = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Bson, Document, Timestamp, doc};

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
        let commands = encoded(&[entity(1, replace(&doc! {"_id": 1, "t": zero}))]);
        let statement = commands[0].get_array("updates").unwrap()[0].as_document();
        assert!(statement.unwrap().get_array("u").is_ok());
        let commands = encoded(&[entity(1, replace(&doc! {"_id": 1, "$a": 1}))]);
        let statement = commands[0].get_array("updates").unwrap()[0].as_document();
        assert!(statement.unwrap().get_array("u").is_ok());
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
