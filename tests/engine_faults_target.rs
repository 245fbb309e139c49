//! What can happen to the target, while the source is written to.

mod common;

use std::time::Duration;

use bson::{Bson, Document, doc};
use common::faults::{has_problem, healed, interruptions, network};
use common::victims::{Cause, errors_are_survived};
use common::workload::{Workload, fill};
use common::{PATIENCE, assert_equal, caught_up, config, fresh_seed, mirroring, not_tried};
use mongodb::Client;
use mongomirror::engine::config::MirrorConfig;
use mongomirror::engine::error::Side;
use mongomirror::engine::progress::{ApplyForm, Progress};
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

/// A mirror from one deployment to another, while somebody writes.
struct Stage {
    config: MirrorConfig,
    mirror: Option<MirrorHandle>,
    workload: Workload,
    source: Client,
    target: Client,
}

impl Stage {
    /// `uri` is how the mirror reaches the target, `target` how the test does.
    async fn start(source: &ReplicaSet, uri: &str, target: Client) -> Self {
        let seed = fresh_seed();
        let source = source.client().await.unwrap();
        fill(&source, "shop", seed, 500).await;
        let from = source_uri(&source).await;
        let config = config(&from, uri, "shop");
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        Self {
            config,
            mirror: Some(mirror),
            workload: Workload::start(&source, "shop", seed, 2, true),
            source,
            target,
        }
    }

    async fn healed(&self, what: &str) {
        eprintln!("healing from {what}");
        healed(self.mirror(), &self.source, &self.target, "shop").await;
    }

    fn mirror(&self) -> &MirrorHandle {
        self.mirror.as_ref().expect("one runs")
    }

    /// The next fault meets a mirror that starts anew: it has the shortest pauses, which grow from
    /// one fault to the next.
    async fn renew(&mut self) {
        if let Some(mirror) = self.mirror.take() {
            assert_eq!(mirror.stop().await.totals.repaired, 0);
        }
        self.mirror = Some(MirrorHandle::start(self.config.clone()));
    }

    /// Stops writing, and compares.
    async fn end(mut self) -> Progress {
        self.workload.stop().await;
        let mirror = self.mirror.take().expect("one runs");
        caught_up(&mirror, &self.source).await;
        let copy = self.target.database("shop_backup");
        assert_equal(&self.source.database("shop"), &copy).await;
        mirror.stop().await
    }
}

/// The string of a set of one member, as its client knows it.
async fn source_uri(client: &Client) -> String {
    let hello = client
        .database("admin")
        .run_command(doc! {"hello": 1})
        .await
        .unwrap();
    let (set, me) = (
        hello.get_str("setName").unwrap(),
        hello.get_str("me").unwrap(),
    );
    format!("mongodb://{me}/?replicaSet={set}")
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_and_dead_primaries_lose_nothing() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().nodes(3).start().await.unwrap();
    let client = target.client().await.unwrap();
    let stage = Stage::start(&source, &target.uri(), client).await;
    target.step_down().await.unwrap();
    stage.healed("a step-down").await;
    let primary = target.primary().await.unwrap();
    target.node(primary).kill().await.unwrap();
    target.wait_for_primary().await.unwrap();
    stage.healed("a dead primary").await;
    target.node(primary).restart().await.unwrap();
    target.wait_until_settled().await.unwrap();
    // Nobody commits while the majority is away; what was written meanwhile is rolled back.
    let primary = target.primary().await.unwrap();
    let rollbacks = async || {
        let admin = target
            .node(primary)
            .client()
            .await
            .unwrap()
            .database("admin");
        let told = admin.run_command(doc! {"replSetGetRBID": 1}).await.unwrap();
        told.get_i32("rbid").unwrap()
    };
    let before = rollbacks().await;
    for node in (0..3).filter(|node| *node != primary) {
        target.node(node).kill().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    target.node(primary).kill().await.unwrap();
    for node in (0..3).filter(|node| *node != primary) {
        target.node(node).restart().await.unwrap();
    }
    target.wait_for_primary().await.unwrap();
    target.node(primary).restart().await.unwrap();
    target.wait_until_settled().await.unwrap();
    stage.healed("a rollback").await;
    assert!(rollbacks().await > before, "nothing was rolled back");
    assert_eq!(stage.end().await.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn interruptions_and_a_torn_network_lose_nothing() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder()
        .behind_proxies()
        .start()
        .await
        .unwrap();
    let beside = target.node(0).client().await.unwrap();
    let mut stage = Stage::start(&source, &target.uri(), beside.clone()).await;
    network(target.node(0).proxy(), async |what| {
        stage.healed(what).await;
        stage.renew().await;
    })
    .await;
    interruptions(target.node(0), async |what| {
        target.wait_for_primary().await.unwrap();
        stage.healed(what).await;
        stage.renew().await;
    })
    .await;

    let admin = beside.database("admin");
    admin
        .run_command(doc! {"fsync": 1, "lock": true})
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    admin.run_command(doc! {"fsyncUnlock": 1}).await.unwrap();
    stage.healed("a server that takes no writes").await;

    let lifetime =
        |seconds: i32| doc! {"setParameter": 1, "transactionLifetimeLimitSeconds": seconds};
    admin.run_command(lifetime(1)).await.unwrap();
    // A batch that is held up for longer than its transaction may live.
    target.node(0).proxy().delay(Duration::from_millis(400));
    tokio::time::sleep(Duration::from_secs(3)).await;
    target.node(0).proxy().heal();
    admin.run_command(lifetime(60)).await.unwrap();
    stage.healed("transactions that live too long").await;
    assert_eq!(stage.end().await.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_becomes_newer_and_grows_to_three_members() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder()
        .nodes(3)
        .begin_with(1)
        .version(Version::V6_0_5)
        .start()
        .await
        .unwrap();
    let client = target.client().await.unwrap();
    let stage = Stage::start(&source, &target.uri(), client).await;
    // A member of 6.0.5 cannot read what a primary of 6.0.27 writes for an update by a pipeline in a
    // transaction, and ends (see docs/limits.md).
    for node in target.nodes() {
        node.restart_as(Version::V6_0_27).await.unwrap();
    }
    target.wait_for_primary().await.unwrap();
    stage.healed("a newer version").await;
    target.grow().await.unwrap();
    stage.healed("more members").await;
    target.step_down().await.unwrap();
    stage.healed("a primary that was no member before").await;
    assert_eq!(stage.end().await.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn older_members_of_a_target_can_read_what_is_written() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder()
        .nodes(2)
        .member(1, doc! {"priority": 5})
        .version(Version::V6_0_5)
        .start()
        .await
        .unwrap();
    target.node(1).restart_as(Version::V6_0_27).await.unwrap();
    let newer = async {
        while !target.primary().await.is_ok_and(|primary| primary == 1) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, newer)
        .await
        .expect("the newer member is not elected");
    target.wait_until_settled().await.unwrap();
    let client = target.client().await.unwrap();
    let stage = Stage::start(&source, &target.uri(), client).await;
    stage.workload.wait_for(500).await;
    stage.healed("mixed versions").await;
    let last = stage.end().await;
    assert_eq!(last.apply_form, Some(ApplyForm::Refetch));
    assert_eq!(last.totals.repaired, 0);
    target.wait_until_settled().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_and_passwords_are_taken_and_given_back() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().auth(true).start().await.unwrap();
    let write = [
        doc! {"role": "readWrite", "db": "shop_backup"},
        doc! {"role": "dbAdmin", "db": "shop_backup"},
    ];
    let state = doc! {"role": "readWrite", "db": "mongomirror"};
    let roles = write.iter().cloned().chain([state]).map(Bson::from);
    target
        .create_user("mirror", "canary-old", roles)
        .await
        .unwrap();
    let uri = target.uri_as("mirror", "canary-old");
    let stage = Stage::start(&source, &uri, target.client().await.unwrap()).await;
    let change = |command: &str| doc! {command: "mirror", "roles": write.to_vec()};
    target.admin(change("revokeRolesFromUser")).await.unwrap();
    has_problem(stage.mirror(), &["Unauthorized"]).await;
    target.admin(change("grantRolesToUser")).await.unwrap();
    stage.healed("rights that were taken").await;
    let only_read = |block: bool| doc! {"setUserWriteBlockMode": 1, "global": block};
    target.admin(only_read(true)).await.unwrap();
    has_problem(stage.mirror(), &["TargetError"]).await;
    target.admin(only_read(false)).await.unwrap();
    stage.healed("a target that could only be read").await;

    let password = |new: &str| doc! {"updateUser": "mirror", "pwd": new};
    target.admin(password("canary-new")).await.unwrap();
    target.node(0).restart().await.unwrap();
    target.wait_for_primary().await.unwrap();
    let refused = ["AuthenticationFailed", "Unauthorized"];
    has_problem(stage.mirror(), &refused).await;
    target.admin(password("canary-old")).await.unwrap();
    stage.healed("a password that was changed").await;
    assert_eq!(stage.end().await.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder()
        .disk_mb(700)
        // The server notices when it writes a checkpoint.
        .arg("--syncdelay", "1")
        .start()
        .await;
    let target = match target {
        Err(error @ testbed::Error::Failed { .. }) => {
            not_tried(&format!(
                "this machine does not let us mount a disk: {error}"
            ));
            return;
        }
        target => target.unwrap(),
    };
    let client = target.client().await.unwrap();
    let stage = Stage::start(&source, &target.uri(), client).await;
    target.node(0).disk().fill().unwrap();
    let end = target.node(0).wait_for_end();
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the server goes on with a full disk")
        .unwrap();
    has_problem(stage.mirror(), &["TargetUnreachable"]).await;
    target.node(0).disk().free().unwrap();
    target.node(0).restart().await.unwrap();
    target.wait_for_primary().await.unwrap();
    stage.healed("a full disk").await;
    assert_eq!(stage.end().await.totals.repaired, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_of_somebody_else_give_way() {
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let (client, copy) = (
        source.client().await.unwrap(),
        target.client().await.unwrap(),
    );
    let (shop, backup) = (client.database("shop"), copy.database("shop_backup"));
    common::fill(&shop, "orders", 0, 100).await;
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    mirroring(&mirror).await;
    let copies = backup.collection::<Document>("orders");
    // In the way of an insert; changed, and gone, before an update, a replacement, a delete.
    copies
        .insert_one(doc! {"_id": 500, "not": "ours"})
        .await
        .unwrap();
    copies
        .delete_many(doc! {"_id": {"$in": [1, 2, 3]}})
        .await
        .unwrap();
    let orders = shop.collection::<Document>("orders");
    orders
        .insert_one(doc! {"_id": 500, "is": "ours"})
        .await
        .unwrap();
    orders
        .update_one(doc! {"_id": 1}, doc! {"$set": {"status": "paid"}})
        .await
        .unwrap();
    orders
        .replace_one(doc! {"_id": 2}, doc! {"new": true})
        .await
        .unwrap();
    orders.delete_one(doc! {"_id": 3}).await.unwrap();
    let progress = caught_up(&mirror, &client).await;
    assert!(progress.totals.repaired > 0);
    assert_equal(&shop, &backup).await;
    mirror.stop().await;
}

/// What the mirror sends to the target, and what makes it do so.
const COMMANDS: [(&str, Cause); 28] = [
    ("insert", Cause::Copy),
    ("update", Cause::Copy),
    ("commitTransaction", Cause::Copy),
    ("update", Cause::Write),
    ("insert", Cause::Write),
    ("delete", Cause::Write),
    ("commitTransaction", Cause::Write),
    ("abortTransaction", Cause::Repair),
    ("insert", Cause::Capped),
    ("update", Cause::Capped),
    ("delete", Cause::Capped),
    ("convertToCapped", Cause::Converted),
    ("create", Cause::Made),
    ("createIndexes", Cause::Index),
    ("dropIndexes", Cause::Index),
    ("collMod", Cause::Options),
    ("renameCollection", Cause::Rename),
    ("drop", Cause::Made),
    ("buildInfo", Cause::Start),
    ("find", Cause::Start),
    ("findAndModify", Cause::Start),
    ("killSessions", Cause::Start),
    ("listCollections", Cause::Start),
    ("listIndexes", Cause::Verification),
    ("listCollections", Cause::Verification),
    ("ping", Cause::Verification),
    ("find", Cause::Verification),
    ("find", Cause::Mended),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_error_of_every_command_is_survived() {
    errors_are_survived(Side::Target, &COMMANDS).await;
}
