//! The resource as its users meet it: what `kubectl` refuses, explains, selects and describes.

mod common;

use bson::{Document, doc};
use common::cluster::{Cluster, mirror, secret};
use common::fill;
use testbed::ReplicaSet;

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_with_what_to_write_instead() {
    let cluster = Cluster::start().await;
    let of = |database: &str, more: &str| mirror("m", "s", database, more);
    let target = |fields: &str| of("shop", &format!("  target: {{{fields}}}\n"));
    let collections = |fields: &str| of("shop", &format!("  collections: {{{fields}}}\n"));
    let long = "x".repeat(60);
    let table = [
        (of("admin", ""), "name a database of yours"),
        (of("Config", ""), "name a database of yours"),
        (target("database: LOCAL"), "write another name"),
        (target("database: mongomirror"), "write another name"),
        (
            target("database: shop"),
            "set spec.target.database to another name",
        ),
        (
            target("database: Shop"),
            "set spec.target.database to another name",
        ),
        (
            target("database: shop, uriSecretRef: {name: s}"),
            "spec.target.uriSecretRef to another deployment",
        ),
        (of(&long, ""), "set spec.target.database"),
        (of("a.b", ""), "as `show dbs` prints it"),
        (target("database: a b"), "as `show dbs` prints it"),
        (target("stateDatabase: a/b"), "as `show dbs` prints it"),
        (of("\"\"", ""), "spec.source.database"),
        (of(&"x".repeat(64), "  target: {database: small}\n"), "63"),
        (
            collections("include: [\"\"]"),
            "spec.collections.include[0]",
        ),
        (
            collections("include: [orders, \"^carts$\"]"),
            "write collections' names; * stands for any characters",
        ),
        (
            collections("exclude: [\"a\\0b\"]"),
            "write collections' names",
        ),
        (collections("exclude: orders"), "spec.collections.exclude"),
        (of("shop", "  enabled: \"yes\"\n"), "spec.enabled"),
        (
            of("shop", "  onHistoryLost: Wait\n"),
            "\"Resync\", \"Stop\"",
        ),
        (
            of("shop", "  verification: {interval: often}\n"),
            "write a duration as 24h, 90m or 1h30m",
        ),
        (
            of("shop", "  verification: {interval: 30s}\n"),
            "a minute is the least, 1m",
        ),
        (
            of("shop", "  limits: {verificationMiBPerSecond: 0}\n"),
            "spec.limits.verificationMiBPerSecond",
        ),
        (
            mirror("m", "Not_A_Name", "shop", ""),
            "write the name of a Secret in the MongoMirror's namespace",
        ),
        (
            target("uriSecretRef: {name: s, key: a b}"),
            "write a key of the Secret",
        ),
        (
            target("tls: {caSecretRef: {name: _}}"),
            "write the name of a Secret",
        ),
    ];
    let table = table.into_iter().chain([
        (target("stateDatabase: Shop_Backup"), "a name of its own"),
        (target("stateDatabase: shop"), "a name of its own"),
        (target("stateDatabase: Local"), "belong to MongoDB"),
    ]);
    for (manifest, sentence) in table {
        let said = cluster.refused(&manifest).await;
        assert!(said.contains(sentence), "{manifest}\n{said}");
    }
    // What is next to it is taken.
    let elsewhere = "  target: {database: shop, uriSecretRef: {name: s, key: other}}\n";
    for (name, manifest) in [
        ("m1", of(&"x".repeat(56), "")),
        ("m2", of(&long, "  target: {database: small}\n")),
        ("m3", of("shop", elsewhere)),
    ] {
        let manifest = manifest.replacen("{name: m}", &format!("{{name: {name}}}"), 1);
        cluster.apply(&manifest).await;
    }
    // Both databases stay for good; a default that is written out is no change.
    cluster.apply(&of("shop", "")).await;
    cluster.apply(&target("database: shop_backup")).await;
    cluster.apply(&target("stateDatabase: mongomirror")).await;
    cluster.apply(&of("shop", "")).await;
    for (manifest, sentence) in [
        (
            of("other", "  target: {database: shop_backup}\n"),
            "the source's database",
        ),
        (
            target("database: another"),
            "the target's database cannot be changed",
        ),
        (
            target("stateDatabase: another"),
            "the state database cannot be changed",
        ),
    ] {
        let said = cluster.refused(&manifest).await;
        assert!(said.contains(sentence), "{manifest}\n{said}");
        assert!(said.contains("create another MongoMirror"), "{said}");
    }

    let explained = cluster
        .kubectl(&["explain", "mongomirror.spec.target.database"])
        .await;
    assert!(
        explained.contains("<source database>_backup"),
        "{explained}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_told_in_events_and_found_by_fields() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let source = client.database("shop");
    fill(&source, "orders", 0, 50).await;
    let cluster = Cluster::start().await;
    cluster
        .apply(&(mirror("good", "mongo", "shop", "") + &mirror("lost", "none", "other", "")))
        .await;
    let stalled = ".status.conditions[?(@.type==\"Ready\")].reason";
    cluster.wait("lost", stalled, "SecretNotFound").await;
    cluster.apply(&secret("mongo", &set.uri())).await;
    cluster.wait("good", ".status.phase", "Mirroring").await;
    let verified = ".status.conditions[?(@.type==\"Verified\")].reason";
    cluster.wait("good", verified, "Equal").await;
    let off = r#"{"spec":{"enabled":false}}"#;
    let patch = ["patch", "mgm", "good", "--type=merge", "-p", off];
    cluster.kubectl(&patch).await;
    cluster.wait("good", ".status.phase", "Paused").await;

    // In the order in which they came; each once, however often the status was written.
    let template = "jsonpath={range .items[*]}{.eventTime} {.type} {.reason}{\"\\n\"}{end}";
    let by_name = "--field-selector=regarding.name=good";
    let list = ["get", "events.events.k8s.io", by_name, "-o", template];
    let wanted = [
        "Warning SecretNotFound",
        "Normal Mirroring",
        "Normal Verified",
        "Normal Paused",
    ];
    let told = common::eventually("all events are there", async || {
        let mut lines: Vec<String> = cluster
            .kubectl(&list)
            .await
            .lines()
            .map(ToOwned::to_owned)
            .collect();
        lines.sort();
        let told: Vec<String> = lines
            .iter()
            .filter_map(|line| Some(line.split_once(' ')?.1.to_owned()))
            .collect();
        told.contains(&wanted[3].to_owned()).then_some(told)
    })
    .await;
    let mut left = told.iter();
    for one in wanted {
        assert!(left.any(|told| told == one), "{one} is not among {told:?}");
        assert_eq!(
            told.iter().filter(|told| *told == one).count(),
            1,
            "{told:?}"
        );
    }

    let names = async |selector: &str| {
        let selector = format!("--field-selector={selector}");
        cluster
            .kubectl(&["get", "mgm", &selector, "-o", "name"])
            .await
    };
    assert_eq!(
        names("status.phase=Paused,spec.source.database=shop")
            .await
            .trim(),
        "mongomirror.mongomirror.dev/good"
    );
    assert_eq!(names("status.dbName=nothing").await.trim(), "");
    let described = cluster.kubectl(&["describe", "mgm", "good"]).await;
    assert!(described.contains("Verified"), "{described}");
    let orders = client
        .database("shop_backup")
        .collection::<Document>("orders");
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 50);
}
