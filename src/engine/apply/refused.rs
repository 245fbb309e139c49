//! The end of the ladder: documents that the target refuses even as they are on the source.

use mongodb::ClientSession;

use super::commands::put_all;
use super::documents::Shares;
use super::entity::{CollectionIndex, Entity};
use super::writer::{Failure, Part, Prepared, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::command::Commands;
use crate::engine::connection::probe::TargetAbilities;
use crate::engine::error::{Error, Result, code};
use crate::engine::position::ClusterTime;
use crate::engine::quarantine::{Key, Refused};
use crate::engine::stream::event::Uuid;
use crate::engine::transaction::{Tries, abort, begin};
use crate::engine::writes::Write;

impl Writer {
    /// Finds those documents of the batch that this collection of the target does not take as they
    /// are on the source: a refusal ends a transaction, so they are all looked for in one go.
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
        let all = prepared.batch.entities().iter();
        let of_it = all.filter(|entity| entity.collection == collection);
        let entities: Vec<&Entity> = of_it.collect();
        let mut session = self.take_session().await?;
        let mut refused = Vec::new();
        let mut shares = Shares::of(&entities);
        // Nothing is written: that some were read as of a later time is of no consequence.
        let mut read = Written::default();
        let at = &prepared.position;
        while let Some((some, fetched)) = shares.next(&self.source, named, at, &mut read).await? {
            let ids = some.iter().map(|entity| &entity.id);
            let found = ids.zip(&fetched.documents);
            let found = found.filter_map(|(id, document)| Some((id.clone(), document.as_deref()?)));
            let others = fetched.others.iter().filter_map(|document| {
                let id = find(document, b"_id").map(Value::of)?;
                Some((id, document.as_slice()))
            });
            let documents: Vec<(Value, &[u8])> = found.chain(others).collect();
            let search = Search {
                target: &self.target,
                abilities: self.abilities,
                collection: (named.uuid, &named.name),
                at: at.time,
            };
            let room = &prepared.room;
            let found = search.run(&documents, &mut session, |some| room.is_exceeded(some));
            refused.extend(found.await?);
            if room.is_exceeded(&refused) {
                break;
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
        prepared.room.check(&refused)?;
        self.state.quarantine(&refused).await
    }

    /// What the mirror remembers of refusals, in the batch's own transaction.
    pub(super) async fn fill_quarantine(
        &self,
        prepared: &Prepared,
        refused: &[Refused],
        returned: &[Key],
        session: &mut ClientSession,
    ) -> Result<(), Failure> {
        self.state.quarantine_in(refused, session).await?;
        let mut healed = healed(prepared, refused);
        healed.extend_from_slice(returned);
        if !healed.is_empty() {
            let command = self.state.release_command(&healed)?;
            let state = self.state.commands();
            state.write_in(Write::Release, command, session).await?;
        }
        Ok(())
    }
}

/// Which documents the target refuses, and why.
#[derive(Debug)]
pub struct Search<'a> {
    /// The target's database.
    pub target: &'a Commands,
    /// What its server can do.
    pub abilities: TargetAbilities,
    /// Their collection on the source, and its name on the target.
    pub collection: (Uuid, &'a str),
    /// As of when the documents were read.
    pub at: ClusterTime,
}

/// What became of documents that were tried.
enum Tried {
    Taken,
    Refused(String),
    /// What the target holds is in the way, to which others have answers.
    Hindered,
}

impl Search<'_> {
    /// Tries all of them, halves of those in which something is wrong, and halves of those halves,
    /// until what was found `is_enough`.
    ///
    /// # Errors
    /// What the exchanges met, other than refusals.
    pub async fn run(
        &self,
        documents: &[(Value, &[u8])],
        session: &mut ClientSession,
        is_enough: impl Fn(&[Refused]) -> bool,
    ) -> Result<Vec<Refused>> {
        let (uuid, name) = self.collection;
        let mut left = vec![documents];
        let mut refused = Vec::new();
        while let Some(some) = left.pop() {
            if is_enough(&refused) {
                break;
            }
            match (self.put(some, session).await?, some) {
                (Tried::Taken, _) | (Tried::Hindered, [_]) => {}
                (Tried::Refused(reason), [(id, _)]) => refused.push(Refused {
                    key: (uuid, id.clone()),
                    at: self.at,
                    collection: name.to_owned(),
                    reason,
                    is_only_here: false,
                }),
                // Behind what is in the way there may be one that is refused.
                (Tried::Refused(_) | Tried::Hindered, _) => {
                    let (first, second) = some.split_at(some.len() / 2);
                    left.extend([second, first]);
                }
            }
        }
        Ok(refused)
    }

    /// Tries to put documents in a transaction that is given up.
    async fn put(
        &self,
        documents: &[(Value, &[u8])],
        session: &mut ClientSession,
    ) -> Result<Tried> {
        let (_, name) = self.collection;
        let mut tries = Tries::default();
        loop {
            begin(session).await?;
            let mut outcome = Ok(());
            let documents = documents.iter().map(|(id, document)| (id, *document));
            for command in put_all(name, documents, self.abilities) {
                let tried = self
                    .target
                    .write_in(Write::TryDocument, command.body, session);
                if let Err(error) = tried.await {
                    outcome = Err(error);
                    break;
                }
            }
            abort(session).await;
            match outcome {
                Ok(()) => return Ok(Tried::Taken),
                // What is there has an `_id` that is equal to it and not the same.
                Err(error) if error.code() == Some(code::IMMUTABLE_FIELD) => {
                    return Ok(Tried::Hindered);
                }
                Err(error) if error.is_refused_document() => {
                    return Ok(Tried::Refused(error.to_string()));
                }
                // A unique key that another document gives up, or a document on the target that
                // holds one name twice.
                Err(error) if error.is_duplicate_key() || error.is_unreadable() => {
                    return Ok(Tried::Hindered);
                }
                Err(error) if error.code() == Some(code::NAME_TWICE) => {
                    return Ok(Tried::Hindered);
                }
                Err(error) => {
                    if !tries.again(&error).await {
                        return Err(error);
                    }
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
