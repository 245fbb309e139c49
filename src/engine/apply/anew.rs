//! When unique indexes are enforced: documents that exchange their keys.
//!
//! Within a batch the order of documents is free and events are merged, so a key can still be held
//! by one document when another one takes it. The source had no duplicates at the batch's time: if
//! all of the batch's documents of that collection are removed first, and then put as they are at
//! that time, there are none on the target either, and outside of the transaction nobody sees it.
//!
//! The same helps where a document holds one name twice, which servers let no pipeline change.

use mongodb::ClientSession;

use super::commands::encode;
use super::ddl;
use super::delta::Deltas;
use super::gather::{Entity, Outcome};
use super::writer::{Failure, Named, Prepared, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::catalog::list_indexes;
use crate::engine::command::number;
use crate::engine::error::{Result, Side};
use crate::engine::repair::fetch;
use crate::engine::writes::Write;

impl Writer {
    /// Removes the documents and puts them as they are at the batch's position.
    pub(super) async fn write_anew(
        &self,
        named: &Named,
        entities: &[&Entity],
        prepared: &Prepared,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        let unknown: Vec<&Entity> = entities
            .iter()
            .copied()
            .filter(|entity| final_state(entity).is_none())
            .collect();
        let keys: Vec<_> = unknown.iter().map(|entity| &entity.id).collect();
        let (name, at) = (named.name.as_str(), prepared.position.time);
        let fetched = fetch(&self.source, name, named.uuid, &keys, at).await?;
        if fetched.as_of > at {
            written.ahead_until = written.ahead_until.max(Some(fetched.as_of));
        }
        let mut found = fetched.documents.into_iter();
        let mut removed = Vec::with_capacity(entities.len());
        let mut put = Vec::with_capacity(entities.len());
        for entity in entities {
            let document = match final_state(entity) {
                Some(known) => known,
                None => found.next().flatten(),
            };
            if entity.outcome == Outcome::Reconcile {
                written.reconciled.note(false, document.is_some());
            }
            removed.push(entity.becomes(Outcome::Delete));
            if let Some(document) = document {
                let deltas = Deltas::default();
                put.push(entity.becomes(Outcome::Insert { document, deltas }));
            }
        }
        // Whose `_id` is equal to one of the batch and not the same: 1.0 for 1.
        for document in fetched.others {
            let Some(id) = find(&document, b"_id").map(Value::of) else {
                continue;
            };
            if entities.iter().all(|entity| entity.id != id) {
                let deltas = Deltas::default();
                put.push(Entity {
                    collection: entities[0].collection,
                    id,
                    outcome: Outcome::Insert { document, deltas },
                });
            }
        }
        let gone = self.write_all(name, &removed, session, written).await?;
        self.write_all(name, &put, session, written).await?;
        // How many were there is known but for those that nothing is known of.
        let was = |there| {
            entities
                .iter()
                .filter(move |it| it.outcome.was_there() == there)
        };
        let least = was(Some(true)).count() as u64;
        let most = least + was(None).count() as u64;
        written.repaired += gone.saturating_sub(most) + least.saturating_sub(gone);
        Ok(())
    }

    /// Returns how many documents were removed or put.
    async fn write_all(
        &self,
        name: &str,
        entities: &[Entity],
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<u64> {
        let mut count = 0;
        for command in encode(name, entities.iter(), self.abilities) {
            written.operations += u64::try_from(command.expected).unwrap_or(0);
            let reply = self
                .target
                .write_in(Write::WriteAnew, command.body, session)
                .await?;
            count += u64::try_from(number(&reply, "n")).unwrap_or(0);
        }
        Ok(count)
    }

    /// The last resort: a conflict that the source did not have, as with a document that somebody
    /// else wrote on the target. The unique indexes of the collection go, so that the mirror can go
    /// on; their owner builds them again, and tells as long as that does not succeed.
    pub(super) async fn relax(&self, collection: &str) -> Result<()> {
        for index in list_indexes(&self.target.db, collection, Side::Target).await? {
            let name = index.get_str("name").unwrap_or_default();
            let is = |option| index.get_bool(option).unwrap_or(false);
            if is("unique") {
                ddl::drop_index(&self.target, collection, name).await?;
            } else if is("prepareUnique") {
                let change = bson::doc! {"index": {"name": name, "prepareUnique": false}};
                ddl::modify(&self.target, collection, &change).await?;
            }
        }
        Ok(())
    }
}

/// What the document is after the batch, if the batch alone tells: `Some(None)` is gone.
#[allow(clippy::option_option, reason = "unknown, gone, or there")]
fn final_state(entity: &Entity) -> Option<Option<Vec<u8>>> {
    match &entity.outcome {
        Outcome::Delete | Outcome::Nothing => Some(None),
        Outcome::Insert { document, deltas } | Outcome::Replace { document, deltas }
            if deltas.is_empty() =>
        {
            Some(Some(document.clone()))
        }
        _ => None,
    }
}
