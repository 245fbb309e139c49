//! Keeps the target's indexes as the source has them: builds them when a collection's data is
//! there, makes them unique once the mirror has caught up, and tries again what was refused.

use std::time::Duration;

use tokio::time::Instant;

use super::Owner;
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::apply::indexes::{Tended, is_due, tend};
use crate::engine::error::{Error, Result, Side};
use crate::engine::progress::Phase;
use crate::engine::state::Stage;

/// First and longest pause before an index is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Pause before unique indexes that were in the way are built again: each time costs a build.
const RELAXED: Duration = Duration::from_secs(10);

/// When a collection's indexes are tried again.
pub(super) struct Again {
    at: Instant,
    pause: Duration,
}

impl Owner<'_> {
    /// Starts work on the indexes of collections that have some left to do.
    pub(super) fn tend_indexes(&mut self) {
        if self.plan.in_command {
            return;
        }
        let now = Instant::now();
        let enforce = self.progress.phase == Phase::Mirroring;
        let due: Vec<CollectionIndex> = self
            .plan
            .catalog
            .alive()
            .filter(|(index, collection)| {
                let waits = self.again.get(index).is_some_and(|again| again.at > now);
                let entry = &collection.entry;
                entry.copied
                    && !waits
                    && !self.building.contains(index)
                    && entry.indexes.iter().any(|index| is_due(index, enforce))
            })
            .map(|(index, _)| index)
            .collect();
        for collection in due {
            self.start_tending(collection, enforce);
        }
    }

    pub(super) fn start_tending(&mut self, collection: CollectionIndex, enforce: bool) {
        self.building.insert(collection);
        let entry = self.plan.catalog.get(collection).entry.clone();
        let target = self.plan.target.clone();
        self.builds.spawn(async move {
            let collated = entry.is_collated();
            let tended = tend(&target, &entry.name, &entry.indexes, collated, enforce).await?;
            Ok((collection, tended))
        });
    }

    pub(super) async fn built(
        &mut self,
        built: Result<Result<(CollectionIndex, Vec<Tended>)>, tokio::task::JoinError>,
    ) -> Result<()> {
        let built = built.map_err(|panic| Error::Reply {
            side: Side::Target,
            doing: "build indexes",
            what: panic.to_string(),
        })?;
        let (collection, tended) = built?;
        self.building.remove(&collection);
        self.note_tended(collection, tended);
        if self.plan.catalog.get(collection).entry.copied {
            let entry = self.plan.catalog.get(collection).entry.clone();
            return self.plan.state.put_collection(&entry).await;
        }
        self.try_complete(collection).await
    }

    /// Takes over how far indexes came; what is not done is tried again.
    pub(super) fn note_tended(&mut self, collection: CollectionIndex, tended: Vec<Tended>) {
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        let mut incomplete = false;
        for Tended {
            name,
            stage,
            problem,
        } in tended
        {
            incomplete |= problem.is_some() || stage == Stage::Missing;
            let collection_name = entry.name.clone();
            let Some(index) = entry.index(&name) else {
                continue;
            };
            if let (Some(problem), None) = (&problem, &index.problem) {
                tracing::warn!(
                    mirror = %self.config.name,
                    collection = collection_name,
                    index = name,
                    problem,
                    "an index is not as on the source; it will be tried again"
                );
            }
            index.stage = stage;
            index.problem = problem;
        }
        if !incomplete {
            self.again.remove(&collection);
            return;
        }
        let pause = self
            .again
            .get(&collection)
            .map_or(BACKOFF.0, |again| (again.pause * 2).min(BACKOFF.1));
        let at = Instant::now() + pause;
        self.again.insert(collection, Again { at, pause });
    }

    /// The writer had to take the unique indexes of a collection away; they come back after a while.
    pub(super) fn relaxed(&mut self, collection: CollectionIndex) {
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        for index in &mut entry.indexes {
            if index.is_enforcing() {
                index.stage = match index.spec.get_bool("unique") {
                    Ok(true) => Stage::Missing,
                    _ => Stage::Ordinary,
                };
                index.problem = Some(
                    "a document of the target that is not the source's has the key of one that \
                     is: not enforced for now"
                        .to_owned(),
                );
            }
        }
        self.suspicious = true;
        let (at, pause) = (Instant::now() + RELAXED, RELAXED);
        self.again.insert(collection, Again { at, pause });
    }

    /// Waits for the work on the indexes of one collection.
    pub(super) async fn await_build(&mut self, collection: CollectionIndex) -> Result<()> {
        while self.building.contains(&collection) {
            let Some(built) = self.builds.join_next().await else {
                self.building.remove(&collection);
                break;
            };
            self.built(built).await?;
        }
        Ok(())
    }
}
