//! Every kind of collection and index that MongoDB 6.0 lets one mirror.

mod common;

use bson::{Document, doc};
use common::{assert_equal, caught_up, config, fill, mirroring, rename, run, verify, wait_for};
use mongodb::Database;
use mongomirror::engine::progress::Phase;
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

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

/// Of a field with values of two types.
fn mixed_bucket(n: u32) -> Document {
    let at = bson::DateTime::from_millis(i64::from(n) * 7_200_000);
    let mut id = [0; 12];
    id[..4].copy_from_slice(&(n * 7200).to_be_bytes());
    doc! {
        "_id": bson::oid::ObjectId::from_bytes(id),
        "control": {
            "version": 1,
            "min": {"_id": 1, "t": at, "v": 1},
            "max": {"_id": 2, "t": at, "v": "x"},
        },
        "meta": "a",
        "data": {"t": {"0": at, "1": at}, "_id": {"0": 1, "1": 2}, "v": {"0": 1, "1": "x"}},
    }
}

/// 6.0.5 stores them unasked, 6.0.27 only where it was told that there are such.
#[tokio::test(flavor = "multi_thread")]
async fn buckets_of_a_mixed_schema_arrive_at_servers_that_are_careful() {
    const TOLD: &str = "timeseriesBucketsMayHaveMixedSchemaData";
    let (old, new) = (Version::V6_0_5, Version::V6_0_27);
    for (from, to) in [(old, new), (new, new), (new, old)] {
        let ((here, from_client), (there, to_client)) =
            tokio::join!(common::start(from), common::start(to));
        let source = from_client.database("shop");
        let target = to_client.database("shop_backup");
        let is_careful = from == new;
        let create = async |name: &str| {
            let series = doc! {"timeField": "t", "metaField": "meta"};
            run(&source, doc! {"create": name, "timeseries": series}).await;
            if is_careful {
                run(&source, doc! {"collMod": name, TOLD: true}).await;
            }
        };
        let write = async |name: &str, from: u32| {
            let buckets = source.collection::<Document>(&format!("system.buckets.{name}"));
            let some = (from..from + 5).map(mixed_bucket);
            buckets.insert_many(some).await.unwrap();
        };
        create("before").await;
        write("before", 0).await;
        let mirror = MirrorHandle::start(config(&here.uri(), &there.uri(), "shop"));
        mirroring(&mirror).await;
        create("after").await;
        write("before", 10).await;
        write("after", 0).await;
        caught_up(&mirror, &from_client).await;
        let result = verify(&mirror).await;
        assert!(result.is_equal() && result.differences == 0, "{result:?}");
        assert_eq!(mirror.progress().borrow().totals.retries, 0);
        assert_equal(&source, &target).await;
        mirror.stop().await;
    }
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
        let documents = common::raw::read_as_they_lie(&target, name).await;
        let on_source = common::raw::read_as_they_lie(&source, name).await;
        assert!(documents == on_source, "{name}");
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

/// A server before 6.0.27 tells nobody (docs/limits.md).
#[tokio::test(flavor = "multi_thread")]
async fn views_go_with_the_collection_of_their_definitions() {
    let builder = ReplicaSet::builder().version(Version::V6_0_27);
    let set = builder.start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    let view = |name: &str| doc! {"create": name, "viewOn": "orders", "pipeline": []};
    run(&source, view("one")).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    run(&source, view("two")).await;
    run(&source, doc! {"drop": "system.views"}).await;
    run(&source, view("three")).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_the_internal_flags_is_left_out_without_them() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    run(
        &source,
        doc! {"create": "ring", "capped": true, "size": 4096},
    )
    .await;
    run(
        &source,
        doc! {"create": "readings", "timeseries": {"timeField": "at"}},
    )
    .await;
    let script = doc! {"_id": "f", "value": 1};
    run(&source, doc! {"insert": "system.js", "documents": [script]}).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.internal_delta = false;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    run(
        &source,
        doc! {"create": "later", "capped": true, "size": 4096},
    )
    .await;
    fill(&source, "orders", 10, 10).await;
    let now = caught_up(&mirror, &client).await;
    let mut told: Vec<&str> = now.unsupported.iter().map(|it| it.name.as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, ["later", "readings", "ring", "system.js"]);
    for one in &now.unsupported {
        assert!(one.reason.contains("internal flags"), "{one:?}");
    }
    assert_eq!(target.list_collection_names().await.unwrap(), ["orders"]);
    common::assert_equal_within(&source, &target, |name| name == "orders").await;
    mirror.stop().await;
}
