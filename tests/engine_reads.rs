//! Which members of the source's replica set are read from.

mod common;

use bson::{Document, doc};
use common::workload::{Workload, fill};
use common::{assert_equal_within, caught_up, config, fresh_seed, mirroring, verify, wait_for};
use mongodb::Client;
use mongomirror::engine::config::ReadFrom;
use mongomirror::engine::progress::Phase;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

/// What the mirror reads of a database at this member from now on is noted there.
async fn note_reads(member: &Client, database: &str) {
    let filter = doc! {
        "appName": "mongomirror",
        "op": {"$in": ["query", "getmore"]},
        // Whether something may be read at all.
        "ns": {"$ne": format!("{database}.mongomirror.nothing")},
    };
    let profile = doc! {"profile": 1, "filter": filter};
    let db = member.database(database);
    db.run_command(profile).await.unwrap();
}

async fn reads(member: &Client, database: &str) -> u64 {
    let notes = member.database(database);
    let notes = notes.collection::<Document>("system.profile");
    // What is there now, only the primary knows; asked for where a time cannot be read.
    let at_a_time = doc! {"command.readConcern": {"$exists": true}};
    let read = doc! {"$or": [{"op": "getmore"}, at_a_time]};
    notes.count_documents(read).await.unwrap()
}

async fn secondaries_are_read(version: Version) {
    let source = ReplicaSet::builder()
        .version(version)
        .nodes(3)
        .start()
        .await
        .unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    let seed = fresh_seed();
    fill(&client, "shop", seed, 1000).await;
    let shop = client.database("shop");
    let ring = doc! {"create": "ring", "capped": true, "size": 1_000_000};
    shop.run_command(ring).await.unwrap();
    common::fill(&shop, "ring", 0, 200).await;
    source.wait_until_settled().await.unwrap();
    let primary = source.primary().await.unwrap();
    let mut members = Vec::new();
    for node in source.nodes() {
        members.push(node.client().await.unwrap());
    }
    for member in &members {
        // A secondary may not have the database yet.
        note_reads(member, "shop").await;
    }
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.read_from = ReadFrom::Secondary;
    config.limits.range_bytes = 20_000;
    let workload = Workload::start(&client, "shop", seed, 2, true);
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "copying", |now| now.phase == Phase::Copying).await;
    mirroring(&mirror).await;
    workload.wait_for(500).await;
    let copy = target.client().await.unwrap().database("shop_backup");
    assert_eq!(verify(&mirror).await.differences, 0, "seed {seed}");
    for (index, member) in members.iter().enumerate() {
        let count = reads(member, "shop").await;
        eprintln!("member {index}: {count} reads");
        if index == primary {
            assert_eq!(count, 0, "the primary is left in peace");
        }
    }
    // Whoever is read from becomes the primary, and somebody else is read from.
    source.step_down().await.unwrap();
    source.wait_until_settled().await.unwrap();
    workload.wait_for(1000).await;
    workload.stop().await;
    caught_up(&mirror, &client).await;
    assert_equal_within(&shop, &copy, |name| name != "system.profile").await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0, "seed {seed}");
    let mut sum = 0;
    for (index, member) in members.iter().enumerate() {
        sum += u64::from(index != primary) * reads(member, "shop").await;
    }
    assert!(sum > 0, "the secondaries were read from");
}

#[tokio::test(flavor = "multi_thread")]
async fn secondaries_are_read_from_if_that_is_asked_for_on_6_0_27() {
    secondaries_are_read(Version::V6_0_27).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secondaries_are_read_from_if_that_is_asked_for_on_6_0_5() {
    secondaries_are_read(Version::V6_0_5).await;
}
