//! Collections that no transaction may write: capped ones, in the source's order, and system
//! collections, the buckets of time series among them.
//!
//! They are written before the transaction of their batch, and announced in the checkpoint before
//! that; the announcement goes with the transaction that moves the position. So whoever finds it
//! there knows that these collections may be ahead of the position. A capped collection is copied
//! anew then, because its order cannot be repeated. The others come right by repeating: a change
//! that is there already changes nothing once all are repeated, and until then the mirror does not
//! say that it is consistent.

use bson::doc;

use super::commands::{Command, Place, by_collection, encode, moves, put, remove};
use super::documents::Shares;
use super::gather::{CollectionIndex, Entity, Outcome};
use super::writer::{Named, Prepared, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::command::number;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::state::{Outside, Way, encode_outside};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

impl Writer {
    /// Writes what goes before the transaction. A failure ends the run: the next one finds the
    /// announcement.
    pub(super) async fn write_outside(
        &mut self,
        prepared: &Prepared,
        written: &mut Written,
    ) -> Result<()> {
        let batch = &prepared.batch;
        if batch.outside().next().is_none() && batch.window().is_empty() {
            return Ok(());
        }
        self.announce(prepared).await?;
        for entity in batch.window() {
            let (named, place) = place_of(prepared, entity.collection)?;
            self.write_in_window(named, place, entity, written).await?;
        }
        for (collection, entities) in by_collection(batch.outside()) {
            let (named, place) = place_of(prepared, collection)?;
            let is_asked = |entity: &&Entity| entity.outcome.is_asked();
            let moves = |entity: &&Entity| moves(&entity.outcome, self.abilities);
            if named.way == Way::InOrder && entities.iter().any(|it| is_asked(it) || moves(it)) {
                return Err(out_of_order());
            }
            let mut fits = true;
            for command in encode(place, entities.iter().copied(), self.abilities) {
                fits &= self.run_outside(command, written).await?;
            }
            if named.way == Way::InOrder && !fits {
                return Err(out_of_order());
            }
            if named.way == Way::Loose {
                let again = |entity: &&Entity| !fits || is_asked(entity);
                let again: Vec<_> = entities.into_iter().filter(again).collect();
                self.settle(named, place, &again, prepared, written).await?;
            }
        }
        Ok(())
    }

    /// Fenced: a process that was replaced cannot announce, and whoever replaced it has seen what
    /// it announced before.
    async fn announce(&mut self, prepared: &Prepared) -> Result<()> {
        let batch = &prepared.batch;
        for entity in batch.outside().chain(batch.window()) {
            if let Some(named) = prepared.names.get(&entity.collection)
                && !self.outside.collections.contains(&named.uuid)
            {
                self.outside.collections.push(named.uuid);
            }
        }
        self.outside.until = self.outside.until.max(Some(prepared.position.time));
        let set = doc! {"outside": encode_outside(&self.outside)};
        self.state
            .update(Write::AnnounceOutside, self.epoch, set)
            .await
    }

    /// Whether the batch's position settles everything that was announced.
    pub(super) fn settles_outside(&self, prepared: &Prepared) -> bool {
        self.outside
            .until
            .is_some_and(|until| until <= prepared.position.time)
    }

    pub(super) fn outside_is_settled(&mut self, prepared: &Prepared) {
        if self.settles_outside(prepared) {
            self.outside = Outside::default();
        }
    }

    /// A change that the copy may hold already: an insert does not move what is there, and what is
    /// gone stays gone.
    async fn write_in_window(
        &self,
        named: &Named,
        place: Place<'_>,
        entity: &Entity,
        written: &mut Written,
    ) -> Result<()> {
        let moves = moves(&entity.outcome, self.abilities);
        if entity.outcome.is_asked() || moves || named.way != Way::InOrder {
            return Err(out_of_order());
        }
        for command in encode(place, std::iter::once(entity), self.abilities) {
            self.run_outside(command, written).await?;
        }
        Ok(())
    }

    /// Whether all documents were as expected.
    async fn run_outside(&self, command: Command, written: &mut Written) -> Result<bool> {
        written.operations += u64::try_from(command.expected).unwrap_or(0);
        let reply = self
            .target
            .write_raw(Write::WriteOutside, command.body)
            .await;
        match reply {
            Ok(reply) => Ok(number(&reply, "n") == command.expected),
            // The other: a field within something that is no document any more, as in a copy that
            // is newer than the change.
            Err(error)
                if [Some(code::DUPLICATE_KEY), Some(code::PATH_NOT_VIABLE)]
                    .contains(&error.code()) =>
            {
                Ok(false)
            }
            // The same, of a key that the driver cannot read.
            Err(error) if error.is_unreadable() => Ok(false),
            Err(error) if error.code() == Some(code::NAME_TWICE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes documents what they are at the batch's position, whatever is there.
    async fn settle(
        &self,
        named: &Named,
        place: Place<'_>,
        entities: &[&Entity],
        prepared: &Prepared,
        written: &mut Written,
    ) -> Result<()> {
        let mut shares = Shares::of(entities);
        let position = &prepared.position;
        while let Some((now, fetched)) = shares.next(&self.source, named, position, written).await?
        {
            let mut commands = Vec::new();
            let mut found = Vec::new();
            for (entity, document) in now.iter().zip(fetched.documents) {
                if entity.outcome == Outcome::Reconcile {
                    written.reconciled.note(false, document.is_some());
                }
                match document {
                    Some(document) => found.push(document),
                    None => commands.extend(remove(place, &entity.id, self.abilities)),
                }
            }
            // What goes comes first: an `_id` that is only equal, and not the same, is replaced.
            for document in found.iter().chain(&fetched.others) {
                if let Some(id) = find(document, b"_id").map(Value::of) {
                    commands.extend(put(place, &id, document, self.abilities));
                }
            }
            for command in commands {
                self.run_outside(command, written).await?;
            }
        }
        Ok(())
    }
}

fn place_of(prepared: &Prepared, collection: CollectionIndex) -> Result<(&Named, Place<'_>)> {
    let missing = || Error::Reply {
        side: Side::Target,
        doing: "write outside of a transaction",
        what: "the collection is not known there".into(),
    };
    let named = prepared.names.get(&collection).ok_or_else(missing)?;
    let outside: Uuid = named.guard.ok_or_else(missing)?;
    let place = Place {
        name: &named.name,
        outside: Some(outside),
        in_order: named.way == Way::InOrder,
    };
    Ok((named, place))
}

/// The checkpoint still has the announcement, so the next run copies the collection anew.
fn out_of_order() -> Error {
    Error::Reply {
        side: Side::Target,
        doing: "write to a capped collection",
        what: "it was not as the source left it; it is copied anew".into(),
    }
}
