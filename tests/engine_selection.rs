//! Another selection for a mirror that has begun: what came in, and what went out.

mod common;

use bson::{Document, doc};
use common::{
    assert_equal_beside, assert_equal_within, caught_up, config, fill, mirroring, run, start,
    verify, wait_for,
};
use futures::TryStreamExt;
use mongodb::Database;
use mongomirror::engine::config::{MirrorConfig, OnDeselected};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::{self, End, MirrorHandle};
use testbed::Version;

fn select(config: &mut MirrorConfig, include: &[&str], exclude: &[&str]) {
    let own = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    config.selection = Selection::new(own(include), own(exclude)).unwrap();
}

async fn names(db: &Database) -> Vec<String> {
    let mut names = db.list_collection_names().await.unwrap();
    names.retain(|name| !name.starts_with("system."));
    names.sort();
    names
}

async fn everything(db: &Database, collection: &str) -> Vec<Document> {
    let documents = db.collection::<Document>(collection);
    let sorted = documents.find(doc! {}).sort(doc! {"_id": 1}).await.unwrap();
    sorted.try_collect().await.unwrap()
}

/// Collections of many kinds, each called by its kind and this.
async fn make(db: &Database, suffix: &str) {
    fill(db, &format!("orders{suffix}"), 0, 300).await;
    let at = bson::DateTime::now();
    for command in [
        doc! {"createIndexes": format!("orders{suffix}"), "indexes": [
            {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 40_000},
        ]},
        doc! {"create": format!("ring{suffix}"), "capped": true, "size": 100_000},
        doc! {"insert": format!("ring{suffix}"), "documents": [{"_id": 2}, {"_id": 1}]},
        doc! {"create": format!("series{suffix}"), "timeseries": {"timeField": "at"}},
        doc! {"insert": format!("series{suffix}"), "documents": [{"at": at, "m": 1}]},
        doc! {"create": format!("seen{suffix}"), "viewOn": format!("orders{suffix}"), "pipeline": []},
    ] {
        run(db, command).await;
    }
}

async fn reselected(on_deselected: OnDeselected) {
    let (source, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    for suffix in ["_out", "_in", "_stays"] {
        make(&shop, suffix).await;
    }
    let mut config = config(&source.uri(), &source.uri(), "shop");
    config.limits.range_bytes = 20_000;
    config.on_deselected = on_deselected;
    select(&mut config, &["*_out", "*_stays"], &[]);
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    let before = everything(&shop, "orders_out").await;

    // While nobody mirrors, everything changes.
    for suffix in ["_out", "_in", "_stays"] {
        fill(&shop, &format!("orders{suffix}"), 1000, 50).await;
        let orders = shop.collection::<Document>(&format!("orders{suffix}"));
        orders.delete_many(doc! {"_id": {"$lt": 10}}).await.unwrap();
    }
    common::rename(&client, "shop.orders_in", "shop.orders2_in").await;
    make(&shop, "_late_in").await;

    select(&mut config, &[], &["*_out"]);
    let mirror = MirrorHandle::start(config.clone());
    fill(&shop, "orders2_in", 2000, 50).await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let is_out = |name: &str| name.ends_with("_out");
    assert_equal_beside(&shop, &copy, |name| !is_out(name), is_out).await;
    let left: Vec<String> = {
        let mut all = names(&copy).await;
        all.retain(|name| is_out(name));
        all
    };
    match on_deselected {
        OnDeselected::Drop => assert!(left.is_empty(), "{left:?}"),
        OnDeselected::Retain => {
            assert_eq!(left, ["orders_out", "ring_out", "series_out"]);
            assert_eq!(everything(&copy, "orders_out").await, before);
            // It expires again, as nobody mirrors it any more.
            let list = doc! {"listIndexes": "orders_out"};
            let indexes = copy.run_command(list).await.unwrap().to_string();
            assert!(indexes.contains("40000"), "{indexes}");
        }
    }
    let first = mirror.progress().borrow().totals;
    assert_eq!(first.resyncs, 0);

    // Nor is it anybody's business later: not by a verification, not when the source drops it.
    run(&shop, doc! {"drop": "orders_out"}).await;
    assert_eq!(verify(&mirror).await.differences, 0);
    mirror.stop().await;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    assert_eq!(verify(&mirror).await.differences, 0);
    mirror.stop().await;

    // And back.
    make(&shop, "_back_out").await;
    fill(&shop, "orders_out", 5000, 10).await;
    select(&mut config, &[], &[]);
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    common::assert_equal(&shop, &copy).await;
    assert_eq!(verify(&mirror).await.differences, 0);
    assert_eq!(mirror.stop().await.totals.resyncs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_into_the_selection_is_copied_and_what_went_out_stays_as_it_was() {
    reselected(OnDeselected::Retain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_out_of_the_selection_is_dropped_if_that_is_asked_for() {
    reselected(OnDeselected::Drop).await;
}

/// The name is another collection's at the mirror's position than it is now.
#[tokio::test(flavor = "multi_thread")]
async fn a_selection_that_changes_together_with_names_is_compared_as_a_whole() {
    let (source, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    for name in ["a", "b", "out"] {
        fill(&shop, name, 0, 200).await;
    }
    fill(&shop, "b", 500, 20).await;
    let mut config = config(&source.uri(), &source.uri(), "shop");
    select(&mut config, &["a", "out"], &[]);
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    // What is called "a" then is "b" of before.
    for (from, to) in [("a", "t"), ("b", "a"), ("t", "b")] {
        common::rename(&client, &format!("shop.{from}"), &format!("shop.{to}")).await;
    }
    fill(&shop, "a", 900, 20).await;
    select(&mut config, &["a", "b"], &[]);
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    wait_for(&mirror, "nothing is left to copy", |now| {
        now.consistent_at.is_some()
    })
    .await;
    caught_up(&mirror, &client).await;
    assert_equal_beside(&shop, &copy, |name| name != "out", |name| name == "out").await;
    assert_eq!(names(&copy).await, ["a", "b", "out"]);
    assert_eq!(verify(&mirror).await.differences, 0);
    mirror.stop().await;
}

/// The process dies at some moment after the selection was changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_selection_is_changed_to_its_end_however_often_the_mirror_begins_anew() {
    let (source, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    for n in 0..12 {
        fill(&shop, &format!("c{n}"), 0, 100).await;
    }
    let mut config = config(&source.uri(), &source.uri(), "shop");
    config.on_deselected = OnDeselected::Drop;
    config.limits.range_bytes = 3_000;
    select(&mut config, &["c0", "c1", "c2", "c3"], &[]);
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    for n in 0..12 {
        fill(&shop, &format!("c{n}"), 1000, 20).await;
    }
    select(&mut config, &[], &["c0", "c1"]);
    for pause in [5, 15, 30, 60, 100, 150, 250] {
        let mirror = MirrorHandle::start(config.clone());
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        // As a kill does it: nothing is finished.
        drop(mirror);
    }
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let takes_part = |name: &str| !["c0", "c1"].contains(&name);
    assert_equal_within(&shop, &copy, takes_part).await;
    assert_eq!(verify(&mirror).await.differences, 0);
    mirror.stop().await;
}

/// As a process leaves it that died in the middle: with a collection let go, and another one taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_selection_that_is_taken_back_half_done_leaves_nothing_out() {
    let (source, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    for name in ["a", "b", "c"] {
        fill(&shop, name, 0, 50).await;
    }
    let mut config = config(&source.uri(), &source.uri(), "shop");
    config.on_deselected = OnDeselected::Drop;
    select(&mut config, &["a", "b"], &[]);
    let before = config.clone();
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    select(&mut config, &["b", "c"], &[]);
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    mirror.stop().await;
    assert_eq!(names(&copy).await, ["b", "c"]);
    let checkpoints = client
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    let half = doc! {"$set": {"selection": ""}};
    checkpoints.update_one(doc! {}, half).await.unwrap();

    let mirror = MirrorHandle::start(before.clone());
    mirroring(&mirror).await;
    fill(&shop, "a", 1000, 10).await;
    caught_up(&mirror, &client).await;
    assert_equal_within(&shop, &copy, |name| name != "c").await;
    // Whatever is missing is found.
    let catalog = client
        .database("mongomirror")
        .collection::<Document>("catalog");
    let removed = catalog.delete_one(doc! {"name": "a"}).await.unwrap();
    assert_eq!(removed.deleted_count, 1);
    mirror.stop().await;
    copy.collection::<Document>("a").drop().await.unwrap();
    let mirror = MirrorHandle::start(before);
    mirroring(&mirror).await;
    let verified = verify(&mirror).await;
    assert_eq!((verified.differences, verified.repaired), (1, 1));
    caught_up(&mirror, &client).await;
    assert_equal_within(&shop, &copy, |name| name != "c").await;
    mirror.stop().await;
}

/// The mirror was ended for good before, and what it had made is armed.
#[tokio::test(flavor = "multi_thread")]
async fn what_went_out_of_the_selection_of_a_mirror_that_had_ended_stays() {
    let (source, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    for suffix in ["_out", "_stays"] {
        make(&shop, suffix).await;
    }
    let mut config = config(&source.uri(), &source.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    runner::finish(config.clone(), End::Arm).await;
    select(&mut config, &["*_stays"], &[]);
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let is_out = |name: &str| name.ends_with("_out");
    assert_equal_beside(&shop, &copy, |name| !is_out(name), is_out).await;
    for kind in ["orders", "ring"] {
        let name = format!("{kind}_out");
        let (left, right) = (
            everything(&shop, &name).await,
            everything(&copy, &name).await,
        );
        assert_eq!(left, right, "{name}");
        assert!(!left.is_empty());
    }
    mirror.stop().await;
}

/// What a name means changes its kind while the mirror is paused and its selection changes.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_become_another_kind_arrive_with_a_changed_selection() {
    let (source, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    let series = |name: &str| doc! {"create": name, "timeseries": {"timeField": "at"}};
    let view = |name: &str| doc! {"create": name, "viewOn": "base", "pipeline": []};
    let read = |name: &str| doc! {"insert": name, "documents": [{"at": bson::DateTime::now()}]};
    fill(&shop, "base", 0, 20).await;
    fill(&shop, "plain", 0, 20).await;
    fill(&shop, "kept", 0, 20).await;
    fill(&shop, "later", 0, 20).await;
    for command in [
        series("series"),
        read("series"),
        view("view"),
        view("out_view"),
    ] {
        run(&shop, command).await;
    }
    let mut config = config(&source.uri(), &source.uri(), "shop");
    select(&mut config, &[], &["later"]);
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    // Retained, and then a view at the source.
    select(&mut config, &[], &["later", "kept", "out_view"]);
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    assert!(!names(&copy).await.contains(&"out_view".to_owned()));
    for name in ["plain", "series", "view", "kept"] {
        run(&shop, doc! {"drop": name}).await;
    }
    for command in [
        series("plain"),
        read("plain"),
        doc! {"insert": "series", "documents": [{"_id": 1}]},
        doc! {"insert": "view", "documents": [{"_id": 1}]},
        view("kept"),
    ] {
        run(&shop, command).await;
    }
    select(&mut config, &[], &["out_view"]);
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal_within(&shop, &copy, |name| name != "out_view").await;
    assert_eq!(verify(&mirror).await.differences, 0);
    mirror.stop().await;
}
