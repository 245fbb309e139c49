//! Writes BSON straight into one buffer.
//!
//! `RawDocumentBuf::append` copies every nested document once more; on the write path that is a
//! third of the client's cost (`facts` rust B2).

use bson::RawDocumentBuf;

use super::scan::kind;

/// Where an open document's length belongs.
#[must_use = "an open document must be closed"]
pub struct Open(usize);

/// A document being written.
#[derive(Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An encoder with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.bytes.len()
    }

    /// Begins the outermost document.
    pub fn begin(&mut self) -> Open {
        self.bytes.extend_from_slice(&[0; 4]);
        Open(self.bytes.len() - 4)
    }

    /// Begins an embedded document.
    pub fn begin_document(&mut self, name: &str) -> Open {
        self.head(kind::DOCUMENT, name.as_bytes());
        self.begin()
    }

    /// Begins an array; its elements are named by [`Self::index`].
    pub fn begin_array(&mut self, name: &str) -> Open {
        self.head(kind::ARRAY, name.as_bytes());
        self.begin()
    }

    /// Begins a document that is an array's element.
    pub fn begin_element(&mut self, index: usize) -> Open {
        self.bytes.push(kind::DOCUMENT);
        self.index(index);
        self.begin()
    }

    /// Ends what was begun last.
    pub fn end(&mut self, open: Open) {
        self.bytes.push(0);
        let length = i32::try_from(self.bytes.len() - open.0).unwrap_or(i32::MAX);
        self.bytes[open.0..open.0 + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// An element whose value is already encoded.
    pub fn raw(&mut self, kind: u8, name: &[u8], value: &[u8]) {
        self.head(kind, name);
        self.bytes.extend_from_slice(value);
    }

    /// An array element that is an already encoded document.
    pub fn raw_element(&mut self, index: usize, document: &[u8]) {
        self.raw_value(index, kind::DOCUMENT, document);
    }

    /// A string.
    pub fn string(&mut self, name: &str, value: &str) {
        self.head(kind::STRING, name.as_bytes());
        let length = i32::try_from(value.len() + 1).unwrap_or(i32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    /// A 32-bit integer.
    pub fn int(&mut self, name: &str, value: i32) {
        self.raw(kind::INT32, name.as_bytes(), &value.to_le_bytes());
    }

    /// A boolean.
    pub fn bool(&mut self, name: &str, value: bool) {
        self.raw(kind::BOOLEAN, name.as_bytes(), &[u8::from(value)]);
    }

    /// A timestamp: stored increment first.
    pub fn timestamp(&mut self, name: &str, value: bson::Timestamp) {
        self.head(kind::TIMESTAMP, name.as_bytes());
        self.bytes.extend_from_slice(&value.increment.to_le_bytes());
        self.bytes.extend_from_slice(&value.time.to_le_bytes());
    }

    /// A UUID: binary of subtype 4.
    pub fn uuid(&mut self, name: &str, value: [u8; 16]) {
        self.head(kind::BINARY, name.as_bytes());
        self.bytes.extend_from_slice(&16_i32.to_le_bytes());
        self.bytes.push(4);
        self.bytes.extend_from_slice(&value);
    }

    /// An array element whose value is already encoded.
    pub fn raw_value(&mut self, index: usize, kind: u8, value: &[u8]) {
        self.bytes.push(kind);
        self.index(index);
        self.bytes.extend_from_slice(value);
    }

    /// The finished document.
    pub fn finish(self) -> RawDocumentBuf {
        // Invariant: begin/end pairs wrote a correct outermost length and terminator.
        RawDocumentBuf::from_bytes(self.bytes).expect("the encoder wrote a whole document")
    }

    fn head(&mut self, kind: u8, name: &[u8]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
    }

    /// An array index in decimal, with its NUL.
    fn index(&mut self, index: usize) {
        let mut digits = [0_u8; 20];
        let mut at = digits.len();
        let mut rest = index;
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.bytes.extend_from_slice(&digits[at..]);
        self.bytes.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, doc};

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let mut encoder = Encoder::with_capacity(64);
        let root = encoder.begin();
        encoder.string("update", "orders");
        let updates = encoder.begin_array("updates");
        for index in [0, 1, 10] {
            let element = encoder.begin_element(index);
            encoder.int("n", i32::try_from(index).unwrap());
            encoder.end(element);
        }
        encoder.end(updates);
        encoder.bool("ordered", true);
        let nested = encoder.begin_document("d");
        encoder.raw(kind::INT64, b"long", &5_i64.to_le_bytes());
        encoder.end(nested);
        encoder.end(root);
        let document = Document::try_from(encoder.finish()).unwrap();
        assert_eq!(
            document,
            doc! {"update": "orders", "updates": [{"n": 0}, {"n": 1}, {"n": 10}], "ordered": true, "d": {"long": 5_i64}}
        );
    }
}
