//! From `kubectl apply` to a live copy: a real API server, real mongods, the real binary.

mod common;

use bson::{Document, doc};
use common::cluster::{Cluster, mirror, secret};
use common::{PATIENCE, assert_equal, fill};
use mongodb::{Client, Database};
use testbed::{ReplicaSet, Standalone};

/// Waits until the target has every write of the source, as the checkpoint tells.
async fn caught_up(source: &Client, target: &Client, database: &str) {
    let ping = doc! {"ping": 1};
    let reply = source.database("admin").run_command(ping).await.unwrap();
    let now = reply.get_timestamp("operationTime").unwrap();
    let checkpoints: mongodb::Collection<Document> =
        target.database("mongomirror").collection("checkpoints");
    let reached = async {
        loop {
            let found = checkpoints.find_one(doc! {"_id": database}).await.unwrap();
            let position = found.and_then(|checkpoint| {
                let position = checkpoint.get_document("position").ok()?;
                position.get_timestamp("time").ok()
            });
            if position.is_some_and(|at| (at.time, at.increment) >= (now.time, now.increment)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached)
        .await
        .expect("the target never caught up");
}

async fn writes_of_many_kinds(db: &Database, from: i32) {
    let orders = db.collection::<Document>("orders");
    fill(db, "orders", from, 100).await;
    orders
        .update_many(
            doc! {"_id": {"$gte": from}},
            doc! {"$set": {"status": "paid"}, "$push": {"tags": "x"}},
        )
        .await
        .unwrap();
    orders
        .replace_one(doc! {"_id": from}, doc! {"z": 1, "a": 2})
        .await
        .unwrap();
    orders
        .update_one(
            doc! {"_id": from + 1},
            vec![doc! {"$set": {"total": {"$add": ["$total", 1]}}}],
        )
        .await
        .unwrap();
    orders.delete_one(doc! {"_id": from + 2}).await.unwrap();
    orders
        .update_one(doc! {"_id": from + 5000}, doc! {"$set": {"upserted": true}})
        .upsert(true)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_mirror_copies_follows_pauses_and_goes_on() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database("ordersDB"),
        client.database("ordersDB_backup"),
    );
    fill(&source, "orders", 0, 3000).await;
    let mut cluster = Cluster::start().await;

    let manifest = secret("orders", &set.uri()) + &mirror("orders", "orders", "ordersDB", "");
    cluster.apply(&manifest).await;
    cluster.wait("orders", ".status.phase", "Mirroring").await;
    cluster
        .kubectl(&[
            "wait",
            "mongomirror",
            "orders",
            "--for=condition=Ready",
            "--timeout=30s",
        ])
        .await;
    writes_of_many_kinds(&source, 10_000).await;
    caught_up(&client, &client, "ordersDB_backup").await;
    assert_equal(&source, &target).await;

    let table = cluster.kubectl(&["get", "mgm"]).await;
    let (header, row) = table.split_once('\n').unwrap();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(header),
        [
            "NAME",
            "ENABLED",
            "PHASE",
            "CONNECTED",
            "DBNAME",
            "LAG",
            "READY",
            "HEARTBEAT",
            "AGE"
        ]
    );
    assert_eq!(
        words(row)[..5],
        ["orders", "true", "Mirroring", "true", "ordersDB_backup"]
    );
    let status = cluster.http("/api/v1/mirrors/default/orders").await;
    assert!(
        status.contains("\"dbName\":\"ordersDB_backup\""),
        "{status}"
    );
    assert!(cluster.http("/metrics").await.contains("mongomirror_"));
    assert!(cluster.http("/healthz").await.starts_with("HTTP/1.1 200"));

    // Switched off: nothing arrives. Switched on: everything does, without a new copy.
    let patch = |on: bool| format!("{{\"spec\":{{\"enabled\":{on}}}}}");
    cluster
        .kubectl(&[
            "patch",
            "mgm",
            "orders",
            "--type=merge",
            "-p",
            &patch(false),
        ])
        .await;
    cluster.wait("orders", ".status.phase", "Paused").await;
    assert_eq!(cluster.field("orders", ".status.connected").await, "false");
    writes_of_many_kinds(&source, 20_000).await;
    let absent = target
        .collection::<Document>("orders")
        .find_one(doc! {"_id": 20_000})
        .await;
    assert_eq!(absent.unwrap(), None);
    cluster
        .kubectl(&["patch", "mgm", "orders", "--type=merge", "-p", &patch(true)])
        .await;
    cluster.wait("orders", ".status.phase", "Mirroring").await;
    caught_up(&client, &client, "ordersDB_backup").await;
    assert_equal(&source, &target).await;

    // Killed and started again: it goes on.
    cluster.kill_operator().await;
    writes_of_many_kinds(&source, 30_000).await;
    cluster.start_operator();
    caught_up(&client, &client, "ordersDB_backup").await;
    assert_equal(&source, &target).await;

    // Deleted: the data stays. Applied again: it goes on from the checkpoint.
    cluster
        .kubectl(&["delete", "mgm", "orders", "--timeout=30s"])
        .await;
    writes_of_many_kinds(&source, 40_000).await;
    assert!(
        target
            .collection::<Document>("orders")
            .count_documents(doc! {})
            .await
            .unwrap()
            > 3000
    );
    cluster.apply(&manifest).await;
    cluster.wait("orders", ".status.phase", "Mirroring").await;
    caught_up(&client, &client, "ordersDB_backup").await;
    assert_equal(&source, &target).await;
    assert!(!cluster.log().contains("panicked"));
}

/// The value of the target's TTL index.
async fn expires_after(target: &Database) -> Option<i32> {
    use futures::TryStreamExt;
    let list = doc! {"listIndexes": "sessions"};
    let cursor = target.run_cursor_command(list).await.ok()?;
    let indexes: Vec<Document> = cursor.try_collect().await.unwrap();
    let after = |index: &Document| index.get_i32("expireAfterSeconds").ok();
    indexes.iter().find_map(after)
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    common::eventually(what, async || holds().await.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_ask_for_documents_and_verifications_and_a_deleted_mirror_arms_its_target() {
    const ASK: &str = "/api/v1/mirrors/default/shop";
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    fill(&source, "orders", 0, 50).await;
    let expires = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 1_000_000};
    let index = doc! {"createIndexes": "sessions", "indexes": [expires]};
    source.run_command(index).await.unwrap();
    let mut cluster = Cluster::start().await;
    let manifest = secret("mongo", &set.uri()) + &mirror("shop", "mongo", "shop", "");
    cluster.apply(&manifest).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    until("it is verified", async || {
        let verified = cluster
            .field("shop", ".status.verification.documents")
            .await;
        verified == "50"
    })
    .await;
    assert_eq!(expires_after(&target).await, Some(i32::MAX));

    let copies = target.collection::<Document>("orders");
    for id in [7, 8] {
        copies.delete_one(doc! {"_id": id}).await.unwrap();
    }
    let body = r#"{"collection": "orders", "filter": {"_id": {"$in": [6, 7]}}}"#;
    let synced = cluster.post(&format!("{ASK}/sync"), body).await;
    let counts = r#"{"matched":2,"written":1,"deleted":0,"unchanged":1,"refused":0}"#;
    assert!(synced.ends_with(counts), "{synced}");
    let verified = cluster.post(&format!("{ASK}/verify"), "").await;
    assert!(
        verified.contains(r#""differences":1"#) && verified.contains(r#""repaired":1"#),
        "{verified}"
    );
    let refused = cluster.http(&format!("{ASK}/quarantine")).await;
    assert!(refused.ends_with(r#"{"documents":[]}"#), "{refused}");
    assert_equal(&source, &target).await;

    // What the target refuses is listed, with the server's words, until it takes it.
    let index = doc! {"key": {"a": 1, "b": 1}, "name": "theirs"};
    let theirs = doc! {"createIndexes": "orders", "indexes": [index]};
    target.run_command(theirs).await.unwrap();
    let orders = source.collection::<Document>("orders");
    let arrays = doc! {"_id": 900, "a": [1, 2], "b": [3, 4]};
    orders.insert_one(arrays).await.unwrap();
    cluster
        .wait("shop", ".status.quarantinedDocuments", "1")
        .await;
    let refused = cluster.http(&format!("{ASK}/quarantine")).await;
    for said in [
        r#""_id":"900""#,
        "parallel arrays",
        r#""attempts":"#,
        r#""firstRefused":"#,
        r#""lastRefused":"#,
    ] {
        assert!(refused.contains(said), "{said} is not in {refused}");
    }
    let degraded = ".status.conditions[?(@.type==\"Degraded\")].reason";
    cluster.wait("shop", degraded, "DocumentsRefused").await;
    copies.drop_index("theirs").await.unwrap();
    cluster.wait("shop", degraded, "AsExpected").await;
    assert_equal(&source, &target).await;

    // The same by annotations.
    copies.delete_one(doc! {"_id": 9}).await.unwrap();
    let wish = r#"mongomirror.dev/sync={"collection": "orders", "filter": {"_id": {"$lt": 10}}}"#;
    let annotate = ["annotate", "mgm", "shop", wish, "mongomirror.dev/verify=1"];
    cluster.kubectl(&annotate).await;
    for kind in ["Sync", "Verify"] {
        let state = format!(".status.requests[?(@.kind==\"{kind}\")].state");
        cluster.wait("shop", &state, "Done").await;
    }
    let result = |kind: &str| format!(".status.requests[?(@.kind==\"{kind}\")].result");
    let synced = cluster.field("shop", &result("Sync")).await;
    assert_eq!(
        synced,
        "10 matched: 1 written, 0 deleted, 9 unchanged, 0 refused"
    );
    let verified = cluster.field("shop", &result("Verify")).await;
    assert!(verified.starts_with("51 documents compared"), "{verified}");
    assert_equal(&source, &target).await;
    cluster
        .kubectl(&["annotate", "mgm", "shop", "mongomirror.dev/resync=1"])
        .await;
    let resynced = ".status.requests[?(@.kind==\"Resync\")].state";
    cluster.wait("shop", resynced, "Done").await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    assert_equal(&source, &target).await;
    let again = [
        "annotate",
        "--overwrite",
        "mgm",
        "shop",
        "mongomirror.dev/sync=now",
    ];
    cluster.kubectl(&again).await;
    let state = ".status.requests[?(@.kind==\"Sync\")].state";
    cluster.wait("shop", state, "Refused").await;

    // What is left of the oplog is told by an operator that has only known the mirror paused.
    let off = r#"{"spec":{"enabled":false}}"#;
    cluster
        .kubectl(&["patch", "mgm", "shop", "--type=merge", "-p", off])
        .await;
    cluster.wait("shop", ".status.phase", "Paused").await;
    cluster.kill_operator().await;
    let measured = cluster
        .field("shop", ".status.oplogHeadroom.measuredAt")
        .await;
    cluster.start_operator();
    until("the oplog is measured", async || {
        let now = cluster
            .field("shop", ".status.oplogHeadroom.measuredAt")
            .await;
        !now.is_empty() && now != measured
    })
    .await;
    // Also by the operator that found them done.
    let template = "jsonpath={range .items[*]}{.type} {.reason}{.series.count}{\"\\n\"}{end}";
    let list = ["get", "events.events.k8s.io", "-o", template];
    let wanted = [
        "Normal Synced",
        "Normal ResyncBegun",
        "Warning RequestRefused",
    ];
    for one in wanted {
        until(one, async || cluster.kubectl(&list).await.contains(one)).await;
    }
    let told = cluster.kubectl(&list).await;
    for one in wanted {
        let of_it = told.lines().filter(|line| line.starts_with(one));
        assert_eq!(of_it.collect::<Vec<_>>(), [one], "once: {told}");
    }
    cluster
        .kubectl(&["delete", "mgm", "shop", "--timeout=30s"])
        .await;
    until("the target is armed", async || {
        expires_after(&target).await == Some(1_000_000)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mirrors_go_on_while_the_api_server_is_away() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let mut manifest = secret("mongo", &set.uri());
    for database in ["first", "second"] {
        fill(&client.database(database), "orders", 0, 500).await;
        manifest += &mirror(database, "mongo", database, "");
    }
    let cluster = Cluster::start().await;
    cluster.apply(&manifest).await;
    for database in ["first", "second"] {
        cluster.wait(database, ".status.phase", "Mirroring").await;
    }
    cluster.plane.stop_api_server().await.unwrap();
    for database in ["first", "second"] {
        writes_of_many_kinds(&client.database(database), 10_000).await;
        let copy = format!("{database}_backup");
        caught_up(&client, &client, &copy).await;
        assert_equal(&client.database(database), &client.database(&copy)).await;
    }
    cluster.plane.start_api_server().await.unwrap();
    let before = cluster.field("first", ".status.consistentAt").await;
    // The status is true again once the server is back.
    let refreshed = async {
        while cluster.field("first", ".status.consistentAt").await == before {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refreshed)
        .await
        .expect("the status stayed old");
    assert_eq!(cluster.field("second", ".status.phase").await, "Mirroring");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_answered_with_a_reason_and_disturbs_nobody() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let guarded = ReplicaSet::builder().auth(true).start().await.unwrap();
    let standalone = Standalone::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 50).await;
    fill(&client.database("full"), "orders", 0, 5).await;
    let cluster = Cluster::start().await;
    let wrong = guarded.uri_as("root", "canary-s3cret");
    let nowhere = "mongodb://user:canary-s3cret@no-such-host.invalid:27017/";
    let manifest = [
        secret("good", &set.uri()),
        secret("wrong-password", &wrong),
        secret("nowhere", nowhere),
        secret("broken", "mongo//canary-s3cret@x"),
        secret("standalone", &standalone.uri()),
        "apiVersion: v1\nkind: Secret\nmetadata: {name: other-key}\nstringData: {url: x}\n---\n"
            .into(),
        mirror("good", "good", "shop", ""),
        mirror("empty", "good", "not_there_yet", ""),
        mirror("no-secret", "missing", "shop", "  target: {database: t1}\n"),
        mirror("no-key", "other-key", "shop", "  target: {database: t2}\n"),
        mirror("broken", "broken", "shop", "  target: {database: t3}\n"),
        mirror("nowhere", "nowhere", "shop", "  target: {database: t4}\n"),
        mirror(
            "wrong-password",
            "wrong-password",
            "shop",
            "  target: {database: t5}\n",
        ),
        mirror(
            "standalone",
            "standalone",
            "shop",
            "  target: {database: t6}\n",
        ),
        mirror("full", "good", "shop", "  target: {database: full}\n"),
    ]
    .concat();
    cluster.apply(&manifest).await;
    for (name, reason, hint) in [
        ("no-secret", "SecretNotFound", "missing"),
        ("no-key", "SecretKeyMissing", "uri"),
        ("broken", "InvalidUri", "mongodb://"),
        ("nowhere", "SourceUnreachable", "host"),
        ("wrong-password", "AuthenticationFailed", "password"),
        ("standalone", "NotReplicaSet", "--replSet"),
        ("full", "TargetNotEmpty", "full"),
    ] {
        cluster
            .wait(
                name,
                ".status.conditions[?(@.type==\"Ready\")].reason",
                reason,
            )
            .await;
        let message = cluster.field(name, ".status.message").await;
        assert!(message.contains(hint), "{name}: {message}");
    }
    for name in ["good", "empty"] {
        cluster.wait(name, ".status.phase", "Mirroring").await;
    }
    let mut names = client.list_database_names().await.unwrap();
    names.retain(|name| !["admin", "config", "local"].contains(&name.as_str()));
    names.sort();
    assert_eq!(names, ["full", "mongomirror", "shop", "shop_backup"]);
    let everything = cluster.kubectl(&["get", "mgm", "-o", "yaml"]).await
        + &cluster.log()
        + &cluster.http("/api/v1/mirrors").await
        + &cluster.http("/metrics").await;
    assert!(!everything.contains("canary"), "a credential was shown");
    // A Secret that appears later is noticed.
    cluster.apply(&secret("missing", &set.uri())).await;
    cluster
        .wait("no-secret", ".status.phase", "Mirroring")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_during_the_copy_goes_on_with_what_is_left_of_it() {
    let set = ReplicaSet::builder().cache_gb(1.0).start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    // Three ranges and more, so that some are done and some are not.
    fill(&source, "orders", 0, 160_000).await;
    let mut cluster = Cluster::start().await;
    cluster
        .apply(&(secret("shop", &set.uri()) + &mirror("shop", "shop", "shop", "")))
        .await;
    cluster.wait("shop", ".status.phase", "Copying").await;
    cluster.kill_operator().await;
    writes_of_many_kinds(&source, 200_000).await;
    cluster.start_operator();
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    caught_up(&client, &client, "shop_backup").await;
    assert_equal(&source, &target).await;
    assert!(!cluster.log().contains("not as the source left them"));
}
