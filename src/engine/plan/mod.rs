//! What is there, what shall be there: refuse, start afresh, or go on.
//!
//! Nothing is written to any database before every check has passed.

mod identity;
mod origins;
mod reselect;
mod resync;
mod taking;

use std::collections::{HashMap, HashSet};

use bson::{Bson, DateTime, doc};
use mongodb::{ClientSession, Database};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::apply::ddl;
use crate::engine::apply::entity::CollectionIndex;
use crate::engine::apply::writer::start_session;
use crate::engine::catalog::{self, Catalog, Listed, Possible, has_clock, target_options};
use crate::engine::command::Commands;
use crate::engine::config::{ApplyMode, MirrorConfig, OnExistingData};
use crate::engine::connection::client::readable;
use crate::engine::connection::probe::{TargetAbilities, operation_time, target_abilities};
use crate::engine::connection::shared::{Connections, InUse};
use crate::engine::connection::{members, privileges};
use crate::engine::copy::ranges::Ranges;
use crate::engine::copy::split::{Size, size};
use crate::engine::error::{Error, Result, Side};
use crate::engine::mirror::Before;
use crate::engine::position::{Ahead, ClusterTime, Position, StartPoint};
use crate::engine::progress::{Progress, VerificationResult};
use crate::engine::quarantine::Quarantined;
use crate::engine::state::{
    BUCKETS, CatalogEntry, Checkpoint, CopyFigures, MOST_LANES, Outside, RangeEntry, RangeState,
    StateStore, Way, encode_figures, encode_outside, encode_position, ranges_by_collection,
    refuse_gaps,
};
use crate::engine::stream::event::Uuid;
use crate::engine::stream::reader::{Flags, probe_flags};
use crate::engine::writes::Write;

pub use identity::Rival;
use identity::{Identity, is_same_deployment, reach, refuse_memory, refuse_unless_empty};
use origins::{chain, refuse_ring};
pub use taking::{name_as_uuid, ranges_between};

/// Databases of the server's own.
const FORBIDDEN: [&str; 3] = ["admin", "local", "config"];

/// Everything a running mirror needs.
pub struct Planned {
    /// The source database.
    pub source: Database,
    /// The target database.
    pub target: Commands,
    /// The mirror's memory.
    pub state: StateStore,
    /// Our fencing epoch.
    pub epoch: i64,
    /// What the target accepts.
    pub abilities: TargetAbilities,
    /// Changed documents are read again up to the end of the next transaction that is written in
    /// pieces, or until the mirror has caught up: its changes could not be laid over what is there.
    pub careful: bool,
    /// What the source shows.
    pub flags: Flags,
    /// The collections.
    pub catalog: Catalog,
    /// The ranges of those that are not copied yet.
    pub ranges: HashMap<CollectionIndex, Ranges>,
    /// Sizes of the collections to copy.
    pub sizes: HashMap<CollectionIndex, Size>,
    /// Where the mirror stands.
    pub position: Position,
    /// What is ahead of it.
    pub ahead: Ahead,
    /// What was written outside of transactions, and may be ahead of the position.
    pub outside: Outside,
    /// Documents that the target refuses.
    pub quarantine: Vec<Quarantined>,
    /// The target holds a collection that neither the source nor the mirror knows.
    pub has_strangers: bool,
    /// An earlier process began a command, and this one has not met it yet.
    pub in_command: bool,
    /// Collections that should be on the target, and are not.
    missing: HashSet<Uuid>,
    /// The copy's figures.
    pub figures: CopyFigures,
    /// The last comparison of both sides, if there was one.
    pub verified: Option<VerificationResult>,
    /// Whether the source is known by its replica set's id, and not only by name.
    pub source_is_certain: bool,
    /// Shows others that this process works.
    pub showing: Option<AbortOnDropHandle<()>>,
    /// Sessions to write with: one for each lane of the copy, some for lanes of batches, and one
    /// more.
    pub sessions: Vec<ClientSession>,
    /// Nobody else may end them.
    pub in_use: InUse,
}

/// Connects, checks, and plans.
///
/// # Errors
/// Every refusal of [`Error`]; what the exchanges met.
pub async fn prepare(
    config: &MirrorConfig,
    connections: &Connections,
    publish: &watch::Sender<Progress>,
    known: &mut Before,
) -> Result<Planned> {
    let target_name = &config.target.database;
    for written in [target_name, &config.state_database] {
        if FORBIDDEN.contains(&written.as_str()) {
            return Err(Error::TargetForbidden(written.clone()));
        }
    }
    if [target_name, &config.source.database].contains(&&config.state_database) {
        return Err(Error::TargetForbidden(config.state_database.clone()));
    }
    let source_client = connections.source.client();
    let source_server = reach(source_client, Side::Source, publish).await?;
    let target_client = connections.target.client();
    let target_server = reach(target_client, Side::Target, publish).await?;
    if is_same_deployment(&source_server, &target_server) && config.source.database == *target_name
    {
        return Err(Error::SameDatabase(target_name.clone()));
    }
    let read = [(config.source.database.as_str(), privileges::READ)];
    privileges::check(source_client, Side::Source, &read).await?;
    let write = privileges::write_all();
    let written = [
        (target_name.as_str(), write.as_slice()),
        (config.state_database.as_str(), privileges::NOTES),
    ];
    privileges::check(target_client, Side::Target, &written).await?;
    let source = readable(source_client, config);
    let target = Commands {
        side: Side::Target,
        db: target_client.database(target_name),
    };
    let mut state = StateStore::new(target_client, &config.state_database, target_name);
    // These read what the mirror will read, so a missing privilege shows before anything is
    // written.
    catalog::list(&source, Side::Source).await?;
    let flags = probe_flags(&source).await?;
    let mut abilities = target_abilities(state.commands()).await?;
    abilities.internal_delta &= flags.internal
        && config.limits.internal_delta
        && members::are_of_version(target_client, &target_server.version).await;
    let flags = Flags {
        internal: flags.internal && config.limits.internal_delta,
    };
    let source_identity = source_server.identity();
    let origins = origins::origins(source_client, &source_identity, config).await;
    refuse_ring(&origins, &target_server.identity(), config)?;
    let identity = Identity {
        config,
        source: source_identity,
        origins,
    };
    let before = state.load().await?;
    identity.check(before.as_ref())?;
    match &before {
        None if config.on_existing_data == OnExistingData::Refuse => {
            refuse_unless_empty(&target).await?;
        }
        None => refuse_memory(&target).await?,
        Some(before) => {
            let is_own = known.own_epoch.is_none_or(|own| own == before.epoch);
            if !is_own && known.rival == Rival::None {
                known.rival = Rival::Unknown;
            }
            if before.released {
                // Whoever had it has let it go.
                known.rival = Rival::None;
            }
            let notes = state.noted().await?;
            known.rival.refuse_another_holder(config, before, notes)?;
            known.rival.refuse_if_alive(before, notes)?;
            // What a killed process left open holds the checkpoint; it would hold us up too.
            let left = connections.target.unused(&before.sessions);
            state.end_sessions(&left).await;
        }
    }
    let reselects = identity.reselects(before.as_ref());
    let document = identity.document(before.as_ref());
    let checkpoint = state.claim(document, before.as_ref()).await?;
    known.own_epoch = Some(checkpoint.epoch);
    let mut sessions = Vec::new();
    let lanes = match config.apply_mode {
        ApplyMode::Transactional => 0,
        ApplyMode::Parallel => MOST_LANES,
    };
    for _ in 0..=config.limits.copy_lanes + lanes {
        sessions.push(start_session(&state).await?);
    }
    let notes = start_session(&state).await?;
    let ids: Vec<Bson> = sessions
        .iter()
        .chain([&notes])
        .filter_map(|session| session.id().get("id").cloned())
        .collect();
    let in_use = connections.target.uses(ids);
    // The driver may have handed us one in which another mirror was cut off.
    state.end_sessions(in_use.ids()).await;
    state
        .update(
            Write::NoteSessions,
            checkpoint.epoch,
            doc! {"sessions": in_use.ids()},
        )
        .await?;
    state.take_over(checkpoint.epoch, notes, lanes).await?;
    // Planning can take long, too.
    let showing = state.clone().keep_showing();
    let showing = AbortOnDropHandle::new(tokio::spawn(showing));
    // Of two that began at once, each sees the other only now.
    let origins = origins::origins(source_client, &identity.source, config).await;
    refuse_ring(&origins, &target_server.identity(), config)?;
    let comes_from = chain(&origins);
    if let Some(origin) = &comes_from {
        tracing::info!(mirror = %config.name, "the source is a mirror's target itself, of {origin}");
    }
    publish.send_modify(|progress| progress.comes_from = comes_from);
    let verified = state.load_verification().await?;
    let mut planned = Planned {
        source,
        target,
        epoch: checkpoint.epoch,
        state,
        abilities,
        careful: known.careful,
        flags,
        catalog: Catalog::default(),
        ranges: HashMap::new(),
        sizes: HashMap::new(),
        position: Position {
            time: ClusterTime::ZERO,
            start: StartPoint::At(ClusterTime::ZERO),
        },
        ahead: Ahead::default(),
        outside: checkpoint.outside.clone(),
        quarantine: Vec::new(),
        has_strangers: false,
        in_command: false,
        missing: HashSet::new(),
        figures: checkpoint.copy,
        verified,
        showing: Some(showing),
        source_is_certain: identity.source.contains('/') && checkpoint.source.contains('/'),
        sessions,
        in_use,
    };
    planned.begin(config, known, checkpoint, reselects).await?;
    // Lanes of an earlier process could note something until the ranges were ours.
    planned.quarantine = planned.state.load_quarantine().await?;
    Ok(planned)
}

impl Planned {
    /// Begins anew or goes on, as the checkpoint and what is asked for say.
    async fn begin(
        &mut self,
        config: &MirrorConfig,
        known: &Before,
        checkpoint: Checkpoint,
        reselects: bool,
    ) -> Result<()> {
        if reselects {
            self.begin_selection().await?;
        }
        match checkpoint.position {
            Some(_)
                if known.compares()
                    || checkpoint.resync
                    || (reselects && checkpoint.in_command) =>
            {
                let begun =
                    checkpoint.in_command || checkpoint.resync || known.is_asked() || reselects;
                self.resync(config, begun).await?;
            }
            Some(position) => {
                // What was written outside of transactions may be ahead, too.
                let until = checkpoint.ahead_until.max(checkpoint.outside.until);
                self.ahead = Ahead::new(until, position.time);
                self.in_command = checkpoint.in_command;
                self.resume(config, position, reselects).await?;
                let joining = match reselects {
                    true => self.joining(config).await?,
                    false => Some(Vec::new()),
                };
                match joining {
                    Some(joining) => {
                        if reselects {
                            self.let_go_of_all(config).await?;
                        }
                        let armed = checkpoint.armed;
                        self.take_uncertain(config, armed, reselects).await?;
                        self.take_in_all(config, joining).await?;
                    }
                    None => {
                        self.forget();
                        self.resync(config, true).await?;
                    }
                }
            }
            None if config.on_existing_data == OnExistingData::Adopt => {
                if !checkpoint.resync {
                    self.state.clear().await?;
                }
                self.resync(config, true).await?;
            }
            None => self.start_afresh(config, &checkpoint.planned).await?,
        }
        if reselects {
            self.let_go_of_views(config).await?;
            self.note_selection(config).await?;
        }
        Ok(())
    }

    /// Goes on from the checkpoint.
    async fn resume(
        &mut self,
        config: &MirrorConfig,
        position: Position,
        reselects: bool,
    ) -> Result<()> {
        // What was read is held by a majority, so only a source that was restored has less. Its
        // stream would open, and skip everything up to the position (`facts` mongodb 5.1).
        if position.time > operation_time(self.source.client(), Side::Source).await? {
            let position = position.time;
            return Err(Error::HistoryLost { position });
        }
        self.position = position;
        self.state.claim_ranges(self.epoch).await?;
        let catalog = self.state.load_catalog().await?;
        let ranges = self.state.load_ranges().await?;
        let mut ranges = ranges_by_collection(&catalog, ranges)?;
        let there = catalog::list(&self.target.db, Side::Target).await?;
        let listed = catalog::list(&self.source, Side::Source).await?;
        if !self.in_command {
            let is_on_source = |name: &str| listed.iter().any(|listed| listed.name == name);
            let collections = there.iter().filter(|there| there.is_data());
            let names = collections.map(|there| there.name.clone());
            // Others may be left from an earlier selection.
            let names = names.filter(|name| selects(config, name));
            // What the source does not have is a stranger's, and is not missed in the catalog.
            let (ours, strangers): (Vec<_>, Vec<_>) = names.partition(|name| is_on_source(name));
            // What an earlier process was about to let go, and what came into the selection, is
            // taken anew.
            if !reselects {
                refuse_gaps(&catalog, &ranges, &ours)?;
            }
            self.has_strangers = strangers
                .iter()
                .any(|name| catalog.iter().all(|entry| entry.name != *name));
        }
        let source = self.source_commands();
        for entry in catalog {
            if let Some(reason) = &entry.left_out {
                self.catalog.leave_out(entry.uuid, &entry.name, reason);
                continue;
            }
            let ranges = ranges.remove(&entry.uuid);
            let name = entry.name.clone();
            let index = self.catalog.insert(entry);
            let known = self.catalog.get_mut(index);
            known.guard = there
                .iter()
                .find(|there| there.name == name)
                .and_then(|there| there.uuid);
            // Within a command it may have the name that the source gave it meanwhile.
            let is_called_so = |it: &Listed| it.uuid == Some(known.entry.uuid) && it.name == name;
            let may_be_elsewhere = self.in_command && !listed.iter().any(is_called_so);
            if known.guard.is_none() && known.entry.copied && !may_be_elsewhere {
                self.missing.insert(known.entry.uuid);
            }
            if let Some(mut ranges) = ranges {
                let way = self.catalog.get(index).entry.way();
                if way == Way::InOrder {
                    self.interrupt_windows(&mut ranges);
                }
                let is_done = |range: &RangeEntry| matches!(range.state, RangeState::Done(_));
                if way != Way::Transactional && !ranges.iter().all(is_done) {
                    // It is made anew on the target, and its indexes go with what was there.
                    self.catalog.get_mut(index).entry.begins_anew();
                }
                self.ranges.insert(index, Ranges::new(ranges));
            }
            if !self.catalog.get(index).entry.copied {
                self.sizes.insert(index, size(&source, &name).await?);
            }
        }
        for listed in &listed {
            self.note_left_out(config, listed);
        }
        self.refuse_another_source(&listed, |name| reselects || selects(config, name), config)
    }

    /// What the copy of a capped collection may have seen beyond the position is not remembered.
    fn interrupt_windows(&self, ranges: &mut [RangeEntry]) {
        for range in ranges {
            if matches!(range.state, RangeState::Done(at) if at.to > self.position.time) {
                range.state = RangeState::Copying;
            }
        }
    }

    /// What may not be what the position says is copied again: what an earlier process had begun to
    /// make anew, what is gone from the target, everything that may have expired or been evicted on a
    /// target that was armed, and capped collections that were written to when the last process ended.
    async fn take_uncertain(
        &mut self,
        config: &MirrorConfig,
        armed: bool,
        reselects: bool,
    ) -> Result<()> {
        let uncertain: Vec<(Uuid, String)> = self
            .catalog
            .alive()
            .filter(|(index, collection)| {
                let entry = &collection.entry;
                let written = self.outside.collections.contains(&entry.uuid);
                let begun = (self.in_command || reselects)
                    && !entry.copied
                    && !self.ranges.contains_key(index);
                // A stranger dropped it; writing to it would make it anew, without all that it held.
                let is_gone = self.missing.contains(&entry.uuid);
                begun
                    || is_gone
                    || (armed && has_clock(entry))
                    || (written && entry.way() == Way::InOrder)
            })
            .map(|(_, collection)| (collection.entry.uuid, collection.entry.name.clone()))
            .collect();
        if !uncertain.is_empty() {
            let set = doc! {"inCommand": true};
            self.state
                .update(Write::HoldCheckpoint, self.epoch, set)
                .await?;
        }
        for (uuid, name) in uncertain {
            self.take(config, uuid, &name).await?;
        }
        if armed {
            self.state
                .update(Write::Disarm, self.epoch, doc! {"armed": false})
                .await?;
        }
        Ok(())
    }

    /// A replica set that is known by name only may have been made anew: if nothing of what was
    /// mirrored exists there any more, but other collections do, it is not the one.
    fn refuse_another_source(
        &self,
        listed: &[Listed],
        takes_part: impl Fn(&str) -> bool,
        config: &MirrorConfig,
    ) -> Result<()> {
        let there: Vec<&Uuid> = listed
            .iter()
            .filter(|listed| takes_part(&listed.name))
            .filter_map(|listed| listed.uuid.as_ref())
            .collect();
        let nothing_known = !there.iter().any(|uuid| self.catalog.find(uuid).is_some());
        let something_was = self.catalog.alive().next().is_some();
        if !self.source_is_certain && something_was && !there.is_empty() && nothing_known {
            return Err(Error::SourceReplaced(config.source.database.clone()));
        }
        Ok(())
    }

    /// Plans the copy: what exists at `T0`, and its ranges.
    async fn start_afresh(
        &mut self,
        config: &MirrorConfig,
        planned_before: &[String],
    ) -> Result<()> {
        let (listed, indexes, t0) = self.list_at_one_time(config).await?;
        self.state.clear().await?;
        // The target was empty when it became ours: what an earlier plan announced and left there
        // goes, anything else is somebody's.
        for there in catalog::list(&self.target.db, Side::Target).await? {
            let is_own = planned_before.contains(&there.name)
                || there.name == ddl::DROPPED
                || config.on_existing_data == OnExistingData::Replace;
            // System collections come and go with what they belong to; but scripts.
            if there.name.starts_with("system.") && there.name != ddl::SCRIPTS {
                continue;
            }
            if is_own {
                ddl::drop(&self.target, &there.name).await?;
            } else if !there.name.starts_with("system.") {
                return Err(Error::TargetNotEmpty {
                    database: self.target.db.name().to_owned(),
                    example: there.name,
                });
            }
        }
        let names: Vec<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
        self.state
            .update(Write::AnnouncePlan, self.epoch, doc! {"planned": names})
            .await?;
        self.figures = CopyFigures {
            started_at: Some(DateTime::now()),
            ..CopyFigures::default()
        };
        for (listed, indexes) in listed.into_iter().zip(indexes) {
            if !selects(config, &listed.name)
                || listed.is_shown_elsewhere()
                || self.note_left_out(config, &listed)
            {
                continue;
            }
            let options = target_options(&listed.options);
            let Some(uuid) = listed.uuid else {
                ddl::create(&self.target, &listed.name, &options).await?;
                continue;
            };
            let entry = CatalogEntry::new(uuid, &listed.name, listed.options, indexes);
            if self.create(&entry).await? {
                self.take_in(config, entry, &listed.name, false).await?;
            }
        }
        self.begin_at(t0).await
    }

    /// The plan is complete: from here on the mirror can go on from its checkpoint.
    pub(in crate::engine) async fn begin_at(&mut self, t0: ClusterTime) -> Result<()> {
        self.position = Position {
            time: t0,
            start: StartPoint::At(t0),
        };
        // Nothing of what came before counts any more.
        self.outside = Outside::default();
        let set = doc! {
            "position": encode_position(&self.position),
            "copy": encode_figures(&self.figures),
            "ahead": [],
            "planned": [],
            "resync": false,
            "armed": false,
            "inCommand": false,
            "outside": encode_outside(&self.outside),
        };
        self.state
            .update(Write::CompletePlan, self.epoch, set)
            .await
    }

    /// What both sides together can do.
    pub fn possible(&self) -> Possible {
        Possible::new(self.flags, &self.target.db)
    }

    fn source_commands(&self) -> Commands {
        Commands {
            side: Side::Source,
            db: self.source.clone(),
        }
    }
}

/// Whether a collection takes part; the buckets of a time-series collection do as that does.
pub fn selects(config: &MirrorConfig, name: &str) -> bool {
    let name = name.strip_prefix(BUCKETS).unwrap_or(name);
    config.selection.selects(name)
}
