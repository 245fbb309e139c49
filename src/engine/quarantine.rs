//! Documents that the target refuses, although the source has them.
//!
//! A stranger's index on the target can do that, as can a limit that only the target has. Such a
//! document is left out of its batch and noted in the same transaction, so that it holds up nothing
//! else; the target does not count as consistent meanwhile. Whatever happens to it on the source,
//! and again and again with longer pauses, it is compared with the source and put right, until the
//! target takes it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bson::RawDocument;
use serde::Serialize;
use tokio::time::Instant;

use super::bson::encode::Encoder;
use super::bson::order::Value;
use super::error::{Error, Result};
use super::position::ClusterTime;
use super::stream::event::Uuid;

/// Most documents that are noted, unless the limits say otherwise. Where the target refuses more,
/// something is wrong with all of it, and the mirror rather waits.
pub const MOST: usize = 10_000;

/// Most documents that are tried again in one batch.
const AT_ONCE: usize = 100;

/// First and longest pause before a document is tried again; doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Characters of an `_id` that are shown; it can have millions.
const SHOWN: usize = 200;

/// Which document.
pub type Key = (Uuid, Value);

/// A document that the target refuses.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined {
    /// Its collection's identity on the source.
    #[serde(skip)]
    pub uuid: Uuid,
    /// Its `_id`.
    #[serde(skip)]
    pub id: Value,
    /// The cluster time of the source as of which it was refused. At an earlier position, to which
    /// the end of a process can lead back, it proves nothing if the target takes it.
    pub at: ClusterTime,
    /// Its collection's name when it was last tried.
    pub collection: String,
    /// Its `_id`, for people.
    #[serde(rename = "_id")]
    pub shown_id: String,
    /// What the target's server said when it was last tried.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u64,
    /// When it was first refused.
    #[serde(skip)]
    pub first: SystemTime,
    /// When it was last refused.
    #[serde(skip)]
    pub last: SystemTime,
}

/// A refusal that has just been noted.
#[derive(Clone, PartialEq, Debug)]
pub struct Refused {
    /// Which document.
    pub key: Key,
    /// As of which cluster time of the source.
    pub at: ClusterTime,
    /// Its collection's name.
    pub collection: String,
    /// What the target's server said.
    pub reason: String,
    /// It was a change that cannot be made there, or was laid over a state that it did not follow on
    /// the source; the target may well take the document as such.
    pub is_only_here: bool,
}

/// All of one mirror.
#[derive(Debug)]
pub struct Quarantine {
    held: HashMap<Key, (Quarantined, Instant)>,
    most: usize,
    /// Whether it has changed since it was last shown.
    changed: bool,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            held: HashMap::new(),
            most: MOST,
            changed: true,
        }
    }
}

/// How much more the target may refuse, beside what it is known to refuse.
#[derive(Clone, Default, Debug)]
pub struct Room {
    known: HashSet<Key>,
    left: usize,
    most: usize,
}

impl Room {
    /// Whether these are more than there is room for.
    pub fn is_exceeded(&self, refused: &[Refused]) -> bool {
        let new = refused.iter().filter(|one| !self.known.contains(&one.key));
        new.count() > self.left
    }

    /// # Errors
    /// [`Error::QuarantineFull`] if these are more than there is room for.
    pub fn check(&self, refused: &[Refused]) -> Result<()> {
        if !self.is_exceeded(refused) {
            return Ok(());
        }
        let first = refused.first();
        Err(Error::QuarantineFull {
            most: self.most,
            reason: first.map_or_else(String::new, |first| first.reason.clone()),
        })
    }
}

impl Quarantine {
    /// As remembered, with room for so many in all; each is tried again when the `least` pause
    /// since it was last refused is over, mostly at once.
    pub fn new(
        remembered: Vec<Quarantined>,
        most: usize,
        least: impl Fn(Uuid) -> Duration,
        now: Instant,
        time: SystemTime,
    ) -> Self {
        let held = remembered.into_iter().map(|one| {
            // A clock that was put back has it wait no longer than a new one would.
            let over = time.duration_since(one.last).unwrap_or_default();
            let again = now + least(one.uuid).saturating_sub(over);
            ((one.uuid, one.id.clone()), (one, again))
        });
        Self {
            most,
            held: held.collect(),
            changed: true,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many more there may be, beside these, which are here already.
    pub fn room(&self, known: impl IntoIterator<Item = Key>) -> Room {
        Room {
            known: known.into_iter().collect(),
            left: self.most.saturating_sub(self.held.len()),
            most: self.most,
        }
    }

    /// Those of a collection.
    pub fn of(&self, collection: Uuid) -> impl Iterator<Item = &Key> {
        let keys = self.held.keys();
        keys.filter(move |(uuid, _)| *uuid == collection)
    }

    /// All of a collection are tried anew, or gone with it.
    pub fn forget(&mut self, collection: Uuid) {
        let before = self.held.len();
        self.held.retain(|(uuid, _), _| *uuid != collection);
        self.changed |= self.held.len() < before;
    }

    /// As of when this document was refused, if it was.
    pub fn refused_at(&self, key: &Key) -> Option<ClusterTime> {
        self.held.get(key).map(|(one, _)| one.at)
    }

    /// A document was refused, once more or for the first time; it is not tried again before the
    /// `least` pause is over.
    pub fn note(&mut self, refused: Refused, least: Duration, now: Instant, time: SystemTime) {
        let new = || Quarantined {
            uuid: refused.key.0,
            id: refused.key.1.clone(),
            at: refused.at,
            collection: String::new(),
            shown_id: shown(&refused.key.1),
            reason: String::new(),
            attempts: 0,
            first: time,
            last: time,
        };
        let (one, again) = self
            .held
            .entry(refused.key.clone())
            .or_insert_with(|| (new(), now));
        one.attempts += 1;
        one.at = refused.at;
        one.collection = refused.collection;
        one.reason = refused.reason;
        one.last = time;
        *again = now + pause(one.attempts).max(least);
        self.changed = true;
    }

    /// A document is on the target as it should be, or its collection is no more.
    pub fn release(&mut self, key: &Key) {
        self.changed |= self.held.remove(key).is_some();
    }

    /// What may have been in the way of a collection's documents is gone: they are tried at once.
    pub fn hasten(&mut self, collection: Uuid, now: Instant) {
        let its = self.held.iter_mut();
        for (_, (_, again)) in its.filter(|((uuid, _), _)| *uuid == collection) {
            *again = now;
        }
    }

    /// Those to be tried now at this position, at most so many; they come again after a pause.
    pub fn due(&mut self, position: ClusterTime, most: usize, now: Instant) -> Vec<Key> {
        let is_due = |(one, again): &(Quarantined, Instant)| *again <= now && one.at <= position;
        let due = self.held.iter_mut().filter(|(_, held)| is_due(held));
        due.take(most.min(AT_ONCE))
            .map(|(key, (one, again))| {
                *again = now + pause(one.attempts);
                key.clone()
            })
            .collect()
    }

    /// All of them, if they are others than when this was last called.
    pub fn changed(&mut self) -> Option<Arc<[Quarantined]>> {
        std::mem::take(&mut self.changed).then(|| self.list())
    }

    /// For those who look on, the oldest first.
    pub fn list(&self) -> Arc<[Quarantined]> {
        let mut all: Vec<_> = self.held.values().map(|(one, _)| one.clone()).collect();
        all.sort_by(|a, b| {
            let key = |one: &Quarantined| (one.first, one.collection.clone(), one.shown_id.clone());
            key(a).cmp(&key(b))
        });
        all.into()
    }
}

fn pause(attempts: u64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    PAUSE
        .0
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(PAUSE.1)
}

/// An `_id` for people; as bytes where it is no valid text.
pub fn shown(id: &Value) -> String {
    let mut encoder = Encoder::default();
    let root = encoder.begin();
    encoder.raw(id.kind, b"_id", &id.bytes);
    encoder.end(root);
    let document = encoder.finish();
    let value = RawDocument::from_bytes(document.as_bytes())
        .ok()
        .and_then(|document| bson::Document::try_from(document).ok())
        .and_then(|mut document| document.remove("_id"));
    let shown = match value {
        Some(value) => value.to_string(),
        None => format!("type {:#04x}, bytes {:02x?}", id.kind, id.bytes),
    };
    shown.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: ClusterTime = ClusterTime {
        seconds: 7,
        increment: 1,
    };

    fn key(n: u8) -> Key {
        let id = Value {
            kind: 0x10,
            bytes: vec![n, 0, 0, 0],
        };
        ([7; 16], id)
    }

    fn refused(n: u8) -> Refused {
        Refused {
            key: key(n),
            at: AT,
            collection: "orders".into(),
            reason: "no".into(),
            is_only_here: false,
        }
    }

    #[test]
    fn a_document_is_tried_again_after_longer_and_longer_pauses() {
        let (now, time) = (Instant::now(), SystemTime::now());
        let mut quarantine = Quarantine::default();
        quarantine.note(refused(1), Duration::ZERO, now, time);
        assert!(quarantine.due(AT, AT_ONCE, now).is_empty());
        assert_eq!(quarantine.due(AT, AT_ONCE, now + PAUSE.0), [key(1)]);
        quarantine.note(refused(1), Duration::ZERO, now, time);
        assert!(quarantine.due(AT, AT_ONCE, now + PAUSE.0).is_empty());
        assert_eq!(quarantine.due(AT, AT_ONCE, now + PAUSE.0 * 2), [key(1)]);
        for _ in 0..100 {
            quarantine.note(refused(1), Duration::ZERO, now, time);
        }
        assert_eq!(quarantine.due(AT, AT_ONCE, now + PAUSE.1), [key(1)]);
    }

    #[test]
    fn what_is_tried_now_is_not_tried_at_once_again() {
        let now = Instant::now();
        let mut quarantine = Quarantine::default();
        quarantine.note(refused(1), Duration::ZERO, now, SystemTime::now());
        let later = now + PAUSE.0;
        assert_eq!(quarantine.due(AT, AT_ONCE, later).len(), 1);
        assert!(quarantine.due(AT, AT_ONCE, later).is_empty());
    }

    #[test]
    fn what_is_hastened_waits_no_longer() {
        let now = Instant::now();
        let mut quarantine = Quarantine::default();
        quarantine.note(refused(1), PAUSE.1, now, SystemTime::now());
        quarantine.hasten([8; 16], now);
        assert!(quarantine.due(AT, AT_ONCE, now).is_empty(), "another one");
        quarantine.hasten(key(1).0, now);
        assert_eq!(quarantine.due(AT, AT_ONCE, now), [key(1)]);
    }

    #[test]
    fn nothing_is_tried_at_a_position_before_its_refusal() {
        let now = Instant::now();
        let mut quarantine = Quarantine::default();
        quarantine.note(refused(1), Duration::ZERO, now, SystemTime::now());
        let later = now + PAUSE.0;
        assert!(quarantine.due(ClusterTime::ZERO, AT_ONCE, later).is_empty());
        assert_eq!(quarantine.due(AT, AT_ONCE, later).len(), 1);
    }

    #[test]
    fn what_is_released_is_gone() {
        let now = Instant::now();
        let mut quarantine = Quarantine::default();
        for n in 0..3 {
            quarantine.note(refused(n), Duration::ZERO, now, SystemTime::now());
        }
        quarantine.release(&key(1));
        assert_eq!(quarantine.refused_at(&key(1)), None);
        assert_eq!(quarantine.refused_at(&key(2)), Some(AT));
        assert_eq!(quarantine.list().len(), 2);
        assert_eq!(quarantine.room([]).left, MOST - 2);
        assert!(quarantine.changed().is_some());
        assert!(quarantine.changed().is_none());
        quarantine.forget(key(2).0);
        assert!(quarantine.is_empty());
        assert!(quarantine.changed().is_some());
    }

    #[test]
    fn a_new_process_goes_on_with_the_pause_of_the_last() {
        let (now, time) = (Instant::now(), SystemTime::now());
        let mut last = Quarantine::default();
        last.note(refused(1), Duration::ZERO, now, time);
        let start = |least: Duration, time| {
            Quarantine::new(last.list().to_vec(), MOST, |_| least, now, time)
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(start(Duration::ZERO, time).due(AT, AT_ONCE, now), [key(1)]);
        for (time, left) in [
            (time, hour),
            (time + hour / 2, hour / 2),
            (time - hour, hour),
        ] {
            let mut next = start(hour, time);
            assert!(next.due(AT, AT_ONCE, now + left - PAUSE.0).is_empty());
            assert_eq!(next.due(AT, AT_ONCE, now + left), [key(1)]);
        }
    }

    #[test]
    fn ids_of_all_types_can_be_shown() {
        assert_eq!(shown(&key(3).1), "3");
        let text = Value {
            kind: 0x02,
            bytes: vec![2, 0, 0, 0, b'a', 0],
        };
        assert_eq!(shown(&text), "\"a\"");
        let broken = Value {
            kind: 0x02,
            bytes: vec![2, 0, 0, 0, 0xFF, 0],
        };
        assert!(shown(&broken).contains("ff"));
    }
}
