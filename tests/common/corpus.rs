//! Documents that a server stores and that few programs expect, built byte by byte.

use super::raw::{Fields, binary, insert, run, string};

/// One odd document. Its `_id` is its name, unless the `_id` itself is what is odd.
#[derive(Clone, Debug)]
pub struct Odd {
    /// What is odd about it.
    pub name: &'static str,
    /// Its bytes.
    pub document: Vec<u8>,
}

impl Odd {
    /// Whether a plain insert or replace would set its zero timestamp to the current time.
    pub fn has_zero_timestamp(&self) -> bool {
        self.top()
            .any(|(kind, name, value)| kind == 0x11 && value == [0; 8] && name != b"_id")
    }

    /// Whether a plain replace of an existing document would be refused.
    pub fn has_dollar_name(&self) -> bool {
        self.top().any(|(_, name, _)| name.starts_with(b"$"))
    }

    /// Whether a pipeline update of it ends a 6.0.5 server.
    pub fn has_duplicate_name(&self) -> bool {
        let mut names: Vec<&[u8]> = self.top().map(|(_, name, _)| name).collect();
        names.sort_unstable();
        names.windows(2).any(|pair| pair[0] == pair[1])
    }

    fn top(&self) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
        mongomirror::engine::bson::scan::Elements::new(&self.document).map(|element| {
            let element = element.expect("well-formed outside of its values");
            (element.kind, element.name, element.value)
        })
    }
}

/// Decimal128 from its upper and lower half.
fn decimal(high: u64, low: u64) -> [u8; 16] {
    ((u128::from(high) << 64) | u128::from(low)).to_le_bytes()
}

/// A double from its bits.
fn double(bits: u64) -> [u8; 8] {
    bits.to_le_bytes()
}

/// A regular expression's value.
fn regex(pattern: &str, options: &str) -> Vec<u8> {
    format!("{pattern}\0{options}\0").into_bytes()
}

/// Code with scope, as its bytes.
fn code_with_scope(code: &str, scope: &Fields) -> Vec<u8> {
    let body = [string(code), scope.finish()].concat();
    let length = i32::try_from(body.len() + 4).expect("short code");
    [&length.to_le_bytes()[..], &body].concat()
}

/// `{a: {a: … {}}}`.
fn nested(depth: usize) -> Fields {
    (1..depth).fold(Fields::new(), |inner, _| {
        Fields::new().document("a", &inner)
    })
}

fn one(kind: u8, value: impl AsRef<[u8]>) -> Fields {
    Fields::new().raw(kind, "v", value)
}

fn int_value(n: i32) -> [u8; 4] {
    n.to_le_bytes()
}

/// The documents of the corpus that this server stores as they are. Some versions look into
/// what others take (6.0.27 into binary of subtype 7).
pub async fn stored_by(client: &mongodb::Client) -> Vec<Odd> {
    let scratch = client.database(&format!("corpus_{}", rand::random::<u32>()));
    let mut stored = Vec::new();
    for odd in corpus() {
        if run(&scratch, insert("c", [&odd.document])).await.is_ok() {
            stored.push(odd);
        } else {
            eprintln!("the server does not store: {}", odd.name);
        }
    }
    scratch.drop().await.expect("the scratch database is gone");
    assert!(stored.len() >= 80, "{} documents are left", stored.len());
    stored
}

/// The corpus.
pub fn corpus() -> Vec<Odd> {
    let mut corpus: Vec<Odd> = [values(), names(), shapes()]
        .concat()
        .into_iter()
        .map(|(name, fields)| Odd {
            name,
            document: Fields::new().string("_id", name).and(&fields).finish(),
        })
        .collect();
    corpus.extend(ids());
    corpus
}

/// Odd values.
fn values() -> Vec<(&'static str, Fields)> {
    let oid = [7_u8; 12];
    vec![
        ("NaN with a payload", one(1, double(0x7FF8_0000_DEAD_BEEF))),
        ("signalling NaN", one(1, double(0x7FF0_0000_0000_0001))),
        ("negative NaN", one(1, double(0xFFF8_0000_0000_0000))),
        ("negative zero", one(1, double(0x8000_0000_0000_0000))),
        ("denormal", one(1, double(1))),
        ("infinity", one(1, double(0x7FF0_0000_0000_0000))),
        ("negative infinity", one(1, double(0xFFF0_0000_0000_0000))),
        (
            "decimal NaN with a payload",
            one(0x13, decimal(0x7C00_0000_0000_0000, 77)),
        ),
        (
            "decimal signalling NaN",
            one(0x13, decimal(0x7E00_0000_0000_0000, 0)),
        ),
        (
            "decimal infinity with a payload",
            one(0x13, decimal(0x7800_0000_0000_0000, 9)),
        ),
        (
            "decimal 1.00",
            one(0x13, decimal(0x303C_0000_0000_0000, 100)),
        ),
        (
            "decimal negative zero",
            one(0x13, decimal(0xB040_0000_0000_0000, 0)),
        ),
        (
            "decimal zero with an exponent",
            one(0x13, decimal(0x5FFE_0000_0000_0000, 0)),
        ),
        (
            "decimal with too large a coefficient",
            one(0x13, decimal(0x3041_FFFF_FFFF_FFFF, u64::MAX)),
        ),
        (
            "decimal of the second form",
            one(0x13, decimal(0x6C10_0000_0000_0000, 5)),
        ),
        ("undefined", one(0x06, [])),
        (
            "DBPointer",
            one(0x0C, [string("db.c"), oid.to_vec()].concat()),
        ),
        ("symbol", one(0x0E, string("s"))),
        ("code", one(0x0D, string("f()"))),
        (
            "code with scope",
            one(0x0F, code_with_scope("f", &Fields::new().int("x", 1))),
        ),
        (
            "code with an odd scope",
            one(
                0x0F,
                code_with_scope("f", &Fields::new().int("$x", 1).int("$x", 2).int("", 3)),
            ),
        ),
        ("MinKey", one(0xFF, [])),
        ("MaxKey", one(0x7F, [])),
        ("date 2^62", one(0x09, (1_i64 << 62).to_le_bytes())),
        ("date -2^62", one(0x09, (-(1_i64 << 62)).to_le_bytes())),
        ("the first date", one(0x09, i64::MIN.to_le_bytes())),
        ("the largest timestamp", one(0x11, [0xFF; 8])),
        (
            "a timestamp of increments only",
            one(0x11, 5_u64.to_le_bytes()),
        ),
        ("binary, empty", one(0x05, binary(0, &[]))),
        ("binary 2", one(0x05, binary(2, &[3, 0, 0, 0, 1, 2, 3]))),
        (
            "binary 2, malformed",
            one(0x05, binary(2, &[99, 0, 0, 0, 1])),
        ),
        ("binary 2, empty", one(0x05, binary(2, &[]))),
        (
            "binary 3 of five bytes",
            one(0x05, binary(3, &[1, 2, 3, 4, 5])),
        ),
        (
            "binary 4 of five bytes",
            one(0x05, binary(4, &[1, 2, 3, 4, 5])),
        ),
        ("binary 5 of one byte", one(0x05, binary(5, &[1]))),
        ("binary 6", one(0x05, binary(6, &[0, 1, 2]))),
        ("binary 7", one(0x05, binary(7, &[0xFF; 9]))),
        ("binary 9", one(0x05, binary(9, &[1]))),
        ("binary 255", one(0x05, binary(0xFF, &[1, 2]))),
        (
            "regex with unsorted options",
            one(0x0B, regex("^a", "xsmi")),
        ),
        ("regex with unknown options", one(0x0B, regex("a", "zqq"))),
        ("regex that does not compile", one(0x0B, regex("(", ""))),
        ("invalid UTF-8", one(0x02, string([0xFF, 0xFE, b'a']))),
        ("half a surrogate", one(0x02, string([0xED, 0xA0, 0x80]))),
        ("NUL in a string", one(0x02, string("a\0b\0"))),
        ("NUL in code", one(0x0D, string("a\0b"))),
        (
            "the largest integers",
            Fields::new()
                .int("i", i32::MAX)
                .raw(0x12, "l", i64::MAX.to_le_bytes()),
        ),
        (
            "the smallest integers",
            Fields::new()
                .int("i", i32::MIN)
                .raw(0x12, "l", i64::MIN.to_le_bytes()),
        ),
        ("an ObjectId of zeros", one(0x07, [0; 12])),
    ]
}

/// Odd names.
fn names() -> Vec<(&'static str, Fields)> {
    let nothing = Fields::new();
    vec![
        ("a name twice", Fields::new().int("a", 1).int("a", 2)),
        (
            "a name twice, apart",
            Fields::new()
                .int("a", 1)
                .int("b", 2)
                .string("a", "3")
                .int("c", 4),
        ),
        ("a name twice, both objects", {
            let (x, y) = (Fields::new().int("x", 1), Fields::new().int("y", 1));
            Fields::new().document("a", &x).document("a", &y)
        }),
        (
            "a nested name twice",
            Fields::new().document("n", &Fields::new().int("a", 1).int("a", 1)),
        ),
        ("an empty name", Fields::new().int("", 1).int("a", 2)),
        ("an empty name twice", Fields::new().int("", 1).int("", 2)),
        (
            "a nested empty name",
            Fields::new().document("n", &Fields::new().int("", 1)),
        ),
        (
            "a dotted name",
            Fields::new()
                .int("p.q", 1)
                .int("p", 2)
                .int("p.", 3)
                .int(".q", 4)
                .int(".", 5),
        ),
        (
            "a nested dotted name",
            Fields::new().document("n", &Fields::new().int("p.q", 1)),
        ),
        ("a $ name", Fields::new().int("$price", 1).int("a", 2)),
        (
            "an operator's name",
            Fields::new()
                .int("a", 2)
                .document("$set", &Fields::new().int("a", 1)),
        ),
        (
            "a nested $ name",
            Fields::new().document("n", &Fields::new().int("$set", 1).int("$", 2)),
        ),
        ("a $ name twice", Fields::new().int("$a", 1).int("$a", 2)),
        (
            "a $ name beside a name twice",
            Fields::new().int("b", 1).int("$a", 1).int("b", 2),
        ),
        (
            "a reference",
            Fields::new().document(
                "r",
                &Fields::new()
                    .string("$ref", "c")
                    .int("$id", 1)
                    .string("$db", "d"),
            ),
        ),
        (
            "a reference in another order",
            Fields::new().document("r", &Fields::new().int("$id", 1).string("$ref", "c")),
        ),
        (
            "half a reference",
            Fields::new().document("r", &Fields::new().int("$id", 1).int("x", 1)),
        ),
        (
            "a name in invalid UTF-8",
            Fields::new().int([0xFF, b'a'], 1).int([0xC3], 2),
        ),
        (
            "a nested name in invalid UTF-8",
            Fields::new().document("n", &Fields::new().int([0x80], 1)),
        ),
        (
            "names that are numbers",
            Fields::new()
                .int("0", 1)
                .int("1", 2)
                .int("-1", 3)
                .int("00", 4),
        ),
        (
            "nested names that are numbers",
            Fields::new().document("n", &Fields::new().int("1", 1).int("0", 2)),
        ),
        (
            "names for other languages",
            Fields::new()
                .int("__proto__", 1)
                .int("größe", 2)
                .int("a b\t", 3),
        ),
        (
            "an _id further down",
            Fields::new().document("n", &Fields::new().int("a", 1).int("_id", 2)),
        ),
        (
            "a long name",
            Fields::new().document("x".repeat(3000), &nothing),
        ),
        (
            "names of the oplog's diffs",
            Fields::new()
                .int("u", 1)
                .int("i", 2)
                .int("d", 3)
                .int("sa", 4)
                .int("$v", 5),
        ),
    ]
}

/// Odd shapes.
fn shapes() -> Vec<(&'static str, Fields)> {
    let array = |items: &Fields| Fields::new().raw(0x04, "v", items.finish());
    let item = |name: &str, n: i32| Fields::new().raw(0x10, name, int_value(n));
    let zero = [0_u8; 8];
    vec![
        ("nothing but an _id", Fields::new()),
        (
            "an array with wrong keys",
            array(&item("7", 1).and(&item("x", 2))),
        ),
        (
            "an array with one key twice",
            array(&item("0", 1).and(&item("0", 2))),
        ),
        (
            "an array with gaps",
            array(&item("0", 1).and(&item("5", 2))),
        ),
        (
            "an array in reverse",
            array(&item("1", 1).and(&item("0", 2))),
        ),
        (
            "an array with empty keys",
            array(&item("", 1).and(&item("", 2))),
        ),
        (
            "an array in an array",
            array(&Fields::new().raw(
                0x04,
                "0",
                Fields::new().raw(0x04, "0", [5, 0, 0, 0, 0]).finish(),
            )),
        ),
        (
            "an empty array and object",
            Fields::new()
                .raw(0x04, "a", [5, 0, 0, 0, 0])
                .raw(0x03, "o", [5, 0, 0, 0, 0]),
        ),
        (
            "an array with odd values",
            array(
                &Fields::new()
                    .raw(0x06, "0", [])
                    .raw(0xFF, "1", [])
                    .string("2", [0xFF]),
            ),
        ),
        ("177 levels", nested(177)),
        ("a zero timestamp", one(0x11, zero)),
        (
            "two zero timestamps",
            Fields::new()
                .raw(0x11, "a", zero)
                .int("b", 1)
                .raw(0x11, "c", zero),
        ),
        (
            "a nested zero timestamp",
            Fields::new().document("n", &one(0x11, zero)),
        ),
        (
            "a zero timestamp in an array",
            array(&Fields::new().raw(0x11, "0", zero)),
        ),
        (
            "a zero timestamp beside a $ name",
            Fields::new().raw(0x11, "t", zero).int("$a", 1),
        ),
        (
            "a zero timestamp beside a name twice",
            Fields::new().int("a", 1).raw(0x11, "t", zero).int("a", 2),
        ),
        (
            "a zero timestamp with a $ name",
            Fields::new().raw(0x11, "$t", zero),
        ),
    ]
}

/// Documents whose `_id` is what is odd.
fn ids() -> Vec<Odd> {
    let odd = |name, id: Fields| Odd {
        name,
        document: id.int("a", 1).finish(),
    };
    vec![
        odd(
            "a zero timestamp as _id",
            Fields::new().raw(0x11, "_id", [0; 8]),
        ),
        odd(
            "a nested zero timestamp as _id",
            Fields::new().document("_id", &one(0x11, [0; 8])),
        ),
        odd(
            "an empty object as _id",
            Fields::new().document("_id", &Fields::new()),
        ),
        odd(
            "a NaN with a payload as _id",
            Fields::new().raw(1, "_id", double(0x7FF8_0000_0000_0042)),
        ),
        odd(
            "invalid UTF-8 as _id",
            Fields::new().string("_id", [0xFF, 0x00, 0xFE]),
        ),
        odd(
            "an object with a name twice as _id",
            Fields::new().document("_id", &Fields::new().int("a", 1).int("a", 2)),
        ),
        odd(
            "a symbol as _id",
            Fields::new().raw(0x0E, "_id", string("s")),
        ),
        odd(
            "malformed binary as _id",
            Fields::new().raw(0x05, "_id", binary(2, &[9, 9, 9, 9, 9])),
        ),
    ]
}

/// A value: its type and its bytes.
pub type Raw = (u8, Vec<u8>);

/// Ids of every type that a server takes, different from each other.
pub fn every_id() -> Vec<Raw> {
    let object = |fields: Fields| (0x03, fields.finish());
    let number = |n: i32| Fields::new().int("n", n);
    vec![
        (0xFF, vec![]),
        (0x7F, vec![]),
        (0x0A, vec![]),
        (0x01, double(0x7FF8_0000_0000_0007).to_vec()),
        (0x01, f64::INFINITY.to_le_bytes().to_vec()),
        (0x01, f64::NEG_INFINITY.to_le_bytes().to_vec()),
        (0x01, (-0.0_f64).to_le_bytes().to_vec()),
        (0x01, 1e300_f64.to_le_bytes().to_vec()),
        (0x01, 100.5_f64.to_le_bytes().to_vec()),
        (0x12, i64::MAX.to_le_bytes().to_vec()),
        (0x12, i64::MIN.to_le_bytes().to_vec()),
        (0x13, decimal(0x3040_0000_0000_0000, 1_000_001).to_vec()),
        (0x13, decimal(0x303E_0000_0000_0000, 100_0007).to_vec()),
        (0x13, decimal(0x5FFE_0000_0000_0000, 9).to_vec()),
        (0x13, decimal(0xDFFE_0000_0000_0000, 9).to_vec()),
        (0x02, string("")),
        (0x02, string("text")),
        (0x02, string("text\0")),
        (0x02, string([0xFF])),
        (0x0E, string("symbol")),
        object(Fields::new()),
        object(Fields::new().int("a", 1).int("b", 2)),
        object(Fields::new().int("b", 2).int("a", 1)),
        object(Fields::new().document("a", &number(1))),
        object(Fields::new().raw(0x04, "a", number(1).finish())),
        object(Fields::new().string("$ref", "c").int("$id", 1)),
        (0x05, binary(0, b"generic")),
        (0x05, binary(4, &[7; 16])),
        (0x05, binary(3, &[7; 16])),
        (0x05, binary(0, &[])),
        (0x07, vec![0; 12]),
        (0x07, vec![0xFF; 12]),
        (0x08, vec![0]),
        (0x08, vec![1]),
        (0x09, (-1_i64).to_le_bytes().to_vec()),
        (0x09, (1_i64 << 62).to_le_bytes().to_vec()),
        (0x11, vec![0; 8]),
        (0x11, vec![1, 0, 0, 0, 1, 0, 0, 0]),
        (0x0C, [string("db.c"), vec![7; 12]].concat()),
        (0x0D, string("code")),
        (0x0F, code_with_scope("code", &number(1))),
    ]
}

/// Ids that a server takes for one and the same, although their bytes differ.
pub fn equal_numbers() -> Vec<Vec<Raw>> {
    let exactly = |high, low| (0x13, decimal(high, low).to_vec());
    let int = |n: i32| (0x10, n.to_le_bytes().to_vec());
    let long = |n: i64| (0x12, n.to_le_bytes().to_vec());
    let real = |n: f64| (0x01, n.to_le_bytes().to_vec());
    let object = |kind: u8, value: Vec<u8>| {
        let fields = Fields::new().raw(kind, "n", value).string("s", "s");
        (0x03, fields.finish())
    };
    let mut families = vec![
        vec![
            int(0),
            long(0),
            real(0.0),
            real(-0.0),
            exactly(0x3040_0000_0000_0000, 0),
            exactly(0xB040_0000_0000_0000, 0),
            exactly(0x5FFE_0000_0000_0000, 0),
        ],
        vec![
            real(f64::NAN),
            (0x01, double(0x7FF8_0000_0000_0042).to_vec()),
            exactly(0x7C00_0000_0000_0000, 0),
        ],
        vec![
            real(2.5),
            exactly(0x303E_0000_0000_0000, 25),
            exactly(0x303C_0000_0000_0000, 250),
        ],
    ];
    for n in 1..12_i32 {
        families.push(vec![
            int(n),
            long(n.into()),
            real(n.into()),
            exactly(0x3040_0000_0000_0000, n.unsigned_abs().into()),
            exactly(0x303E_0000_0000_0000, u64::from(n.unsigned_abs()) * 10),
        ]);
        families.push(vec![
            object(0x10, n.to_le_bytes().to_vec()),
            object(0x12, i64::from(n).to_le_bytes().to_vec()),
            object(0x01, f64::from(n).to_le_bytes().to_vec()),
        ]);
    }
    families
}

/// Ids that are one and the same where case does not count.
pub fn equal_texts() -> Vec<Vec<Raw>> {
    ["a", "b", "c", "d", "word", "grün", "x y", "zz", "ab", "ba"]
        .iter()
        .map(|text| {
            let forms = [text.to_string(), text.to_uppercase(), {
                let (first, rest) = text.split_at(1);
                first.to_uppercase() + rest
            }];
            forms.iter().map(|form| (0x02, string(form))).collect()
        })
        .collect()
}
