//! What can happen to the source, while it is written to.

mod common;

use std::time::Duration;

use bson::{Document, doc};
use common::faults::{has_problem, healed, interruptions, kill_cursors, network};
use common::victims::{Cause, errors_are_survived};
use common::workload::{Workload, fill};
use common::{PATIENCE, assert_equal, caught_up, config, fresh_seed, mirroring, wait_for};
use futures::TryStreamExt;
use mongodb::Client;
use mongodb::options::{Acknowledgment, WriteConcern};
use mongomirror::engine::error::Side;
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use testbed::{Direction, ReplicaSet, Version};

/// A mirror from one deployment to another, while somebody writes.
struct Stage {
    mirror: MirrorHandle,
    workload: Workload,
    source: Client,
    target: Client,
    seed: u64,
}

impl Stage {
    /// `uri` is how the mirror reaches the source, `source` how the test does.
    async fn start(uri: &str, source: Client, target: &ReplicaSet) -> Self {
        let seed = fresh_seed();
        fill(&source, "shop", seed, 500).await;
        let mirror = MirrorHandle::start(config(uri, &target.uri(), "shop"));
        mirroring(&mirror).await;
        Self {
            mirror,
            workload: Workload::start(&source, "shop", seed, 2, false),
            target: target.client().await.unwrap(),
            source,
            seed,
        }
    }

    async fn healed(&self, what: &str) {
        eprintln!("healing from {what}");
        healed(&self.mirror, &self.source, &self.target, "shop").await;
    }

    /// Stops writing, and compares.
    async fn end(self) -> Progress {
        self.workload.stop().await;
        caught_up(&self.mirror, &self.source).await;
        let copy = self.target.database("shop_backup");
        assert_equal(&self.source.database("shop"), &copy).await;
        let last = self.mirror.stop().await;
        assert_eq!(last.totals.repaired, 0, "seed {}", self.seed);
        last
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_and_dead_primaries_lose_nothing() {
    let source = ReplicaSet::builder().nodes(3).start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let stage = Stage::start(&source.uri(), source.client().await.unwrap(), &target).await;
    source.step_down().await.unwrap();
    stage.healed("a step-down").await;
    let primary = source.primary().await.unwrap();
    source.node(primary).kill().await.unwrap();
    source.wait_for_primary().await.unwrap();
    stage.healed("a dead primary").await;
    source.node(primary).restart().await.unwrap();
    source.wait_until_settled().await.unwrap();
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interruptions_and_a_torn_network_lose_nothing() {
    let source = ReplicaSet::builder()
        .behind_proxies()
        .start()
        .await
        .unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let beside = source.node(0).client().await.unwrap();
    let stage = Stage::start(&source.uri(), beside.clone(), &target).await;
    let killed = async {
        // The stream's cursor is idle for moments only.
        while kill_cursors(&beside).await == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, killed)
        .await
        .expect("no cursor to kill");
    stage.healed("killed cursors").await;
    network(source.node(0).proxy(), async |what| {
        stage.healed(what).await
    })
    .await;
    interruptions(source.node(0), async |what| {
        source.wait_for_primary().await.unwrap();
        stage.healed(what).await;
    })
    .await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_shows_nothing_of_what_was_rolled_back() {
    let source = ReplicaSet::builder().nodes(3).start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    fill(&client, "shop", fresh_seed(), 100).await;
    let copy = target.client().await.unwrap();
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    mirroring(&mirror).await;
    healed(&mirror, &client, &copy, "shop").await;

    let old = source.primary().await.unwrap();
    let others: Vec<usize> = (0..3).filter(|node| *node != old).collect();
    for node in &others {
        source.node(*node).kill().await.unwrap();
    }
    // Acknowledged by the primary alone, and lost with it. It is primary only until it notices.
    let alone = source.node(old).client().await.unwrap().database("shop");
    let w1 = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
    let orders = alone.collection::<Document>("orders");
    let lost = doc! {"_id": "never", "lost": true};
    orders
        .insert_one(lost)
        .write_concern(w1.clone())
        .await
        .unwrap();
    orders
        .update_many(doc! {}, doc! {"$set": {"lost": true}})
        .write_concern(w1.clone())
        .await
        .unwrap();
    let created = alone.collection::<Document>("never");
    created
        .insert_one(doc! {"lost": true})
        .write_concern(w1)
        .await
        .unwrap();
    // A mirror that read what is not committed by a majority would show it now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    source.node(old).kill().await.unwrap();

    for node in &others {
        source.node(*node).restart().await.unwrap();
    }
    source.wait_for_primary().await.unwrap();
    let shop = client.database("shop");
    let again = async {
        while shop
            .collection("orders")
            .insert_one(doc! {"_id": "kept"})
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again)
        .await
        .expect("a new primary");
    source.node(old).restart().await.unwrap();
    source.wait_until_settled().await.unwrap();
    let lost = doc! {"lost": true};
    let left = shop
        .collection::<Document>("orders")
        .count_documents(lost.clone())
        .await;
    assert_eq!(left.unwrap(), 0, "the writes were rolled back");
    healed(&mirror, &client, &copy, "shop").await;
    caught_up(&mirror, &client).await;
    assert_equal(&shop, &copy.database("shop_backup")).await;
    // Not even for a moment.
    let oplog = copy.database("local").collection::<Document>("oplog.rs");
    let mut entries = oplog.find(doc! {}).await.unwrap();
    let mut count = 0;
    while let Some(entry) = entries.try_next().await.unwrap() {
        let text = entry.to_string();
        assert!(!text.contains("lost") && !text.contains("never"), "{text}");
        count += usize::from(text.contains("shop_backup"));
    }
    assert!(count > 10, "{count} entries of the target's oplog");
    assert_eq!(mirror.stop().await.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_becomes_newer_and_grows_to_three_members() {
    let source = ReplicaSet::builder()
        .nodes(3)
        .begin_with(1)
        .version(Version::V6_0_5)
        .start()
        .await
        .unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let stage = Stage::start(&source.uri(), source.client().await.unwrap(), &target).await;
    source.node(0).restart_as(Version::V6_0_27).await.unwrap();
    source.wait_for_primary().await.unwrap();
    stage.healed("a newer version").await;
    source.grow().await.unwrap();
    stage.healed("more members").await;
    source.step_down().await.unwrap();
    stage.healed("a primary that was no member before").await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_and_passwords_are_taken_and_given_back() {
    let source = ReplicaSet::builder().auth(true).start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let read = doc! {"role": "read", "db": "shop"};
    source
        .create_user("mirror", "canary-old", [read.clone().into()])
        .await
        .unwrap();
    let uri = source.uri_as("mirror", "canary-old");
    let stage = Stage::start(&uri, source.client().await.unwrap(), &target).await;

    let roles = doc! {"revokeRolesFromUser": "mirror", "roles": [read.clone()]};
    source.admin(roles).await.unwrap();
    // A cursor that is open goes on; the next one is refused.
    source.admin(doc! {"killAllSessions": []}).await.unwrap();
    has_problem(&stage.mirror, &["Unauthorized"]).await;
    let roles = doc! {"grantRolesToUser": "mirror", "roles": [read]};
    source.admin(roles).await.unwrap();
    stage.healed("rights that were taken").await;

    source
        .admin(doc! {"updateUser": "mirror", "pwd": "canary-new"})
        .await
        .unwrap();
    source.node(0).restart().await.unwrap();
    source.wait_for_primary().await.unwrap();
    let refused = ["AuthenticationFailed", "Unauthorized"];
    has_problem(&stage.mirror, &refused).await;
    source
        .admin(doc! {"updateUser": "mirror", "pwd": "canary-old"})
        .await
        .unwrap();
    stage.healed("a password that was changed").await;
    stage.end().await;
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

/// Both networks, while two hundred ranges are copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_network_during_the_copy_loses_nothing() {
    let start = async || {
        ReplicaSet::builder()
            .behind_proxies()
            .start()
            .await
            .unwrap()
    };
    let (source, target) = (start().await, start().await);
    let beside = source.node(0).client().await.unwrap();
    let seed = fresh_seed();
    fill(&beside, "shop", seed, 1000).await;
    common::fill(&beside.database("shop"), "large", 0, 2000).await;
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.limits.range_bytes = 10_000;
    config.limits.copy_lanes = 2;
    let workload = Workload::start(&beside, "shop", seed, 1, true);
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "copying", |now| now.phase == Phase::Copying).await;
    for round in 0..12 {
        let proxies = [source.node(0).proxy(), target.node(0).proxy()];
        let proxy = proxies[round % 2];
        match round / 2 % 3 {
            0 => proxy.close(),
            1 => {
                proxy.cut();
                tokio::time::sleep(Duration::from_millis(100)).await;
                proxy.heal();
            }
            _ => {
                let direction = [Direction::ToServer, Direction::ToClient][round / 6];
                for connection in proxy.connections() {
                    connection.truncate(direction, 700);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    mirroring(&mirror).await;
    workload.stop().await;
    caught_up(&mirror, &beside).await;
    let copy = target.node(0).client().await.unwrap();
    assert_equal(&beside.database("shop"), &copy.database("shop_backup")).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0, "seed {seed}");
}

/// Codes that the next batch of an open cursor can meet: the cursor is gone or killed, its state is
/// no longer kept, its server steps down or cannot be reached.
const OF_CURSORS: [i32; 5] = [43, 237, 239, 91, 6];

/// Fails the next batch that is read of this collection; waits until that has happened.
async fn next_batch_fails(server: &Client, collection: &str, code: i32, cause: impl Future) {
    let admin = server.database("admin");
    let point = doc! {
        "configureFailPoint": "failCommand",
        "mode": {"times": 1},
        "data": {"failCommands": ["getMore"], "namespace": collection, "errorCode": code},
    };
    let before = admin.run_command(point).await.unwrap();
    cause.await;
    let hit = doc! {
        "waitForFailPoint": "failCommand",
        "timesEntered": before.get_i32("count").unwrap() + 1,
        "maxTimeMS": 20_000,
    };
    let hit = admin.run_command(hit).await;
    assert!(hit.is_ok(), "{collection}, {code}: {hit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_copies_and_verifications_cannot_read_on_they_read_again() {
    let (source, client) = common::start(Version::V6_0_27).await;
    let copy = client.database("shop_backup");
    let shop = client.database("shop");
    let mut config = config(&source.uri(), &source.uri(), "shop");
    config.selection = Selection::new(Vec::new(), vec!["hidden".into()]).unwrap();
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    for (n, code) in OF_CURSORS.into_iter().enumerate() {
        for capped in [false, true] {
            let mut create = doc! {"create": "hidden"};
            if capped {
                create.extend(doc! {"capped": true, "size": 20_000_000});
            }
            shop.run_command(create).await.unwrap();
            // Some batches each.
            let documents = (0..20).map(|n| doc! {"_id": n, "text": "x".repeat(250_000)});
            let hidden = shop.collection::<Document>("hidden");
            hidden.insert_many(documents).await.unwrap();
            let name = format!("shop.big{n}{capped}");
            next_batch_fails(&client, &name, code, async {
                common::rename(&client, "shop.hidden", &name).await;
            })
            .await;
        }
    }
    caught_up(&mirror, &client).await;
    assert_equal(&shop, &copy).await;
    for (side, code) in [&shop, &copy]
        .into_iter()
        .flat_map(|side| OF_CURSORS.map(|code| (side, code)))
    {
        let name = format!("{}.big0false", side.name());
        next_batch_fails(&client, &name, code, async {
            drop(common::ask_to_verify(&mirror).await);
        })
        .await;
        let verified = common::eventually("both sides are compared", async || {
            common::ask_to_verify(&mirror).await.await.ok()?.ok()
        })
        .await;
        assert_eq!(verified.differences, 0, "{name}, {code}");
    }
    assert_equal(&shop, &copy).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

/// What the mirror sends to the source, and what makes it do so.
const COMMANDS: [(&str, Cause); 16] = [
    ("find", Cause::Copy),
    ("aggregate", Cause::Copy),
    ("collStats", Cause::Copy),
    ("listIndexes", Cause::Copy),
    ("listCollections", Cause::Copy),
    ("ping", Cause::Copy),
    ("getMore", Cause::Write),
    ("find", Cause::Repair),
    ("find", Cause::Verification),
    ("listIndexes", Cause::Verification),
    ("aggregate", Cause::Start),
    ("buildInfo", Cause::Start),
    ("listCollections", Cause::Start),
    ("ping", Cause::Start),
    ("replSetGetConfig", Cause::Start),
    ("serverStatus", Cause::Start),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_error_of_every_command_is_survived() {
    errors_are_survived(Side::Source, &COMMANDS).await;
}
