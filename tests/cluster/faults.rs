//! Pods, containers, servers and Secrets are taken away, mostly under load.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::{Client, Database};

use crate::common::workload::Workload;
use crate::common::{eventually, fresh_seed, run};
use crate::install::MIRROR;
use crate::mongo::{DATABASE, become_equal, follows};
use crate::stage::{OWN, SHOP, Stage};

const WRITERS: u64 = 4;

/// So much is written before something happens, and after it.
const SOME: u64 = 500;

/// How long a leader that has died may be missed: its Lease has to run out first. The rest is for
/// machines where much else runs.
const SECONDS: Duration = Duration::from_secs(30);

/// How many bytes a large document has.
const LARGE: usize = 20_000;

/// Does something while there is load; returns when both sides have been found equal.
pub async fn under_load(stage: &Stage, happens: impl AsyncFnOnce(&Database, &Database)) {
    let source: Client = stage.source.client(stage).await;
    let target = stage.target.database(stage).await;
    let workload = Workload::start(&source, DATABASE, fresh_seed(), WRITERS, false);
    workload.wait_for(SOME).await;
    let database = source.database(DATABASE);
    happens(&database, &target).await;
    workload.wait_for(workload.writes() + SOME).await;
    let writes = workload.stop().await;
    become_equal(&database, &target).await;
    eprintln!("        {writes} writes");
}

/// Returns when a document that is written from now on has arrived.
async fn goes_on_within(limit: Duration, source: &Database, target: &Database) {
    let begun = Instant::now();
    follows(source, target).await;
    let missed = begun.elapsed();
    eprintln!("        went on after {missed:.1?}");
    assert!(missed < limit, "{missed:?}");
}

pub async fn a_standby_takes_over_from_a_leader_that_was_deleted(stage: &Stage) {
    let leader = stage.leader().await;
    under_load(stage, async |source, target| {
        let delete = ["delete", "pod", &leader, "-n", OWN];
        let at_once = ["--grace-period=0", "--force", "--wait=false"];
        stage.kubectl(&[&delete[..], &at_once].concat()).await;
        goes_on_within(SECONDS, source, target).await;
    })
    .await;
    assert_ne!(stage.leader().await, leader);
    stage.all_ready().await;
}

pub async fn a_container_that_was_killed_on_the_node_goes_on(stage: &Stage) {
    let leader = stage.leader().await;
    let pod = format!("pod/{leader}");
    let restarts = ".status.containerStatuses[0].restartCount";
    let before = stage.field(OWN, &pod, restarts).await;
    under_load(stage, async |source, target| {
        let id = stage
            .field(OWN, &pod, ".status.containerStatuses[0].containerID")
            .await;
        let id = id.strip_prefix("containerd://").expect("containerd");
        stage.cluster().kill_container(id).await.expect("kill -9");
        goes_on_within(SECONDS, source, target).await;
    })
    .await;
    eventually("the kubelet has started it again", async || {
        (stage.field(OWN, &pod, restarts).await != before).then_some(())
    })
    .await;
    stage.all_ready().await;
}

/// A large database is copied while another one is mirrored under load.
pub async fn memory_stays_within_192_mib(stage: &Stage) {
    let before = stage.ends().await;
    let source = stage.source.client(stage).await;
    let target = stage.target.client(stage).await;
    let large = source.database("large");
    let documents = large.collection::<Document>("documents");
    for from in (0..10_000).step_by(500) {
        let all = (from..from + 500).map(|n| doc! {"_id": n, "text": text(n)});
        documents.insert_many(all).await.expect("insert");
    }
    under_load(stage, async |_, _| {
        let manifest = crate::install::mirror(SHOP)
            .replace("name: orders,", "name: large,")
            .replace("database: orders", "database: large");
        stage.apply(&manifest).await;
        let live = "jsonpath={.status.phase}=Mirroring";
        stage.wait(SHOP, "mongomirror/large", live).await;
        // And much at once of what is streamed.
        let more = doc! {"$set": {"more": text(1)}};
        documents.update_many(doc! {}, more).await.expect("update");
        become_equal(&large, &target.database("large")).await;
    })
    .await;
    let peak = peak(stage).await;
    eprintln!("        at most {} MiB", peak >> 20);
    assert_eq!(stage.ends().await, before, "a container ended");
    let delete = ["delete", "mongomirror/large", "-n", SHOP];
    stage.kubectl(&delete).await;
}

fn text(n: i32) -> String {
    format!("{n} ").repeat(LARGE / 5)
}

/// The most that the leader's container ever had of memory, with the files that it read.
async fn peak(stage: &Stage) -> u64 {
    let pod = format!("pod/{}", stage.leader().await);
    let id = stage
        .field(OWN, &pod, ".status.containerStatuses[0].containerID")
        .await;
    let id = id.strip_prefix("containerd://").expect("containerd");
    let cluster = stage.cluster();
    let first = cluster.cgroup_file(id, "memory", "memory.max_usage_in_bytes");
    let bytes = match first.await {
        Ok(bytes) => bytes,
        Err(_of_version_2) => {
            let second = cluster.cgroup_file(id, "memory", "memory.peak");
            second.await.expect("the most memory")
        }
    };
    bytes.trim().parse().expect("a number")
}

pub async fn servers_come_back_at_other_addresses(stage: &Stage) {
    for mongo in [&stage.source, &stage.target] {
        mongo.comes_back(stage).await;
        is_live(stage).await;
    }
}

async fn is_live(stage: &Stage) {
    let source = stage.source.database(stage).await;
    let target = stage.target.database(stage).await;
    become_equal(&source, &target).await;
    stage.wait(SHOP, MIRROR, "condition=Ready").await;
}

pub async fn a_changed_secret_is_used(stage: &Stage) {
    under_load(stage, async |source, target| {
        let secrets = stage.source.secret("second") + &stage.target.secret("second");
        stage.apply(&secrets).await;
        follows(source, target).await;
    })
    .await;
    for mongo in [&stage.source, &stage.target] {
        let admin = mongo.client(stage).await.database("admin");
        run(&admin, doc! {"dropUser": "first"}).await;
        assert!(mongo.knows(stage, "second").await);
        assert!(!mongo.knows(stage, "first").await);
        // Now all connections have to be made again.
        mongo.comes_back(stage).await;
        is_live(stage).await;
    }
}
