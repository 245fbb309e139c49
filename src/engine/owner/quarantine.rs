//! Documents that the target refuses: they are compared with the source until it takes them.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Owner;
use super::asking::Ask;
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::apply::gather::Batch;
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::Element;
use crate::engine::definitions::Mend;
use crate::engine::position::ClusterTime;
use crate::engine::quarantine::{Key, Refused};
use crate::engine::state::Way;

/// First and longest pause before a capped collection is copied anew; all of the mirror is compared
/// then, too.
const COPIED_ANEW: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));

/// Pause before a capped collection is copied anew for what a copy may well bring: longer with each
/// time that it did not.
pub(super) fn soon(times: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(times);
    COPIED_ANEW.0.saturating_mul(doubled).min(COPIED_ANEW.1)
}

/// Shortest pause before a document is tried again.
pub(super) fn least_pause(way: Way) -> Duration {
    if way == Way::InOrder {
        COPIED_ANEW.1
    } else {
        Duration::ZERO
    }
}

impl Owner<'_> {
    pub(super) fn is_quarantined(&self, collection: CollectionIndex, id: Element<'_>) -> bool {
        if self.quarantine.is_empty() {
            return false;
        }
        let key = self.key(collection, Value::of(id));
        self.quarantine.refused_at(&key).is_some()
    }

    fn key(&self, collection: CollectionIndex, id: Value) -> Key {
        (self.plan.catalog.get(collection).entry.uuid, id)
    }

    /// What the target refused before of a batch's documents: those that the batch puts right if it
    /// can, and those of capped collections.
    pub(super) fn quarantined_in(&self, batch: &Batch) -> (Vec<(Key, ClusterTime)>, HashSet<Key>) {
        let (mut quarantined, mut missing) = (Vec::new(), HashSet::new());
        if self.quarantine.is_empty() {
            return (quarantined, missing);
        }
        let entities = batch.entities().iter().chain(batch.outside());
        for entity in entities.chain(batch.window()) {
            let key = self.key(entity.collection, entity.id.clone());
            let Some(at) = self.quarantine.refused_at(&key) else {
                continue;
            };
            if self.plan.catalog.get(entity.collection).entry.way() == Way::InOrder {
                missing.insert(key);
            } else {
                quarantined.push((key, at));
            }
        }
        (quarantined, missing)
    }

    /// Those that are due join the batch that is being gathered. Within a large transaction of the
    /// source they would be left out, and what somebody asked for is counted by itself.
    pub(super) fn retry_quarantined(&mut self) {
        // While a command that an earlier process began is still to come, names are not certain.
        let is_settled = !self.plan.in_command && !self.in_pieces && !self.is_asked();
        if !is_settled {
            return;
        }
        self.kept.has_retried = true;
        if self.quarantine.is_empty() {
            return;
        }
        let mut gone = Vec::new();
        let mut anew = None;
        let most = self.room_in_batch();
        let due = self
            .quarantine
            .due(self.position.time, most, Instant::now());
        for key in due {
            match self.plan.catalog.find(&key.0) {
                Some(collection) if self.plan.ranges.contains_key(&collection) => {}
                Some(collection) => {
                    let home = self.home(collection);
                    if home.way == Way::InOrder {
                        anew = Some(key.0);
                    }
                    self.gather.reconcile(home, &key.1);
                }
                None => gone.push(key),
            }
        }
        if !gone.is_empty() {
            self.note_refused(Vec::new(), &gone);
        }
        if let Some(uuid) = anew {
            if let Some(times) = self.kept.copied_anew.get_mut(&uuid) {
                *times = times.saturating_add(1);
            }
            // Nobody waits for it: the copy tells what is still refused.
            let (done, _) = oneshot::channel();
            self.asked(Ask::Mend(Mend::Anew(uuid), done));
        }
    }

    /// What came of a batch; or documents whose collection is gone.
    pub(super) fn note_refused(&mut self, refused: Vec<Refused>, healed: &[Key]) {
        if refused.is_empty() && healed.is_empty() {
            return;
        }
        let (now, time) = (Instant::now(), SystemTime::now());
        if let Some(first) = refused.first() {
            // Perhaps somebody else has put an index there.
            self.suspicious = true;
            tracing::warn!(
                mirror = %self.config.name,
                documents = refused.len(),
                collection = first.collection,
                reason = first.reason,
                "the target refuses documents; they are tried again"
            );
        }
        for refused in refused {
            let key = refused.key.clone();
            let collection = self.plan.catalog.find(&key.0);
            let home = collection.map(|collection| self.home(collection));
            let least = match home {
                Some(_) if refused.is_only_here => {
                    soon(*self.kept.copied_anew.entry(refused.key.0).or_default())
                }
                Some(home) => least_pause(home.way),
                None => Duration::ZERO,
            };
            self.quarantine.note(refused, least, now, time);
            // Its events in the batch that is being gathered were laid over what is not there. Of a
            // capped collection the writer leaves them out.
            if let Some(home) = home
                && self.gather.holds(home.collection, &key.1)
            {
                self.gather.reconcile(home, &key.1);
            }
        }
        for key in healed {
            self.quarantine.release(key);
        }
    }
}
