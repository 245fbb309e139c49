//! Targets that hold something before the mirror has begun, and mirrors that are to begin anew.

mod common;

use bson::{Document, doc};
use common::{
    assert_equal, assert_equal_beside, caught_up, config, eventually, fill, mirroring, run, start,
    verify, wait_for,
};
use futures::TryStreamExt;
use mongodb::{Client, Database};
use mongomirror::engine::config::OnExistingData;
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::engine::request::{Refusal, Request};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use testbed::Version;
use tokio::sync::oneshot;

/// What the source has: plain documents, keys that are unique, and what no transaction writes.
async fn source(db: &Database) {
    fill(db, "orders", 0, 2000).await;
    fill(db, "items", 0, 100).await;
    let at = bson::DateTime::now();
    for command in [
        doc! {"createIndexes": "orders", "indexes": [{"key": {"n": 1}, "name": "n"}]},
        doc! {"insert": "keys", "documents": [{"_id": 1, "k": 1}, {"_id": 2, "k": 2}]},
        doc! {"createIndexes": "keys", "indexes": [{"key": {"k": 1}, "name": "k", "unique": true}]},
        doc! {"create": "ring", "capped": true, "size": 100_000},
        doc! {"insert": "ring", "documents": [{"_id": 2}, {"_id": 1}]},
        doc! {"create": "series", "timeseries": {"timeField": "at"}},
        doc! {"insert": "series", "documents": [{"at": at, "m": 1}]},
        doc! {"create": "seen", "viewOn": "orders", "pipeline": []},
    ] {
        run(db, command).await;
    }
}

/// Some of that, as a tool may have copied it some time ago; and things of its own.
async fn existing(db: &Database) {
    fill(db, "orders", 0, 1990).await;
    fill(db, "theirs", 0, 10).await;
    let orders = db.collection::<Document>("orders");
    let change = doc! {"$set": {"old": true}};
    orders
        .update_many(doc! {"_id": {"$lt": 5}}, change)
        .await
        .unwrap();
    for command in [
        doc! {"insert": "orders", "documents": [{"_id": "extra"}]},
        doc! {"createIndexes": "orders", "indexes": [{"key": {"gone": 1}, "name": "gone", "unique": true, "sparse": true}]},
        doc! {"create": "items", "capped": true, "size": 100_000},
        doc! {"insert": "keys", "documents": [{"_id": 1, "k": 2}, {"_id": 2, "k": 1}]},
        doc! {"createIndexes": "keys", "indexes": [{"key": {"k": 1}, "name": "k", "unique": true}]},
        doc! {"insert": "ring", "documents": [{"_id": 1}]},
        doc! {"create": "series", "timeseries": {"timeField": "time"}},
        doc! {"insert": "series", "documents": [{"time": bson::DateTime::now()}]},
        doc! {"create": "seen", "viewOn": "theirs", "pipeline": []},
        doc! {"create": "other", "viewOn": "theirs", "pipeline": []},
        doc! {"insert": "system.js", "documents": [{"_id": "f", "value": 1}]},
    ] {
        run(db, command).await;
    }
}

/// Documents that were written to a collection since then, as the oplog tells.
async fn writes(client: &Client, namespace: &str, since: bson::Timestamp) -> usize {
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let filter = doc! {"ts": {"$gt": since}};
    let entries: Vec<Document> = oplog
        .find(filter)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let of = |entry: &Document| {
        let is_write = matches!(entry.get_str("op"), Ok("i" | "u" | "d"));
        usize::from(is_write && entry.get_str("ns").is_ok_and(|ns| ns == namespace))
    };
    entries
        .iter()
        .map(|entry| {
            let inner = entry
                .get_document("o")
                .and_then(|o| o.get_array("applyOps"));
            let inner = inner
                .into_iter()
                .flatten()
                .filter_map(bson::Bson::as_document);
            of(entry) + inner.map(of).sum::<usize>()
        })
        .sum()
}

async fn now(client: &Client) -> bson::Timestamp {
    let admin = client.database("admin");
    let hello = admin.run_command(doc! {"hello": 1}).await.unwrap();
    hello.get_timestamp("operationTime").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_data_is_refused_replaced_or_adopted_as_the_spec_says() {
    for (how, version) in [
        (OnExistingData::Replace, Version::V6_0_27),
        (OnExistingData::Adopt, Version::V6_0_27),
        (OnExistingData::Adopt, Version::V6_0_5),
    ] {
        let (server, client) = start(version).await;
        let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
        source(&shop).await;
        existing(&copy).await;
        let since = now(&client).await;
        let mut config = config(&server.uri(), &server.uri(), "shop");
        config.limits.range_bytes = 20_000;
        let refused = MirrorHandle::start(config.clone());
        let problem = wait_for(&refused, "it is refused", |now| now.problem.is_some()).await;
        assert_eq!(problem.problem.unwrap().reason, "TargetNotEmpty");
        refused.stop().await;
        assert_eq!(writes(&client, "shop_backup.orders", since).await, 0);

        config.on_existing_data = how;
        // However often that is begun.
        for pause in [10, 40, 90] {
            let mirror = MirrorHandle::start(config.clone());
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            drop(mirror);
        }
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        fill(&shop, "orders", 3000, 10).await;
        caught_up(&mirror, &client).await;
        assert_equal(&shop, &copy).await;
        let written = writes(&client, "shop_backup.orders", since).await;
        if how == OnExistingData::Adopt {
            // 5 changed, 10 missing, 1 too many, 10 new.
            assert!((26..100).contains(&written), "{written} writes");
        } else {
            assert!(written > 2000, "{written} writes");
        }
        assert_eq!(verify(&mirror).await.differences, 0);
        mirror.stop().await;
        // Once begun, it is the mirror's own: nothing is replaced once more.
        let since = now(&client).await;
        let mirror = MirrorHandle::start(config);
        mirroring(&mirror).await;
        caught_up(&mirror, &client).await;
        assert_eq!(writes(&client, "shop_backup.orders", since).await, 0);
        mirror.stop().await;
    }
}

async fn ask_to_resync(mirror: &MirrorHandle) -> Result<(), Refusal> {
    let (done, begun) = oneshot::channel();
    mirror
        .requests()
        .send(Request::Resync { done })
        .await
        .unwrap();
    tokio::time::timeout(common::PATIENCE, begun)
        .await
        .expect("in time")
        .expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_to_begin_anew_makes_everything_equal_and_writes_only_what_differs() {
    let (server, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    source(&shop).await;
    let mut config = config(&server.uri(), &server.uri(), "shop");
    config.limits.range_bytes = 20_000;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let strangers = copy.collection::<Document>("orders");
    strangers
        .update_many(doc! {"_id": {"$lt": 5}}, doc! {"$set": {"old": true}})
        .await
        .unwrap();
    strangers.delete_one(doc! {"_id": 7}).await.unwrap();
    run(&copy, doc! {"drop": "items"}).await;
    fill(&copy, "theirs", 0, 10).await;
    let since = now(&client).await;
    ask_to_resync(&mirror).await.unwrap();
    fill(&shop, "orders", 3000, 10).await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&shop, &copy).await;
    let written = writes(&client, "shop_backup.orders", since).await;
    assert!((16..100).contains(&written), "{written} writes");
    let last = mirror.stop().await;
    assert_eq!(last.totals.resyncs, 1);
    assert_eq!(last.problem, None);
}

/// As one that stopped, and is told what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_cannot_go_on_begins_anew_when_it_is_told_to() {
    let (server, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    source(&shop).await;
    let config = config(&server.uri(), &server.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    // Nobody knows whose it is.
    fill(&copy, "items2", 0, 1).await;
    common::rename(&client, "shop.items", "shop.items2").await;
    let mirror = MirrorHandle::start(config);
    let failed = |now: &Progress| now.phase == Phase::Failed;
    let problem = wait_for(&mirror, "it is refused", failed).await.problem;
    assert_eq!(problem.unwrap().reason, "CheckpointDamaged");
    ask_to_resync(&mirror).await.unwrap();
    eventually("it goes on", async || {
        let now = mirror.progress().borrow().clone();
        (now.phase == Phase::Mirroring && now.problem.is_none()).then_some(())
    })
    .await;
    caught_up(&mirror, &client).await;
    assert_equal(&shop, &copy).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_selected_is_not_adopted_and_not_touched() {
    let (server, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    fill(&shop, "orders", 0, 50).await;
    fill(&copy, "orders", 20, 50).await;
    fill(&copy, "theirs", 0, 10).await;
    run(
        &copy,
        doc! {"create": "seen", "viewOn": "theirs", "pipeline": []},
    )
    .await;
    let script = doc! {"insert": "system.js", "documents": [{"_id": "f", "value": 1}]};
    run(&copy, script).await;
    let mut config = config(&server.uri(), &server.uri(), "shop");
    config.on_existing_data = OnExistingData::Adopt;
    config.selection = Selection::new(vec!["orders".into()], Vec::new()).unwrap();
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let is_other = |name: &str| name != "orders";
    assert_equal_beside(&shop, &copy, |_| true, is_other).await;
    let mut names = copy.list_collection_names().await.unwrap();
    names.sort();
    let all = ["orders", "seen", "system.js", "system.views", "theirs"];
    assert_eq!(names, all);
    assert_eq!(verify(&mirror).await.differences, 0);
    mirror.stop().await;
}
