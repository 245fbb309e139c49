//! Writes the documents of a batch, within its transaction: as the stream says, one by one, or as
//! they are on the source.

use std::collections::VecDeque;

use mongodb::{ClientSession, Database};

use super::commands::{Command, encode, put, put_all, remove, remove_all};
use super::entity::{Entity, Outcome};
use super::writer::{Failure, Named, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::find;
use crate::engine::command::number;
use crate::engine::error::Result;
use crate::engine::position::Position;
use crate::engine::quarantine::Refused;
use crate::engine::repair::{Fetched, fetch, there};
use crate::engine::writes::Write;

/// Documents that are read again and put at once: at first, and at most.
const AT_ONCE: (usize, usize) = (16, 500);

/// As many bytes of them are read at once, and one document more.
const BYTES_AT_ONCE: usize = 8 << 20;

/// Documents to be read again, some at a time: how large they are shows only when they are read.
pub(super) struct Shares<'a> {
    left: VecDeque<&'a Entity>,
    share: usize,
}

impl<'a> Shares<'a> {
    pub(super) fn of(all: &[&'a Entity]) -> Self {
        Self {
            left: all.iter().copied().collect(),
            share: AT_ONCE.0,
        }
    }

    /// The next ones, as they are on the source at the batch's position; it is noted if they are
    /// of a later time.
    pub(super) async fn next(
        &mut self,
        source: &Database,
        named: &Named,
        position: &Position,
        written: &mut Written,
    ) -> Result<Option<(Vec<&'a Entity>, Fetched)>> {
        loop {
            let now = self.share.min(self.left.len());
            if now == 0 {
                return Ok(None);
            }
            let mut now: Vec<&Entity> = self.left.drain(..now).collect();
            let keys: Vec<_> = now.iter().map(|entity| &entity.id).collect();
            let (name, at) = (&named.name, position.time);
            let mut fetched = fetch(source, name, named.uuid, &keys, at, BYTES_AT_ONCE).await?;
            if fetched.as_of > at {
                written.ahead_until = written.ahead_until.max(Some(fetched.as_of));
            }
            if fetched.is_whole {
                self.share = (self.share * 2).min(AT_ONCE.1);
                return Ok(Some((now, fetched)));
            }
            // Of those that did not come it is not known whether they are there.
            self.share = (self.share / 2).max(1);
            let mut came = fetched.documents.iter().map(Option::is_some);
            let again: Vec<&Entity> = now
                .extract_if(.., |_| !came.next().unwrap_or_default())
                .collect();
            for entity in again.into_iter().rev() {
                self.left.push_front(entity);
            }
            fetched.documents.retain(Option::is_some);
            fetched.others.clear();
            if !now.is_empty() {
                return Ok(Some((now, fetched)));
            }
        }
    }
}

impl Writer {
    /// Runs one command; what it should have found and did not is divergence.
    pub(super) async fn run(
        &self,
        command: Command,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        written.operations += u64::try_from(command.expected).unwrap_or(0);
        let reply = self
            .target
            .write_in(Write::WriteBatch, command.body, session)
            .await;
        match reply {
            Ok(reply) if number(&reply, "n") == command.expected => Ok(()),
            Ok(_) => Err(Failure::Diverged),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes every document by itself, so that the target's own state no longer matters; returns
    /// those that must be read from the source.
    pub(super) async fn write_one_by_one<'a>(
        &self,
        name: &str,
        entities: &[&'a Entity],
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<Vec<&'a Entity>, Failure> {
        let mut again = Vec::new();
        // What goes comes first: it can have an id that is equal to that of what comes, in another
        // representation (`facts` mongodb 3.5).
        let goes = |entity: &&&Entity| matches!(entity.outcome, Outcome::Delete | Outcome::Nothing);
        let (first, then) = (
            entities.iter().filter(goes),
            entities.iter().filter(|entity| !goes(entity)),
        );
        for entity in first.chain(then) {
            let commands = match &entity.outcome {
                Outcome::Delete | Outcome::Nothing => remove(name, &entity.id, self.abilities),
                Outcome::Insert { document, deltas } | Outcome::Replace { document, deltas }
                    if deltas.is_empty() =>
                {
                    put(name, &entity.id, document, self.abilities)
                }
                Outcome::Update(_) => encode(name, std::iter::once(*entity), self.abilities),
                _ => {
                    again.push(*entity);
                    continue;
                }
            };
            let is_update = matches!(entity.outcome, Outcome::Update(_));
            for (step, command) in commands.into_iter().enumerate() {
                written.operations += 1;
                let expected = command.expected;
                let reply = self
                    .target
                    .write_in(Write::WriteDocument, command.body, session)
                    .await?;
                if is_update && number(&reply, "n") != expected {
                    again.push(entity);
                    break;
                }
                // The first command finds what was there before.
                let found = number(&reply, "n") > 0 && !reply.contains_key("upserted");
                let is_other = entity
                    .outcome
                    .was_there()
                    .is_some_and(|there| there != found);
                written.repaired += u64::from(step == 0 && !is_update && is_other);
            }
        }
        Ok(again)
    }

    /// Makes documents what the source says they are at the position, without those that are
    /// refused.
    pub(super) async fn rewrite(
        &self,
        named: &Named,
        entities: &[&Entity],
        (position, refused): (&Position, &[Refused]),
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<(), Failure> {
        let (name, uuid) = (named.name.as_str(), named.uuid);
        let mut shares = Shares::of(entities);
        while let Some((now, fetched)) = shares.next(&self.source, named, position, written).await?
        {
            let compared = now
                .iter()
                .filter(|entity| entity.outcome == Outcome::Reconcile)
                .map(|entity| &entity.id)
                .collect::<Vec<_>>();
            let there = there(&self.target.db, name, &compared, session).await?;
            let (mut gone, mut found) = (Vec::new(), Vec::new());
            for (entity, document) in now.iter().zip(fetched.documents) {
                if entity.outcome == Outcome::Reconcile {
                    let is_equal = there.get(&entity.id) == document.as_ref();
                    written.reconciled.note(is_equal, document.is_some());
                    if is_equal {
                        continue;
                    }
                }
                written.repaired += u64::from(entity.outcome != Outcome::Refetch);
                match document {
                    Some(document) => found.push((entity.id.clone(), document)),
                    None => gone.push(&entity.id),
                }
            }
            found.extend(fetched.others.into_iter().filter_map(|document| {
                let id = find(&document, b"_id").map(Value::of)?;
                let is_refused = refused.iter().any(|one| one.key == (uuid, id.clone()));
                (!is_refused).then_some((id, document))
            }));
            // What goes comes first: an `_id` that is only equal, and not the same, is replaced.
            let commands = remove_all(name, gone, self.abilities);
            self.repair(commands, session, written).await?;
            let found = found.iter().map(|(id, document)| (id, document.as_slice()));
            let commands = put_all(name, found, self.abilities);
            self.repair(commands, session, written).await?;
        }
        Ok(())
    }

    async fn repair(
        &self,
        commands: Vec<Command>,
        session: &mut ClientSession,
        written: &mut Written,
    ) -> Result<()> {
        for command in commands {
            written.operations += 1;
            self.target
                .write_in(Write::RepairDocument, command.body, session)
                .await?;
        }
        Ok(())
    }
}
