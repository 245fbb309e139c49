//! Documents that the target refuses: they are compared with the source until it takes them.

use std::time::{Duration, SystemTime};

use bson::RawDocument;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::asking::Ask;
use super::{Owner, malformed};
use crate::engine::apply::gather::{Batch, CollectionIndex, Entity, Home};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::Element;
use crate::engine::definitions::Mend;
use crate::engine::error::Result;
use crate::engine::position::ClusterTime;
use crate::engine::quarantine::{Key, Refused};
use crate::engine::state::Way;
use crate::engine::stream::event::{Event, Operation, Uuid, parse};

/// Shortest pause before a capped collection is copied anew for what was refused of it: all of the
/// mirror is not consistent until then, and compared again.
const COPIED_ANEW: Duration = Duration::from_secs(24 * 3600);

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

    /// Whether the target refuses nothing of what the source had at the position.
    pub(super) fn lacks_nothing(&self) -> bool {
        let releases = self.in_flight.as_ref().is_some_and(|it| it.releases);
        self.quarantine.is_empty() && self.gather.released.is_empty() && !releases
    }

    /// A collection is copied anew, or gone: what the target refused of it is known no longer, as in
    /// the state.
    pub(super) fn forget_refused(&mut self, collection: Uuid) {
        if self.quarantine.forget(collection) {
            self.progress.quarantine = self.quarantine.list();
        }
    }

    /// An event of a document that the target refuses: what it is on the source is compared. In a
    /// capped collection it has its place, and cannot be put there later; so it is known as refused
    /// until the collection is copied anew, or it is gone.
    pub(super) fn leave_out(
        &mut self,
        home: Home,
        event: &Event<'_>,
        id: Element<'_>,
    ) -> Result<()> {
        if home.way == Way::InOrder && event.operation == Operation::Delete {
            self.let_go(self.key(home.collection, Value::of(id)));
            // Should it be there after all, it goes; in the window nothing has to be found.
            return self.gather.add_to_window(home, event).map_err(malformed);
        }
        self.gather.compare(home, event, id);
        Ok(())
    }

    /// The source does not have it any more, and the target never had. The state learns that with
    /// the batch that is being gathered.
    fn let_go(&mut self, key: Key) {
        if let Some(at) = self.quarantine.refused_at(&key) {
            self.quarantine.release(&key);
            self.gather.released.push((key, at));
            self.progress.quarantine = self.quarantine.list();
        }
    }

    /// Of events that waited for a capped collection, those of refused documents are left out; the
    /// copy was read between these times.
    pub(super) fn without_refused(
        &mut self,
        home: Home,
        waiting: Vec<(ClusterTime, Vec<u8>)>,
        (since, until): (Option<ClusterTime>, ClusterTime),
    ) -> Result<Vec<(ClusterTime, Vec<u8>)>> {
        if home.way != Way::InOrder || self.quarantine.is_empty() {
            return Ok(waiting);
        }
        let mut others = Vec::new();
        for (time, bytes) in waiting {
            let raw = RawDocument::from_bytes(&bytes).map_err(|_| malformed("malformed bytes"))?;
            let event = parse(raw).map_err(malformed)?;
            match event.id {
                // What was there before the copy read anything says nothing of what that refused.
                Some(id)
                    if since.is_none_or(|since| time > since)
                        && self.is_quarantined(home.collection, id) =>
                {
                    if event.operation == Operation::Delete && time <= until {
                        // The window has to know, should the id come back.
                        self.let_go(self.key(home.collection, Value::of(id)));
                        others.push((time, bytes));
                    } else {
                        self.leave_out(home, &event, id)?;
                    }
                }
                _ => others.push((time, bytes)),
            }
        }
        Ok(others)
    }

    pub(super) fn quarantined_in(&self, batch: &Batch) -> Vec<(Key, ClusterTime)> {
        let mut all = batch.released.clone();
        if self.quarantine.is_empty() {
            return all;
        }
        // Those of capped collections are not put right by a batch.
        let is_put_right = |entity: &&Entity| {
            let entry = &self.plan.catalog.get(entity.collection).entry;
            entry.way() != Way::InOrder
        };
        let entities = batch.entities().iter().chain(batch.outside());
        let entities = entities.filter(is_put_right);
        let keys = entities.map(|entity| self.key(entity.collection, entity.id.clone()));
        all.extend(keys.filter_map(|key| {
            let at = self.quarantine.refused_at(&key)?;
            Some((key, at))
        }));
        all
    }

    /// Those that are due join the batch that is being gathered. Within a large transaction of the
    /// source they would be left out, and what somebody asked for is counted by itself.
    pub(super) fn retry_quarantined(&mut self) {
        if self.quarantine.is_empty() || self.in_pieces || self.is_asked() {
            return;
        }
        let mut gone = Vec::new();
        let mut anew = None;
        for key in self.quarantine.due(self.position.time, Instant::now()) {
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
            let in_order = home.filter(|home| home.way == Way::InOrder);
            let least = in_order.map_or(Duration::ZERO, |_| COPIED_ANEW);
            self.quarantine.note(refused, least, now, time);
            // Its events in the batch that is being gathered were laid over what is not there.
            if let Some(home) = in_order {
                if self.gather.leave_out(home.collection, &key.1) {
                    self.let_go(key);
                }
            } else if let Some(home) = home
                && self.gather.holds(home.collection, &key.1)
            {
                self.gather.reconcile(home, &key.1);
            }
        }
        for key in healed {
            self.quarantine.release(key);
        }
        self.progress.quarantine = self.quarantine.list();
    }
}
