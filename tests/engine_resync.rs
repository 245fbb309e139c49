//! The source's oplog no longer reaches back to the mirror's position.

mod common;

use std::time::SystemTime;

use bson::{Bson, Document, doc};
use common::oplog::roll_over;
use common::process::Manifest;
use common::workload::{Workload, fill};
use common::{PATIENCE, assert_equal, caught_up, config, fresh_seed, mirroring, wait_for};
use futures::TryStreamExt;
use mongodb::{Client, Collection, Database};
use mongomirror::engine::config::{MirrorConfig, OnHistoryLost};
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::runner::MirrorHandle;
use testbed::ReplicaSet;

/// A source whose oplog rolls over within seconds (`facts` mongodb 0).
async fn forgetful() -> ReplicaSet {
    ReplicaSet::builder()
        .oplog_mb(10)
        .arg("--syncdelay", "2")
        .start()
        .await
        .unwrap()
}

/// Changes of every kind, of which the mirror will never see an event.
async fn change_everything(client: &Client, seed: u64) {
    let db = client.database("shop");
    let workload = Workload::start(client, "shop", seed + 1, 2, false);
    workload.wait_for(400).await;
    workload.stop().await;
    let gone = db.collection::<Document>("gone");
    gone.drop().await.unwrap();
    let admin = client.database("admin");
    for (from, to) in [("a", "t"), ("b", "a"), ("t", "b")] {
        admin
            .run_command(
                doc! {"renameCollection": format!("shop.{from}"), "to": format!("shop.{to}")},
            )
            .await
            .unwrap();
    }
    for command in [
        doc! {"drop": "anew"},
        doc! {"create": "anew", "collation": {"locale": "en", "strength": 2}},
        doc! {"insert": "anew", "documents": [{"_id": "x", "n": 2}]},
        doc! {"collMod": "kept", "validator": {"n": {"$gt": 5}}, "validationLevel": "moderate"},
        doc! {"dropIndexes": "kept", "index": "old_1"},
        doc! {"createIndexes": "kept", "indexes": [{"key": {"n": -1}, "name": "new"}]},
        // The same name and the same fields, in another order.
        doc! {"dropIndexes": "kept", "index": "both"},
        doc! {"createIndexes": "kept", "indexes": [{"key": {"m": 1, "n": 1}, "name": "both"}]},
        doc! {"collMod": "sorted", "viewOn": "kept", "pipeline": [{"$sort": {"m": 1, "n": 1}}]},
        doc! {"delete": "kept", "deletes": [{"q": {"n": {"$lt": 3}}, "limit": 0}]},
        doc! {"collMod": "seen", "viewOn": "kept", "pipeline": [{"$match": {"n": 7}}]},
        doc! {"drop": "unseen"},
        doc! {"create": "newly", "viewOn": "kept", "pipeline": []},
        doc! {"insert": "fresh", "documents": [{"_id": 1}, {"_id": 2}]},
        // Each takes the key of the other.
        doc! {"update": "keys", "updates": [
            {"q": {"_id": 1}, "u": {"$set": {"k": 3}}},
            {"q": {"_id": 2}, "u": {"$set": {"k": 1}}},
            {"q": {"_id": 1}, "u": {"$set": {"k": 2}}},
        ]},
        doc! {"insert": "ring", "documents": [{"_id": 7}, {"_id": 5}]},
        doc! {"delete": "ring", "deletes": [{"q": {"_id": 1}, "limit": 1}]},
        doc! {"insert": "series", "documents": [{"at": bson::DateTime::now(), "m": 1, "n": 2}]},
        doc! {"delete": "series", "deletes": [{"q": {"m": 2}, "limit": 0}]},
        doc! {"update": "system.js", "updates": [{"q": {"_id": 1}, "u": {"$set": {"value": 2}}}]},
        doc! {"insert": "system.js", "documents": [{"_id": 3, "value": 3}]},
        doc! {"update": "clustered", "updates": [{"q": {"_id": 1}, "u": {"$set": {"n": 2}}}]},
    ] {
        db.run_command(command).await.unwrap();
    }
}

async fn prepare(client: &Client, seed: u64) {
    fill(client, "shop", seed, 1200).await;
    let db = client.database("shop");
    for name in ["a", "b", "gone", "anew", "kept", "untouched"] {
        let documents = (0..50).map(|n| doc! {"_id": format!("{name}{n}"), "n": n});
        db.collection::<Document>(name)
            .insert_many(documents)
            .await
            .unwrap();
    }
    for command in [
        doc! {"createIndexes": "kept", "indexes": [
            {"key": {"old": 1}, "name": "old_1"},
            {"key": {"n": 1}, "name": "n_1"},
            {"key": {"n": 1, "m": 1}, "name": "both"},
        ]},
        doc! {"create": "sorted", "viewOn": "kept", "pipeline": [{"$sort": {"n": 1, "m": 1}}]},
        doc! {"create": "seen", "viewOn": "kept", "pipeline": [{"$match": {"n": 6}}]},
        doc! {"create": "unseen", "viewOn": "kept", "pipeline": []},
        doc! {"createIndexes": "keys", "indexes": [{"key": {"k": 1}, "name": "k", "unique": true}]},
        doc! {"insert": "keys", "documents": [{"_id": 1, "k": 1}, {"_id": 2, "k": 2}]},
        doc! {"create": "ring", "capped": true, "size": 4096, "max": 3},
        doc! {"insert": "ring", "documents": [{"_id": 1}, {"_id": 3}, {"_id": 2}]},
        doc! {"create": "series", "timeseries": {"timeField": "at", "metaField": "m"}},
        doc! {"insert": "series", "documents": [
            {"at": bson::DateTime::now(), "m": 1, "n": 1},
            {"at": bson::DateTime::now(), "m": 2, "n": 1},
        ]},
        doc! {"insert": "system.js", "documents": [{"_id": 1, "value": 1}, {"_id": 2, "value": 2}]},
        doc! {"create": "clustered", "clusteredIndex": {"key": {"_id": 1}, "unique": true}},
        doc! {"insert": "clustered", "documents": [{"_id": 1, "n": 1}, {"_id": 2, "n": 2}]},
    ] {
        db.run_command(command).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_lost_the_history_compares_both_sides_and_writes_what_differs() {
    let seed = fresh_seed();
    let source = forgetful().await;
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    prepare(&client, seed).await;
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.limits.range_bytes = 40_000;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    let copy = target.client().await.unwrap().database("shop_backup");
    let kept = async || {
        let names = ["kept", "orders", "untouched"];
        futures::future::join_all(names.map(|name| uuid(&copy, name))).await
    };
    let before = kept().await;
    // Somebody meddles with the target meanwhile, too.
    copy.collection::<Document>("orders")
        .insert_one(doc! {"_id": "not of the source"})
        .await
        .unwrap();

    let written = writes_to(&copy.collection("untouched")).await;
    change_everything(&client, seed).await;
    roll_over(&client).await;

    config.on_history_lost = OnHistoryLost::Stop;
    let mirror = MirrorHandle::start(config.clone());
    let stopped = wait_for(&mirror, "the mirror stops", |progress| {
        progress.phase == Phase::Failed
    })
    .await;
    assert_eq!(stopped.problem.unwrap().reason, "HistoryLost");
    mirror.stop().await;

    config.on_history_lost = OnHistoryLost::Resync;
    let workload = Workload::start(&client, "shop", seed + 2, 2, false);
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    workload.stop().await;
    let progress = caught_up(&mirror, &client).await;
    assert_eq!(progress.totals.resyncs, 1);
    assert_equal(&client.database("shop"), &copy).await;
    // What is still the same collection was not made anew, nor written without need.
    assert_eq!(kept().await, before);
    let untouched = copy.collection::<Document>("untouched");
    assert_eq!(
        writes_to(&untouched).await,
        written,
        "an untouched collection"
    );
    mirror.stop().await;
}

/// A collection's identity.
async fn uuid(db: &Database, name: &str) -> Bson {
    let list = doc! {"listCollections": 1, "filter": {"name": name}};
    let cursor = db.run_cursor_command(list).await.unwrap();
    let listed: Vec<Document> = cursor.try_collect().await.unwrap();
    let info = listed[0].get_document("info").unwrap();
    info.get("uuid").unwrap().clone()
}

/// How many documents were ever inserted, changed or removed, as the server counts.
async fn writes_to(collection: &Collection<Document>) -> i64 {
    let top = doc! {"top": 1};
    let admin = collection.client().database("admin");
    let top = admin.run_command(top).await.unwrap();
    let namespace = collection.namespace().to_string();
    let all = top.get_document("totals").unwrap();
    let of_it = all.get_document(&namespace).unwrap();
    let count = |kind| {
        let counted = of_it.get_document(kind).unwrap().get("count").unwrap();
        counted
            .as_i64()
            .or(counted.as_i32().map(i64::from))
            .unwrap()
    };
    ["insert", "update", "remove"].into_iter().map(count).sum()
}

/// The stream is open, but the target takes nothing any more, so that the oplog overtakes it: the
/// server says so with another code than to somebody who comes back too late.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_mirror_that_the_oplog_has_overtaken_compares_both_sides() {
    let source = forgetful().await;
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    prepare(&client, 1).await;
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.limits.memory_bytes = 4 << 20;
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    target.node(0).pause().unwrap();
    change_everything(&client, 1).await;
    // More than may wait in memory.
    let filler = client.database("shop").collection::<Document>("filler");
    for _ in 0..10 {
        let some = (0..40).map(|_| doc! {"text": "x".repeat(50_000)});
        filler.insert_many(some).await.unwrap();
    }
    roll_over(&client).await;
    target.node(0).resume().unwrap();
    let resynced = |progress: &Progress| progress.totals.resyncs == 1;
    wait_for(&mirror, "it compares both sides", resynced).await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let copy = target.client().await.unwrap().database("shop_backup");
    assert_equal(&client.database("shop"), &copy).await;
    mirror.stop().await;
}

/// A mirror that was ended, and whose position the oplog has lost since.
async fn forgotten(source: &ReplicaSet, target: &ReplicaSet) -> (MirrorConfig, Client) {
    let client = source.client().await.unwrap();
    prepare(&client, 1).await;
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.name = "default/shop".into();
    config.on_history_lost = OnHistoryLost::Resync;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    (config, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_had_created_when_it_died_goes_if_the_source_no_longer_has_it() {
    created_when_it_died(doc! {"create": "short"}).await;
}

/// Found by the fuzzer (seed 910031): they are noted as their buckets.
#[tokio::test(flavor = "multi_thread")]
async fn time_series_that_a_process_had_created_when_it_died_go_too() {
    let series = doc! {"timeField": "at"};
    created_when_it_died(doc! {"create": "short", "timeseries": series}).await;
}

async fn created_when_it_died(create: Document) {
    let source = forgetful().await;
    let target = ReplicaSet::builder().start().await.unwrap();
    let (config, client) = forgotten(&source, &target).await;
    let shop = client.database("shop");
    let copy = target.client().await.unwrap().database("shop_backup");
    shop.run_command(create).await.unwrap();
    let begun = SystemTime::now();
    let manifest = Manifest::new(&source.uri(), &target.uri(), &["shop"]);
    let process = manifest.run(&[("MONGOMIRROR_CRASH", "CreateCollection:after")]);
    tokio::time::timeout(PATIENCE, process.wait())
        .await
        .expect("it does not die")
        .unwrap();
    let there = copy.list_collection_names().await.unwrap();
    assert!(there.contains(&"short".to_owned()));

    shop.collection::<Document>("short").drop().await.unwrap();
    roll_over(&client).await;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    let verified = |now: &Progress| {
        let last = now.verification.last.as_ref();
        last.is_some_and(|last| last.time > begun)
    };
    let now = wait_for(&mirror, "verified", verified).await;
    let last = now.verification.last.unwrap();
    assert_eq!(last.differences, 0, "{:?}", last.definitions);
    let progress = caught_up(&mirror, &client).await;
    assert_eq!(progress.totals.resyncs, 1);
    assert_equal(&shop, &copy).await;
    mirror.stop().await;
}

/// A stream from a time that is still to come opens, and skips everything up to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_has_gone_back_behind_the_position_is_compared() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let (config, client) = forgotten(&source, &target).await;
    let copy = target.client().await.unwrap();
    let (shop, backup) = (client.database("shop"), copy.database("shop_backup"));
    let checkpoints = copy
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    let time = SystemTime::now() + std::time::Duration::from_secs(3600);
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let ahead = bson::Timestamp {
        time: u32::try_from(seconds).unwrap(),
        increment: 1,
    };
    let position = doc! {"position": {"time": ahead, "at": ahead}};
    let set = checkpoints.update_one(doc! {}, doc! {"$set": position});
    assert_eq!(set.await.unwrap().modified_count, 1);
    common::fill(&shop, "orders", 90_000, 10).await;
    let stop = MirrorConfig {
        on_history_lost: OnHistoryLost::Stop,
        ..config.clone()
    };
    let mirror = MirrorHandle::start(stop);
    common::faults::has_problem(&mirror, &["HistoryLost"]).await;
    mirror.stop().await;
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "compared", |now| now.totals.resyncs == 1).await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&shop, &backup).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_collection_is_not_dropped_by_a_comparison() {
    let source = forgetful().await;
    let target = ReplicaSet::builder().start().await.unwrap();
    let (config, client) = forgotten(&source, &target).await;
    let copy = target.client().await.unwrap().database("shop_backup");
    let theirs = copy.collection::<Document>("theirs");
    theirs.insert_one(doc! {"_id": 1}).await.unwrap();
    roll_over(&client).await;
    for _ in 0..2 {
        let mirror = MirrorHandle::start(config.clone());
        let failed = wait_for(&mirror, "it is refused", |progress| {
            progress.phase == Phase::Failed
        })
        .await;
        assert_eq!(failed.problem.unwrap().reason, "CheckpointDamaged");
        mirror.stop().await;
    }
    assert_eq!(theirs.count_documents(doc! {}).await.unwrap(), 1);
    theirs.drop().await.unwrap();
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&client.database("shop"), &copy).await;
    mirror.stop().await;
}
