//! The stream, where it goes on, and what must not happen between copy, stream and transactions.

mod common;

use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc};
use common::ddl::{position, set_position};
use common::gate::start_held_within_a_range;
use common::raw::{self, Fields, assert_same_bytes, run};
use common::servers::shared;
use common::{PATIENCE, assert_equal, caught_up, config, fill, mirroring, order, wait_for};
use futures::StreamExt;
use mongodb::options::{Acknowledgment, WriteConcern};
use mongodb::{Client, Database};
use mongomirror::engine::config::MirrorConfig;
use mongomirror::engine::position::{ClusterTime, ResumeToken};
use mongomirror::engine::progress::{ApplyForm, Phase};
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

on_both_versions!(
    a_mirror_goes_on_from_every_position_of_a_history,
    the_form_of_updates_can_be_changed_between_two_runs,
    killed_cursors_operations_and_sessions_lose_nothing,
    what_is_written_to_a_range_while_it_is_copied_arrives_once,
    transactions_arrive_as_a_whole_and_given_up_ones_not_at_all,
    writes_with_and_without_sessions_arrive,
    unique_values_that_wander_between_documents_arrive,
    writes_to_many_collections_in_one_batch_arrive,
    documents_that_a_validator_refuses_arrive,
    documents_outlive_their_time_on_the_target,
);

/// An event as the stream shows it: what it is, when, its token, its transaction.
#[derive(Debug)]
struct Seen {
    operation: String,
    time: ClusterTime,
    token: Document,
    transaction: Option<i64>,
}

/// All events of a database from this time until now.
async fn history(db: &Database, from: ClusterTime) -> Vec<Seen> {
    let now = now(db.client()).await;
    let mut seen = Vec::new();
    let mut start = doc! {"startAtOperationTime": bson::Timestamp::from(from)};
    loop {
        let mut stage = doc! {
            "showExpandedEvents": true,
            "showRawUpdateDescription": true,
            "showMigrationEvents": true,
        };
        stage.extend(start);
        let mut cursor = db
            .aggregate([doc! {"$changeStream": stage}])
            .max_await_time(Duration::from_millis(50))
            .batch()
            .await
            .unwrap();
        let mut last = None;
        while let Some(batch) = cursor.next().await {
            let reply = Document::try_from(batch.unwrap().as_raw_document()).unwrap();
            let reply = reply.get_document("cursor").unwrap();
            let events = ["firstBatch", "nextBatch"]
                .iter()
                .find_map(|name| reply.get_array(name).ok())
                .unwrap();
            for event in events.iter().filter_map(Bson::as_document) {
                let token = event.get_document("_id").unwrap().clone();
                last = Some(token.clone());
                seen.push(Seen {
                    operation: event.get_str("operationType").unwrap().to_owned(),
                    time: event.get_timestamp("clusterTime").unwrap().into(),
                    token,
                    transaction: event.get_i64("txnNumber").ok(),
                });
            }
            let token = reply.get_document("postBatchResumeToken").unwrap();
            let token = ResumeToken::from_raw(&RawDocumentBuf::try_from(token).unwrap());
            if token.cluster_time().unwrap() >= now {
                return seen;
            }
        }
        // An invalidate has ended the cursor.
        start = doc! {"startAfter": last.expect("an invalidate")};
    }
}

async fn now(client: &Client) -> ClusterTime {
    let ping = doc! {"ping": 1};
    let reply = client.database("admin").run_command(ping).await.unwrap();
    reply.get_timestamp("operationTime").unwrap().into()
}

async fn rename(client: &Client, from: &str, to: &str) {
    let command = doc! {"renameCollection": from, "to": to};
    client.database("admin").run_command(command).await.unwrap();
}

/// Documents, a transaction, commands, a dropped database, and documents again.
async fn live(client: &Client, db: &Database) {
    let orders = db.collection::<Document>("orders");
    orders.insert_one(order(1000)).await.unwrap();
    orders
        .update_one(
            doc! {"_id": 1},
            doc! {"$set": {"new": 1}, "$push": {"tags": "x"}},
        )
        .await
        .unwrap();
    orders.delete_one(doc! {"_id": 2}).await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for n in 2000..2003 {
        orders
            .insert_one(order(n))
            .session(&mut session)
            .await
            .unwrap();
    }
    session.commit_transaction().await.unwrap();
    let name = db.name();
    rename(
        client,
        &format!("{name}.orders"),
        &format!("{name}.renamed"),
    )
    .await;
    orders.insert_one(order(1)).await.unwrap();
    db.drop().await.unwrap();
    orders.insert_one(order(5)).await.unwrap();
    orders
        .replace_one(doc! {"_id": 5}, doc! {"a": 1})
        .await
        .unwrap();
}

async fn a_mirror_goes_on_from_every_position_of_a_history(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database("history"),
        client.database("history_backup"),
    );
    fill(&source, "orders", 0, 20).await;
    let config = config(&set.uri(), &set.uri(), "history");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    let from = now(&client).await;
    live(&client, &source).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
    let from = ClusterTime {
        increment: from.increment + 1,
        ..from
    };
    let history = history(&source, from).await;
    let operations: Vec<&str> = history.iter().map(|seen| seen.operation.as_str()).collect();
    for operation in [
        "rename",
        "drop",
        "dropDatabase",
        "invalidate",
        "create",
        "replace",
    ] {
        assert!(operations.contains(&operation), "{operations:?}");
    }
    for (place, seen) in history.iter().enumerate() {
        // Inside of a transaction no position is ever stored.
        let next = history.get(place + 1);
        if seen.transaction.is_some()
            && next.is_some_and(|next| next.transaction == seen.transaction)
        {
            continue;
        }
        eprintln!("from behind {} at {}", seen.operation, seen.time);
        let stored = doc! {
            "time": bson::Timestamp::from(seen.time),
            "after": seen.token.clone(),
        };
        goes_on_from(&config, &client, &stored).await;
    }
}

/// Sends a stopped mirror back to a position and proves that it ends up equal.
async fn goes_on_from(config: &MirrorConfig, client: &Client, stored: &Document) {
    set_position(client, config, stored).await;
    let mirror = MirrorHandle::start(config.clone());
    caught_up(&mirror, client).await;
    let source = client.database(&config.source.database);
    assert_equal(&source, &client.database(&config.target.database)).await;
    mirror.stop().await;
}

async fn the_form_of_updates_can_be_changed_between_two_runs(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("forms"), client.database("forms_backup"));
    fill(&source, "orders", 0, 50).await;
    let mut config = config(&set.uri(), &set.uri(), "forms");
    for (round, internal_delta) in [true, false, true, false].into_iter().enumerate() {
        config.limits.internal_delta = internal_delta;
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        // The stream is opened otherwise than in the run before, behind that run's last event.
        let orders = source.collection::<Document>("orders");
        let round = i32::try_from(round).unwrap();
        let change = doc! {"$set": {format!("field{round}"): round}, "$inc": {"total": 1}};
        orders.update_many(doc! {}, change).await.unwrap();
        let progress = caught_up(&mirror, &client).await;
        let expected = if internal_delta {
            ApplyForm::InternalDelta
        } else {
            ApplyForm::Refetch
        };
        assert_eq!(progress.apply_form, Some(expected));
        // The last thing before the end is an event and no empty reply.
        let change = doc! {"$set": {"last": round}};
        orders.update_one(doc! {"_id": 1}, change).await.unwrap();
        mirror.stop().await;
    }
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

async fn killed_cursors_operations_and_sessions_lose_nothing(version: Version) {
    let set = ReplicaSet::builder()
        .version(version)
        .start()
        .await
        .unwrap();
    let copy = ReplicaSet::builder()
        .version(version)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let source = client.database("shop");
    fill(&source, "orders", 0, 100).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &copy.uri(), "shop"));
    mirroring(&mirror).await;
    let admin = client.database("admin");
    let mut written = 0_u32;
    for round in 0..6 {
        for _ in 0..20 {
            let numbered = doc! {"insert": "numbers", "documents": [{"_id": i64::from(written)}]};
            source.run_command(numbered).await.unwrap();
            written += 1;
        }
        match round % 3 {
            0 => kill_streams(&admin).await,
            1 => {
                let kill = doc! {"killAllSessions": []};
                admin.run_command(kill).await.unwrap();
            }
            _ => close_streams(&admin).await,
        }
    }
    caught_up(&mirror, &client).await;
    let copy = copy.client().await.unwrap().database("shop_backup");
    assert_equal(&source, &copy).await;
    let last = mirror.stop().await;
    assert_eq!(
        (last.totals.inserts, last.totals.repaired),
        (u64::from(written), 0)
    );
}

/// Change streams of the database `shop`: running ones and ones that wait for their next turn.
async fn streams(admin: &Database) -> Vec<Document> {
    let stages = [
        doc! {"$currentOp": {"allUsers": true, "idleCursors": true}},
        doc! {"$match": {
            "$or": [{"ns": "shop.$cmd.aggregate"}, {"ns": {"$regex": "^shop"}}],
            "cursor": {"$exists": true},
        }},
    ];
    let mut cursor = admin.aggregate(stages).await.unwrap();
    let mut found = Vec::new();
    while let Some(operation) = cursor.next().await {
        found.push(operation.unwrap());
    }
    found
}

/// `killOp` for what reads the stream right now.
async fn kill_streams(admin: &Database) {
    let killing = async {
        loop {
            for operation in streams(admin).await {
                if let Some(id) = operation.get("opid") {
                    let kill = doc! {"killOp": 1, "op": id.clone()};
                    admin.run_command(kill).await.unwrap();
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, killing).await.unwrap();
}

/// `killCursors` for the stream.
async fn close_streams(admin: &Database) {
    let closing = async {
        loop {
            for operation in streams(admin).await {
                let cursor = operation.get_document("cursor").unwrap();
                let Ok(id) = cursor.get_i64("cursorId") else {
                    continue;
                };
                let shop = admin.client().database("shop");
                let kill = doc! {"killCursors": "$cmd.aggregate", "cursors": [id]};
                let reply = shop.run_command(kill).await.unwrap();
                if !reply.get_array("cursorsKilled").unwrap().is_empty() {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, closing).await.unwrap();
}

async fn what_is_written_to_a_range_while_it_is_copied_arrives_once(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database("zombies"),
        client.database("zombies_backup"),
    );
    // Several batches in one range.
    fill(&source, "orders", 0, 8000).await;
    // What the lane has read, it cannot write before the gate opens.
    let config = config(&set.uri(), &set.uri(), "zombies");
    let (mirror, gate) = start_held_within_a_range(&config, &client).await;
    let orders = source.collection::<Document>("orders");
    orders.delete_many(doc! {"quantity": 3}).await.unwrap();
    let change = doc! {"$set": {"status": "paid", "new": 1}, "$push": {"tags": "x"}};
    orders
        .update_many(doc! {"quantity": 4}, change)
        .await
        .unwrap();
    // Gone and back.
    orders.delete_many(doc! {"_id": {"$lt": 50}}).await.unwrap();
    fill(&source, "orders", 0, 20).await;
    fill(&source, "orders", 9000, 50).await;
    let read = wait_for(&mirror, "events are read", |now| {
        now.totals.events_read > 500
    })
    .await;
    assert_eq!(read.phase, Phase::Copying);
    gate.open().await;
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

async fn transactions_arrive_as_a_whole_and_given_up_ones_not_at_all(version: Version) {
    let set = ReplicaSet::builder()
        .version(version)
        .cache_gb(1.0)
        .start()
        .await
        .unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("shop"), client.database("shop_backup"));
    for name in ["left", "right"] {
        source.create_collection(name).await.unwrap();
    }
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "shop"));
    mirroring(&mirror).await;
    let watched = target.clone();
    let watching = tokio::spawn(async move {
        // A reader sees both halves of a transaction or none of it.
        let client = watched.client().clone();
        let mut session = client.start_session().snapshot(true).await.unwrap();
        loop {
            let mut found = [0, 0];
            for (name, found) in ["left", "right"].iter().zip(&mut found) {
                let half = watched.collection::<Document>(name);
                let count = half
                    .aggregate([doc! {"$count": "n"}])
                    .session(&mut session)
                    .await;
                let Ok(mut count) = count else {
                    // The snapshot's time is gone; the next one is newer.
                    *found = -1;
                    continue;
                };
                let first = count.next(&mut session).await;
                *found = first.map_or(0, |count| count.unwrap().get_i32("n").unwrap());
            }
            assert!(found[0] == found[1] || found.contains(&-1), "{found:?}");
            if found[0] == 90 {
                return;
            }
            session = client.start_session().snapshot(true).await.unwrap();
        }
    });
    let mut session = client.start_session().await.unwrap();
    for round in 0..6 {
        session.start_transaction().await.unwrap();
        for n in 0..15 {
            // Together 40 MB in one of them: several entries of the oplog.
            let size = if round == 4 { 1_350_000 } else { 100 };
            for name in ["left", "right"] {
                let half = source.collection::<Document>(name);
                let document = doc! {"_id": round * 100 + n, "text": "x".repeat(size)};
                half.insert_one(document)
                    .session(&mut session)
                    .await
                    .unwrap();
            }
        }
        session.commit_transaction().await.unwrap();
        // Another that is given up after it has written.
        session.start_transaction().await.unwrap();
        let half = source.collection::<Document>("left");
        half.insert_one(doc! {"_id": -1})
            .session(&mut session)
            .await
            .unwrap();
        half.delete_many(doc! {})
            .session(&mut session)
            .await
            .unwrap();
        session.abort_transaction().await.unwrap();
    }
    caught_up(&mirror, &client).await;
    tokio::time::timeout(PATIENCE, watching)
        .await
        .unwrap()
        .unwrap();
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert_eq!((last.totals.inserts, last.totals.deletes), (180, 0));
}

async fn writes_with_and_without_sessions_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database("sessions"),
        client.database("sessions_backup"),
    );
    let orders = source.collection::<Document>("orders");
    fill(&source, "orders", 0, 10).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "sessions"));
    mirroring(&mirror).await;
    // Retryable, as drivers do it by themselves.
    orders.insert_one(order(100)).await.unwrap();
    let change = doc! {"$set": {"status": "paid"}};
    orders
        .find_one_and_update(doc! {"_id": 1}, change)
        .await
        .unwrap();
    orders.find_one_and_delete(doc! {"_id": 2}).await.unwrap();
    // Without a session, and without a second try.
    let plain = doc! {"insert": "orders", "documents": [{"_id": 101}, {"_id": 102}]};
    source.run_command(plain).await.unwrap();
    // The same retryable write twice: the server does it once.
    let mut session = client.start_session().await.unwrap();
    for _ in 0..2 {
        let write = doc! {
            "update": "orders",
            "updates": [{"q": {"_id": 3}, "u": {"$inc": {"quantity": 1}}}],
            "txnNumber": 7_i64,
        };
        source
            .run_command(write)
            .session(&mut session)
            .await
            .unwrap();
    }
    // A transaction of one statement.
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    orders
        .insert_one(order(103))
        .session(&mut session)
        .await
        .unwrap();
    session.commit_transaction().await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    let totals = last.totals;
    assert_eq!((totals.inserts, totals.updates, totals.deletes), (4, 2, 1));
}

async fn unique_values_that_wander_between_documents_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("wander"), client.database("wander_backup"));
    let seats = source.collection::<Document>("seats");
    let documents = (0..20).map(|n| doc! {"_id": n, "k": n, "pad": "p".repeat(500)});
    seats.insert_many(documents).await.unwrap();
    let unique = doc! {"createIndexes": "seats", "indexes": [{"key": {"k": 1}, "name": "k", "unique": true}]};
    source.run_command(unique).await.unwrap();
    let config = config(&set.uri(), &set.uri(), "wander");
    let exchange = async || {
        for n in 0..20 {
            let other = (n + 7) % 20;
            let set = |id: i32, k: i32| (doc! {"_id": id}, doc! {"$set": {"k": k}});
            let mine = seats.find_one(doc! {"_id": n}).await.unwrap().unwrap();
            let theirs = seats.find_one(doc! {"_id": other}).await.unwrap().unwrap();
            let (mine, theirs) = (mine.get_i32("k").unwrap(), theirs.get_i32("k").unwrap());
            for (filter, update) in [set(n, -1), set(other, mine), set(n, theirs)] {
                seats.update_one(filter, update).await.unwrap();
            }
            // And by way of a document that goes and one that comes.
            seats.delete_one(doc! {"_id": n}).await.unwrap();
            let came = doc! {"_id": n + 100, "k": theirs, "pad": "q".repeat(500)};
            seats.insert_one(came).await.unwrap();
            seats.delete_one(doc! {"_id": n + 100}).await.unwrap();
            let back = doc! {"_id": n, "k": theirs, "pad": "p".repeat(500)};
            seats.insert_one(back).await.unwrap();
        }
    };
    for _ in 0..2 {
        // One after the other; then in one batch.
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        exchange().await;
        caught_up(&mirror, &client).await;
        assert_same_bytes(&source, &target, "seats").await;
        mirror.stop().await;
        exchange().await;
        let mirror = MirrorHandle::start(config.clone());
        caught_up(&mirror, &client).await;
        assert_equal(&source, &target).await;
        mirror.stop().await;
    }
}

async fn writes_to_many_collections_in_one_batch_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (client.database("many"), client.database("many_backup"));
    for n in 0..30 {
        let one = doc! {"insert": format!("c{n}"), "documents": [{"_id": 0}, {"_id": 1}]};
        source.run_command(one).await.unwrap();
    }
    let config = config(&set.uri(), &set.uri(), "many");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    mirror.stop().await;
    for round in 0..5 {
        for n in 0..30 {
            // The same ids everywhere.
            let name = format!("c{n}");
            for command in [
                doc! {"update": &name, "updates": [{"q": {"_id": 0}, "u": {"$inc": {"n": n}}}]},
                doc! {"insert": &name, "documents": [{"_id": 10 + round}]},
                doc! {"delete": &name, "deletes": [{"q": {"_id": 9 + round}, "limit": 1}]},
            ] {
                source.run_command(command).await.unwrap();
            }
        }
    }
    let mirror = MirrorHandle::start(config);
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
    assert!(last.totals.batches < 100, "{}", last.totals.batches);
}

async fn documents_that_a_validator_refuses_arrive(version: Version) {
    let set = shared(version).await;
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database("invalid"),
        client.database("invalid_backup"),
    );
    let create = doc! {
        "create": "c",
        "validator": {"ok": true, "$expr": {"$gt": ["$n", 0]}},
        "validationLevel": "strict",
        "validationAction": "error",
    };
    source.run_command(create).await.unwrap();
    let anyway = async |command: Document| {
        let mut command = command;
        command.insert("bypassDocumentValidation", true);
        let reply = source.run_command(command).await.unwrap();
        assert_eq!(reply.get_array("writeErrors").ok(), None);
    };
    let documents: Vec<Document> = (0..5).map(|n| doc! {"_id": n, "n": -n}).collect();
    anyway(doc! {"insert": "c", "documents": documents}).await;
    // One that plain inserts would rewrite.
    let zero = Fields::new().int("_id", 50).raw(0x11, "t", [0; 8]).finish();
    let put = raw::update("c", &zero, &raw::literal(&zero), true).raw(
        0x08,
        "bypassDocumentValidation",
        [1],
    );
    run(&source, put).await.unwrap();
    let mirror = MirrorHandle::start(config(&set.uri(), &set.uri(), "invalid"));
    mirroring(&mirror).await;
    anyway(doc! {"insert": "c", "documents": [{"_id": 10}, {"_id": 11, "$odd": 1}]}).await;
    for change in [
        bson::bson!({"$set": {"n": -100}}),
        bson::bson!({"$set": {"new": 1}, "$unset": {"n": ""}}),
        bson::bson!([{"$set": {"l": [1, 2]}}]),
        bson::bson!({"replaced": 1}),
    ] {
        anyway(doc! {"update": "c", "updates": [{"q": {"_id": 1}, "u": change}]}).await;
    }
    let zero = Fields::new().int("_id", 51).raw(0x11, "t", [0; 8]).finish();
    let put = raw::update("c", &zero, &raw::literal(&zero), true).raw(
        0x08,
        "bypassDocumentValidation",
        [1],
    );
    run(&source, put).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_eq!(assert_same_bytes(&source, &target, "c").await, 9);
    assert_equal(&source, &target).await;
    // It still holds for everybody else.
    let refused = doc! {"insert": "c", "documents": [{"_id": 99}]};
    let reply = run(&target, Fields::of(&refused)).await;
    assert_eq!(reply.err(), Some(121));
    mirror.stop().await;
}

async fn documents_outlive_their_time_on_the_target(version: Version) {
    // The source does not come to delete what has expired; the target would at once.
    let slow = ReplicaSet::builder()
        .version(version)
        .param("ttlMonitorEnabled", false);
    let quick = ReplicaSet::builder()
        .version(version)
        .param("ttlMonitorSleepSecs", 1);
    let (set, copies) = tokio::join!(slow.start(), quick.start());
    let (set, copies) = (set.unwrap(), copies.unwrap());
    let (client, copy) = (set.client().await.unwrap(), copies.client().await.unwrap());
    let (source, target) = (client.database("shop"), copy.database("shop_backup"));
    let clustered = doc! {"create": "clustered", "clusteredIndex": {"key": {"_id": 1}, "unique": true}, "expireAfterSeconds": 1};
    source.run_command(clustered).await.unwrap();
    let series =
        doc! {"create": "series", "timeseries": {"timeField": "t"}, "expireAfterSeconds": 1};
    source.run_command(series).await.unwrap();
    let ttl = |name: &str| doc! {"createIndexes": name, "indexes": [{"key": {"t": 1}, "name": "t", "expireAfterSeconds": 1}]};
    source.run_command(ttl("copied")).await.unwrap();
    let old = |n: i64| bson::DateTime::from_millis(n);
    let fill = async |name: &str, from: i64| {
        let documents: Vec<Document> = (from..from + 5)
            .map(|n| doc! {"_id": old(n), "t": old(n)})
            .collect();
        let insert = doc! {"insert": name, "documents": documents};
        source.run_command(insert).await.unwrap();
    };
    fill("copied", 0).await;
    fill("clustered", 0).await;
    fill("series", 0).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &copies.uri(), "shop"));
    mirroring(&mirror).await;
    source.run_command(ttl("later")).await.unwrap();
    let change = doc! {"collMod": "later", "index": {"name": "t", "expireAfterSeconds": 2}};
    source.run_command(change).await.unwrap();
    for name in ["copied", "clustered", "series", "later"] {
        fill(name, 100).await;
    }
    caught_up(&mirror, &client).await;
    // Two whole rounds of the target's own clock, on everything that is there now.
    let passes = async || {
        let status = doc! {"serverStatus": 1};
        let reply = copy.database("admin").run_command(status).await.unwrap();
        let metrics = reply.get_document("metrics").unwrap();
        metrics
            .get_document("ttl")
            .unwrap()
            .get_i64("passes")
            .unwrap()
    };
    let before = passes().await;
    let waiting = async {
        while passes().await < before + 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    for (name, count) in [("copied", 10), ("later", 5)] {
        assert_eq!(assert_same_bytes(&source, &target, name).await, count);
    }
    assert_equal(&source, &target).await;
    // What the source deletes in the end is deleted.
    let start = doc! {"setParameter": 1, "ttlMonitorEnabled": true};
    set.admin(start).await.unwrap();
    let delete = doc! {"delete": "copied", "deletes": [{"q": {}, "limit": 0}]};
    source.run_command(delete).await.unwrap();
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    mirror.stop().await;
}

/// Writes that only the primary has so far must not be missed, whichever of them the plan saw.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_begun_while_the_secondaries_are_frozen_misses_nothing() {
    let set = ReplicaSet::builder()
        .nodes(3)
        // The primary stays one while nobody answers it.
        .settings(doc! {"electionTimeoutMillis": 60_000})
        .start()
        .await
        .unwrap();
    let copies = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let (source, target) = (
        client.database("shop"),
        copies.client().await.unwrap().database("shop_backup"),
    );
    fill(&source, "orders", 0, 50).await;
    source
        .collection::<Document>("orders")
        .update_one(doc! {"_id": 0}, doc! {"$set": {"seen": 1}})
        .write_concern(WriteConcern::majority())
        .await
        .unwrap();
    let secondaries = set.secondaries().await;
    assert_eq!(secondaries.len(), 2);
    for index in &secondaries {
        set.node(*index).pause().unwrap();
    }
    let alone = async |n: i32| {
        source
            .collection::<Document>("orders")
            .insert_one(order(n))
            .write_concern(WriteConcern::builder().w(Acknowledgment::Nodes(1)).build())
            .await
            .unwrap();
    };
    alone(1000).await;
    let mirror = MirrorHandle::start(config(&set.uri(), &copies.uri(), "shop"));
    wait_for(&mirror, "connected", |now| now.connected()).await;
    for n in 1001..1010 {
        alone(n).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Nothing that could still be taken back is copied.
    let copied = target.collection::<Document>("orders");
    let early = copied.count_documents(doc! {"_id": {"$gte": 1000}}).await;
    assert_eq!(early.unwrap(), 0);
    for index in &secondaries {
        set.node(*index).resume().unwrap();
    }
    mirroring(&mirror).await;
    caught_up(&mirror, &client).await;
    assert_equal(&source, &target).await;
    assert_eq!(copied.count_documents(doc! {}).await.unwrap(), 60);
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0);
}

/// A stored position always has its documents with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_position_survives_the_targets_crash_together_with_its_documents() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let copies = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let source = client.database("shop");
    let config = config(&set.uri(), &copies.uri(), "shop");
    let mirror = MirrorHandle::start(config.clone());
    mirroring(&mirror).await;
    let copy = copies.client().await.unwrap();
    for round in 0..4 {
        let from = round * 3000;
        fill(&source, "orders", from, 3000).await;
        wait_for(&mirror, "half of it is there", |now| {
            now.totals.inserts > u64::try_from(from).unwrap() / 2 + 500
        })
        .await;
        copies.node(0).kill().await.unwrap();
        copies.node(0).restart().await.unwrap();
        copies.wait_for_primary().await.unwrap();
        // Read before the mirror comes back: what is stored, and what is there.
        let stored = position(&copy, &config).await;
        assert!(stored.get_timestamp("time").is_ok());
    }
    caught_up(&mirror, &client).await;
    assert_equal(&source, &copy.database("shop_backup")).await;
    let last = mirror.stop().await;
    assert_eq!(last.totals.repaired, 0, "the position was ahead or behind");
}
