//! Proves that both sides are equal as of a time, while everything goes on.
//!
//! The owner stands still for an instant and notes the source's time T and the target's time S.
//! Then the source as of T is compared with the target as of S, by snapshot reads, in both
//! directions and byte for byte. So whatever is different really is: there are no false alarms to
//! be looked at again. Servers keep such states for five minutes by default; a verification that
//! takes longer notes new times and goes on where it is.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use mongodb::Database;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::apply::entity::Entity;
use super::bson::definition::Definition;
use super::bson::order::Value;
use super::catalog::{list, list_indexes};
use super::command::Commands;
use super::compare::{Broken, Comparison, Pair, Step, Stretch};
use super::connection::probe::operation_time;
use super::copy::split::{Size, size};
use super::definitions::{Definitions, Difference, differences};
use super::error::{Error, Result, Side};
use super::owner::asking::{Ask, Held, HeldCollection, Repair};
use super::position::ClusterTime;
use super::progress::{VerificationResult, VerificationRun};
use super::selection::Selection;
use super::snapshot::ReadEnd;
use super::state::{BUCKETS, CatalogEntry, Way};

/// How long a pair of times is used. Servers keep a state for 300 s by default.
const PIN_LIMIT: Duration = Duration::from_secs(120);

/// Bytes read at once from either side: small, so that the source's clients do not wait behind it.
const STRETCH: u64 = 1_000_000;

/// Times in a row that a collection cannot be read before the verification is given up; it is
/// tried again later. Between two of them is a pause of `PAUSE`.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// As many differences of options and indexes are told in words.
const DEFINITIONS_TOLD: usize = 20;

/// Ids that are put right in one batch.
const REPAIRED_AT_ONCE: usize = 500;

/// Everything a verification works with.
pub struct Verifier {
    /// The source database.
    pub source: Database,
    /// The target database.
    pub target: Database,
    /// What is mirrored.
    pub selection: Selection,
    /// The owner.
    pub asks: mpsc::Sender<Ask>,
    /// Bytes of the source to be read per second, at most.
    pub bytes_per_second: u64,
    /// Where to tell how far it is.
    pub told: watch::Sender<VerificationRun>,
}

/// How the comparison of a collection ended.
enum Walked {
    /// It is compared.
    Done,
    /// New times are needed.
    Repin,
}

/// What is counted on the way.
struct Tally {
    started: (SystemTime, Instant),
    collections: u64,
    documents: u64,
    bytes: u64,
    differences: u64,
    repaired: u64,
}

impl Verifier {
    /// Compares everything, and puts right what differs.
    ///
    /// # Errors
    /// What kept a collection from being read; what was compared before is lost.
    pub async fn run(self) -> Result<VerificationResult> {
        let mut tally = Tally {
            started: (SystemTime::now(), Instant::now()),
            collections: 0,
            documents: 0,
            bytes: 0,
            differences: 0,
            repaired: 0,
        };
        let mut held = self.hold().await?;
        let different = self.definitions(&mut held).await?;
        for difference in &different {
            tracing::warn!("{}; putting it right", difference.what);
            let (done, mended) = oneshot::channel();
            self.ask(Ask::Mend(difference.mend.clone(), done)).await?;
            tally.differences += 1;
            tally.repaired += u64::from(mended.await.map_err(|_| ended_owner())?);
        }
        if !different.is_empty() {
            // What is copied anew takes no part any more.
            held = self.hold().await?;
        }
        let collections = held.collections.clone();
        // Of capped collections no server shows an earlier state.
        let readable = |one: &HeldCollection| one.entry.way() != Way::InOrder;
        for collection in collections.into_iter().filter(readable) {
            self.collection(&mut held, &collection, &mut tally).await?;
            tally.collections += 1;
        }
        Ok(VerificationResult {
            time: SystemTime::now(),
            consistent_at: held.at,
            collections: tally.collections,
            documents: tally.documents,
            bytes: tally.bytes,
            differences: tally.differences,
            repaired: tally.repaired,
            duration: tally.started.1.elapsed(),
            definitions: different
                .into_iter()
                .map(|difference| difference.what)
                .take(DEFINITIONS_TOLD)
                .collect(),
        })
    }

    async fn collection(
        &self,
        held: &mut Held,
        collection: &HeldCollection,
        tally: &mut Tally,
    ) -> Result<()> {
        let size = self.size(&collection.entry.name).await?;
        let mut low = None;
        let mut tries = 0;
        loop {
            // It may have another name now, or be gone.
            let now = held
                .collections
                .iter()
                .find(|now| now.entry.uuid == collection.entry.uuid);
            let Some(now) = now.cloned() else {
                return Ok(());
            };
            let before = low.clone();
            match self.walk(held, &now, size, &mut low, tally).await {
                Ok(Walked::Done) => return Ok(()),
                Ok(Walked::Repin) => {}
                Err(error) if error.needs_human() || tries >= TRIES => return Err(error),
                Err(error) => tracing::debug!(%error, "comparing again"),
            }
            if before == low {
                tries += 1;
                if tries > TRIES {
                    return Err(Error::Reply {
                        side: Side::Source,
                        doing: "compare both sides",
                        what: format!(
                            "the collection {:?} cannot be read at one time",
                            now.entry.name
                        ),
                    });
                }
                tokio::time::sleep(PAUSE).await;
            } else {
                tries = 0;
            }
            *held = self.hold().await?;
        }
    }

    /// Compares options and indexes. There are no snapshot reads of these: both sides are listed
    /// while neither has changed any. The source is listed before and after; what was made and
    /// dropped again in between shows in the commands that the mirror has met by then.
    async fn definitions(&self, held: &mut Held) -> Result<Vec<Difference>> {
        for _ in 0..TRIES {
            let (source, listed_at) = self.define_source().await?;
            self.hold_from(listed_at, held).await?;
            let before = held.clone();
            let target = define(&self.target, Side::Target).await?;
            let (again, listed_at) = self.define_source().await?;
            *held = self.hold().await?;
            self.hold_from(listed_at, held).await?;
            let is_still = before.commands == held.commands && entries(&before) == entries(held);
            if is_still && again == source {
                let takes_part = |name: &str| {
                    let is_left_out = held.left_out.iter().any(|left_out| left_out == name);
                    self.selection.selects(name) && !is_left_out
                };
                return Ok(differences(&source, &target, &entries(held), takes_part));
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::info!("options and indexes change all the time; they are not compared");
        Ok(Vec::new())
    }

    /// What is defined on the source, and a time at which it was not older.
    async fn define_source(&self) -> Result<(Definitions, ClusterTime)> {
        let defined = define(&self.source, Side::Source).await?;
        let listed_at = operation_time(self.source.client(), Side::Source).await?;
        Ok((defined, listed_at))
    }

    /// Waits until the target is what the source was at this time, or later.
    async fn hold_from(&self, time: ClusterTime, held: &mut Held) -> Result<()> {
        while held.at < time {
            tokio::time::sleep(PAUSE / 10).await;
            *held = self.hold().await?;
        }
        Ok(())
    }

    /// Compares one collection at one pair of times, from `low` on, as far as these carry; `low` is
    /// then how far that was.
    async fn walk(
        &self,
        held: &Held,
        collection: &HeldCollection,
        size: Size,
        low: &mut Option<Value>,
        tally: &mut Tally,
    ) -> Result<Walked> {
        let pair = Pair {
            source: self.source.clone(),
            source_name: collection.entry.name.clone(),
            uuid: collection.entry.uuid,
            at: held.at,
            target: self.target.clone(),
            target_name: collection.entry.name.clone(),
            target_at: Some(held.target_at),
            collection: collection.index,
            batch_size: size.documents_in(STRETCH),
        };
        let mut comparison = match Comparison::open(pair, low.clone(), None).await {
            Ok(comparison) => comparison,
            Err(broken) => return ended(broken),
        };
        loop {
            match comparison.next().await {
                Ok(None) => return Ok(Walked::Done),
                Ok(Some(Step::Differences(different))) => {
                    tally.differences += different.len() as u64;
                    tally.repaired += self.repair(collection, different).await?;
                }
                Ok(Some(Step::Passed(stretch))) => {
                    *low = comparison.low().cloned();
                    self.passed(stretch, tally).await;
                }
                Err(broken) => return ended(broken),
            }
            if held.taken.elapsed() > PIN_LIMIT {
                return Ok(Walked::Repin);
            }
        }
    }

    /// Tells how far it is, and waits as long as the pace demands.
    async fn passed(&self, stretch: Stretch, tally: &mut Tally) {
        tally.documents += stretch.documents;
        tally.bytes += stretch.bytes;
        self.told.send_replace(VerificationRun {
            started_at: tally.started.0,
            documents: tally.documents,
            bytes: tally.bytes,
            differences: tally.differences,
        });
        #[allow(clippy::cast_precision_loss)]
        let pace = stretch.bytes as f64 / self.bytes_per_second.max(1) as f64;
        tokio::time::sleep(Duration::from_secs_f64(pace.min(60.0))).await;
    }

    /// Has documents put right; returns how many were not yet.
    async fn repair(&self, collection: &HeldCollection, different: Vec<Entity>) -> Result<u64> {
        tracing::warn!(
            collection = collection.entry.name,
            documents = different.len(),
            "documents differ; putting them right"
        );
        let mut repaired = 0;
        let keys: Vec<Value> = different.into_iter().map(|entity| entity.id).collect();
        for keys in keys.chunks(REPAIRED_AT_ONCE) {
            let (done, outcome) = oneshot::channel();
            let repair = Repair {
                uuid: collection.entry.uuid,
                keys: keys.to_vec(),
                done,
            };
            self.ask(Ask::Repair(repair)).await?;
            repaired += match outcome.await {
                // What is equal now was put right by a change that came since.
                Ok(done) => done.written + done.deleted + done.unchanged,
                // The collection is gone, and its differences with it.
                Err(_) => keys.len() as u64,
            };
        }
        Ok(repaired)
    }

    async fn hold(&self) -> Result<Held> {
        let (done, held) = oneshot::channel();
        self.ask(Ask::Hold(done)).await?;
        held.await.map_err(|_| ended_owner())
    }

    async fn ask(&self, ask: Ask) -> Result<()> {
        self.asks.send(ask).await.map_err(|_| ended_owner())
    }

    async fn size(&self, collection: &str) -> Result<Size> {
        let source = Commands {
            side: Side::Source,
            db: self.source.clone(),
        };
        size(&source, collection).await
    }
}

async fn define(db: &Database, side: Side) -> Result<Definitions> {
    let mut listed = list(db, side).await?;
    listed.retain(|listed| !listed.name.starts_with("system."));
    let mut indexes = HashMap::new();
    for listed in &listed {
        let name = match listed.kind.as_str() {
            "collection" => listed.name.clone(),
            "timeseries" => format!("{BUCKETS}{}", listed.name),
            _ => continue,
        };
        let mut of_it = match list_indexes(db, &name, side).await {
            Ok(of_it) => of_it,
            // Not everybody may do that with system collections.
            Err(error) if listed.kind == "timeseries" && error.needs_human() => continue,
            Err(error) => return Err(error),
        };
        of_it.sort_by(|a, b| a.get_str("name").ok().cmp(&b.get_str("name").ok()));
        let of_it = of_it.into_iter().map(Definition::from).collect();
        indexes.insert(name, of_it);
    }
    Ok(Definitions { listed, indexes })
}

fn entries(held: &Held) -> Vec<&CatalogEntry> {
    held.collections.iter().map(|one| &one.entry).collect()
}

/// What to do after a read that ended early.
fn ended(broken: Broken) -> Result<Walked> {
    match broken {
        Broken::Source(ReadEnd::Failed(error)) | Broken::Target(ReadEnd::Failed(error)) => {
            Err(error)
        }
        // Too old, or changed by a command since: the mirror will have carried that out.
        Broken::Source(_) | Broken::Target(_) => Ok(Walked::Repin),
    }
}

fn ended_owner() -> Error {
    Error::Reply {
        side: Side::Target,
        doing: "compare both sides",
        what: "the mirror has ended".into(),
    }
}
