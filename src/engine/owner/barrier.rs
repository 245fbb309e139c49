//! Collection and index commands in the stream.
//!
//! Everything before the command is on the target when it is carried out, nothing behind it is.
//! Collections are addressed by UUID, and every step is idempotent by state, so a command that is
//! met again after a crash changes nothing.

use bson::{DateTime, Document, RawDocument, doc};

use super::{Owner, malformed};
use crate::engine::apply::ddl;
use crate::engine::apply::gather::CollectionIndex;
use crate::engine::catalog::{
    is_collated, list, target_index, target_options, unsupported_options,
};
use crate::engine::error::{Error, Result, Side, code};
use crate::engine::plan::name_as_uuid;
use crate::engine::position::{Position, ResumeToken, StartPoint};
use crate::engine::state::{CatalogEntry, documents_of};
use crate::engine::stream::event::{Event, Operation, Uuid, parse};

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
        // Commands have no transaction that could hold the checkpoint: whoever has lost the
        // mirror must learn it before.
        let set = doc! {"updatedAt": DateTime::now()};
        self.plan.state.update(self.plan.epoch, set).await?;
        self.carry_out(&event).await?;
        let position = Position {
            time: event.time,
            start: StartPoint::After(ResumeToken::from_raw(event.token)),
        };
        self.pass_barrier(reply, place, position);
        Ok(())
    }

    async fn carry_out(&mut self, event: &Event<'_>) -> Result<()> {
        tracing::info!(
            mirror = %self.config.name,
            command = event.operation_name,
            collection = event.collection,
            "source changed its collections"
        );
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

    /// Whether a name takes part. Names that the server gives to collections it is about to
    /// rename do: their content would be missed otherwise (`facts` mongodb 1.9).
    fn takes_part(&self, name: &str) -> bool {
        let temporary = name.starts_with("tmp.agg_out.")
            || (name.starts_with("tmp")
                && (name.contains(".renameCollection") || name.contains(".convertToCapped.")));
        temporary || self.config.selection.selects(name)
    }

    fn known(&self, event: &Event<'_>) -> Option<CollectionIndex> {
        let uuid = event.uuid.as_ref()?;
        self.plan.catalog.find(uuid)
    }

    async fn created(&mut self, event: &Event<'_>) -> Result<()> {
        let name = event.collection;
        if !self.takes_part(name) || name.starts_with("system.") || self.known(event).is_some() {
            return Ok(());
        }
        let options = description(event)?;
        let view_on = options.get_str("viewOn").unwrap_or_default();
        let is_bucket_view = view_on.starts_with("system.buckets.");
        let kind = if is_bucket_view {
            "timeseries"
        } else {
            "collection"
        };
        if let Some(reason) = unsupported_options(kind, &options) {
            let uuid = event.uuid.unwrap_or_else(|| name_as_uuid(name));
            return self.leave_out(uuid, name, reason).await;
        }
        // What is called so on the target is not this collection: the source's name was free.
        if event.uuid.is_some() {
            match self.plan.catalog.by_name(name) {
                Some(old) => self.drop_and_forget(old).await?,
                None => ddl::drop(&self.plan.target, name).await?,
            }
        }
        ddl::create(&self.plan.target, name, &target_options(&options)).await?;
        let Some(uuid) = event.uuid else {
            return Ok(());
        };
        let entry = CatalogEntry {
            uuid,
            name: name.to_owned(),
            collated: is_collated(&options),
            copied: true,
            pending_indexes: Vec::new(),
            index_problems: Vec::new(),
            left_out: None,
        };
        self.plan.state.put_collection(&entry).await?;
        self.plan.catalog.insert(entry);
        Ok(())
    }

    /// Notes, also for the next process, what is not mirrored.
    async fn leave_out(&mut self, uuid: Uuid, name: &str, reason: &str) -> Result<()> {
        let entry = CatalogEntry {
            uuid,
            name: name.to_owned(),
            collated: false,
            copied: true,
            pending_indexes: Vec::new(),
            index_problems: Vec::new(),
            left_out: Some(reason.to_owned()),
        };
        self.plan.state.put_collection(&entry).await?;
        self.plan.catalog.leave_out(uuid, name, reason);
        Ok(())
    }

    async fn dropped(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(uuid) = event.uuid else {
            // A view, or a time-series collection.
            if self.plan.catalog.by_name(event.collection).is_none()
                && self.takes_part(event.collection)
            {
                self.plan.catalog.remove(&name_as_uuid(event.collection));
                ddl::drop(&self.plan.target, event.collection).await?;
            }
            return Ok(());
        };
        match self.plan.catalog.find(&uuid) {
            Some(collection) => self.drop_and_forget(collection).await,
            None if self.plan.catalog.is_left_out(&uuid) => {
                self.plan.catalog.remove(&uuid);
                self.plan.state.remove_collection(uuid).await
            }
            None => Ok(()),
        }
    }

    /// Drops a collection on the target, and only then forgets it: a crash in between must find
    /// it again.
    async fn drop_and_forget(&mut self, collection: CollectionIndex) -> Result<()> {
        self.stop_lanes(Some(collection)).await?;
        self.await_build(collection).await?;
        let name = self.plan.catalog.get(collection).entry.name.clone();
        ddl::drop(&self.plan.target, &name).await?;
        self.forget(collection).await
    }

    /// The database is gone: what is left of it are views, of which no drop is announced.
    async fn database_dropped(&mut self) -> Result<()> {
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
        self.plan.catalog.remove(&uuid);
        self.plan.state.remove_collection(uuid).await?;
        self.drop_passed_ranges().await
    }

    async fn renamed(&mut self, event: &Event<'_>) -> Result<()> {
        let to = event
            .to
            .ok_or_else(|| malformed("a rename without a new name"))?;
        let Some(collection) = self.known(event) else {
            if self.takes_part(to) {
                // From outside into the selection: nothing of it is on the target.
                let uuid = event.uuid.unwrap_or_else(|| name_as_uuid(to));
                if let Some(old) = self.plan.catalog.by_name(to) {
                    self.drop_and_forget(old).await?;
                }
                let reason = "renamed from a name that is not selected or not mirrored; its \
                              content is not mirrored yet";
                self.leave_out(uuid, to, reason).await?;
            }
            return Ok(());
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
        if !self.takes_part(to) {
            return self.drop_and_forget(collection).await;
        }
        ddl::rename(&self.plan.target, &from, to).await?;
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        to.clone_into(&mut entry.name);
        let entry = entry.clone();
        self.plan.state.put_collection(&entry).await
    }

    async fn modified(&mut self, event: &Event<'_>) -> Result<()> {
        let mut changes = description(event)?;
        let name = match self.known(event) {
            Some(collection) => self.plan.catalog.get(collection).entry.name.clone(),
            None if event.uuid.is_none() && self.takes_part(event.collection) => {
                event.collection.to_owned()
            }
            None => return Ok(()),
        };
        if event.uuid.is_none()
            && changes
                .get_str("viewOn")
                .is_ok_and(|on| on.starts_with("system.buckets."))
        {
            return Ok(());
        }
        if let Ok(index) = changes.get_document_mut("index") {
            // TTL stays disarmed, uniqueness is not enforced yet: only what remains is changed.
            for managed in ["expireAfterSeconds", "unique", "prepareUnique"] {
                index.remove(managed);
            }
            if index.len() <= 1 {
                changes.remove("index");
            }
        }
        changes.remove("expireAfterSeconds");
        if let Some(collection) = self.known(event) {
            self.modify_pending(collection, &changes).await?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        match ddl::modify(&self.plan.target, &name, &changes).await {
            // Met again after a crash, behind a later drop that the source had already done.
            Err(error) if is_gone(&error) => Ok(()),
            outcome => outcome,
        }
    }

    /// An index that is not built yet is built as it is now.
    async fn modify_pending(
        &mut self,
        collection: CollectionIndex,
        changes: &Document,
    ) -> Result<()> {
        let Ok(change) = changes.get_document("index") else {
            return Ok(());
        };
        self.await_build(collection).await?;
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        for index in &mut entry.pending_indexes {
            if index.get("name") == change.get("name") {
                index.extend(change.clone());
            }
        }
        let entry = entry.clone();
        self.plan.state.put_collection(&entry).await
    }

    async fn indexes_created(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(collection) = self.known(event) else {
            return Ok(());
        };
        let indexes = indexes_of(event)?;
        let entry = &mut self.plan.catalog.get_mut(collection).entry;
        if !entry.copied && !entry.pending_indexes.is_empty() {
            // Not built yet: the newer definition takes the place of the older.
            entry.pending_indexes.retain(|pending| {
                !indexes
                    .iter()
                    .any(|new| new.get("name") == pending.get("name"))
            });
        }
        let (name, collated) = (entry.name.clone(), entry.collated);
        for index in &indexes {
            let (_, differs) = target_index(index, collated);
            if differs.is_none() {
                let index = index.get_str("name").unwrap_or_default();
                self.forget_index_problem(collection, index);
            }
        }
        let problems = ddl::create_indexes(&self.plan.target, &name, &indexes, collated).await?;
        self.note_index_problems(collection, problems);
        let entry = self.plan.catalog.get(collection).entry.clone();
        self.plan.state.put_collection(&entry).await
    }

    async fn indexes_dropped(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(collection) = self.known(event) else {
            return Ok(());
        };
        self.await_build(collection).await?;
        let name = self.plan.catalog.get(collection).entry.name.clone();
        for index in indexes_of(event)? {
            let Ok(index) = index.get_str("name") else {
                continue;
            };
            let entry = &mut self.plan.catalog.get_mut(collection).entry;
            entry
                .pending_indexes
                .retain(|pending| pending.get_str("name").ok() != Some(index));
            self.forget_index_problem(collection, index);
            ddl::drop_index(&self.plan.target, &name, index).await?;
        }
        let entry = self.plan.catalog.get(collection).entry.clone();
        self.plan.state.put_collection(&entry).await
    }
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
