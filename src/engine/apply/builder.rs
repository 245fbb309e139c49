//! Builds raw write commands, statement by statement.

use bson::RawDocumentBuf;

use super::delta::{Deltas, harmless, query};
use super::forms::{Form, form_of_insert};
use crate::engine::bson::encode::{Encoder, Open};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{Elements, find, is_empty_timestamp, kind};
use crate::engine::connection::probe::TargetAbilities;
use crate::engine::stream::event::Uuid;

/// Commands are cut at this size: allocators and the network carry 1 to 2 MB best (`facts` rust,
/// finding 7), and a single statement of 16 MiB still has its room.
const CUT_AT: usize = 1_500_000;

/// The server's own limit of statements in one command is 100 000.
const MOST_STATEMENTS: usize = 50_000;

/// Where commands go.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The collection's name on the target.
    pub name: &'a str,
    /// Its UUID there, for commands outside of transactions. They name it, so that a process that
    /// was replaced cannot reach what the next one has made anew; and they are on a majority before
    /// the checkpoint is.
    pub outside: Option<Uuid>,
    /// Whether the order of insertion counts.
    pub in_order: bool,
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(name: &'a str) -> Self {
        Self {
            name,
            outside: None,
            in_order: false,
        }
    }
}

impl<'a> From<&'a String> for Place<'a> {
    fn from(name: &'a String) -> Self {
        name.as_str().into()
    }
}

/// A write command and what the server must answer if the target is the pre-state.
#[derive(Clone, Debug)]
pub struct Command {
    /// The command's bytes.
    pub body: RawDocumentBuf,
    /// Documents that must be found (or inserted).
    pub expected: i64,
}

impl Command {
    /// The name of the collection that it writes to.
    pub fn collection(&self) -> Option<&str> {
        let first = Elements::new(self.body.as_bytes()).next()?.ok()?;
        first.as_str()
    }

    /// The `_id` of one of its statements.
    pub fn id(&self, statement: usize) -> Option<Value> {
        let body = self.body.as_bytes();
        let documents = find(body, b"documents");
        let queries = || find(body, b"deletes").or_else(|| find(body, b"updates"));
        let list = documents.or_else(queries)?;
        let statement = Elements::new(list.value).nth(statement)?.ok()?;
        let statement = statement.as_document()?;
        let holder = match documents {
            Some(_) => statement,
            None => find(statement, b"q")?.as_document()?,
        };
        find(holder, b"_id").map(Value::of)
    }
}

/// Builds commands of one kind, cut to size.
pub(super) struct Builder<'a> {
    name: &'static str,
    array: &'static str,
    collection: Place<'a>,
    abilities: TargetAbilities,
    open: Option<(Encoder, Open, Open)>,
    statements: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        name: &'static str,
        array: &'static str,
        collection: Place<'a>,
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
    pub(super) fn statement(
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
        let (name, array, collection) = (self.name, self.array, self.collection.name);
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

    pub(super) fn delete(&mut self, id: &Value, commands: &mut Vec<Command>) {
        self.statement(id.bytes.len() + 48, commands, |encoder, index| {
            let statement = encoder.begin_element(index);
            query(encoder, (id.kind, &id.bytes));
            encoder.int("limit", 1);
            encoder.end(statement);
        });
    }

    pub(super) fn insert(&mut self, document: &[u8], commands: &mut Vec<Command>) {
        self.statement(document.len() + 16, commands, |encoder, index| {
            encoder.raw_element(index, document);
        });
    }

    pub(super) fn replace(
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
                query(encoder, (id.kind, &id.bytes));
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

    /// Puts right what an insert has changed: it sets empty timestamps to now.
    pub(super) fn keep_timestamps(
        &mut self,
        id: &Value,
        document: &[u8],
        commands: &mut Vec<Command>,
    ) {
        match form_of_insert(document, self.abilities) {
            Form::Literal => self.replace(id, document, Form::Literal, false, commands),
            Form::Restored => self.set_empty_timestamps(id, document, commands),
            Form::Classic | Form::Anew => {}
        }
    }

    /// `{$set: {t: Timestamp(0, 0), …}}`. Names that mean something else in `$set`, and a second
    /// field of one name, cannot be reached so (docs/limits.md).
    fn set_empty_timestamps(&mut self, id: &Value, document: &[u8], commands: &mut Vec<Command>) {
        let mut names: Vec<&[u8]> = Elements::new(document)
            .map_while(Result::ok)
            .map(|element| element.name)
            .filter(|name| harmless(name).is_some())
            .filter(|name| find(document, name).is_some_and(|first| is_empty_timestamp(&first)))
            .collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return;
        }
        let size = names.iter().map(|name| name.len() + 16).sum::<usize>();
        self.statement(size + id.bytes.len() + 96, commands, |encoder, index| {
            let statement = encoder.begin_element(index);
            query(encoder, (id.kind, &id.bytes));
            let update = encoder.begin_document("u");
            let set = encoder.begin_document("$set");
            for name in &names {
                encoder.raw(kind::TIMESTAMP, name, &[0; 8]);
            }
            encoder.end(set);
            encoder.end(update);
            encoder.end(statement);
        });
    }

    pub(super) fn deltas(&mut self, id: &Value, deltas: &Deltas, commands: &mut Vec<Command>) {
        for step in 0..deltas.statements() {
            let size = deltas.bytes_of(step) + id.bytes.len() + 96;
            self.statement(size, commands, |encoder, index| {
                deltas.encode(step, encoder, index, (id.kind, &id.bytes));
            });
        }
    }

    pub(super) fn flush(&mut self, commands: &mut Vec<Command>) {
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
        if let Some(uuid) = self.collection.outside {
            encoder.uuid("collectionUUID", uuid);
            let concern = encoder.begin_document("writeConcern");
            encoder.string("w", "majority");
            encoder.end(concern);
        }
        encoder.end(root);
        commands.push(Command {
            body: encoder.finish(),
            expected: i64::try_from(self.statements).unwrap_or(i64::MAX),
        });
        self.statements = 0;
    }
}
