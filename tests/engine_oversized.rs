//! Events that fit in no reply of the source: stepped over, their documents read again.

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bson::{Document, doc};
use common::{PATIENCE, assert_equal, caught_up, config, fresh_seed, mirroring, wait_for};
use mongodb::{Client, Collection};
use mongomirror::engine::config::OnHistoryLost;
use mongomirror::runner::MirrorHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::{ReplicaSet, Version};

const MIB: usize = 1 << 20;

/// Leaves of the document whose every change makes a description of 20 MiB: each path is written
/// in full, and the parent's name alone has a thousand bytes.
const LEAVES: usize = 20_000;

async fn servers(version: Version) -> (ReplicaSet, ReplicaSet, Client) {
    // Large transactions need room in the cache.
    let builder = || ReplicaSet::builder().version(version).cache_gb(0.7);
    let source = builder().start().await.unwrap();
    let target = builder().start().await.unwrap();
    let client = source.client().await.unwrap();
    (source, target, client)
}

/// An `_id` of so many MiB, which an event repeats: as it is, in hexadecimal, and in its reply once
/// more. From 2.7 MiB on an insert is too large.
fn long(n: usize, mib: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let length = (mib * MIB as f64) as usize;
    format!("{n}-{}", "k".repeat(length))
}

/// A document that is nearly as large as documents can be, and whose `_id` is in the event again.
fn large(n: usize) -> Document {
    doc! {"_id": long(n, 0.7), "n": 0, "filling": "x".repeat(14 * MIB)}
}

fn wide() -> Document {
    let leaf = doc! {"v": 1, "still": "it is not changed, so a delta is smaller"};
    let leaves: Document = (0..LEAVES)
        .map(|n| (format!("f{n}"), leaf.clone().into()))
        .collect();
    doc! {"_id": "wide", "p".repeat(1000): leaves}
}

/// Changes every leaf.
async fn blow_up(documents: &Collection<Document>) {
    let parent = "p".repeat(1000);
    let changed = doc! {"$map": {
        "input": {"$objectToArray": format!("${parent}")},
        "as": "leaf",
        "in": {"k": "$$leaf.k", "v": {"$mergeObjects": ["$$leaf.v", {"v": {"$add": ["$$leaf.v.v", 1]}}]}},
    }};
    let pipeline = vec![doc! {"$set": {parent: {"$arrayToObject": changed}}}];
    let updated = documents.update_one(doc! {"_id": "wide"}, pipeline);
    assert_eq!(updated.await.unwrap().modified_count, 1);
}

async fn small(documents: &Collection<Document>, from: i32, count: i32) {
    let new = (from..from + count).map(|n| doc! {"_id": n, "n": 0});
    documents.insert_many(new).await.unwrap();
}

async fn touch(documents: &Collection<Document>, id: impl Into<bson::Bson>) {
    let updated = documents.update_one(doc! {"_id": id.into()}, doc! {"$inc": {"n": 1}});
    assert_eq!(updated.await.unwrap().modified_count, 1);
}

/// All kinds between ordinary events, several in a row, and within a transaction.
async fn poison(client: &Client) {
    let db = client.database("shop");
    let documents = db.collection::<Document>("c");
    small(&documents, 1000, 40).await;
    // An `_id` that is repeated too often.
    let id = long(0, 3.0);
    documents
        .insert_one(doc! {"_id": &id, "n": 0})
        .await
        .unwrap();
    touch(&documents, &id).await;
    touch(&documents, 1003).await;
    // A large document with a long `_id`, changed and replaced.
    documents.insert_one(large(1)).await.unwrap();
    touch(&documents, long(1, 0.7)).await;
    let replacement = doc! {"n": 7, "other": "y".repeat(14 * MIB)};
    documents
        .replace_one(doc! {"_id": long(1, 0.7)}, replacement)
        .await
        .unwrap();
    touch(&documents, 1004).await;
    // A delta that is small in the oplog only.
    blow_up(&documents).await;
    small(&documents, 2000, 40).await;
    // Many in a row, some of them gone again.
    for n in 10..18 {
        documents
            .insert_one(doc! {"_id": long(n, 2.8), "n": n as i32})
            .await
            .unwrap();
    }
    for n in (10..18).step_by(3) {
        documents
            .delete_one(doc! {"_id": long(n, 2.8)})
            .await
            .unwrap();
    }
    // Commands between them keep their place.
    db.create_collection("between").await.unwrap();
    let rename = doc! {"renameCollection": "shop.between", "to": "shop.after"};
    client.database("admin").run_command(rename).await.unwrap();
    let after = db.collection::<Document>("after");
    after.insert_one(doc! {"_id": long(20, 3.0)}).await.unwrap();
    // Within a transaction, first, in the middle and last.
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for n in 30..33 {
        for document in [doc! {"_id": long(n, 2.8)}, doc! {"_id": 3000 + n as i32}] {
            documents
                .insert_one(document)
                .session(&mut session)
                .await
                .unwrap();
        }
    }
    documents
        .delete_one(doc! {"_id": long(31, 2.8)})
        .session(&mut session)
        .await
        .unwrap();
    session.commit_transaction().await.unwrap();
    small(&documents, 4000, 40).await;
}

/// What was there before the mirror came.
async fn prepare(client: &Client) {
    let documents = client.database("shop").collection::<Document>("c");
    small(&documents, 0, 40).await;
    documents.insert_one(wide()).await.unwrap();
}

async fn stepped_over(version: Version, internal_delta: bool) {
    let (source, target, client) = servers(version).await;
    prepare(&client).await;
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.limits.internal_delta = internal_delta;
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    // All of it is in the way when the stream is opened again.
    poison(&client).await;
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    // And once more, while the stream is open.
    let documents = client.database("shop").collection::<Document>("c");
    documents
        .insert_one(doc! {"_id": long(50, 3.0)})
        .await
        .unwrap();
    blow_up(&documents).await;
    small(&documents, 5000, 10).await;
    caught_up(&mirror, &client).await;
    let copy = target.client().await.unwrap();
    assert_equal(&client.database("shop"), &copy.database("shop_backup")).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
    assert_eq!(last.problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_too_large_are_stepped_over_6_0_27() {
    stepped_over(Version::V6_0_27, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_too_large_are_stepped_over_6_0_5() {
    stepped_over(Version::V6_0_5, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_deltas_too_6_0_27() {
    stepped_over(Version::V6_0_27, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_deltas_too_6_0_5() {
    stepped_over(Version::V6_0_5, false).await;
}

/// They also wait for ranges of the copy, as others do.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_too_large_arrive_during_the_copy() {
    let (source, target, client) = servers(Version::LATEST).await;
    prepare(&client).await;
    common::fill(&client.database("shop"), "c", 10_000, 4000).await;
    let mut config = config(&source.uri(), &target.uri(), "shop");
    config.limits.range_bytes = 200_000;
    let mirror = MirrorHandle::start(config);
    wait_for(&mirror, "planned", |progress| {
        progress.position.is_some() || progress.initial_sync.is_some()
    })
    .await;
    poison(&client).await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    let copy = target.client().await.unwrap();
    assert_equal(&client.database("shop"), &copy.database("shop_backup")).await;
    mirror.stop().await;
}

/// An `_id` so long that no event can name it. It says what it is, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_no_event_can_name_is_found_by_comparing_or_stops_the_mirror() {
    for version in Version::ALL {
        let (source, target, client) = servers(version).await;
        let documents = client.database("shop").collection::<Document>("c");
        small(&documents, 0, 10).await;
        let mut config = config(&source.uri(), &target.uri(), "shop");
        config.on_history_lost = OnHistoryLost::Stop;
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        documents
            .insert_one(doc! {"_id": long(0, 3.7)})
            .await
            .unwrap();
        wait_for(&mirror, "too large", |progress| {
            let problem = progress.problem.as_ref();
            problem.is_some_and(|problem| problem.reason == "EventTooLarge")
        })
        .await;
        mirror.stop().await;
        config.on_history_lost = OnHistoryLost::Resync;
        let mirror = MirrorHandle::start(config);
        wait_for(&mirror, "compared", |progress| progress.totals.resyncs > 0).await;
        common::caught_up(&mirror, &client).await;
        let copies = target.client().await.unwrap().database("shop_backup");
        assert_equal(&client.database("shop"), &copies).await;
        mirror.stop().await;
    }
}

struct Process(Child);

impl Process {
    fn start(manifest: &std::path::Path, log: &std::path::Path) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mongomirror"))
            .args(["run", "-f"])
            .arg(manifest)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

/// kill -9
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn manifest(folder: &std::path::Path, source: &str, target: &str) -> std::path::PathBuf {
    let secret = |name: &str, uri: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{namespace: tests, name: {name}}}\n\
             stringData: {{uri: \"{uri}\"}}\n---\n"
        )
    };
    let mirror = "apiVersion: mongomirror.dev/v1alpha1\nkind: MongoMirror\n\
                  metadata: {namespace: tests, name: shop}\nspec:\n  \
                  source: {uriSecretRef: {name: source}, database: shop}\n  \
                  target: {uriSecretRef: {name: target}, database: shop_backup}\n";
    let text = secret("source", source) + &secret("target", target) + mirror;
    let file = folder.join("mirror.yaml");
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_dies_while_it_steps_and_a_source_that_cuts_it_off_lose_nothing() {
    let seed = fresh_seed();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (source, target, client) = servers(Version::LATEST).await;
    prepare(&client).await;
    let config = config(&source.uri(), &target.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    poison(&client).await;
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(folder.path(), &source.uri(), &target.uri());
    let log = folder.path().join("log");
    for _ in 0..6 {
        let process = Process::start(&manifest, &log);
        // From before it has connected to well behind the first events.
        tokio::time::sleep(Duration::from_millis(random.random_range(200..1200))).await;
        // Every cursor is gone, the change stream's too.
        let kill = doc! {"killAllSessions": []};
        client.database("admin").run_command(kill).await.ok();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        drop(process);
    }
    let mirror = MirrorHandle::start(config);
    tokio::time::timeout(PATIENCE, caught_up(&mirror, &client))
        .await
        .unwrap();
    let copy = target.client().await.unwrap();
    assert_equal(&client.database("shop"), &copy.database("shop_backup")).await;
    mirror.stop().await;
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(
        log.contains("copying") || log.contains("connected"),
        "{log}"
    );
    assert!(!log.contains("repaired"), "{log}");
}
