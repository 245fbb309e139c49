//! The canonical order of values, on raw bytes, as far as ranges of `_id` need it.
//!
//! A range is bounded by ids of *plain* types only; any id can be compared with a plain one. So
//! the full order of documents, arrays and decimals among themselves is not needed here.

use std::cmp::Ordering;

use super::scan::{Element, kind};

/// An `_id`, or any value: its type and its bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Value {
    /// BSON type.
    pub kind: u8,
    /// The value's bytes.
    pub bytes: Vec<u8>,
}

impl Value {
    /// Copies an element's value.
    pub fn of(element: Element<'_>) -> Self {
        Self {
            kind: element.kind,
            bytes: element.value.to_vec(),
        }
    }

    /// Whether the value may bound a range: ObjectId, integer, string, date or UUID.
    pub fn is_plain(&self) -> bool {
        match self.kind {
            kind::OBJECT_ID | kind::INT32 | kind::INT64 | kind::DATE => true,
            kind::STRING => str::from_utf8(text(&self.bytes)).is_ok(),
            // Subtype 4 with 16 bytes: a UUID.
            kind::BINARY => self.bytes.len() == 21 && self.bytes[4] == 4,
            _ => false,
        }
    }
}

/// Where a type stands among the types.
fn rank(kind: u8) -> u8 {
    match kind {
        0xFF => 0, // MinKey
        0x06 => 1, // undefined
        0x0A => 2, // null
        kind::DOUBLE | kind::INT32 | kind::INT64 | kind::DECIMAL => 3,
        kind::STRING | kind::SYMBOL => 4,
        kind::DOCUMENT => 5,
        kind::ARRAY => 6,
        kind::BINARY => 7,
        kind::OBJECT_ID => 8,
        kind::BOOLEAN => 9,
        kind::DATE => 10,
        kind::TIMESTAMP => 11,
        0x0B => 12, // regular expression
        0x0C => 13, // DBPointer
        0x0D => 14, // code
        0x0F => 15, // code with scope
        _ => 16,    // MaxKey
    }
}

/// Compares any value with a plain bound.
pub fn compare_with_plain(kind: u8, bytes: &[u8], bound: &Value) -> Ordering {
    let by_type = rank(kind).cmp(&rank(bound.kind));
    if by_type != Ordering::Equal {
        return by_type;
    }
    match bound.kind {
        kind::INT32 | kind::INT64 => compare_number(kind, bytes, integer(bound.kind, &bound.bytes)),
        kind::STRING => text(bytes).cmp(text(&bound.bytes)),
        kind::DATE => signed(bytes).cmp(&signed(&bound.bytes)),
        // Binary data orders by length, subtype, bytes.
        kind::BINARY => {
            (bytes.len(), bytes.get(4..)).cmp(&(bound.bytes.len(), bound.bytes.get(4..)))
        }
        _ => bytes.cmp(&bound.bytes),
    }
}

/// The bytes of a string without length and terminator.
fn text(bytes: &[u8]) -> &[u8] {
    bytes
        .get(4..bytes.len().saturating_sub(1))
        .unwrap_or_default()
}

fn signed(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_le_bytes)
}

fn integer(kind: u8, bytes: &[u8]) -> i64 {
    if kind == kind::INT32 {
        bytes
            .try_into()
            .map_or(0, |bytes| i64::from(i32::from_le_bytes(bytes)))
    } else {
        signed(bytes)
    }
}

/// Compares a number of any type with an integer.
fn compare_number(kind: u8, bytes: &[u8], bound: i64) -> Ordering {
    match kind {
        kind::DOUBLE => bytes.try_into().map_or(Ordering::Less, |bytes| {
            compare_double(f64::from_le_bytes(bytes), bound)
        }),
        kind::DECIMAL => bytes.try_into().map_or(Ordering::Less, |bytes| {
            compare_decimal(u128::from_le_bytes(bytes), bound)
        }),
        _ => integer(kind, bytes).cmp(&bound),
    }
}

/// NaN is below all numbers.
fn compare_double(value: f64, bound: i64) -> Ordering {
    // 2^63 is a double exactly; i64::MAX is not.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if value.is_nan() || value < -LIMIT {
        return Ordering::Less;
    }
    if value >= LIMIT {
        return Ordering::Greater;
    }
    // In range, so the whole part converts exactly; the fraction decides a tie.
    #[expect(clippy::cast_possible_truncation)]
    let whole = value.trunc() as i64;
    whole
        .cmp(&bound)
        .then_with(|| value.fract().partial_cmp(&0.0).unwrap_or(Ordering::Equal))
}

/// Decimal128: sign, 14 bits of exponent (bias 6176), 113 bits of coefficient.
fn compare_decimal(bits: u128, bound: i64) -> Ordering {
    let negative = bits >> 127 == 1;
    match (bits >> 122) & 0b1_1111 {
        0b1_1111 => return Ordering::Less, // NaN
        0b1_1110 if negative => return Ordering::Less,
        0b1_1110 => return Ordering::Greater,
        _ => {}
    }
    // The second form of the combination field, and coefficients above 34 digits, are
    // non-canonical and mean zero.
    let coefficient = bits & ((1 << 113) - 1);
    let zero = (bits >> 125) & 0b11 == 0b11 || coefficient >= 10_u128.pow(34) || coefficient == 0;
    let sign: i64 = match (zero, negative) {
        (true, _) => 0,
        (_, true) => -1,
        (_, false) => 1,
    };
    if sign != bound.signum() || sign == 0 {
        return sign.cmp(&bound.signum());
    }
    let exponent = i32::try_from((bits >> 113) & 0x3FFF).unwrap_or(0) - 6176;
    let magnitude = u128::from(bound.unsigned_abs());
    let scale = |value: u128| {
        10_u128
            .checked_pow(exponent.unsigned_abs())
            .and_then(|factor| value.checked_mul(factor))
    };
    let by_magnitude = if exponent >= 0 {
        // An overflow means a value far above any i64.
        scale(coefficient).map_or(Ordering::Greater, |value| value.cmp(&magnitude))
    } else {
        scale(magnitude).map_or(Ordering::Less, |value| coefficient.cmp(&value))
    };
    if sign < 0 {
        by_magnitude.reverse()
    } else {
        by_magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::bson::scan::find;
    use bson::{Bson, doc};

    fn value(value: impl Into<Bson>) -> Value {
        let bytes = doc! {"v": value.into()}.to_vec().unwrap();
        Value::of(find(&bytes, b"v").unwrap())
    }

    fn compare(a: &Value, bound: &Value) -> Ordering {
        compare_with_plain(a.kind, &a.bytes, bound)
    }

    fn decimal(text: &str) -> Value {
        value(text.parse::<bson::Decimal128>().unwrap())
    }

    #[test]
    fn values_order_as_the_server_orders_them() {
        let uuid = |byte| {
            Bson::Binary(bson::Binary {
                subtype: bson::spec::BinarySubtype::Uuid,
                bytes: vec![byte; 16],
            })
        };
        let ascending = [
            value(Bson::MinKey),
            value(Bson::Null),
            value(f64::NAN),
            value(f64::NEG_INFINITY),
            decimal("-1E+40"),
            value(i64::MIN),
            value(-5_i32),
            decimal("-4.5"),
            value(-1_i64),
            value(-0.5),
            value(0_i32),
            decimal("1E-6000"),
            value(0.25),
            value(1_i64),
            decimal("1.0000001"),
            value(7_i32),
            value(i64::MAX),
            value(1e300),
            value(""),
            value("a"),
            value("ab"),
            value("b"),
            value(doc! {"a": 1}),
            value(uuid(1)),
            value(uuid(2)),
            value(bson::oid::ObjectId::from_bytes([0; 12])),
            value(bson::oid::ObjectId::from_bytes([9; 12])),
            value(false),
            value(bson::DateTime::from_millis(-5)),
            value(bson::DateTime::from_millis(5)),
            value(Bson::MaxKey),
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, bound) in ascending.iter().enumerate().filter(|(_, v)| v.is_plain()) {
                assert_eq!(compare(a, bound), i.cmp(&j), "{a:?} against {bound:?}");
            }
        }
    }

    #[test]
    fn equal_numbers_of_different_types_are_equal() {
        for other in [value(5.0), value(5_i64), decimal("5.00"), decimal("0.5E+1")] {
            assert_eq!(compare(&other, &value(5_i32)), Ordering::Equal, "{other:?}");
        }
        assert_eq!(compare(&decimal("-0"), &value(0_i32)), Ordering::Equal);
    }
}
