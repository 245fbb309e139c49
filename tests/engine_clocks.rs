//! What a source does by itself while it is mirrored: it lets documents expire, and builds indexes.

mod common;

use bson::{DateTime, Document, doc};
use common::{assert_equal, caught_up, config, eventually, fill, mirroring, run, start};
use mongodb::Database;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

async fn count(db: &Database, collection: &str) -> u64 {
    let collection = db.collection::<Document>(collection);
    collection.count_documents(doc! {}).await.unwrap()
}

/// The source's clock deletes, and the target's does not: what is gone there went by the stream.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_on_the_source_goes_from_the_target_by_the_stream() {
    for version in Version::ALL {
        let often = || ReplicaSet::builder().param("ttlMonitorSleepSecs", 1);
        let source = often().version(version).start();
        let target = often().version(version).start();
        let (source, target) = (source.await.unwrap(), target.await.unwrap());
        let client = source.client().await.unwrap();
        let (shop, admin) = (client.database("shop"), client.database("admin"));
        let copy = target.client().await.unwrap().database("shop_backup");
        let ttl = |on: bool| doc! {"setParameter": 1, "ttlMonitorEnabled": on};
        run(&admin, ttl(false)).await;
        let index = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 1};
        run(&shop, doc! {"createIndexes": "orders", "indexes": [index]}).await;
        let by_id = doc! {"key": {"_id": 1}, "unique": true};
        run(
            &shop,
            doc! {"create": "clustered", "clusteredIndex": by_id, "expireAfterSeconds": 1},
        )
        .await;
        run(
            &shop,
            doc! {"create": "series", "timeseries": {"timeField": "at"}, "expireAfterSeconds": 1},
        )
        .await;
        let long_ago = DateTime::from_millis(1_600_000_000_000);
        for collection in ["orders", "clustered", "series"] {
            let id = |n: i64| DateTime::from_millis(long_ago.timestamp_millis() + n);
            let old = (0..50).map(|n| doc! {"_id": id(n), "at": long_ago, "n": n});
            // Before 2038: beyond it a time series has no clock.
            let kept = DateTime::from_millis(2_000_000_000_000);
            let kept = std::iter::once(doc! {"_id": kept, "at": kept});
            let documents = shop.collection::<Document>(collection);
            documents.insert_many(old.chain(kept)).await.unwrap();
        }
        let mirror = MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
        mirroring(&mirror).await;
        // The target's clock has run several times meanwhile.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        for collection in ["orders", "clustered", "series"] {
            assert_eq!(count(&copy, collection).await, 51, "{collection}");
        }
        run(&admin, ttl(true)).await;
        for collection in ["orders", "clustered", "series"] {
            eventually(&format!("{collection} expires"), async || {
                (count(&shop, collection).await == 1).then_some(())
            })
            .await;
        }
        caught_up(&mirror, &client).await;
        assert_equal(&shop, &copy).await;
        assert_eq!(count(&copy, "orders").await, 1);
        assert_eq!(mirror.stop().await.totals.repaired, 0);
    }
}

/// An index that is being built when the mirror starts is none yet; it comes by the stream.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_being_built_when_the_mirror_starts_arrives() {
    for version in Version::ALL {
        let (set, client) = start(version).await;
        let (source, target) = (client.database("shop"), client.database("shop_backup"));
        fill(&source, "orders", 0, 100).await;
        let admin = client.database("admin");
        let hang = |mode| doc! {"configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode};
        run(&admin, hang("alwaysOn")).await;
        let index = doc! {"key": {"quantity": 1}, "name": "slow"};
        let build = {
            let source = source.clone();
            tokio::spawn(async move {
                run(
                    &source,
                    doc! {"createIndexes": "orders", "indexes": [index]},
                )
                .await;
            })
        };
        let building = doc! {"currentOp": true, "msg": {"$regex": "^Index Build"}};
        eventually("it is being built", async || {
            let now = admin.run_command(building.clone()).await.unwrap();
            (!now.get_array("inprog").unwrap().is_empty()).then_some(())
        })
        .await;
        let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
        mirroring(&mirror).await;
        fill(&source, "orders", 100, 10).await;
        caught_up(&mirror, &client).await;
        run(&admin, hang("off")).await;
        build.await.unwrap();
        caught_up(&mirror, &client).await;
        assert_equal(&source, &target).await;
        let copies = target.collection::<Document>("orders");
        let indexes = copies.list_index_names().await.unwrap();
        assert!(indexes.contains(&"slow".to_owned()));
        mirror.stop().await;
    }
}
