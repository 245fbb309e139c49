//! Another selection under an existing checkpoint: what came in is copied, what went out is let go.
//!
//! Whatever came in is taken as it is now, although the mirror stands at an earlier time; that is
//! harmless for the same reasons as with a collection that is renamed into the selection
//! (`taking.rs`). It is not where a name means one collection at the mirror's position and another
//! one now: then both sides are compared as after lost history.
//!
//! As long as this is under way the checkpoint names no selection at all, so that it is gone on with
//! whatever is selected next.

use std::collections::HashSet;

use bson::doc;

use super::{Planned, selects};
use crate::engine::apply::ddl;
use crate::engine::catalog::{self, Catalog, Listed, target_options};
use crate::engine::config::{MirrorConfig, OnDeselected};
use crate::engine::connection::probe::{await_committed, operation_time};
use crate::engine::error::{Result, Side};
use crate::engine::finish::arm_clocks;
use crate::engine::position::Ahead;
use crate::engine::selection::Selection;
use crate::engine::state::{BUCKETS, CatalogEntry, encode_figures};
use crate::engine::writes::Write;

impl Planned {
    /// What is selected and not mirrored yet; `None` if it cannot be taken in one by one.
    pub(super) async fn joining(&self, config: &MirrorConfig) -> Result<Option<Vec<Listed>>> {
        let first = catalog::list(&self.source, Side::Source).await?;
        // What an election can take back is in no stream either.
        let now = operation_time(self.source.client(), Side::Source).await?;
        await_committed(&self.source_commands(), now).await?;
        let listed = catalog::list(&self.source, Side::Source).await?;
        let is_known = |listed: &Listed| {
            let uuid = listed.uuid.as_ref();
            uuid.is_some_and(|uuid| self.catalog.find(uuid).is_some())
        };
        let is_new = |listed: &Listed| {
            selects(config, &listed.name)
                && !listed.is_shown_elsewhere()
                && !is_known(listed)
                && listed.unsupported(self.possible()).is_none()
        };
        let joining: Vec<Listed> = listed.into_iter().filter(is_new).collect();
        let taken: HashSet<&str> = self
            .catalog
            .alive()
            .map(|(_, collection)| collection.entry.public_name())
            .collect();
        let is_clear = |listed: &Listed| {
            let public = listed.name.strip_prefix(BUCKETS).unwrap_or(&listed.name);
            let was_there = first.iter().any(|before| before.name == listed.name);
            was_there && !taken.contains(public)
        };
        Ok(joining.iter().all(is_clear).then_some(joining))
    }

    /// Lets go what went out of the selection.
    pub(super) async fn let_go_of_all(&mut self, config: &MirrorConfig) -> Result<()> {
        let leaving: Vec<_> = self
            .catalog
            .alive()
            .filter(|(_, collection)| !selects(config, &collection.entry.name))
            .map(|(index, collection)| (index, collection.entry.clone()))
            .collect();
        for (index, entry) in leaving {
            let ranges = self.ranges.get(&index);
            let is_compared = ranges.is_some_and(|ranges| ranges.iter().all(|it| it.compare));
            self.let_go(config, &entry, is_compared).await?;
            self.catalog.remove(&entry.uuid);
            self.ranges.remove(&index);
            self.sizes.remove(&index);
        }
        let deselected: Vec<_> = self
            .catalog
            .left_out_by_uuid()
            .filter(|(_, it)| !selects(config, &it.name))
            .map(|(uuid, _)| *uuid)
            .collect();
        for uuid in deselected {
            self.catalog.remove(&uuid);
            self.state.remove_collection(uuid).await?;
        }
        Ok(())
    }

    /// Takes in what came into the selection. What the target has of such a name, as from an earlier
    /// selection, is replaced.
    pub(super) async fn take_in_all(
        &mut self,
        config: &MirrorConfig,
        joining: Vec<Listed>,
    ) -> Result<()> {
        for listed in joining {
            match listed.uuid {
                Some(uuid) => self.take(config, uuid, &listed.name).await?,
                None => {
                    let options = target_options(&listed.options);
                    ddl::drop(&self.target, &listed.name).await?;
                    ddl::create(&self.target, &listed.name, &options).await?;
                }
            }
        }
        Ok(())
    }

    /// The collection takes no part any more. What is only half copied is of no use to anybody, but
    /// for what was there before (`is_compared`).
    pub(super) async fn let_go(
        &self,
        config: &MirrorConfig,
        entry: &CatalogEntry,
        is_compared: bool,
    ) -> Result<()> {
        let name = entry.public_name();
        let is_whole = entry.copied || is_compared;
        if config.on_deselected == OnDeselected::Drop || !is_whole {
            tracing::info!(mirror = %config.name, collection = name, "no longer selected: dropped");
            // Noted before it is dropped: should it be selected again by then, it is taken anew.
            let mut begun = entry.clone();
            begun.begins_anew();
            self.state.plan_collection(self.epoch, &begun, &[]).await?;
            ddl::drop(&self.target, name).await?;
            self.state.remove_collection(entry.uuid).await
        } else {
            tracing::info!(
                mirror = %config.name,
                collection = name,
                "no longer selected: its copy stays as it is"
            );
            // Nothing that is mirrored is armed.
            self.state.remove_collection(entry.uuid).await?;
            if let Err(error) = arm_clocks(&self.target, entry).await {
                tracing::warn!(mirror = %config.name, collection = name, "it cannot be armed: {error}");
            }
            Ok(())
        }
    }

    /// Views of the source that are no longer selected.
    pub(super) async fn let_go_of_views(&self, config: &MirrorConfig) -> Result<()> {
        let listed = catalog::list(&self.source, Side::Source).await?;
        let is_view = |name: &str| {
            let mut of_source = listed.iter();
            of_source.any(|it| it.name == name && it.kind == "view")
        };
        for there in catalog::list(&self.target.db, Side::Target).await? {
            if there.kind == "view" && !selects(config, &there.name) && is_view(&there.name) {
                ddl::drop(&self.target, &there.name).await?;
            }
        }
        Ok(())
    }

    /// Nothing of what was loaded counts.
    pub(super) fn forget(&mut self) {
        self.catalog = Catalog::default();
        self.ranges.clear();
        self.sizes.clear();
        self.ahead = Ahead::default();
    }

    /// From now on the target is made with some other selection.
    pub(super) async fn begin_selection(&self) -> Result<()> {
        let set = doc! {"selection": Selection::UNDER_WAY};
        self.state
            .update(Write::CompletePlan, self.epoch, set)
            .await
    }

    /// From now on it is made with this one.
    pub(super) async fn note_selection(&self, config: &MirrorConfig) -> Result<()> {
        let set = doc! {
            "selection": config.selection.fingerprint(),
            "copy": encode_figures(&self.figures),
        };
        self.state
            .update(Write::CompletePlan, self.epoch, set)
            .await
    }
}
