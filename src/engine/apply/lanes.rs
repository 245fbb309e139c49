//! A batch in several transactions at the same time, for those who need more than one carries.
//!
//! The position can then go with none of them: it follows in one of its own. Until that is there,
//! documents are ahead of the position, which the checkpoint announces before: whoever finds the
//! announcement reads changed documents again up to there ([`Ahead`](super::super::position::Ahead)),
//! which is exact whatever became of the lanes. Readers of the target see what the source had in a
//! snapshot at a time between two batches ([`Written::target_time`]), and only in such a one.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use bson::{Timestamp, doc};
use futures::future::join_all;
use mongodb::ClientSession;

use super::entity::{CollectionIndex, Entity, Outcome};
use super::gather::Batch;
use super::writer::{Part, Prepared, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::kind;
use crate::engine::error::Result;
use crate::engine::state::{MOST_LANES, Outside};
use crate::engine::writes::Write;

/// How batches are spread.
#[derive(Default)]
pub struct Lanes {
    writers: Vec<Writer>,
    /// Documents from which on a batch is worth it.
    from: usize,
}

impl Writer {
    /// Lets batches of `from` documents and more be written in as many lanes as there are sessions.
    #[must_use]
    pub fn in_lanes(mut self, sessions: Vec<ClientSession>, from: usize) -> Self {
        let lane = |(lane, session)| Self {
            target: self.target.clone(),
            state: self.state.clone(),
            source: self.source.clone(),
            epoch: self.epoch,
            abilities: self.abilities,
            session: Some(session),
            unfinished: None,
            outside: Outside::default(),
            returned: Vec::new(),
            lane: Some(lane),
            lanes: Lanes::default(),
        };
        let sessions = sessions.into_iter().take(MOST_LANES).enumerate();
        self.lanes = Lanes {
            writers: sessions.map(lane).collect(),
            from,
        };
        self
    }

    /// Writes the documents of a batch that is worth it; its position remains.
    ///
    /// # Errors
    /// What a lane did not overcome, when all have ended.
    pub(super) async fn write_in_lanes(
        &mut self,
        prepared: &mut Prepared,
        written: &mut Written,
    ) -> Result<()> {
        let lanes = self.lanes.writers.len();
        if lanes == 0 || !may_spread(prepared, self.lanes.from) {
            return Ok(());
        }
        let together = together(prepared);
        let entities = prepared.batch.entities().iter();
        let places: Vec<usize> = entities.map(|it| lane(it, &together, lanes)).collect();
        if places.windows(2).all(|two| two[0] == two[1]) {
            return Ok(());
        }
        let until = prepared.ahead.and(Some(prepared.position.time)).until();
        let ahead = doc! {"aheadUntil": until.map(Timestamp::from)};
        let announce = self.state.update(Write::AnnounceLanes, self.epoch, ahead);
        announce.await?;
        let parts = deal(prepared, lanes, &places);
        let parts = self.lanes.writers.iter_mut().zip(&parts);
        let nothing = Written::default();
        let written_in = parts
            .filter(|(_, part)| part.batch.has_documents())
            .map(|(lane, part)| lane.write_inside(part, &nothing));
        // Nothing may still be under way when what one met ends the run.
        for outcome in join_all(written_in).await {
            written.absorb(outcome?);
        }
        prepared.room.check(&written.refused)
    }

    /// Holds the lane for its transaction: whoever took the mirror over has changed its epoch.
    pub(super) async fn hold_lane(&self, lane: usize, session: &mut ClientSession) -> Result<()> {
        let command = self.state.lane_command(self.epoch, lane)?;
        let state = self.state.commands();
        let reply = state.write_in(Write::HoldLane, command, session).await?;
        self.fenced_unless_one(&reply)
    }
}

/// Whether a batch is large enough, and a process that finds some of it there knows what to do: each
/// of its documents is one that an event between the positions before and behind it has changed.
/// What has to go with the position stays in its transaction, and so does what is refused already.
fn may_spread(prepared: &Prepared, from: usize) -> bool {
    let entities = prepared.batch.entities();
    prepared.part == Part::Whole
        && !prepared.in_command
        && prepared.position.time > prepared.before
        && prepared.quarantined.is_empty()
        && prepared.missing.is_empty()
        && prepared.batch.ranges_done.is_empty()
        && entities.len() >= from
        && entities.iter().all(|it| it.outcome != Outcome::Reconcile)
}

/// The collections whose documents may depend on each other.
fn together(prepared: &Prepared) -> HashSet<CollectionIndex> {
    let entities = prepared.batch.entities().iter();
    let depends = |entity: &&Entity| {
        let named = prepared.names.get(&entity.collection);
        named.is_none_or(|named| named.is_connected) || class(&entity.id).is_none()
    };
    entities.filter(depends).map(|it| it.collection).collect()
}

/// Which lane a document goes to.
fn lane(entity: &Entity, together: &HashSet<CollectionIndex>, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    entity.collection.hash(&mut hasher);
    if !together.contains(&entity.collection) {
        class(&entity.id).hash(&mut hasher);
    }
    usize::try_from(hasher.finish() % lanes as u64).unwrap_or(0)
}

/// Deals the documents of a batch out to these lanes, one for each.
fn deal(prepared: &mut Prepared, lanes: usize, places: &[usize]) -> Vec<Prepared> {
    let parts = prepared.batch.deal(lanes, places);
    let part = |batch: Batch| Prepared {
        part: Part::Whole,
        batch,
        position: prepared.position.clone(),
        before: prepared.before,
        names: prepared.names.clone(),
        ahead: prepared.ahead,
        in_command: false,
        quarantined: Vec::new(),
        missing: HashSet::new(),
        room: prepared.room.clone(),
    };
    parts.into_iter().map(part).collect()
}

/// What is the same for all ids that a server without a collation takes for equal, as `1` and `1.0`
/// (`facts` mongodb 3.5); `None` where that is not known.
fn class(id: &Value) -> Option<(u8, &[u8], u64)> {
    let number = |number: f64| {
        let number = match number {
            // All of them are equal, and so are both zeros.
            number if number.is_nan() => f64::NAN,
            number => number + 0.0,
        };
        Some((kind::DOUBLE, &[][..], number.to_bits()))
    };
    match id.kind {
        kind::DOUBLE => number(f64::from_le_bytes(id.bytes.as_slice().try_into().ok()?)),
        kind::INT32 => number(i32::from_le_bytes(id.bytes.as_slice().try_into().ok()?).into()),
        #[expect(
            clippy::cast_precision_loss,
            reason = "equal numbers stay equal; others may become so"
        )]
        kind::INT64 => number(i64::from_le_bytes(id.bytes.as_slice().try_into().ok()?) as f64),
        kind::OBJECT_ID | kind::STRING | kind::BINARY | kind::BOOLEAN | kind::DATE => {
            Some((id.kind, &id.bytes, 0))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::bson::scan::find;
    use bson::{Bson, doc};

    fn id(value: impl Into<Bson>) -> Value {
        let bytes = doc! {"_id": value.into()}.to_vec().unwrap();
        Value::of(find(&bytes, b"_id").unwrap())
    }

    #[test]
    fn equal_ids_are_of_one_class() {
        let one = [id(1_i32), id(1_i64), id(1.0)];
        assert!(one.iter().all(|id| class(id) == class(&one[0])));
        assert_eq!(class(&id(0.0)), class(&id(-0.0)));
        assert_eq!(class(&id(0.0)), class(&id(0)));
        let other = f64::from_bits(f64::NAN.to_bits() | 1);
        assert_eq!(class(&id(f64::NAN)), class(&id(other)));
        // The server compares these two as they are, and finds them equal, too.
        assert_eq!(class(&id(1_i64 << 60)), class(&id((1_i64 << 60) as f64)));
    }

    #[test]
    fn ids_of_many_classes_differ() {
        let ids = [id(1), id(2), id("1"), id("2"), id(true), id(1.5)];
        let classes: HashSet<_> = ids.iter().map(class).collect();
        assert_eq!(classes.len(), ids.len());
    }

    #[test]
    fn of_ids_that_hold_others_nothing_is_known() {
        let decimal: bson::Decimal128 = "1.0".parse().unwrap();
        for id in [id(doc! {"a": 1}), id(decimal), id(Bson::Null)] {
            assert_eq!(class(&id), None);
        }
    }
}
