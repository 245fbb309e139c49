//! Documents as bytes: written by hand, sent and read without ever being decoded.

use bson::{Document, RawDocumentBuf};
use futures::{StreamExt, TryStreamExt};
use mongodb::error::ErrorKind;
use mongodb::{ClientSession, Database};
use mongomirror::engine::bson::order::Value;
use mongomirror::engine::bson::scan::find as find_field;

/// Elements one after the other: a document without its length and its end.
#[derive(Clone, Default, Debug)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// No elements.
    pub fn new() -> Self {
        Self::default()
    }

    /// The elements of a document that the driver can write.
    pub fn of(document: &Document) -> Self {
        Self::within(&document.to_vec().expect("an ordinary document"))
    }

    /// The elements of these bytes.
    pub fn within(document: &[u8]) -> Self {
        Self(document[4..document.len() - 1].to_vec())
    }

    /// One more element: its type, name and value as bytes.
    pub fn raw(mut self, kind: u8, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.0.push(kind);
        self.0.extend_from_slice(name.as_ref());
        self.0.push(0);
        self.0.extend_from_slice(value.as_ref());
        self
    }

    /// A 32-bit integer.
    pub fn int(self, name: impl AsRef<[u8]>, value: i32) -> Self {
        self.raw(0x10, name, value.to_le_bytes())
    }

    /// A string, of any bytes.
    pub fn string(self, name: impl AsRef<[u8]>, text: impl AsRef<[u8]>) -> Self {
        self.raw(0x02, name, string(text))
    }

    /// An embedded document.
    pub fn document(self, name: impl AsRef<[u8]>, fields: &Self) -> Self {
        self.raw(0x03, name, fields.finish())
    }

    /// An array of documents.
    pub fn documents<'a>(
        self,
        name: impl AsRef<[u8]>,
        documents: impl IntoIterator<Item = &'a Vec<u8>>,
    ) -> Self {
        let mut items = Self::new();
        for (index, document) in documents.into_iter().enumerate() {
            items = items.raw(0x03, index.to_string(), document);
        }
        self.raw(0x04, name, items.finish())
    }

    /// More elements behind these.
    pub fn and(mut self, more: &Self) -> Self {
        self.0.extend_from_slice(&more.0);
        self
    }

    /// The whole document.
    pub fn finish(&self) -> Vec<u8> {
        let length = i32::try_from(self.0.len() + 5).expect("a document that fits");
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.0);
        bytes.push(0);
        bytes
    }
}

/// A string's value: its length, its bytes, its end.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    let length = i32::try_from(text.len() + 1).expect("a short string");
    [&length.to_le_bytes(), text, &[0]].concat()
}

/// A binary value.
pub fn binary(subtype: u8, bytes: &[u8]) -> Vec<u8> {
    let length = i32::try_from(bytes.len()).expect("few bytes");
    [&length.to_le_bytes()[..], &[subtype], bytes].concat()
}

/// The first element of a document: its type, name, and value.
pub fn first(document: &[u8]) -> (u8, Vec<u8>, Vec<u8>) {
    element(document, 0).expect("an element")
}

/// The element at this place of a document, if it has so many.
pub fn element(document: &[u8], place: usize) -> Option<(u8, Vec<u8>, Vec<u8>)> {
    let element = mongomirror::engine::bson::scan::Elements::new(document)
        .nth(place)?
        .expect("a whole document");
    Some((element.kind, element.name.to_vec(), element.value.to_vec()))
}

/// Runs a command of these bytes; the code of its first error otherwise.
pub async fn run(db: &Database, command: Fields) -> Result<Document, i32> {
    let command = RawDocumentBuf::from_bytes(command.finish()).expect("a whole document");
    checked(db.run_raw_command(command).await)
}

/// As [`run`], in a session's transaction.
pub async fn run_in(
    db: &Database,
    command: Fields,
    session: &mut ClientSession,
) -> Result<Document, i32> {
    let command = RawDocumentBuf::from_bytes(command.finish()).expect("a whole document");
    checked(db.run_raw_command(command).session(session).await)
}

fn checked(reply: mongodb::error::Result<Document>) -> Result<Document, i32> {
    let reply = reply.map_err(|error| match error.kind.as_ref() {
        ErrorKind::Command(error) => error.code,
        other => panic!("the server could not be asked: {other:?}"),
    })?;
    let errors = reply.get_array("writeErrors").ok();
    match errors.and_then(|errors| errors.first()?.as_document()) {
        Some(error) => Err(error.get_i32("code").expect("a code")),
        None => Ok(reply),
    }
}

/// `insert`.
pub fn insert<'a>(collection: &str, documents: impl IntoIterator<Item = &'a Vec<u8>>) -> Fields {
    Fields::new()
        .string("insert", collection)
        .documents("documents", documents)
}

/// `update` of the document with the `_id` of `document`; `update` is an element named `u`.
pub fn update(collection: &str, document: &[u8], update: &Fields, upsert: bool) -> Fields {
    let (kind, name, value) = first(document);
    assert_eq!(name, b"_id", "it comes first");
    let statement = Fields::new()
        .document("q", &Fields::new().raw(kind, "_id", value))
        .and(update)
        .raw(0x08, "upsert", [u8::from(upsert)]);
    Fields::new()
        .string("update", collection)
        .documents("updates", [&statement.finish()])
}

/// The update `u` that replaces by this document.
pub fn replacement(document: &[u8]) -> Fields {
    Fields::new().raw(0x03, "u", document)
}

/// The update `u` that replaces by this document as it is: a pipeline with a literal.
pub fn literal(document: &[u8]) -> Fields {
    let literal = Fields::new().raw(0x03, "$literal", document);
    let stage = Fields::new().document("$replaceWith", &literal);
    Fields::new().documents("u", [&stage.finish()])
}

/// The update `u` that sets one field.
pub fn set(name: impl AsRef<[u8]>, kind: u8, value: impl AsRef<[u8]>) -> Fields {
    let fields = Fields::new().raw(kind, name, value);
    Fields::new().document("u", &Fields::new().document("$set", &fields))
}

/// The update `u` that runs these stages or operators.
pub fn operators(update: &bson::Bson) -> Fields {
    Fields::of(&bson::doc! {"u": update.clone()})
}

/// All documents of a collection as they are stored, in the order of their ids.
pub async fn read(db: &Database, collection: &str) -> Vec<Vec<u8>> {
    let by_id = bson::doc! {"find": collection, "sort": {"_id": 1}, "hint": {"_id": 1}};
    read_by(db, &by_id).await
}

/// All documents of a collection as they are stored, in the order in which they lie there.
pub async fn read_as_they_lie(db: &Database, collection: &str) -> Vec<Vec<u8>> {
    read_by(
        db,
        &bson::doc! {"find": collection, "hint": {"$natural": 1}},
    )
    .await
}

/// The ids of all documents, in the order in which they lie there.
pub async fn ids_as_they_lie(db: &Database, collection: &str) -> Vec<Value> {
    let documents = read_as_they_lie(db, collection).await;
    documents.iter().filter_map(|it| id_of(it)).collect()
}

/// The ids of all inserts into a collection that the server's oplog still has, in its order.
pub async fn ids_as_inserted(db: &Database, collection: &str) -> Vec<Value> {
    let list = bson::doc! {"listCollections": 1, "filter": {"name": collection}};
    let cursor = db.run_cursor_command(list).await.expect("listCollections");
    let listed: Vec<Document> = cursor.try_collect().await.expect("listCollections");
    let info = listed[0].get_document("info").expect("what it is");
    let inserts = bson::doc! {"op": "i", "ui": info.get("uuid")};
    let find = bson::doc! {"find": "oplog.rs", "filter": inserts, "sort": {"$natural": 1}};
    let entries = read_by(&db.client().database("local"), &find).await;
    let inserted = |entry: &Vec<u8>| id_of(find_field(entry, b"o")?.value);
    entries.iter().filter_map(inserted).collect()
}

fn id_of(document: &[u8]) -> Option<Value> {
    find_field(document, b"_id").map(Value::of)
}

/// The names of capped collections.
pub async fn capped(db: &Database) -> Vec<String> {
    let list = bson::doc! {"listCollections": 1, "filter": {"options.capped": true}};
    let cursor = db.run_cursor_command(list).await.expect("listCollections");
    let listed: Vec<Document> = cursor.try_collect().await.expect("listCollections");
    let names = listed.iter().filter_map(|one| one.get_str("name").ok());
    names.map(ToOwned::to_owned).collect()
}

async fn read_by(db: &Database, find: &Document) -> Vec<Vec<u8>> {
    let find = RawDocumentBuf::try_from(find).expect("an ordinary command");
    let mut cursor = db
        .run_raw_cursor_command(find)
        .batch()
        .await
        .expect("a cursor");
    let mut documents = Vec::new();
    while let Some(batch) = cursor.next().await {
        let batch = batch.expect("a batch");
        let slices = batch.doc_slices().expect("documents");
        documents.extend(
            slices
                .into_iter()
                .filter_map(|document| Some(document.ok()?.as_document()?.as_bytes().to_vec())),
        );
    }
    documents
}

/// Proves that a collection holds the same bytes on both sides; returns how many documents.
pub async fn assert_same_bytes(source: &Database, target: &Database, collection: &str) -> usize {
    let (left, right) = (
        read(source, collection).await,
        read(target, collection).await,
    );
    let lacks = |side: &str, these: &[Vec<u8>], those: &[Vec<u8>]| -> Vec<String> {
        let alone = these.iter().filter(|document| !those.contains(document));
        alone
            .map(|document| format!("only the {side} holds {}", shown(document)))
            .collect()
    };
    if left != right {
        let mut different = lacks("source", &left, &right);
        different.extend(lacks("target", &right, &left));
        different.sort_by_key(|line| line.split(" holds ").nth(1).map(str::to_owned));
        panic!("{collection} differs:\n{}", different.join("\n"));
    }
    left.len()
}

/// Bytes for people: text as text, the rest in hexadecimal.
pub fn shown(bytes: &[u8]) -> String {
    let shown = bytes.iter().take(200).map(|byte| match byte {
        b' '..=b'~' => char::from(*byte).to_string(),
        other => format!("<{other:02x}>"),
    });
    shown.collect()
}
