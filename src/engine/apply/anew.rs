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
use super::documents::Shares;
use super::entity::{CollectionIndex, Entity, Outcome};
use super::writer::{Failure, Named, Prepared, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::catalog::list_indexes;
use crate::engine::command::number;
use crate::engine::error::{Result, Side};
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
        let name = named.name.as_str();
        let removed = entities
            .iter()
            .map(|entity| entity.becomes(Outcome::Delete));
        let removed: Vec<Entity> = removed.collect();
        let gone = self.write_all(name, &removed, session, written).await?;
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for entity in entities {
            match final_state(entity) {
                Some(Some(document)) => {
                    known.push(inserted(entity.collection, &entity.id, document))
                }
                Some(None) => {}
                None => unknown.push(*entity),
            }
        }
        self.write_all(name, &known, session, written).await?;
        let mut shares = Shares::of(&unknown);
        let position = &prepared.position;
        while let Some((now, fetched)) = shares.next(&self.source, named, position, written).await?
        {
            let mut put = Vec::new();
            for (entity, document) in now.iter().zip(fetched.documents) {
                if entity.outcome == Outcome::Reconcile {
                    written.reconciled.note(false, document.is_some());
                }
                put.extend(document.map(|it| inserted(entity.collection, &entity.id, it)));
            }
            // Whose `_id` is equal to one of the batch and not the same: 1.0 for 1.
            for document in fetched.others {
                let Some(id) = find(&document, b"_id").map(Value::of) else {
                    continue;
                };
                if entities.iter().all(|entity| entity.id != id) {
                    put.push(inserted(now[0].collection, &id, document));
                }
            }
            self.write_all(name, &put, session, written).await?;
        }
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

fn inserted(collection: CollectionIndex, id: &Value, document: Vec<u8>) -> Entity {
    let deltas = Deltas::default();
    Entity {
        collection,
        id: id.clone(),
        outcome: Outcome::Insert { document, deltas },
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
