//! What is there, what shall be there: refuse, start afresh, or go on.
//!
//! Nothing is written to any database before every check has passed.

use std::collections::HashMap;

use bson::{Bson, DateTime, doc};
use mongodb::{Client, ClientSession, Database};
use tokio::sync::watch;

use super::apply::ddl;
use super::apply::gather::CollectionIndex;
use super::apply::writer::start_session;
use super::catalog::{self, Catalog, Listed, is_collated, list_indexes, target_options};
use super::command::Commands;
use super::config::{Endpoint, MirrorConfig};
use super::connection::client::connect;
use super::connection::probe::{
    Server, TargetAbilities, await_committed, operation_time, probe, target_abilities,
};
use super::copy::ranges::Ranges;
use super::copy::split::{Size, bounds, size};
use super::error::{Error, Result, Side};
use super::position::{ClusterTime, Position, StartPoint};
use super::progress::Progress;
use super::state::{
    Ahead, CatalogEntry, Checkpoint, CopyFigures, DATABASE, RangeEntry, RangeState, StateStore,
    encode_figures, encode_position,
};
use super::stream::event::Uuid;
use super::stream::reader::{Flags, probe_flags};

/// Databases of the server's own, and ours.
const FORBIDDEN: [&str; 4] = ["admin", "local", "config", DATABASE];

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
    /// Documents that are ahead of it.
    pub ahead: Vec<Ahead>,
    /// The copy's figures.
    pub figures: CopyFigures,
    /// Whether the source is known by its replica set's id, and not only by name.
    pub source_is_certain: bool,
    /// Sessions to write with, one more than there are copy lanes.
    pub sessions: Vec<ClientSession>,
}

/// Another process that took the mirror over, as last seen in the checkpoint.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Rival {
    /// Nobody did.
    #[default]
    None,
    /// Somebody did; nothing more is known.
    Unknown,
    /// Somebody did, and this is what they last wrote.
    Seen(i64, Option<DateTime>),
}

impl Rival {
    /// Whoever was fenced takes the mirror back only from a process that no longer writes. A live
    /// one moves its checkpoint at least every 20 s, so two looks half a minute apart tell; and no
    /// clocks are compared.
    fn refuse_if_alive(&mut self, now: &Checkpoint) -> Result<()> {
        let seen = Self::Seen(now.epoch, now.updated_at);
        if *self == Self::None || *self == seen {
            *self = Self::None;
            return Ok(());
        }
        *self = seen;
        Err(Error::Fenced { epoch: now.epoch })
    }
}

/// Connects, checks, and plans.
///
/// # Errors
/// Every refusal of [`Error`]; what the exchanges met.
pub async fn prepare(
    config: &MirrorConfig,
    publish: &watch::Sender<Progress>,
    rival: &mut Rival,
    own_epoch: &mut Option<i64>,
) -> Result<Planned> {
    let target_name = &config.target.database;
    if FORBIDDEN.contains(&target_name.as_str()) {
        return Err(Error::TargetForbidden(target_name.clone()));
    }
    let (source_client, source_server) = reach(&config.source, Side::Source, publish).await?;
    let (target_client, target_server) = reach(&config.target, Side::Target, publish).await?;
    if is_same_deployment(&source_server, &target_server) && config.source.database == *target_name
    {
        return Err(Error::SameDatabase(target_name.clone()));
    }
    let source = source_client.database(&config.source.database);
    let target = Commands {
        side: Side::Target,
        db: target_client.database(target_name),
    };
    let state = StateStore::new(&target_client, target_name);
    // These read what the mirror will read, so a missing privilege shows before anything is
    // written.
    catalog::list(&source, Side::Source).await?;
    let flags = probe_flags(&source).await?;
    let mut abilities = target_abilities(state.commands()).await?;
    abilities.internal_delta &= flags.internal && config.limits.internal_delta;
    let flags = Flags {
        internal: flags.internal && config.limits.internal_delta,
    };
    let identity = Identity {
        config,
        source: source_server.identity(),
    };
    let before = state.load().await?;
    identity.check(before.as_ref())?;
    match &before {
        None => refuse_unless_empty(&target).await?,
        Some(before) => {
            if own_epoch.is_some_and(|own| own != before.epoch) && *rival == Rival::None {
                *rival = Rival::Unknown;
            }
            rival.refuse_if_alive(before)?;
            // What a killed process left open holds the checkpoint; it would hold us up too.
            state.end_sessions(&before.sessions).await;
        }
    }
    let checkpoint = state.claim(identity.document(), before.as_ref()).await?;
    *own_epoch = Some(checkpoint.epoch);
    let mut sessions = Vec::new();
    for _ in 0..=config.limits.copy_lanes {
        sessions.push(start_session(&state).await?);
    }
    let ids: Vec<Bson> = sessions
        .iter()
        .filter_map(|session| session.id().get("id").cloned())
        .collect();
    state
        .update(checkpoint.epoch, doc! {"sessions": ids})
        .await?;
    let mut planned = Planned {
        source,
        target,
        epoch: checkpoint.epoch,
        state,
        abilities,
        flags,
        catalog: Catalog::default(),
        ranges: HashMap::new(),
        sizes: HashMap::new(),
        position: Position {
            time: ClusterTime::ZERO,
            start: StartPoint::At(ClusterTime::ZERO),
        },
        ahead: checkpoint.ahead.clone(),
        figures: checkpoint.copy,
        source_is_certain: identity.source.contains('/') && checkpoint.source.contains('/'),
        sessions,
    };
    match checkpoint.position {
        Some(position) => planned.resume(config, position).await?,
        None => planned.start_afresh(config, &checkpoint.planned).await?,
    }
    Ok(planned)
}

async fn reach(
    endpoint: &Endpoint,
    side: Side,
    publish: &watch::Sender<Progress>,
) -> Result<(Client, Server)> {
    let client = connect(&endpoint.uri, side).await?;
    let server = probe(&client, side).await?;
    publish.send_modify(|progress| {
        let link = match side {
            Side::Source => &mut progress.source,
            Side::Target => &mut progress.target,
        };
        link.set(true, "");
    });
    Ok((client, server))
}

fn is_same_deployment(a: &Server, b: &Server) -> bool {
    let same = |a: Option<_>, b: Option<_>| a.is_some() && a == b;
    same(a.process, b.process) || same(a.set_id, b.set_id)
}

async fn refuse_unless_empty(target: &Commands) -> Result<()> {
    let there = catalog::list(&target.db, Side::Target).await?;
    match there
        .into_iter()
        .find(|there| !there.name.starts_with("system."))
    {
        None => Ok(()),
        Some(there) => Err(Error::TargetNotEmpty {
            database: target.db.name().to_owned(),
            example: there.name,
        }),
    }
}

/// Who a mirror is, to its checkpoint.
struct Identity<'a> {
    config: &'a MirrorConfig,
    source: String,
}

impl Identity<'_> {
    fn document(&self) -> bson::Document {
        doc! {
            "mirror": &self.config.name,
            "source": &self.source,
            "database": &self.config.source.database,
            "selection": self.config.selection.fingerprint(),
        }
    }

    fn check(&self, before: Option<&Checkpoint>) -> Result<()> {
        let Some(before) = before else {
            return Ok(());
        };
        let same = before.mirror == self.config.name
            && before.database == self.config.source.database
            && Server::same_identity(&before.source, &self.source);
        if !same {
            return Err(Error::TargetBusy {
                database: self.config.target.database.clone(),
                owner: format!(
                    "{:?} on replica set {} (mirror {})",
                    before.database,
                    before.source.split('/').next().unwrap_or_default(),
                    before.mirror
                ),
            });
        }
        if before.position.is_some() && before.selection != self.config.selection.fingerprint() {
            return Err(Error::SelectionChanged(before.selection.clone()));
        }
        Ok(())
    }
}

impl Planned {
    /// Goes on from the checkpoint.
    async fn resume(&mut self, config: &MirrorConfig, position: Position) -> Result<()> {
        self.position = position;
        self.state.claim_ranges(self.epoch).await?;
        let mut ranges: HashMap<Uuid, Vec<RangeEntry>> = HashMap::new();
        for range in self.state.load_ranges().await? {
            ranges.entry(range.uuid).or_default().push(range);
        }
        let source = self.source_commands();
        for entry in self.state.load_catalog().await? {
            if let Some(reason) = &entry.left_out {
                self.catalog.leave_out(entry.uuid, &entry.name, reason);
                continue;
            }
            let ranges = ranges.remove(&entry.uuid);
            let (copied, name) = (entry.copied, entry.name.clone());
            let index = self.catalog.insert(entry);
            if let Some(ranges) = ranges {
                self.ranges.insert(index, Ranges::new(ranges));
            }
            if !copied {
                self.sizes.insert(index, size(&source, &name).await?);
            }
        }
        let listed = catalog::list(&self.source, Side::Source).await?;
        for listed in &listed {
            self.note_left_out(config, listed);
        }
        self.refuse_another_source(config, &listed)
    }

    /// A replica set that is known by name only may have been made anew: if nothing of what was
    /// mirrored exists there any more, but other collections do, it is not the one.
    fn refuse_another_source(&self, config: &MirrorConfig, listed: &[Listed]) -> Result<()> {
        let there: Vec<&Uuid> = listed
            .iter()
            .filter(|listed| config.selection.selects(&listed.name))
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
            if planned_before.contains(&there.name) {
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
            .update(self.epoch, doc! {"planned": names})
            .await?;
        let source = self.source_commands();
        self.figures = CopyFigures {
            started_at: Some(DateTime::now()),
            ..CopyFigures::default()
        };
        for (listed, indexes) in listed.iter().zip(indexes) {
            if !config.selection.selects(&listed.name) || self.note_left_out(config, listed) {
                continue;
            }
            ddl::create(&self.target, &listed.name, &target_options(&listed.options)).await?;
            let Some(uuid) = listed.uuid else {
                continue;
            };
            let collection_size = size(&source, &listed.name).await?;
            self.figures.documents_total += collection_size.documents;
            self.figures.bytes_total += collection_size.bytes;
            let collated = is_collated(&listed.options);
            let entry = CatalogEntry {
                uuid,
                name: listed.name.clone(),
                collated,
                copied: false,
                pending_indexes: indexes,
                index_problems: Vec::new(),
                left_out: None,
            };
            self.state.put_collection(&entry).await?;
            let splittable = !collated && !listed.options.contains_key("clusteredIndex");
            let bounds = if splittable {
                let range_bytes = config.limits.range_bytes;
                bounds(&self.source, &listed.name, collection_size, range_bytes).await?
            } else {
                Vec::new()
            };
            let index = self.catalog.insert(entry);
            self.sizes.insert(index, collection_size);
            let entries = ranges_between(uuid, &bounds);
            self.state.insert_ranges(self.epoch, &entries).await?;
            self.ranges.insert(index, Ranges::new(entries));
        }
        self.position = Position {
            time: t0,
            start: StartPoint::At(t0),
        };
        let set = doc! {
            "position": encode_position(&self.position),
            "copy": encode_figures(&self.figures),
        };
        self.state.update(self.epoch, set).await
    }

    /// Collections and indexes as they were at one cluster time: listed before and after it, until
    /// both lists agree.
    async fn list_at_one_time(
        &self,
        config: &MirrorConfig,
    ) -> Result<(Vec<Listed>, Vec<Vec<bson::Document>>, ClusterTime)> {
        let mut before = catalog::list(&self.source, Side::Source).await?;
        loop {
            let t0 = operation_time(self.source.client()).await?;
            await_committed(&self.source_commands(), t0).await?;
            let mut indexes = Vec::with_capacity(before.len());
            for listed in &before {
                // Of system collections not even the indexes may be listed by everybody.
                let wanted = config.selection.selects(&listed.name)
                    && listed.kind == "collection"
                    && listed.unsupported().is_none();
                indexes.push(if wanted {
                    list_indexes(&self.source, &listed.name, Side::Source).await?
                } else {
                    Vec::new()
                });
            }
            let after = catalog::list(&self.source, Side::Source).await?;
            if before == after {
                return Ok((before, indexes, t0));
            }
            before = after;
        }
    }

    /// Notes what cannot be mirrored; returns whether that is so.
    fn note_left_out(&mut self, config: &MirrorConfig, listed: &Listed) -> bool {
        let Some(reason) = listed.unsupported() else {
            return false;
        };
        // Views and internal buckets behind something that is named anyway.
        let named_elsewhere =
            listed.name == "system.views" || listed.name.starts_with("system.buckets.");
        if config.selection.selects(&listed.name) && !named_elsewhere {
            let uuid = listed.uuid.unwrap_or_else(|| name_as_uuid(&listed.name));
            self.catalog.leave_out(uuid, &listed.name, reason);
        }
        true
    }

    fn source_commands(&self) -> Commands {
        Commands {
            side: Side::Source,
            db: self.source.clone(),
        }
    }
}

/// Time-series collections have no UUID; a name is unique among what is left out.
pub fn name_as_uuid(name: &str) -> Uuid {
    let mut uuid: Uuid = [0; 16];
    for (index, byte) in name.bytes().enumerate() {
        uuid[index % 16] = uuid[index % 16].rotate_left(3) ^ byte;
    }
    uuid
}

/// One range more than there are bounds.
pub fn ranges_between(uuid: Uuid, bounds: &[super::bson::order::Value]) -> Vec<RangeEntry> {
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
            documents: 0,
            bytes: 0,
        })
        .collect()
}
