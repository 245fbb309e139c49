//! What can happen to the mirror itself: two of them meet, one freezes and wakes up again, one
//! has too little memory.

mod common;

use std::path::Path;
use std::time::Duration;

use bson::{Document, doc};
use common::process::{Manifest, checkpoint, is_copied, until};
use common::workload::{Workload, fill};
use common::{PATIENCE, assert_equal, caught_up, config, fresh_seed, mirroring, wait_for};
use mongodb::Client;
use mongomirror::engine::progress::Phase;
use mongomirror::runner::MirrorHandle;
use testbed::{Process, ReplicaSet};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_only_the_newer_one_writes() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 300).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let older = MirrorHandle::start(config.clone());
    mirroring(&older).await;
    let workload = Workload::start(&client, "shop", seed, 2, false);
    let newer = MirrorHandle::start(config);
    wait_for(&older, "the older one is fenced", |progress| {
        progress
            .problem
            .as_ref()
            .is_some_and(|problem| problem.reason == "Fenced")
    })
    .await;
    let applied = older.progress().borrow().totals.events_applied;
    tokio::time::sleep(Duration::from_secs(1)).await;
    workload.stop().await;
    caught_up(&newer, &client).await;
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
    assert_eq!(older.progress().borrow().totals.events_applied, applied);
    assert_eq!(older.progress().borrow().phase, Phase::Failed);
    older.stop().await;
    newer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_taken_over_during_its_copy_lets_go_and_can_be_stopped() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 3000).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.range_bytes = 20_000;
    let older = MirrorHandle::start(config.clone());
    wait_for(&older, "copying", |progress| {
        progress.phase == Phase::Copying
    })
    .await;
    let newer = MirrorHandle::start(config);
    wait_for(&older, "the older one is fenced", |progress| {
        progress
            .problem
            .as_ref()
            .is_some_and(|problem| problem.reason == "Fenced")
    })
    .await;
    tokio::time::timeout(Duration::from_secs(20), older.stop())
        .await
        .expect("a fenced mirror can be stopped");
    mirroring(&newer).await;
    caught_up(&newer, &client).await;
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
    newer.stop().await;
}

/// Where a process is frozen: while it takes the mirror over, plans and copies, in the middle of a
/// transaction of its stream, before a command on collections, and in one of several transactions of a
/// batch; and for how long at least.
const FROZEN: [(&str, Duration); 12] = [
    ("TakeNotes:before:1", Duration::ZERO),
    ("CommitNote:before:1", LONGEST),
    ("CommitNote:before:4", Duration::ZERO),
    ("RemoveRanges:before:2", Duration::ZERO),
    ("InsertDocuments:after:3", Duration::ZERO),
    ("CommitCopy:before:3", LONGEST),
    ("WriteBatch:after:2", LONGEST),
    ("CommitBatch:before:4", Duration::ZERO),
    ("HoldCheckpoint:before:1", LONGEST),
    ("PutCollection:before:4", Duration::ZERO),
    ("HoldLane:before:2", Duration::ZERO),
    ("CommitLane:before:3", LONGEST),
];

/// Longer than anything that a mirror waits for, the stream's replies among it, and than a
/// transaction may live.
const LONGEST: Duration = Duration::from_secs(125);

/// Waits until what the source holds now is on the target.
async fn arrived(client: &Client, database: &str, n: i32) {
    let orders = client.database(database).collection::<Document>("orders");
    orders
        .insert_one(doc! {"_id": format!("marker{n}")})
        .await
        .unwrap();
    let copy = client.database(&format!("{database}_backup"));
    let copies = copy.collection::<Document>("orders");
    let marker = doc! {"_id": format!("marker{n}")};
    let there = until(async || copies.find_one(marker.clone()).await.unwrap().is_some());
    tokio::time::timeout(PATIENCE, there)
        .await
        .expect("it never arrives");
}

async fn is_frozen(process: &Process) -> bool {
    let id = process.pid().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    status.rsplit_once(") ").unwrap().1.starts_with('T')
}

/// One process freezes, another takes over and goes on, the first one wakes up.
async fn freeze(client: Client, uri: String, number: usize, point: &str, asleep: Duration) {
    let database = format!("frozen{number}");
    let db = client.database(&database);
    fill(&client, &database, 7, 100).await;
    let (first, second) = (
        Manifest::new(&uri, &uri, &[&database]),
        Manifest::new(&uri, &uri, &[&database]),
    );
    if point.contains("Lane") {
        first.hold(&[&database], "  apply: {mode: Parallel}\n");
    }
    let small = ("MONGOMIRROR_RANGE_BYTES", "20000");
    let lanes = ("MONGOMIRROR_LANES_FROM", "2");
    let point_to_freeze = format!("{point}:freeze");
    let older = first.run(&[("MONGOMIRROR_CRASH", &point_to_freeze), small, lanes]);
    let workload = Workload::start(&client, &database, 7, 1, true);
    let frozen = until(async || is_frozen(&older).await);
    tokio::time::timeout(PATIENCE, frozen)
        .await
        .expect("it does not freeze");
    let since = Instant::now();
    let epoch = async || {
        let checkpoint = checkpoint(&client, &database).await;
        checkpoint.map(|checkpoint| checkpoint.get_i64("epoch").unwrap())
    };
    let before = epoch().await;

    let newer = second.run(&[small]);
    let taken_over = until(async || epoch().await > before && is_copied(&client, &database).await);
    tokio::time::timeout(PATIENCE, taken_over)
        .await
        .expect("nobody takes over");
    arrived(&client, &database, 1).await;
    // What the older one was about to change no longer exists, or is another one now.
    db.collection::<Document>("items").drop().await.unwrap();
    fill(&client, &database, 8, 20).await;
    arrived(&client, &database, 2).await;
    // Now that its time is up, it finds all of its own and the driver's deadlines passed at once.
    tokio::time::sleep_until(since + asleep).await;
    older.resume().unwrap();
    let fenced = until(async || first.log().contains("fencing epoch"));
    tokio::time::timeout(PATIENCE, fenced)
        .await
        .expect("it does not learn that it was fenced");
    workload.stop().await;
    arrived(&client, &database, 3).await;
    assert_equal(&db, &client.database(&format!("{database}_backup"))).await;
    older.kill().await.unwrap();
    newer.kill().await.unwrap();
    // Nor has it noted anything that the next process would take for true.
    let next = second.run(&[small]);
    arrived(&client, &database, 4).await;
    assert_equal(&db, &client.database(&format!("{database}_backup"))).await;
    next.kill().await.unwrap();
    for log in [first.log(), second.log()] {
        assert!(!log.contains("panicked") && !log.contains("CheckpointDamaged"));
    }
    eprintln!("frozen at {point}: fenced, and equal");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_wakes_up_after_another_took_over_writes_nothing_more() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let cases = FROZEN
        .iter()
        .enumerate()
        .map(|(number, (point, asleep))| freeze(client.clone(), set.uri(), number, point, *asleep));
    futures::future::join_all(cases).await;
}

/// Everything that the process which holds the mirror shows to others.
async fn signs(target: &Client) -> Vec<Document> {
    let state = target.database("mongomirror");
    let mut signs = Vec::new();
    for collection in ["checkpoints", "fences"] {
        let found = state.collection(collection);
        signs.push(found.find_one(doc! {}).await.unwrap().unwrap());
    }
    signs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_waits_for_a_long_command_shows_that_it_is_alive() {
    let (from, to) = tokio::join!(ReplicaSet::builder().start(), ReplicaSet::builder().start());
    let (from, to) = (from.unwrap(), to.unwrap());
    let (source, target) = (from.client().await.unwrap(), to.client().await.unwrap());
    fill(&source, "shop", fresh_seed(), 50).await;
    let mirror = MirrorHandle::start(config(&from.uri(), &to.uri(), "shop"));
    mirroring(&mirror).await;
    let hang =
        |mode: &str| doc! {"configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode};
    let admin = target.database("admin");
    admin.run_command(hang("alwaysOn")).await.unwrap();
    let shop = source.database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.insert_one(doc! {"_id": "slow"}).await.unwrap();
    let index = doc! {"createIndexes": "orders", "indexes": [{"key": {"slow": 1}, "name": "slow"}]};
    shop.run_command(index).await.unwrap();
    // The rename waits for the index.
    let rename = doc! {"renameCollection": "shop.orders", "to": "shop.renamed"};
    source.database("admin").run_command(rename).await.unwrap();
    let in_command = || async { signs(&target).await[0].get_bool("inCommand").ok() };
    common::eventually("it waits", async || in_command().await).await;
    let before = signs(&target).await;
    let begun = Instant::now();
    let moved = common::eventually("a sign", async || {
        let now = signs(&target).await;
        (now != before).then_some(now)
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(20), "too late");
    assert_eq!(moved[0], before[0], "it still waits");
    admin.run_command(hang("off")).await.unwrap();
    caught_up(&mirror, &source).await;
    assert_equal(&shop, &target.database("shop_backup")).await;
    mirror.stop().await;
}

/// Memory that a process gets at first, and more after each death, in kilobytes: the first ones are
/// too little for some documents of 6 MiB in several copies, at different moments.
const MEMORY: (u32, u32) = (40_000, 12_000);

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_runs_out_of_memory_loses_nothing() {
    let set = ReplicaSet::builder().cache_gb(0.5).start().await.unwrap();
    let client = set.client().await.unwrap();
    let shop = client.database("shop");
    let large = |n: i32| doc! {"_id": n, "text": "x".repeat(6 << 20)};
    let orders = shop.collection::<Document>("orders");
    for n in 0..8 {
        orders.insert_one(large(n)).await.unwrap();
    }
    let manifest = Manifest::new(&set.uri(), &set.uri(), &["shop"]);
    let run = |deaths: u32| {
        let limit = MEMORY.0 + deaths * MEMORY.1;
        let script = format!("ulimit -d {limit}; exec \"$0\" \"$@\"");
        manifest.run_by(Path::new("/bin/sh"), &["-c", &script], &[])
    };
    let mut deaths = 0;
    let mut process = run(deaths);
    let copies = client
        .database("shop_backup")
        .collection::<Document>("orders");
    let done = async {
        let mut next = 100;
        loop {
            if let Some(status) = process.ended().unwrap() {
                deaths += 1;
                assert!(deaths < 40, "it gets nowhere: {status}");
                process = run(deaths);
            }
            if next < 108 {
                orders.insert_one(large(next)).await.unwrap();
                next += 1;
            }
            let last = doc! {"_id": 107};
            if is_copied(&client, "shop").await && copies.find_one(last).await.unwrap().is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done)
        .await
        .expect("it never arrives");
    eprintln!("{deaths} deaths");
    assert!(deaths > 1, "it never ran out of memory");
    assert_equal(&shop, &client.database("shop_backup")).await;
    process.kill().await.unwrap();
}
