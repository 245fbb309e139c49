//! Options and indexes of both sides, compared. Pure.
//!
//! What a mirror makes otherwise on purpose (nothing expires on a target, nothing is evicted) is
//! made equal before it is compared.

use std::collections::HashMap;

use bson::{Document, doc};

use super::bson::definition::{Definition, is_same};
use super::catalog::{
    Listed, is_disarmed, ordinary_index, portable_options, target_options, whole_index,
};
use super::state::{BUCKETS, CatalogEntry, Index, Stage, Way};
use super::stream::event::Uuid;

/// Everything that is defined on one side.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Definitions {
    /// Collections and views.
    pub listed: Vec<Listed>,
    /// Indexes by collection, without those on `_id`; those of time-series collections by their
    /// buckets. A collection whose indexes may not be listed is not in it.
    pub indexes: HashMap<String, Vec<Definition>>,
}

/// Something that is not the same on both sides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// In words.
    pub what: String,
    /// What has to be done about it.
    pub mend: Mend,
}

/// How a difference is put right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mend {
    /// This index of a collection is made anew, or removed if the source does not have it.
    Index(Uuid, String),
    /// The collection gets its options again; it is copied anew where that cannot be done to it as
    /// it is.
    Collection(Uuid),
    /// The collection is copied anew, although its options are right.
    Anew(Uuid),
    /// The mirror knows nothing of this collection of the source: it is copied.
    Missing(Uuid, String),
    /// The view is made anew.
    View(String),
    /// Nothing of this name is on the source.
    Drop(String),
}

/// Options that a collection can be given later, and what they are when they are absent.
fn changeable() -> Document {
    doc! {
        "validator": {},
        "validationLevel": "strict",
        "validationAction": "error",
        "changeStreamPreAndPostImages": {"enabled": false},
    }
}

/// What has to become of a collection of the target that has the name of one of the source.
#[derive(PartialEq, Debug)]
pub enum Kept {
    /// Its options are as they should be.
    AsItIs,
    /// These options are changed first.
    Changed(Document),
    /// It is another collection: it is dropped, and created anew.
    Anew,
}

/// What of the target is not as the source has it. `entries` are the collections that are wholly
/// on the target.
pub fn differences(
    source: &Definitions,
    target: &Definitions,
    entries: &[&CatalogEntry],
    takes_part: impl Fn(&str) -> bool,
) -> Vec<Difference> {
    let there: HashMap<&str, &Listed> = by_name(&target.listed);
    let mut different = Vec::new();
    let views = source.listed.iter().filter(|listed| listed.kind == "view");
    for view in views {
        let mend = || Mend::View(view.name.clone());
        match there.get(view.name.as_str()) {
            None if takes_part(&view.name) => {
                let what = format!("the view {:?} is not on the target", view.name);
                different.push(of(what, mend()));
            }
            Some(there) if !is_as_wanted(&view.options, &there.options) => {
                let what = format!("the view {:?} is defined otherwise", view.name);
                different.push(of(what, mend()));
            }
            _ => {}
        }
    }
    let sources = by_name(&source.listed);
    for entry in entries {
        let Some(wanted) = sources.get(entry.public_name()) else {
            continue;
        };
        match there.get(entry.public_name()) {
            None => {
                let what = format!("{:?} is not on the target", wanted.name);
                different.push(of(what, Mend::Collection(entry.uuid)));
                continue;
            }
            Some(there) if !is_as_wanted(&wanted.options, &there.options) => {
                let what = format!("{:?} has other options", wanted.name);
                different.push(of(what, Mend::Collection(entry.uuid)));
            }
            Some(_) => {}
        }
        compare_indexes(entry, source, target, &mut different);
    }
    let is_system = |name: &str| name.starts_with("system.") && !name.starts_with(BUCKETS);
    for listed in source.listed.iter().filter(|it| !is_system(&it.name)) {
        let public = listed.name.strip_prefix(BUCKETS).unwrap_or(&listed.name);
        let Some(uuid) = listed.uuid.filter(|_| takes_part(public)) else {
            continue;
        };
        if entries.iter().all(|entry| entry.uuid != uuid) {
            let what = format!("{public:?} is not mirrored");
            different.push(of(what, Mend::Missing(uuid, listed.name.clone())));
        }
    }
    let is_known = |listed: &Listed| {
        // What is not selected may have been left from another selection.
        listed.name.starts_with("system.")
            || sources.contains_key(listed.name.as_str())
            || !takes_part(&listed.name)
    };
    for extra in target.listed.iter().filter(|listed| !is_known(listed)) {
        let what = format!("{:?} is only on the target", extra.name);
        different.push(of(what, Mend::Drop(extra.name.clone())));
    }
    different
}

fn compare_indexes(
    entry: &CatalogEntry,
    source: &Definitions,
    target: &Definitions,
    different: &mut Vec<Difference>,
) {
    let (Some(wanted), Some(there)) = (
        source.indexes.get(&entry.name),
        target.indexes.get(&entry.name),
    ) else {
        return;
    };
    let name = entry.public_name();
    for index in wanted {
        let index_name = index.get_str("name").unwrap_or_default();
        let known = entry
            .indexes
            .iter()
            .find(|known| known.name() == index_name);
        let form = match known.map(|known: &Index| known.stage) {
            // Told by name and reason as long as it lasts.
            Some(Stage::Missing) => continue,
            Some(Stage::Ordinary) => ordinary_index,
            _ => whole_index,
        };
        let found = there
            .iter()
            .find(|there| there.get_str("name").is_ok_and(|name| name == index_name));
        let collated = entry.is_collated();
        let form = |index: &Definition| Definition::from(form(index, collated));
        let is_equal = found.is_some_and(|found| form(found) == form(index) && is_disarmed(found));
        if !is_equal {
            different.push(Difference {
                what: format!("the index {index_name:?} of {name:?} is missing or different"),
                mend: Mend::Index(entry.uuid, index_name.to_owned()),
            });
        }
    }
    for index in there {
        let index_name = index.get_str("name").unwrap_or_default();
        let is_wanted =
            |wanted: &Definition| wanted.get_str("name").is_ok_and(|name| name == index_name);
        if !wanted.iter().any(is_wanted) {
            different.push(Difference {
                what: format!("the index {index_name:?} of {name:?} is only on the target"),
                mend: Mend::Index(entry.uuid, index_name.to_owned()),
            });
        }
    }
}

fn of(what: String, mend: Mend) -> Difference {
    Difference { what, mend }
}

fn by_name(listed: &[Listed]) -> HashMap<&str, &Listed> {
    listed
        .iter()
        .map(|listed| (listed.name.as_str(), listed))
        .collect()
}

/// Whether a collection or view of the target has the options that it shall have while it is
/// mirrored: nothing expires there, and nothing is evicted.
pub fn is_as_wanted(source: &Document, target: &Document) -> bool {
    comparable(target_options(source)) == comparable(portable_options(target))
}

/// Options as they are compared: one that says what is so anyway is no option. A server adds those
/// to a collection that was ever changed.
fn comparable(mut options: Document) -> Definition {
    for (name, default) in changeable() {
        if options.get(&name) == Some(&default) {
            options.remove(&name);
        }
    }
    options.into()
}

/// Compares what is on the target with what shall be there.
pub fn keep(wanted: &Listed, there: &Listed) -> Kept {
    let way = CatalogEntry::new([0; 16], &wanted.name, wanted.options.clone(), Vec::new()).way();
    let expires = there.options.contains_key("expireAfterSeconds");
    // Only what transactions may write can be compared range by range.
    if wanted.kind != there.kind || way != Way::Transactional || expires {
        return Kept::Anew;
    }
    let mut wanted = comparable(target_options(&wanted.options));
    let mut there = comparable(portable_options(&there.options));
    let mut changes = Document::new();
    for (name, default) in changeable() {
        let (wanted, there) = (wanted.remove(&name), there.remove(&name));
        let is_equal = match (&wanted, &there) {
            (Some(wanted), Some(there)) => is_same(wanted, there),
            (None, None) => true,
            _ => false,
        };
        if !is_equal {
            changes.insert(name, wanted.unwrap_or(default));
        }
    }
    if wanted != there {
        Kept::Anew
    } else if changes.is_empty() {
        Kept::AsItIs
    } else {
        Kept::Changed(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stage: Stage) -> CatalogEntry {
        let spec = doc! {"v": 2, "key": {"k": 1}, "name": "k_1", "unique": true};
        let mut entry = CatalogEntry::new([1; 16], "c", Document::new(), vec![spec]);
        entry.indexes[0].stage = stage;
        entry
    }

    fn side(options: Document, indexes: Vec<Document>) -> Definitions {
        let listed = Listed {
            name: "c".into(),
            uuid: Some([1; 16]),
            kind: "collection".into(),
            options: options.into(),
        };
        Definitions {
            listed: vec![listed],
            indexes: [(
                "c".to_owned(),
                indexes.into_iter().map(Definition::from).collect(),
            )]
            .into(),
        }
    }

    fn words(source: &Definitions, target: &Definitions, stage: Stage) -> Vec<String> {
        let entry = entry(stage);
        let different = differences(source, target, &[&entry], |_| true);
        different.into_iter().map(|one| one.what).collect()
    }

    #[test]
    fn what_is_made_otherwise_on_purpose_is_no_difference() {
        let unique = doc! {"v": 2, "key": {"k": 1}, "name": "k_1", "unique": true};
        let plain = doc! {"v": 2, "key": {"k": 1}, "name": "k_1"};
        let source = side(doc! {"expireAfterSeconds": 5}, vec![unique.clone()]);
        let target = side(doc! {}, vec![plain]);
        assert!(words(&source, &target, Stage::Ordinary).is_empty());
        assert_eq!(words(&source, &target, Stage::Whole).len(), 1);
        let whole = side(doc! {}, vec![unique]);
        assert!(words(&source, &whole, Stage::Whole).is_empty());
    }

    #[test]
    fn options_indexes_and_strangers_are_told() {
        let source = side(doc! {"validator": {"a": 1}}, vec![]);
        let mut target = side(doc! {}, vec![doc! {"name": "extra", "key": {"x": 1}}]);
        target.listed.push(Listed {
            name: "stranger".into(),
            ..target.listed[0].clone()
        });
        assert_eq!(
            words(&source, &target, Stage::Whole),
            [
                "\"c\" has other options",
                "the index \"extra\" of \"c\" is only on the target",
                "\"stranger\" is only on the target"
            ]
        );
    }

    fn listed(options: Document) -> Listed {
        Listed {
            name: "c".into(),
            uuid: Some([1; 16]),
            kind: "collection".into(),
            options: options.into(),
        }
    }

    #[test]
    fn equal_options_are_kept() {
        let same = doc! {"collation": {"locale": "de", "version": "57.1"}};
        let there = doc! {"collation": {"locale": "de", "version": "58.2"}};
        assert_eq!(keep(&listed(same), &listed(there)), Kept::AsItIs);
    }

    #[test]
    fn an_option_that_says_what_is_so_anyway_is_none() {
        let there =
            doc! {"validator": {}, "validationLevel": "strict", "validationAction": "error"};
        assert_eq!(keep(&listed(doc! {}), &listed(there)), Kept::AsItIs);
    }

    #[test]
    fn what_can_be_changed_later_is_changed() {
        let there = doc! {"validator": {"a": 1}, "validationLevel": "off"};
        assert_eq!(
            keep(&listed(doc! {"validator": {"b": 1}}), &listed(there)),
            Kept::Changed(doc! {"validator": {"b": 1}, "validationLevel": "strict"})
        );
    }

    #[test]
    fn another_collation_needs_another_collection() {
        let wanted = doc! {"collation": {"locale": "de"}};
        assert_eq!(keep(&listed(wanted), &listed(doc! {})), Kept::Anew);
    }
}
