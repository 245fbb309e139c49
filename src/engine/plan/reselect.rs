//! Another selection under an existing checkpoint: what came in is copied, what went out is let go.
//!
//! Whatever came in is taken as it is now, although the mirror stands at an earlier time; that is
//! harmless for the same reasons as with a collection that is renamed into the selection
//! (`taking.rs`). It is not where a name means one collection at the mirror's position and another
//! one now: then both sides are compared as after lost history.

use bson::doc;

use super::{Planned, selects};
use crate::engine::apply::ddl;
use crate::engine::catalog::{self, Listed, target_options};
use crate::engine::config::{MirrorConfig, OnDeselected};
use crate::engine::error::{Result, Side};
use crate::engine::finish::arm_clocks;
use crate::engine::state::CatalogEntry;
use crate::engine::writes::Write;

impl Planned {
    /// What is selected and not mirrored yet; `None` if it cannot be taken in one by one.
    pub(super) async fn joining(
        &self,
        config: &MirrorConfig,
        reselects: bool,
    ) -> Result<Option<Vec<Listed>>> {
        if !reselects {
            return Ok(Some(Vec::new()));
        }
        let listed = catalog::list(&self.source, Side::Source).await?;
        let is_new = |listed: &Listed| {
            let is_known = listed
                .uuid
                .is_some_and(|uuid| self.catalog.find(&uuid).is_some());
            selects(config, &listed.name)
                && !listed.is_shown_elsewhere()
                && !is_known
                && listed.unsupported(self.possible()).is_none()
        };
        let joining: Vec<Listed> = listed.into_iter().filter(is_new).collect();
        let is_taken = |listed: &Listed| self.catalog.by_name(&listed.name).is_some();
        Ok((!joining.iter().any(is_taken)).then_some(joining))
    }

    /// Takes in what came into the selection, and lets go what went out of it.
    pub(super) async fn reselect(
        &mut self,
        config: &MirrorConfig,
        joining: Vec<Listed>,
    ) -> Result<()> {
        let leaving: Vec<_> = self
            .catalog
            .alive()
            .filter(|(_, collection)| !selects(config, &collection.entry.name))
            .map(|(index, collection)| (index, collection.entry.clone()))
            .collect();
        for (index, entry) in leaving {
            self.let_go(config, &entry).await?;
            self.catalog.remove(&entry.uuid);
            self.ranges.remove(&index);
            self.sizes.remove(&index);
        }
        self.let_go_of_others(config).await?;
        for listed in joining {
            match listed.uuid {
                Some(uuid) => self.take(config, uuid, &listed.name).await?,
                None => {
                    let options = target_options(&listed.options);
                    ddl::create(&self.target, &listed.name, &options).await?;
                }
            }
        }
        Ok(())
    }

    /// The collection takes no part any more. Only what was copied to its end is worth keeping.
    pub(super) async fn let_go(&self, config: &MirrorConfig, entry: &CatalogEntry) -> Result<()> {
        let name = entry.public_name();
        if config.on_deselected == OnDeselected::Drop || !entry.copied {
            tracing::info!(mirror = %config.name, collection = name, "no longer selected: dropped");
            ddl::drop(&self.target, name).await?;
        } else {
            tracing::info!(
                mirror = %config.name,
                collection = name,
                position = %self.position.time,
                "no longer selected: its copy stays as it is"
            );
            if let Err(error) = arm_clocks(&self.target, entry).await {
                tracing::warn!(mirror = %config.name, collection = name, "it cannot be armed: {error}");
            }
        }
        self.state.remove_collection(entry.uuid).await
    }

    /// Views, and what was left out.
    async fn let_go_of_others(&mut self, config: &MirrorConfig) -> Result<()> {
        for there in catalog::list(&self.target.db, Side::Target).await? {
            if there.kind == "view" && !selects(config, &there.name) {
                ddl::drop(&self.target, &there.name).await?;
            }
        }
        let left_out = self.catalog.left_out_by_uuid();
        let deselected: Vec<_> = left_out
            .filter(|(_, it)| !selects(config, &it.name))
            .map(|(uuid, _)| *uuid)
            .collect();
        for uuid in deselected {
            self.catalog.remove(&uuid);
            self.state.remove_collection(uuid).await?;
        }
        Ok(())
    }

    /// Nothing of what was loaded counts.
    pub(super) fn forget(&mut self) {
        self.catalog = catalog::Catalog::default();
        self.ranges.clear();
        self.sizes.clear();
        self.ahead = Default::default();
    }

    /// From now on the target is made with this selection.
    pub(super) async fn note_selection(&self, config: &MirrorConfig) -> Result<()> {
        let set = doc! {"selection": config.selection.fingerprint()};
        self.state
            .update(Write::CompletePlan, self.epoch, set)
            .await
    }
}
