//! Several operators of one cluster: one leads, the others stand by.

mod common;

use std::time::{Duration, Instant};

use bson::{Document, doc};
use common::cluster::{Cluster, Operator, mirror, secret};
use common::process::checkpoint;
use common::{assert_equal, eventually, fill};
use mongodb::{Client, Database};
use testbed::ReplicaSet;

const ELECTION: [&str; 3] = [
    "--leader-election",
    "--lease-namespace",
    "mongomirror-system",
];

/// What a Lease has to be without a word before it is taken.
const EXPIRY: Duration = Duration::from_secs(9);

/// A mirror of a server of its own, and operators that agree on who runs it.
struct Stage {
    cluster: Cluster,
    _set: ReplicaSet,
    client: Client,
    written: i32,
}

impl Stage {
    async fn start() -> Self {
        let set = ReplicaSet::builder().start().await.unwrap();
        let client = set.client().await.unwrap();
        fill(&client.database("shop"), "orders", 0, 50).await;
        let cluster = Cluster::without_operator().await;
        cluster.let_operators_agree().await;
        let manifest = secret("mongo", &set.uri()) + &mirror("shop", "mongo", "shop", "");
        cluster.apply(&manifest).await;
        Self {
            cluster,
            _set: set,
            client,
            written: 0,
        }
    }

    fn operator(&self, name: &str) -> Operator {
        self.cluster.another_operator(name, &ELECTION)
    }

    fn databases(&self) -> (Database, Database) {
        let database = |name| self.client.database(name);
        (database("shop"), database("shop_backup"))
    }

    /// Waits until what is written now arrives.
    async fn follows(&mut self) {
        let (source, target) = self.databases();
        self.written += 1;
        let document = doc! {"_id": 1000 + self.written};
        let orders = source.collection::<Document>("orders");
        orders.insert_one(document.clone()).await.unwrap();
        let copies = target.collection::<Document>("orders");
        eventually("it arrives", async || {
            copies.find_one(document.clone()).await.unwrap()
        })
        .await;
    }

    /// How many processes have run the mirror.
    async fn epoch(&self) -> i64 {
        let checkpoint = checkpoint(&self.client, "shop").await.unwrap();
        checkpoint.get_i64("epoch").unwrap()
    }

    async fn is_equal(&self) {
        let (source, target) = self.databases();
        assert_equal(&source, &target).await;
    }
}

/// Waits until the operator answers so.
async fn answers(operator: &Operator, status: &str, part: &str) -> String {
    let what = format!("it answers {status} {part}");
    eventually(&what, async || {
        let reply = operator.exchange("GET", "/api/v1/mirrors", "").await?;
        let is_it = reply.starts_with(&format!("HTTP/1.1 {status}")) && reply.contains(part);
        is_it.then_some(reply)
    })
    .await
}

async fn leads(operator: &Operator) {
    answers(operator, "200", "\"phase\":\"Mirroring\"").await;
}

async fn stands_by(operator: &Operator) -> String {
    answers(operator, "503", "stands by").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_when_the_leader_dies_and_at_once_when_it_ends() {
    let mut stage = Stage::start().await;
    let first = stage.operator("first");
    leads(&first).await;
    let second = stage.operator("second");
    answers(&second, "503", "ask the one that leads").await;
    let ready = second.exchange("GET", "/readyz", "").await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    stage.follows().await;
    assert_eq!(stage.epoch().await, 1, "only one runs the mirror");

    first.kill().await;
    let died = Instant::now();
    leads(&second).await;
    eprintln!("took over from a dead leader in {:?}", died.elapsed());
    stage.follows().await;
    assert_eq!(stage.epoch().await, 2);

    let third = stage.operator("third");
    stands_by(&third).await;
    second.stop().await;
    let ended = Instant::now();
    leads(&third).await;
    let took = ended.elapsed();
    eprintln!("took over from a leader that ended in {took:?}");
    assert!(took < EXPIRY, "it need not wait: {took:?}");
    stage.follows().await;
    stage.is_equal().await;
    assert_eq!(stage.epoch().await, 3);
    third.stop().await;
}

/// A leader that was frozen for long must not write any more when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_stands_by_when_it_goes_on() {
    let mut stage = Stage::start().await;
    let first = stage.operator("first");
    leads(&first).await;
    let second = stage.operator("second");
    stands_by(&second).await;
    first.pause();
    leads(&second).await;
    stage.follows().await;
    first.resume();
    stands_by(&first).await;
    stage.follows().await;
    leads(&second).await;
    stage.is_equal().await;
    let (first, second) = (first.log(), second.log());
    assert!(!first.contains("panicked") && !second.contains("panicked"));
}

/// Another one may lead by then, so nothing runs; and somebody leads when the server is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_the_api_server_stops_and_goes_on_with_it() {
    let mut stage = Stage::start().await;
    let operator = stage.operator("only");
    leads(&operator).await;
    stage.cluster.plane.pause_api_server().unwrap();
    answers(&operator, "503", "none leads yet").await;
    stage.cluster.plane.resume_api_server().unwrap();
    leads(&operator).await;
    stage.follows().await;
    stage.is_equal().await;
    assert_eq!(stage.epoch().await, 2);
    operator.stop().await;
}

/// What is missing is told, and nothing runs until it is there.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_may_not_use_leases_says_so_and_waits() {
    let cluster = Cluster::without_operator().await;
    let operator = cluster.another_operator("only", &ELECTION);
    eventually("it says what is missing", async || {
        let log = operator.log();
        log.contains("needs get, create and update on leases")
            .then_some(())
    })
    .await;
    let ready = operator.exchange("GET", "/readyz", "").await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    cluster.let_operators_agree().await;
    answers(&operator, "200", "{\"mirrors\":[]}").await;
    operator.stop().await;
}
