//! The way to the API server is cut, slow, or leads to one that has forgotten: data goes on, and
//! what is told afterwards is true.

mod common;

use std::time::{Duration, Instant};

use bson::{Document, doc};
use common::cluster::{Cluster, mirror, secret};
use common::history::{History, Version};
use common::{assert_equal, eventually, fill};
use mongodb::{Client, Database, IndexModel};
use mongomirror::resource::status::Phase;
use testbed::{Proxy, ReplicaSet};

const REASON: &str = r#".status.conditions[?(@.type=="Ready")].reason"#;

/// "Within seconds", on machines where much else runs.
const SECONDS: Duration = Duration::from_secs(20);

/// How long the API server is away: with `MONGOMIRROR_TEST_ALL` set, ten minutes.
fn away() -> Duration {
    let is_all = std::env::var_os("MONGOMIRROR_TEST_ALL").is_some();
    Duration::from_secs(if is_all { 600 } else { 25 })
}

async fn servers() -> (ReplicaSet, Client) {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    (set, client)
}

/// A document that is written now is on the target soon.
async fn follows(client: &Client, database: &str) {
    let id = bson::oid::ObjectId::new();
    let orders = |name: &str| client.database(name).collection::<Document>("orders");
    orders(database).insert_one(doc! {"_id": id}).await.unwrap();
    let copies = orders(&format!("{database}_backup"));
    eventually("a document arrives", async || {
        copies.find_one(doc! {"_id": id}).await.unwrap()
    })
    .await;
}

async fn is_equal(client: &Client, database: &str) {
    let target = client.database(&format!("{database}_backup"));
    assert_equal(&client.database(database), &target).await;
}

/// Mirrors of databases of their own names that are live.
async fn live(cluster: &Cluster, client: &Client, uri: &str, names: &[&str]) {
    cluster.apply(&secret("mongo", uri)).await;
    for name in names {
        fill(&client.database(name), "orders", 0, 20).await;
        cluster.apply(&mirror(name, "mongo", name, "")).await;
    }
    for name in names {
        cluster.wait(name, ".status.phase", "Mirroring").await;
    }
}

/// How an API server can be away.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Away {
    /// Nobody listens.
    Killed,
    /// It takes connections and says nothing.
    Frozen,
}

async fn is_survived(how: Away) {
    let (set, client) = servers().await;
    let lost = ReplicaSet::builder().start().await.unwrap();
    let mut cluster = Cluster::without_operator().await;
    let proxy = cluster.through_proxy().await;
    cluster.start_operator();
    cluster.apply(&secret("lost", &lost.uri())).await;
    let target = "  target: {uriSecretRef: {name: mongo}}\n";
    let all = ["live", "edited", "third", "fourth"];
    live(&cluster, &client, &set.uri(), &all).await;
    cluster.apply(&mirror("lost", "lost", "lost", target)).await;
    cluster.wait("lost", ".status.connected", "true").await;

    match how {
        Away::Killed => cluster.plane.kill_api_server().await.unwrap(),
        Away::Frozen => cluster.plane.pause_api_server().unwrap(),
    }
    let begun = Instant::now();
    let before = proxy.accepted();
    lost.node(0).kill().await.unwrap();
    while begun.elapsed() < away() {
        follows(&client, "live").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let tries = proxy.accepted() - before;
    let ready = cluster.http("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let told = cluster.http("/api/v1/mirrors/default/live").await;
    assert!(told.contains(r#""phase":"Mirroring""#), "{told}");
    let told = cluster.http("/api/v1/mirrors/default/lost").await;
    assert!(told.contains(r#""connected":false"#), "{told}");

    match how {
        Away::Killed => cluster.plane.start_api_server().await.unwrap(),
        Away::Frozen => cluster.plane.resume_api_server().unwrap(),
    }
    let back = Instant::now();
    let pause = r#"{"spec": {"enabled": false}}"#;
    cluster.patch("edited", pause).await;
    cluster.wait("edited", ".status.phase", "Paused").await;
    let edited = back.elapsed();
    cluster.wait("lost", ".status.connected", "false").await;
    cluster.wait("lost", REASON, "SourceUnreachable").await;
    let told = back.elapsed();
    eprintln!(
        "{how:?} for {:?}: {tries} connections tried; an edit was taken up after {edited:?}, all \
         was true after {told:?}",
        away(),
    );
    assert!(edited < SECONDS, "an edit was taken up after {edited:?}");
    assert!(told < SECONDS, "the status was true after {told:?}");
    // Two watches and one of five mirrors try, each every few seconds.
    let bound = 15 + away().as_secs() * 3 / 2;
    assert!(tries <= bound, "{tries} connections in {:?}", away());
    follows(&client, "live").await;
    is_equal(&client, "live").await;
    assert!(!cluster.log().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_for_long_is_not_hammered_and_learns_the_truth_when_it_is_back()
{
    is_survived(Away::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_answers_nothing_for_long_learns_the_truth_when_it_goes_on() {
    is_survived(Away::Frozen).await;
}

/// Whether the target's TTL index works as the source's does.
async fn is_armed(db: &Database) -> bool {
    let indexes = db.collection::<Document>("orders").list_indexes().await;
    let mut indexes = indexes.unwrap();
    while indexes.advance().await.unwrap() {
        let index: IndexModel = indexes.deserialize_current().unwrap();
        if let Some(after) = index.options.and_then(|options| options.expire_after) {
            return after == Duration::from_secs(3600);
        }
    }
    false
}

/// What happens while nobody watches, and is forgotten by the API server when somebody does again.
#[tokio::test(flavor = "multi_thread")]
async fn what_happens_behind_a_watch_that_expires_is_taken_up() {
    let (set, client) = servers().await;
    for name in ["deleted", "kept"] {
        let ttl = doc! {"createIndexes": "orders", "indexes": [
            {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 3600},
        ]};
        common::run(&client.database(name), ttl).await;
    }
    let mut cluster = Cluster::without_operator().await;
    let proxy = cluster.through_proxy().await;
    cluster.start_operator();
    let all = ["deleted", "kept", "edited", "again"];
    live(&cluster, &client, &set.uri(), &all).await;
    fill(&client.database("waiting"), "orders", 0, 20).await;
    let waiting = mirror("waiting", "later", "waiting", "");
    cluster.apply(&waiting).await;
    cluster.wait("waiting", REASON, "SecretNotFound").await;
    let target = |name: &str| client.database(&format!("{name}_backup"));
    assert!(!is_armed(&target("deleted")).await, "held back by a mirror");
    let uid = cluster.field("again", ".metadata.uid").await;

    proxy.cut();
    cluster
        .kubectl(&["delete", "mgm", "deleted", "again"])
        .await;
    cluster.apply(&mirror("again", "mongo", "again", "")).await;
    cluster
        .patch("edited", r#"{"spec": {"enabled": false}}"#)
        .await;
    cluster.apply(&secret("later", &set.uri())).await;
    fill(&client.database("new"), "orders", 0, 20).await;
    cluster.apply(&mirror("new", "mongo", "new", "")).await;
    // What it knows of earlier versions, it knows from its own time.
    cluster.plane.stop_api_server().await.unwrap();
    cluster.plane.start_api_server().await.unwrap();
    follows(&client, "kept").await;
    proxy.heal();
    let healed = Instant::now();

    cluster.wait("edited", ".status.phase", "Paused").await;
    for name in ["new", "waiting", "again"] {
        cluster.wait(name, ".status.phase", "Mirroring").await;
    }
    eventually(
        "the deleted one's target is an ordinary database",
        async || is_armed(&target("deleted")).await.then_some(()),
    )
    .await;
    let took = healed.elapsed();
    eprintln!("all of it was taken up after {took:?}");
    let log = cluster.log();
    assert!(
        log.contains("too old resource version"),
        "it expired: {log}"
    );
    assert_ne!(uid, cluster.field("again", ".metadata.uid").await);
    assert!(!is_armed(&target("kept")).await);
    let listed = cluster.http("/api/v1/mirrors").await;
    assert!(!listed.contains(r#""deleted""#), "{listed}");
    for name in ["kept", "new", "waiting", "again"] {
        follows(&client, name).await;
        is_equal(&client, name).await;
    }
}

/// What a status says must be about the generation that it names.
fn assert_true_of_its_generation(versions: &[Version]) {
    let enabled = |generation| {
        let of = versions.iter().find(|it| it.generation == generation);
        of.map(|it| it.enabled)
    };
    let mut last = -1;
    for version in versions {
        let status = &version.status;
        let seen = status.observed_generation;
        assert!(seen <= version.generation, "{version:#?}");
        assert!(seen >= last, "back from {last}: {version:#?}");
        last = seen;
        let conditions = status.conditions.iter();
        let of: Vec<_> = conditions.map(|it| it.observed_generation).collect();
        assert!(of.iter().all(|it| *it == Some(seen)), "{version:#?}");
        // A generation that came and went unseen by the watch has nothing to compare with.
        if let Some(enabled) = enabled(seen) {
            assert_eq!(status.enabled, Some(enabled), "{version:#?}");
            assert_eq!(status.phase == Phase::Paused, !enabled, "{version:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_lags_behind_never_makes_a_status_of_what_it_has_not_seen() {
    let (set, client) = servers().await;
    let mut cluster = Cluster::without_operator().await;
    let proxy = cluster.through_proxy().await;
    cluster.start_operator();
    live(&cluster, &client, &set.uri(), &["shop"]).await;
    let history = History::of(&cluster.plane, "shop").await;
    proxy.delay(Duration::from_millis(700));
    let begun = Instant::now();
    for edit in 0..12 {
        let spec = format!("{{\"spec\": {{\"enabled\": {}}}}}", edit % 2 == 1);
        cluster.patch("shop", &spec).await;
        // Also from others, who change its version and nothing else.
        let label = format!("edit={edit}");
        let label = ["label", "--overwrite", "mgm", "shop", &label];
        cluster.kubectl(&label).await;
        tokio::time::sleep(Duration::from_millis(300 * (edit % 4))).await;
    }
    let edited = Instant::now();
    let generation = cluster.field("shop", ".metadata.generation").await;
    let seen = ".status.observedGeneration";
    cluster.wait("shop", seen, &generation).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let took = edited.elapsed();
    assert_true_of_its_generation(&history.versions());
    let statuses = history.since(begun).len();
    eprintln!("{statuses} versions, settled {took:?} after the last edit");
    assert!(took < 2 * SECONDS, "it settled after {took:?}");
    held_back(&cluster, &proxy, &history).await;
    follows(&client, "shop").await;
    is_equal(&client, "shop").await;
}

/// A write that was given up, and arrives after a later one.
async fn held_back(cluster: &Cluster, proxy: &Proxy, history: &History) {
    proxy.heal();
    let old = proxy.connections();
    for connection in &old {
        connection.hold(testbed::Direction::ToServer);
    }
    cluster
        .patch("shop", r#"{"spec": {"enabled": false}}"#)
        .await;
    eventually("the operator has seen it", async || {
        let told = cluster.http("/api/v1/mirrors/default/shop").await;
        told.contains(r#""phase":"Paused""#).then_some(())
    })
    .await;
    cluster.wait("shop", ".status.phase", "Paused").await;
    cluster
        .patch("shop", r#"{"spec": {"enabled": true}}"#)
        .await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let generation = cluster.field("shop", ".metadata.generation").await;
    proxy.heal();
    let released = Instant::now();
    // Time for what was held to arrive, and be wrong.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let wrong: Vec<_> = history
        .since(released)
        .into_iter()
        .filter(|it| it.status.observed_generation.to_string() != generation)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
