//! Chance, from a seed: ids, names, values and documents, the odd ones among them.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{
    Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, cstr, doc,
};
use bson::{RawDocumentBuf, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Ids are made from so many numbers, so that writes meet each other.
pub const POOL: u32 = 300;

/// What the ids of a collection look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ids {
    /// Integers, with a few others: the copy is cut into many ranges.
    Integers,
    /// Strings in upper and lower case.
    Strings,
    /// As drivers make them.
    Objects,
    /// Every type that MongoDB accepts.
    Mixed,
}

/// A source of chance. Equal seeds give equal results, on every machine.
pub struct Dice(StdRng);

impl Dice {
    /// The source of this seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// 0 to below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0.random_range(0..end)
    }

    /// `from` to below `to`.
    pub fn between(&mut self, from: i32, to: i32) -> i32 {
        self.0.random_range(from..to)
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u32) -> bool {
        self.0.random_ratio(1, times)
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.0.random_range(0..items.len())]
    }

    /// An id that other writes draw as well.
    pub fn id(&mut self, ids: Ids) -> Bson {
        let number = self.below(POOL);
        id(ids, number)
    }

    /// A field's name: mostly ordinary ones, so that writes meet.
    pub fn name(&mut self) -> String {
        const NAMES: [&str; 10] = ["a", "b", "c", "d", "arr", "doc", "n", "zz", "when", "point"];
        const ODD: [&str; 9] = ["0", "1", "17", "p.q", "$price", "", "ü", "a b", "_id2"];
        if self.one_in(12) {
            (*self.pick(&ODD)).to_owned()
        } else {
            (*self.pick(&NAMES)).to_owned()
        }
    }

    /// A name that an update can address by a path.
    pub fn path(&mut self) -> String {
        const PATHS: [&str; 16] = [
            "a", "b", "c", "n", "zz", "doc.x", "doc.y.z", "doc.new", "doc.0", "arr.0", "arr.2",
            "arr.6", "arr.1.x", "d.e.f", "0", "doc.arr",
        ];
        (*self.pick(&PATHS)).to_owned()
    }

    /// A value; deeper ones are simpler.
    pub fn value(&mut self, depth: u32) -> Bson {
        match self.below(14) {
            0 => Bson::Int64(self.between(-5, 5).into()),
            1 => Bson::Double(f64::from(self.between(-2, 2))),
            2 => Bson::Null,
            3 => Bson::Boolean(self.one_in(2)),
            4 => Bson::String("s".repeat(self.below(40) as usize)),
            5 | 6 if depth < 3 => Bson::Document(self.fields(depth + 1)),
            7 | 8 if depth < 3 => {
                let length = self.below(6);
                Bson::Array((0..length).map(|_| self.value(depth + 1)).collect())
            }
            9 => self.odd_value(),
            _ => Bson::Int32(self.between(0, 9)),
        }
    }

    /// A value as few applications have it.
    fn odd_value(&mut self) -> Bson {
        match self.below(19) {
            0 => Bson::Double(f64::NAN),
            1 => Bson::Double(-0.0),
            2 => Bson::Double(f64::INFINITY),
            3 => Bson::Double(f64::MIN_POSITIVE / 4.0),
            4 => {
                let text = *self.pick(&["1.0", "1.00", "-0", "NaN", "Infinity", "1E+6000"]);
                decimal(text)
            }
            5 => Bson::DateTime(DateTime::from_millis(self.between(-9, 9).into())),
            6 => Bson::DateTime(DateTime::from_millis(i64::MAX / 2)),
            7 => Bson::Timestamp(Timestamp {
                time: 0,
                increment: 0,
            }),
            8 => Bson::Timestamp(Timestamp {
                time: 7,
                increment: 9,
            }),
            9 => binary(BinarySubtype::Generic, &[1, 2, 3]),
            10 => binary(BinarySubtype::UserDefined(200), &[]),
            11 => Bson::RegularExpression(Regex {
                pattern: cstr!("^a").to_owned(),
                options: cstr!("im").to_owned(),
            }),
            12 => Bson::JavaScriptCode("f()".to_owned()),
            13 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope {
                code: "f".to_owned(),
                scope: doc! {"x": 1},
            }),
            14 => Bson::Symbol("symbol".to_owned()),
            15 => Bson::Undefined,
            16 => Bson::MinKey,
            17 => Bson::MaxKey,
            _ => Bson::String("a\0b \u{1F980} ü".to_owned()),
        }
    }

    /// Some fields.
    pub fn fields(&mut self, depth: u32) -> Document {
        let mut fields = Document::new();
        for _ in 0..=self.below(5) {
            let name = self.name();
            fields.insert(name, self.value(depth));
        }
        fields
    }

    /// A whole document with this id; with `text`, one that text and place indexes accept.
    pub fn document(&mut self, id: Bson, most_padding: u32) -> Document {
        let mut document = doc! {"_id": id};
        document.extend(self.fields(0));
        document.insert("arr", vec![1, 2, self.between(0, 9)]);
        document.insert("doc", doc! {"x": self.between(0, 9), "y": {"z": 2}});
        if self.one_in(8) {
            // Long ago: a TTL index would delete it.
            document.insert("when", DateTime::from_millis(self.between(0, 1000).into()));
        }
        if self.one_in(3) {
            document.insert("point", vec![self.between(-90, 90), self.between(-90, 90)]);
        }
        // Large enough that updates are logged as deltas and not as replacements.
        document.insert("pad", "p".repeat(self.below(most_padding) as usize));
        document
    }

    /// A document with bytes that no driver makes: duplicate names, malformed values.
    pub fn twin(&mut self, id: i32) -> RawDocumentBuf {
        let mut elements: Vec<u8> = Vec::new();
        let mut element = |kind: u8, name: &[u8], value: &[u8]| {
            elements.push(kind);
            elements.extend_from_slice(name);
            elements.push(0);
            elements.extend_from_slice(value);
        };
        let number = self.between(0, 99).to_le_bytes();
        element(0x10, b"_id", &id.to_le_bytes());
        element(0x10, b"a", &number);
        if self.one_in(2) {
            element(0x10, b"a", &number);
        }
        // The odd ones: NaN with a payload, invalid UTF-8, DBPointer, a decimal that is not
        // canonical, a binary of subtype 4 with two bytes, an array with wrong keys, an empty name.
        match self.below(8) {
            0 => element(0x01, b"n", &0x7FF4_0000_0000_BEEF_u64.to_le_bytes()),
            1 => element(0x02, b"n", &[3, 0, 0, 0, 0xFF, 0xFE, 0]),
            2 => element(
                0x0C,
                b"n",
                &[2, 0, 0, 0, b'c', 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            ),
            3 => element(0x13, b"n", &[0xFF; 16]),
            4 => element(0x05, b"n", &[2, 0, 0, 0, 4, 7, 7]),
            5 => element(
                0x04,
                b"n",
                &[
                    19, 0, 0, 0, 0x10, b'x', 0, 1, 0, 0, 0, 0x10, b'x', 0, 2, 0, 0, 0, 0,
                ],
            ),
            6 => element(0x10, b"", &number),
            _ => element(0x10, b"\xFF", &number),
        }
        element(0x08, b"last", &[1]);
        let length = u32::try_from(elements.len() + 5).unwrap_or_default();
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(elements);
        bytes.push(0);
        // Invariant: a length, elements, a zero.
        RawDocumentBuf::from_bytes(bytes).expect("a document")
    }
}

/// The id of this number.
pub fn id(ids: Ids, number: u32) -> Bson {
    let plain = Bson::Int32(i32::try_from(number).unwrap_or_default());
    match ids {
        Ids::Integers => match number % 50 {
            48 => Bson::String(format!("id-{number}")),
            49 => Bson::Double(f64::from(number) + 0.5),
            47 => Bson::Int64(number.into()),
            _ => plain,
        },
        Ids::Strings => Bson::String(match number % 3 {
            0 => format!("id-{number:04}"),
            1 => format!("ID-{:04}", number.saturating_sub(1)),
            _ => format!("ä-{number:04}"),
        }),
        Ids::Objects => Bson::ObjectId(object_id(number)),
        Ids::Mixed => mixed(number),
    }
}

fn mixed(number: u32) -> Bson {
    let n = i32::try_from(number / 17).unwrap_or_default();
    match number % 17 {
        0 => Bson::Null,
        1 => Bson::Double(f64::NAN),
        2 => Bson::MinKey,
        3 => Bson::MaxKey,
        4 => Bson::Boolean(n % 2 == 0),
        5 => Bson::Document(doc! {"n": n}),
        6 => Bson::Document(doc! {"n": f64::from(n)}),
        7 => decimal(&format!("{n}.50")),
        8 => Bson::DateTime(DateTime::from_millis(n.into())),
        9 => Bson::Timestamp(Timestamp {
            time: 0,
            increment: number / 17,
        }),
        10 => binary(
            BinarySubtype::Uuid,
            &[u8::try_from(n).unwrap_or_default(); 16],
        ),
        11 => binary(BinarySubtype::Generic, &n.to_le_bytes()),
        12 => Bson::ObjectId(object_id(number)),
        13 => Bson::String(format!("a\0{n} ü")),
        14 => Bson::Double(f64::from(n) + 0.5),
        15 => Bson::Int64(n.into()),
        _ => Bson::Int32(n),
    }
}

fn object_id(number: u32) -> ObjectId {
    let mut bytes = [0x65; 12];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

fn decimal(text: &str) -> Bson {
    // Invariant: only literals of this file come here.
    Bson::Decimal128(text.parse::<Decimal128>().expect("a decimal"))
}

fn binary(subtype: BinarySubtype, bytes: &[u8]) -> Bson {
    Bson::Binary(Binary {
        subtype,
        bytes: bytes.to_vec(),
    })
}
