//! What other tasks ask the owner for: to stand still for an instant, and to put documents right.
//!
//! Both go through the one order of events, so neither can race with the stream.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Owner;
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::apply::writer::Reconciled;
use crate::engine::bson::order::Value;
use crate::engine::connection::probe::operation_time;
use crate::engine::definitions::Mend;
use crate::engine::error::{Result, Side};
use crate::engine::position::ClusterTime;
use crate::engine::state::CatalogEntry;
use crate::engine::stream::event::Uuid;

/// Something asked of the owner.
pub enum Ask {
    /// Stand still between two changes of the source, and tell the times of both sides.
    Hold(oneshot::Sender<Held>),
    /// Compare these documents with the source, and put right what differs.
    Repair(Repair),
    /// Make options, indexes and views what the source has. Told whether the target's server took
    /// it.
    Mend(Mend, oneshot::Sender<bool>),
}

/// What is done while the mirror stands still.
pub(super) enum AtRest {
    /// Both times are told.
    Tell(oneshot::Sender<Held>),
    /// Something is put right that is no document.
    Mend(Mend, oneshot::Sender<bool>),
}

/// Documents of one collection to be put right.
pub struct Repair {
    /// The collection.
    pub uuid: Uuid,
    /// The ids; a bounded number.
    pub keys: Vec<Value>,
    /// Told when it is committed. Dropped if the collection takes no part, or no longer.
    pub done: oneshot::Sender<Reconciled>,
}

/// Documents that are being put right.
pub(super) struct Repairing {
    uuid: Uuid,
    /// The ids of those that are in no batch yet.
    left: Vec<Value>,
    sum: Reconciled,
    done: oneshot::Sender<Reconciled>,
}

/// Both sides at the instant at which the mirror stood still.
#[derive(Clone, Debug)]
pub struct Held {
    /// The source's time: the target holds exactly what was there then.
    pub at: ClusterTime,
    /// The target's time at that instant.
    pub target_at: ClusterTime,
    /// When that was.
    pub taken: Instant,
    /// The collections with data that are wholly on the target.
    pub collections: Vec<HeldCollection>,
    /// Names of what takes no part although it is selected, or not yet.
    pub left_out: Vec<String>,
    /// Commands of the source on collections that this run has carried out so far.
    pub commands: u64,
}

/// A collection as of that instant.
#[derive(Clone, Debug)]
pub struct HeldCollection {
    /// Its index in the catalog.
    pub index: CollectionIndex,
    /// What is remembered of it; its name is the same on both sides.
    pub entry: CatalogEntry,
}

impl Owner<'_> {
    /// Whether something asked for is under way; one thing is at a time.
    pub(super) fn is_asked(&self) -> bool {
        let on_its_way = self.in_flight.as_ref();
        let on_its_way = on_its_way.and_then(|it| it.repairing.as_ref());
        let goes_on = on_its_way.is_some_and(|it| !it.left.is_empty());
        let goes_on = goes_on || self.to_repair.is_some();
        self.hold.is_some() || self.repairing.is_some() || goes_on
    }

    /// Whether something else can be asked for now. In the middle of a transaction a document could
    /// not be put as it is in the end: its changes follow. While a command that an earlier process
    /// began is still to come, nobody knows what is called what on the target.
    pub(super) fn can_be_asked(&self) -> bool {
        !self.is_asked() && !self.is_in_pieces() && !self.plan.in_command
    }

    pub(super) fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Hold(done) => self.hold = Some(AtRest::Tell(done)),
            Ask::Mend(mend, done) => self.hold = Some(AtRest::Mend(mend, done)),
            Ask::Repair(repair) => self.repair(Repairing {
                uuid: repair.uuid,
                left: repair.keys,
                sum: Reconciled::default(),
                done: repair.done,
            }),
        }
    }

    /// As many of the documents as a batch may have join the one that is being gathered.
    fn repair(&mut self, mut repairing: Repairing) {
        let Some(collection) = self.plan.catalog.find(&repairing.uuid) else {
            return;
        };
        // While it is copied, a range may be ahead of the position; the copy brings all of it.
        if self.plan.ranges.contains_key(&collection) {
            return;
        }
        let home = self.home(collection);
        let now = repairing.left.len().min(self.room_in_batch());
        for key in repairing.left.drain(..now) {
            self.gather.reconcile(home, &key);
        }
        self.repairing = Some(repairing);
    }

    /// Those of a batch are put right.
    pub(super) fn repaired(&mut self, mut repairing: Repairing, now: Reconciled) {
        repairing.sum.add(now);
        if repairing.left.is_empty() {
            // Whoever asked may be gone.
            let _ = repairing.done.send(repairing.sum);
        } else {
            self.to_repair = Some(repairing);
        }
    }

    /// The next ones join a batch, but not a further piece of a transaction: of what they are read
    /// as, its changes would follow.
    pub(super) fn go_on_repairing(&mut self) {
        if self.in_pieces {
            return;
        }
        if let Some(repairing) = self.to_repair.take() {
            self.repair(repairing);
        }
    }

    /// Whether the mirror may stand still behind `time` before an event of `next`: never within
    /// what the source did at one time, and not while documents are ahead of the position.
    pub(super) fn may_hold(&self, time: ClusterTime, next: Option<ClusterTime>) -> bool {
        self.hold.is_some() && !self.ahead.is_any() && next.is_none_or(|next| next > time)
    }

    /// Whether nothing that was read is unwritten or half a transaction.
    pub(super) fn is_between_changes(&self) -> bool {
        self.reply.is_none()
            && self.open.is_none()
            && !self.in_pieces
            && self.may_hold(self.position.time, None)
    }

    /// Everything up to the position is on the target, nothing behind it: does what was asked for.
    pub(super) async fn stand_still(&mut self) -> Result<()> {
        let done = match self.hold.take() {
            Some(AtRest::Tell(done)) => done,
            Some(AtRest::Mend(mend, done)) => {
                // Whoever asked may be gone.
                let _ = done.send(self.mend(mend).await?);
                return Ok(());
            }
            None => return Ok(()),
        };
        let target_at = operation_time(self.plan.target.db.client(), Side::Target).await?;
        let collections = self
            .plan
            .catalog
            .alive()
            .filter(|(index, _)| !self.plan.ranges.contains_key(index))
            .map(|(index, collection)| HeldCollection {
                index,
                entry: collection.entry.clone(),
            })
            .collect();
        let copied = self.plan.catalog.alive();
        let copied = copied.filter(|(index, _)| self.plan.ranges.contains_key(index));
        let held = Held {
            at: self.position.time,
            target_at,
            taken: Instant::now(),
            collections,
            left_out: self
                .plan
                .catalog
                .left_out()
                .map(|left_out| left_out.name.clone())
                .chain(copied.map(|(_, it)| it.entry.public_name().to_owned()))
                .collect(),
            commands: self.commands,
        };
        // Whoever asked may be gone.
        let _ = done.send(held);
        Ok(())
    }
}
