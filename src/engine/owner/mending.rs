//! What somebody else has done to options, indexes and views of the target is put right.
//!
//! The mirror stands still meanwhile, so what the catalog remembers is what the source had at the
//! position; and what is made as the source has it now is changed by whatever comes next in the
//! stream, as after any start.

use tokio::time::Instant;

use super::Owner;
use crate::engine::apply::ddl;
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::catalog::{Listed, list, list_indexes, target_options};
use crate::engine::definitions::{Kept, Mend, is_as_wanted, keep};
use crate::engine::error::{Result, Side};
use crate::engine::state::{BUCKETS, Stage};
use crate::engine::stream::event::Uuid;

impl Owner<'_> {
    /// Returns whether the target's server took it.
    pub(super) async fn mend(&mut self, mend: Mend) -> Result<bool> {
        self.begin_command().await?;
        let (uuid, is_anew) = match &mend {
            Mend::Collection(uuid) | Mend::Anew(uuid) => (Some(*uuid), true),
            Mend::Index(uuid, _) => (Some(*uuid), false),
            Mend::Missing(..) | Mend::View(_) | Mend::Drop(_) => (None, false),
        };
        let collection = uuid.filter(|_| is_anew);
        let collection = collection.and_then(|uuid| self.plan.catalog.find(&uuid));
        let outcome = match mend {
            Mend::Index(uuid, index) => self.reindex(uuid, &index).await,
            Mend::Collection(uuid) => self.mend_collection(uuid).await,
            Mend::Anew(uuid) => match self.at_rest(uuid).await? {
                Some(collection) => self.copy_anew(collection).await,
                None => Ok(()),
            },
            Mend::Missing(uuid, name) => self.take_missing(uuid, &name).await,
            Mend::View(name) => self.mend_view(&name).await,
            Mend::Drop(name) => self.drop_stranger(&name).await,
        };
        // Of a collection that was dropped to be made anew nothing is left: that has to be tried
        // again by a mirror that starts over.
        let is_made_anew = collection.is_some_and(|it| !self.plan.catalog.get(it).entry.copied);
        let is_mended = match outcome {
            // The next verification tells it again.
            Err(error) if error.is_refused_definition() && !is_made_anew => {
                tracing::warn!(mirror = %self.config.name, "a difference stays: {error}");
                false
            }
            outcome => outcome.map(|()| true)?,
        };
        if let Some(uuid) = uuid.filter(|_| is_mended) {
            self.quarantine.hasten(uuid, Instant::now());
        }
        self.plan.in_command = false;
        self.update_phase();
        Ok(is_mended)
    }

    /// What is on the target under that name goes; it is built again as soon as it is looked at.
    async fn reindex(&mut self, uuid: Uuid, index: &str) -> Result<()> {
        let Some(collection) = self.plan.catalog.find(&uuid) else {
            return Ok(());
        };
        self.await_build(collection).await?;
        let name = self.plan.catalog.get(collection).entry.name.clone();
        let wanted = list_indexes(&self.plan.source, &name, Side::Source).await?;
        let is_wanted = wanted
            .iter()
            .any(|wanted| wanted.get_str("name").is_ok_and(|name| name == index));
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        if let Some(index) = entry.index(index) {
            index.stage = Stage::Missing;
        }
        if !is_wanted {
            // If it is on its way, its event brings it back.
            entry.indexes.retain(|there| there.name() != index);
        }
        let entry = entry.clone();
        self.plan.state.put_collection(&entry).await?;
        ddl::drop_index(&self.plan.target, &entry.name, index).await
    }

    async fn mend_collection(&mut self, uuid: Uuid) -> Result<()> {
        let Some(collection) = self.at_rest(uuid).await? else {
            return Ok(());
        };
        let entry = self.plan.catalog.get(collection).entry.clone();
        let wanted = Listed {
            name: entry.name.clone(),
            uuid: Some(uuid),
            kind: "collection".into(),
            options: entry.options.clone(),
        };
        let kept = match self.listed(&entry.name, Side::Target).await? {
            None => Kept::Anew,
            Some(there)
                if is_as_wanted(&wanted.options, &there.options) && there.kind == wanted.kind =>
            {
                Kept::AsItIs
            }
            Some(there) => keep(&wanted, &there),
        };
        match kept {
            Kept::AsItIs => Ok(()),
            Kept::Changed(changes) => ddl::modify(&self.plan.target, &entry.name, &changes).await,
            Kept::Anew => self.copy_anew(collection).await,
        }
    }

    /// The collection, once nothing is built on it; none that is being copied anyway.
    async fn at_rest(&mut self, uuid: Uuid) -> Result<Option<CollectionIndex>> {
        let known = self.plan.catalog.find(&uuid);
        let known = known.filter(|it| !self.plan.ranges.contains_key(it));
        if let Some(collection) = known {
            self.await_build(collection).await?;
        }
        Ok(known)
    }

    async fn copy_anew(&mut self, collection: CollectionIndex) -> Result<()> {
        // Noted before anything is dropped: whoever finds this takes it anew, too.
        let known = &mut self.plan.catalog.get_mut(collection).entry;
        known.begins_anew();
        let known = known.clone();
        self.plan.state.put_collection(&known).await?;
        self.take(known.uuid, &known.name).await
    }

    /// If it still is what it was when it was missed.
    async fn take_missing(&mut self, uuid: Uuid, name: &str) -> Result<()> {
        let catalog = &self.plan.catalog;
        if catalog.find(&uuid).is_some() || catalog.by_name(name).is_some() {
            return Ok(());
        }
        match self.plan.look_up(uuid).await? {
            Some((listed, _)) if listed.name == name => self.take(uuid, name).await,
            _ => Ok(()),
        }
    }

    async fn mend_view(&mut self, name: &str) -> Result<()> {
        let wanted = self.listed(name, Side::Source).await?;
        let Some(wanted) = wanted.filter(|listed| listed.kind == "view") else {
            return Ok(());
        };
        if self.plan.catalog.by_name(name).is_some() {
            return Ok(());
        }
        ddl::drop(&self.plan.target, name).await?;
        ddl::create(&self.plan.target, name, &target_options(&wanted.options)).await
    }

    async fn drop_stranger(&mut self, name: &str) -> Result<()> {
        let catalog = &self.plan.catalog;
        let buckets = format!("{BUCKETS}{name}");
        let is_ours = catalog.by_name(name).is_some() || catalog.by_name(&buckets).is_some();
        if is_ours || self.listed(name, Side::Source).await?.is_some() {
            return Ok(());
        }
        ddl::drop(&self.plan.target, name).await
    }

    async fn listed(&self, name: &str, side: Side) -> Result<Option<Listed>> {
        let db = match side {
            Side::Source => &self.plan.source,
            Side::Target => &self.plan.target.db,
        };
        let listed = list(db, side).await?;
        Ok(listed.into_iter().find(|listed| listed.name == name))
    }
}
