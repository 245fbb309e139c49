//! Capped collections: every document has its place, which the order of its insertion gave it.
//!
//! A document that the target refuses leaves a gap. Its place cannot be taken later, so its changes
//! are left out until it is inserted once more, at another place, or deleted. Changes are written
//! one after the other here, and only here is it known what is missing at each of them.

use std::collections::HashSet;

use bson::RawDocument;

use super::commands::{Command, encode_first, encode_last, moves, remove, touch};
use super::entity::{Entity, Outcome};
use super::outside::{Outlet, Ran, out_of_order};
use super::stepping::Steps;
use super::writer::{Part, Prepared, Writer, Written};
use crate::engine::bson::order::Value;
use crate::engine::bson::scan::has_name_twice;
use crate::engine::connection::probe::TargetAbilities;
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::quarantine::Key;
use crate::engine::repair::which;
use crate::engine::state::Way;

/// Documents of capped collections that the target lacks because it refused them.
pub(super) struct Missing<'a> {
    before: &'a HashSet<Key>,
    now: HashSet<Key>,
}

impl<'a> Missing<'a> {
    /// Before a batch.
    pub(super) fn of(prepared: &'a Prepared) -> Self {
        Self {
            before: &prepared.missing,
            now: prepared.missing.clone(),
        }
    }

    /// What is gone on the source, or there again.
    pub(super) fn returned(self) -> Vec<Key> {
        self.before.difference(&self.now).cloned().collect()
    }

    fn ends(&mut self, key: &Key, written: &mut Written) {
        if self.now.remove(key) {
            written.refused.retain(|one| one.key != *key);
        }
    }
}

impl Writer {
    /// Writes all that a batch has of one capped collection, behind the window of its copy.
    pub(super) async fn write_in_order(
        &self,
        to: Outlet<'_>,
        entities: &[&Entity],
        missing: &mut Missing<'_>,
        written: &mut Written,
    ) -> Result<()> {
        let (mut gone, mut kept) = (Vec::new(), Vec::new());
        for entity in entities {
            if is_out_of_order(entity, self.abilities) {
                return Err(out_of_order());
            }
            if is_left_out(to, entity, missing, written) {
                continue;
            }
            match entity.outcome {
                Outcome::Delete => gone.push(*entity),
                Outcome::Nothing => {}
                _ => kept.push(*entity),
            }
        }
        let twice = self.would_meet_name_twice(to, &kept).await?;
        for entity in kept.extract_if(.., |entity| twice.contains(&entity.id)) {
            self.set_aside(to, entity, (&name_twice(), true), missing, written)
                .await?;
        }
        let (place, abilities) = (to.place, self.abilities);
        for command in encode_first(place, gone.into_iter(), abilities) {
            if !matches!(self.run_outside(&command, written).await?, Ran::AsExpected) {
                return Err(out_of_order());
            }
        }
        let inserted = kept.iter().copied();
        let inserted = inserted.filter(|it| matches!(it.outcome, Outcome::Insert { .. }));
        let inserted: Vec<&Entity> = inserted.collect();
        let first = |some: &[&Entity]| encode_first(place, some.iter().copied(), abilities);
        self.step(to, &inserted, first, missing, written).await?;
        kept.retain(|entity| !missing.now.contains(&to.key(entity)));
        let last = |some: &[&Entity]| encode_last(place, some.iter().copied(), abilities);
        self.step(to, &kept, last, missing, written).await
    }

    /// A change that the copy may hold already: an insert does not move what is there, and what is
    /// gone stays gone. What is missing was refused where the copy had read it, so that an insert
    /// would put it elsewhere.
    pub(super) async fn write_in_window(
        &self,
        to: Outlet<'_>,
        entity: &Entity,
        missing: &mut Missing<'_>,
        written: &mut Written,
    ) -> Result<()> {
        if to.named.way != Way::InOrder || is_out_of_order(entity, self.abilities) {
            return Err(out_of_order());
        }
        let is_inserted = matches!(entity.outcome, Outcome::Insert { .. });
        let is_missing = missing.now.contains(&to.key(entity));
        if is_missing && is_inserted || is_left_out(to, entity, missing, written) {
            return Ok(());
        }
        let twice = self.would_meet_name_twice(to, &[entity]).await?;
        if !twice.is_empty() {
            return self
                .set_aside(to, entity, (&name_twice(), true), missing, written)
                .await;
        }
        let (place, one) = (to.place, std::iter::once(entity));
        let first = encode_first(place, one.clone(), self.abilities);
        let last = encode_last(place, one, self.abilities);
        for command in first.into_iter().chain(last) {
            match self.run_outside(&command, written).await? {
                Ran::AsExpected | Ran::Otherwise => {}
                // The copy holds it as it was later.
                Ran::Hindered(_) | Ran::Refused(_)
                    if is_inserted && self.is_there(to, entity, written).await? =>
                {
                    return Ok(());
                }
                // Of a change that was laid over a later state: perhaps nobody ever had that.
                Ran::Refused(error) | Ran::Hindered(error) => {
                    let refusal = (&error, !is_inserted);
                    return self.set_aside(to, entity, refusal, missing, written).await;
                }
            }
        }
        Ok(())
    }

    async fn is_there(
        &self,
        to: Outlet<'_>,
        entity: &Entity,
        written: &mut Written,
    ) -> Result<bool> {
        for command in touch(to.place, &entity.id, self.abilities) {
            if !matches!(self.run_outside(&command, written).await?, Ran::AsExpected) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a pipeline would meet a document that holds one name twice, which ends servers that do
    /// not survive that (`facts` mongodb 3.4).
    async fn would_meet_name_twice(
        &self,
        to: Outlet<'_>,
        entities: &[&Entity],
    ) -> Result<HashSet<Value>> {
        let mut twice = HashSet::new();
        if self.abilities.survives_duplicate_names() {
            return Ok(twice);
        }
        let mut unknown = Vec::new();
        for entity in entities {
            let (Outcome::Insert { deltas, .. }
            | Outcome::Replace { deltas, .. }
            | Outcome::Update(deltas)) = &entity.outcome
            else {
                continue;
            };
            if !deltas.has_pipeline() {
                continue;
            }
            if deltas.has_name_twice() || entity.document().is_some_and(has_name_twice) {
                twice.insert(entity.id.clone());
            } else if entity.document().is_none() {
                unknown.push(&entity.id);
            }
        }
        let (target, name) = (&self.target.db, to.place.name);
        let is_twice = |document: &RawDocument| has_name_twice(document.as_bytes());
        twice.extend(which(target, name, &unknown, is_twice).await?);
        Ok(twice)
    }

    /// Runs the commands for these changes, in order, and steps over what is refused.
    async fn step(
        &self,
        to: Outlet<'_>,
        entities: &[&Entity],
        encode: impl Fn(&[&Entity]) -> Vec<Command>,
        missing: &mut Missing<'_>,
        written: &mut Written,
    ) -> Result<()> {
        let mut steps = Steps::new(entities.len());
        'sent: while let Some(sent) = steps.next() {
            let sent = &entities[sent];
            for command in encode(sent) {
                let (error, is_only_here) = match self.run_outside(&command, written).await? {
                    Ran::AsExpected => continue,
                    Ran::Refused(error) => (error, false),
                    // It cannot be changed in its place, but copied.
                    Ran::Hindered(error) if error.code() == Some(code::NAME_TWICE) => (error, true),
                    Ran::Otherwise | Ran::Hindered(_) => return Err(out_of_order()),
                };
                let of = |statement: usize| {
                    let id = command.id(statement);
                    let of = sent
                        .iter()
                        .position(|entity| Some(&entity.id) == id.as_ref());
                    of.ok_or_else(out_of_order)
                };
                // The commands before this one are carried out.
                let refused = error.statement().map(of).transpose()?;
                if let Some(one) = steps.refused(of(0)?, refused) {
                    let refusal = (&error, is_only_here);
                    self.set_aside(to, entities[one], refusal, missing, written)
                        .await?;
                }
                continue 'sent;
            }
            steps.taken();
        }
        Ok(())
    }

    /// The document is not as it should be, and cannot become so in its place. What is refused only
    /// as it is met here comes back with the next copy.
    async fn set_aside(
        &self,
        to: Outlet<'_>,
        entity: &Entity,
        refusal: (&Error, bool),
        missing: &mut Missing<'_>,
        written: &mut Written,
    ) -> Result<()> {
        for command in remove(to.place, &entity.id, self.abilities) {
            self.run_outside(&command, written).await?;
        }
        missing.now.insert(to.key(entity));
        to.refuse(&entity.id, refusal, written)
    }

    /// What is remembered of documents of capped collections. Within a large transaction, the
    /// transaction that notes it otherwise is not begun yet; should it fail, what is announced is
    /// copied anew.
    pub(super) async fn note_missing(
        &mut self,
        prepared: &Prepared,
        missing: Missing<'_>,
        written: &mut Written,
    ) -> Result<()> {
        let returned = missing.returned();
        if prepared.part == Part::Whole {
            written.healed = returned;
            return Ok(());
        }
        self.state
            .renew_quarantine(&written.refused, &returned)
            .await?;
        // The owner does not count them as there before the position says so.
        self.returned.extend(returned);
        Ok(())
    }
}

fn name_twice() -> Error {
    Error::Reply {
        side: Side::Target,
        doing: "change a document of a capped collection",
        what: "it holds one name twice, which would end a server of this version".into(),
    }
}

/// Whether the change is one of a document that is missing; an insert brings it, and a deletion
/// ends it.
fn is_left_out(
    to: Outlet<'_>,
    entity: &Entity,
    missing: &mut Missing<'_>,
    written: &mut Written,
) -> bool {
    let key = to.key(entity);
    let was_missing = missing.now.contains(&key);
    let is_inserted = matches!(entity.outcome, Outcome::Insert { .. });
    if is_inserted || matches!(entity.outcome, Outcome::Delete | Outcome::Nothing) {
        missing.ends(&key, written);
    }
    was_missing && !is_inserted
}

/// Whether the change needs another place, or the source.
fn is_out_of_order(entity: &Entity, abilities: TargetAbilities) -> bool {
    entity.outcome.is_asked() || moves(&entity.outcome, abilities)
}
