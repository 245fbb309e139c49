//! A source that forgets its past states within a second or two: copies that take longer, and
//! documents that must be read again too late.

mod common;

use std::time::Duration;

use bson::{Bson, Document, Timestamp, doc};
use common::workload::{Workload, fill};
use common::{PATIENCE, assert_equal, caught_up, config, fresh_seed, mirroring, verify, wait_for};
use futures::StreamExt;
use mongodb::{Client, Database};
use mongomirror::engine::progress::Phase;

use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

/// A source that keeps its past for a second.
async fn forgetful(version: Version) -> ReplicaSet {
    ReplicaSet::builder()
        .version(version)
        .param("minSnapshotHistoryWindowInSeconds", 1)
        .start()
        .await
        .unwrap()
}

/// Collections that cannot be cut into ranges: by their collation, because they are clustered, and
/// because of the types of their ids.
async fn uncuttable(client: &Client, seed: u64) {
    let db = client.database("shop");
    let collated = doc! {"locale": "en", "strength": 2};
    let clustered = doc! {"key": {"_id": 1}, "unique": true};
    for command in [
        doc! {"create": "orders", "collation": collated},
        doc! {"create": "items", "clusteredIndex": clustered},
    ] {
        db.run_command(command).await.unwrap();
    }
    fill(client, "shop", seed, 300).await;
    for name in ["orders", "items", "odd"] {
        // At the very ends of the order.
        for id in [Bson::MinKey, Bson::Null, Bson::MaxKey] {
            let edge = doc! {"_id": id, "pad": "edge"};
            db.collection::<Document>(name)
                .insert_one(edge)
                .await
                .unwrap();
        }
        let documents = db.collection::<Document>(name);
        for chunk in (0..6000).collect::<Vec<i32>>().chunks(1000) {
            let new = chunk.iter().map(|n| {
                let id: Bson = match (name, n % 3) {
                    ("orders", _) => format!("Key-{n}").into(),
                    ("items", 0) => doc! {"a": n}.into(),
                    (_, 1) => doc! {"b": n, "c": "d"}.into(),
                    _ => (f64::from(*n) + 0.25).into(),
                };
                doc! {"_id": id, "pad": "p".repeat(1500), "arr": [1, 2, 3], "doc": {"x": 1}}
            });
            documents.insert_many(new).await.unwrap();
        }
    }
}

/// Makes each insert of a batch take a while on that server.
async fn slow(client: &Client, milliseconds: Option<i32>) {
    let command = match milliseconds {
        Some(milliseconds) => doc! {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": {"failCommands": ["insert"], "blockConnection": true, "blockTimeMS": milliseconds},
        },
        None => doc! {"configureFailPoint": "failCommand", "mode": "off"},
    };
    client.database("admin").run_command(command).await.unwrap();
}

async fn outlives(version: Version) {
    let seed = fresh_seed();
    let source = forgetful(version).await;
    let target = ReplicaSet::builder()
        .version(version)
        .start()
        .await
        .unwrap();
    let client = source.client().await.unwrap();
    let copy = target.client().await.unwrap();
    uncuttable(&client, seed).await;
    // Ranges that were read in pieces say so when they are done.
    let ranges = copy
        .database("mongomirror")
        .collection::<Document>("ranges");
    let mut changes = ranges.watch().await.unwrap();
    let in_pieces = tokio::spawn(async move {
        let mut found = 0;
        while found < 3 {
            let change = changes.next().await.unwrap().unwrap();
            let updated = change
                .update_description
                .map(|update| update.updated_fields);
            let Some(fields) = updated else { continue };
            let time = |name| fields.get_timestamp(name).ok();
            if let (Some(from), Some(at)) = (time("from"), time("at")) {
                assert!(from <= at, "{fields}");
                found += 1;
            }
        }
    });
    let workload = Workload::start(&client, "shop", seed, 2, false);
    // Nothing but these ranges is inserted now, a batch of a megabyte and a half at a time.
    slow(&copy, Some(700)).await;
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.limits.range_bytes = 500_000;
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "copied", |progress| {
        !matches!(progress.phase, Phase::Pending | Phase::Copying)
    })
    .await;
    slow(&copy, None).await;
    mirroring(&mirror).await;
    workload.stop().await;
    caught_up(&mirror, &client).await;
    assert_equal(&client.database("shop"), &copy.database("shop_backup")).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
    tokio::time::timeout(PATIENCE, in_pieces)
        .await
        .expect("no range was read in pieces")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_outlives_the_snapshots_of_its_source_6_0_27() {
    outlives(Version::V6_0_27).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_outlives_the_snapshots_of_its_source_6_0_5() {
    outlives(Version::V6_0_5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_series_outlives_the_snapshots_of_its_source() {
    let source = forgetful(Version::V6_0_27).await;
    let target = ReplicaSet::builder().start().await.unwrap();
    let (client, copy) = (
        source.client().await.unwrap(),
        target.client().await.unwrap(),
    );
    let (shop, backup) = (client.database("shop"), copy.database("shop_backup"));
    let series = doc! {"timeField": "at", "metaField": "sensor"};
    let create = doc! {"create": "readings", "timeseries": series};
    shop.run_command(create).await.unwrap();
    let readings = shop.collection::<Document>("readings");
    let reading = |n: i32, at: i64| {
        // Each sensor has a bucket of its own.
        let at = bson::DateTime::from_millis(at);
        doc! {"at": at, "sensor": n, "text": "t".repeat(1500)}
    };
    for from in (0..4000).step_by(1000) {
        let new = (from..from + 1000).map(|n| reading(n, 0));
        readings.insert_many(new).await.unwrap();
    }
    slow(&copy, Some(700)).await;
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    // Before and behind the place where the copy is, while it is on its way.
    let mut progress = mirror.progress();
    let (mut n, begun) = (0, tokio::time::Instant::now());
    while matches!(progress.borrow().phase, Phase::Pending | Phase::Copying) {
        assert!(begun.elapsed() < PATIENCE, "the copy does not end");
        n = (n + 391) % 4100;
        readings.insert_one(reading(n, 1000)).await.unwrap();
        let gone = doc! {"sensor": (n + 200) % 4000};
        readings.delete_many(gone).await.unwrap();
        let moment = tokio::time::timeout(Duration::from_millis(50), progress.changed());
        if let Ok(Err(_)) = moment.await {
            panic!("the mirror ended");
        }
    }
    slow(&copy, None).await;
    caught_up(&mirror, &client).await;
    assert_equal(&shop, &backup).await;
    let last = mirror.stop().await;
    let copied = last.initial_sync.expect("figures");
    assert!(copied.documents_total > 3000, "{copied:?}");
}

async fn position(state: &Database) -> Timestamp {
    let checkpoint = checkpoint(state).await;
    let position = checkpoint.get_document("position").unwrap();
    position.get_timestamp("time").unwrap()
}

async fn checkpoint(state: &Database) -> Document {
    let checkpoints = state.collection::<Document>("checkpoints");
    let found = checkpoints.find_one(doc! {"_id": "shop_backup"}).await;
    found.unwrap().expect("a checkpoint")
}

/// Waits until the source no longer shows its state of that time.
async fn forgotten(client: &Client, time: Timestamp) {
    let db = client.database("shop");
    let read = doc! {
        "find": "orders",
        "limit": 1,
        "readConcern": {"level": "snapshot", "atClusterTime": time},
    };
    let waited = async {
        while db.run_command(read.clone()).await.is_ok() {
            let other = client.database("other").collection("moves_the_time");
            other.insert_one(doc! {}).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited)
        .await
        .expect("the source remembers all");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_read_too_late_get_each_change_once() {
    let seed = fresh_seed();
    let source = forgetful(Version::LATEST).await;
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    let copy = target.client().await.unwrap();
    let state = copy.database("mongomirror");
    let (shop, backup) = (client.database("shop"), copy.database("shop_backup"));
    fill(&client, "shop", seed, 300).await;
    let counters = shop.collection::<Document>("counters");
    let all = (0..200).map(|n| doc! {"_id": n, "count": 0, "log": []});
    counters.insert_many(all).await.unwrap();
    let mut config = config(&source.uri(), &target.uri(), "shop");
    // Small batches, so that many follow the one that is read too late.
    config.limits.memory_bytes = 256 << 10;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;

    // Somebody else removes documents on the target, and the source goes on with them.
    let gone = doc! {"_id": {"$lt": 100}};
    let theirs = backup.collection::<Document>("counters");
    theirs.delete_many(gone).await.unwrap();
    let workload = Workload::start(&client, "shop", seed, 2, false);
    for round in 0..20 {
        // Deltas that would show if they were applied twice, or not at all.
        let change = doc! {"$inc": {"count": 1}, "$push": {"log": round}};
        counters.update_many(doc! {}, change).await.unwrap();
    }
    // By then the source has forgotten what these documents were at any of these changes.
    let admin = client.database("admin");
    let answer = admin.run_command(doc! {"ping": 1}).await.unwrap();
    let changed_at = answer.get_timestamp("operationTime").unwrap();
    forgotten(&client, changed_at).await;
    // Begun and given up again and again, while what is ahead is ahead.
    for _ in 0..4 {
        let mirror = MirrorHandle::start(config.clone());
        wait_for(&mirror, "some of it is applied", |progress| {
            progress.totals.batches > 3
        })
        .await;
        mirror.stop().await;
        let change = doc! {"$inc": {"count": 1}, "$push": {"log": "again"}};
        counters.update_many(doc! {}, change).await.unwrap();
        forgotten(&client, position(&state).await).await;
    }
    assert!(
        checkpoint(&state).await.contains_key("aheadUntil"),
        "nothing was read too late"
    );
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    workload.stop().await;
    let end = caught_up(&mirror, &client).await;
    assert_equal(&shop, &backup).await;
    let until = checkpoint(&state)
        .await
        .get_timestamp("aheadUntil")
        .unwrap();
    assert!(end.position.unwrap() >= until.into(), "it has ended");
    mirror.stop().await;
}

/// A read that begins somewhere does not show it, but in a clustered collection.
#[tokio::test(flavor = "multi_thread")]
async fn the_document_behind_all_others_is_compared_too() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    let (shop, copy) = (
        client.database("shop"),
        target.client().await.unwrap().database("shop_backup"),
    );
    let clustered = doc! {"key": {"_id": 1}, "unique": true};
    shop.run_command(doc! {"create": "clustered", "clusteredIndex": clustered})
        .await
        .unwrap();
    for name in ["clustered", "ordinary"] {
        // More than one reply.
        let documents = shop.collection::<Document>(name);
        let many = (0..300).map(|n| doc! {"_id": n, "pad": "p".repeat(10_000)});
        documents.insert_many(many).await.unwrap();
        documents
            .insert_one(doc! {"_id": Bson::MaxKey})
            .await
            .unwrap();
    }
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_eq!(verify(&mirror).await.differences, 0);
    for name in ["clustered", "ordinary"] {
        let theirs = copy.collection::<Document>(name);
        let last = doc! {"_id": Bson::MaxKey};
        theirs.delete_one(last.clone()).await.unwrap();
        assert_eq!(verify(&mirror).await.differences, 1, "{name}: missing");
        let ours = doc! {"$set": {"theirs": true}};
        theirs.update_one(last, ours).await.unwrap();
        assert_eq!(verify(&mirror).await.differences, 1, "{name}: different");
    }
    assert_equal(&shop, &copy).await;
    mirror.stop().await;
}
