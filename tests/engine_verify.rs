//! Both sides are compared while everything runs; what differs is put right.

mod common;

use std::time::{Duration, SystemTime};

use bson::{Document, doc};
use common::workload::{Workload, fill};
use common::{assert_equal, caught_up, config, fresh_seed, mirroring, verify, wait_for};
use mongodb::Database;

use mongomirror::engine::request::{Refusal, Request, Synced};
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

async fn sync(
    mirror: &MirrorHandle,
    collection: &str,
    filter: Document,
) -> Result<Synced, Refusal> {
    let (done, result) = oneshot::channel();
    let request = Request::Sync {
        collection: collection.into(),
        filter,
        done,
    };
    mirror.requests().send(request).await.unwrap();
    let result = tokio::time::timeout(common::PATIENCE, result).await;
    result.expect("in time").expect("an answer")
}

/// Makes documents of the target other than they should be; returns how many.
async fn meddle(target: &Database) -> u64 {
    let orders = target.collection::<Document>("quiet");
    orders.delete_one(doc! {"_id": 3}).await.unwrap();
    orders
        .update_one(doc! {"_id": 5}, doc! {"$set": {"n": 5_i64}})
        .await
        .unwrap();
    orders.insert_one(doc! {"_id": "not there"}).await.unwrap();
    orders.delete_one(doc! {"_id": 7}).await.unwrap();
    // Equal to 7, but not the same.
    orders.insert_one(doc! {"_id": 7.0, "n": 7}).await.unwrap();
    5
}

/// Found by the fuzzer (seed 2920128): a collection that was made behind the first look at the
/// source and dropped before the second one was only on the target in between.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_and_dropped_meanwhile_is_no_difference() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    quiet(&source).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    let stop = CancellationToken::new();
    let (stopped, db) = (stop.clone(), source.clone());
    let changes = tokio::spawn(async move {
        for n in 0.. {
            if stopped.is_cancelled() {
                return;
            }
            let index = doc! {"key": {"n": 1}, "name": "n_1"};
            for command in [
                doc! {"create": "brief"},
                doc! {"create": "view", "viewOn": "quiet", "pipeline": []},
                doc! {"createIndexes": "quiet", "indexes": [index]},
            ] {
                common::run(&db, command).await;
            }
            tokio::time::sleep(Duration::from_millis(5 + 7 * (n % 6))).await;
            for command in [
                doc! {"drop": "brief"},
                doc! {"drop": "view"},
                doc! {"dropIndexes": "quiet", "index": "n_1"},
            ] {
                common::run(&db, command).await;
            }
            tokio::time::sleep(Duration::from_millis(60 * (n % 4))).await;
        }
    });
    for _ in 0..25 {
        let result = verify(&mirror).await;
        assert_eq!(result.differences, 0, "a false alarm: {result:?}");
    }
    stop.cancel();
    changes.await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

async fn quiet(source: &Database) {
    let documents = (0..300).map(|n| doc! {"_id": n, "n": n});
    source
        .collection::<Document>("quiet")
        .insert_many(documents)
        .await
        .unwrap();
}

async fn verified_under_load(version: Version) {
    let seed = fresh_seed();
    let set = ReplicaSet::builder()
        .version(version)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&client, "shop", seed, 1500).await;
    quiet(&source).await;
    let workload = Workload::start(&client, "shop", seed, 3, true);
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    let first = wait_for(&mirror, "the copy is verified", |progress| {
        progress.verification.last.is_some()
    })
    .await;
    let first = first.verification.last.unwrap();
    assert_eq!(first.differences, 0, "{first:?}");
    assert!(first.documents > 300, "{first:?}");
    for _ in 0..8 {
        let result = verify(&mirror).await;
        assert_eq!(result.differences, 0, "a false alarm: {result:?}");
    }

    let meddled = meddle(&target).await;
    let result = verify(&mirror).await;
    // 7 and 7.0 are one difference on each side.
    assert_eq!(result.differences, meddled, "{result:?}");
    assert_eq!(result.repaired, result.differences);
    assert_eq!(verify(&mirror).await.differences, 0);

    workload.stop().await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_under_full_load_finds_what_differs_and_nothing_else_on_6_0_27() {
    verified_under_load(Version::V6_0_27).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_under_full_load_finds_what_differs_and_nothing_else_on_6_0_5() {
    verified_under_load(Version::V6_0_5).await;
}

async fn indexes(db: &Database) -> Vec<Document> {
    use futures::TryStreamExt;
    let cursor = db.run_cursor_command(doc! {"listIndexes": "quiet"}).await;
    cursor.unwrap().try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_do_to_indexes_and_unique_keys_is_put_right() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    quiet(&source).await;
    let build = doc! {"createIndexes": "quiet", "indexes": [
        {"key": {"n": 1}, "name": "n_1", "unique": true},
        {"key": {"m": 1}, "name": "m_1"},
    ]};
    source.run_command(build).await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    let is_unique = async || {
        let all = indexes(&target).await;
        all.iter()
            .any(|index| index.get_bool("unique").unwrap_or(false))
    };
    let becomes_unique = async || {
        let started = tokio::time::Instant::now();
        while !is_unique().await {
            assert!(started.elapsed() < common::PATIENCE, "it is not unique");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    becomes_unique().await;
    verify(&mirror).await;

    // An index is dropped, another one added.
    let drop = doc! {"dropIndexes": "quiet", "index": "m_1"};
    target.run_command(drop).await.unwrap();
    let add = doc! {"createIndexes": "quiet", "indexes": [{"key": {"x": 1}, "name": "x_1"}]};
    target.run_command(add).await.unwrap();
    let result = verify(&mirror).await;
    assert_eq!((result.differences, result.repaired), (2, 2), "{result:?}");
    let started = tokio::time::Instant::now();
    while !verify(&mirror).await.definitions.is_empty() {
        assert!(started.elapsed() < common::PATIENCE);
    }
    assert_equal(&source, &target).await;

    // A stranger's document has the key of one that the source gets.
    let quiet = target.collection::<Document>("quiet");
    quiet
        .insert_one(doc! {"_id": "stranger", "n": 5000})
        .await
        .unwrap();
    let documents = source.collection::<Document>("quiet");
    documents
        .insert_one(doc! {"_id": 5000, "n": 5000})
        .await
        .unwrap();
    caught_up(&mirror, &client).await;
    verify(&mirror).await;
    becomes_unique().await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// States are kept for a second, and the pace is slow: the times have to be taken anew often.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_outlives_the_states_that_servers_keep() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder()
        .param("minSnapshotHistoryWindowInSeconds", 1)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 3000).await;
    common::fill(&client.database("shop"), "large", 0, 8000).await;
    let workload = Workload::start(&client, "shop", seed, 1, false);
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.verify_bytes_per_second = 1_000_000;
    let mirror = MirrorHandle::start(config);
    let progress = wait_for(&mirror, "the copy is verified", |progress| {
        progress.verification.last.is_some()
    })
    .await;
    let result = progress.verification.last.unwrap();
    assert_eq!(result.differences, 0, "{result:?}");
    assert!(result.duration.as_secs() >= 4, "{result:?}");
    workload.stop().await;
    mirror.stop().await;
}

/// What the one under way has read by then proves nothing of what has happened since.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_during_a_verification_gets_the_result_of_one_that_begins_later() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    common::fill(&client.database("shop"), "large", 0, 4000).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.verify_bytes_per_second = 1_000_000;
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "the copy is being verified", |progress| {
        let running = progress.verification.running;
        running.is_some_and(|running| running.documents > 0)
    })
    .await;
    let asked = SystemTime::now();
    let result = verify(&mirror).await;
    assert_eq!(result.documents, 4000, "{result:?}");
    // Both are in whole milliseconds.
    let began = result.time - result.duration + Duration::from_millis(2);
    assert!(began >= asked, "{began:?}, {asked:?}");
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_chosen_documents_put_right_now() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    quiet(&source).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    // The verification after the copy would put right some of what follows.
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    caught_up(&mirror, &client).await;
    let nothing = sync(&mirror, "quiet", doc! {"n": {"$lt": 10}})
        .await
        .unwrap();
    let expected = Synced {
        refused: 0,
        matched: 10,
        unchanged: 10,
        ..Synced::default()
    };
    assert_eq!(nothing, expected);

    meddle(&target).await;
    let synced = sync(
        &mirror,
        "quiet",
        doc! {"$or": [{"n": {"$lt": 10}}, {"n": null}]},
    )
    .await;
    let expected = Synced {
        refused: 0,
        matched: 12,
        written: 3,
        deleted: 2,
        unchanged: 7,
    };
    assert_eq!(synced.unwrap(), expected);
    assert_equal(&source, &target).await;

    let missing = sync(&mirror, "nowhere", doc! {}).await;
    assert_eq!(missing, Err(Refusal::NotFound("nowhere".into())));
    let code = sync(&mirror, "quiet", doc! {"$where": "true"}).await;
    assert_eq!(code, Err(Refusal::Code("$where")));
    let wrong = sync(&mirror, "quiet", doc! {"n": {"$nonsense": 1}}).await;
    assert!(matches!(wrong, Err(Refusal::Failed(_))), "{wrong:?}");
    mirror.stop().await;
}

/// What is asked for keeps its place among the changes of the source.
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_change_meanwhile_are_put_right_and_lose_nothing() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&client, "shop", seed, 500).await;
    let ring = doc! {"create": "ring", "capped": true, "size": 1 << 20};
    source.run_command(ring).await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    let workload = Workload::start(&client, "shop", seed, 3, true);
    let copies = target.collection::<Document>("orders");
    let mut written = 0;
    for n in 0..30 {
        let some = doc! {"_id": {"$mod": [7, n % 7]}};
        copies.delete_one(some.clone()).await.unwrap();
        match sync(&mirror, "orders", some).await {
            Ok(synced) => written += synced.written,
            // The workload renames it for a moment, too.
            Err(Refusal::NotFound(name)) => assert_eq!(name, "orders"),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(written > 0, "nothing was put right");
    let capped = sync(&mirror, "ring", doc! {}).await;
    assert_eq!(capped, Err(Refusal::NotByDocument("ring".into())));
    workload.stop().await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_are_compared_at_intervals() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    quiet(&source).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.verify_every = Some(std::time::Duration::from_millis(200));
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    let copies = target.collection::<Document>("quiet");
    copies.delete_one(doc! {"_id": 9}).await.unwrap();
    // Nobody asks for it, and nothing changes on the source.
    common::eventually("put right", async || {
        copies.find_one(doc! {"_id": 9}).await.unwrap()
    })
    .await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// Of their own on each server, as everything here is about system collections.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_covers_system_collections() {
    for version in Version::ALL {
        let set = ReplicaSet::builder()
            .version(version)
            .start()
            .await
            .unwrap();
        let client = set.client().await.unwrap();
        let (source, target) = (client.database("shop"), client.database("shop_backup"));
        let series = doc! {"create": "t", "timeseries": {"timeField": "at", "metaField": "m"}};
        source.run_command(series).await.unwrap();
        let at = |n: i64| bson::DateTime::from_millis(1_700_000_000_000 + n * 60_000);
        let points = (0..200).map(|n| doc! {"at": at(n), "m": n % 7, "n": n});
        let t = source.collection::<Document>("t");
        t.insert_many(points).await.unwrap();
        let script = doc! {"_id": "one", "value": bson::Bson::JavaScriptCode("1".into())};
        let scripts = source.collection::<Document>("system.js");
        scripts.insert_one(script).await.unwrap();
        let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
        wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
        let first = verify(&mirror).await;
        assert_eq!((first.differences, first.collections), (0, 2), "{first:?}");

        let strange = doc! {"at": at(0), "m": 99, "n": -1};
        let copies = target.collection::<Document>("t");
        copies.insert_one(strange).await.unwrap();
        let copied_scripts = target.collection::<Document>("system.js");
        copied_scripts
            .delete_one(doc! {"_id": "one"})
            .await
            .unwrap();
        let found = verify(&mirror).await;
        assert_eq!((found.differences, found.repaired), (2, 2), "{found:?}");
        caught_up(&mirror, &client).await;
        assert_equal(&source, &target).await;
        assert_eq!(copied_scripts.count_documents(doc! {}).await.unwrap(), 1);
        assert_eq!(copies.count_documents(doc! {"m": 99}).await.unwrap(), 0);
        let again = verify(&mirror).await;
        assert_eq!(again.differences, 0, "{again:?}");
        mirror.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_do_to_collections_and_views_is_put_right() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    quiet(&source).await;
    let run = async |db: &Database, command: Document| {
        db.run_command(command).await.unwrap();
    };
    for n in 0..3 {
        let name = format!("c{n}");
        let strict = doc! {
            "create": &name, "validator": {"n": {"$exists": true}},
            "validationLevel": "moderate", "validationAction": "warn",
        };
        run(&source, strict).await;
        let documents = (0..50).map(|n| doc! {"_id": n, "n": n});
        let collection = source.collection::<Document>(&name);
        collection.insert_many(documents).await.unwrap();
    }
    run(
        &source,
        doc! {"create": "log", "capped": true, "size": 100_000},
    )
    .await;
    for view in ["v0", "v1"] {
        let pipeline = [doc! {"$match": {"n": 1}}];
        run(
            &source,
            doc! {"create": view, "viewOn": "c0", "pipeline": pipeline},
        )
        .await;
    }
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;

    run(&target, doc! {"drop": "c0"}).await;
    run(
        &target,
        doc! {"collMod": "c1", "validator": {}, "validationLevel": "off"},
    )
    .await;
    run(&target, doc! {"drop": "c2"}).await;
    let other = doc! {"create": "c2", "collation": {"locale": "de"}};
    run(&target, other).await;
    run(&target, doc! {"drop": "log"}).await;
    run(&target, doc! {"drop": "v0"}).await;
    run(
        &target,
        doc! {"collMod": "v1", "viewOn": "c0", "pipeline": []},
    )
    .await;
    run(&target, doc! {"create": "stranger"}).await;
    run(
        &target,
        doc! {"create": "strange view", "viewOn": "c0", "pipeline": []},
    )
    .await;
    let found = verify(&mirror).await;
    assert_eq!((found.differences, found.repaired), (8, 8), "{found:?}");
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let again = verify(&mirror).await;
    assert_eq!(again.differences, 0, "{again:?}");
    mirror.stop().await;

    // A mirror that finds a stranger's collection when it starts goes on all the same.
    run(&target, doc! {"create": "stranger"}).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    assert_eq!(verify(&mirror).await.repaired, 1);
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// What a comparison of decoded documents would not see, and what it would see without need.
#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_compared_to_the_byte() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let run = async |db: &Database, command: Document| {
        db.run_command(command).await.unwrap();
    };
    quiet(&source).await;
    let index = |keys: Document| doc! {"createIndexes": "quiet", "indexes": [{"key": keys, "name": "both"}]};
    run(&source, index(doc! {"n": 1, "m": 1})).await;
    let sort = |keys: Document| vec![doc! {"$sort": keys}];
    run(
        &source,
        doc! {"create": "sorted", "viewOn": "quiet", "pipeline": sort(doc! {"n": 1, "m": 1})},
    )
    .await;
    let rules =
        |first: &str, second: &str| doc! {first: {"$type": "int"}, second: {"$exists": true}};
    run(
        &source,
        doc! {"create": "strict", "validator": rules("a", "b"), "validationLevel": "moderate", "validationAction": "warn"},
    )
    .await;
    run(
        &source,
        doc! {"create": "odd", "validator": {"n": {"$ne": f64::NAN}}, "validationAction": "warn"},
    )
    .await;
    let partial =
        doc! {"key": {"n": 1}, "name": "n", "partialFilterExpression": {"n": {"$gt": f64::NAN}}};
    run(&source, doc! {"createIndexes": "odd", "indexes": [partial]}).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    assert_equal(&source, &target).await;
    let first = verify(&mirror).await;
    assert_eq!(first.differences, 0, "{first:?}");

    run(&target, doc! {"dropIndexes": "quiet", "index": "both"}).await;
    run(&target, index(doc! {"m": 1, "n": 1})).await;
    let modify =
        doc! {"collMod": "sorted", "viewOn": "quiet", "pipeline": sort(doc! {"m": 1, "n": 1})};
    run(&target, modify).await;
    run(
        &target,
        doc! {"collMod": "strict", "validator": rules("b", "a")},
    )
    .await;
    let found = verify(&mirror).await;
    assert_eq!((found.differences, found.repaired), (3, 3), "{found:?}");
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// Nothing expires on a target and nothing is evicted, whatever somebody sets there.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_somebody_has_armed_is_disarmed() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let run = async |db: &Database, command: Document| {
        db.run_command(command).await.unwrap();
    };
    quiet(&source).await;
    let expires = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 1_000_000};
    run(
        &source,
        doc! {"createIndexes": "quiet", "indexes": [expires]},
    )
    .await;
    let clustered = doc! {"key": {"_id": 1}, "unique": true};
    run(
        &source,
        doc! {"create": "clustered", "clusteredIndex": clustered, "expireAfterSeconds": 1_000_000_i64},
    )
    .await;
    let series = doc! {"timeField": "at", "metaField": "m"};
    run(
        &source,
        doc! {"create": "series", "timeseries": series, "expireAfterSeconds": 1_000_000_i64},
    )
    .await;
    let by_meta = doc! {"key": {"m": 1, "at": 1}, "name": "by meta"};
    run(
        &source,
        doc! {"createIndexes": "series", "indexes": [by_meta]},
    )
    .await;
    run(
        &source,
        doc! {"create": "log", "capped": true, "size": 100_000},
    )
    .await;
    for name in ["clustered", "series", "log"] {
        let documents = (0..100).map(|n| doc! {"n": n, "m": 1, "at": bson::DateTime::now()});
        let collection = source.collection::<Document>(name);
        collection.insert_many(documents).await.unwrap();
    }
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    let first = verify(&mirror).await;
    assert_eq!(first.differences, 0, "{first:?}");

    let arm = doc! {"collMod": "quiet", "index": {"name": "at", "expireAfterSeconds": 1_000_000}};
    run(&target, arm).await;
    for name in ["clustered", "series"] {
        run(
            &target,
            doc! {"collMod": name, "expireAfterSeconds": 1_000_000_i64},
        )
        .await;
    }
    run(&target, doc! {"collMod": "log", "cappedSize": 4096}).await;
    run(&target, doc! {"dropIndexes": "series", "index": "by meta"}).await;
    let found = verify(&mirror).await;
    // What is copied anew brings its indexes along, so that one may be told twice.
    assert!((4..=5).contains(&found.differences), "{found:?}");
    assert_eq!(found.repaired, found.differences, "{found:?}");
    let started = tokio::time::Instant::now();
    loop {
        caught_up(&mirror, &client).await;
        let again = verify(&mirror).await;
        if again.differences == 0 {
            break;
        }
        assert!(started.elapsed() < common::PATIENCE, "{again:?}");
    }
    assert_equal(&source, &target).await;
    let left = indexes(&target).await;
    let after = |index: &Document| index.get_i32("expireAfterSeconds").ok();
    assert_eq!(left.iter().find_map(after), Some(i32::MAX), "{left:?}");
    mirror.stop().await;
}

/// What clients write by `applyOps` is in no change stream (docs/limits.md).
#[tokio::test(flavor = "multi_thread")]
async fn what_change_streams_do_not_show_is_found() {
    for version in Version::ALL {
        let set = ReplicaSet::builder()
            .version(version)
            .start()
            .await
            .unwrap();
        let client = set.client().await.unwrap();
        let (source, target) = (client.database("shop"), client.database("shop_backup"));
        quiet(&source).await;
        let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
        wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
        let insert = |id: i32| doc! {"op": "i", "ns": "shop.quiet", "o": {"_id": id}};
        let operations = [insert(70_001), insert(70_002)];
        let apply = doc! {"applyOps": operations.to_vec()};
        client.database("admin").run_command(apply).await.unwrap();
        caught_up(&mirror, &client).await;
        let copies = target.collection::<Document>("quiet");
        let there = copies.find_one(doc! {"_id": 70_001}).await.unwrap();
        assert_eq!(
            there, None,
            "change streams show it: docs/limits.md is out of date"
        );
        let last = verify(&mirror).await;
        assert_eq!((last.differences, last.repaired), (2, 2), "{last:?}");
        assert_equal(&source, &target).await;
        mirror.stop().await;
    }
}
