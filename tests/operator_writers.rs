//! Who writes to the API server, and how often: the operator little, others in vain, a leader of
//! yesterday nothing that lasts.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Operator, mirror, secret};
use common::history::{History, Version};
use common::{eventually, fill};
use mongodb::Client;
use mongomirror::resource::status::{ConditionStatus, Phase, condition};
use testbed::{Direction, ReplicaSet, Request};

const REASON: &str = r#".status.conditions[?(@.type=="Ready")].reason"#;

/// "Within seconds", on machines where much else runs.
const SECONDS: Duration = Duration::from_secs(15);

async fn servers() -> (ReplicaSet, Client) {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    (set, client)
}

/// Mirrors of databases with a few documents, each live before the next.
async fn live(cluster: &Cluster, set: &ReplicaSet, client: &Client, names: &[&str]) {
    cluster.apply(&secret("mongo", &set.uri())).await;
    for name in names {
        fill(&client.database(name), "orders", 0, 20).await;
        cluster.apply(&mirror(name, "mongo", name, "")).await;
        cluster.wait(name, ".status.phase", "Mirroring").await;
    }
}

/// What somebody who has no business there says.
const NONSENSE: &str = r#"{"status": {
    "observedGeneration": 99, "phase": "Failed", "enabled": false, "connected": false, "lag": "9d",
    "message": "nonsense", "quarantinedDocuments": 7, "applyForm": "Refetch",
    "verification": {"time": "2020-01-01T00:00:00Z", "consistentAt": "2020-01-01T00:00:00Z",
        "collections": 1, "documents": 1, "bytes": 1, "differences": 9, "repaired": 0,
        "duration": "1s"},
    "unsupported": [{"name": "nonsense", "reason": "nonsense"}],
    "conditions": [{"type": "Ready", "status": "False", "reason": "Nonsense", "message": "nonsense",
        "lastTransitionTime": "2020-01-01T00:00:00Z"}]
}}"#;

async fn talk_nonsense(cluster: &Cluster, mirror: &str) {
    let patch = ["patch", "mgm", mirror, "--subresource=status"];
    let patch = [&patch[..], &["--type=merge", "-p", NONSENSE]].concat();
    cluster.kubectl(&patch).await;
}

/// What of the status must not come from others.
fn essence(version: &Version) -> impl PartialEq + std::fmt::Debug + use<> {
    let status = version.status.clone();
    let conditions = status.conditions.into_iter();
    let conditions: Vec<_> = conditions
        .map(|it| (it.type_, it.status, it.reason, it.last_transition_time.0))
        .collect();
    (
        (status.observed_generation, status.phase, status.enabled),
        (status.connected, status.unsupported),
        (status.quarantined_documents, status.verification),
        (status.apply_form, conditions),
    )
}

/// How often the operator wrote so far, by what it wrote to.
fn writes(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut writes = BTreeMap::new();
    for request in cluster.plane.operator_requests().unwrap() {
        if ["get", "list", "watch"].contains(&&*request.verb) {
            continue;
        }
        // An event's name begins with its mirror's.
        let name = request.name.split('.').next().unwrap_or_default();
        let resource = request.resource.split('/').next().unwrap_or_default();
        *writes.entry(format!("{resource} {name}")).or_default() += 1;
    }
    writes
}

/// How often it wrote to a mirror's status.
fn status_writes(cluster: &Cluster, mirror: &str) -> usize {
    let writes = writes(cluster);
    let of_it = writes.get(&format!("mongomirrors {mirror}"));
    of_it.copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_into_a_status_is_overwritten_soon_and_without_a_war() {
    let (set, client) = servers().await;
    let mut cluster = Cluster::audited(None).await;
    cluster.start_operator();
    live(&cluster, &set, &client, &["live", "paused"]).await;
    let verified = r#".status.conditions[?(@.type=="Verified")].reason"#;
    cluster.wait("live", verified, "Equal").await;
    cluster
        .patch("paused", r#"{"spec": {"enabled": false}}"#)
        .await;
    cluster.wait("paused", ".status.phase", "Paused").await;
    eventually("its oplog is watched", async || {
        let time = cluster.field("paused", ".status.oplogHeadroom.time").await;
        (!time.is_empty()).then_some(())
    })
    .await;
    for name in ["live", "paused"] {
        let history = History::of(&cluster.plane, name).await;
        let before = essence(&history.versions()[0]);
        let begun = Instant::now();
        let written = status_writes(&cluster, name);
        talk_nonsense(&cluster, name).await;
        eventually("the truth is back", async || {
            let since = history.since(begun);
            let nonsense = since.iter().any(|it| it.status.message == "nonsense");
            let now = essence(since.last()?);
            let is_back = since.last()?.status.message != "nonsense" && now == before;
            (nonsense && is_back).then_some(())
        })
        .await;
        let took = begun.elapsed();
        let few = status_writes(&cluster, name) - written;
        eprintln!("{name}: the truth was back after {took:?}, by {few} writes");
        assert!(took < SECONDS, "{name}: the truth was back after {took:?}");
        assert!(few <= 6, "{name}: {few} writes");

        let begun = Instant::now();
        let written = status_writes(&cluster, name);
        let mut rude = 0;
        while begun.elapsed() < Duration::from_secs(10) {
            talk_nonsense(&cluster, name).await;
            rude += 1;
        }
        let answers = status_writes(&cluster, name) - written;
        eprintln!(
            "{name}: {answers} writes against {rude} in {:?}",
            begun.elapsed()
        );
        assert!(rude > 10, "this is no war: {rude}");
        let bound = 6 + 2 * begun.elapsed().as_secs() / 3;
        assert!(answers as u64 <= bound, "{name}: {answers} writes");
        eventually("the truth is back", async || {
            (essence(history.versions().last()?) == before).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_while_nothing_changes_and_little_while_something_is_wrong() {
    let (set, client) = servers().await;
    let mut cluster = Cluster::audited(None).await;
    cluster.start_operator();
    cluster.apply(&secret("mongo", &set.uri())).await;
    // Nobody listens there, ever.
    cluster
        .apply(&secret("nowhere", "mongodb://127.0.0.1:1"))
        .await;
    let target = "  target: {uriSecretRef: {name: nowhere}}\n";
    for name in ["live", "paused", "refused", "nowhere"] {
        fill(&client.database(name), "orders", 0, 20).await;
    }
    fill(&client.database("refused_backup"), "theirs", 0, 1).await;
    cluster
        .apply(
            &[
                mirror("live", "mongo", "live", ""),
                mirror("paused", "mongo", "paused", ""),
                mirror("refused", "mongo", "refused", ""),
                mirror("nosecret", "missing", "nosecret", ""),
                mirror("nosource", "nowhere", "nosource", ""),
                mirror("notarget", "mongo", "nowhere", target),
            ]
            .concat(),
        )
        .await;
    cluster.wait("paused", ".status.phase", "Mirroring").await;
    cluster
        .patch("paused", r#"{"spec": {"enabled": false}}"#)
        .await;
    for (name, reason) in [
        ("live", "Mirroring"),
        ("paused", "Suspended"),
        ("refused", "TargetNotEmpty"),
        ("nosecret", "SecretNotFound"),
        ("nosource", "SourceUnreachable"),
        ("notarget", "TargetUnreachable"),
    ] {
        cluster.wait(name, REASON, reason).await;
    }
    let verified = r#".status.conditions[?(@.type=="Verified")].reason"#;
    cluster.wait("live", verified, "Equal").await;
    // What has just happened is told, its numbers a little later.
    tokio::time::sleep(Duration::from_secs(12)).await;

    let before = writes(&cluster);
    let requests = cluster.plane.operator_requests().unwrap().len();
    let window = Duration::from_secs(40);
    tokio::time::sleep(window).await;
    let requests = cluster.plane.operator_requests().unwrap().len() - requests;
    let mut during = writes(&cluster);
    for (what, count) in &before {
        *during.get_mut(what).unwrap() -= count;
    }
    during.retain(|_, count| *count > 0);
    eprintln!("in {window:?}: {requests} requests, of them writes {during:#?}");
    let of = |name: &str| {
        let of_it = during.iter().filter(|(what, _)| what.ends_with(name));
        of_it.map(|(_, count)| *count).sum::<usize>()
    };
    // The time as of which its target is equal moves on.
    assert!(of("live") <= 6, "{during:#?}");
    // How long the oplog lasts is rounded, but that of a young server grows.
    assert!(of("paused") <= 2, "{during:#?}");
    assert_eq!(of("nosecret"), 0, "{during:#?}");
    let events = during.keys().filter(|what| what.starts_with("events"));
    assert_eq!(events.count(), 0, "{during:#?}");
    for wrong in ["refused", "nosource", "notarget"] {
        // When it is tried next.
        assert!(of(wrong) <= 5, "{wrong}: {during:#?}");
        let next = cluster.field(wrong, ".status.nextAttempt").await;
        let next: k8s_openapi::jiff::Timestamp = next.parse().expect("the next attempt");
        let away = next.duration_until(k8s_openapi::jiff::Timestamp::now());
        assert!(away.abs().as_secs() < 60, "{wrong}: {next}");
        let message = cluster.field(wrong, ".status.message").await;
        eprintln!("{wrong}: {message}");
    }
}

const ELECTION: [&str; 3] = [
    "--leader-election",
    "--lease-namespace",
    "mongomirror-system",
];

async fn leads(operator: &Operator) {
    eventually("it leads", async || {
        let reply = operator.exchange("GET", "/api/v1/mirrors", "").await?;
        reply.contains("\"phase\"").then_some(())
    })
    .await;
}

/// It is frozen with a status under way, and wakes when another one leads and has said otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_woken_leader_still_writes_does_not_last() {
    let (set, client) = servers().await;
    let mut cluster = Cluster::without_operator().await;
    cluster.let_operators_agree().await;
    cluster.apply(&secret("mongo", &set.uri())).await;
    for name in ["paused", "live"] {
        fill(&client.database(name), "orders", 0, 20).await;
        cluster.apply(&mirror(name, "mongo", name, "")).await;
    }
    let proxy = cluster.through_proxy().await;
    let first = cluster.another_operator("first", &ELECTION);
    for name in ["paused", "live"] {
        cluster.wait(name, ".status.phase", "Mirroring").await;
    }
    let _way = cluster.through_proxy().await;
    let second = cluster.another_operator("second", &ELECTION);
    let paused = History::of(&cluster.plane, "paused").await;
    let live = History::of(&cluster.plane, "live").await;

    // What the first one sends from now on is on its way.
    proxy.hold(Direction::ToServer);
    let edit = r#"{"spec": {"verification": {"interval": "1h"}}}"#;
    cluster.patch("paused", edit).await;
    // It answers an edit within moments; its writes are given up after five seconds.
    tokio::time::sleep(Duration::from_secs(2)).await;
    first.pause();
    leads(&second).await;
    let pause = r#"{"spec": {"enabled": false}}"#;
    cluster.patch("paused", pause).await;
    cluster.wait("paused", ".status.phase", "Paused").await;
    cluster.wait("live", ".status.phase", "Mirroring").await;

    let woken = Instant::now();
    proxy.heal();
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.resume();
    eventually("the first one stands by", async || {
        let reply = first.exchange("GET", "/api/v1/mirrors", "").await?;
        reply.contains("stands by").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let is_true_of_paused = |it: &Version| {
        let status = &it.status;
        status.phase == Phase::Paused && status.observed_generation == it.generation
    };
    let is_true_of_live = |it: &Version| {
        let ready = it.status.condition(condition::READY);
        it.status.phase == Phase::Mirroring
            && ready.is_some_and(|ready| ready.status == ConditionStatus::True)
    };
    for (name, history, is_true) in [
        (
            "paused",
            &paused,
            &is_true_of_paused as &dyn Fn(&Version) -> bool,
        ),
        ("live", &live, &is_true_of_live),
    ] {
        let since = history.since(woken);
        let wrong = since.iter().filter(|it| !is_true(it)).count();
        eprintln!(
            "{name}: {} versions since, {wrong} of them wrong",
            since.len()
        );
        let versions = history.versions();
        let last = versions.last().unwrap();
        assert!(is_true(last), "{name}: {last:#?}");
        let begun = since.iter().find(|it| !is_true(it)).map(|it| it.at);
        let lasted = begun.map_or(Duration::ZERO, |begun| {
            let back = since.iter().find(|it| it.at > begun && is_true(it));
            back.map_or(begun.elapsed(), |back| back.at - begun)
        });
        assert!(lasted < SECONDS, "{name}: wrong for {lasted:?}");
        assert_eq!(wrong, 0, "{name}: {since:#?}");
    }
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_ends_says_so_in_every_status() {
    let (set, client) = servers().await;
    let mut cluster = Cluster::without_operator().await;
    cluster.start_operator();
    live(&cluster, &set, &client, &["one", "two"]).await;
    let log = cluster.stop_operator().await;
    assert!(!log.contains("could not be written"), "{log}");
    for name in ["one", "two"] {
        let reason = cluster.field(name, REASON).await;
        assert_eq!(reason, "OperatorStopped", "{name}; {log}");
    }
    cluster.start_operator();
    for name in ["one", "two"] {
        cluster.wait(name, REASON, "Mirroring").await;
    }
}

/// How many of these were under way at the same time.
fn at_once<'a>(requests: impl Iterator<Item = &'a Request>) -> i32 {
    let ends = requests.flat_map(|it| [(&it.under_way[0], 1), (&it.under_way[1], -1)]);
    let mut ends: Vec<_> = ends.collect();
    ends.sort();
    let mut now = 0;
    let counts = ends.into_iter().map(|(_, one)| {
        now += one;
        now
    });
    counts.max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_mirrors_that_start_at_once_take_turns_at_the_api_server() {
    const MANY: usize = 150;
    let mut cluster = Cluster::audited(None).await;
    // Nobody listens there: what is tested is what they have to tell, not what they do.
    let nowhere = secret("nowhere", "mongodb://127.0.0.1:1");
    let mirrors = (0..MANY).map(|n| mirror(&format!("m{n}"), "nowhere", &format!("d{n}"), ""));
    let manifest: String = std::iter::once(nowhere).chain(mirrors).collect();
    cluster.apply(&manifest).await;
    cluster.start_operator();
    let told = async |cluster: &Cluster, reason: &str| {
        let path = format!("jsonpath={{range .items[*]}}{{{REASON}}}{{\"\\n\"}}{{end}}");
        let all = cluster.kubectl(&["get", "mongomirrors", "-o", &path]).await;
        all.lines().filter(|line| *line == reason).count()
    };
    eventually("all are told of", async || {
        (told(&cluster, "SourceUnreachable").await == MANY).then_some(())
    })
    .await;
    let requests = cluster.plane.operator_requests().unwrap();
    let of = |verb: &'static str| requests.iter().filter(move |it| it.verb == verb);
    for verb in ["get", "patch"] {
        let most = at_once(of(verb));
        eprintln!("{} times {verb}, {most} at once", of(verb).count());
        // What is written down as its end is a little later than that.
        assert!((1..=16).contains(&most), "{verb}: {most} at once");
    }
    let turned_away = requests
        .iter()
        .filter(|it| it.code == 429 || it.code >= 500);
    assert_eq!(turned_away.count(), 0, "{requests:#?}");

    // The last word comes in turn, too, before those of whoever is still waiting.
    let started = |cluster: &Cluster| cluster.log().matches("starting the mirror").count();
    let before = started(&cluster);
    cluster.kill_operator().await;
    cluster.start_operator();
    eventually("all are started", async || {
        (started(&cluster) >= before + MANY).then_some(())
    })
    .await;
    let log = cluster.stop_operator().await;
    assert!(!log.contains("did not stop in time"), "{log}");
    assert_eq!(told(&cluster, "OperatorStopped").await, MANY, "{log}");
}
