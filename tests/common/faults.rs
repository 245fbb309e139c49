//! What can happen to a server and to the network before it, while a mirror runs.

use std::time::Duration;

use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::Client;
use mongomirror::engine::progress::Progress;
use mongomirror::runner::MirrorHandle;
use testbed::{Direction, Node, Proxy};

use super::{PATIENCE, wait_for};

/// How long a fault lasts that shall only be survived.
const MOMENT: Duration = Duration::from_secs(1);

/// Bytes after which a message is torn: within a header, within a body, between two messages.
const TORN: [u64; 6] = [1, 15, 40, 700, 5_000, 60_000];

/// Waits until the target holds something that is written to the source now, which nobody else
/// writes: whatever was wrong is over. Direct clients of both sides.
pub async fn healed(mirror: &MirrorHandle, source: &Client, target: &Client, database: &str) {
    let marker = doc! {"_id": bson::oid::ObjectId::new()};
    let collection = source.database(database).collection::<Document>("markers");
    let inserted = async {
        // The server may just be coming back.
        while collection.insert_one(marker.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, inserted)
        .await
        .expect("the source takes no writes");
    let copy = target.database(&format!("{database}_backup"));
    let copies = copy.collection::<Document>("markers");
    let arrived = async {
        while !matches!(copies.find_one(marker.clone()).await, Ok(Some(_))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, arrived).await.is_err() {
        panic!("not healed: {:#?}", mirror.progress().borrow().clone());
    }
}

/// Waits until the mirror shows a problem of this kind.
pub async fn has_problem(mirror: &MirrorHandle, reasons: &[&str]) -> Progress {
    wait_for(mirror, &format!("one of {reasons:?}"), |progress| {
        progress
            .problem
            .as_ref()
            .is_some_and(|problem| reasons.contains(&problem.reason.as_str()))
    })
    .await
}

/// Every fault of the network, one after the other; `healed` is awaited after each.
pub async fn network(proxy: &Proxy, mut healed: impl AsyncFnMut(&str)) {
    proxy.close();
    healed("closed connections").await;

    proxy.cut();
    tokio::time::sleep(MOMENT).await;
    proxy.heal();
    healed("a cut").await;

    for direction in [Direction::ToServer, Direction::ToClient] {
        proxy.hold(direction);
        tokio::time::sleep(MOMENT).await;
        proxy.heal();
        healed("one direction held").await;
        // And what was held never arrives.
        proxy.hold(direction);
        tokio::time::sleep(MOMENT).await;
        proxy.close();
        proxy.heal();
        healed("one direction lost").await;
    }

    proxy.delay(Duration::from_millis(60));
    healed("a slow network").await;
    proxy.heal();

    for direction in [Direction::ToServer, Direction::ToClient] {
        for bytes in TORN {
            for connection in proxy.connections() {
                connection.truncate(direction, bytes);
            }
            healed("torn messages").await;
        }
    }
}

/// The operations of mirrors at a server, as `$currentOp` shows them.
async fn operations(client: &Client, filter: Document) -> Vec<Document> {
    let pipeline = [
        doc! {"$currentOp": {"allUsers": true, "idleCursors": true, "idleSessions": false}},
        doc! {"$match": {"appName": "mongomirror"}},
        doc! {"$match": filter},
    ];
    let cursor = client.database("admin").aggregate(pipeline).await;
    cursor.unwrap().try_collect().await.unwrap()
}

/// What an administrator can do to the mirror's operations; returns what was hit.
pub async fn kill_operations(client: &Client) -> u32 {
    let admin = client.database("admin");
    let mut hit = 0;
    for operation in operations(client, doc! {"type": "op"}).await {
        if let Some(id) = operation.get("opid") {
            admin
                .run_command(doc! {"killOp": 1, "op": id})
                .await
                .unwrap();
            hit += 1;
        }
    }
    hit
}

/// Kills the mirror's cursors, its change stream's among them; returns how many.
pub async fn kill_cursors(client: &Client) -> u32 {
    let mut hit = 0;
    let with_cursor = doc! {"cursor.cursorId": {"$exists": true}};
    for operation in operations(client, with_cursor).await {
        let (Ok(cursor), Ok(namespace)) =
            (operation.get_document("cursor"), operation.get_str("ns"))
        else {
            continue;
        };
        let Some((database, collection)) = namespace.split_once('.') else {
            continue;
        };
        let command = doc! {"killCursors": collection, "cursors": [cursor.get("cursorId")]};
        let killed = client.database(database).run_command(command).await;
        hit += u32::from(killed.is_ok_and(|reply| {
            reply
                .get_array("cursorsKilled")
                .is_ok_and(|killed| !killed.is_empty())
        }));
    }
    hit
}

/// Everything that ends what runs at a server without ending the server.
pub async fn interruptions(node: &Node, mut healed: impl AsyncFnMut(&str)) {
    let client = node.client().await.unwrap();
    let admin = client.database("admin");
    let some = async {
        while kill_operations(&client).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, some)
        .await
        .expect("nothing to kill");
    healed("killed operations").await;

    admin
        .run_command(doc! {"killAllSessions": []})
        .await
        .unwrap();
    healed("killed sessions").await;

    node.pause().unwrap();
    tokio::time::sleep(MOMENT).await;
    node.resume().unwrap();
    healed("a frozen server").await;

    node.kill().await.unwrap();
    tokio::time::sleep(MOMENT).await;
    node.restart().await.unwrap();
    healed("a killed server").await;

    node.restart().await.unwrap();
    healed("a restarted server").await;
}
