//! Collections are taken into the mirror: created on the target and cut into ranges, or left out.

use bson::{Document, doc};

use super::{Planned, selects};
use crate::engine::apply::ddl;
use crate::engine::catalog::{self, Listed, list_indexes, target_options, unsupported};
use crate::engine::config::MirrorConfig;
use crate::engine::connection::probe::{await_committed, operation_time};
use crate::engine::copy::ranges::Ranges;
use crate::engine::copy::split::{bounds, size};
use crate::engine::error::{Result, Side, code};
use crate::engine::position::ClusterTime;
use crate::engine::state::{BUCKETS, CatalogEntry, RangeEntry, RangeState, Way};
use crate::engine::stream::event::Uuid;
use crate::engine::writes::Write;

/// As often are collections listed twice before it is taken that they come and go all the time.
const ROUNDS: u32 = 5;

impl Planned {
    /// Takes a collection that was created on the target into the copy: its ranges, and its
    /// indexes once these are done. With `compare`, what the target holds of it is kept where it
    /// is equal. What is remembered becomes complete with the catalog entry; a crash before that
    /// leaves nothing that counts.
    pub(in crate::engine) async fn take_in(
        &mut self,
        config: &MirrorConfig,
        entry: CatalogEntry,
        source_name: &str,
        compare: bool,
    ) -> Result<()> {
        let collection_size = size(&self.source_commands(), source_name).await?;
        self.figures.documents_total += collection_size.documents;
        self.figures.bytes_total += collection_size.bytes;
        self.figures.completed_at = None;
        let splittable = !entry.is_collated()
            && entry.way() == Way::Transactional
            && !entry.options.contains_key("clusteredIndex");
        let bounds = if splittable {
            let range_bytes = config.limits.range_bytes;
            bounds(&self.source, source_name, collection_size, range_bytes).await?
        } else {
            Vec::new()
        };
        let mut ranges = ranges_between(entry.uuid, &bounds);
        for range in &mut ranges {
            range.compare = compare;
        }
        self.state
            .plan_collection(self.epoch, &entry, &ranges)
            .await?;
        let index = self.catalog.insert(entry);
        self.sizes.insert(index, collection_size);
        self.ranges.insert(index, Ranges::new(ranges));
        Ok(())
    }

    /// Collections and indexes as they were at one cluster time: listed before and after it, until
    /// both lists agree. Where collections come and go all the time, they are listed behind it in
    /// the end: what has changed until then is met in the stream, and every command is idempotent
    /// by state.
    pub(in crate::engine) async fn list_at_one_time(
        &self,
        config: &MirrorConfig,
    ) -> Result<(Vec<Listed>, Vec<Vec<Document>>, ClusterTime)> {
        let list = async || -> Result<Vec<Listed>> {
            let mut listed = catalog::list(&self.source, Side::Source).await?;
            listed.retain(|listed| selects(config, &listed.name));
            Ok(listed)
        };
        let mut before = list().await?;
        let mut rounds = 0;
        loop {
            let t0 = operation_time(self.source.client(), Side::Source).await?;
            await_committed(&self.source_commands(), t0).await?;
            rounds += 1;
            let is_last = rounds == ROUNDS;
            if is_last {
                before = list().await?;
            }
            let mut indexes = Vec::with_capacity(before.len());
            for listed in &before {
                // Of system collections not even the indexes may be listed by everybody.
                let wanted = listed.kind == "collection"
                    && !listed.is_shown_elsewhere()
                    && listed.unsupported(self.possible()).is_none();
                let is_system = listed.name.starts_with("system.");
                indexes.push(
                    if wanted && (!is_system || self.may_read(&listed.name).await?) {
                        list_indexes(&self.source, &listed.name, Side::Source).await?
                    } else {
                        Vec::new()
                    },
                );
            }
            if is_last {
                return Ok((before, indexes, t0));
            }
            let after = list().await?;
            if before == after {
                return Ok((before, indexes, t0));
            }
            before = after;
        }
    }

    /// Takes a collection into the copy now: its options and indexes as they are at this moment,
    /// its documents by the lanes. All that may be later than the position, which is harmless:
    /// events up to the time of the copy are skipped, and commands are idempotent by state. If the
    /// collection is gone already, it stays empty and uncopied until its drop, which is on the way
    /// in the stream, arrives.
    ///
    /// # Errors
    /// What the exchanges met.
    pub async fn take(&mut self, config: &MirrorConfig, uuid: Uuid, name: &str) -> Result<()> {
        let known = self.catalog.find(&uuid);
        let now = self.look_up(uuid).await?;
        let (entry, source_name) = match (now, known) {
            (Some((listed, indexes)), _) => {
                if let Some(reason) = unsupported(name, &listed.options, self.possible()) {
                    return self.leave_out(uuid, name, reason).await;
                }
                let entry = CatalogEntry::new(uuid, name, listed.options, indexes);
                (entry, listed.name)
            }
            (None, Some(known)) => {
                let mut entry = self.catalog.get(known).entry.clone();
                entry.copied = false;
                (entry, name.to_owned())
            }
            (None, None) => {
                let entry = CatalogEntry::new(uuid, name, Document::new(), Vec::new());
                (entry, name.to_owned())
            }
        };
        tracing::info!(mirror = %config.name, collection = entry.name, "copying a collection");
        ddl::drop(&self.target, entry.public_name()).await?;
        if self.create(&entry).await? {
            self.take_in(config, entry, &source_name, false).await?;
        }
        Ok(())
    }

    /// Creates a collection on the target. If its documents may not be read or written, it is left
    /// out, and `false`.
    ///
    /// # Errors
    /// What the exchanges met.
    pub async fn create(&mut self, entry: &CatalogEntry) -> Result<bool> {
        let public = entry.public_name();
        if entry.way() == Way::Loose && !self.may_read(&entry.name).await? {
            let reason = "its documents may not be read: grant find, listIndexes and collStats on \
                          this system collection of the source";
            self.leave_out(entry.uuid, public, reason).await?;
            return Ok(false);
        }
        ddl::create(&self.target, public, &target_options(&entry.options)).await?;
        if entry.way() == Way::Loose && !self.may_write(&entry.name).await? {
            ddl::drop(&self.target, public).await?;
            let reason = "its documents may not be written: grant find, insert, update, remove \
                          and bypassDocumentValidation on this system collection of the target; \
                          createIndex, dropIndex, listIndexes and collMod for its indexes";
            self.leave_out(entry.uuid, public, reason).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Of system collections, not everybody may read the documents.
    pub(super) async fn may_read(&self, name: &str) -> Result<bool> {
        let find = doc! {"find": name, "limit": 1, "projection": {"_id": 1}};
        let (source, doing) = (self.source_commands(), "read a system collection");
        let size = doc! {"collStats": name};
        Ok(unless_unauthorized(source.read(doing, find).await)?
            && unless_unauthorized(source.read(doing, size).await)?)
    }

    pub(super) async fn may_write(&self, name: &str) -> Result<bool> {
        let nothing = doc! {"_id": "mongomirror.nothing"};
        let find = doc! {"find": name, "filter": &nothing, "limit": 1};
        let delete = doc! {"delete": name, "deletes": [{"q": &nothing, "limit": 1}]};
        let update = doc! {
            "update": name,
            "updates": [{"q": &nothing, "u": {"$set": {"nothing": 0}}}],
            "bypassDocumentValidation": true,
        };
        let read = self.target.read("read a system collection", find);
        Ok(unless_unauthorized(read.await)?
            && unless_unauthorized(self.target.write(Write::ProbeSystem, delete).await)?
            && unless_unauthorized(self.target.write(Write::ProbeSystem, update).await)?)
    }

    /// A collection of the source and its indexes, as of one moment, under whatever name it has.
    pub(in crate::engine) async fn look_up(
        &self,
        uuid: Uuid,
    ) -> Result<Option<(Listed, Vec<Document>)>> {
        let mut before = None;
        loop {
            let listed = catalog::list(&self.source, Side::Source).await?;
            let listed = listed.into_iter().find(|listed| listed.uuid == Some(uuid));
            let Some(listed) = listed else {
                return Ok(None);
            };
            let is_system = listed.name.starts_with("system.");
            let indexes = if !is_system || self.may_read(&listed.name).await? {
                list_indexes(&self.source, &listed.name, Side::Source).await?
            } else {
                Vec::new()
            };
            let now = Some((listed, indexes));
            if before == now {
                return Ok(now);
            }
            before = now;
        }
    }

    /// Notes, also for the next process, what is not mirrored.
    ///
    /// # Errors
    /// What the exchange met.
    pub async fn leave_out(&mut self, uuid: Uuid, name: &str, reason: &str) -> Result<()> {
        let entry = CatalogEntry::left_out(uuid, name, reason);
        self.state.put_collection(&entry).await?;
        self.catalog.leave_out(uuid, name, reason);
        Ok(())
    }

    /// Notes what cannot be mirrored; returns whether that is so.
    pub(in crate::engine) fn note_left_out(
        &mut self,
        config: &MirrorConfig,
        listed: &Listed,
    ) -> bool {
        let Some(reason) = listed.unsupported(self.possible()) else {
            return false;
        };
        if selects(config, &listed.name) && !listed.is_shown_elsewhere() {
            let uuid = listed.uuid.unwrap_or_else(|| name_as_uuid(&listed.name));
            let name = listed.name.strip_prefix(BUCKETS).unwrap_or(&listed.name);
            self.catalog.leave_out(uuid, name, reason);
        }
        true
    }
}

fn unless_unauthorized(outcome: Result<Document>) -> Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(code::UNAUTHORIZED) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One range more than there are bounds.
pub fn ranges_between(uuid: Uuid, bounds: &[crate::engine::bson::order::Value]) -> Vec<RangeEntry> {
    let lows = std::iter::once(None).chain(bounds.iter().cloned().map(Some));
    let highs = bounds
        .iter()
        .cloned()
        .map(Some)
        .chain(std::iter::once(None));
    (0..)
        .zip(lows.zip(highs))
        .map(|(number, (low, high))| RangeEntry {
            uuid,
            number,
            low,
            high,
            state: RangeState::Pending,
            compare: false,
            documents: 0,
            bytes: 0,
        })
        .collect()
}

/// Time-series collections have no UUID; a name is unique among what is left out.
pub fn name_as_uuid(name: &str) -> Uuid {
    let mut uuid: Uuid = [0; 16];
    for (index, byte) in name.bytes().enumerate() {
        uuid[index % 16] = uuid[index % 16].rotate_left(3) ^ byte;
    }
    uuid
}
