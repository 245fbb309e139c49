//! The mirror's process is killed again and again, at random moments, while everything is
//! written: nothing is lost and nothing is applied twice.

mod common;

use std::time::Duration;

use bson::{Document, doc};
use common::process::{Manifest, checkpoint};
use common::workload::{Workload, fill};
use common::{PATIENCE, assert_equal, fresh_seed};
use mongodb::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::ReplicaSet;

/// Kills in one test; the issue asks for thirty.
const KILLS: u32 = 32;

/// Waits until the checkpoint has reached what the source holds now, and the copy is complete.
async fn caught_up(client: &Client) {
    let ping = doc! {"ping": 1};
    let reply = client.database("admin").run_command(ping).await.unwrap();
    let now = reply.get_timestamp("operationTime").unwrap();
    let state = client.database("mongomirror");
    let reached = async {
        loop {
            let ranges = state.collection::<Document>("ranges");
            let left = ranges.count_documents(doc! {}).await.unwrap();
            let position = checkpoint(client, "shop").await.and_then(|checkpoint| {
                let position = checkpoint.get_document("position").ok()?;
                position.get_timestamp("time").ok()
            });
            if left == 0
                && position.is_some_and(|at| (at.time, at.increment) >= (now.time, now.increment))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached)
        .await
        .expect("the mirror never caught up");
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_during_copy_and_stream_leave_no_difference() {
    let seed = fresh_seed();
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 4000).await;
    let manifest = Manifest::new(&set.uri(), &set.uri(), &["shop"]);
    let mut random = StdRng::seed_from_u64(seed);
    let workload = Workload::start(&client, "shop", seed, 3, true);
    for _ in 0..KILLS {
        let process = manifest.run(&[]);
        // From before it has connected to well into the stream.
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1500))).await;
        process.kill().await.unwrap();
    }
    let epoch = checkpoint(&client, "shop")
        .await
        .map(|c| c.get_i64("epoch").unwrap());
    let writes = workload.stop().await;
    let process = manifest.run(&[]);
    caught_up(&client).await;
    process.kill().await.unwrap();
    eprintln!("{writes} writes, {epoch:?} take-overs");
    let logs = manifest.log();
    eprintln!(
        "{}",
        logs.lines().rev().take(60).collect::<Vec<_>>().join("\n")
    );
    assert!(
        epoch.is_some_and(|epoch| epoch > 10),
        "most runs must have got to work"
    );
    assert!(
        !logs.contains("not as the source left them"),
        "a document was not as the stream said"
    );
    assert!(!logs.contains("panicked"), "the mirror panicked");
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
}
