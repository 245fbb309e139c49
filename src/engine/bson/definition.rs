//! What a collection, a view or an index is defined as; equal only if servers take it as the same.

use std::ops::{Deref, DerefMut};

use bson::{Bson, Document, doc};

/// The options of a collection or view, or the specification of an index.
///
/// Two of the driver's documents are equal whatever the order of their fields, and never if they
/// hold NaN. To a server the order of an index's keys or of a `$sort` in a view means something,
/// and NaN is NaN. So here each option counts byte for byte; only the order of the options among
/// each other does not.
#[derive(Clone, Debug, Default)]
pub struct Definition(Document);

impl PartialEq for Definition {
    fn eq(&self, other: &Self) -> bool {
        let same = |(name, value): (&String, &Bson)| {
            other.get(name).is_some_and(|there| is_same(value, there))
        };
        self.len() == other.len() && self.iter().all(same)
    }
}

impl From<Document> for Definition {
    fn from(document: Document) -> Self {
        Self(document)
    }
}

impl From<&Definition> for Bson {
    fn from(definition: &Definition) -> Self {
        Self::Document(definition.0.clone())
    }
}

impl Deref for Definition {
    type Target = Document;

    fn deref(&self) -> &Document {
        &self.0
    }
}

impl DerefMut for Definition {
    fn deref_mut(&mut self) -> &mut Document {
        &mut self.0
    }
}

/// Whether two values are the same to the byte. What cannot be encoded is the same as nothing.
pub fn is_same(a: &Bson, b: &Bson) -> bool {
    let bytes = |value: &Bson| doc! {"": value}.to_vec().ok();
    bytes(a).is_some_and(|bytes_of_a| Some(bytes_of_a) == bytes(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_equal(a: Document, b: Document) -> bool {
        Definition::from(a) == Definition::from(b)
    }

    #[test]
    fn the_order_counts_within_an_option_and_not_among_options() {
        let a = doc! {"name": "i", "key": {"a": 1, "b": 1}};
        assert!(is_equal(
            a.clone(),
            doc! {"key": {"a": 1, "b": 1}, "name": "i"}
        ));
        assert!(!is_equal(a, doc! {"name": "i", "key": {"b": 1, "a": 1}}));
        let view = |pipeline: [Document; 1]| doc! {"viewOn": "c", "pipeline": pipeline.to_vec()};
        assert!(!is_equal(
            view([doc! {"$sort": {"a": 1, "b": 1}}]),
            view([doc! {"$sort": {"b": 1, "a": 1}}])
        ));
    }

    #[test]
    fn nan_is_nan_and_types_count() {
        assert!(is_equal(doc! {"v": f64::NAN}, doc! {"v": f64::NAN}));
        assert!(!is_equal(doc! {"v": 1}, doc! {"v": 1.0}));
        assert!(!is_equal(doc! {"v": 1}, doc! {"v": 1, "w": 1}));
        assert!(!is_equal(doc! {"v": 1, "w": 1}, doc! {"v": 1}));
    }
}
