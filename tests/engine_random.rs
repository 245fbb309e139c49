//! Random writes of every kind during the copy and after it: the databases end up equal.

mod common;

use common::workload::{Workload, fill};
use common::{assert_equal, caught_up, config, fresh_seed, mirroring};
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

async fn random_run(version: Version, internal_delta: bool, ddl: bool) {
    let seed = fresh_seed();
    let set = ReplicaSet::builder()
        .version(version)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    fill(&client, "shop", seed, 1500).await;
    let workload = Workload::start(&client, "shop", seed, 3, ddl);
    let mut config = config(&set.uri(), &set.uri(), "shop");
    // Many ranges and slow lanes, so that events meet every state of a range.
    config.limits.range_bytes = 40_000;
    config.limits.copy_lanes = 2;
    config.limits.internal_delta = internal_delta;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let writes = workload.stop().await;
    let progress = caught_up(&mirror, &client).await;
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
    eprintln!("{writes} writes, {:?}", progress.totals);
    assert_eq!(
        progress.totals.repaired, 0,
        "nothing may ever be found missing"
    );
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_by_internal_deltas_on_6_0_27() {
    random_run(Version::V6_0_27, true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_by_internal_deltas_on_6_0_5() {
    random_run(Version::V6_0_5, true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_by_reading_documents_again() {
    random_run(Version::V6_0_27, false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_with_collections_created_renamed_and_dropped() {
    random_run(Version::V6_0_27, true, true).await;
}
