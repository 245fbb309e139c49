//! Batches in several transactions at the same time: `apply.mode: Parallel`.

mod common;

use std::time::Duration;

use bson::{Document, Timestamp, doc};
use common::workload::{COLLECTIONS, Workload, fill};
use common::{PATIENCE, assert_equal, caught_up, config, fresh_seed, mirroring, run, start};
use futures::TryStreamExt;
use mongodb::Database;
use mongomirror::engine::config::{ApplyMode, MirrorConfig};
use mongomirror::engine::position::ClusterTime;
use mongomirror::runner::MirrorHandle;
use testbed::Version;

on_both_versions!(
    snapshots_at_published_times_are_what_the_source_was,
    unique_values_that_wander_arrive,
);

/// A mirror that has lanes, and uses them for nearly everything.
fn parallel(source: &str, target: &str) -> MirrorConfig {
    let mut config = config(source, target, "shop");
    config.apply_mode = ApplyMode::Parallel;
    config.limits.lanes_from = 2;
    config
}

/// What the collections of a workload hold at a cluster time, in the order of `_id`.
async fn snapshot(db: &Database, at: ClusterTime) -> mongodb::error::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for name in COLLECTIONS {
        let find = doc! {
            "find": name, "sort": {"_id": 1}, "batchSize": 10_000,
            "readConcern": {"level": "snapshot", "atClusterTime": Timestamp::from(at)},
        };
        let mut documents = db.run_cursor_command(find).await?;
        while let Some(document) = documents.try_next().await? {
            all.push(document.to_vec()?);
        }
    }
    Ok(all)
}

async fn snapshots_at_published_times_are_what_the_source_was(version: Version) {
    let seed = fresh_seed();
    let ((from, source), (to, target)) = tokio::join!(start(version), start(version));
    fill(&source, "shop", seed, 200).await;
    let mirror = MirrorHandle::start(parallel(&from.uri(), &to.uri()));
    mirroring(&mirror).await;
    let workload = Workload::start(&source, "shop", seed, 3, false);
    let (shop, copy) = (source.database("shop"), target.database("shop_backup"));
    let mut progress = mirror.progress();
    let mut seen = None;
    for _ in 0..12 {
        let next = progress.wait_for(|now| now.target_time.is_some() && now.target_time != seen);
        let next = tokio::time::timeout(PATIENCE, next)
            .await
            .unwrap()
            .unwrap()
            .clone();
        seen = next.target_time;
        let (then, there) = (next.consistent_at.unwrap(), next.target_time.unwrap());
        let (was, is) = tokio::join!(snapshot(&shop, then), snapshot(&copy, there));
        assert!(
            was.unwrap() == is.unwrap(),
            "not the source at {then} in {there}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    workload.stop().await;
    caught_up(&mirror, &source).await;
    assert_equal(&shop, &copy).await;
    let fences = target
        .database("mongomirror")
        .collection::<Document>("fences");
    let mut busy = 0;
    for lane in 0..4_i64 {
        let own = fences.find_one(doc! {"_id": {"t": "shop_backup", "lane": lane}});
        let own = own.await.unwrap().expect("a lane's document");
        busy += u32::from(own.get_i64("batches").is_ok_and(|batches| batches > 10));
    }
    assert_eq!(busy, 4, "not all lanes are used");
    assert_eq!(mirror.stop().await.totals.repaired, 0);
}

/// Within one batch each value goes from one document to the next, so that in no other order than
/// one after the other all of them can be written.
async fn unique_values_that_wander_arrive(version: Version) {
    let (set, client) = start(version).await;
    let (shop, copy) = (client.database("shop"), client.database("shop_backup"));
    let seats = shop.collection::<Document>("seats");
    let keys = doc! {"key": {"seat": 1}, "name": "seat", "unique": true};
    run(&shop, doc! {"createIndexes": "seats", "indexes": [keys]}).await;
    let all = (0..60).map(|n| doc! {"_id": n, "seat": n});
    seats.insert_many(all).await.unwrap();
    // Ids that are equal, and not the same.
    let odd = shop.collection::<Document>("odd");
    odd.insert_many((0..60).map(|n| doc! {"_id": n}))
        .await
        .unwrap();
    let mirror = MirrorHandle::start(parallel(&set.uri(), &set.uri()));
    mirroring(&mirror).await;
    let mut session = client.start_session().await.unwrap();
    for round in 1..6 {
        session.start_transaction().await.unwrap();
        for n in 0..60 {
            let away = doc! {"$set": {"seat": 1000 + n}};
            seats
                .update_one(doc! {"_id": n}, away)
                .session(&mut session)
                .await
                .unwrap();
        }
        for n in 0..60 {
            let next = doc! {"$set": {"seat": (n + round) % 60}};
            seats
                .update_one(doc! {"_id": n}, next)
                .session(&mut session)
                .await
                .unwrap();
            odd.delete_one(doc! {"_id": n})
                .session(&mut session)
                .await
                .unwrap();
            let other = match round % 2 {
                0 => doc! {"_id": n, "round": round},
                _ => doc! {"_id": f64::from(n), "round": round},
            };
            odd.insert_one(other).session(&mut session).await.unwrap();
        }
        session.commit_transaction().await.unwrap();
    }
    caught_up(&mirror, &client).await;
    assert_equal(&shop, &copy).await;
    mirror.stop().await;
}
