//! A copy over what the target already holds, as after lost history or on request: only what differs
//! is written.
//!
//! It is the ordinary copy but for two things. Collections that are still the same ones keep their
//! data, and their ranges are compared instead of copied over; everything else is dropped and
//! copied. And the target is not empty before, so what is done to it is announced in the
//! checkpoint first: a process that dies in the middle begins again.

use std::collections::HashMap;

use bson::{DateTime, doc};

use super::{Planned, selects};
use crate::engine::apply::ddl;
use crate::engine::bson::definition::Definition;
use crate::engine::catalog::{
    self, Listed, is_disarmed, list_indexes, ordinary_index, target_options,
};
use crate::engine::config::{MirrorConfig, OnExistingData};
use crate::engine::definitions::{Kept, keep};
use crate::engine::error::{Result, Side};
use crate::engine::state::{
    CatalogEntry, CopyFigures, Index, RangeEntry, is_compared, ranges_by_collection, refuse_unknown,
};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

impl Planned {
    /// Plans the copy anew, over what the target holds. If something was begun that may have
    /// created collections before they were noted, those go.
    pub(in crate::engine) async fn resync(
        &mut self,
        config: &MirrorConfig,
        begun: bool,
    ) -> Result<()> {
        let (listed, indexes, t0) = self.list_at_one_time(config).await?;
        let catalog = self.state.load_catalog().await?;
        let mut unknown = self.unknown(&catalog).await?;
        // Others are none of ours, or are left from another selection.
        unknown.retain(|name| selects(config, name) && (begun || name != ddl::SCRIPTS));
        if let (false, Some(name)) = (begun, unknown.first()) {
            return refuse_unknown(name);
        }
        self.state
            .update(Write::AnnounceResync, self.epoch, doc! {"resync": true})
            .await?;
        self.state.claim_ranges(self.epoch).await?;
        let ranges = ranges_by_collection(&catalog, self.state.load_ranges().await?);
        // Before they are planned, they may be of collections that are noted no more.
        let ranges = ranges.unwrap_or_default();
        self.figures = CopyFigures {
            started_at: Some(DateTime::now()),
            ..CopyFigures::default()
        };
        let adopts = config.on_existing_data == OnExistingData::Adopt;
        let is_on_source = |name: &str| listed.iter().any(|it| it.name == name);
        for name in unknown {
            if !(adopts && is_on_source(&name)) {
                ddl::drop(&self.target, &name).await?;
            }
        }
        let mut known = self
            .forget_what_is_gone(config, &listed, catalog, &ranges)
            .await?;
        // Until here they tell what of the target was there before.
        self.state.remove_all_ranges().await?;
        let there: HashMap<String, Listed> = catalog::list(&self.target.db, Side::Target)
            .await?
            .into_iter()
            .map(|there| (there.name.clone(), there))
            .collect();
        for (listed, indexes) in listed.into_iter().zip(indexes) {
            if !selects(config, &listed.name)
                || listed.is_shown_elsewhere()
                || self.note_left_out(config, &listed)
            {
                continue;
            }
            let is_known = match &listed.uuid {
                Some(uuid) => known
                    .remove(uuid)
                    .is_some_and(|entry| entry.name == listed.name),
                None => true,
            };
            let is_known = is_known || adopts;
            let kept = match there.get(&listed.name) {
                Some(there) if is_known => keep(&listed, there),
                _ => Kept::Anew,
            };
            let uuid = listed.uuid.unwrap_or_default();
            let is_view = listed.uuid.is_none();
            let options = target_options(&listed.options);
            let entry = CatalogEntry::new(uuid, &listed.name, listed.options, indexes);
            match &kept {
                Kept::AsItIs => {}
                Kept::Changed(changes) => {
                    ddl::modify(&self.target, &listed.name, changes).await?;
                }
                Kept::Anew => {
                    ddl::drop(&self.target, entry.public_name()).await?;
                    if is_view {
                        ddl::create(&self.target, &entry.name, &options).await?;
                    } else if !self.create(&entry).await? {
                        continue;
                    }
                }
            }
            if is_view {
                continue;
            }
            let compare = kept != Kept::Anew;
            if compare {
                self.drop_other_indexes(&entry).await?;
            }
            self.take_in(config, entry, &listed.name, compare).await?;
        }
        self.begin_at(t0).await
    }

    /// Drops what the mirror once made on the target and the source no longer has under that
    /// name; returns what it still has.
    async fn forget_what_is_gone(
        &mut self,
        config: &MirrorConfig,
        listed: &[Listed],
        catalog: Vec<CatalogEntry>,
        ranges: &HashMap<Uuid, Vec<RangeEntry>>,
    ) -> Result<HashMap<Uuid, CatalogEntry>> {
        let mut known = HashMap::new();
        for entry in catalog {
            let is_there = listed.iter().any(|listed| {
                listed.uuid == Some(entry.uuid)
                    && listed.name == entry.name
                    && selects(config, &listed.name)
                    && listed.unsupported(self.possible()).is_none()
            });
            if is_there && entry.left_out.is_none() {
                known.insert(entry.uuid, entry);
                continue;
            }
            if entry.left_out.is_none() && !selects(config, &entry.name) {
                let is_compared = is_compared(ranges.get(&entry.uuid).into_iter().flatten());
                self.let_go(config, &entry, is_compared).await?;
                continue;
            }
            if entry.left_out.is_none() {
                ddl::drop(&self.target, entry.public_name()).await?;
            }
            self.state.remove_collection(entry.uuid).await?;
        }
        // Views are in no catalog: they are on the target because the source had them.
        for there in catalog::list(&self.target.db, Side::Target).await? {
            let is_there = listed
                .iter()
                .any(|listed| listed.name == there.name && listed.kind == there.kind);
            if there.kind == "view" && !is_there && selects(config, &there.name) {
                ddl::drop(&self.target, &there.name).await?;
            }
        }
        Ok(known)
    }

    /// Collections of the target that are not noted. One that was created when a process died may be
    /// gone from the source by now.
    async fn unknown(&self, catalog: &[CatalogEntry]) -> Result<Vec<String>> {
        let there = catalog::list(&self.target.db, Side::Target).await?;
        // Time series are noted as their buckets.
        let known = |there: &Listed| catalog.iter().any(|it| it.public_name() == there.name);
        let is_one = |there: &Listed| {
            there.is_data() || there.kind == "timeseries" || there.name == ddl::SCRIPTS
        };
        let unknown = there.into_iter().filter(|it| is_one(it) && !known(it));
        Ok(unknown.map(|there| there.name).collect())
    }

    /// Indexes that the source does not have, those that enforce uniqueness, as keys may have moved
    /// between documents of different ranges, and those that expire, as after the mirror's end.
    /// What is missing then is built when the data is there, like all.
    async fn drop_other_indexes(&self, wanted: &CatalogEntry) -> Result<()> {
        let name = &wanted.name;
        for there in list_indexes(&self.target.db, name, Side::Target).await? {
            let there = Index::missing(there);
            let form = |spec| Definition::from(ordinary_index(spec, wanted.is_collated()));
            let is_wanted = wanted
                .indexes
                .iter()
                .any(|index| form(&index.spec) == form(&there.spec));
            if !is_wanted || there.is_enforcing() || !is_disarmed(&there.spec) {
                ddl::drop_index(&self.target, name, there.name()).await?;
            }
        }
        Ok(())
    }
}
