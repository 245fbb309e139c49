//! Which range an event falls into, and what that means for it.

use std::collections::HashSet;

use crate::engine::apply::gather::Batch;
use crate::engine::apply::merge::{Form, Home};
use crate::engine::bson::order::{Value, compare_with_plain};
use crate::engine::bson::scan::Element;
use crate::engine::position::{ClusterTime, Span};
use crate::engine::state::{RangeEntry, RangeState};
use crate::engine::stream::event::{Event, Operation, parse};

/// One range: `low <= _id < high`, in the server's order of values.
#[derive(Debug)]
pub struct Range {
    /// Its number within the collection; stable.
    pub number: u32,
    /// Where it begins; `None` is below everything.
    pub low: Option<Value>,
    /// Where it ends; `None` is above everything.
    pub high: Option<Value>,
    /// How far it is.
    pub state: RangeState,
    /// Whether some of it may already be on the target.
    pub dirty: bool,
    /// Whether what the target holds of it is compared, instead of copied over.
    pub compare: bool,
    /// Documents copied so far.
    pub documents: u64,
    /// Bytes copied so far.
    pub bytes: u64,
    /// Events that came while it is being copied, with their times.
    pub waiting: Vec<(ClusterTime, Vec<u8>)>,
    /// Of a capped collection: what its copy may have seen.
    pub window: Option<Window>,
}

/// A capped collection is read while it changes: changes between the beginning and the range's
/// time may be in the copy already.
#[derive(Debug)]
pub struct Window {
    from: ClusterTime,
    /// Ids that were deleted in it.
    deleted: HashSet<Value>,
}

impl Window {
    /// A window that begins behind this time.
    pub fn new(from: ClusterTime) -> Self {
        Self {
            from,
            deleted: HashSet::new(),
        }
    }

    /// Whether the copy may have seen what was done at this time.
    fn holds(&self, time: ClusterTime, at: ClusterTime) -> bool {
        time > self.from && time <= at
    }

    /// Notes a change in the window.
    ///
    /// # Errors
    /// If the copy cannot tell a document from an earlier one with the same id: their places
    /// differ. It has to be made again.
    pub fn note(&mut self, event: &Event<'_>) -> Result<(), &'static str> {
        let id = Value::of(event.id.ok_or("no documentKey._id")?);
        match event.operation {
            Operation::Delete => {
                self.deleted.insert(id);
            }
            Operation::Insert if self.deleted.contains(&id) => {
                return Err("a document of a capped collection came back while it was copied");
            }
            _ => {}
        }
        Ok(())
    }
}

/// What is to be done with an event.
#[derive(PartialEq, Eq, Debug)]
pub enum Route {
    /// The target holds the event's pre-state: apply it.
    Apply,
    /// Some of the range was read before it and some behind it: read the document again.
    ReadAgain,
    /// The copy has it, or will have it.
    Skip,
    /// The range is being copied: keep the event until its time is known.
    Wait(usize),
    /// The copy may have it.
    Window(usize),
}

/// The ranges of one collection, ascending.
#[derive(Debug, Default)]
pub struct Ranges {
    ranges: Vec<Range>,
    /// Nothing is left to copy and every later event is to be applied.
    applied_through: Option<ClusterTime>,
}

impl Ranges {
    /// Ranges as remembered, in any order. A range that was being copied is pending again, and
    /// has to be cleared first.
    pub fn new(mut entries: Vec<RangeEntry>) -> Self {
        entries.sort_by(|a, b| match (&a.low, &b.low) {
            (Some(a), Some(b)) => compare_with_plain(a.kind, &a.bytes, b),
            (a, b) => a.is_some().cmp(&b.is_some()),
        });
        let ranges = entries
            .into_iter()
            .map(|entry| {
                let interrupted = entry.state == RangeState::Copying;
                let done = matches!(entry.state, RangeState::Done(_));
                Range {
                    number: entry.number,
                    low: entry.low,
                    high: entry.high,
                    state: if interrupted {
                        RangeState::Pending
                    } else {
                        entry.state
                    },
                    dirty: interrupted,
                    compare: entry.compare,
                    documents: if done { entry.documents } else { 0 },
                    bytes: if done { entry.bytes } else { 0 },
                    waiting: Vec::new(),
                    window: None,
                }
            })
            .collect();
        let mut ranges = Self {
            ranges,
            applied_through: None,
        };
        ranges.note_progress();
        ranges
    }

    /// What is to be done with an event of this document at this time.
    pub fn route(&self, id: Element<'_>, time: ClusterTime) -> Route {
        let is_behind = self.applied_through.is_some_and(|through| time > through);
        if is_behind || self.ranges.is_empty() {
            return Route::Apply;
        }
        let behind = self.ranges.partition_point(|range| {
            range
                .low
                .as_ref()
                .is_none_or(|low| compare_with_plain(id.kind, id.value, low).is_ge())
        });
        // Invariant: the first range has no lower bound, so every id is at or behind it.
        let index = behind.saturating_sub(1);
        let window = &self.ranges[index].window;
        match self.ranges[index].state {
            RangeState::Pending => Route::Skip,
            RangeState::Copying => Route::Wait(index),
            RangeState::Done(at)
                if window
                    .as_ref()
                    .is_some_and(|window| window.holds(time, at.to)) =>
            {
                Route::Window(index)
            }
            RangeState::Done(at) => route_by_time(time, at),
        }
    }

    /// All ranges.
    pub fn iter(&self) -> impl Iterator<Item = &Range> {
        self.ranges.iter()
    }

    /// The range at this place.
    pub fn get_mut(&mut self, index: usize) -> &mut Range {
        &mut self.ranges[index]
    }

    /// The next range to copy, and its place.
    pub fn next_pending(&mut self) -> Option<&mut Range> {
        self.ranges
            .iter_mut()
            .find(|range| range.state == RangeState::Pending)
    }

    /// The range with this number.
    pub fn numbered(&mut self, number: u32) -> Option<&mut Range> {
        self.ranges.iter_mut().find(|range| range.number == number)
    }

    /// Whether every range is done.
    pub fn is_done(&self) -> bool {
        self.ranges
            .iter()
            .all(|range| matches!(range.state, RangeState::Done(_)))
    }

    /// The latest time a range was read at, once all are done.
    pub fn note_progress(&mut self) {
        let latest = self.ranges.iter().map(|range| match range.state {
            RangeState::Done(at) => Some(at.to),
            _ => None,
        });
        self.applied_through = latest.collect::<Option<Vec<_>>>().and_then(|times| {
            // From here on no event has to be compared with a range any more.
            times.into_iter().max()
        });
    }

    /// The time from which on every event is applied, once all ranges are done.
    pub fn applied_through(&self) -> Option<ClusterTime> {
        self.applied_through
    }

    /// Forgets what was copied and what waits, after the copy of a collection was cancelled.
    pub fn interrupt(&mut self) {
        for range in &mut self.ranges {
            if range.state == RangeState::Copying {
                range.state = RangeState::Pending;
                range.dirty = true;
                range.documents = 0;
                range.bytes = 0;
                range.waiting = Vec::new();
                range.window = None;
            }
        }
    }
}

/// What is to be done with an event of a range that was read at these times.
///
/// Of one that was read in pieces it is not known which piece held the document. Reading it again
/// as of the position is right for all: what the piece had is the past of that, or its future, of
/// which all later events are still to come.
fn route_by_time(time: ClusterTime, at: Span) -> Route {
    if time <= at.from {
        Route::Skip
    } else if time <= at.to {
        Route::ReadAgain
    } else {
        Route::Apply
    }
}

/// The events that waited for a range read at `at`, as a batch.
///
/// # Errors
/// Says what an event lacks.
pub fn released(
    waiting: Vec<(ClusterTime, Vec<u8>)>,
    at: Span,
    home: Home,
    mut window: Option<&mut Window>,
) -> Result<Batch, &'static str> {
    let mut batch = Batch::default();
    for (time, bytes) in waiting {
        let raw = bson::RawDocument::from_bytes(&bytes).map_err(|_| "malformed bytes")?;
        let event = parse(raw)?;
        if let Some(window) = window.as_mut().filter(|window| window.holds(time, at.to)) {
            window.note(&event)?;
            batch.add_to_window(home, &event)?;
            continue;
        }
        let form = match route_by_time(time, at) {
            Route::Skip => continue,
            Route::ReadAgain => Form::ReadAgain,
            Route::Apply | Route::Wait(_) | Route::Window(_) => home.form,
        };
        batch.add(Home { form, ..home }, &event)?;
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::apply::entity::Outcome;
    use crate::engine::bson::scan::{find, kind};
    use crate::engine::state::Way;
    use bson::doc;

    const HOME: Home = Home {
        collection: 0,
        way: Way::Transactional,
        form: Form::Deltas,
    };

    fn time(seconds: u32) -> ClusterTime {
        ClusterTime {
            seconds,
            increment: 1,
        }
    }

    fn int(n: i32) -> Value {
        Value {
            kind: kind::INT32,
            bytes: n.to_le_bytes().to_vec(),
        }
    }

    fn entry(number: u32, low: Option<i32>, high: Option<i32>, state: RangeState) -> RangeEntry {
        RangeEntry {
            uuid: [0; 16],
            number,
            low: low.map(int),
            high: high.map(int),
            state,
            compare: false,
            documents: 0,
            bytes: 0,
        }
    }

    fn route(ranges: &Ranges, id: impl Into<bson::Bson>, at: u32) -> Route {
        let bytes = doc! {"_id": id.into()}.to_vec().unwrap();
        ranges.route(find(&bytes, b"_id").unwrap(), time(at))
    }

    fn mixed() -> Ranges {
        let mut ranges = Ranges::new(vec![
            entry(2, Some(20), None, RangeState::Done(time(9).into())),
            entry(0, None, Some(10), RangeState::Done(time(5).into())),
            entry(1, Some(10), Some(20), RangeState::Pending),
        ]);
        ranges.get_mut(1).state = RangeState::Copying;
        ranges
    }

    #[test]
    fn events_go_where_their_document_is() {
        let ranges = mixed();
        assert_eq!(route(&ranges, 3, 5), Route::Skip);
        assert_eq!(route(&ranges, 3, 6), Route::Apply);
        assert_eq!(route(&ranges, 10, 6), Route::Wait(1));
        assert_eq!(route(&ranges, 19.5, 6), Route::Wait(1));
        assert_eq!(route(&ranges, 20, 9), Route::Skip);
        assert_eq!(route(&ranges, 20, 10), Route::Apply);
    }

    #[test]
    fn ids_of_other_types_fall_into_the_outermost_ranges() {
        let ranges = mixed();
        assert_eq!(route(&ranges, bson::Bson::Null, 6), Route::Apply);
        assert_eq!(route(&ranges, bson::Bson::MinKey, 6), Route::Apply);
        assert_eq!(route(&ranges, "text", 9), Route::Skip);
        assert_eq!(route(&ranges, bson::oid::ObjectId::new(), 10), Route::Apply);
    }

    #[test]
    fn once_all_is_done_later_events_need_no_range() {
        let ranges = Ranges::new(vec![
            entry(0, None, Some(10), RangeState::Done(time(5).into())),
            entry(1, Some(10), None, RangeState::Done(time(7).into())),
        ]);
        assert!(ranges.is_done());
        assert_eq!(ranges.applied_through(), Some(time(7)));
        assert_eq!(route(&ranges, 1, 6), Route::Apply);
        assert_eq!(route(&ranges, 11, 6), Route::Skip);
        assert_eq!(route(&ranges, 11, 8), Route::Apply);
    }

    #[test]
    fn a_range_that_was_read_in_pieces_leaves_what_lies_between_to_the_source() {
        let pieces = Span {
            from: time(5),
            to: time(9),
        };
        let ranges = Ranges::new(vec![entry(0, None, None, RangeState::Done(pieces))]);
        assert_eq!(route(&ranges, 1, 5), Route::Skip);
        assert_eq!(route(&ranges, 1, 6), Route::ReadAgain);
        assert_eq!(route(&ranges, 1, 9), Route::ReadAgain);
        assert_eq!(route(&ranges, 1, 10), Route::Apply);
        assert_eq!(ranges.applied_through(), Some(time(9)));

        let waiting = [5, 6, 10].map(|at| {
            let event = doc! {
                "_id": {"_data": "82"},
                "operationType": "insert",
                "documentKey": {"_id": at},
                "fullDocument": {"_id": at},
            };
            (time(u32::try_from(at).unwrap()), event.to_vec().unwrap())
        });
        let batch = released(waiting.to_vec(), pieces, HOME, None).unwrap();
        let outcomes: Vec<_> = batch.entities().iter().map(|one| &one.outcome).collect();
        assert!(matches!(
            outcomes[..],
            [Outcome::Refetch, Outcome::Insert { .. }]
        ));
    }

    #[test]
    fn an_interrupted_range_is_pending_and_dirty() {
        let mut ranges = Ranges::new(vec![entry(0, None, None, RangeState::Copying)]);
        let range = ranges.next_pending().unwrap();
        assert!(range.dirty);
        assert_eq!(range.documents, 0);
    }

    #[test]
    fn a_collection_without_ranges_is_always_applied() {
        assert_eq!(route(&Ranges::default(), 1, 1), Route::Apply);
    }
}
