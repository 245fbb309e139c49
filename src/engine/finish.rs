//! The end of a mirror for good: what was withheld on the target is armed, so that it is an
//! ordinary database from then on.
//!
//! While mirrored, nothing expires and nothing is evicted by the target itself, and unique indexes
//! are enforced only once the mirror has caught up. A mirror that ends for good leaves all of that
//! as the source has it. The checkpoint says so (`armed`), and the notes stay: a mirror of the same
//! name can go on, and first takes back what was armed.

use std::time::Duration;

use bson::{Document, doc};

use super::apply::ddl;
use super::apply::indexes::{is_due, tend};
use super::apply::writer::start_session;
use super::catalog::{self, Listed, armed_options};
use super::command::Commands;
use super::config::{MirrorConfig, OnDeselected};
use super::connection::shared::Clients;
use super::error::{Error, Result, Side};
use super::selection::Selection;
use super::state::{CatalogEntry, Checkpoint, Index, Stage, StateStore, is_compared};
use super::writes::Write;

/// Longest time for all of it: whoever deletes a mirror waits for nothing, and a target that does
/// not answer must not hold up what comes after.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What becomes of the target when its mirror ends for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It is armed, and stays.
    Arm,
    /// All that the mirror has made is dropped, and what is remembered of it.
    Delete,
}

/// Arms or deletes the target. Only the target is asked; the mirror must not run any more.
///
/// # Errors
/// What the exchange met, or that it took longer than [`LIMIT`]. What was done by then stays so; a
/// mirror that goes on makes the rest of a half-deleted target anew. Otherwise whether the target was
/// this mirror's at all.
pub async fn finish(config: &MirrorConfig, end: End) -> Result<bool> {
    let ended = tokio::time::timeout(LIMIT, async {
        let alone = Clients::default();
        let connection = alone.connect(&config.target, Side::Target).await?;
        let outcome = match end {
            End::Arm => arm(config, connection.client()).await,
            End::Delete => delete(config, connection.client()).await,
        };
        connection.close().await;
        outcome
    });
    ended.await.unwrap_or(Err(Error::Timeout {
        side: Side::Target,
        doing: match end {
            End::Arm => "arm it",
            End::Delete => "delete it",
        },
        after: LIMIT,
    }))
}

/// A target that was taken over.
struct Taken {
    state: StateStore,
    epoch: i64,
    target: Commands,
    before: Checkpoint,
}

/// Takes the mirror over, so that nobody else writes any more, and says what is about to be done:
/// whoever goes on must find out, also if this is cut off. Nothing if it is not this mirror's.
async fn take_over(
    config: &MirrorConfig,
    client: &mongodb::Client,
    announced: Document,
    may: impl Fn(&Checkpoint) -> bool,
) -> Result<Option<Taken>> {
    let mut state = StateStore::new(client, &config.state_database, &config.target.database);
    let is_ours = |found: &Checkpoint| is_ours(config, found) && may(found);
    let Some(checkpoint) = state.load().await?.filter(is_ours) else {
        return Ok(None);
    };
    state.end_sessions(&checkpoint.sessions).await;
    let epoch = state.claim(announced, Some(&checkpoint)).await?.epoch;
    let notes = start_session(&state).await?;
    let ids: Vec<_> = notes.id().get("id").into_iter().collect();
    let set = doc! {"sessions": ids};
    state.update(Write::NoteSessions, epoch, set).await?;
    state.take_over(epoch, notes, 0).await?;
    let target = Commands {
        side: Side::Target,
        db: client.database(&config.target.database),
    };
    Ok(Some(Taken {
        state,
        epoch,
        target,
        before: checkpoint,
    }))
}

/// Drops all that was selected when the mirror last ran: that much of the target is its alone. What
/// was let go stays, and what is to be let go if it would have stayed.
async fn delete(config: &MirrorConfig, client: &mongodb::Client) -> Result<bool> {
    let resync = doc! {"resync": true};
    let is_held = |found: &Checkpoint| found.holder == config.holder;
    let Some(taken) = take_over(config, client, resync, is_held).await? else {
        return Ok(false);
    };
    let Taken {
        state,
        epoch,
        target,
        before,
    } = taken;
    // One that has not even planned yet has made nothing but what it has announced.
    let is_its_own = before.position.is_some() || before.resync;
    let mut noted = state.load_catalog().await?;
    noted.retain(|entry| entry.left_out.is_none());
    let ranges = state.load_ranges().await?;
    // As they are let go of by a mirror that runs: whole, armed, or not at all.
    let lets_go = |name: &str| {
        config.on_deselected == OnDeselected::Retain && !config.selection.selects(name)
    };
    let retains = |entry: &CatalogEntry| {
        let its_ranges = ranges.iter().filter(|range| range.uuid == entry.uuid);
        lets_go(entry.public_name()) && (entry.copied || is_compared(its_ranges))
    };
    let (retained, dropped): (Vec<_>, Vec<_>) = noted.into_iter().partition(retains);
    for entry in &retained {
        // What cannot be armed is told, and does not keep the rest.
        let _ = tolerated(config, arm_clocks(&target, entry).await)?;
    }
    let selected = Selection::of_fingerprint(&before.selection);
    let selected = selected.as_ref().unwrap_or(&config.selection);
    let is_one = |there: &Listed| {
        let name = there.name.as_str();
        let is_to_go = || dropped.iter().any(|entry| entry.public_name() == name);
        let stays = lets_go(name) && there.kind != "view" && !is_to_go();
        let is_system = name.starts_with("system.") && name != ddl::SCRIPTS;
        let is_made = match is_its_own {
            // Another selection is being brought about.
            true if before.selection == Selection::UNDER_WAY => {
                is_to_go() || there.kind == "view" && selected.selects(name)
            }
            true => selected.selects(name),
            false => before.planned.iter().any(|planned| planned == name),
        };
        !is_system && (is_made && !stays || name == ddl::DROPPED)
    };
    let mut there = catalog::list(&target.db, Side::Target).await?;
    // Views first: they may be of the others.
    there.sort_by_key(|there| there.kind != "view");
    for there in there.iter().filter(|there| is_one(there)) {
        ddl::drop(&target, &there.name).await?;
    }
    state.clear().await?;
    state.forget(epoch).await?;
    Ok(true)
}

async fn arm(config: &MirrorConfig, client: &mongodb::Client) -> Result<bool> {
    let armed = doc! {"armed": true, "ended": true};
    // Another one of this name may have it.
    let is_free = |found: &Checkpoint| {
        let holders = found.holder.as_ref().zip(config.holder.as_ref());
        holders.is_none_or(|(one, other)| one == other)
    };
    let Some(taken) = take_over(config, client, armed, is_free).await? else {
        return Ok(false);
    };
    let Taken { state, target, .. } = taken;
    let mut first = Ok(());
    let entries = state.load_catalog().await?;
    let mut entries: Vec<CatalogEntry> = entries
        .into_iter()
        .filter(|entry| entry.left_out.is_none())
        .collect();
    // What takes an instant comes first for all, what may have to build something after.
    for entry in &entries {
        first = first.and(tolerated(config, arm_clocks(&target, entry).await)?);
    }
    for entry in &mut entries {
        first = first.and(tolerated(
            config,
            build_the_rest(&target, &state, entry).await,
        )?);
    }
    first.map(|()| true)
}

/// A collection that cannot be armed does not keep the others from it.
fn tolerated(config: &MirrorConfig, outcome: Result<()>) -> Result<Result<()>> {
    match outcome {
        Err(error) if error.is_connection() => Err(error),
        Err(error) => {
            tracing::warn!(mirror = %config.name, %error, "a part of the target could not be armed");
            Ok(Err(error))
        }
        Ok(()) => Ok(Ok(())),
    }
}

fn is_ours(config: &MirrorConfig, found: &Checkpoint) -> bool {
    found.mirror == config.name && found.database == config.source.database
}

/// Caps, and what expires.
pub(super) async fn arm_clocks(target: &Commands, entry: &CatalogEntry) -> Result<()> {
    let mut outcome = Ok(());
    if let Some(armed) = armed_options(&entry.options) {
        outcome = ddl::modify(target, &entry.name, &armed).await;
    }
    for index in &entry.indexes {
        let Some(after) = index.spec.get("expireAfterSeconds") else {
            continue;
        };
        if index.stage != Stage::Missing {
            let change = doc! {"index": {"name": index.name(), "expireAfterSeconds": after}};
            outcome = outcome.and(ddl::modify(target, &entry.name, &change).await);
        }
    }
    outcome
}

/// Indexes that are missing, or not unique yet.
async fn build_the_rest(
    target: &Commands,
    state: &StateStore,
    entry: &mut CatalogEntry,
) -> Result<()> {
    let is_due = |index: &Index| is_due(index, true);
    if !entry.copied || !entry.indexes.iter().any(is_due) {
        return Ok(());
    }
    let was_missing = |index: &Index| index.stage == Stage::Missing;
    let were_missing = entry.indexes.iter().any(was_missing);
    let collated = entry.is_collated();
    let tended = tend(target, &entry.name, &entry.indexes, collated, true).await?;
    for tended in tended {
        if let Some(index) = entry.index(&tended.name) {
            index.stage = tended.stage;
            index.problem = tended.problem;
        }
    }
    state.put_collection(entry).await?;
    if were_missing {
        // They are built so that nothing expires.
        arm_clocks(target, entry).await?;
    }
    Ok(())
}
