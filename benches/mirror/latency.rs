//! How long until a write on the source can be read on the target.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Collection;
use mongodb::options::WriteConcern;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::process::{Reached, Worker};
use crate::servers::Servers;
use crate::usage::Usage;
use crate::worker::Work;
use crate::{Result, Scale, say};

/// Between two samples: nothing of the one before is under way any more.
const PAUSE: Duration = Duration::from_millis(40);

/// Between two looks at the target. Without a pause the looks would take a core from the servers.
const LOOK: Duration = Duration::from_micros(300);

/// A write that is not there by then never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Clients that write in the background, and how often each does: together a thousand a second.
const CLIENTS: u32 = 20;
const EVERY: Duration = Duration::from_millis(20);

/// Documents that the background writes go to.
const NOISE: u32 = 20_000;

/// One quiet or busy time.
#[derive(Default)]
pub struct Latency {
    /// From sending the write to reading it on the target.
    pub sent: Vec<Duration>,
    /// From the source's acknowledgement. It waits for the majority, as is MongoDB's default; the
    /// change stream shows a write only then, and without anybody waiting for it, the journal of
    /// a single server may be written up to 100 ms later.
    pub acknowledged: Vec<Duration>,
    /// From sending the write to the source's acknowledgement: what the mirror costs its clients.
    pub at_source: Vec<Duration>,
}

/// What was measured.
#[derive(Default)]
pub struct Latencies {
    /// One write at a time.
    pub idle: Latency,
    /// Beside other writes.
    pub loaded: Latency,
    /// The same, while the mirror compares both sides all the time.
    pub verified: Latency,
    /// Verifications that ended meanwhile.
    pub verifications: u64,
    /// What the source needs beside the same writes without any mirror.
    pub alone: Vec<Duration>,
    /// So many other writes a second.
    pub writes: f64,
    /// Transactions in which the mirror wrote them, a second.
    pub transactions: f64,
    /// CPU time of the mirror for each event under that load.
    pub cpu: Duration,
    /// What the mirror had used in the end.
    pub usage: Usage,
}

/// Measures with a live mirror, with one that verifies, and without.
pub async fn measure(servers: &Servers, scale: Scale) -> Result<Latencies> {
    let noise = collection(servers, "noise");
    let documents = (0..NOISE).map(|n| doc! {"_id": n, "n": -1, "note": "x".repeat(500)});
    noise.insert_many(documents).await?;
    let mut all = Latencies::default();
    let mut worker = live(servers, scale, false).await?;
    // The first ones make connections and the collection.
    series(servers, 0, 4).await?;
    say(&format!(
        "{} single writes on an idle source",
        scale.samples
    ));
    all.idle = series(servers, 1, scale.samples).await?;
    say(&format!(
        "{} single writes beside 1000 others a second",
        scale.samples
    ));
    let begun = Instant::now();
    let before = caught_up(servers, &mut worker).await?;
    let clients = Clients::start(&noise).await;
    all.loaded = series(servers, 2, scale.samples).await?;
    let written = clients.stop().await;
    all.writes = written as f64 / begun.elapsed().as_secs_f64();
    let after = caught_up(servers, &mut worker).await?;
    let events = u32::try_from(after.seen.events - before.seen.events)?.max(1);
    all.cpu = (after.usage.cpu - before.usage.cpu) / events;
    let transactions = after.seen.batches - before.seen.batches;
    all.transactions = transactions as f64 / (after.after - before.after).as_secs_f64();
    all.usage = after.usage;
    worker.stop().await?;

    say("the same without a mirror");
    let clients = Clients::start(&noise).await;
    for n in 0..i32::try_from(scale.samples)? {
        all.alone.push(write(servers, 3_000_000 + n).await?);
        pause(n).await;
    }
    clients.stop().await;

    say("the same while the mirror compares both sides all the time");
    let mut worker = live(servers, scale, true).await?;
    let clients = Clients::start(&noise).await;
    let before = caught_up(servers, &mut worker).await?;
    all.verified = series(servers, 4, scale.samples).await?;
    let after = caught_up(servers, &mut worker).await?;
    all.verifications = after.seen.verifications - before.seen.verifications;
    clients.stop().await;
    caught_up(servers, &mut worker).await?;
    worker.stop().await?;
    Ok(all)
}

/// Starts a mirror, and waits until it is live.
async fn live(servers: &Servers, scale: Scale, verifies: bool) -> Result<Worker> {
    let work = Work::Mirror {
        source: servers.source.uri(),
        target: servers.mirrored()?.uri(),
        lanes: scale.lanes,
        parallel: scale.parallel,
        verifies,
    };
    servers.settle().await?;
    let mut worker = Worker::start(&work)?;
    worker
        .wait_for("the mirror is live", |seen| seen.live)
        .await?;
    Ok(worker)
}

/// Clients that write in the background.
struct Clients {
    tasks: JoinSet<()>,
    written: Arc<AtomicU64>,
}

impl Clients {
    async fn start(noise: &Collection<Document>) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for client in 0..CLIENTS {
            tasks.spawn(write_on(noise.clone(), client, Arc::clone(&written)));
        }
        tokio::time::sleep(PAUSE * 10).await;
        Self { tasks, written }
    }

    /// Ends them, and returns how often they have written.
    async fn stop(mut self) -> u64 {
        self.tasks.shutdown().await;
        self.written.load(Ordering::Relaxed)
    }
}

fn collection(servers: &Servers, name: &str) -> Collection<Document> {
    servers.source.database().collection(name)
}

/// Waits until the target holds everything.
async fn caught_up(servers: &Servers, worker: &mut Worker) -> Result<Reached> {
    let now = servers.source.time().await?;
    worker
        .wait_for("the mirror is up to date", |seen| {
            seen.consistent_at >= Some(now)
        })
        .await
}

async fn series(servers: &Servers, number: i32, samples: usize) -> Result<Latency> {
    let mut latency = Latency::default();
    for n in 0..i32::try_from(samples)? {
        let id = number * 1_000_000 + n;
        let begun = Instant::now();
        let at_source = write(servers, id).await?;
        arrival(servers, id).await?;
        let sent = begun.elapsed();
        latency.sent.push(sent);
        latency.acknowledged.push(sent - at_source);
        latency.at_source.push(at_source);
        pause(n).await;
    }
    Ok(latency)
}

/// Not in step with anything that happens at intervals.
async fn pause(n: i32) {
    tokio::time::sleep(PAUSE + Duration::from_millis(u64::from(n.unsigned_abs()) * 7 % 23)).await;
}

/// One write: an insert, then an update of what was inserted, and so on. Returns how long it took.
async fn write(servers: &Servers, n: i32) -> Result<Duration> {
    let source = collection(servers, "probes");
    let majority = WriteConcern::majority();
    let id = n & !1;
    let begun = Instant::now();
    if n == id {
        let insert = source.insert_one(doc! {"_id": id, "n": n});
        insert.write_concern(majority).await?;
    } else {
        let update = source.update_one(doc! {"_id": id}, doc! {"$set": {"n": n}});
        update.upsert(true).write_concern(majority).await?;
    }
    Ok(begun.elapsed())
}

/// Waits until the target shows that write.
async fn arrival(servers: &Servers, n: i32) -> Result<()> {
    let target = servers.mirrored()?.database();
    let target = target.collection::<Document>("probes");
    let begun = Instant::now();
    while target
        .find_one(doc! {"_id": n & !1, "n": n})
        .await?
        .is_none()
    {
        if begun.elapsed() > PATIENCE {
            return Err("a write does not arrive on the target".into());
        }
        // Tokio's own timer counts in milliseconds; other threads go on meanwhile.
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// One of the clients that write in the background, until it is aborted.
async fn write_on(noise: Collection<Document>, client: u32, written: Arc<AtomicU64>) {
    let mut tick = interval(EVERY);
    // A thousand writes a second also behind a pause.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    tokio::time::sleep(EVERY / CLIENTS * client).await;
    for n in 0_u32.. {
        tick.tick().await;
        let id = n.wrapping_mul(7919).wrapping_add(client * 997) % NOISE;
        let update = noise.update_one(doc! {"_id": id}, doc! {"$set": {"n": n, "client": client}});
        if let Err(error) = update.await {
            say(&format!("a background write failed: {error}"));
            return;
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}
