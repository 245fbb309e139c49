//! The same as `engine_quarantine`, where no transaction may write: capped collections and
//! `system.js`.

mod common;

use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use common::process::checkpoint;
use common::refused::{arrays, arrived, noted, refused, strangers_index, verified};
use common::{assert_equal, caught_up, config, start, verify, wait_for};
use futures::TryStreamExt;
use mongodb::{Client, Collection, Database, IndexModel};
use mongomirror::engine::progress::Phase;
use mongomirror::runner::MirrorHandle;
use testbed::Version;
use tokio_util::sync::CancellationToken;

/// What 6.0.5 stores unseen, and 6.0.27 refuses: binary of subtype 7 is more than bytes to it.
fn malformed(id: i32) -> Document {
    let odd = Binary {
        subtype: BinarySubtype::Column,
        bytes: vec![1, 2, 3],
    };
    doc! {"_id": id, "odd": odd}
}

async fn capped(db: &Database, size: u64) -> Collection<Document> {
    let create = db.create_collection("log").capped(true).size(size);
    create.await.unwrap();
    db.collection("log")
}

async fn ids(db: &Database) -> Vec<i32> {
    let log = db.collection::<Document>("log");
    let natural = log.find(doc! {}).sort(doc! {"$natural": 1}).await.unwrap();
    let all: Vec<Document> = natural.try_collect().await.unwrap();
    all.iter().map(|one| one.get_i32("_id").unwrap()).collect()
}

/// Each run has its own.
async fn epoch(client: &Client) -> i64 {
    let checkpoint = checkpoint(client, "shop").await.unwrap();
    checkpoint.get_i64("epoch").unwrap()
}

/// By the copy and by the stream, in the middle of what is written at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_of_a_capped_collection_leaves_a_gap_and_holds_up_nothing() {
    let ((old, from), (new, to)) = tokio::join!(start(Version::V6_0_5), start(Version::V6_0_27));
    let (source, target) = (from.database("shop"), to.database("shop_backup"));
    let log = capped(&source, 1 << 20).await;
    let fine = |id: i32| doc! {"_id": id};
    let first = [fine(1), malformed(2), fine(3), malformed(4), malformed(5)];
    log.insert_many(first).await.unwrap();
    let config = config(&old.uri(), &new.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    verified(&mirror).await;
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() == 3).await;
    assert_eq!(refused(&now), ["2", "4", "5"]);
    assert!(now.quarantine[0].reason.contains("378"), "{now:?}");
    let begun = epoch(&to).await;

    let more = [malformed(6), fine(7), malformed(8), fine(9), malformed(10)];
    log.insert_many(more).await.unwrap();
    log.insert_one(fine(11)).await.unwrap();
    arrived(&target, "log", 11).await;
    assert_eq!(ids(&target).await, [1, 3, 7, 9, 11]);
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() == 6).await;
    assert_eq!(now.consistent_at, None, "it is not exactly the source");

    // What happens to them leaves everything else as it is.
    for id in [2, 6] {
        let seen = doc! {"$set": {"seen": true}};
        log.update_one(fine(id), seen).await.unwrap();
    }
    for id in [4, 8] {
        log.delete_one(fine(id)).await.unwrap();
    }
    log.insert_many([fine(8), fine(12)]).await.unwrap();
    arrived(&target, "log", 12).await;
    let now = wait_for(&mirror, "two are gone", |now| now.quarantine.len() == 4).await;
    assert_eq!(refused(&now), ["10", "2", "5", "6"]);
    assert_eq!(ids(&target).await, [1, 3, 7, 9, 11, 8, 12]);
    assert_eq!(noted(&to).await, 4);
    assert_eq!(epoch(&to).await, begun, "none of that begins a run anew");
    mirror.stop().await;

    // It is tried again by the next process, which is no better off.
    let mirror = MirrorHandle::start(config);
    let now = wait_for(&mirror, "copied anew", |now| {
        let again = now.quarantine.iter().all(|one| one.attempts == 1);
        now.phase == Phase::Mirroring && again && now.quarantine.len() == 4
    })
    .await;
    assert_eq!(refused(&now), ["10", "2", "5", "6"]);
    for id in [2, 5, 6, 10] {
        log.delete_one(fine(id)).await.unwrap();
    }
    wait_for(&mirror, "healed", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &from).await;
    assert_eq!(ids(&target).await, [1, 3, 7, 9, 11, 8, 12]);
    assert_equal(&source, &target).await;
    assert_eq!(noted(&to).await, 0);
    mirror.stop().await;
}

/// What is inserted and touched at once, as in a queue, begins no run anew either.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_and_soon_changed_holds_up_nothing() {
    let ((old, from), (new, to)) = tokio::join!(start(Version::V6_0_5), start(Version::V6_0_27));
    let (source, target) = (from.database("shop"), to.database("shop_backup"));
    let log = capped(&source, 1 << 20).await;
    log.insert_one(doc! {"_id": 0}).await.unwrap();
    let mirror = MirrorHandle::start(config(&old.uri(), &new.uri(), "shop"));
    verified(&mirror).await;
    let begun = epoch(&to).await;
    let seen = doc! {"$set": {"seen": true}};
    for n in (1..200).step_by(4) {
        let some = [malformed(n), doc! {"_id": n + 1}, malformed(n + 2)];
        log.insert_many(some).await.unwrap();
        for id in [n, n + 1] {
            log.update_one(doc! {"_id": id}, seen.clone())
                .await
                .unwrap();
        }
        log.delete_one(doc! {"_id": n + 2}).await.unwrap();
        if n % 8 == 1 {
            log.insert_one(doc! {"_id": n + 2}).await.unwrap();
        }
    }
    log.insert_one(doc! {"_id": 1000}).await.unwrap();
    arrived(&target, "log", 1000).await;
    wait_for(&mirror, "noted", |now| now.quarantine.len() == 50).await;
    assert_eq!(epoch(&to).await, begun, "none of that begins a run anew");
    log.delete_many(doc! {"odd": {"$exists": true}})
        .await
        .unwrap();
    wait_for(&mirror, "healed", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &from).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&to).await, 0);
    assert_eq!(epoch(&to).await, begun);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capped_collection_is_copied_anew_when_a_strangers_index_goes() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let log = capped(&source, 1 << 20).await;
    log.insert_one(doc! {"_id": 1}).await.unwrap();
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    verified(&mirror).await;
    let begun = epoch(&client).await;
    strangers_index(&target, "log").await;
    log.insert_many([arrays(2), doc! {"_id": 3}]).await.unwrap();
    arrived(&target, "log", 3).await;
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() == 1).await;
    assert_eq!(refused(&now), ["2"]);
    // Updates of what is there, before and behind others that are taken.
    log.insert_many((4..8).map(|n| doc! {"_id": n}))
        .await
        .unwrap();
    let both = doc! {"$set": {"a": [1, 2], "b": [3, 4]}};
    let seen = doc! {"$set": {"seen": true}};
    for id in 3..8 {
        let change = if id % 2 == 1 { &both } else { &seen };
        log.update_one(doc! {"_id": id}, change.clone())
            .await
            .unwrap();
    }
    log.insert_one(doc! {"_id": 8}).await.unwrap();
    arrived(&target, "log", 8).await;
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() == 4).await;
    assert_eq!(refused(&now), ["2", "3", "5", "7"]);
    assert_eq!(ids(&target).await, [1, 4, 6, 8]);
    verify(&mirror).await;
    wait_for(&mirror, "healed", |now| {
        now.phase == Phase::Mirroring && now.quarantine.is_empty()
    })
    .await;
    caught_up(&mirror, &client).await;
    assert_eq!(ids(&target).await, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_equal(&source, &target).await;
    assert_eq!(noted(&client).await, 0);
    assert_eq!(
        epoch(&client).await,
        begun,
        "none of that begins a run anew"
    );
    mirror.stop().await;
}

/// With a refusal and a majority that was not reached at once, nothing is known to be there.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_hide_that_no_majority_has_what_stood_before_it() {
    let ((old, from), (new, to)) = tokio::join!(start(Version::V6_0_5), start(Version::V6_0_27));
    let (source, target) = (from.database("shop"), to.database("shop_backup"));
    let log = capped(&source, 1 << 20).await;
    log.insert_one(doc! {"_id": 0}).await.unwrap();
    let mirror = MirrorHandle::start(config(&old.uri(), &new.uri(), "shop"));
    verified(&mirror).await;
    let begun = epoch(&to).await;
    let uncertain = doc! {"code": 91, "errmsg": "by the test"};
    let fail = doc! {
        "configureFailPoint": "failCommand",
        "mode": {"times": 1},
        "data": {"failCommands": ["insert"], "writeConcernError": uncertain},
    };
    to.database("admin").run_command(fail).await.unwrap();
    let some = [doc! {"_id": 1}, malformed(2), doc! {"_id": 3}];
    log.insert_many(some).await.unwrap();
    arrived(&target, "log", 3).await;
    wait_for(&mirror, "noted", |now| {
        now.phase == Phase::Mirroring && now.quarantine.len() == 1
    })
    .await;
    assert!(epoch(&to).await > begun, "it is copied anew");
    assert_eq!(ids(&target).await, [0, 1, 3]);
    mirror.stop().await;
}

/// A queue that is used while it is copied: what was refused, inserted, changed and deleted between
/// the begin and the end of the reading.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_while_a_capped_collection_is_copied_begins_no_run_anew() {
    let ((old, from), (new, to)) = tokio::join!(start(Version::V6_0_5), start(Version::V6_0_27));
    let (source, target) = (from.database("shop"), to.database("shop_backup"));
    let log = capped(&source, 64 << 20).await;
    // Each that is refused has to be found, so there is time for changes while it is copied.
    let fill = (0..20_000).map(|n| match n % 100 {
        50 => malformed(n),
        _ => doc! {"_id": n, "text": "x".repeat(500)},
    });
    log.insert_many(fill).await.unwrap();
    // Long, so that its changes are logged as such.
    let last = doc! {"_id": "last", "o": {"x": 0}, "b": 0, "text": "x".repeat(2000)};
    log.insert_one(last).await.unwrap();
    let stop = CancellationToken::new();
    let queue = tokio::spawn(used_as_a_queue(log.clone(), stop.clone()));
    let mirror = MirrorHandle::start(config(&old.uri(), &new.uri(), "shop"));
    wait_for(&mirror, "copying", |now| !now.quarantine.is_empty()).await;
    // The copy meets the last of these, and then the others are laid over that.
    for set in [doc! {"b": 4}, doc! {"o.x": 1, "b": 5}, doc! {"o": 3}] {
        let changed = log.update_one(doc! {"_id": "last"}, doc! {"$set": set});
        assert_eq!(changed.await.unwrap().modified_count, 1);
    }
    wait_for(&mirror, "copied", |now| now.phase == Phase::Mirroring).await;
    let begun = epoch(&to).await;
    stop.cancel();
    let used = queue.await.unwrap();
    assert!(used > 20, "it was changed meanwhile: {used}");
    log.insert_one(doc! {"_id": -1}).await.unwrap();
    arrived(&target, "log", -1).await;
    let malformed = doc! {"odd": {"$exists": true}};
    let bad = log.count_documents(malformed.clone()).await.unwrap();
    wait_for(&mirror, "noted", |now| now.quarantine.len() as u64 == bad).await;
    log.delete_many(malformed).await.unwrap();
    wait_for(&mirror, "healed", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &from).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&to).await, 0);
    assert_eq!((begun, epoch(&to).await), (1, 1), "one run does it");
    mirror.stop().await;
}

/// Inserts good and malformed documents, and changes and deletes some of them.
async fn used_as_a_queue(log: Collection<Document>, stop: CancellationToken) -> i32 {
    let seen = doc! {"$set": {"seen": true}};
    let mut used = 0;
    while !stop.is_cancelled() {
        let n = 100_000 + 4 * used;
        let some = [malformed(n), doc! {"_id": n + 1}, malformed(n + 2)];
        log.insert_many(some).await.unwrap();
        for id in [n, n + 1, n - 4, n - 40] {
            let update = log.update_one(doc! {"_id": id}, seen.clone());
            update.await.unwrap();
        }
        for id in [n + 2, n - 80] {
            log.delete_one(doc! {"_id": id}).await.unwrap();
        }
        log.insert_one(doc! {"_id": n + 3}).await.unwrap();
        used += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    used
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_of_system_js_is_tried_again_until_it_heals() {
    let (set, client) = start(Version::V6_0_5).await;
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    let scripts = source.collection::<Document>("system.js");
    scripts.insert_one(doc! {"_id": 1}).await.unwrap();
    let config = config(&set.uri(), &set.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    verified(&mirror).await;
    strangers_index(&target, "system.js").await;
    let copies = target.collection::<Document>("system.js");
    let unique = mongodb::options::IndexOptions::builder()
        .unique(true)
        .build();
    let unique = IndexModel::builder().keys(doc! {"k": 1}).options(unique);
    copies.create_index(unique.build()).await.unwrap();

    let more = [arrays(2), doc! {"_id": 3, "k": 1}, doc! {"_id": 4, "k": 1}];
    scripts.insert_many(more).await.unwrap();
    arrived(&target, "system.js", 3).await;
    // Without a key of its own each of these has the same: none.
    let now = wait_for(&mirror, "noted", |now| now.quarantine.len() == 2).await;
    assert_eq!(refused(&now), ["2", "4"]);
    assert_eq!(now.consistent_at, None, "it is not exactly the source");
    let seen = doc! {"$set": {"seen": true}};
    scripts.update_one(doc! {"_id": 2}, seen).await.unwrap();
    scripts.insert_one(doc! {"_id": 5, "k": 5}).await.unwrap();
    arrived(&target, "system.js", 5).await;
    wait_for(&mirror, "tried again", |now| {
        now.quarantine.iter().all(|one| one.attempts >= 3)
    })
    .await;
    assert_eq!(noted(&client).await, 2);
    mirror.stop().await;

    let mirror = MirrorHandle::start(config);
    let now = wait_for(&mirror, "remembered", |now| now.quarantine.len() == 2).await;
    assert!(now.quarantine[0].attempts >= 3, "{now:?}");
    copies.drop_indexes().await.unwrap();
    wait_for(&mirror, "healed", |now| now.quarantine.is_empty()).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(noted(&client).await, 0);
    mirror.stop().await;
}
