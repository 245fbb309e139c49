//! How long the source's oplog holds what a mirror has not applied yet, also while it is paused.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use bson::{Document, doc};
use common::{PATIENCE, assert_equal, show_logs};
use mongodb::Client;
use mongomirror::engine::connection::shared::Clients;
use mongomirror::engine::headroom::{Headroom, Left};
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::resource::MongoMirrorSpec;
use mongomirror::runner::registry::{MirrorKey, Registry};
use mongomirror::runner::slot::{Names, Slot};
use mongomirror::runner::translate::{SecretValues, Secrets, desired};
use testbed::ReplicaSet;

/// A mirror's place, as operator and `run` have one.
struct Place {
    slot: Slot,
    registry: Registry,
    key: MirrorKey,
    uris: [String; 2],
}

impl Place {
    fn new(source: String, target: String) -> Self {
        show_logs();
        let (registry, key) = (Registry::default(), MirrorKey::new("tests", "shop"));
        Self {
            slot: Slot::new(key.clone(), registry.clone(), Clients::default()),
            registry,
            key,
            uris: [source, target],
        }
    }

    async fn enable(&mut self, enabled: bool) {
        let spec = format!(
            "{{enabled: {enabled}, source: {{uriSecretRef: {{name: source}}, database: shop}}, \
             target: {{uriSecretRef: {{name: target}}, database: shop_backup}}}}"
        );
        let spec: MongoMirrorSpec = serde_saphyr::from_str(&spec).unwrap();
        let secret = |uri: &String| {
            let values = BTreeMap::from([("uri".to_owned(), uri.clone().into_bytes())]);
            Some(SecretValues(values))
        };
        let secrets = Secrets::from([
            ("source".to_owned(), secret(&self.uris[0])),
            ("target".to_owned(), secret(&self.uris[1])),
        ]);
        let wanted = desired(&self.key, None, &spec, Ok(secrets));
        let settled = self.slot.settle(wanted, Names::from(&spec));
        // Whatever is measured meanwhile holds nothing up.
        tokio::time::timeout(Duration::from_secs(20), settled)
            .await
            .expect("stopping and starting is not held up");
    }

    async fn wait_for(&self, what: &str, wanted: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.slot.changes().expect("something to be seen");
        let found = tokio::time::timeout(PATIENCE, progress.wait_for(|now| wanted(now))).await;
        match found {
            Ok(Ok(found)) => found.clone(),
            _ => panic!(
                "still not: {what}; {:#?}",
                self.registry.snapshot(&self.key)
            ),
        }
    }

    async fn left(&self, what: &str, wanted: impl Fn(&Left) -> bool) -> Left {
        let left = |progress: &Progress| progress.headroom.as_ref().and_then(Headroom::left);
        let found = self.wait_for(what, |now| left(now).is_some_and(|left| wanted(&left)));
        left(&found.await).unwrap()
    }
}

async fn write(client: &Client, from: i32, megabytes: i32) {
    let orders = client.database("shop").collection::<Document>("orders");
    for n in from..from + megabytes * 4 {
        orders
            .insert_one(doc! {"_id": n, "pad": "p".repeat(250_000)})
            .await
            .unwrap();
    }
}

async fn checkpoint(client: &Client) -> Document {
    let state = client.database("mongomirror");
    let checkpoints = state.collection::<Document>("checkpoints");
    checkpoints.find_one(doc! {}).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn headroom_is_measured_while_a_mirror_runs_and_shrinks_while_it_is_paused() {
    let source = ReplicaSet::builder()
        .oplog_mb(10)
        .arg("--syncdelay", "3")
        .start()
        .await
        .unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    let copy = target.client().await.unwrap();
    write(&client, 0, 1).await;
    let mut place = Place::new(source.uri(), target.uri());
    place.enable(true).await;
    place
        .wait_for("mirroring", |now| now.phase == Phase::Mirroring)
        .await;
    place.left("measured while it runs", |_| true).await;

    place.enable(false).await;
    let before = place.left("measured while it is paused", |_| true).await;
    let remembered = checkpoint(&copy).await;
    assert!(before.bytes > 5 << 20, "{before:?}");
    write(&client, 1000, 4).await;
    let after = place
        .left("less is left", |left| left.bytes + 3_500_000 < before.bytes)
        .await;
    // Four megabytes of it are used up.
    let used = before.bytes - after.bytes;
    assert!((3_500_000..6_000_000).contains(&used), "{used}");
    let shown = place.registry.snapshot(&place.key).unwrap();
    assert_eq!(shown.phase(), Phase::Paused);
    assert!(shown.message().contains("oplog"), "{}", shown.message());
    assert_eq!(checkpoint(&copy).await, remembered, "nothing is written");

    // A source that is away, just being asked, does not keep the mirror from anything.
    source.node(0).pause().unwrap();
    place.enable(true).await;
    place.enable(false).await;
    source.node(0).resume().unwrap();
    place.enable(true).await;
    place
        .wait_for("mirroring again", |now| {
            now.phase == Phase::Mirroring && now.lag == Some(Duration::ZERO)
        })
        .await;
    assert_equal(&client.database("shop"), &copy.database("shop_backup")).await;
    place.slot.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headroom_is_measured_while_a_mirror_cannot_run() {
    let source = ReplicaSet::builder().oplog_mb(20).start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let (client, copy) = (
        source.client().await.unwrap(),
        target.client().await.unwrap(),
    );
    write(&client, 0, 1).await;
    let mut place = Place::new(source.uri(), target.uri());
    place.enable(true).await;
    place
        .wait_for("mirroring", |now| now.phase == Phase::Mirroring)
        .await;
    // Nobody but a person can help.
    let checkpoints = copy
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    checkpoints.delete_many(doc! {}).await.unwrap();
    write(&client, 1000, 1).await;
    let failed = |now: &Progress| now.phase == Phase::Failed;
    place.wait_for("it has failed", failed).await;
    let is_failed = |now: &Progress| failed(now) && now.headroom.is_some();
    place
        .wait_for("measured although it failed", is_failed)
        .await;
    let before = place.left("measured", |_| true).await;
    write(&client, 2000, 4).await;
    let less = |left: &Left| left.bytes + 3_500_000 < before.bytes;
    place.left("less is left", less).await;
    assert_eq!(place.wait_for("", |_| true).await.phase, Phase::Failed);
    place.slot.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_the_oplog_has_dropped_has_nothing_left() {
    let source = ReplicaSet::builder()
        .oplog_mb(10)
        .arg("--syncdelay", "3")
        .start()
        .await
        .unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    write(&client, 0, 1).await;
    let mut place = Place::new(source.uri(), target.uri());
    place.enable(true).await;
    place
        .wait_for("mirroring", |now| now.phase == Phase::Mirroring)
        .await;
    place.enable(false).await;
    // Until its first entry is younger than the mirror's position.
    let stood_at = {
        let checkpoint = checkpoint(&target.client().await.unwrap()).await;
        let position = checkpoint.get_document("position").unwrap();
        position.get_timestamp("time").unwrap()
    };
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let rolled = async {
        for round in 0.. {
            write(&client, 1000 + round * 100, 4).await;
            let oldest = oplog.find_one(doc! {}).await.unwrap().unwrap();
            if oldest.get_timestamp("ts").unwrap() > stood_at {
                return;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rolled).await.unwrap();
    let left = place.left("lost", |left| left.bytes == 0).await;
    assert_eq!(left.time, Duration::ZERO);
    place.slot.close().await;
}
