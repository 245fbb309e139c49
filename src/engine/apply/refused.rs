//! The end of the ladder: documents that the target refuses even as they are on the source.

use mongodb::ClientSession;

use super::commands::put_all;
use super::gather::{CollectionIndex, Entity};
use super::writer::{Failure, Part, Prepared, Writer};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::command::Commands;
use crate::engine::connection::probe::TargetAbilities;
use crate::engine::error::{Error, Result, code};
use crate::engine::quarantine::{Key, Refused};
use crate::engine::repair::fetch;
use crate::engine::transaction::{Tries, abort, begin};
use crate::engine::writes::Write;

/// Documents that are read and tried at once.
const AT_ONCE: usize = 4;

impl Writer {
    /// Tries every document of the batch that is in this collection by itself, as it is on the
    /// source, in a transaction that is given up: a refusal ends a transaction, so this is how all
    /// of them are found in one go.
    ///
    /// # Errors
    /// What the exchanges met, other than refusals.
    pub(super) async fn find_refused(
        &mut self,
        prepared: &Prepared,
        collection: CollectionIndex,
    ) -> Result<Vec<Refused>> {
        let Some(named) = prepared.names.get(&collection) else {
            return Ok(Vec::new());
        };
        let entities: Vec<&Entity> = prepared
            .batch
            .entities()
            .iter()
            .filter(|entity| entity.collection == collection)
            .collect();
        let mut session = self.take_session().await?;
        let mut refused = Vec::new();
        for some in entities.chunks(AT_ONCE) {
            let keys: Vec<&Value> = some.iter().map(|entity| &entity.id).collect();
            let at = prepared.position.time;
            let fetched =
                fetch(&self.source, &named.name, named.uuid, &keys, at, usize::MAX).await?;
            let ids = some.iter().map(|entity| Some(entity.id.clone()));
            let found = ids.zip(fetched.documents);
            let found = found.filter_map(|(id, document)| Some((id, document?)));
            let others = fetched.others.into_iter();
            let others = others.map(|document| (find(&document, b"_id").map(Value::of), document));
            for (id, document) in found.chain(others) {
                let Some(id) = id else { continue };
                let target = (&self.target, self.abilities);
                let document = [(&id, document.as_slice())];
                let outcome = try_to_put(target, &named.name, &document, &mut session);
                if let Some(reason) = outcome.await? {
                    refused.push(Refused {
                        key: (named.uuid, id),
                        at,
                        collection: named.name.clone(),
                        reason,
                    });
                }
            }
        }
        self.session = Some(session);
        Ok(refused)
    }

    /// The same within a piece of a large transaction: what came before is lost, so they are noted
    /// by themselves, and the next run leaves them out.
    pub(super) async fn note_refused(
        &mut self,
        prepared: &Prepared,
        collection: CollectionIndex,
        error: Error,
    ) -> Result<()> {
        let refused = self.find_refused(prepared, collection).await?;
        if refused.is_empty() {
            // It was refused for what the target holds: the next run reads such documents again.
            tracing::debug!(%error, "a change does not fit what is on the target");
            return Err(Error::Unsettled);
        }
        within_room(prepared, &refused)?;
        // Fenced: a process that was replaced notes nothing.
        let set = bson::doc! {"updatedAt": bson::DateTime::now()};
        self.state
            .update(Write::HoldCheckpoint, self.epoch, set)
            .await?;
        let command = self.state.quarantine_command(&refused)?;
        self.state
            .commands()
            .write_raw(Write::Quarantine, command)
            .await?;
        Ok(())
    }

    /// What the mirror remembers of refusals, in the batch's own transaction.
    pub(super) async fn fill_quarantine(
        &self,
        prepared: &Prepared,
        refused: &[Refused],
        session: &mut ClientSession,
    ) -> Result<(), Failure> {
        let state = self.state.commands();
        if !refused.is_empty() {
            let command = self.state.quarantine_command(refused)?;
            state.write_in(Write::Quarantine, command, session).await?;
        }
        let healed = healed(prepared, refused);
        if !healed.is_empty() {
            let command = self.state.release_command(&healed)?;
            state.write_in(Write::Release, command, session).await?;
        }
        Ok(())
    }
}

/// Tries to put documents in a transaction that is given up; why the target refuses one of them,
/// if so.
///
/// # Errors
/// What the exchange met, other than a refusal.
pub async fn try_to_put(
    (target, abilities): (&Commands, TargetAbilities),
    name: &str,
    documents: &[(&Value, &[u8])],
    session: &mut ClientSession,
) -> Result<Option<String>> {
    let mut tries = Tries::default();
    loop {
        begin(session).await?;
        let mut outcome = Ok(());
        for command in put_all(name, documents.iter().copied(), abilities) {
            let tried = target.write_in(Write::TryDocument, command.body, session);
            if let Err(error) = tried.await {
                outcome = Err(error);
                break;
            }
        }
        abort(session).await;
        match outcome {
            Ok(()) => return Ok(None),
            // What is there has an `_id` that is equal to it and not the same.
            Err(error) if error.code() == Some(code::IMMUTABLE_FIELD) => return Ok(None),
            Err(error) if error.is_refused_document() => return Ok(Some(error.to_string())),
            // A unique key that another document of the batch gives up, or a document on the
            // target that holds one name twice: the ladder has answers to both.
            Err(error) if error.is_duplicate_key() || error.is_unreadable() => return Ok(None),
            Err(error) if error.code() == Some(code::NAME_TWICE) => return Ok(None),
            Err(error) => {
                if !tries.again(&error).await {
                    return Err(error);
                }
            }
        }
    }
}

/// Documents that the target refused before, and takes with this batch.
pub(super) fn healed(prepared: &Prepared, refused: &[Refused]) -> Vec<Key> {
    // Within a large transaction they are left out.
    if prepared.part != Part::Whole {
        return Vec::new();
    }
    let still = |key: &Key| refused.iter().any(|refused| refused.key == *key);
    let before = prepared.quarantined.iter();
    before
        .filter(|(key, at)| *at <= prepared.position.time && !still(key))
        .map(|(key, _)| key.clone())
        .collect()
}

/// # Errors
/// [`Error::QuarantineFull`] if these are too many.
pub(super) fn within_room(prepared: &Prepared, refused: &[Refused]) -> Result<()> {
    let before = &prepared.quarantined;
    let new = |refused: &&Refused| before.iter().all(|(key, _)| *key != refused.key);
    if refused.iter().filter(new).count() <= prepared.room {
        return Ok(());
    }
    Err(Error::QuarantineFull(
        refused
            .first()
            .map_or_else(String::new, |first| first.reason.clone()),
    ))
}
