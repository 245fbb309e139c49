//! Documents that the target refuses: they are compared with the source until it takes them.

use std::time::SystemTime;

use tokio::time::Instant;

use super::Owner;
use crate::engine::apply::gather::{Batch, CollectionIndex};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::Element;
use crate::engine::position::ClusterTime;
use crate::engine::quarantine::{Key, Refused};
use crate::engine::stream::event::Uuid;

impl Owner<'_> {
    pub(super) fn is_quarantined(&self, collection: CollectionIndex, id: Element<'_>) -> bool {
        if self.quarantine.is_empty() {
            return false;
        }
        let uuid = self.plan.catalog.get(collection).entry.uuid;
        let key = (uuid, Value::of(id));
        self.quarantine.refused_at(&key).is_some()
    }

    /// A collection is copied anew, or gone: what the target refused of it is known no longer, as in
    /// the state.
    pub(super) fn forget_refused(&mut self, collection: Uuid) {
        if self.quarantine.forget(collection) {
            self.progress.quarantine = self.quarantine.list();
        }
    }

    pub(super) fn quarantined_in(&self, batch: &Batch) -> Vec<(Key, ClusterTime)> {
        if self.quarantine.is_empty() {
            return Vec::new();
        }
        let key = |(collection, id): (CollectionIndex, &Value)| {
            (self.plan.catalog.get(collection).entry.uuid, id.clone())
        };
        let all = batch.entities().iter();
        all.map(|entity| key((entity.collection, &entity.id)))
            .filter_map(|key| {
                let at = self.quarantine.refused_at(&key)?;
                Some((key, at))
            })
            .collect()
    }

    /// Those that are due join the batch that is being gathered. Within a large transaction of the
    /// source they would be left out, and what somebody asked for is counted by itself.
    pub(super) fn retry_quarantined(&mut self) {
        if self.quarantine.is_empty() || self.in_pieces || self.is_asked() {
            return;
        }
        let mut gone = Vec::new();
        for key in self.quarantine.due(self.position.time, Instant::now()) {
            match self.plan.catalog.find(&key.0) {
                Some(collection) if self.plan.ranges.contains_key(&collection) => {}
                Some(collection) => {
                    let home = self.home(collection);
                    self.gather.reconcile(home, &key.1);
                }
                None => gone.push(key),
            }
        }
        if !gone.is_empty() {
            self.note_refused(Vec::new(), &gone);
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
            // Its events in the batch that is being gathered were laid over what is not there.
            if let Some(collection) = self.plan.catalog.find(&refused.key.0)
                && self.gather.holds(collection, &refused.key.1)
            {
                let home = self.home(collection);
                self.gather.reconcile(home, &refused.key.1);
            }
            self.quarantine.note(refused, now, time);
        }
        for key in healed {
            self.quarantine.release(key);
        }
        self.progress.quarantine = self.quarantine.list();
    }
}
