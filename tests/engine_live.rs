//! A mirror between real servers: copied, followed, stopped, gone on.

mod common;

use std::time::Duration;

use bson::{Document, doc};
use common::gate::start_held;
use common::{assert_equal, caught_up, config, fill, mirroring, order, wait_for};
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_write_arrives_on_both_versions() {
    for version in Version::ALL {
        let set = ReplicaSet::builder()
            .version(version)
            .start()
            .await
            .unwrap();
        let client = set.client().await.unwrap();
        let (source, target) = (client.database("shop"), client.database("shop_backup"));
        fill(&source, "orders", 0, 5000).await;
        let orders = source.collection::<Document>("orders");
        orders
            .create_index(
                mongodb::IndexModel::builder()
                    .keys(doc! {"customer": 1})
                    .build(),
            )
            .await
            .unwrap();
        let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
        let progress = mirroring(&mirror).await;
        assert_eq!(progress.initial_sync.unwrap().percent(), 100);
        orders.insert_one(doc! {"_id": -1, "a": 1}).await.unwrap();
        orders
            .update_many(
                doc! {"quantity": 3},
                doc! {"$set": {"status": "paid"}, "$inc": {"total": 1}},
            )
            .await
            .unwrap();
        orders
            .update_many(
                doc! {"quantity": 4},
                doc! {"$push": {"tags": "new"}, "$set": {"address.geo.z": 1}},
            )
            .await
            .unwrap();
        orders
            .update_many(
                doc! {"quantity": 5},
                doc! {"$unset": {"note": ""}, "$rename": {"nothing": "something"}},
            )
            .await
            .unwrap();
        orders
            .replace_one(doc! {"_id": 7}, doc! {"b": 1, "a": 2})
            .await
            .unwrap();
        orders.delete_many(doc! {"quantity": 6}).await.unwrap();
        orders
            .update_one(
                doc! {"_id": 9},
                vec![doc! {"$replaceWith": {"_id": 9, "z": "$total", "y": 1}}],
            )
            .await
            .unwrap();
        source
            .collection::<Document>("made_later")
            .insert_one(doc! {"x": 1})
            .await
            .unwrap();
        caught_up(&mirror, &client).await;
        assert_equal(&source, &target).await;
        let last = mirror.stop().await;
        assert_eq!(last.totals.repaired, 0, "{last:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_mirror_goes_on_where_it_was() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 2000).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    fill(&source, "orders", 2000, 500).await;
    source
        .collection::<Document>("orders")
        .delete_many(doc! {"_id": {"$lt": 100}})
        .await
        .unwrap();
    let mirror = MirrorHandle::start(config);
    let progress = caught_up(&mirror, &client).await;
    assert_ne!(progress.phase, Phase::Copying);
    assert_eq!(progress.totals.inserts, 500);
    assert_eq!(progress.totals.deletes, 100);
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_the_memory_budget_arrives_as_a_whole() {
    let set = ReplicaSet::builder().cache_gb(1.0).start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 2000).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.memory_bytes = 4 << 20;
    let mirror = MirrorHandle::start(config);
    mirroring(&mirror).await;
    let copies = target.collection::<Document>("orders");
    let mut seen = tokio::spawn(async move {
        // Whoever reads the copy sees nothing of the transaction, or all of it.
        loop {
            let found = copies.count_documents(doc! {"big": true}).await.unwrap();
            assert!(
                found == 0 || found == 12_000,
                "{found} of the transaction's documents"
            );
            if found == 12_000 {
                return;
            }
        }
    });
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let orders = source.collection::<Document>("orders");
    for chunk in 0..12 {
        let documents = (0..1000).map(|n| {
            let mut order = order(10_000 + chunk * 1000 + n);
            order.insert("big", true);
            order
        });
        orders
            .insert_many(documents)
            .session(&mut session)
            .await
            .unwrap();
    }
    orders
        .update_many(doc! {"quantity": 3}, doc! {"$set": {"status": "paid"}})
        .session(&mut session)
        .await
        .unwrap();
    session.commit_transaction().await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    tokio::time::timeout(common::PATIENCE, &mut seen)
        .await
        .unwrap()
        .unwrap();
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

/// Found by the fuzzer (seed 950092): what no transaction may write is announced in the checkpoint,
/// and the target's transaction, begun some pieces before, would conflict with that for ever.
#[tokio::test(flavor = "multi_thread")]
async fn capped_documents_right_behind_a_transaction_in_pieces_arrive() {
    let set = ReplicaSet::builder().cache_gb(1.0).start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let ring = doc! {"create": "ring", "capped": true, "size": 1 << 20};
    source.run_command(ring).await.unwrap();
    fill(&source, "orders", 0, 10).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.memory_bytes = 1 << 20;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    // So that both come in one reply.
    mirror.stop().await;
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let orders = source.collection::<Document>("orders");
    let documents = (0..3000).map(|n| order(10_000 + n));
    let insert = orders.insert_many(documents).session(&mut session);
    insert.await.unwrap();
    session.commit_transaction().await.unwrap();
    fill(&source, "ring", 0, 10).await;
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(mirror.stop().await.totals.retries, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_array_updates_of_one_document_in_a_backlog_arrive() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    for _ in 0..3 {
        let push = doc! {"q": {"_id": 1}, "u": {"$push": {"tags": "x"}}};
        let updates = vec![push; 1000];
        source
            .run_command(doc! {"update": "orders", "updates": updates})
            .await
            .unwrap();
    }
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert_eq!((last.totals.updates, last.totals.repaired), (3000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_takes_its_views_along_and_comes_back() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    let view =
        doc! {"create": "paid", "viewOn": "orders", "pipeline": [{"$match": {"status": "paid"}}]};
    source.run_command(view).await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    assert_equal(&source, &target).await;
    source.drop().await.unwrap();
    fill(&source, "orders", 100, 10).await;
    let view =
        doc! {"create": "paid", "viewOn": "orders", "pipeline": [{"$match": {"status": "new"}}]};
    source.run_command(view).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// Replies end right behind a command within a transaction, and the next one is long in coming.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_with_a_command_in_it_is_not_consistent_before_its_end() {
    let source = ReplicaSet::builder()
        .behind_proxies()
        .start()
        .await
        .unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.node(0).client().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 1).await;
    let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    mirroring(&mirror).await;
    source.node(0).proxy().delay(Duration::from_millis(300));
    let copy = target.client().await.unwrap().database("shop_backup");
    // The stream's replies hold 2000 events; the command is the last one, or the second but last.
    for (round, before) in [1999, 1998].into_iter().enumerate() {
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        let first = client.database("shop").collection("first");
        let second = client
            .database("shop")
            .collection(&format!("second{round}"));
        let documents = (0..before).map(|n| doc! {"round": i64::try_from(round).unwrap(), "n": n});
        first
            .insert_many(documents)
            .session(&mut session)
            .await
            .unwrap();
        let documents = (0..50).map(|n| doc! {"_id": n});
        second
            .insert_many(documents)
            .session(&mut session)
            .await
            .unwrap();
        session.commit_transaction().await.unwrap();
        let committed = session.operation_time().expect("a replica set");
        let reached = |now: &Progress| now.consistent_at.is_some_and(|at| at >= committed.into());
        wait_for(&mirror, "the transaction is there", reached).await;
        let there = copy.collection::<Document>(&format!("second{round}"));
        assert_eq!(there.count_documents(doc! {}).await.unwrap(), 50);
    }
    source.node(0).proxy().heal();
    caught_up(&mirror, &client).await;
    assert_equal(&client.database("shop"), &copy).await;
    mirror.stop().await;
}

/// The memory holds a tenth of each transaction, whose documents lie in ranges of every state.
#[tokio::test(flavor = "multi_thread")]
async fn large_transactions_during_the_copy_arrive_and_hold_nothing_up() {
    let set = ReplicaSet::builder().cache_gb(1.0).start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 6000).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.memory_bytes = 1 << 20;
    // Six hundred ranges.
    config.limits.range_bytes = 10_000;
    config.limits.copy_lanes = 2;
    let (mirror, gate) = start_held(&config, &client).await;
    let orders = source.collection::<Document>("orders");
    let (writing, by) = (orders.clone(), client.clone());
    let writer = tokio::spawn(async move {
        for round in 0..8 {
            let mut session = by.start_session().await.unwrap();
            session.start_transaction().await.unwrap();
            for n in 0..300 {
                let id = (n * 20 + round * 7) % 6000;
                let set = doc! {"$set": {"round": round, "text": "x".repeat(5000 + n as usize)}};
                let update = writing.update_one(doc! {"_id": id}, set);
                update.session(&mut session).await.unwrap();
            }
            session.commit_transaction().await.unwrap();
        }
    });
    gate.open().await;
    writer.await.unwrap();
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0, "{last:?}");
}
