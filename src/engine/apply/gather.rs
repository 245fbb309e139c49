//! Gathers events into a batch: what one transaction writes, and what is written before it.

use super::entity::{CollectionIndex, Entity};
use super::merge::{Documents, Form, Home};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::Element;
use crate::engine::state::Way;
use crate::engine::stream::event::{Event, Operation};

/// How many events of which kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Inserts.
    pub inserts: u64,
    /// Updates and replaces.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
}

impl Counts {
    fn note(&mut self, operation: Operation) {
        match operation {
            Operation::Insert => self.inserts += 1,
            Operation::Delete => self.deletes += 1,
            _ => self.updates += 1,
        }
    }

    /// All events.
    pub fn total(&self) -> u64 {
        self.inserts + self.updates + self.deletes
    }
}

/// A range of the copy that is complete with this batch.
#[derive(Clone, PartialEq, Debug)]
pub struct RangeDone {
    /// The range's collection.
    pub collection: CollectionIndex,
    /// Its number within the collection.
    pub number: u32,
    /// What its state document becomes.
    pub update: bson::Document,
}

/// Everything that is written in one transaction, and before it.
#[derive(Default, Debug)]
pub struct Batch {
    /// What the transaction writes.
    inside: Documents,
    /// System collections, which no transaction may write.
    loose: Documents,
    /// Capped collections, which no transaction may write either, in the order of insertion.
    in_order: Documents,
    /// Changes of capped collections that their copy may have seen already; one by one, in order,
    /// before those in `in_order`.
    window: Vec<Entity>,
    window_bytes: usize,
    /// The events in it.
    pub counts: Counts,
    /// Ranges that this batch completes.
    pub ranges_done: Vec<RangeDone>,
}

impl Batch {
    /// The documents of the transaction, in the order of their first event.
    pub fn entities(&self) -> &[Entity] {
        self.inside.all()
    }

    /// The documents that are written before the transaction.
    pub fn outside(&self) -> impl Iterator<Item = &Entity> {
        self.loose.all().iter().chain(self.in_order.all())
    }

    /// What is written before even those, one by one.
    pub fn window(&self) -> &[Entity] {
        &self.window
    }

    /// How many documents.
    pub fn documents(&self) -> usize {
        let documents = [&self.inside, &self.loose, &self.in_order];
        let merged: usize = documents.iter().map(|some| some.all().len()).sum();
        merged + self.window.len()
    }

    /// Roughly the memory it takes.
    pub fn bytes(&self) -> usize {
        self.inside.bytes() + self.loose.bytes() + self.in_order.bytes() + self.window_bytes
    }

    /// Whether there is any document in it.
    pub fn has_documents(&self) -> bool {
        self.documents() > 0
    }

    /// Nothing but perhaps a position.
    pub fn is_empty(&self) -> bool {
        !self.has_documents() && self.ranges_done.is_empty()
    }

    /// Deals the documents of the transaction out to these parts, one for each; they are complete.
    pub fn deal(&mut self, parts: usize, places: &[usize]) -> Vec<Self> {
        let dealt = std::mem::take(&mut self.inside).deal(parts, places);
        let batch = |inside| Self {
            inside,
            ..Self::default()
        };
        dealt.into_iter().map(batch).collect()
    }

    /// Adds a document event.
    ///
    /// # Errors
    /// Says what the event lacks.
    pub fn add(&mut self, home: Home, event: &Event<'_>) -> Result<(), &'static str> {
        self.counts.note(event.operation);
        match home.way {
            Way::Transactional => self.inside.add(home, event),
            Way::Loose => self.loose.add(home, event),
            Way::InOrder => self.in_order.add(home, event),
        }
    }

    /// Adds an event of a capped collection that its copy may have seen already.
    ///
    /// # Errors
    /// Says what the event lacks.
    pub fn add_to_window(&mut self, home: Home, event: &Event<'_>) -> Result<(), &'static str> {
        self.counts.note(event.operation);
        let mut one = Documents::default();
        let form = Form::OverLater;
        one.add(Home { form, ..home }, event)?;
        self.window_bytes += one.bytes();
        self.window.extend(one.into_all());
        Ok(())
    }

    /// Takes over the events that waited for a range, behind what is already there. The documents
    /// are disjoint: until now none of that range could be in this batch.
    pub fn absorb(&mut self, waiting: Self) {
        self.counts.inserts += waiting.counts.inserts;
        self.counts.updates += waiting.counts.updates;
        self.counts.deletes += waiting.counts.deletes;
        self.ranges_done.extend(waiting.ranges_done);
        self.inside.absorb(waiting.inside);
        self.loose.absorb(waiting.loose);
        self.in_order.absorb(waiting.in_order);
        self.window.extend(waiting.window);
        self.window_bytes += waiting.window_bytes;
    }

    /// A document is compared with the source, whether it is in the batch or not. That of a capped
    /// collection has its place, and cannot be.
    pub fn reconcile(&mut self, home: Home, id: &Value) {
        let documents = match home.way {
            Way::Transactional => &mut self.inside,
            Way::Loose => &mut self.loose,
            Way::InOrder => return,
        };
        documents.reconcile(home.collection, id);
    }

    /// As [`Self::reconcile`], for an event.
    pub fn compare(&mut self, home: Home, event: &Event<'_>, id: Element<'_>) {
        self.counts.note(event.operation);
        self.reconcile(home, &Value::of(id));
    }

    /// A collection is gone: nothing of it is written any more.
    pub fn forget(&mut self, collection: CollectionIndex) {
        for documents in [&mut self.inside, &mut self.loose, &mut self.in_order] {
            documents.forget(collection);
        }
        self.window.retain(|entity| entity.collection != collection);
        self.ranges_done
            .retain(|range| range.collection != collection);
    }

    /// Whether this document is in the batch, and not for its place in a capped collection.
    pub fn holds(&self, collection: CollectionIndex, id: &Value) -> bool {
        self.inside.holds(collection, id) || self.loose.holds(collection, id)
    }

    /// All documents of the batch are read from the source, whatever their events say. Not those of
    /// capped collections: they are never read again one by one, and so never ahead.
    pub fn read_all_again(&mut self) {
        self.inside.read_all_again();
        self.loose.read_all_again();
    }
}
