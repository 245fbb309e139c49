//! The life of a resource: it is edited, deleted and made again; the operator dies and comes back.

mod common;

use std::time::{Duration, Instant};

use bson::{Document, doc};
use common::cluster::{Cluster, mirror, secret};
use common::ddl::names;
use common::{assert_equal, eventually, fill, hashes};
use mongodb::Client;
use testbed::{ReplicaSet, Version};

/// An operator that follows a dead one says the truth within this, on a machine with other work to
/// do; it takes a few seconds.
const SOON: Duration = Duration::from_secs(20);

const READY: &str = r#".status.conditions[?(@.type=="Ready")].status"#;
const REASON: &str = r#".status.conditions[?(@.type=="Ready")].reason"#;

async fn servers() -> (ReplicaSet, Client) {
    common::start(Version::V6_0_27).await
}

/// A document that is written now is on the target soon.
async fn follows(client: &Client, source: &str, target: &str) {
    let id = bson::oid::ObjectId::new();
    let orders = client.database(source).collection::<Document>("orders");
    orders.insert_one(doc! {"_id": id}).await.unwrap();
    let copies = client.database(target).collection::<Document>("orders");
    eventually("a document arrives", async || {
        copies.find_one(doc! {"_id": id}).await.unwrap()
    })
    .await;
}

/// The operator has seen the newest spec.
async fn observed(cluster: &Cluster, mirror: &str) {
    let generation = cluster.field(mirror, ".metadata.generation").await;
    let seen = ".status.observedGeneration";
    cluster.wait(mirror, seen, &generation).await;
}

/// Edits that change nothing of what is mirrored, as patches of the spec; in every phase. The table
/// in docs/status.md says what each does.
const EDITS: [&str; 12] = [
    r#"{"spec": {"verification": {"interval": "1h"}}}"#,
    r#"{"spec": {"limits": {"copyMiBPerSecond": 1, "readConcurrency": 2}}}"#,
    r#"{"spec": {"limits": {"writeConcurrency": 1, "verificationMiBPerSecond": 5}}}"#,
    r#"{"spec": {"onHistoryLost": "Stop"}}"#,
    r#"{"spec": {"apply": {"mode": "Parallel"}}}"#,
    r#"{"spec": {"deletionPolicy": "DeleteTarget"}}"#,
    r#"{"spec": {"source": {"readPreference": "Nearest"}}}"#,
    r#"{"spec": {"collections": {"onDeselected": "Drop"}}}"#,
    r#"{"spec": {"target": {"onExistingData": "Replace"}}}"#,
    r#"{"spec": {"collections": {"include": ["*"], "exclude": ["none*"]}}}"#,
    r#"{"spec": {"source": {"uriSecretRef": {"name": "same"}}}}"#,
    r#"{"spec": {"target": {"uriSecretRef": {"name": "same"}}}}"#,
];

#[tokio::test(flavor = "multi_thread")]
async fn every_edit_is_taken_up_in_every_phase_and_nothing_is_copied_again() {
    let (set, client) = servers().await;
    let cluster = Cluster::start().await;
    cluster.apply(&secret("mongo", &set.uri())).await;
    cluster.apply(&secret("same", &set.uri())).await;
    for source in ["live", "paused", "pending", "failed"] {
        fill(&client.database(source), "orders", 0, 200).await;
    }
    // Long enough to be copying for all of the test: 40 MiB at one a second.
    let large = client.database("copying").collection::<Document>("orders");
    for from in (0..40).step_by(4) {
        let documents = (from..from + 4).map(|n| doc! {"_id": n, "text": "x".repeat(1 << 20)});
        large.insert_many(documents).await.unwrap();
    }
    fill(&client.database("failed_backup"), "theirs", 0, 1).await;
    let slow = "  limits: {copyMiBPerSecond: 1}\n";
    cluster
        .apply(
            &[
                mirror("live", "mongo", "live", ""),
                mirror("paused", "mongo", "paused", ""),
                mirror("copying", "mongo", "copying", slow),
                mirror("pending", "missing", "pending", ""),
                mirror("failed", "mongo", "failed", ""),
            ]
            .concat(),
        )
        .await;
    cluster.wait("live", ".status.phase", "Mirroring").await;
    cluster.wait("paused", ".status.phase", "Mirroring").await;
    cluster
        .patch("paused", r#"{"spec": {"enabled": false}}"#)
        .await;
    cluster.wait("paused", ".status.phase", "Paused").await;
    cluster.wait("copying", ".status.phase", "Copying").await;
    cluster.wait("pending", REASON, "SecretNotFound").await;
    cluster.wait("failed", REASON, "TargetNotEmpty").await;
    let mut begun = Vec::new();
    for mirror in ["live", "copying"] {
        begun.push(cluster.field(mirror, ".status.initialSync.startedAt").await);
    }
    for edit in EDITS {
        for mirror in ["live", "paused", "copying", "pending", "failed"] {
            let is_end = edit.contains("Replace") || edit.contains("uriSecretRef");
            if is_end && mirror != "live" && mirror != "paused" && mirror != "copying" {
                continue;
            }
            cluster.patch(mirror, edit).await;
            observed(&cluster, mirror).await;
        }
        follows(&client, "live", "live_backup").await;
    }
    for (mirror, phase) in [
        ("live", "Mirroring"),
        ("paused", "Paused"),
        ("copying", "Copying"),
    ] {
        cluster.wait(mirror, ".status.phase", phase).await;
    }
    cluster.wait("pending", REASON, "SecretNotFound").await;
    cluster.wait("failed", REASON, "TargetNotEmpty").await;
    for (mirror, before) in ["live", "copying"].iter().zip(begun) {
        let now = cluster.field(mirror, ".status.initialSync.startedAt").await;
        assert_eq!(before, now, "{mirror} was not copied again");
    }
    // What each of them waited for.
    cluster
        .patch(
            "pending",
            r#"{"spec": {"source": {"uriSecretRef": {"name": "same"}}}}"#,
        )
        .await;
    cluster
        .patch(
            "failed",
            r#"{"spec": {"target": {"onExistingData": "Replace"}}}"#,
        )
        .await;
    cluster
        .patch("paused", r#"{"spec": {"enabled": true}}"#)
        .await;
    cluster
        .patch("copying", r#"{"spec": {"limits": null}}"#)
        .await;
    for mirror in ["live", "paused", "copying", "pending", "failed"] {
        cluster.wait(mirror, ".status.phase", "Mirroring").await;
        let target = format!("{mirror}_backup");
        follows(&client, mirror, &target).await;
        assert_equal(&client.database(mirror), &client.database(&target)).await;
    }
    // Back to what it was.
    cluster
        .patch(
            "live",
            r#"{"spec": {"collections": {"exclude": ["orders"]}}}"#,
        )
        .await;
    let live = client.database("live_backup");
    eventually("it is dropped", async || {
        names(&live).await.is_empty().then_some(())
    })
    .await;
    cluster
        .patch("live", r#"{"spec": {"collections": null}}"#)
        .await;
    follows(&client, "live", "live_backup").await;
    assert_equal(&client.database("live"), &live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_never_hangs_and_what_is_made_again_goes_on() {
    let (set, client) = servers().await;
    let cluster = Cluster::start().await;
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!(
        "mongodb://{}/?directConnection=true",
        silent.local_addr().unwrap()
    );
    cluster.apply(&secret("silent", &nobody)).await;
    cluster
        .apply(&secret("closed", "mongodb://127.0.0.1:1"))
        .await;
    cluster.apply(&secret("mongo", &set.uri())).await;
    let delete = async |name: &str| {
        let begun = tokio::time::Instant::now();
        cluster
            .kubectl(&["delete", "mongomirror", name, "--timeout=20s"])
            .await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{name}: {took:?}");
    };
    let unseen = mirror("unseen", "mongo", "unseen", "");
    for (name, manifest) in [
        ("silent", mirror("silent", "silent", "shop", "")),
        ("closed", mirror("closed", "closed", "shop", "")),
        ("missing", mirror("missing", "missing", "shop", "")),
        ("unseen", unseen),
    ] {
        cluster.apply(&manifest).await;
        if name != "unseen" {
            observed(&cluster, name).await;
        }
        delete(name).await;
    }
    // Its target is away: nobody waits for that, and it can be made again at once.
    let target = ReplicaSet::builder().start().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 100).await;
    cluster.apply(&secret("target", &target.uri())).await;
    let manifest = mirror(
        "shop",
        "mongo",
        "shop",
        "  target: {uriSecretRef: {name: target}}\n",
    );
    cluster.apply(&manifest).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let begun = cluster.field("shop", ".status.initialSync.startedAt").await;
    target.node(0).pause().unwrap();
    delete("shop").await;
    target.node(0).resume().unwrap();
    fill(&client.database("shop"), "orders", 1000, 100).await;
    cluster.apply(&manifest).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let copy = target.client().await.unwrap().database("shop_backup");
    let source = client.database("shop");
    eventually("it goes on", async || {
        let copies = copy.collection::<Document>("orders");
        let count = copies.count_documents(doc! {}).await.unwrap();
        (count == 200).then_some(())
    })
    .await;
    assert_equal(&source, &copy).await;
    let again = cluster.field("shop", ".status.initialSync.startedAt").await;
    assert_eq!(begun, again, "it went on from its checkpoint");

    // Its checkpoint is gone: what is there is nobody's, and is copied anew only where nothing is.
    let ended = || {
        let log = cluster.log();
        let is_it = |line: &&str| line.contains("ended for good") && line.contains("default/shop");
        log.lines().filter(is_it).count()
    };
    let before = ended();
    delete("shop").await;
    eventually("it has ended", async || (ended() > before).then_some(())).await;
    let notes = target.client().await.unwrap().database("mongomirror");
    let notes = notes.collection::<Document>("checkpoints");
    let gone = notes.delete_one(doc! {"_id": "shop_backup"}).await.unwrap();
    assert_eq!(gone.deleted_count, 1);
    fill(&source, "orders", 2000, 100).await;
    let left = hashes(&copy).await;
    cluster.apply(&manifest).await;
    cluster.wait("shop", REASON, "TargetNotEmpty").await;
    assert_eq!(hashes(&copy).await, left);
    copy.drop().await.unwrap();
    // Whatever is edited, it tries again at once.
    let edit = r#"{"spec": {"limits": {"readConcurrency": 2}}}"#;
    cluster.patch("shop", edit).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    assert_equal(&source, &copy).await;
    let anew = cluster.field("shop", ".status.initialSync.startedAt").await;
    assert_ne!(begun, anew, "it was copied anew");
}

/// A field of a later version, or a word of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_this_version_cannot_read_is_told_and_deleted_at_once() {
    let cluster = Cluster::start().await;
    let words =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/onHistoryLost/enum/-";
    let later = format!(r#"[{{"op": "add", "path": "{words}", "value": "Wait"}}]"#);
    let definition = ["patch", "crd", "mongomirrors.mongomirror.dev"];
    let patch = [&definition[..], &["--type=json", "-p", &later]].concat();
    cluster.kubectl(&patch).await;
    let manifest = mirror("later", "mongo", "shop", "  onHistoryLost: Wait\n");
    eventually("the API server goes by it", async || {
        let applied = cluster
            .plane
            .kubectl_stdin(&["apply", "-f", "-"], &manifest);
        applied.await.unwrap().success.then_some(())
    })
    .await;
    cluster.wait("later", REASON, "InvalidSpec").await;
    let said = cluster.field("later", ".status.message").await;
    assert!(said.contains("cannot be read by this version"), "{said}");
    let begun = tokio::time::Instant::now();
    let delete = ["delete", "mongomirror", "later", "--timeout=20s"];
    cluster.kubectl(&delete).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!cluster.log().contains("panicked"));
}

/// Two clusters, neither of which knows of the other.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_clusters_one_has_a_target_and_the_other_says_which() {
    let (set, client) = servers().await;
    let (source, copy) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 50).await;
    let (first, second) = tokio::join!(Cluster::start(), Cluster::start());
    let manifest = secret("mongo", &set.uri()) + &mirror("shop", "mongo", "shop", "");
    first.apply(&manifest).await;
    first.wait("shop", ".status.phase", "Mirroring").await;
    let holder = first.field("shop", ".metadata.uid").await;
    second.apply(&manifest).await;
    second.wait("shop", REASON, "TargetBusy").await;
    let said = second.field("shop", ".status.message").await;
    assert!(said.contains(&holder), "{said}");
    follows(&client, "shop", "shop_backup").await;
    assert_eq!(first.field("shop", READY).await, "True");
    // It goes on by itself when the other one has ended.
    first.kubectl(&["delete", "mongomirror", "shop"]).await;
    second.wait("shop", ".status.phase", "Mirroring").await;
    follows(&client, "shop", "shop_backup").await;
    assert_equal(&source, &copy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_deleted_only_if_the_spec_and_an_annotation_say_so() {
    let (set, client) = servers().await;
    let cluster = Cluster::start().await;
    cluster.apply(&secret("mongo", &set.uri())).await;
    for (name, confirmed, stays) in [
        ("unconfirmed", None, true),
        ("mistaken", Some("mistaken"), true),
        ("confirmed", Some("confirmed_backup"), false),
    ] {
        fill(&client.database(name), "orders", 0, 50).await;
        let policy = "  deletionPolicy: DeleteTarget\n";
        cluster.apply(&mirror(name, "mongo", name, policy)).await;
        cluster.wait(name, ".status.phase", "Mirroring").await;
        if let Some(database) = confirmed {
            let annotation = format!("mongomirror.dev/delete-target={database}");
            cluster
                .kubectl(&["annotate", "mongomirror", name, &annotation])
                .await;
        }
        cluster.kubectl(&["delete", "mongomirror", name]).await;
        let target = client.database(&format!("{name}_backup"));
        eventually("it has ended", async || {
            let log = cluster.log();
            let of_this = format!("default/{name}");
            let is_it = |line: &str| line.contains("ended for good") && line.contains(&of_this);
            log.lines().any(is_it).then_some(())
        })
        .await;
        assert_eq!(!names(&target).await.is_empty(), stays, "{name}");
        assert_eq!(names(&client.database(name)).await, ["orders"]);
    }
}

/// In whatever moment the operator dies, behind each of its writes to the API server in turn: the
/// next one goes on, and what it says is true.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_dies_behind_any_of_its_writes_is_followed_by_one_that_says_the_truth() {
    let (set, client) = servers().await;
    fill(&client.database("shop"), "orders", 0, 100).await;
    let mut cluster = Cluster::without_operator().await;
    cluster
        .apply(&(secret("mongo", &set.uri()) + &mirror("shop", "mongo", "shop", "")))
        .await;
    let mut survived = false;
    let mut longest = Duration::ZERO;
    for nth in 1..=20 {
        let environment = [("MONGOMIRROR_CRASH_API", nth.to_string())];
        cluster.start_operator_with(&environment);
        // What it has to write about.
        cluster
            .patch("shop", r#"{"spec": {"enabled": false}}"#)
            .await;
        let off = cluster.reaches("shop", ".status.phase", "Paused").await;
        cluster
            .patch("shop", r#"{"spec": {"enabled": true}}"#)
            .await;
        let token = format!("mongomirror.dev/verify={nth}");
        let annotate = ["annotate", "--overwrite", "mongomirror", "shop", &token];
        cluster.kubectl(&annotate).await;
        let on = cluster
            .reaches("shop", ".status.requests[0].state", "Done")
            .await;
        cluster.kill_operator().await;
        survived = off && on;
        assert!(nth > 1 || !survived, "it does not die where it is told to");

        let started = Instant::now();
        cluster.start_operator();
        cluster.wait("shop", ".status.phase", "Mirroring").await;
        cluster.wait("shop", READY, "True").await;
        cluster
            .wait("shop", ".status.requests[0].token", &nth.to_string())
            .await;
        cluster
            .wait("shop", ".status.requests[0].state", "Done")
            .await;
        observed(&cluster, "shop").await;
        follows(&client, "shop", "shop_backup").await;
        let took = started.elapsed();
        assert!(took < SOON, "behind write {nth}: {took:?}");
        longest = longest.max(took);
        cluster.kill_operator().await;
        if survived {
            break;
        }
    }
    assert!(survived, "there are more writes than were tried");
    eprintln!("all is true after {longest:?} at most");
    assert_equal(&client.database("shop"), &client.database("shop_backup")).await;
}
