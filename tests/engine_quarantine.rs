//! Documents that the target refuses hold up nothing else, and heal.

mod common;

use bson::{Document, doc};
use common::gate::start_held;
use common::process::{Manifest, is_copied};
use common::refused::{arrays, arrived, noted, refused, strangers_index, verified};
use common::{assert_equal, caught_up, config, eventually, fill, start, verify, wait_for};
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::runner::MirrorHandle;
use testbed::Version;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_refuses_is_noted_and_tried_again_until_it_heals() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 100).await;
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    verified(&mirror).await;
    strangers_index(&target, "orders").await;

    let orders = source.collection::<Document>("orders");
    let mut more: Vec<Document> = (200..300).map(|n| doc! {"_id": n, "a": 1}).collect();
    more.splice(50..50, [arrays(1000), arrays(1001)]);
    orders.insert_many(more).await.unwrap();
    let both = doc! {"$set": {"a": [1, 2], "b": [3, 4]}};
    orders.update_one(doc! {"_id": 5}, both).await.unwrap();
    orders.insert_one(doc! {"_id": 2000}).await.unwrap();
    arrived(&target, "orders", 2000).await;
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() == 3).await;
    assert_eq!(refused(&now), ["1000", "1001", "5"]);
    assert_eq!(now.consistent_at, None, "it is not exactly the source");
    assert!(now.quarantine[0].reason.contains("171"), "{now:?}");
    assert_eq!(now.quarantine[0].collection, "orders");
    assert_eq!(noted(&client).await, 3);

    // What happens to them on the source goes on, and so does everything else.
    let tick = doc! {"$inc": {"total": 1}};
    orders
        .update_one(doc! {"_id": 5}, tick.clone())
        .await
        .unwrap();
    orders.update_one(doc! {"_id": 1000}, tick).await.unwrap();
    orders.delete_one(doc! {"_id": 1001}).await.unwrap();
    orders.insert_one(doc! {"_id": 2001}).await.unwrap();
    arrived(&target, "orders", 2001).await;
    let now = wait_for(&mirror, "one is gone", |now| now.quarantine.len() == 2).await;
    assert_eq!(refused(&now), ["1000", "5"]);
    wait_for(&mirror, "tried again", |now| {
        now.quarantine.iter().all(|one| one.attempts >= 3)
    })
    .await;
    mirror.stop().await;

    let mirror = MirrorHandle::start(config);
    let now = wait_for(&mirror, "remembered", |now| {
        now.position.is_some() && now.quarantine.len() == 2
    })
    .await;
    assert!(now.quarantine[0].attempts >= 3, "{now:?}");
    let copies = target.collection::<Document>("orders");
    copies.drop_index("a_1_b_1").await.unwrap();
    wait_for(&mirror, "healed", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&client).await, 0);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_takes_away_what_was_in_the_way() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 100).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    verified(&mirror).await;
    strangers_index(&target, "orders").await;
    let orders = source.collection::<Document>("orders");
    orders.insert_one(arrays(1000)).await.unwrap();
    wait_for(&mirror, "noted", |now| now.quarantine.len() == 1).await;
    let result = verify(&mirror).await;
    assert!(!result.definitions.is_empty(), "{result:?}");
    wait_for(&mirror, "healed", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_document_within_a_transaction_larger_than_the_memory_holds_up_nothing() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 10).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.memory_bytes = 4 << 20;
    let mirror = MirrorHandle::start(config);
    verified(&mirror).await;
    strangers_index(&target, "orders").await;
    let orders = source.collection::<Document>("orders");
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for n in 100..112 {
        let text = "x".repeat(1 << 20);
        let large = doc! {"_id": n, "text": text};
        orders
            .insert_one(large)
            .session(&mut session)
            .await
            .unwrap();
    }
    orders
        .insert_one(arrays(1000))
        .session(&mut session)
        .await
        .unwrap();
    orders
        .insert_one(doc! {"_id": 2000})
        .session(&mut session)
        .await
        .unwrap();
    session.commit_transaction().await.unwrap();
    arrived(&target, "orders", 2000).await;
    wait_for(&mirror, "noted", |now| now.quarantine.len() == 1).await;
    // A dropped collection leaves nothing behind.
    orders.drop().await.unwrap();
    wait_for(&mirror, "forgotten", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&client).await, 0);
    mirror.stop().await;
}

/// Where too much is refused, something is wrong with all of the target: nothing is left out then.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_refuses_too_much_is_waited_for() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 50).await;
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.quarantine = 20;
    let mirror = MirrorHandle::start(config.clone());
    verified(&mirror).await;
    strangers_index(&target, "orders").await;
    let orders = source.collection::<Document>("orders");
    orders.insert_many((1000..1020).map(arrays)).await.unwrap();
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() == 20).await;
    assert!(now.problem.is_none(), "{:?}", now.problem);
    // The last straw, in the middle of what could be written.
    let fine = |id: i32| doc! {"_id": id};
    let more = [fine(2000), arrays(2001), fine(2002)];
    orders.insert_many(more).await.unwrap();
    let now = common::faults::has_problem(&mirror, &["QuarantineFull"]).await;
    let problem = now.problem.unwrap();
    assert!(problem.message.contains("parallel arrays"), "{problem:?}");
    assert_eq!(now.consistent_at, None);
    assert_eq!(noted(&client).await, 20);
    let copies = target.collection::<Document>("orders");
    assert_eq!(copies.count_documents(fine(2000)).await.unwrap(), 0);
    mirror.stop().await;

    // The same is so when it starts with it, and over once the target takes them.
    let mirror = MirrorHandle::start(config);
    common::faults::has_problem(&mirror, &["QuarantineFull"]).await;
    copies.drop_index("a_1_b_1").await.unwrap();
    wait_for(&mirror, "healed", |now| {
        now.position.is_some() && now.quarantine.is_empty()
    })
    .await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&client).await, 0);
    mirror.stop().await;
}

/// The same while a collection is copied; and there are not more of them with each try.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_refused_too_much_notes_no_more_with_each_try() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 200).await;
    let orders = source.collection::<Document>("orders");
    let ids = (0..200).step_by(10).map(|id| 1000 + id);
    orders.insert_many(ids.map(arrays)).await.unwrap();
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.quarantine = 5;
    config.limits.range_bytes = 20_000;
    let (mirror, gate) = start_held(&config, &client).await;
    strangers_index(&target, "orders").await;
    gate.open().await;
    common::faults::has_problem(&mirror, &["QuarantineFull"]).await;
    mirror.stop().await;
    for _ in 0..2 {
        let before = noted(&client).await;
        let mirror = MirrorHandle::start(config.clone());
        let now = common::faults::has_problem(&mirror, &["QuarantineFull"]).await;
        assert!(now.problem.unwrap().message.contains("more than 5 "));
        mirror.stop().await;
        let after = noted(&client).await;
        assert!(after <= before.max(5), "{before} became {after}");
    }
    let copies = target.collection::<Document>("orders");
    copies.drop_index("a_1_b_1").await.unwrap();
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "healed", |now| {
        now.phase == Phase::Mirroring && now.quarantine.is_empty()
    })
    .await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// What is copied anew is not known as refused any more, neither by the process nor by its state.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_copied_anew_has_nothing_in_quarantine() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 50).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    verified(&mirror).await;
    strangers_index(&target, "orders").await;
    let orders = source.collection::<Document>("orders");
    orders.insert_one(arrays(1000)).await.unwrap();
    // Then the pauses are long enough that none ends within what comes.
    let often = |now: &Progress| now.quarantine.iter().any(|one| one.attempts >= 4);
    wait_for(&mirror, "refused again and again", often).await;
    target
        .collection::<Document>("orders")
        .drop()
        .await
        .unwrap();
    verify(&mirror).await;
    let now = wait_for(&mirror, "mirroring", |now| {
        now.phase == Phase::Mirroring && now.consistent_at.is_some()
    })
    .await;
    assert!(now.quarantine.is_empty(), "{:?}", refused(&now));
    assert_eq!(noted(&client).await, 0);
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_refuses_does_not_hold_up_the_copy() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 100).await;
    let orders = source.collection::<Document>("orders");
    // In the last range, which is not begun when the index is there.
    orders.insert_many((200..203).map(arrays)).await.unwrap();
    let mut config = config(&set.uri(), &set.uri(), "shop");
    config.limits.range_bytes = 20_000;
    config.limits.copy_lanes = 1;
    let (mirror, gate) = start_held(&config, &client).await;
    strangers_index(&target, "orders").await;
    orders.insert_many((1000..1003).map(arrays)).await.unwrap();
    orders.delete_one(doc! {"_id": 202}).await.unwrap();
    gate.open().await;
    wait_for(&mirror, "mirroring", |now| now.phase == Phase::Mirroring).await;
    orders.insert_one(doc! {"_id": 2000}).await.unwrap();
    arrived(&target, "orders", 2000).await;
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() >= 4).await;
    assert!(refused(&now).contains(&"1000"), "{:?}", refused(&now));
    assert_eq!(now.consistent_at, None, "it is not exactly the source");
    mirror.stop().await;

    let mirror = MirrorHandle::start(config);
    let copies = target.collection::<Document>("orders");
    // A verification, which finds it, too, may have been first.
    copies.drop_indexes().await.unwrap();
    wait_for(&mirror, "healed", |now| {
        now.position.is_some() && now.quarantine.is_empty()
    })
    .await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&client).await, 0);
    mirror.stop().await;
}

/// Until the command that a process was in is met again, a name of the target may be an old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_document_is_not_tried_under_the_name_before_a_rename() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 100).await;
    let manifest = Manifest::new(&set.uri(), &set.uri(), &["shop"]);
    let process = manifest.run(&[]);
    let state = client.database("mongomirror");
    let verifications = state.collection::<Document>("verifications");
    eventually("verified", async || {
        let verified = verifications.count_documents(doc! {}).await.unwrap() > 0;
        (verified && is_copied(&client, "shop").await).then_some(())
    })
    .await;
    strangers_index(&target, "orders").await;
    let orders = source.collection::<Document>("orders");
    orders
        .insert_many([arrays(1000), doc! {"_id": 1001}])
        .await
        .unwrap();
    arrived(&target, "orders", 1001).await;
    assert_eq!(noted(&client).await, 1);
    process.kill().await.unwrap();

    let process = manifest.run(&[("MONGOMIRROR_CRASH", "RenameCollection:after")]);
    let rename = doc! {"renameCollection": "shop.orders", "to": "shop.sold"};
    client.database("admin").run_command(rename).await.unwrap();
    eventually("it dies within the rename", async || {
        process.ended().unwrap()
    })
    .await;
    let process = manifest.run(&[]);
    let sold = source.collection::<Document>("sold");
    sold.insert_one(doc! {"_id": 1002}).await.unwrap();
    arrived(&target, "sold", 1002).await;
    assert_eq!(noted(&client).await, 1, "its index came with it");
    let copies = target.collection::<Document>("sold");
    assert_eq!(copies.count_documents(doc! {}).await.unwrap(), 102);
    copies.drop_indexes().await.unwrap();
    eventually("healed", async || (noted(&client).await == 0).then_some(())).await;
    assert_equal(&source, &target).await;
    process.kill().await.unwrap();
}
