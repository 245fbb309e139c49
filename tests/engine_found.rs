//! What the fuzzer found, each as small as it could be made.

mod common;

use bson::{Bson, Document, doc};
use common::process::{Manifest, checkpoint, is_copied, until};
use common::{PATIENCE, assert_equal, caught_up, config, fill, mirroring, wait_for};
use mongodb::Client;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

/// Lets a server take long for these commands of mirrors; without any, for none.
async fn slow(client: &Client, mode: Document, commands: &[&str], of: &str) {
    let mut point = doc! {"configureFailPoint": "failCommand", "mode": mode};
    if commands.is_empty() {
        point.insert("mode", "off");
    } else {
        point.insert(
            "data",
            doc! {
                "failCommands": commands, "appName": "mongomirror", "namespace": of,
                "blockConnection": true, "blockTimeMS": 5_000,
            },
        );
    }
    client.database("admin").run_command(point).await.unwrap();
}

async fn soon(what: &str, holds: impl AsyncFnMut() -> bool) {
    let found = tokio::time::timeout(PATIENCE, until(holds)).await;
    assert!(found.is_ok(), "still not: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_with_a_collation_is_modified() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    let view = doc! {
        "create": "paid", "viewOn": "orders", "pipeline": [{"$match": {"status": "paid"}}],
        "collation": {"locale": "de", "strength": 2},
    };
    source.run_command(view).await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    let change =
        doc! {"collMod": "paid", "viewOn": "orders", "pipeline": [{"$match": {"status": "new"}}]};
    source.run_command(change).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// The first process dies in a command. The second one dies, too, when it has completed a range of
/// the copy but has not met the command again: that does not mean that the command is done.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_left_half_done_is_known_until_it_is_met_again() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    let manifest = Manifest::new(&set.uri(), &set.uri(), &["shop"]);
    slow(&client, doc! {"times": 1000}, &["find"], "shop.orders").await;
    let first = manifest.run(&[("MONGOMIRROR_CRASH", "HoldCheckpoint:after:1")]);
    soon("planned", async || {
        let checkpoint = checkpoint(&client, "shop").await;
        checkpoint.is_some_and(|checkpoint| checkpoint.contains_key("position"))
    })
    .await;
    source.create_collection("late").await.unwrap();
    soon("dead", async || first.ended().unwrap().is_some()).await;
    target.create_collection("late").await.unwrap();

    // The first aggregation only tries what the server knows, the second one is the stream.
    slow(
        &client,
        doc! {"skip": 1},
        &["aggregate"],
        "shop.$cmd.aggregate",
    )
    .await;
    let second = manifest.run(&[]);
    let ranges = client
        .database("mongomirror")
        .collection::<Document>("ranges");
    soon("a range is done", async || {
        ranges
            .count_documents(doc! {"state": "done"})
            .await
            .unwrap()
            > 0
    })
    .await;
    second.kill().await.unwrap();

    slow(&client, doc! {}, &[], "").await;
    let third = manifest.run(&[]);
    soon("copied", async || is_copied(&client, "shop").await).await;
    assert_equal(&source, &target).await;
    third.kill().await.unwrap();
}

/// Servers refuse a snapshot read by the name of a capped collection before they look at the UUID.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_read_again_although_a_capped_collection_took_the_name() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let source = client.database("shop");
    fill(&source, "orders", 0, 10).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    // Changed documents are read again.
    config.limits.internal_delta = false;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    let orders = source.collection::<Document>("orders");
    let change = doc! {"$push": {"tags": "late"}};
    orders.update_many(doc! {}, change).await.unwrap();
    let rename = doc! {"renameCollection": "shop.orders", "to": "shop.moved"};
    client.database("admin").run_command(rename).await.unwrap();
    let capped = doc! {"create": "orders", "capped": true, "size": 4096};
    source.run_command(capped).await.unwrap();
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    source
        .collection::<Document>("orders")
        .drop()
        .await
        .unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &client.database("shop_backup")).await;
    mirror.stop().await;
}

/// Two processes died: one when the copy was complete but for the position, one when it had begun
/// to copy again what it could not be sure of.
#[tokio::test(flavor = "multi_thread")]
async fn a_capped_collection_that_is_copied_again_gets_its_indexes_again() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let capped = doc! {"create": "ring", "capped": true, "size": 1 << 20};
    source.run_command(capped).await.unwrap();
    fill(&source, "ring", 0, 10).await;
    let index = doc! {"key": {"total": 1}, "name": "total_1"};
    let create = doc! {"createIndexes": "ring", "indexes": [index]};
    source.run_command(create).await.unwrap();
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    soon("copied", async || is_copied(&client, "shop").await).await;
    mirror.stop().await;
    let state = client.database("mongomirror");
    let catalog = state.collection::<Document>("catalog");
    let known = catalog.find_one(doc! {}).await.unwrap().unwrap();
    let mut id = known.get_document("_id").unwrap().clone();
    id.insert("n", 0_i64);
    let begun = doc! {"_id": id, "epoch": 1_i64, "state": "copying"};
    let ranges = state.collection::<Document>("ranges");
    ranges.insert_one(begun).await.unwrap();
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    // And not because a verification found out.
    let last = mirror.stop().await.verification.last;
    assert!(last.is_none_or(|last| last.differences == 0));
}

/// An index that the target's server refuses is named with the reason, holds up nothing, and is
/// tried again: one that the copy builds, and one that the stream does.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_the_target_refuses_is_told_and_built_later() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let target_set = ReplicaSet::builder().start().await.unwrap();
    let (client, copy) = (
        set.client().await.unwrap(),
        target_set.client().await.unwrap(),
    );
    let (source, target) = (client.database("shop"), copy.database("shop_backup"));
    let index = async |name: &str| {
        let index = doc! {"key": {name: 1}, "name": name};
        let command = doc! {"createIndexes": "orders", "indexes": [index]};
        source.run_command(command).await.unwrap();
    };
    fill(&source, "orders", 0, 50).await;
    index("copied").await;
    let refuse = async |mode: &str| {
        let data = doc! {"failCommands": ["createIndexes"], "errorCode": 67};
        let fail = doc! {"configureFailPoint": "failCommand", "mode": mode, "data": data};
        copy.database("admin").run_command(fail).await.unwrap();
    };
    refuse("alwaysOn").await;
    let mirror = MirrorHandle::start(config(&set.uri(), &target_set.uri(), "shop"));
    mirroring(&mirror).await;
    index("streamed").await;
    fill(&source, "orders", 50, 50).await;
    let now = wait_for(&mirror, "both are told", |now| now.unsupported.len() == 2).await;
    for (told, name) in now.unsupported.iter().zip(["copied", "streamed"]) {
        assert_eq!(told.name, format!("orders (index {name})"));
        assert!(told.reason.contains("CannotCreateIndex"), "{told:?}");
    }
    caught_up(&mirror, &client).await;
    let copies = target.collection::<Document>("orders");
    assert_eq!(copies.count_documents(doc! {}).await.unwrap(), 100);
    refuse("off").await;
    wait_for(&mirror, "nothing is left out", |now| {
        now.unsupported.is_empty()
    })
    .await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// What no database can hold of another is named, and the rest is mirrored.
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_the_source_is_left_out_and_told() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    source.run_command(doc! {"profile": 2}).await.unwrap();
    fill(&source, "orders", 0, 10).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    fill(&source, "orders", 10, 10).await;
    let now = caught_up(&mirror, &client).await;
    let told: Vec<&str> = now.unsupported.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(told, ["system.profile"]);
    source.run_command(doc! {"profile": 0}).await.unwrap();
    let is_ours = |name: &str| name != "system.profile";
    common::assert_equal_within(&source, &target, is_ours).await;
    mirror.stop().await;
}

/// A server of 6.0.5 that reads its oplog after a crash sets the empty timestamps of replacements
/// to the current time. Found by killing targets (seeds 730102, 730127, 730131 on 6.0.5).
#[tokio::test(flavor = "multi_thread")]
async fn empty_timestamps_survive_the_crash_of_a_target() {
    let start = async || {
        let set = ReplicaSet::builder().version(Version::V6_0_5);
        set.start().await.unwrap()
    };
    let (source, target) = (start().await, start().await);
    let client = source.client().await.unwrap();
    let (db, zero) = (
        client.database("shop"),
        Bson::Timestamp(bson::Timestamp {
            time: 0,
            increment: 0,
        }),
    );
    let stamps = db.collection::<Document>("stamps");
    // A plain insert would set them on the source, too.
    let stamp = async |from: i32| {
        let documents = (from..from + 10).map(|n| doc! {"_id": n, "stamp": n});
        stamps.insert_many(documents).await.unwrap();
        let set = doc! {"$set": {"stamp": &zero}};
        let all = doc! {"_id": {"$gte": from}};
        stamps.update_many(all, set).await.unwrap();
        let literal = doc! {"$replaceWith": {"$literal": {"_id": from, "stamp": &zero, "n": 1}}};
        let one = doc! {"_id": from};
        stamps.update_one(one, vec![literal]).await.unwrap();
    };
    stamp(0).await;
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    wait_for(&mirror, "verified", |now| now.verification.last.is_some()).await;
    stamp(100).await;
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    target.node(0).kill().await.unwrap();
    target.node(0).restart().await.unwrap();
    target.wait_until_settled().await.unwrap();
    let copy = target.client().await.unwrap().database("shop_backup");
    assert_equal(&db, &copy).await;
}

/// Writing to it would make it anew, with nothing of what it held.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_a_stranger_drops_while_nobody_mirrors_is_copied_again() {
    let (set, client) = common::start(Version::V6_0_27).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    common::fill(&shop, "orders", 0, 100).await;
    common::fill(&shop, "items", 0, 100).await;
    let config = common::config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    let orders = copy.collection::<Document>("orders");
    orders.drop().await.unwrap();
    common::fill(&shop, "orders", 1000, 10).await;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    wait_for(&mirror, "a time", |now| now.consistent_at.is_some()).await;
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 110);
    common::caught_up(&mirror, &client).await;
    common::assert_equal(&shop, &copy).await;
    mirror.stop().await;
}

/// The stream begins at the time of the last write before the copy, and shows that write once more,
/// here when the copy is long complete.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_write_before_the_copy_is_not_applied_to_it() {
    let (set, copy) = (
        ReplicaSet::builder().start().await.unwrap(),
        ReplicaSet::builder().start().await.unwrap(),
    );
    let (client, copy_client) = (set.client().await.unwrap(), copy.client().await.unwrap());
    let (source, target) = (client.database("shop"), copy_client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    let stream = "shop.$cmd.aggregate";
    slow(&client, doc! {"skip": 0}, &["aggregate"], stream).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &copy.uri(), "shop"));
    let live = mirroring(&mirror).await;
    assert_eq!(
        (
            live.initial_sync.unwrap().documents_copied,
            live.totals.events_read
        ),
        (10, 0)
    );
    slow(&client, doc! {}, &[], "").await;
    fill(&source, "orders", 10, 1).await;
    let progress = caught_up(&mirror, &client).await;
    assert_eq!((progress.totals.inserts, progress.totals.repaired), (1, 0));
    assert_equal(&source, &target).await;
    mirror.stop().await;
}
