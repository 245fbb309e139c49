//! Mirrors of one connection string share their connections, and nothing else: what one of them
//! goes through is not felt by the others.

mod common;

use bson::{Document, doc};
use common::workload::Workload;
use common::{assert_equal, caught_up, config, fill, fresh_seed, mirroring, start, wait_for};
use futures::future::join_all;
use mongodb::Client;
use mongomirror::engine::connection::shared::Clients;
use mongomirror::runner::MirrorHandle;
use testbed::{ReplicaSet, Version};

const DATABASES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// So many of them, the first ones, do not run through.
const BEGIN_ANEW: usize = 3;

fn start_all(server: &ReplicaSet, clients: Option<&Clients>) -> Vec<MirrorHandle> {
    let start = |database: &&str| {
        let config = config(&server.uri(), &server.uri(), database);
        match clients {
            Some(clients) => MirrorHandle::start_among(config, clients),
            None => MirrorHandle::start(config),
        }
    };
    DATABASES.iter().map(start).collect()
}

/// The next insert into this collection fails as nothing that a document could be blamed for.
async fn fail_once(client: &Client, namespace: &str) {
    let fails = doc! {
        "configureFailPoint": "failCommand",
        "mode": {"times": 1},
        "data": {"failCommands": ["insert"], "namespace": namespace, "errorCode": 8},
    };
    client.database("admin").run_command(fails).await.unwrap();
}

async fn connections(client: &Client) -> i32 {
    let status = doc! {"serverStatus": 1};
    let status = client.database("admin").run_command(status).await.unwrap();
    let connections = status.get_document("connections").unwrap();
    connections.get_i32("current").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_mirrors_need_few_connections_and_close_them_in_the_end() {
    let (server, client) = start(Version::V6_0_27).await;
    for database in DATABASES {
        fill(&client.database(database), "orders", 0, 10).await;
    }
    let mut needed = Vec::new();
    for clients in [None, Some(&Clients::default())] {
        let before = connections(&client).await;
        let mirrors = start_all(&server, clients);
        for mirror in &mirrors {
            mirroring(mirror).await;
            caught_up(mirror, &client).await;
        }
        needed.push(connections(&client).await - before);
        join_all(mirrors.into_iter().map(MirrorHandle::stop)).await;
        common::eventually("all connections are closed", async || {
            (connections(&client).await <= before).then_some(())
        })
        .await;
    }
    let [alone, together] = needed[..] else {
        unreachable!("measured twice")
    };
    assert!(together * 2 < alone, "{together} instead of {alone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_that_begin_anew_disturb_none_of_the_others() {
    let (server, client) = start(Version::V6_0_27).await;
    let seed = fresh_seed();
    println!("seed {seed}");
    for database in DATABASES {
        fill(&client.database(database), "orders", 0, 100).await;
    }
    let clients = Clients::default();
    let mut mirrors = start_all(&server, Some(&clients));
    for mirror in &mirrors {
        mirroring(mirror).await;
    }
    let writes = DATABASES.map(|database| Workload::start(&client, database, seed, 1, false));
    let calm = |mirrors: &[MirrorHandle]| -> u64 {
        let retries = |mirror: &MirrorHandle| mirror.progress().borrow().totals.retries;
        mirrors[BEGIN_ANEW..].iter().map(retries).sum()
    };
    for _ in 0..4 {
        // One ends in order; the others with sessions that anybody may get next.
        let stopping = mirrors.remove(0);
        stopping.stop().await;
        let again = config(&server.uri(), &server.uri(), DATABASES[0]);
        mirrors.insert(0, MirrorHandle::start_among(again, &clients));
        for (database, mirror) in DATABASES[..BEGIN_ANEW].iter().zip(&mirrors).skip(1) {
            let before = mirror.progress().borrow().totals.retries;
            fail_once(&client, &format!("{database}_backup.markers")).await;
            let markers = client.database(database).collection::<Document>("markers");
            markers.insert_one(doc! {}).await.unwrap();
            wait_for(mirror, "begun anew", |now| now.totals.retries > before).await;
        }
        for mirror in &mirrors[..BEGIN_ANEW] {
            mirroring(mirror).await;
        }
    }
    assert_eq!(calm(&mirrors), 0, "others were disturbed");
    for load in writes {
        load.stop().await;
    }
    for (database, mirror) in DATABASES.iter().zip(&mirrors) {
        caught_up(mirror, &client).await;
        let target = client.database(&format!("{database}_backup"));
        assert_equal(&client.database(database), &target).await;
    }
    join_all(mirrors.into_iter().map(MirrorHandle::stop)).await;
}
