//! Collection and index commands in the stream.
//!
//! Everything before the command is on the target when it is carried out, nothing behind it is.
//! Collections are addressed by UUID, and every step is idempotent by state, so a command that is
//! met again after a crash changes nothing.

use bson::{Bson, DateTime, Document, RawDocument, doc};

use super::{Owner, malformed};
use crate::engine::apply::ddl;
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::apply::indexes::tend;
use crate::engine::catalog::{
    FACELESS_REASON, TTL_DISARMED, list, modify_options, options_told, target_options, unsupported,
};
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::plan::{name_as_uuid, selects};
use crate::engine::position::{Position, ResumeToken, StartPoint};
use crate::engine::state::{BUCKETS, CatalogEntry, Index, Stage, Way, documents_of};
use crate::engine::stream::event::{Event, Operation, Uuid, parse};
use crate::engine::writes::Write;

impl Owner<'_> {
    /// Carries out the command that the reply in hand is at.
    pub(super) async fn barrier(&mut self) -> Result<()> {
        debug_assert!(
            self.gather.is_empty() && self.in_flight.is_none(),
            "a barrier follows a drained batch"
        );
        let Some((reply, place)) = self.reply.take() else {
            return Ok(());
        };
        let Some(raw) = reply.events().nth(place) else {
            return Ok(());
        };
        let event = parse(raw).map_err(malformed)?;
        self.begin_command().await?;
        self.carry_out(&event).await?;
        let position = Position {
            time: event.time,
            start: StartPoint::After(ResumeToken::from_raw(event.token)),
        };
        let transaction = event.transaction.map(|transaction| transaction.to_owned());
        self.pass_barrier(reply, place, position, transaction);
        Ok(())
    }

    async fn carry_out(&mut self, event: &Event<'_>) -> Result<()> {
        tracing::info!(
            mirror = %self.config.name,
            command = event.operation_name,
            collection = event.collection,
            "source changed its collections"
        );
        self.commands += 1;
        match event.operation {
            Operation::Create => self.created(event).await,
            Operation::Drop => self.dropped(event).await,
            Operation::Rename => self.renamed(event).await,
            Operation::Modify => self.modified(event).await,
            Operation::CreateIndexes => self.indexes_created(event).await,
            Operation::DropIndexes => self.indexes_dropped(event).await,
            Operation::DropDatabase => self.database_dropped().await,
            // An invalidate only ends the cursor.
            _ => Ok(()),
        }
    }

    /// Commands have no transaction that could hold the checkpoint: whoever has lost the mirror must
    /// learn it before.
    pub(super) async fn begin_command(&mut self) -> Result<()> {
        // Whatever is written before it is done, also when the mirror is stopped in the middle of
        // it, leaves the mark.
        self.plan.in_command = true;
        self.update_phase();
        self.publish_now();
        let set = doc! {"updatedAt": DateTime::now(), "inCommand": true};
        let state = &self.plan.state;
        let write = Write::HoldCheckpoint;
        state.update(write, self.plan.epoch, set).await
    }

    /// Whether a name takes part. Names that the server gives to collections it is about to
    /// rename do: their content would be missed otherwise (`facts` mongodb 1.9).
    fn takes_part(&self, name: &str) -> bool {
        let temporary = name.starts_with("tmp.agg_out.")
            || (name.starts_with("tmp")
                && (name.contains(".renameCollection") || name.contains(".convertToCapped.")));
        let is_data = !name.starts_with("system.") || name == ddl::SCRIPTS || is_buckets(name);
        is_data && (temporary || selects(self.config, name))
    }

    fn known(&self, event: &Event<'_>) -> Option<CollectionIndex> {
        let uuid = event.uuid.as_ref()?;
        self.plan.catalog.find(uuid)
    }

    async fn created(&mut self, event: &Event<'_>) -> Result<()> {
        let name = event.collection;
        if !self.takes_part(name) || self.known(event).is_some() {
            return Ok(());
        }
        let options = options_told(description(event)?);
        let Some(uuid) = event.uuid else {
            if options.get_str("viewOn").is_ok_and(is_buckets) {
                return self.face_created(name).await;
            }
            if let Some(reason) = unsupported(name, &options, self.plan.possible()) {
                // Views are listed anew by the next process.
                let uuid = name_as_uuid(name);
                self.plan.catalog.leave_out(uuid, name, reason);
                return Ok(());
            }
            return ddl::create(&self.plan.target, name, &target_options(&options)).await;
        };
        if self.has_no_face(name) {
            return self
                .plan
                .leave_out(uuid, public(name), FACELESS_REASON)
                .await;
        }
        let buckets = format!("{BUCKETS}{name}");
        if let Some(buckets) = self.plan.catalog.by_name(&buckets) {
            // The name was free: these were made, and their time series was not.
            let uuid = self.plan.catalog.get(buckets).entry.uuid;
            self.drop_and_forget(buckets).await?;
            self.plan.leave_out(uuid, name, FACELESS_REASON).await?;
        }
        // What is called so on the target is not this collection: the source's name was free.
        match self.plan.catalog.by_name(name) {
            Some(old) => self.drop_and_forget(old).await?,
            None => ddl::drop(&self.plan.target, public(name)).await?,
        }
        if let Some(reason) = unsupported(name, &options, self.plan.possible()) {
            return self.plan.leave_out(uuid, public(name), reason).await;
        }
        let mut entry = CatalogEntry::new(uuid, name, options, Vec::new());
        entry.copied = true;
        if !self.plan.create(&entry).await? {
            return Ok(());
        }
        let guard = match entry.way() {
            Way::Transactional => None,
            Way::InOrder | Way::Loose => ddl::uuid(&self.plan.target, name).await?,
        };
        self.plan.state.put_collection(&entry).await?;
        let index = self.plan.catalog.insert(entry);
        self.plan.catalog.get_mut(index).guard = guard;
        Ok(())
    }

    /// A time series was made together with its buckets, unless these were seen before it was there.
    async fn face_created(&mut self, name: &str) -> Result<()> {
        match self.plan.catalog.faceless(name) {
            Some(uuid) => {
                let buckets = format!("{BUCKETS}{name}");
                self.take(uuid, &buckets).await
            }
            None => Ok(()),
        }
    }

    /// Whether these are buckets, and their time series cannot come, as its name is taken.
    fn has_no_face(&self, name: &str) -> bool {
        is_buckets(name) && self.plan.catalog.by_name(public(name)).is_some()
    }

    async fn dropped(&mut self, event: &Event<'_>) -> Result<()> {
        if event.collection == "system.views" {
            return self.views_dropped().await;
        }
        let Some(uuid) = event.uuid else {
            // A view, or the face of a time-series collection, which goes with its buckets.
            let name = event.collection;
            let buckets = format!("{BUCKETS}{name}");
            let is_view = self.plan.catalog.by_name(name).is_none()
                && self.plan.catalog.by_name(&buckets).is_none();
            if is_view && self.takes_part(name) {
                self.plan.catalog.remove(&name_as_uuid(name));
                ddl::drop(&self.plan.target, name).await?;
            }
            return Ok(());
        };
        match self.plan.catalog.find(&uuid) {
            Some(collection) => self.drop_and_forget(collection).await,
            None => self.no_longer_left_out(uuid).await,
        }
    }

    async fn no_longer_left_out(&mut self, uuid: Uuid) -> Result<()> {
        if !self.plan.catalog.is_left_out(&uuid) {
            return Ok(());
        }
        self.plan.catalog.remove(&uuid);
        self.plan.state.remove_collection(uuid).await
    }

    /// Drops a collection on the target, and only then forgets it: a crash in between must find
    /// it again.
    async fn drop_and_forget(&mut self, collection: CollectionIndex) -> Result<()> {
        self.stop_lanes(Some(collection)).await?;
        self.await_build(collection).await?;
        let entry = &self.plan.catalog.get(collection).entry;
        let name = entry.public_name().to_owned();
        ddl::drop(&self.plan.target, &name).await?;
        self.forget(collection).await
    }

    /// The database is gone: what is left of it are views, of which no drop is announced.
    async fn database_dropped(&mut self) -> Result<()> {
        self.views_dropped().await?;
        self.plan.catalog.forget_left_out();
        Ok(())
    }

    /// They go with the collection that holds their definitions.
    async fn views_dropped(&mut self) -> Result<()> {
        for there in list(&self.plan.target.db, Side::Target).await? {
            if there.kind == "view" {
                ddl::drop(&self.plan.target, &there.name).await?;
            }
        }
        Ok(())
    }

    /// The collection takes no part any more; what is on the target is the caller's business.
    async fn forget(&mut self, collection: CollectionIndex) -> Result<()> {
        self.stop_lanes(Some(collection)).await?;
        self.await_build(collection).await?;
        let uuid = self.plan.catalog.get(collection).entry.uuid;
        self.forget_ranges(collection);
        // What waited for its ranges may have joined the batch meanwhile.
        self.gather.forget(collection);
        self.plan.sizes.remove(&collection);
        self.again.remove(&collection);
        self.plan.catalog.remove(&uuid);
        self.plan.state.remove_collection(uuid).await?;
        self.quarantine.forget(uuid);
        self.drop_passed_ranges().await
    }

    async fn renamed(&mut self, event: &Event<'_>) -> Result<()> {
        let to = event
            .to
            .ok_or_else(|| malformed("a rename without a new name"))?;
        let Some(collection) = self.known(event) else {
            let uuid = event.uuid.unwrap_or_else(|| name_as_uuid(to));
            if !self.takes_part(to) {
                return self.no_longer_left_out(uuid).await;
            }
            // From outside into the selection: nothing of it is on the target.
            if let Some(old) = self.plan.catalog.by_name(to) {
                self.drop_and_forget(old).await?;
            }
            return self.take(uuid, to).await;
        };
        let from = self.plan.catalog.get(collection).entry.name.clone();
        if from == to {
            return Ok(());
        }
        self.stop_lanes(Some(collection)).await?;
        self.await_build(collection).await?;
        if let Some(old) = self.plan.catalog.by_name(to) {
            self.forget(old).await?;
        }
        let entry = &self.plan.catalog.get(collection).entry;
        let (uuid, reason) = (
            entry.uuid,
            unsupported(to, &entry.options, self.plan.possible()),
        );
        if !self.takes_part(to) || reason.is_some() {
            self.drop_and_forget(collection).await?;
            if let Some(reason) = reason.filter(|_| self.takes_part(to)) {
                self.plan.leave_out(uuid, to, reason).await?;
            }
            return Ok(());
        }
        ddl::rename(&self.plan.target, &from, to).await?;
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        to.clone_into(&mut entry.name);
        let entry = entry.clone();
        self.plan.state.put_collection(&entry).await
    }

    async fn modified(&mut self, event: &Event<'_>) -> Result<()> {
        let mut changes = description(event)?;
        // The target is told when it asks for it.
        changes.remove(ddl::MIXED_SCHEMA);
        let Some(collection) = self.known(event) else {
            let is_face = changes.get_str("viewOn").is_ok_and(is_buckets);
            // A collection of that name came later, and was taken as it is now.
            let is_later = self.plan.catalog.by_name(event.collection).is_some();
            let is_view =
                event.uuid.is_none() && !is_face && !is_later && self.takes_part(event.collection);
            // The collation of a view is told, but cannot be changed, not even to itself.
            let told = changes.into_iter();
            let changes: Document = told.filter(|(name, _)| name != "collation").collect();
            let is_left_out = self
                .plan
                .catalog
                .is_left_out(&name_as_uuid(event.collection));
            if is_view && !is_left_out && !changes.is_empty() {
                return self.modify(event.collection, &changes).await;
            }
            return Ok(());
        };
        self.await_build(collection).await?;
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        let mut now = modify_options(&mut entry.options, &changes);
        if let Ok(change) = changes.get_document("index") {
            let index = entry.index(change.get_str("name").unwrap_or_default());
            if let Some(change) = index.and_then(|index| modify_index(index, change)) {
                now.insert("index", change);
            }
        }
        let entry = entry.clone();
        self.plan.state.put_collection(&entry).await?;
        if now.is_empty() {
            return Ok(());
        }
        self.modify(&entry.name, &now).await
    }

    async fn modify(&self, name: &str, changes: &Document) -> Result<()> {
        match ddl::modify(&self.plan.target, name, changes).await {
            // Met again after a crash, behind a later drop that the source had already done.
            Err(error) if is_gone(&error) => Ok(()),
            outcome => outcome,
        }
    }

    async fn indexes_created(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(collection) = self.known(event) else {
            return Ok(());
        };
        self.await_build(collection).await?;
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        for spec in indexes_of(event)? {
            entry.put_index(spec);
        }
        let entry = entry.clone();
        if entry.copied {
            // They keep their place among the writes; what is refused is tried again later.
            let collated = entry.is_collated();
            let (target, name) = (&self.plan.target, &entry.name);
            let tended = tend(target, name, &entry.indexes, collated, false).await?;
            self.note_tended(collection, tended);
        }
        let entry = self.plan.catalog.get(collection).entry.clone();
        self.plan.state.put_collection(&entry).await
    }

    async fn indexes_dropped(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(collection) = self.known(event) else {
            return Ok(());
        };
        self.await_build(collection).await?;
        let name = self.plan.catalog.get(collection).entry.name.clone();
        for spec in indexes_of(event)? {
            let Ok(index) = spec.get_str("name") else {
                continue;
            };
            let entry = &mut self.plan.catalog.get_mut(collection).entry;
            entry.indexes.retain(|there| there.name() != index);
            ddl::drop_index(&self.plan.target, &name, index).await?;
        }
        let entry = self.plan.catalog.get(collection).entry.clone();
        self.plan.state.put_collection(&entry).await
    }
}

/// Lays what a `collMod` was told over an index; returns what of it is carried out on the target
/// now. Uniqueness follows by itself once the mirror has caught up.
fn modify_index(index: &mut Index, change: &Document) -> Option<Document> {
    let mut now = doc! {"name": index.name()};
    for (option, value) in change {
        let is_on = value == &Bson::Boolean(true);
        match option.as_str() {
            "hidden" => {
                now.insert(option, value.clone());
            }
            // Nothing expires on the target; but whether it is a TTL index shows. It may be noted
            // already, and not be done.
            "expireAfterSeconds" => {
                now.insert(option, TTL_DISARMED);
            }
            "prepareUnique" if !is_on => {
                now.insert(option, false);
            }
            _ => {}
        }
        match option.as_str() {
            "name" | "keyPattern" => continue,
            "hidden" | "prepareUnique" | "unique" if !is_on => {
                index.spec.remove(option);
            }
            _ => {
                index.spec.insert(option, value.clone());
            }
        }
        if option == "unique" {
            index.spec.remove("prepareUnique");
        }
        if index.is_enforcing() && index.stage == Stage::Whole {
            index.stage = Stage::Ordinary;
        }
    }
    (now.len() > 1 && index.stage != Stage::Missing).then_some(now)
}

fn is_buckets(name: &str) -> bool {
    name.starts_with(BUCKETS)
}

/// What users call it.
fn public(name: &str) -> &str {
    name.strip_prefix(BUCKETS).unwrap_or(name)
}

fn is_gone(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(code::NAMESPACE_NOT_FOUND | code::INDEX_NOT_FOUND)
    )
}

fn description(event: &Event<'_>) -> Result<Document> {
    let Some(raw) = event.description else {
        return Ok(doc! {});
    };
    RawDocument::from_bytes(raw)
        .ok()
        .and_then(|raw| Document::try_from(raw).ok())
        .ok_or_else(|| malformed("its operationDescription is not readable"))
}

fn indexes_of(event: &Event<'_>) -> Result<Vec<Document>> {
    let description = description(event)?;
    Ok(documents_of(&description, "indexes").cloned().collect())
}
