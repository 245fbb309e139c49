//! How single values are stored.

use bson::{Bson, Document, RawDocumentBuf};

use crate::engine::bson::order::Value;
use crate::engine::error::{Error, Result, Side};
use crate::engine::stream::event::Uuid;

/// The documents of an array.
pub fn documents_of<'a>(document: &'a Document, name: &str) -> impl Iterator<Item = &'a Document> {
    let array = document.get_array(name).map_or(&[][..], Vec::as_slice);
    array.iter().filter_map(Bson::as_document)
}

/// The fields of a state document, read strictly: what is not as it was written is damage.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// What the document is called in messages.
    of: &'static str,
    document: &'a Document,
}

impl<'a> Fields<'a> {
    pub(super) fn new(of: &'static str, document: &'a Document) -> Self {
        Self { of, document }
    }

    /// An error that names a field.
    pub(super) fn damaged(&self, name: &str, what: &str) -> Error {
        Error::CheckpointDamaged(format!("{}: {name} {what}", self.of))
    }

    /// A field that may be absent, or null, but must otherwise be of its type.
    pub(super) fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Bson) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.document.get(name) {
            None | Some(Bson::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.damaged(name, "is not what it should be")),
            },
        }
    }

    /// A field that must be there.
    pub(super) fn required<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Bson) -> Option<T>,
    ) -> Result<T> {
        self.optional(name, read)?
            .ok_or_else(|| self.damaged(name, "is missing"))
    }

    /// A sub-document, if it is there.
    pub(super) fn inner(&self, of: &'static str, name: &str) -> Result<Option<Self>> {
        let document = self.optional(name, Bson::as_document)?;
        Ok(document.map(|document| Self { of, document }))
    }

    /// An array of which every element can be read; empty if it is absent.
    pub(super) fn list<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Bson) -> Option<T>,
    ) -> Result<Vec<T>> {
        let list = self.optional(name, |list| {
            list.as_array()?
                .iter()
                .map(read)
                .collect::<Option<Vec<T>>>()
        })?;
        Ok(list.unwrap_or_default())
    }

    /// A text that must be there.
    pub(super) fn text(&self, name: &str) -> Result<String> {
        self.required(name, Bson::as_str).map(str::to_owned)
    }

    /// A count, 0 if it is absent.
    pub(super) fn count(&self, name: &str) -> Result<u64> {
        let count = self.optional(name, |count| u64::try_from(integer(count)?).ok())?;
        Ok(count.unwrap_or(0))
    }

    /// The collection in the document's `_id`.
    pub(super) fn id(&self) -> Result<(Self, Uuid)> {
        let id = self
            .inner(self.of, "_id")?
            .ok_or_else(|| self.damaged("_id", "is missing"))?;
        Ok((id, id.required("u", uuid_of)?))
    }
}

/// A whole number of either type.
pub(super) fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        _ => None,
    }
}

/// A value as it is stored: wrapped raw, so that any id survives the trip.
pub(super) fn to_bson(value: &Value) -> Bson {
    let mut bytes = vec![value.kind];
    bytes.extend_from_slice(&value.bytes);
    Bson::Binary(bson::Binary {
        subtype: bson::spec::BinarySubtype::Generic,
        bytes,
    })
}

pub(super) fn from_bson(stored: &Bson) -> Option<Value> {
    let Bson::Binary(binary) = stored else {
        return None;
    };
    let (kind, bytes) = binary.bytes.split_first()?;
    Some(Value {
        kind: *kind,
        bytes: bytes.to_vec(),
    })
}

/// A UUID as BSON.
pub fn binary(uuid: Uuid) -> Bson {
    bson::Uuid::from_bytes(uuid).into()
}

/// A UUID from BSON.
pub fn uuid_of(stored: &Bson) -> Option<Uuid> {
    match stored {
        Bson::Binary(binary) => binary.bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

pub(super) fn raw(document: &Document) -> Result<RawDocumentBuf> {
    RawDocumentBuf::try_from(document).map_err(|error| Error::Reply {
        side: Side::Target,
        doing: "encode a state document",
        what: error.to_string(),
    })
}

pub(super) fn fenced_unless(matched: bool, epoch: i64) -> Result<()> {
    if matched {
        Ok(())
    } else {
        Err(Error::Fenced { epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_id_survives_being_stored() {
        for value in [
            Value {
                kind: 0x0A,
                bytes: vec![],
            },
            Value {
                kind: 0x02,
                bytes: vec![2, 0, 0, 0, 0xFF, 0],
            },
        ] {
            assert_eq!(from_bson(&to_bson(&value)), Some(value));
        }
    }
}
