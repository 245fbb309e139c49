//! Collections that no transaction may write: capped ones, in the source's order, and system
//! collections, the buckets of time series among them.
//!
//! They are written before the transaction of their batch, and announced in the checkpoint before
//! that; the announcement goes with the transaction that moves the position. So whoever finds it
//! there knows that these collections may be ahead of the position. A capped collection is copied
//! anew then, because its order cannot be repeated. The others come right by repeating: a change
//! that is there already changes nothing once all are repeated, and until then the mirror does not
//! say that it is consistent.
//!
//! What the target refuses is left out, and noted in the transaction of the batch.

use bson::{Document, doc};

use super::commands::{Command, Place, by_collection, encode, put, remove};
use super::ddl;
use super::documents::Shares;
use super::entity::{CollectionIndex, Entity, Outcome};
use super::in_order::Missing;
use super::writer::{Named, Prepared, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::command::number;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::quarantine::{Key, Refused};
use crate::engine::state::{Outside, Way, encode_outside};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

/// How a command ended that depends on what is on the target.
pub(super) enum Ran {
    AsExpected,
    /// Something was missing, or there already.
    Otherwise,
    /// The same, so that nothing is known to be carried out.
    Hindered(Error),
    /// The target does not take a document.
    Refused(Error),
}

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
        let mut missing = Missing::of(prepared);
        for entity in batch.window() {
            let to = Outlet::of(prepared, entity.collection)?;
            self.write_in_window(to, entity, &mut missing, written)
                .await?;
        }
        for (collection, entities) in by_collection(batch.outside()) {
            let to = Outlet::of(prepared, collection)?;
            if to.named.way == Way::InOrder {
                self.write_in_order(to, &entities, &mut missing, written)
                    .await?;
            } else {
                self.write_loose(to, entities, written).await?;
            }
        }
        self.note_missing(prepared, missing, written).await
    }

    /// Writes documents whose places do not count: what does not go as expected is made what it is
    /// on the source.
    async fn write_loose(
        &self,
        to: Outlet<'_>,
        entities: Vec<&Entity>,
        written: &mut Written,
    ) -> Result<()> {
        let mut fits = true;
        for command in encode(to.place, entities.iter().copied(), self.abilities) {
            let ran = self.run_outside(&command, written).await?;
            fits &= matches!(ran, Ran::AsExpected);
        }
        let again = |entity: &&Entity| !fits || entity.outcome.is_asked();
        let again: Vec<_> = entities.into_iter().filter(again).collect();
        self.settle(to, &again, written).await
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

    pub(super) async fn run_outside(
        &self,
        command: &Command,
        written: &mut Written,
    ) -> Result<Ran> {
        written.operations += u64::try_from(command.expected).unwrap_or(0);
        let mut reply = self.send_outside(command).await;
        if let Err(error) = &reply
            && error.code() == Some(code::MIXED_SCHEMA)
            && let Some(name) = command.collection()
        {
            ddl::allow_mixed_schema(&self.target, name).await?;
            // What stood before is there already, and is then made what it is on the source.
            reply = self.send_outside(command).await;
        }
        match reply {
            Ok(reply) if number(&reply, "n") == command.expected => Ok(Ran::AsExpected),
            Ok(_) => Ok(Ran::Otherwise),
            // A field within something that is no document any more, as in a copy that is newer
            // than the change.
            Err(error) if error.code() == Some(code::PATH_NOT_VIABLE) => Ok(Ran::Hindered(error)),
            // The latter is of a key that the driver cannot read.
            Err(error) if error.is_duplicate_key() || error.is_unreadable() => {
                Ok(Ran::Hindered(error))
            }
            Err(error) if error.code() == Some(code::NAME_TWICE) => Ok(Ran::Hindered(error)),
            Err(error) if error.is_refused_for_certain() => Ok(Ran::Refused(error)),
            Err(error) => Err(error),
        }
    }

    async fn send_outside(&self, command: &Command) -> Result<Document> {
        let body = command.body.clone();
        self.target.write_raw(Write::WriteOutside, body).await
    }

    /// Makes documents what they are at the batch's position, whatever is there.
    async fn settle(
        &self,
        to: Outlet<'_>,
        entities: &[&Entity],
        written: &mut Written,
    ) -> Result<()> {
        let mut shares = Shares::of(entities);
        let (named, at) = (to.named, &to.prepared.position);
        while let Some((now, fetched)) = shares.next(&self.source, named, at, written).await? {
            let mut found = Vec::new();
            // What goes comes first: an `_id` that is only equal, and not the same, is replaced.
            for (entity, document) in now.iter().zip(fetched.documents) {
                if entity.outcome == Outcome::Reconcile {
                    written.reconciled.note(false, document.is_some());
                }
                match document {
                    Some(document) => found.push(document),
                    None => {
                        for command in remove(to.place, &entity.id, self.abilities) {
                            self.run_outside(&command, written).await?;
                        }
                    }
                }
            }
            for document in found.iter().chain(&fetched.others) {
                let Some(id) = find(document, b"_id").map(Value::of) else {
                    continue;
                };
                for command in put(to.place, &id, document, self.abilities) {
                    match self.run_outside(&command, written).await? {
                        Ran::AsExpected | Ran::Otherwise => {}
                        // Of what is in the way, perhaps a key that another document gives up, the
                        // next try knows more.
                        Ran::Refused(error) | Ran::Hindered(error) => {
                            to.refuse(&id, (&error, false), written)?;
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where documents of a batch go that no transaction may write.
#[derive(Clone, Copy)]
pub(super) struct Outlet<'a> {
    pub(super) named: &'a Named,
    pub(super) place: Place<'a>,
    prepared: &'a Prepared,
}

impl<'a> Outlet<'a> {
    fn of(prepared: &'a Prepared, collection: CollectionIndex) -> Result<Self> {
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
        Ok(Self {
            named,
            place,
            prepared,
        })
    }

    pub(super) fn key(self, entity: &Entity) -> Key {
        (self.named.uuid, entity.id.clone())
    }

    /// The document is left out, and noted together with the batch.
    pub(super) fn refuse(
        self,
        id: &Value,
        (error, is_only_here): (&Error, bool),
        written: &mut Written,
    ) -> Result<()> {
        written.refused.push(Refused {
            key: (self.named.uuid, id.clone()),
            at: self.prepared.position.time,
            collection: self.named.name.clone(),
            reason: error.to_string(),
            is_only_here,
        });
        self.prepared.room.check(&written.refused)
    }
}

/// The checkpoint still has the announcement, so the next run copies the collection anew.
pub(super) fn out_of_order() -> Error {
    Error::Reply {
        side: Side::Target,
        doing: "write to a capped collection",
        what: "it was not as the source left it; it is copied anew".into(),
    }
}
