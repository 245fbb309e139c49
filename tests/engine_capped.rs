//! Capped collections keep the order of insertion, which no hash shows: `assert_equal` reads it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Document, RawDocumentBuf, doc, rawdoc};
use common::{assert_equal, caught_up, config, fill, mirroring, rename, run, start, wait_for};
use futures::TryStreamExt;
use futures::future::join_all;
use mongodb::Database;
use mongomirror::runner::MirrorHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::{ReplicaSet, Version};

/// Writes to a capped collection in every way there is, until stopped.
async fn write_capped(db: Database, name: &'static str, seed: u64, stop: Arc<AtomicBool>) -> i32 {
    let mut random = StdRng::seed_from_u64(seed);
    let log = db.collection::<Document>(name);
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let old = last - random.random_range(0..40);
        let outcome = match random.random_range(0..10) {
            0..5 => {
                let count = random.random_range(1..6);
                let first = last;
                let documents = (1..=count).map(move |n| {
                    doc! {"_id": first + n, "text": "x".repeat(300), "list": [1, 2]}
                });
                last += count;
                log.insert_many(documents).await.map(drop)
            }
            5 => log
                .update_one(doc! {"_id": old}, doc! {"$set": {"seen": last}})
                .await
                .map(drop),
            6 => log
                .update_one(
                    doc! {"_id": old},
                    doc! {"$push": {"list": last}, "$set": {"a": 1}},
                )
                .await
                .map(drop),
            7 => log
                .replace_one(doc! {"_id": old}, doc! {"b": last, "a": 2})
                .await
                .map(drop),
            _ => log.delete_one(doc! {"_id": old}).await.map(drop),
        };
        outcome.unwrap();
        if random.random_ratio(1, 5) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn capped_collections_arrive_in_order_during_the_copy_and_after() {
    for version in Version::ALL {
        let seed = common::fresh_seed();
        eprintln!("seed {seed}");
        let set = ReplicaSet::builder()
            .version(version)
            .start()
            .await
            .unwrap();
        let client = set.client().await.unwrap();
        let (source, target) = (client.database("shop"), client.database("shop_backup"));
        run(
            &source,
            doc! {"create": "log", "capped": true, "size": 200_000},
        )
        .await;
        run(
            &source,
            doc! {"create": "few", "capped": true, "size": 1 << 20, "max": 25},
        )
        .await;
        fill(&source, "log", -2000, 1500).await;
        let stop = Arc::new(AtomicBool::new(false));
        let writers = ["log", "few"]
            .map(|name| tokio::spawn(write_capped(source.clone(), name, seed, Arc::clone(&stop))));
        let config = config(&set.uri(), &set.uri(), "shop");
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        wait_for(&mirror, "a thousand events", |progress| {
            progress.totals.events_applied > 1000
        })
        .await;
        // Once more from a stop in the middle.
        mirror.stop().await;
        let mirror = MirrorHandle::start(config);
        wait_for(&mirror, "a thousand events", |progress| {
            progress.totals.events_applied > 1000
        })
        .await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            eprintln!("{} inserted", writer.await.unwrap());
        }
        let progress = caught_up(&mirror, &client).await;
        assert_equal(&source, &target).await;
        assert!(
            progress.unsupported.is_empty(),
            "{:?}",
            progress.unsupported
        );
        assert_eq!(progress.totals.retries, 0);
        mirror.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_that_become_capped_take_their_content_along() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 200).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    run(
        &source,
        doc! {"cloneCollectionAsCapped": "orders", "toCollection": "clone", "size": 100_000},
    )
    .await;
    run(&source, doc! {"convertToCapped": "orders", "size": 100_000}).await;
    fill(&source, "orders", 1000, 10).await;
    run(
        &source,
        doc! {"collMod": "orders", "cappedSize": 50_000, "cappedMax": 40},
    )
    .await;
    fill(&source, "orders", 2000, 10).await;
    // In at an edge, by its ids the other way round.
    run(
        &source,
        doc! {"create": "back", "capped": true, "size": 1 << 20},
    )
    .await;
    for n in (0..30).rev() {
        fill(&source, "back", n, 1).await;
    }
    rename(&client, "shop.back", "shop.forth").await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let options = target
        .list_collections()
        .filter(doc! {"name": "orders"})
        .await
        .unwrap();
    let options: Vec<_> = options.try_collect().await.unwrap();
    assert!(options[0].options.capped.unwrap());
    mirror.stop().await;
}

/// A server before 6.0.27 changes an empty timestamp of a plain insert, so it takes another way.
#[tokio::test(flavor = "multi_thread")]
async fn documents_with_empty_timestamps_keep_their_place_in_capped_collections() {
    let builder = ReplicaSet::builder().version(Version::V6_0_5);
    let set = builder.start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    run(
        &source,
        doc! {"create": "ring", "capped": true, "size": 1 << 20},
    )
    .await;
    let add = async |id: i32| {
        // An upsert keeps it on the source.
        let stamp = bson::Timestamp {
            time: 0,
            increment: 0,
        };
        let update = doc! {"q": {"_id": id}, "u": {"$set": {"stamp": stamp}}, "upsert": true};
        run(&source, doc! {"update": "ring", "updates": [update]}).await;
        run(
            &source,
            doc! {"insert": "ring", "documents": [{"_id": id + 1}]},
        )
        .await;
    };
    add(10).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    // All in one batch.
    mirror.stop().await;
    for id in [20, 30, 40] {
        add(id).await;
    }
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// Servers create no clustered collection that is capped by size, but let one become so.
#[tokio::test(flavor = "multi_thread")]
async fn clustered_collections_that_become_capped_arrive_by_the_copy_and_by_the_stream() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let cluster = async |name: &str| {
        let by_id = doc! {"key": {"_id": 1}, "unique": true};
        run(&source, doc! {"create": name, "clusteredIndex": by_id}).await;
        fill(&source, name, 0, 30).await;
    };
    for name in ["before", "live"] {
        cluster(name).await;
    }
    run(&source, doc! {"convertToCapped": "before", "size": 20_000}).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    run(&source, doc! {"convertToCapped": "live", "size": 20_000}).await;
    run(
        &source,
        doc! {"cloneCollectionAsCapped": "before", "toCollection": "clone", "size": 20_000},
    )
    .await;
    for name in ["before", "live", "clone"] {
        fill(&source, name, 100, 30).await;
        let some = doc! {"delete": name, "deletes": [{"q": {"quantity": 3}, "limit": 0}]};
        run(&source, some).await;
    }
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// Where several clients insert at once, a primary may lay documents in another order than its
/// oplog has, and so than its secondaries (docs/limits.md). The target has that of the oplog.
#[tokio::test(flavor = "multi_thread")]
async fn inserts_at_the_same_time_arrive_in_the_order_of_the_oplog() {
    for version in Version::ALL {
        let builder = ReplicaSet::builder().version(version);
        let set = builder.start().await.unwrap();
        let client = set.client().await.unwrap();
        let (source, target) = (client.database("shop"), client.database("shop_backup"));
        let create = doc! {"create": "ring", "capped": true, "size": 16 << 20};
        run(&source, create).await;
        let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
        mirroring(&mirror).await;
        let writers = (0..8).map(async |writer| {
            for n in 0..300 {
                fill(&source, "ring", writer * 1000 + n, 1).await;
            }
        });
        join_all(writers).await;
        caught_up(&mirror, &client).await;
        let there = common::raw::ids_as_they_lie(&target, "ring").await;
        let inserted = common::raw::ids_as_inserted(&source, "ring").await;
        assert_eq!((inserted.len(), there.len()), (8 * 300, 8 * 300));
        let pairs = there.iter().zip(&inserted);
        let wrong = pairs.filter(|(there, inserted)| there != inserted).take(6);
        let wrong: Vec<_> = wrong.collect();
        assert_eq!(wrong, [], "another order than that of the oplog");
        let on_source = common::raw::ids_as_they_lie(&source, "ring").await;
        let pairs = on_source.iter().zip(&inserted);
        let elsewhere = pairs.filter(|(lies, inserted)| lies != inserted).count();
        eprintln!("{version}: {elsewhere} places differ on the source itself");
        mirror.stop().await;
    }
}

/// The older servers end when a pipeline changes such a name; in a capped collection the document
/// cannot be put anew instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_twice_in_a_capped_collection_ends_no_server() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    run(
        &source,
        doc! {"create": "log", "capped": true, "size": 1 << 20},
    )
    .await;
    let log = source.collection::<RawDocumentBuf>("log");
    // So long that its changes are logged as such.
    let text = "x".repeat(500);
    let twice = |id: i32| rawdoc! {"_id": id, "a": 1, "a": 2, "text": text.as_str()};
    let below = |id: i32| rawdoc! {"_id": id, "s": twice(id), "text": text.as_str()};
    log.insert_many([twice(1), below(2)]).await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    log.insert_many([twice(3), rawdoc! {"_id": 4, "s": 1}])
        .await
        .unwrap();
    for (id, set) in [
        (1, doc! {"a": 5, "new": 1}),
        (2, doc! {"s.a": 5, "s.new": 1}),
        (3, doc! {"a": 5, "new": 1}),
        (4, doc! {"s": 2, "new": 1}),
    ] {
        let update = log.update_one(doc! {"_id": id}, doc! {"$set": set});
        update.await.unwrap();
    }
    let now = wait_for(&mirror, "set aside", |now| now.quarantine.len() == 3).await;
    assert_eq!(now.consistent_at, None, "it is not exactly the source");
    mirror.stop().await;

    // A copy brings them.
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    wait_for(&mirror, "copied anew", |now| {
        now.quarantine.is_empty() && now.consistent_at.is_some()
    })
    .await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
    assert!(set.node(0).is_running(), "the server has crashed");
}
