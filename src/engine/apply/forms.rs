//! The forms in which a document gets to the target byte for byte.

use crate::engine::bson::order::Value;
use crate::engine::bson::scan::{Elements, has_name_twice, is_empty_timestamp, kind, shape};
use crate::engine::connection::probe::TargetAbilities;

use super::delta::harmless;

/// How a document gets to the target byte for byte (`facts` mongodb 3.2 to 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// `insert`, or an update with the document itself.
    Classic,
    /// `[{$replaceWith: {$literal: …}}]`.
    Literal,
    /// The document itself, and then its empty timestamps.
    Restored,
    /// Delete, then insert.
    Anew,
}

pub(super) fn form_of_replace(document: &[u8], in_order: bool, abilities: TargetAbilities) -> Form {
    let shape = shape(document);
    let pipeline = in_order && abilities.survives_duplicate_names() && !shape.duplicate_name;
    match (shape.dollar_name, shape.empty_timestamp) {
        // Whether a pipeline fits depends on what is there, which nobody knows. Where the order
        // counts, a refusal is met by copying anew.
        (true, _) if pipeline => Form::Literal,
        (true, _) => Form::Anew,
        (false, true) if !abilities.keeps_empty_timestamps => Form::Restored,
        (false, _) => Form::Classic,
    }
}

pub(super) fn form_of_insert(document: &[u8], abilities: TargetAbilities) -> Form {
    if abilities.keeps_empty_timestamps {
        return Form::Classic;
    }
    if !shape(document).empty_timestamp {
        Form::Classic
    } else if is_restorable(document) || has_name_twice(document) {
        Form::Restored
    } else {
        Form::Literal
    }
}

/// Whether `$set` reaches every empty timestamp at the top. A literal may be noted in the oplog as
/// a replacement, and a server of that age sets its empty timestamps to the current time when it
/// reads its oplog after a crash.
fn is_restorable(document: &[u8]) -> bool {
    Elements::new(document)
        .map_while(Result::ok)
        .filter(is_empty_timestamp)
        .all(|element| harmless(element.name).is_some())
}

/// Whether the driver can represent an id that a reply repeats. An upsert's reply does; of what
/// servers store not everything can be read by the driver (`facts` mongodb 3.1).
pub(super) fn is_readable(id: &Value) -> bool {
    match id.kind {
        kind::STRING => std::str::from_utf8(id.bytes.get(4..).unwrap_or_default()).is_ok(),
        kind::BINARY => id.bytes.get(4) != Some(&2),
        kind::DOUBLE | kind::BOOLEAN | kind::TIMESTAMP | kind::DECIMAL => true,
        _ => id.is_plain(),
    }
}
