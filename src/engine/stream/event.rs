//! One change event, read from its raw bytes in a single pass; nothing is copied.

use bson::RawDocument;

use crate::engine::bson::scan::{Element, Elements, find, kind};
use crate::engine::position::ClusterTime;
use crate::engine::stream::slim::MARK;

/// A collection's identity on the source; names change, this does not.
pub type Uuid = [u8; 16];

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A document was inserted.
    Insert,
    /// A document was changed in place.
    Update,
    /// A document was replaced as a whole.
    Replace,
    /// A document was deleted.
    Delete,
    /// A collection or view was created.
    Create,
    /// A collection or view was dropped.
    Drop,
    /// A collection was renamed.
    Rename,
    /// Options of a collection, view or index were changed.
    Modify,
    /// Indexes were built.
    CreateIndexes,
    /// Indexes were dropped.
    DropIndexes,
    /// The database was dropped; the drops of its collections came before.
    DropDatabase,
    /// The stream ends here and goes on with `startAfter` (`facts` mongodb 1.5).
    Invalidate,
    /// Anything newer servers may announce.
    Other,
}

impl Operation {
    fn parse(name: &str) -> Self {
        match name {
            "insert" => Self::Insert,
            "update" => Self::Update,
            "replace" => Self::Replace,
            "delete" => Self::Delete,
            "create" => Self::Create,
            "drop" => Self::Drop,
            "rename" => Self::Rename,
            "modify" => Self::Modify,
            "createIndexes" => Self::CreateIndexes,
            "dropIndexes" => Self::DropIndexes,
            "dropDatabase" => Self::DropDatabase,
            "invalidate" => Self::Invalidate,
            _ => Self::Other,
        }
    }

    /// Whether the event changes one document.
    pub fn is_document(self) -> bool {
        matches!(
            self,
            Self::Insert | Self::Update | Self::Replace | Self::Delete
        )
    }
}

/// The source transaction an event belongs to: session and number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    session: Vec<u8>,
    number: i64,
}

impl Transaction {
    /// One of which nothing is known but that it may be there; no event is known to belong to it.
    pub fn unknown() -> Self {
        Self {
            session: Vec::new(),
            number: 0,
        }
    }
}

/// A change event, borrowed from its reply.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// All its bytes.
    pub raw: &'a RawDocument,
    /// What happened.
    pub operation: Operation,
    /// Its name as sent, for messages.
    pub operation_name: &'a str,
    /// The resume token.
    pub token: &'a RawDocument,
    /// When it happened on the source.
    pub time: ClusterTime,
    /// The collection's name at that time; empty where there is none.
    pub collection: &'a str,
    /// The new name, of a rename.
    pub to: Option<&'a str>,
    /// The collection's identity; views and databases have none.
    pub uuid: Option<Uuid>,
    /// `documentKey._id`.
    pub id: Option<Element<'a>>,
    /// The document after an insert or replace, or where the server was asked to look it up.
    pub full_document: Option<&'a [u8]>,
    /// The delta as the oplog has it: `{$v: 2, diff: …}`.
    pub raw_update: Option<&'a [u8]>,
    /// What a command was told.
    pub description: Option<&'a [u8]>,
    /// The transaction, if it was one.
    pub transaction: Option<TransactionRef<'a>>,
    /// It was too large and was read without its content: the document must be read again, and
    /// without `id` nobody knows which one.
    pub slim: bool,
}

/// A transaction, borrowed from its event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionRef<'a> {
    session: &'a [u8],
    number: i64,
}

impl TransactionRef<'_> {
    /// An owned copy, to be compared with later events.
    pub fn to_owned(self) -> Transaction {
        Transaction {
            session: self.session.to_vec(),
            number: self.number,
        }
    }

    /// Whether both are one transaction.
    pub fn is(self, other: &Transaction) -> bool {
        self.number == other.number && self.session == other.session
    }
}

/// Reads an event.
///
/// # Errors
/// Says which part is missing or malformed.
pub fn parse(event: &RawDocument) -> Result<Event<'_>, &'static str> {
    let mut parsed = Event {
        raw: event,
        operation: Operation::Other,
        operation_name: "",
        token: event,
        time: ClusterTime::ZERO,
        collection: "",
        to: None,
        uuid: None,
        id: None,
        full_document: None,
        raw_update: None,
        description: None,
        transaction: None,
        slim: false,
    };
    let mut token = None;
    let (mut session, mut number) = (None, None);
    for element in Elements::new(event.as_bytes()) {
        let element = element.map_err(|_| "malformed bytes")?;
        match element.name {
            b"_id" => token = element.as_document(),
            b"operationType" => {
                parsed.operation_name = element.as_str().ok_or("operationType is no string")?;
                parsed.operation = Operation::parse(parsed.operation_name);
            }
            b"clusterTime" => parsed.time = timestamp(element).ok_or("clusterTime is malformed")?,
            b"ns" => parsed.collection = collection_of(element),
            b"to" => parsed.to = Some(collection_of(element)),
            b"collectionUUID" => parsed.uuid = uuid(element),
            b"documentKey" => {
                parsed.id = element.as_document().and_then(|key| find(key, b"_id"));
            }
            b"fullDocument" => parsed.full_document = element.as_document(),
            b"rawUpdateDescription" => parsed.raw_update = element.as_document(),
            b"operationDescription" => parsed.description = element.as_document(),
            b"lsid" => {
                session = element
                    .as_document()
                    .and_then(|session| find(session, b"id"))
                    .map(|id| id.value);
            }
            name if name == MARK.as_bytes() => parsed.slim = true,
            b"txnNumber" => number = element.value.try_into().ok().map(i64::from_le_bytes),
            _ => {}
        }
    }
    parsed.token = token
        .and_then(|token| RawDocument::from_bytes(token).ok())
        .ok_or("no resume token")?;
    if let (Some(session), Some(number)) = (session, number) {
        parsed.transaction = Some(TransactionRef { session, number });
    }
    Ok(parsed)
}

fn collection_of(namespace: Element<'_>) -> &str {
    namespace
        .as_document()
        .and_then(|namespace| find(namespace, b"coll"))
        .and_then(|name| name.as_str())
        .unwrap_or("")
}

/// A timestamp is stored increment first, little-endian.
fn timestamp(element: Element<'_>) -> Option<ClusterTime> {
    if element.kind != kind::TIMESTAMP {
        return None;
    }
    let both = u64::from_le_bytes(element.value.try_into().ok()?);
    Some(ClusterTime {
        seconds: u32::try_from(both >> 32).ok()?,
        increment: u32::try_from(both & 0xFFFF_FFFF).ok()?,
    })
}

/// Binary of subtype 4: length, subtype, 16 bytes.
pub fn uuid(element: Element<'_>) -> Option<Uuid> {
    if element.kind != kind::BINARY || element.value.get(4) != Some(&4) {
        return None;
    }
    element.value.get(5..)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Bson, Timestamp, doc};

    #[test]
    fn an_event_is_read_in_one_pass() {
        let uuid = bson::Uuid::from_bytes([7; 16]);
        let raw = doc! {
            "_id": {"_data": "82"},
            "operationType": "update",
            "clusterTime": Timestamp { time: 9, increment: 4 },
            "collectionUUID": uuid,
            "ns": {"db": "d", "coll": "orders"},
            "documentKey": {"_id": 5},
            "rawUpdateDescription": {"$v": 2, "diff": {"u": {"a": 1}}},
            "lsid": {"id": uuid, "uid": Bson::Null},
            "txnNumber": 3_i64,
        }
        .to_vec()
        .unwrap();
        let event = parse(RawDocument::from_bytes(&raw).unwrap()).unwrap();
        assert_eq!(event.operation, Operation::Update);
        assert_eq!(event.time.to_string(), "9.4");
        assert_eq!(event.collection, "orders");
        assert_eq!(event.uuid, Some([7; 16]));
        assert_eq!(event.id.unwrap().value, 5_i32.to_le_bytes());
        let transaction = event.transaction.unwrap();
        assert!(transaction.is(&transaction.to_owned()));
    }

    #[test]
    fn an_event_without_a_token_is_refused() {
        let raw = doc! {"operationType": "insert"}.to_vec().unwrap();
        assert!(parse(RawDocument::from_bytes(&raw).unwrap()).is_err());
    }
}
