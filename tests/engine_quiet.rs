//! A source that nobody writes to is left in peace, and what happens on it all the same is told at
//! once.

mod common;

use std::time::Duration;

use bson::{Document, doc};
use common::{assert_equal, caught_up, config, eventually, fill, mirroring, start};
use futures::future::join_all;
use mongodb::Client;
use mongomirror::engine::connection::probe::operation_time;
use mongomirror::engine::connection::shared::Clients;
use mongomirror::engine::error::Side;
use mongomirror::runner::MirrorHandle;
use testbed::Version;

const DATABASES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// So long a stream is asked less and less, and a mirror compares both sides after its copy.
const SETTLED: Duration = Duration::from_secs(4);

const MEASURED: Duration = Duration::from_secs(5);

/// How many replies of streams, and how many commands, the server was asked for.
async fn asked(client: &Client) -> (i64, i64) {
    let status = doc! {"serverStatus": 1, "metrics": 0, "wiredTiger": 0};
    let status = client.database("admin").run_command(status).await.unwrap();
    let counters = status.get_document("opcounters").unwrap();
    let count = |name| match counters.get(name) {
        Some(bson::Bson::Int32(count)) => i64::from(*count),
        Some(bson::Bson::Int64(count)) => *count,
        other => panic!("{other:?}"),
    };
    (count("getmore"), count("command"))
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_mirrors_ask_once_a_second_and_hear_at_once() {
    let (source, client) = start(Version::V6_0_27).await;
    let (target, target_client) = start(Version::V6_0_27).await;
    for database in DATABASES {
        fill(&client.database(database), "orders", 0, 10).await;
    }
    let clients = Clients::default();
    let start = |database| {
        MirrorHandle::start_among(config(&source.uri(), &target.uri(), database), &clients)
    };
    let mirrors: Vec<_> = DATABASES.into_iter().map(start).collect();
    for mirror in &mirrors {
        mirroring(mirror).await;
    }
    tokio::time::sleep(SETTLED).await;
    let before = asked(&client).await;
    tokio::time::sleep(MEASURED).await;
    let after = asked(&client).await;
    let (replies, commands) = (after.0 - before.0, after.1 - before.1);
    let once_a_second = 8 * 5;
    println!("{replies} replies, {commands} commands");
    assert!(replies <= once_a_second * 3 / 2, "{replies} replies");
    // Two questions a second for all of them, and what the servers and drivers ask by themselves.
    assert!(commands <= once_a_second, "{commands} commands");

    // A transaction is over when the next reply says so.
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let orders = client.database("a").collection::<Document>("orders");
    for n in 100..110 {
        orders
            .insert_one(doc! {"_id": n})
            .session(&mut session)
            .await
            .unwrap();
    }
    session.commit_transaction().await.unwrap();
    let copied = target_client
        .database("a_backup")
        .collection::<Document>("orders");
    eventually("the transaction is there", async || {
        let count = copied.count_documents(doc! {}).await.unwrap();
        assert!([10, 20].contains(&count), "{count} documents");
        (count == 20).then_some(())
    })
    .await;
    for (database, mirror) in DATABASES.iter().zip(&mirrors) {
        caught_up(mirror, &client).await;
        let backup = target_client.database(&format!("{database}_backup"));
        assert_equal(&client.database(database), &backup).await;
    }
    join_all(mirrors.into_iter().map(MirrorHandle::stop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_missed_nothing_is_live_without_waiting_for_a_change() {
    let (source, client) = start(Version::V6_0_27).await;
    let (target, _) = start(Version::V6_0_27).await;
    fill(&client.database("shop"), "orders", 0, 10).await;
    let start = || MirrorHandle::start(config(&source.uri(), &target.uri(), "shop"));
    let time = async || operation_time(&client, Side::Source).await.unwrap();
    let mirror = start();
    caught_up(&mirror, &client).await;
    mirror.stop().await;
    // A server writes to its oplog now and then, though nobody asks it to: about every ten seconds.
    for _ in 0..5 {
        let before = time().await;
        let mirror = start();
        mirroring(&mirror).await;
        let after = time().await;
        caught_up(&mirror, &client).await;
        mirror.stop().await;
        if before == after {
            return;
        }
    }
    panic!("it was never live before something happened");
}
