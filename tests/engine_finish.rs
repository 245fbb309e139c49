//! A mirror that ends for good leaves an ordinary database; one that goes on takes that back.

mod common;

use std::time::Duration;

use bson::{Document, doc};
use common::{PATIENCE, assert_equal, caught_up, config, fill, mirroring, run};
use futures::TryStreamExt;
use mongodb::{Client, Database};
use mongomirror::engine::config::{MirrorConfig, OnDeselected};
use mongomirror::engine::connection::uri::ConnectionUri;
use mongomirror::engine::finish::{End, LIMIT, finish};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use testbed::ReplicaSet;

/// Options and indexes exactly as listed.
async fn definitions(db: &Database) -> Document {
    let mut all = Document::new();
    let listed = db
        .run_cursor_command(doc! {"listCollections": 1})
        .await
        .unwrap();
    let mut listed: Vec<Document> = listed.try_collect().await.unwrap();
    listed.sort_by_key(|one| one.get_str("name").unwrap().to_owned());
    for one in listed {
        let name = one.get_str("name").unwrap();
        if name.starts_with("system.") {
            continue;
        }
        let indexes = db
            .run_cursor_command(doc! {"listIndexes": name})
            .await
            .unwrap();
        let mut indexes: Vec<Document> = indexes.try_collect().await.unwrap();
        indexes.sort_by_key(|index| index.get_str("name").unwrap_or_default().to_owned());
        all.insert(
            name,
            doc! {"options": one.get("options").cloned(), "indexes": indexes},
        );
    }
    all
}

/// Everything that is withheld on a target.
async fn make(source: &Database) {
    let index = |key: &str, more: Document| {
        let mut index = doc! {"key": {key: 1}, "name": key};
        index.extend(more);
        index
    };
    let indexes = [
        index("at", doc! {"expireAfterSeconds": 3600}),
        index("key", doc! {"unique": true, "sparse": true}),
    ];
    run(
        source,
        doc! {"createIndexes": "orders", "indexes": &indexes[..]},
    )
    .await;
    run(
        source,
        doc! {"create": "log", "capped": true, "size": 65_536, "max": 50},
    )
    .await;
    let series = doc! {"timeField": "t", "metaField": "m"};
    run(
        source,
        doc! {"create": "series", "timeseries": series, "expireAfterSeconds": 86_400},
    )
    .await;
    let key = doc! {"key": {"_id": 1}, "unique": true, "name": "by id"};
    run(
        source,
        doc! {"create": "clustered", "clusteredIndex": key, "expireAfterSeconds": 86_400},
    )
    .await;
    let soon = bson::DateTime::now();
    let orders = source.collection::<Document>("orders");
    for n in 0..20 {
        orders
            .insert_one(doc! {"_id": n, "at": soon, "key": n})
            .await
            .unwrap();
    }
    fill(source, "log", 0, 30).await;
    let series = source.collection::<Document>("series");
    series
        .insert_one(doc! {"t": soon, "m": 1, "v": 1})
        .await
        .unwrap();
}

async fn wait_until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached)
        .await
        .unwrap_or_else(|_| panic!("still not: {what}"));
}

async fn documents(client: &Client, collection: &str) -> u64 {
    let target = client.database("shop_backup");
    let collection = target.collection::<Document>(collection);
    collection.count_documents(doc! {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_target_is_as_the_source_and_a_mirror_that_goes_on_takes_it_back() {
    let set = ReplicaSet::builder()
        .param("ttlMonitorSleepSecs", 1)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    make(&source).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    // Changed while mirrored.
    let shorter = doc! {"index": {"name": "at", "expireAfterSeconds": 1800}};
    let mut command = doc! {"collMod": "orders"};
    command.extend(shorter);
    run(&source, command).await;
    run(
        &source,
        doc! {"collMod": "log", "cappedSize": 32_768, "cappedMax": 40},
    )
    .await;
    run(
        &source,
        doc! {"collMod": "series", "expireAfterSeconds": 7200},
    )
    .await;
    run(
        &source,
        doc! {"collMod": "clustered", "expireAfterSeconds": 7200},
    )
    .await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_ne!(definitions(&source).await, definitions(&target).await);
    mirror.stop().await;
    assert_ne!(definitions(&source).await, definitions(&target).await);

    finish(&config, End::Arm).await.unwrap();
    assert_eq!(definitions(&source).await, definitions(&target).await);
    // Again changes nothing.
    finish(&config, End::Arm).await.unwrap();
    assert_eq!(definitions(&source).await, definitions(&target).await);

    // It really expires by itself now, and the source does not.
    let ttl = |seconds: i64| doc! {"collMod": "orders", "index": {"name": "at", "expireAfterSeconds": seconds}};
    run(&target, ttl(0)).await;
    wait_until("everything expired", async || {
        documents(&client, "orders").await == 0
    })
    .await;

    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(documents(&client, "orders").await, 20);
    fill(&source, "log", 1000, 60).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finishing_leaves_alone_what_belongs_to_another_mirror() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    make(&source).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
    let before = definitions(&target).await;
    config.name = "tests/other".into();
    finish(&config, End::Arm).await.unwrap();
    assert_eq!(before, definitions(&target).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn finishing_an_unreachable_target_ends_in_time() {
    let mut config = config("mongodb://127.0.0.1:1", "mongodb://127.0.0.1:1", "shop");
    // Answers nothing at all, so that only the limit ends it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!(
        "mongodb://{}/?directConnection=true",
        silent.local_addr().unwrap()
    );
    config.target.uri = ConnectionUri::parse(&uri).unwrap();
    let started = std::time::Instant::now();
    finish(&config, End::Arm).await.unwrap_err();
    assert!(started.elapsed() < LIMIT + Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_deleted_leaves_nothing_but_what_is_not_selected() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    make(&source).await;
    run(
        &source,
        doc! {"create": "seen", "viewOn": "orders", "pipeline": []},
    )
    .await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
    fill(&target, "kept", 0, 3).await;
    config.selection = Selection::new(Vec::new(), vec!["kept".into()]).unwrap();
    let mut other = config.clone();
    other.name = "tests/other".into();
    // One that never had it deletes nothing.
    let stranger = MirrorConfig {
        holder: Some("another".into()),
        ..config.clone()
    };
    assert!(!finish(&stranger, End::Delete).await.unwrap());
    assert!(!finish(&other, End::Delete).await.unwrap());
    assert!(target.list_collection_names().await.unwrap().len() > 3);

    finish(&config, End::Delete).await.unwrap();
    let mut left = target.list_collection_names().await.unwrap();
    left.retain(|name| !name.starts_with("system."));
    assert_eq!(left, ["kept"]);
    let state = client.database("mongomirror");
    for name in [
        "checkpoints",
        "catalog",
        "ranges",
        "quarantine",
        "verifications",
    ] {
        let documents = state.collection::<Document>(name);
        let count = documents.count_documents(doc! {}).await.unwrap();
        assert_eq!(count, 0, "{name}");
    }
    // Again changes nothing, and the next mirror begins from nothing.
    finish(&config, End::Delete).await.unwrap();
    target.drop().await.unwrap();
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// A mirror that is deleted while its selection was edited and not brought about yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_selection_that_is_newer_than_the_target_makes_nothing_of_others_its_own() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let some = |include: &[&str], exclude: &[&str]| {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Selection::new(own(include), own(exclude)).unwrap()
    };
    for (database, was, is, policy, left) in [
        (
            "widened",
            some(&["orders", "seen"], &[]),
            some(&[], &[]),
            OnDeselected::Drop,
            &["theirs"][..],
        ),
        (
            "kept",
            some(&[], &["theirs"]),
            some(&[], &["carts"]),
            OnDeselected::Retain,
            &["carts", "theirs"],
        ),
        (
            "unseen",
            some(&[], &["theirs"]),
            some(&[], &["carts", "seen"]),
            OnDeselected::Retain,
            &["carts", "theirs"],
        ),
        (
            "dropped",
            some(&[], &["theirs"]),
            some(&[], &["carts"]),
            OnDeselected::Drop,
            &["theirs"],
        ),
    ] {
        let copy = format!("{database}_backup");
        let (source, target) = (client.database(database), client.database(&copy));
        fill(&source, "orders", 0, 3).await;
        fill(&source, "carts", 0, 3).await;
        let index = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 3600};
        run(&source, doc! {"createIndexes": "carts", "indexes": [index]}).await;
        let view = doc! {"create": "seen", "viewOn": "orders", "pipeline": []};
        run(&source, view).await;
        let mut config = config(&set.uri(), &set.uri(), database);
        config.target.database = copy;
        config.name = format!("tests/{database}");
        config.on_deselected = policy;
        config.selection = was;
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        mirror.stop().await;
        fill(&target, "theirs", 0, 3).await;
        config.selection = is;
        assert!(finish(&config, End::Delete).await.unwrap());
        let mut there = target.list_collection_names().await.unwrap();
        there.retain(|name| !name.starts_with("system."));
        there.sort();
        assert_eq!(there, left, "{database}");
        if left.contains(&"carts") {
            let all = definitions(&target).await.to_string();
            assert!(
                all.contains("\"expireAfterSeconds\": 3600"),
                "{database}: {all}"
            );
        }
    }
}
