//! Several operators of one cluster: one leads, the others stand by.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bson::{DateTime, Document, doc};
use common::cluster::{Cluster, Operator, mirror, secret};
use common::process::checkpoint;
use common::{assert_equal, eventually, fill};
use futures::TryStreamExt;
use mongodb::{Client, Database};
use testbed::{Direction, Proxy, ReplicaSet};

const ELECTION: [&str; 3] = [
    "--leader-election",
    "--lease-namespace",
    "mongomirror-system",
];

/// What a Lease has to be without a word before it is taken.
const EXPIRY: Duration = Duration::from_secs(9);

/// A standby lets no more pass between two looks at the Lease: a second, give or take a fifth.
const LOOK: Duration = Duration::from_millis(1200);

/// For all else, on machines where much else runs: requests, and starting the mirror. It takes less
/// than a second on an idle one.
const BUSY: Duration = Duration::from_secs(5);

/// How long it takes to take over from a leader that says nothing any more: a look until its last
/// renewal is seen, the time that it is good for, and a look until that is found to be over.
const SECONDS: Duration = EXPIRY
    .saturating_add(LOOK.saturating_mul(2))
    .saturating_add(BUSY);

/// And from one that gave the Lease back. Less than the seven seconds that a Lease is good for
/// which was not given back: it was renewed two seconds ago at the most.
const AT_ONCE: Duration = LOOK.saturating_add(BUSY);

/// A leader that has lost the Lease ends its process if its mirrors have not stopped by then.
const STOP: Duration = Duration::from_millis(2500);

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

    async fn write(&mut self) -> Document {
        let (source, _) = self.databases();
        self.written += 1;
        let document = doc! {"_id": 1000 + self.written};
        let orders = source.collection::<Document>("orders");
        orders.insert_one(document.clone()).await.unwrap();
        document
    }

    /// Waits until what is written now arrives.
    async fn follows(&mut self) {
        let (_, target) = self.databases();
        let document = self.write().await;
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

    /// When the target or its state was written to since then, and in which session, as the server
    /// tells: each process has sessions of its own.
    async fn writes(&self, since: DateTime) -> Vec<(DateTime, String)> {
        let oplog = self
            .client
            .database("local")
            .collection::<Document>("oplog.rs");
        let ours = doc! {"$regex": r"^(shop_backup|mongomirror)\."};
        let namespaces = vec![doc! {"ns": ours.clone()}, doc! {"o.applyOps.ns": ours}];
        let by_session = doc! {"$exists": true};
        let filter = doc! {"wall": {"$gte": since}, "lsid": by_session, "$or": namespaces};
        let entries = oplog.find(filter).await.unwrap();
        let entries: Vec<Document> = entries.try_collect().await.unwrap();
        let write = |entry: &Document| {
            let session = entry.get_document("lsid").unwrap().get("id").unwrap();
            (*entry.get_datetime("wall").unwrap(), session.to_string())
        };
        entries.iter().map(write).collect()
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
    let took = died.elapsed();
    eprintln!("took over from a dead leader in {took:?}");
    assert!(took < SECONDS, "it is not within seconds: {took:?}");
    stage.follows().await;
    assert_eq!(stage.epoch().await, 2);

    let third = stage.operator("third");
    stands_by(&third).await;
    second.stop().await;
    let ended = Instant::now();
    leads(&third).await;
    let took = ended.elapsed();
    eprintln!("took over from a leader that ended in {took:?}");
    assert!(took < AT_ONCE, "it need not wait: {took:?}");
    stage.follows().await;
    stage.is_equal().await;
    assert_eq!(stage.epoch().await, 3);
    third.stop().await;
}

/// Behind the first write it has the Lease, and behind the others it has said something or renewed it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_behind_one_of_its_writes_is_followed_by_one_that_says_the_truth() {
    let mut stage = Stage::start().await;
    for nth in 1..=4 {
        let name = format!("dies-{nth}");
        let operator = stage
            .cluster
            .another_operator_that_dies(&name, &ELECTION, nth);
        operator.dies().await;
        let died = Instant::now();
        let next = stage.operator(&format!("follows-{nth}"));
        leads(&next).await;
        let took = died.elapsed();
        assert!(took < SECONDS, "behind write {nth}: it took {took:?}");
        stage.follows().await;
        let (phase, ready) = (
            ".status.phase",
            r#".status.conditions[?(@.type=="Ready")].status"#,
        );
        stage.cluster.wait("shop", phase, "Mirroring").await;
        stage.cluster.wait("shop", ready, "True").await;
        // The next one need not wait for a dead leader.
        next.stop().await;
    }
    stage.is_equal().await;
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

/// How a leader can lose the API server.
#[derive(Clone, Copy, Debug)]
enum Network {
    Refuses,
    /// What is sent arrives when it is healed: also a renewal, late.
    Swallows,
}

impl Network {
    fn breaks(self, proxy: &Proxy) {
        match self {
            Self::Refuses => proxy.cut(),
            Self::Swallows => {
                proxy.hold(Direction::ToServer);
                proxy.hold(Direction::ToClient);
            }
        }
    }
}

/// When the operator logged this last.
fn logged(operator: &Operator, what: &str) -> DateTime {
    let log = operator.log();
    let line = log.lines().rfind(|line| line.contains(what));
    let line = line.unwrap_or_else(|| panic!("no {what} in {log}"));
    let time = line.split_whitespace().next().unwrap();
    DateTime::parse_rfc3339_str(time).unwrap()
}

async fn runs_mirrors(operator: &Operator) -> bool {
    let reply = operator.exchange("GET", "/api/v1/mirrors", "").await;
    reply.expect("it listens").starts_with("HTTP/1.1 200")
}

/// The leader alone loses the API server, while the source is written to. Both are asked without a
/// pause until the standby runs the mirror.
async fn hands_over(
    stage: &mut Stage,
    (leader, proxy): (&Operator, &Proxy),
    standby: &Operator,
    how: Network,
) {
    answers(standby, "503", "ask the one that leads").await;
    let begun = DateTime::now();
    stage.follows().await;
    how.breaks(proxy);
    let (cut, cut_at) = (Instant::now(), DateTime::now());
    let mut stopped = None;
    eventually("the standby runs the mirror", async || {
        stage.write().await;
        let is_taken = runs_mirrors(standby).await;
        // Asked last, so that it ran after the other did.
        if !runs_mirrors(leader).await {
            stopped.get_or_insert(cut.elapsed());
        } else {
            assert!(!is_taken, "both run it");
            assert!(stopped.is_none(), "it goes on without the API server");
        }
        is_taken.then_some(())
    })
    .await;
    leads(standby).await;
    let took = cut.elapsed();
    stage.follows().await;

    let lost = logged(leader, "the Lease is lost; stopping the mirrors");
    let leading = logged(standby, " leading lease=");
    assert!(lost < leading, "lost at {lost}, led at {leading}");
    let writes = stage.writes(begun).await;
    let (before, after): (Vec<_>, Vec<_>) =
        writes.into_iter().partition(|(when, _)| *when < leading);
    let (last, _) = before.iter().max().unwrap();
    let (first, _) = after.iter().min().unwrap();
    let silence = first.saturating_duration_since(*last);
    eprintln!(
        "{how:?}: stopped after {stopped:?}, taken over after {took:?}, nothing written for \
         {silence:?}"
    );
    assert!(*last > cut_at, "it wrote until it stopped");
    let wrote_on = last.saturating_duration_since(lost);
    assert!(wrote_on < STOP, "it wrote on for {wrote_on:?}");
    let (before, after) = (sessions(&before), sessions(&after));
    assert!(before.is_disjoint(&after), "{before:?}, then {after:?}");
    assert!(took < SECONDS, "it is not within seconds: {took:?}");
}

fn sessions(writes: &[(DateTime, String)]) -> BTreeSet<&str> {
    writes.iter().map(|(_, session)| session.as_str()).collect()
}

/// Whoever cannot know whether another leads stops before another may.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_alone_loses_the_api_server_stops_before_a_standby_starts() {
    let mut stage = Stage::start().await;
    let through_proxy = stage
        .cluster
        .another_operator_through_proxy("first", &ELECTION);
    let (first, proxy) = through_proxy.await;
    leads(&first).await;
    for (how, epoch) in [(Network::Refuses, 2), (Network::Swallows, 4)] {
        let standby = stage.operator(&format!("{how:?}"));
        hands_over(&mut stage, (&first, &proxy), &standby, how).await;
        proxy.heal();
        answers(&first, "503", "ask the one that leads").await;
        stage.follows().await;
        leads(&standby).await;
        stage.is_equal().await;
        assert_eq!(stage.epoch().await, epoch, "{how:?}");
        // It is as good as any other again.
        standby.stop().await;
        leads(&first).await;
    }
    assert!(!first.log().contains("panicked"));
    first.stop().await;
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
