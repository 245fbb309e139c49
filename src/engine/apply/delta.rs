//! An update's delta in its cheapest exact form.
//!
//! The oplog's diff distinguishes what `updateDescription` loses (`facts` mongodb 2): `u` changes
//! a field in place, `i` appends one, `d` removes one, `s<name>` descends, `a` marks arrays. Where
//! the target holds the pre-state, `u` and `d` through objects are what `$set` and `$unset` of
//! dotted paths do, byte for byte; that is the plain form, and the servers carry twice as many of
//! it. Everything else is left to the server's own interpreter of such diffs.

use crate::engine::bson::encode::Encoder;
use crate::engine::bson::scan::{Element, Elements, find, has_name_twice, kind};

/// Paths in one plain form; more than that is rare, and merging is quadratic.
const MOST_PATHS: usize = 48;

/// Stages of one pipeline; the server refuses more than a thousand.
const MOST_STAGES: usize = 500;

/// Bytes of one pipeline; the server refuses more than 16 MiB.
const MOST_STAGE_BYTES: usize = 4 << 20;

/// Nesting that the plain form follows.
const MOST_DEPTH: usize = 12;

/// Changes of one document, in order; each step is one update statement.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Deltas {
    steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Debug)]
enum Step {
    Plain(Plain),
    /// Whole `{$v, diff}` documents: the stages of one pipeline.
    Raw(Vec<Vec<u8>>),
}

/// Paths that are set to a value or removed.
#[derive(Clone, PartialEq, Debug, Default)]
struct Plain {
    paths: Vec<(String, Option<Set>)>,
}

#[derive(Clone, PartialEq, Debug)]
struct Set {
    kind: u8,
    value: Vec<u8>,
}

impl Deltas {
    /// Adds one update, merging it with what is there. Returns the bytes it took more.
    pub fn push(&mut self, raw_update: &[u8]) -> usize {
        if let Some(more) = self.push_plain(raw_update) {
            return more;
        }
        self.push_raw(raw_update)
    }

    /// As [`Self::push`], but left to the server's interpreter. That one may be given a document
    /// which is later than the change: what does not fit there was changed once more, and it does
    /// all the rest (seen on 6.0.5 and 6.0.27; servers recover by it).
    pub fn push_raw(&mut self, raw_update: &[u8]) -> usize {
        match self.steps.last_mut() {
            Some(Step::Raw(stages)) if has_room(stages, raw_update) => {
                stages.push(raw_update.to_vec());
            }
            _ => self.steps.push(Step::Raw(vec![raw_update.to_vec()])),
        }
        raw_update.len()
    }

    /// As [`Self::push`], but nothing if the update has no plain form.
    pub fn push_plain(&mut self, raw_update: &[u8]) -> Option<usize> {
        let plain = Plain::parse(raw_update)?;
        let more = plain.bytes();
        match self.steps.last_mut() {
            Some(Step::Plain(last)) => {
                if let Some(rest) = last.merge(plain) {
                    self.steps.push(Step::Plain(rest));
                }
            }
            _ => self.steps.push(Step::Plain(plain)),
        }
        Some(more)
    }

    /// No updates at all.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether a step is a pipeline.
    pub fn has_pipeline(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Raw(_)))
    }

    /// Whether what they write holds one name twice.
    pub fn has_name_twice(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Raw(stages) => stages.iter().any(|stage| has_name_twice(stage)),
            Step::Plain(plain) => plain.paths.iter().any(|(_, set)| {
                let set = set.as_ref();
                let set = set.filter(|set| matches!(set.kind, kind::DOCUMENT | kind::ARRAY));
                set.is_some_and(|set| has_name_twice(&set.value))
            }),
        })
    }

    /// How many statements [`Self::encode`] writes.
    pub fn statements(&self) -> usize {
        self.steps.len()
    }

    /// Roughly what [`Self::encode`] writes for this step, in bytes.
    pub fn bytes_of(&self, step: usize) -> usize {
        match &self.steps[step] {
            Step::Plain(plain) => plain.bytes(),
            Step::Raw(stages) => stages.iter().map(|stage| stage.len() + 64).sum(),
        }
    }

    /// Writes statement number `step` of the `update` command's array as element `index`.
    pub fn encode(&self, step: usize, encoder: &mut Encoder, index: usize, id: (u8, &[u8])) {
        let statement = encoder.begin_element(index);
        query(encoder, id);
        match &self.steps[step] {
            Step::Plain(plain) => plain.encode(encoder),
            Step::Raw(stages) => {
                let pipeline = encoder.begin_array("u");
                for (index, stage) in stages.iter().enumerate() {
                    let element = encoder.begin_element(index);
                    let operator = encoder.begin_document("$_internalApplyOplogUpdate");
                    encoder.raw(kind::DOCUMENT, b"oplogUpdate", stage);
                    encoder.end(operator);
                    encoder.end(element);
                }
                encoder.end(pipeline);
            }
        }
        encoder.end(statement);
    }
}

/// The document that a statement is about.
pub(super) fn query(encoder: &mut Encoder, (kind, bytes): (u8, &[u8])) {
    let query = encoder.begin_document("q");
    encoder.raw(kind, b"_id", bytes);
    encoder.end(query);
}

impl Plain {
    /// The diff as paths, or `None` if the plain form would not be exact.
    fn parse(raw_update: &[u8]) -> Option<Self> {
        if find(raw_update, b"$v")?.value != 2_i32.to_le_bytes() {
            return None;
        }
        let diff = find(raw_update, b"diff")?.as_document()?;
        let mut plain = Self::default();
        plain.descend(diff, &mut String::new(), 0)?;
        (!plain.paths.is_empty()).then_some(plain)
    }

    fn descend(&mut self, diff: &[u8], prefix: &mut String, depth: usize) -> Option<()> {
        if depth > MOST_DEPTH {
            return None;
        }
        let base = prefix.len();
        for section in Elements::new(diff) {
            let section = section.ok()?;
            match section.name {
                b"u" | b"d" => {
                    for field in Elements::new(section.as_document()?) {
                        let field = field.ok()?;
                        prefix.push_str(harmless(field.name)?);
                        let set = match section.name {
                            b"u" => Some(Set::of(field)?),
                            _ => None,
                        };
                        if self.paths.len() == MOST_PATHS {
                            return None;
                        }
                        self.paths.push((prefix.clone(), set));
                        prefix.truncate(base);
                    }
                }
                [b's', name @ ..] => {
                    prefix.push_str(harmless(name)?);
                    prefix.push('.');
                    self.descend(section.as_document()?, prefix, depth + 1)?;
                    prefix.truncate(base);
                }
                // `i` moves a field to the end, `a` marks an array.
                _ => return None,
            }
        }
        Some(())
    }

    /// Lays `later` over `self`. Gives back what cannot be merged, to become a step of its own.
    fn merge(&mut self, later: Self) -> Option<Self> {
        let fits = |(path, _): &(String, Option<Set>)| {
            !self.paths.iter().any(|(there, _)| is_below(path, there))
        };
        if !later.paths.iter().all(fits) || self.paths.len() + later.paths.len() > MOST_PATHS * 2 {
            return Some(later);
        }
        for (path, set) in later.paths {
            // What is below a path that is now set or removed as a whole is superseded.
            self.paths.retain(|(there, _)| !is_below(there, &path));
            match self.paths.iter_mut().find(|(there, _)| *there == path) {
                Some(entry) => entry.1 = set,
                None => self.paths.push((path, set)),
            }
        }
        None
    }

    fn bytes(&self) -> usize {
        self.paths
            .iter()
            .map(|(path, set)| path.len() + 32 + set.as_ref().map_or(0, |set| set.value.len()))
            .sum()
    }

    fn encode(&self, encoder: &mut Encoder) {
        let update = encoder.begin_document("u");
        let mut open = None;
        for (path, set) in &self.paths {
            if let Some(set) = set {
                open.get_or_insert_with(|| encoder.begin_document("$set"));
                encoder.raw(set.kind, path.as_bytes(), &set.value);
            }
        }
        if let Some(open) = open {
            encoder.end(open);
        }
        let mut open = None;
        for (path, set) in &self.paths {
            if set.is_none() {
                open.get_or_insert_with(|| encoder.begin_document("$unset"));
                encoder.bool(path, true);
            }
        }
        if let Some(open) = open {
            encoder.end(open);
        }
        encoder.end(update);
    }
}

fn has_room(stages: &[Vec<u8>], more: &[u8]) -> bool {
    let bytes: usize = stages.iter().map(Vec::len).sum();
    stages.len() < MOST_STAGES && bytes + more.len() <= MOST_STAGE_BYTES
}

impl Set {
    /// `None` if the update language would look into the value.
    fn of(field: Element<'_>) -> Option<Self> {
        if matches!(field.kind, kind::DOCUMENT | kind::ARRAY) && !is_free_of_dollars(field.value, 0)
        {
            return None;
        }
        Some(Self {
            kind: field.kind,
            value: field.value.to_vec(),
        })
    }
}

/// A name that means the same in a dotted path: neither empty, nor with a dot, nor a number
/// (an array index), nor an operator.
pub(super) fn harmless(name: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(name).ok()?;
    let harmless = !text.is_empty()
        && !text.starts_with('$')
        && !text.contains('.')
        && !text.bytes().all(|byte| byte.is_ascii_digit());
    harmless.then_some(text)
}

fn is_free_of_dollars(document: &[u8], depth: usize) -> bool {
    depth <= MOST_DEPTH
        && Elements::new(document).all(|element| {
            element.is_ok_and(|element| {
                element.name.first() != Some(&b'$')
                    && (!matches!(element.kind, kind::DOCUMENT | kind::ARRAY)
                        || is_free_of_dollars(element.value, depth + 1))
            })
        })
}

/// Whether `path` is strictly below `ancestor`.
fn is_below(path: &str, ancestor: &str) -> bool {
    path.len() > ancestor.len()
        && path.as_bytes()[ancestor.len()] == b'.'
        && path.starts_with(ancestor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, doc};

    fn deltas(diffs: &[Document]) -> Deltas {
        let mut deltas = Deltas::default();
        for diff in diffs {
            let raw = doc! {"$v": 2, "diff": diff.clone()}.to_vec().unwrap();
            deltas.push(&raw);
        }
        deltas
    }

    /// The `u` of every statement.
    fn statements(deltas: &Deltas) -> Vec<bson::Bson> {
        (0..deltas.statements())
            .map(|step| {
                let mut encoder = Encoder::default();
                let root = encoder.begin();
                deltas.encode(step, &mut encoder, 0, (kind::INT32, &[1, 0, 0, 0]));
                encoder.end(root);
                let document = Document::try_from(encoder.finish()).unwrap();
                let statement = document.get_document("0").unwrap();
                assert_eq!(statement.get_document("q").unwrap(), &doc! {"_id": 1});
                statement.get("u").unwrap().clone()
            })
            .collect()
    }

    #[test]
    fn changes_and_removals_through_objects_become_set_and_unset() {
        let plain = deltas(&[
            doc! {"d": {"old": false}, "u": {"a": 1}, "so": {"u": {"b": 2}, "sp": {"d": {"c": false}}}},
        ]);
        assert_eq!(
            statements(&plain),
            [doc! {"$set": {"a": 1, "o.b": 2}, "$unset": {"old": true, "o.p.c": true}}.into()]
        );
    }

    #[test]
    fn what_the_plain_form_cannot_say_exactly_stays_raw() {
        for diff in [
            doc! {"i": {"new": 1}},
            doc! {"sa": {"a": true, "u1": 5}},
            doc! {"u": {"a.b": 1}},
            doc! {"u": {"$price": 1}},
            doc! {"u": {"": 1}},
            doc! {"u": {"0": 1}},
            doc! {"s0": {"u": {"x": 1}}},
            doc! {"u": {"v": {"$ref": "x"}}},
            doc! {"u": {"v": [{"$x": 1}]}},
        ] {
            let raw = deltas(std::slice::from_ref(&diff));
            assert_eq!(
                statements(&raw),
                [
                    bson::bson!([{"$_internalApplyOplogUpdate": {"oplogUpdate": {"$v": 2, "diff": diff}}}])
                ]
            );
        }
    }

    #[test]
    fn the_last_change_of_a_path_wins_and_covers_what_is_below() {
        let merged = deltas(&[
            doc! {"u": {"a": 1, "b": 1}},
            doc! {"so": {"u": {"x": 1}}},
            doc! {"u": {"a": 2}},
            doc! {"d": {"o": false}},
        ]);
        assert_eq!(
            statements(&merged),
            [doc! {"$set": {"a": 2, "b": 1}, "$unset": {"o": true}}.into()]
        );
    }

    #[test]
    fn a_change_below_an_earlier_one_is_a_statement_of_its_own() {
        let two = deltas(&[doc! {"u": {"o": {"x": 1}}}, doc! {"so": {"u": {"x": 2}}}]);
        assert_eq!(
            statements(&two),
            [
                doc! {"$set": {"o": {"x": 1}}}.into(),
                doc! {"$set": {"o.x": 2}}.into()
            ]
        );
    }

    #[test]
    fn raw_deltas_in_a_row_share_one_pipeline() {
        let raw = deltas(&[
            doc! {"i": {"a": 1}},
            doc! {"i": {"b": 1}},
            doc! {"u": {"a": 2}},
        ]);
        assert_eq!(raw.statements(), 2);
        let bson::Bson::Array(stages) = &statements(&raw)[0] else {
            panic!("not a pipeline");
        };
        assert_eq!(stages.len(), 2);
    }
}
