//! Walks the elements of a raw document.
//!
//! Names are bytes, not text: the server stores names that are not UTF-8 (`facts` mongodb 3.1).

use thiserror::Error;

/// BSON element types that decide something.
pub mod kind {
    /// Double.
    pub const DOUBLE: u8 = 0x01;
    /// UTF-8 string.
    pub const STRING: u8 = 0x02;
    /// Embedded document.
    pub const DOCUMENT: u8 = 0x03;
    /// Array.
    pub const ARRAY: u8 = 0x04;
    /// Binary data.
    pub const BINARY: u8 = 0x05;
    /// ObjectId.
    pub const OBJECT_ID: u8 = 0x07;
    /// Boolean.
    pub const BOOLEAN: u8 = 0x08;
    /// UTC date.
    pub const DATE: u8 = 0x09;
    /// Symbol (deprecated).
    pub const SYMBOL: u8 = 0x0E;
    /// 32-bit integer.
    pub const INT32: u8 = 0x10;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x11;
    /// 64-bit integer.
    pub const INT64: u8 = 0x12;
    /// Decimal128.
    pub const DECIMAL: u8 = 0x13;
}

/// Bytes that are not a BSON document.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("malformed BSON at byte {0}")]
pub struct Malformed(pub usize);

/// One element: type, name without its NUL, value bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Element<'a> {
    /// BSON type.
    pub kind: u8,
    /// Name, without the NUL.
    pub name: &'a [u8],
    /// The value's bytes.
    pub value: &'a [u8],
}

impl<'a> Element<'a> {
    /// The value as UTF-8 text, if it is a string.
    pub fn as_str(&self) -> Option<&'a str> {
        if self.kind != kind::STRING {
            return None;
        }
        std::str::from_utf8(self.value.get(4..self.value.len().checked_sub(1)?)?).ok()
    }

    /// The value as an embedded document's bytes.
    pub fn as_document(&self) -> Option<&'a [u8]> {
        (self.kind == kind::DOCUMENT).then_some(self.value)
    }
}

/// The elements of one document, in order.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Elements<'a> {
    /// Starts at the first element. The bytes must be a whole document.
    pub fn new(document: &'a [u8]) -> Self {
        Self {
            bytes: document,
            at: 4,
        }
    }

    /// The next element, or `None` at the end of the document.
    fn step(&mut self) -> Result<Option<Element<'a>>, Malformed> {
        let malformed = Malformed(self.at);
        let kind = *self.bytes.get(self.at).ok_or(malformed)?;
        if kind == 0 {
            return Ok(None);
        }
        let rest = self.bytes.get(self.at + 1..).ok_or(malformed)?;
        let name_length = find_nul(rest).ok_or(malformed)?;
        let name = &rest[..name_length];
        let rest = &rest[name_length + 1..];
        let length = value_length(kind, rest).ok_or(malformed)?;
        let value = rest.get(..length).ok_or(malformed)?;
        self.at += 1 + name_length + 1 + length;
        Ok(Some(Element { kind, name, value }))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, Some(Err(_))) {
            // Nothing sensible follows: end after the error.
            self.at = self.bytes.len();
            self.bytes = &[0, 0, 0, 0, 0];
            self.at = 4;
        }
        step
    }
}

fn find_nul(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == 0)
}

fn length_at(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    usize::try_from(i32::from_le_bytes(length)).ok()
}

/// How many bytes a value of this type takes.
fn value_length(kind: u8, rest: &[u8]) -> Option<usize> {
    Some(match kind {
        0x06 | 0x0A | 0xFF | 0x7F => 0,
        kind::BOOLEAN => 1,
        kind::INT32 => 4,
        kind::DOUBLE | kind::DATE | kind::TIMESTAMP | kind::INT64 => 8,
        kind::OBJECT_ID => 12,
        kind::DECIMAL => 16,
        kind::DOCUMENT | kind::ARRAY | 0x0F => length_at(rest)?,
        kind::STRING | 0x0D | kind::SYMBOL => length_at(rest)?.checked_add(4)?,
        kind::BINARY => length_at(rest)?.checked_add(5)?,
        0x0B => {
            let pattern = find_nul(rest)?;
            let options = find_nul(rest.get(pattern + 1..)?)?;
            pattern + options + 2
        }
        0x0C => length_at(rest)?.checked_add(16)?,
        _ => return None,
    })
}

/// The first element of this name, or `None`.
pub fn find<'a>(document: &'a [u8], name: &[u8]) -> Option<Element<'a>> {
    Elements::new(document)
        .map_while(Result::ok)
        .find(|element| element.name == name)
}

/// What about a whole document decides how it can be written byte-exactly (`facts` mongodb 3.2
/// to 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// A top-level `Timestamp(0, 0)` outside `_id`, which insert and replace rewrite.
    pub empty_timestamp: bool,
    /// A top-level name that starts with `$`, which replace refuses.
    pub dollar_name: bool,
    /// A top-level name twice, which must not meet a pipeline update.
    pub duplicate_name: bool,
}

/// Whether an insert would set this top-level element to the current time.
pub fn is_empty_timestamp(element: &Element<'_>) -> bool {
    element.kind == kind::TIMESTAMP && element.value == [0; 8] && element.name != b"_id"
}

/// Looks at the top level of a document. Costs some nanoseconds per field.
pub fn shape(document: &[u8]) -> Shape {
    let mut shape = Shape::default();
    for element in Elements::new(document).map_while(Result::ok) {
        shape.empty_timestamp |= is_empty_timestamp(&element);
        if element.name.first() == Some(&b'$') {
            shape.dollar_name = true;
        }
    }
    // Duplicates only matter where one of the others asks for a pipeline.
    if shape.empty_timestamp || shape.dollar_name {
        let names = Elements::new(document)
            .map_while(Result::ok)
            .map(|element| element.name);
        shape.duplicate_name = repeats(names.collect());
    }
    shape
}

fn repeats(mut names: Vec<&[u8]>) -> bool {
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// Whether a name is there twice, at the top or further down.
pub fn has_name_twice(document: &[u8]) -> bool {
    let mut left = vec![(document, true)];
    while let Some((document, is_named)) = left.pop() {
        let mut names = Vec::new();
        for element in Elements::new(document).map_while(Result::ok) {
            names.push(element.name);
            match element.kind {
                kind::DOCUMENT => left.push((element.value, true)),
                kind::ARRAY => left.push((element.value, false)),
                _ => {}
            }
        }
        if is_named && repeats(names) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Bson, Timestamp, rawdoc};

    #[test]
    fn every_type_is_stepped_over() {
        let document = bson::doc! {
            "double": 1.5, "string": "x", "document": {"a": 1}, "array": [1, "b"],
            "binary": Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![1, 2] }),
            "undefined": Bson::Undefined, "oid": bson::oid::ObjectId::new(), "bool": true,
            "date": bson::DateTime::now(), "null": Bson::Null,
            "code": Bson::JavaScriptCode("f".into()), "symbol": Bson::Symbol("s".into()),
            "scoped": Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "f".into(), scope: bson::doc! {"x": 1} }),
            "int": 1_i32, "timestamp": Timestamp { time: 1, increment: 2 }, "long": 2_i64,
            "decimal": "1.5".parse::<bson::Decimal128>().unwrap(),
            "regex": Bson::RegularExpression(bson::Regex { pattern: "a".to_owned().try_into().unwrap(), options: "i".to_owned().try_into().unwrap() }),
            "min": Bson::MinKey, "max": Bson::MaxKey, "last": "end",
        };
        let bytes = document.to_vec().unwrap();
        let names: Vec<String> = Elements::new(&bytes)
            .map(|element| String::from_utf8(element.unwrap().name.to_vec()).unwrap())
            .collect();
        assert_eq!(names, document.keys().cloned().collect::<Vec<_>>());
        assert_eq!(find(&bytes, b"last").unwrap().as_str(), Some("end"));
    }

    #[test]
    fn a_name_twice_is_found_wherever_it_is() {
        let twice = rawdoc! {"a": 1, "b": 2, "a": 3};
        assert!(has_name_twice(twice.as_bytes()));
        let within = rawdoc! {"a": 1, "b": {"c": [1, {"d": twice}]}};
        assert!(has_name_twice(within.as_bytes()));
        let once = rawdoc! {"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]};
        assert!(!has_name_twice(once.as_bytes()));
    }

    #[test]
    fn truncated_bytes_are_an_error_and_then_the_end() {
        let bytes = rawdoc! {"a": "text", "b": 1}.into_bytes();
        let mut elements = Elements::new(&bytes[..12]);
        assert!(elements.next().unwrap().is_err());
        assert!(elements.next().is_none());
    }

    #[test]
    fn shapes_that_need_care_are_seen() {
        let zero = Timestamp {
            time: 0,
            increment: 0,
        };
        assert_eq!(
            shape(rawdoc! {"_id": 1, "a": 1}.as_bytes()),
            Shape::default()
        );
        assert!(shape(rawdoc! {"_id": 1, "t": zero}.as_bytes()).empty_timestamp);
        assert!(!shape(rawdoc! {"_id": zero, "n": {"t": zero}}.as_bytes()).empty_timestamp);
        assert!(shape(rawdoc! {"_id": 1, "$a": 1}.as_bytes()).dollar_name);
        let twice = shape(rawdoc! {"_id": 1, "$a": 1, "b": 1, "b": 2}.as_bytes());
        assert!(twice.duplicate_name);
    }
}
