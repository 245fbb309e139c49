//! Every kind of collection and index that MongoDB 6.0 lets one mirror.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Document, RawDocumentBuf, doc};
use common::{assert_equal, caught_up, config, fill, mirroring, wait_for};
use futures::TryStreamExt;
use mongodb::{Client, Database};
use mongomirror::engine::progress::Phase;
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::{ReplicaSet, Version};

async fn run(db: &Database, command: Document) {
    db.run_command(command.clone())
        .await
        .unwrap_or_else(|error| panic!("{command}: {error}"));
}

async fn rename(client: &Client, from: &str, to: &str) {
    let command = doc! {"renameCollection": from, "to": to, "dropTarget": true};
    run(&client.database("admin"), command).await;
}

fn selection(include: &[&str]) -> Selection {
    let include = include.iter().map(ToString::to_string).collect();
    Selection::new(include, Vec::new()).unwrap()
}

/// Drops what is not selected, so that both databases can be compared.
async fn only(db: &Database, names: &[&str]) {
    for name in db.list_collection_names().await.unwrap() {
        if !names.contains(&name.as_str()) && !name.starts_with("system.") {
            db.collection::<Document>(&name).drop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renames_over_the_edge_of_the_selection_take_the_content_along() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 500).await;
    fill(&source, "outside", 1000, 3000).await;
    let index = doc! {"key": {"customer": 1}, "name": "customer_1"};
    run(
        &source,
        doc! {"createIndexes": "outside", "indexes": [index]},
    )
    .await;
    let index = doc! {"key": {"total": 1, "_id": 1}, "name": "u", "unique": true};
    run(
        &source,
        doc! {"createIndexes": "outside", "indexes": [index]},
    )
    .await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.selection = selection(&["orders", "items"]);
    config.limits.range_bytes = 500_000;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;

    // In, while it is written to; then over another one.
    rename(&client, "shop.outside", "shop.items").await;
    fill(&source, "items", 10_000, 300).await;
    source
        .collection::<Document>("items")
        .update_many(doc! {"quantity": 3}, doc! {"$set": {"new": 1}})
        .await
        .unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    rename(&client, "shop.items", "shop.orders").await;
    fill(&source, "orders", 20_000, 10).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;

    // Out and in again before the mirror looks, and a kill in between.
    mirror.stop().await;
    rename(&client, "shop.orders", "shop.elsewhere").await;
    fill(&source, "elsewhere", 30_000, 100).await;
    rename(&client, "shop.elsewhere", "shop.items").await;
    fill(&source, "items", 40_000, 100).await;
    rename(&client, "shop.items", "shop.away").await;
    fill(&source, "away", 50_000, 100).await;
    rename(&client, "shop.away", "shop.orders").await;
    fill(&source, "gone", 0, 100).await;
    rename(&client, "shop.gone", "shop.items").await;
    source.collection::<Document>("items").drop().await.unwrap();
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;

    // Out: it goes away on the target.
    rename(&client, "shop.orders", "shop.outside").await;
    caught_up(&mirror, &client).await;
    assert!(target.list_collection_names().await.unwrap().is_empty());
    let last = mirror.stop().await;
    assert_eq!(last.phase, Phase::Mirroring);
    assert_eq!(last.totals.repaired, 0);
    assert!(last.unsupported.is_empty(), "{:?}", last.unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn out_and_renames_between_databases_into_the_only_selected_name_arrive() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "raw", 0, 300).await;
    fill(&client.database("other"), "sums", 0, 200).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.selection = selection(&["sums"]);
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    let out = doc! {"aggregate": "raw", "cursor": {}, "pipeline": [{"$match": {"quantity": 3}}, {"$out": "sums"}]};
    run(&source, out).await;
    caught_up(&mirror, &client).await;
    let sums = target.collection::<Document>("sums");
    assert!(sums.count_documents(doc! {}).await.unwrap() > 5);
    rename(&client, "other.sums", "shop.sums").await;
    caught_up(&mirror, &client).await;
    only(&source, &["sums"]).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(sums.count_documents(doc! {}).await.unwrap(), 200);
    mirror.stop().await;
}

/// Every kind and option of index, as `(collection, spec)`.
fn indexes() -> Vec<(&'static str, Document)> {
    vec![
        (
            "plain",
            doc! {"key": {"a": 1, "b.c": -1}, "name": "descending"},
        ),
        (
            "plain",
            doc! {"key": {"text": "text", "more": "text"}, "name": "text", "weights": {"text": 3}, "default_language": "german", "language_override": "lang"},
        ),
        (
            "plain",
            doc! {"key": {"at": "2d"}, "name": "2d", "bits": 20, "min": -90.0, "max": 90.0},
        ),
        (
            "plain",
            doc! {"key": {"geo": "2dsphere"}, "name": "2dsphere"},
        ),
        ("plain", doc! {"key": {"h": "hashed"}, "name": "hashed"}),
        (
            "plain",
            doc! {"key": {"$**": 1}, "name": "wildcard", "wildcardProjection": {"a": 1, "w.x": 1}},
        ),
        (
            "plain",
            doc! {"key": {"deep.$**": 1}, "name": "wildcard path"},
        ),
        (
            "plain",
            doc! {"key": {"p": 1}, "name": "partial", "partialFilterExpression": {"p": {"$gt": 5}}},
        ),
        (
            "plain",
            doc! {"key": {"s": 1}, "name": "sparse", "sparse": true},
        ),
        (
            "plain",
            doc! {"key": {"hi": 1}, "name": "hidden", "hidden": true},
        ),
        (
            "plain",
            doc! {"key": {"co": 1}, "name": "collated", "collation": {"locale": "de", "strength": 2}},
        ),
        ("plain", doc! {"key": {"old": 1}, "name": "v1", "v": 1}),
        (
            "plain",
            doc! {"key": {"us": 1}, "name": "unique sparse", "unique": true, "sparse": true},
        ),
        (
            "plain",
            doc! {"key": {"up": 1}, "name": "unique partial", "unique": true, "partialFilterExpression": {"up": {"$exists": true}}},
        ),
        (
            "plain",
            doc! {"key": {"uh": 1}, "name": "unique hidden", "unique": true, "hidden": true, "sparse": true},
        ),
        (
            "plain",
            doc! {"key": {"ut": 1}, "name": "unique ttl", "unique": true, "sparse": true, "expireAfterSeconds": 100_000},
        ),
        (
            "plain",
            doc! {"key": {"when": 1}, "name": "ttl", "expireAfterSeconds": 100_000},
        ),
        ("plain", doc! {"key": {"when2": 1}, "name": "ttl later", }),
        ("folded", doc! {"key": {"a": 1}, "name": "inherited"}),
        (
            "folded",
            doc! {"key": {"a": 1}, "name": "simple", "collation": {"locale": "simple"}, "unique": true},
        ),
        (
            "folded",
            doc! {"key": {"b": 1}, "name": "other", "collation": {"locale": "fr"}},
        ),
        ("clustered", doc! {"key": {"a": 1}, "name": "a"}),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_index_arrives_by_the_copy_and_by_the_stream() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let make = async || {
        run(
            &source,
            doc! {"create": "folded", "collation": {"locale": "en", "strength": 2}},
        )
        .await;
        let key = doc! {"key": {"_id": 1}, "unique": true, "name": "by id"};
        let clustered =
            doc! {"create": "clustered", "clusteredIndex": key, "expireAfterSeconds": 100_000};
        run(&source, clustered).await;
        for (collection, spec) in indexes() {
            run(
                &source,
                doc! {"createIndexes": collection, "indexes": [spec]},
            )
            .await;
        }
        let documents = [
            doc! {"_id": 1, "a": 1, "text": "viele Worte", "at": [1, 2], "geo": {"type": "Point", "coordinates": [3, 4]}, "us": 1, "s": 2, "up": 3},
            doc! {"_id": 2, "a": 2, "text": "noch mehr", "at": [5, 2], "us": 2, "up": 4, "p": 7},
        ];
        for name in ["plain", "folded", "clustered"] {
            let collection = source.collection::<Document>(name);
            collection.insert_many(&documents).await.unwrap();
        }
        let index = |index: Document| doc! {"collMod": "plain", "index": index};
        run(&source, index(doc! {"name": "hidden", "hidden": false})).await;
        run(&source, index(doc! {"name": "sparse", "hidden": true})).await;
        run(
            &source,
            index(doc! {"name": "ttl", "expireAfterSeconds": 50_000}),
        )
        .await;
        run(
            &source,
            index(doc! {"name": "ttl later", "expireAfterSeconds": 50_000}),
        )
        .await;
    };
    make().await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    source.drop().await.unwrap();
    make().await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    run(&source, doc! {"dropIndexes": "plain", "index": "*"}).await;
    for (collection, spec) in indexes() {
        run(
            &source,
            doc! {"createIndexes": collection, "indexes": [spec]},
        )
        .await;
    }
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let progress = wait_for(&mirror, "all is there", |progress| {
        progress.unsupported.is_empty()
    })
    .await;
    assert_eq!(progress.totals.repaired, 0);
    mirror.stop().await;
}

/// All documents in natural order, raw.
async fn in_order(db: &Database, name: &str) -> Vec<RawDocumentBuf> {
    let cursor = db
        .collection::<RawDocumentBuf>(name)
        .find(doc! {})
        .sort(doc! {"$natural": 1})
        .await
        .unwrap();
    cursor.try_collect().await.unwrap()
}

async fn assert_same_order(source: &Database, target: &Database, name: &str) {
    let (left, right) = (in_order(source, name).await, in_order(target, name).await);
    let first = left.iter().zip(&right).position(|(a, b)| a != b);
    assert_eq!(
        (left.len(), first),
        (right.len(), None),
        "{name}: {:?} against {:?}",
        first.map(|at| &left[at]),
        first.map(|at| &right[at])
    );
}

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
        for name in ["log", "few"] {
            assert_same_order(&source, &target, name).await;
        }
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
    for name in ["orders", "clone", "forth"] {
        assert_same_order(&source, &target, name).await;
    }
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
    assert_same_order(&source, &target, "ring").await;
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
    for name in ["before", "live", "clone"] {
        assert_same_order(&source, &target, name).await;
    }
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_series_are_tailed_with_their_buckets() {
    for version in Version::ALL {
        let set = ReplicaSet::builder()
            .version(version)
            .start()
            .await
            .unwrap();
        let client = set.client().await.unwrap();
        let (source, target) = (client.database("shop"), client.database("shop_backup"));
        let start = bson::DateTime::now().timestamp_millis();
        let measure = async |name: &str, from: i64, count: i64| {
            let measurements = (from..from + count).map(|n| {
                doc! {"t": bson::DateTime::from_millis(start + n * 700), "m": {"sensor": n % 7}, "v": n, "w": n as f64 / 3.0}
            });
            let series = source.collection::<Document>(name);
            series.insert_many(measurements).await.unwrap();
        };
        let create = async |name: &str| {
            let series = doc! {"timeField": "t", "metaField": "m", "granularity": "seconds"};
            run(
                &source,
                doc! {"create": name, "timeseries": series, "expireAfterSeconds": 1_000_000},
            )
            .await;
        };
        create("before").await;
        run(&source, doc! {"create": "folded", "timeseries": {"timeField": "t"}, "collation": {"locale": "en", "strength": 2}}).await;
        measure("before", 0, 500).await;
        let index = doc! {"key": {"m.sensor": 1, "t": -1}, "name": "by_sensor"};
        run(
            &source,
            doc! {"createIndexes": "before", "indexes": [index.clone()]},
        )
        .await;
        let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
        mirroring(&mirror).await;
        assert_equal(&source, &target).await;
        create("after").await;
        for round in 0..5 {
            measure("before", 500 + round * 300, 300).await;
            measure("after", round * 300, 300).await;
            measure("folded", round * 30, 30).await;
        }
        run(&source, doc! {"createIndexes": "after", "indexes": [index]}).await;
        run(
            &source,
            doc! {"collMod": "after", "index": {"name": "by_sensor", "hidden": true}},
        )
        .await;
        run(
            &source,
            doc! {"collMod": "after", "timeseries": {"granularity": "minutes"}},
        )
        .await;
        run(
            &source,
            doc! {"collMod": "after", "expireAfterSeconds": 500_000},
        )
        .await;
        measure("after", 5000, 100).await;
        source
            .collection::<Document>("before")
            .delete_many(doc! {"m": {"sensor": 3}})
            .await
            .unwrap();
        run(
            &source,
            doc! {"create": "seen", "viewOn": "after", "pipeline": [{"$match": {"v": 3}}]},
        )
        .await;
        create("short").await;
        measure("short", 0, 10).await;
        source.collection::<Document>("short").drop().await.unwrap();
        let progress = caught_up(&mirror, &client).await;
        assert_equal(&source, &target).await;
        let count = async |db: &Database| {
            db.collection::<Document>("after")
                .count_documents(doc! {})
                .await
                .unwrap()
        };
        assert_eq!((count(&source).await, count(&target).await), (1600, 1600));
        assert_eq!(progress.totals.repaired, 0);
        assert!(
            progress.unsupported.is_empty(),
            "{:?}",
            progress.unsupported
        );
        mirror.stop().await;
    }
}

/// Servers make the buckets of a time series and what shows them in two steps, and not as one.
#[tokio::test(flavor = "multi_thread")]
async fn buckets_whose_name_another_collection_took_are_told_and_harm_nothing() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let series = doc! {"timeField": "at", "metaField": "sensor"};
    let buckets = |name: &str| doc! {"create": format!("system.buckets.{name}"), "timeseries": &series, "clusteredIndex": true};
    for name in ["before", "first"] {
        fill(&source, name, 0, 10).await;
    }
    run(&source, buckets("before")).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    // Whichever of both comes first.
    run(&source, buckets("first")).await;
    run(&source, buckets("second")).await;
    // What is inserted by this name now, servers look for in the buckets.
    run(&source, doc! {"create": "second"}).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    let mirror = MirrorHandle::start(config);
    let progress = caught_up(&mirror, &client).await;
    let told: Vec<&str> = progress
        .unsupported
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(told, ["before", "first", "second"]);
    for name in ["before", "first", "second"] {
        let documents = in_order(&target, name).await;
        assert_eq!(documents, in_order(&source, name).await, "{name}");
        run(&source, doc! {"drop": name}).await;
        run(&source, doc! {"drop": format!("system.buckets.{name}")}).await;
    }
    // Then the name may be that of a time series.
    run(&source, doc! {"create": "second", "timeseries": &series}).await;
    let reading = doc! {"at": bson::DateTime::from_millis(5), "sensor": 1};
    run(&source, doc! {"insert": "second", "documents": [reading]}).await;
    let progress = caught_up(&mirror, &client).await;
    assert!(progress.unsupported.is_empty(), "{progress:?}");
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_mirrored_and_go_with_their_database() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let scripts = source.collection::<Document>("system.js");
    scripts.insert_one(doc! {"_id": "one", "value": bson::Bson::JavaScriptCode("function() { return 1 }".into())}).await.unwrap();
    fill(&source, "orders", 0, 10).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    assert_equal(&source, &target).await;
    scripts
        .insert_one(doc! {"_id": "two", "value": 2, "pad": "p".repeat(300)})
        .await
        .unwrap();
    scripts
        .update_one(doc! {"_id": "two"}, doc! {"$set": {"value": 3, "new": 1}})
        .await
        .unwrap();
    scripts.delete_one(doc! {"_id": "one"}).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(
        target
            .collection::<Document>("system.js")
            .count_documents(doc! {})
            .await
            .unwrap(),
        1
    );
    source.drop().await.unwrap();
    caught_up(&mirror, &client).await;
    assert!(
        target
            .list_collection_names()
            .await
            .unwrap()
            .iter()
            .all(|name| name == "system.views")
    );
    scripts
        .insert_one(doc! {"_id": "three", "value": 3})
        .await
        .unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_every_kind_arrive_by_the_copy_and_by_the_stream() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let make = async || {
        let validator =
            doc! {"$jsonSchema": {"required": ["a"], "properties": {"a": {"bsonType": "int"}}}};
        let violating = source.collection::<Document>("strict");
        violating
            .insert_one(doc! {"_id": 1, "a": "no int", "pad": "p".repeat(200)})
            .await
            .unwrap();
        run(&source, doc! {"collMod": "strict", "validator": validator.clone(), "validationLevel": "moderate", "validationAction": "error"}).await;
        violating
            .update_one(doc! {"_id": 1}, doc! {"$set": {"b": 1}})
            .await
            .unwrap();
        run(
            &source,
            doc! {"create": "warns", "validator": validator, "validationAction": "warn"},
        )
        .await;
        source
            .collection::<Document>("warns")
            .insert_one(doc! {"_id": 1})
            .await
            .unwrap();
        run(
            &source,
            doc! {"create": "images", "changeStreamPreAndPostImages": {"enabled": true}},
        )
        .await;
        run(&source, doc! {"create": "engine", "storageEngine": {"wiredTiger": {"configString": "block_compressor=zlib"}}, "indexOptionDefaults": {"storageEngine": {"wiredTiger": {}}}}).await;
        run(&source, doc! {"create": "view", "viewOn": "strict", "pipeline": [{"$match": {"b": 1}}], "collation": {"locale": "de", "strength": 1}}).await;
        run(&source, doc! {"create": "view2", "viewOn": "view", "pipeline": [{"$project": {"b": 1}}], "collation": {"locale": "de", "strength": 1}}).await;
        run(
            &source,
            doc! {"collMod": "view2", "viewOn": "view", "pipeline": []},
        )
        .await;
        run(
            &source,
            doc! {"collMod": "images", "changeStreamPreAndPostImages": {"enabled": false}},
        )
        .await;
        run(&source, doc! {"collMod": "warns", "validationLevel": "off"}).await;
        let key = doc! {"key": {"_id": 1}, "unique": true};
        run(&source, doc! {"create": "clustered", "clusteredIndex": key, "expireAfterSeconds": 1_000_000_i64}).await;
        fill(&source, "clustered", 0, 50).await;
        run(
            &source,
            doc! {"collMod": "clustered", "expireAfterSeconds": 2_000_000_i64},
        )
        .await;
    };
    make().await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    source.drop().await.unwrap();
    make().await;
    let progress = caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert!(
        progress.unsupported.is_empty(),
        "{:?}",
        progress.unsupported
    );
    assert_eq!(progress.totals.repaired, 0);
    mirror.stop().await;
}
