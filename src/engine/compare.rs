//! Compares a collection on both sides, stretch by stretch in the order of `_id`, byte for byte.
//!
//! A stretch is one reply of the source and what the target has between the first id of it and
//! the first id of the next reply. These are bounds in the server's own index, so ids of all types
//! and collations are in the right stretch without being compared here.

use std::collections::HashMap;
use std::collections::hash_map::IntoIter;

use bson::{RawDocument, rawdoc};
use mongodb::Database;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::apply::delta::Deltas;
use super::apply::entity::{CollectionIndex, Entity, Outcome};
use super::bson::order::Value;
use super::bson::scan::find;
use super::error::Side;
use super::position::ClusterTime;
use super::snapshot::{MAX_KEY, Order, ReadEnd, SnapshotFind, next, only_max_key};
use super::stream::event::Uuid;

/// Differences are passed on in groups of this many documents, or of this many bytes: what a
/// transaction carries well. However different both sides are, no more is held at a time.
const GROUP: (usize, usize) = (1000, 4_000_000);

/// One collection on both sides, each as of a time of its own.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The source database.
    pub source: Database,
    /// The collection's name on the source now.
    pub source_name: String,
    /// Its identity there.
    pub uuid: Uuid,
    /// The cluster time of the source.
    pub at: ClusterTime,
    /// The target database.
    pub target: Database,
    /// The collection's name on the target.
    pub target_name: String,
    /// The cluster time of the target; what is there now, without one.
    pub target_at: Option<ClusterTime>,
    /// What it is called among the mirror's collections, for the differences.
    pub collection: CollectionIndex,
    /// Documents to read at once.
    pub batch_size: u32,
}

impl Pair {
    /// What one side has from `low` (inclusive) to `high` (exclusive).
    async fn read(
        &self,
        side: Side,
        low: Option<&Value>,
        high: Option<&Value>,
    ) -> Result<RawBatchCursor, ReadEnd> {
        // Nothing is behind MaxKey, and no bound of an index.
        if low.is_some_and(|low| low.kind == MAX_KEY) {
            return self.find(side, &only_max_key(), Order::Any).await;
        }
        let order = Order::ById {
            min: low,
            max: high,
        };
        self.find(side, &rawdoc! {}, order).await
    }

    /// What one side has with the `_id` MaxKey.
    async fn read_max_key(&self, side: Side) -> Result<Option<RawBatch>, ReadEnd> {
        let mut cursor = self.find(side, &only_max_key(), Order::Any).await?;
        next(side, &mut cursor).await
    }

    async fn find(
        &self,
        side: Side,
        filter: &RawDocument,
        order: Order<'_>,
    ) -> Result<RawBatchCursor, ReadEnd> {
        let (db, collection, uuid, at) = match side {
            Side::Source => (
                &self.source,
                &self.source_name,
                Some(self.uuid),
                Some(self.at),
            ),
            Side::Target => (&self.target, &self.target_name, None, self.target_at),
        };
        let find = SnapshotFind {
            collection,
            uuid,
            at,
            filter,
            order,
            batch_size: self.batch_size,
        };
        find.run(side, db).await
    }
}

/// Why a comparison ended early. The stretch in hand has to be compared again.
#[derive(Debug)]
pub enum Broken {
    /// The source could not be read.
    Source(ReadEnd),
    /// The target could not be read.
    Target(ReadEnd),
}

/// What a comparison came to.
#[derive(Debug)]
pub enum Step {
    /// What has to be done on the target for it to become equal; never empty.
    Differences(Vec<Entity>),
    /// A stretch is compared to its end.
    Passed(Stretch),
}

/// What a stretch held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stretch {
    /// Documents of the source.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A comparison under way.
pub struct Comparison {
    pair: Pair,
    source: RawBatchCursor,
    /// The reply that is compared next, and where its stretch begins.
    current: Option<RawBatch>,
    low: Option<Value>,
    high: Option<Value>,
    /// The source is read from the first id of all.
    is_open_below: bool,
    stretch: Option<Underway>,
}

/// A stretch of which the target is being read.
struct Underway {
    held: Stretch,
    expected: Expected,
    /// `None` once the target is read to the end of the stretch.
    target: Option<RawBatchCursor>,
    following: Option<RawBatch>,
    /// What the target has with the `_id` MaxKey, where its read may not show that.
    edge: Option<RawBatch>,
}

impl Comparison {
    /// Begins at `low` (inclusive) and ends at `high` (exclusive).
    ///
    /// # Errors
    /// How the source's read ended.
    pub async fn open(pair: Pair, low: Option<Value>, high: Option<Value>) -> Result<Self, Broken> {
        let mut source = pair
            .read(Side::Source, low.as_ref(), high.as_ref())
            .await
            .map_err(Broken::Source)?;
        // The first reply may be empty; its stretch then is everything up to `high`.
        let current = next(Side::Source, &mut source)
            .await
            .map_err(Broken::Source)?;
        Ok(Self {
            pair,
            source,
            current,
            is_open_below: low.is_none(),
            low,
            high,
            stretch: None,
        })
    }

    /// Where the next stretch begins: everything before it is compared.
    pub fn low(&self) -> Option<&Value> {
        self.low.as_ref()
    }

    /// Goes on; `None` when all is compared.
    ///
    /// # Errors
    /// What broke.
    pub async fn next(&mut self) -> Result<Option<Step>, Broken> {
        let mut underway = match self.stretch.take() {
            Some(underway) => underway,
            None => match self.current.take() {
                Some(current) => self.begin(&current).await?,
                None => return Ok(None),
            },
        };
        let mut group = Group::default();
        while !group.is_full() {
            let Some(target) = &mut underway.target else {
                break;
            };
            match next(Side::Target, target).await.map_err(Broken::Target)? {
                Some(batch) => {
                    for document in documents(&batch) {
                        if is_max_key(document) {
                            underway.edge = None;
                        }
                        if let Some(outcome) = underway.expected.meet(document) {
                            group.add(self.pair.collection, outcome);
                        }
                    }
                }
                None => {
                    underway.target = None;
                    for document in underway.edge.iter().flat_map(documents) {
                        if let Some(outcome) = underway.expected.meet(document) {
                            group.add(self.pair.collection, outcome);
                        }
                    }
                }
            }
        }
        if underway.target.is_none() {
            while !group.is_full() {
                let Some(outcome) = underway.expected.take_missing() else {
                    break;
                };
                group.add(self.pair.collection, outcome);
            }
        }
        if !group.entities.is_empty() {
            self.stretch = Some(underway);
            return Ok(Some(Step::Differences(group.entities)));
        }
        if let Some(following) = underway.following {
            self.low = first_id(&following);
            self.current = Some(following);
        }
        Ok(Some(Step::Passed(underway.held)))
    }

    async fn begin(&mut self, current: &RawBatch) -> Result<Underway, Broken> {
        let following = self.following().await?;
        let bound = following.as_ref().and_then(first_id);
        let bound = bound.as_ref().or(self.high.as_ref());
        let is_end = bound.is_none();
        let low = self.low.as_ref();
        let target = self
            .pair
            .read(Side::Target, low, bound)
            .await
            .map_err(Broken::Target)?;
        let mut edge = None;
        if is_end && low.is_some() {
            let read = self.pair.read_max_key(Side::Target).await;
            edge = read.map_err(Broken::Target)?;
        }
        let mut expected = Expected::of(current);
        if is_end && !self.is_open_below {
            let last = self.pair.read_max_key(Side::Source).await;
            let last = last.map_err(Broken::Source)?;
            for document in last.iter().flat_map(documents) {
                expected.add(document);
            }
        }
        Ok(Underway {
            held: Stretch {
                documents: expected.documents.len() as u64,
                bytes: expected.bytes,
            },
            expected,
            target: Some(target),
            following,
            edge,
        })
    }

    /// The next reply that holds documents.
    async fn following(&mut self) -> Result<Option<RawBatch>, Broken> {
        loop {
            let batch = next(Side::Source, &mut self.source)
                .await
                .map_err(Broken::Source)?;
            match &batch {
                Some(reply) if first_id(reply).is_none() => {}
                _ => return Ok(batch),
            }
        }
    }
}

/// The documents of a reply.
fn documents(batch: &RawBatch) -> impl Iterator<Item = &RawDocument> {
    batch
        .doc_slices()
        .ok()
        .into_iter()
        .flat_map(|documents| documents.into_iter().flatten())
        .filter_map(|document| document.as_document())
}

fn is_max_key(document: &RawDocument) -> bool {
    find(document.as_bytes(), b"_id").is_some_and(|id| id.kind == MAX_KEY)
}

fn first_id(batch: &RawBatch) -> Option<Value> {
    let first = documents(batch).next()?;
    find(first.as_bytes(), b"_id").map(Value::of)
}

/// What the target must hold of a stretch.
#[derive(Default)]
struct Expected {
    documents: HashMap<Value, Vec<u8>>,
    bytes: u64,
    /// What is left when all of the target was met.
    missing: Option<IntoIter<Value, Vec<u8>>>,
}

impl Expected {
    fn of(batch: &RawBatch) -> Self {
        let mut expected = Self::default();
        for document in documents(batch) {
            expected.add(document);
        }
        expected
    }

    fn add(&mut self, document: &RawDocument) {
        let bytes = document.as_bytes();
        if let Some(id) = find(bytes, b"_id") {
            self.bytes += bytes.len() as u64;
            self.documents.insert(Value::of(id), bytes.to_vec());
        }
    }

    /// A document of the target; what has to become of it, if it is not as it should be.
    fn meet(&mut self, there: &RawDocument) -> Option<(Value, Outcome)> {
        let id = Value::of(find(there.as_bytes(), b"_id")?);
        let deltas = Deltas::default();
        match self.documents.remove(&id) {
            Some(document) if document == there.as_bytes() => None,
            Some(document) => Some((id, Outcome::Replace { document, deltas })),
            None => Some((id, Outcome::Delete)),
        }
    }

    /// Something that the target does not have.
    fn take_missing(&mut self) -> Option<(Value, Outcome)> {
        let missing = self
            .missing
            .get_or_insert_with(|| std::mem::take(&mut self.documents).into_iter());
        let (id, document) = missing.next()?;
        let deltas = Deltas::default();
        Some((id, Outcome::Insert { document, deltas }))
    }
}

/// Differences that are passed on together.
#[derive(Default)]
struct Group {
    entities: Vec<Entity>,
    bytes: usize,
}

impl Group {
    fn add(&mut self, collection: CollectionIndex, (id, outcome): (Value, Outcome)) {
        self.bytes += id.bytes.len();
        if let Outcome::Insert { document, .. } | Outcome::Replace { document, .. } = &outcome {
            self.bytes += document.len();
        }
        self.entities.push(Entity {
            collection,
            id,
            outcome,
        });
    }

    fn is_full(&self) -> bool {
        self.entities.len() >= GROUP.0 || self.bytes >= GROUP.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    fn outcomes(source: &[RawDocumentBuf], target: &[RawDocumentBuf]) -> Vec<&'static str> {
        let mut expected = Expected::default();
        for document in source {
            expected.add(document);
        }
        let word = |outcome: &Outcome| match outcome {
            Outcome::Insert { .. } => "insert",
            Outcome::Replace { .. } => "replace",
            Outcome::Delete => "delete",
            _ => "other",
        };
        let mut all: Vec<_> = target
            .iter()
            .filter_map(|document| expected.meet(document))
            .map(|(_, outcome)| word(&outcome))
            .collect();
        while let Some((_, outcome)) = expected.take_missing() {
            all.push(word(&outcome));
        }
        all
    }

    #[test]
    fn equal_documents_are_no_difference() {
        let documents = [rawdoc! {"_id": 1, "a": 1}, rawdoc! {"_id": 2}];
        assert!(outcomes(&documents, &documents).is_empty());
    }

    #[test]
    fn every_way_of_being_different_is_found() {
        let source = [rawdoc! {"_id": 1, "a": 1, "b": 1}, rawdoc! {"_id": 2}];
        let other_order = rawdoc! {"_id": 1, "b": 1, "a": 1};
        assert_eq!(
            outcomes(&source, &[other_order, rawdoc! {"_id": 3}]),
            ["replace", "delete", "insert"]
        );
        // The same number in another type is another document: the old one goes first.
        assert_eq!(
            outcomes(&[rawdoc! {"_id": 1.0}], &[rawdoc! {"_id": 1}]),
            ["delete", "insert"]
        );
    }
}
