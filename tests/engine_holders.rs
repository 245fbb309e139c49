//! Who may have a target: several mirrors of one name, as of two clusters; chains and rings.

mod common;

use std::time::Duration;

use bson::{Document, doc};
use common::faults::{has_problem, healed};
use common::{assert_equal, caught_up, config, fill, mirroring, start, wait_for};
use mongomirror::engine::config::{MirrorConfig, OnExistingData};
use mongomirror::engine::request::Request;
use mongomirror::runner::{self, End, MirrorHandle};
use testbed::Version;
use tokio::sync::oneshot;

#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_a_name_is_refused_as_long_as_the_first_works() {
    let (server, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    fill(&shop, "orders", 0, 100).await;
    let of = |holder: &str| MirrorConfig {
        holder: Some(holder.into()),
        ..config(&server.uri(), &server.uri(), "shop")
    };
    let first = MirrorHandle::start(of("uid-1"));
    mirroring(&first).await;
    let second = MirrorHandle::start(of("uid-2"));
    let refused = has_problem(&second, &["TargetBusy"]).await.problem.unwrap();
    assert!(refused.message.contains("uid-1"), "{}", refused.message);
    assert!(!refused.needs_human, "it may be a mirror that has ended");
    // Who asks it for something does not make it look too soon.
    let (done, _answer) = oneshot::channel();
    second
        .requests()
        .send(Request::Resync { done })
        .await
        .unwrap();
    // An idle one shows that it works, too.
    let still = wait_for(&second, "it is sure", |now| {
        now.problem
            .as_ref()
            .is_some_and(|problem| problem.needs_human)
    })
    .await;
    assert_eq!(still.problem.unwrap().reason, "TargetBusy");
    healed(&first, &client, &client, "shop").await;
    assert_eq!(first.progress().borrow().problem, None);
    second.stop().await;

    // One that ends in order lets go, and nobody has to wait.
    first.stop().await;
    let begun = tokio::time::Instant::now();
    let third = MirrorHandle::start(of("uid-3"));
    mirroring(&third).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "it has waited");
    caught_up(&third, &client).await;
    assert_equal(&shop, &copy).await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_taken_from_one_that_no_longer_works() {
    let (server, client) = start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    fill(&shop, "orders", 0, 100).await;
    let mut config = config(&server.uri(), &server.uri(), "shop");
    let first = MirrorHandle::start(config.clone());
    mirroring(&first).await;
    first.stop().await;
    // As one that was killed leaves it.
    let checkpoints = client
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    let held = doc! {"$set": {"holder": "uid-1", "released": false}};
    checkpoints.update_one(doc! {}, held).await.unwrap();
    fill(&shop, "orders", 1000, 10).await;
    config.holder = Some("uid-2".into());
    let second = MirrorHandle::start(config);
    has_problem(&second, &["TargetBusy"]).await;
    mirroring(&second).await;
    caught_up(&second, &client).await;
    assert_equal(&shop, &copy).await;
    let held = checkpoints.find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(held.get_str("holder").unwrap(), "uid-2");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_are_mirrored_and_rings_refused() {
    let (server, client) = start(Version::V6_0_27).await;
    let db = |name: &str| client.database(name);
    fill(&db("a"), "orders", 0, 100).await;
    let between = |from: &str, to: &str| {
        let mut config = config(&server.uri(), &server.uri(), from);
        config.name = format!("tests/{from}{to}");
        config.target.database = to.to_owned();
        config.on_existing_data = OnExistingData::Adopt;
        config
    };
    let first = MirrorHandle::start(between("a", "b"));
    mirroring(&first).await;
    let second = MirrorHandle::start(between("b", "c"));
    mirroring(&second).await;
    assert_eq!(first.progress().borrow().comes_from, None);
    let told = second.progress().borrow().comes_from.clone();
    assert!(told.is_some_and(|told| told.starts_with("\"a\" of ")));
    for ring in [between("b", "a"), between("c", "a"), between("c", "b")] {
        let refused = MirrorHandle::start(ring);
        let problem = has_problem(&refused, &["MirrorRing"])
            .await
            .problem
            .unwrap();
        assert!(problem.needs_human);
        refused.stop().await;
    }
    fill(&db("a"), "orders", 1000, 100).await;
    caught_up(&first, &client).await;
    caught_up(&second, &client).await;
    assert_equal(&db("a"), &db("b")).await;
    assert_equal(&db("b"), &db("c")).await;
    second.stop().await;

    // The direction is turned round, once the first mirror has ended for good.
    let ended = first.config().clone();
    first.stop().await;
    runner::finish(ended, End::Arm).await;
    fill(&db("b"), "orders", 2000, 100).await;
    let back = MirrorHandle::start(between("b", "a"));
    mirroring(&back).await;
    caught_up(&back, &client).await;
    assert_equal(&db("b"), &db("a")).await;
    back.stop().await;
}
