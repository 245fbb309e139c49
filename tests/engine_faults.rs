//! Servers that die, step down, freeze and come back; processes that meet each other.

mod common;

use std::time::Duration;

use bson::doc;
use common::workload::{Workload, fill};
use common::{assert_equal, caught_up, config, fresh_seed, mirroring, wait_for};
use mongomirror::engine::progress::Phase;
use mongomirror::runner::MirrorHandle;
use testbed::ReplicaSet;

#[tokio::test(flavor = "multi_thread")]
async fn elections_of_the_source_lose_nothing() {
    let seed = fresh_seed();
    let source = ReplicaSet::builder().nodes(3).start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    fill(&client, "shop", seed, 800).await;
    let workload = Workload::start(&client, "shop", seed, 2, false);
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    mirroring(&mirror).await;

    source.step_down().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let primary = source.primary().await.unwrap();
    source.node(primary).kill().await.unwrap();
    source.wait_for_primary().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    source.node(primary).restart().await.unwrap();
    source.wait_until_settled().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    workload.stop().await;
    caught_up(&mirror, &client).await;
    let copy = target.client().await.unwrap();
    assert_equal(&client.database("shop"), &copy.database("shop_backup")).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_dies_and_a_source_that_freezes_are_waited_for() {
    let seed = fresh_seed();
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    fill(&client, "shop", seed, 500).await;
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    mirroring(&mirror).await;
    let workload = Workload::start(&client, "shop", seed, 2, false);

    tokio::time::sleep(Duration::from_secs(1)).await;
    target.node(0).kill().await.unwrap();
    wait_for(&mirror, "the target is reported lost", |progress| {
        progress.target.connected == Some(false) && progress.problem.is_some()
    })
    .await;
    target.node(0).restart().await.unwrap();
    target.wait_for_primary().await.unwrap();
    wait_for(&mirror, "the target is back", |progress| {
        progress.problem.is_none()
    })
    .await;

    source.node(0).pause().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    source.node(0).resume().unwrap();

    workload.stop().await;
    caught_up(&mirror, &client).await;
    let copy = target.client().await.unwrap();
    assert_equal(&client.database("shop"), &copy.database("shop_backup")).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_only_the_newer_one_writes() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 300).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let older = MirrorHandle::start(config.clone());
    mirroring(&older).await;
    let workload = Workload::start(&client, "shop", seed, 2, false);
    let newer = MirrorHandle::start(config);
    wait_for(&older, "the older one is fenced", |progress| {
        progress
            .problem
            .as_ref()
            .is_some_and(|problem| problem.reason == "Fenced")
    })
    .await;
    let applied = older.progress().borrow().totals.events_applied;
    tokio::time::sleep(Duration::from_secs(1)).await;
    workload.stop().await;
    caught_up(&newer, &client).await;
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
    assert_eq!(older.progress().borrow().totals.events_applied, applied);
    assert_eq!(older.progress().borrow().phase, Phase::Failed);
    older.stop().await;
    newer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_shows_no_lag_and_an_advancing_position() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "nothing_there_yet"));
    let before = mirroring(&mirror).await;
    // Writes to other databases move the source's time; nothing of them is mirrored.
    let other = client.database("other").collection("c");
    other.insert_one(doc! {"a": 1}).await.unwrap();
    let after = caught_up(&mirror, &client).await;
    assert!(after.position > before.position);
    let idle = wait_for(&mirror, "no lag", |progress| {
        progress.lag == Some(Duration::ZERO)
    })
    .await;
    assert_eq!(idle.totals.events_read, 0);
    // The database appears later.
    let shop = client.database("nothing_there_yet");
    shop.collection("first")
        .insert_one(doc! {"_id": 1})
        .await
        .unwrap();
    caught_up(&mirror, &client).await;
    let copy = target.client().await.unwrap();
    assert_equal(&shop, &copy.database("nothing_there_yet_backup")).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_taken_over_during_its_copy_lets_go_and_can_be_stopped() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 3000).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.range_bytes = 20_000;
    let older = MirrorHandle::start(config.clone());
    wait_for(&older, "copying", |progress| {
        progress.phase == Phase::Copying
    })
    .await;
    let newer = MirrorHandle::start(config);
    wait_for(&older, "the older one is fenced", |progress| {
        progress
            .problem
            .as_ref()
            .is_some_and(|problem| problem.reason == "Fenced")
    })
    .await;
    tokio::time::timeout(Duration::from_secs(20), older.stop())
        .await
        .expect("a fenced mirror can be stopped");
    mirroring(&newer).await;
    caught_up(&newer, &client).await;
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
    newer.stop().await;
}
