//! Whether what is remembered fits together, and the target.
//!
//! Documents that somebody removed by hand cannot be guessed, and going on without them would
//! skip changes in silence.

use std::collections::{HashMap, HashSet};

use super::{CatalogEntry, RangeEntry};
use crate::engine::error::{Error, Result};
use crate::engine::stream::event::Uuid;

/// Sorts the ranges of each collection. They are written together with its document, and go before
/// it or with it.
///
/// # Errors
/// [`Error::CheckpointDamaged`] if some leave a gap: what falls into it would never be copied.
pub fn ranges_by_collection(
    catalog: &[CatalogEntry],
    ranges: Vec<RangeEntry>,
) -> Result<HashMap<Uuid, Vec<RangeEntry>>> {
    let mut sorted: HashMap<Uuid, Vec<RangeEntry>> = HashMap::new();
    for range in ranges {
        sorted.entry(range.uuid).or_default().push(range);
    }
    for ranges in sorted.values_mut() {
        ranges.sort_by_key(|range| range.number);
    }
    for (uuid, ranges) in &sorted {
        let Some(entry) = catalog.iter().find(|entry| entry.uuid == *uuid) else {
            return damaged("ranges are there whose collection is missing in catalog".to_owned());
        };
        if !are_whole(ranges) {
            return damaged(format!(
                "some of the ranges of {:?} are missing",
                entry.name
            ));
        }
    }
    Ok(sorted)
}

fn are_whole(ranges: &[RangeEntry]) -> bool {
    let meet = |pair: &[RangeEntry]| {
        pair[1].number == pair[0].number + 1
            && pair[0].high.is_some()
            && pair[0].high == pair[1].low
    };
    ranges
        .first()
        .is_some_and(|first| first.number == 0 && first.low.is_none())
        && ranges.last().is_some_and(|last| last.high.is_none())
        && ranges.windows(2).all(meet)
}

/// Compares the catalog with what there is. Not to be asked while a command is under way, which
/// changes one after the other.
///
/// # Errors
/// [`Error::CheckpointDamaged`].
pub fn refuse_gaps(
    catalog: &[CatalogEntry],
    ranges: &HashMap<Uuid, Vec<RangeEntry>>,
    on_target: &[String],
) -> Result<()> {
    let known: HashSet<&str> = catalog.iter().map(|entry| entry.name.as_str()).collect();
    if let Some(name) = on_target.iter().find(|name| !known.contains(name.as_str())) {
        return refuse_unknown(name);
    }
    let lost = catalog.iter().find(|entry| {
        !entry.copied && entry.left_out.is_none() && !ranges.contains_key(&entry.uuid)
    });
    match lost {
        Some(entry) => damaged(format!("the ranges of {:?} are missing", entry.name)),
        None => Ok(()),
    }
}

/// A collection of the target that the mirror has not made.
///
/// # Errors
/// Always [`Error::CheckpointDamaged`].
pub fn refuse_unknown(name: &str) -> Result<()> {
    damaged(format!(
        "the target holds a collection {name:?} of which catalog knows nothing; if it is \
         somebody else's, drop it"
    ))
}

fn damaged<T>(what: String) -> Result<T> {
    Err(Error::CheckpointDamaged(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::bson::order::Value;
    use crate::engine::state::RangeState;

    fn entry(uuid: u8, name: &str, copied: bool) -> CatalogEntry {
        CatalogEntry {
            copied,
            ..CatalogEntry::new([uuid; 16], name, bson::Document::new(), Vec::new())
        }
    }

    fn range(number: u32, low: Option<u8>, high: Option<u8>) -> RangeEntry {
        let value = |byte| Value {
            kind: 0x10,
            bytes: vec![byte, 0, 0, 0],
        };
        RangeEntry {
            uuid: [1; 16],
            number,
            low: low.map(value),
            high: high.map(value),
            state: RangeState::Pending,
            compare: false,
            documents: 0,
            bytes: 0,
        }
    }

    #[test]
    fn ranges_are_put_in_order() {
        let catalog = [entry(1, "orders", false)];
        let (a, b) = (range(0, None, Some(5)), range(1, Some(5), None));
        let sorted = ranges_by_collection(&catalog, vec![b.clone(), a.clone()]).unwrap();
        assert_eq!(sorted[&[1; 16]], [a, b]);
        assert!(ranges_by_collection(&catalog, vec![range(0, None, None)]).is_ok());
        assert!(ranges_by_collection(&[], vec![range(0, None, None)]).is_err());
    }

    #[test]
    fn a_missing_range_is_damage() {
        let catalog = [entry(1, "orders", false)];
        let all = [
            range(0, None, Some(5)),
            range(1, Some(5), Some(7)),
            range(2, Some(7), None),
        ];
        for missing in 0..all.len() {
            let mut rest = all.to_vec();
            rest.remove(missing);
            assert!(
                ranges_by_collection(&catalog, rest).is_err(),
                "without {missing}"
            );
        }
    }

    #[test]
    fn catalog_and_target_must_agree() {
        let catalog = [entry(1, "orders", false), entry(2, "items", true)];
        let ranges = HashMap::from([([1; 16], vec![range(0, None, None)])]);
        let there = ["items".to_owned(), "orders".to_owned()];
        assert!(refuse_gaps(&catalog, &ranges, &there).is_ok());
        assert!(refuse_gaps(&catalog[..1], &ranges, &there).is_err());
        assert!(refuse_gaps(&catalog, &HashMap::new(), &there).is_err());
    }
}
