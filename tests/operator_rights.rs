//! What the operator may do in Kubernetes: all that it needs, and nothing else, as the API server
//! wrote it down itself.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use bson::{Document, doc};
use common::cluster::{CLUSTER_ROLE, Cluster, LEADER_ROLE, mirror, secret};
use common::process::checkpoint;
use common::{eventually, fill};
use mongodb::Client;
use serde_json::Value;
use testbed::{ReplicaSet, Request};

/// The namespace of the operator and its Lease.
const OWN: &str = "mongomirror-system";

/// A verb, and what it is for: `list secrets`, `patch mongomirrors/status.mongomirror.dev`.
type Right = String;

fn right(verb: &str, resource: &str, group: &str) -> Right {
    match group {
        "" => format!("{verb} {resource}"),
        group => format!("{verb} {resource}.{group}"),
    }
}

/// What a role of the chart grants.
fn granted(file: &str) -> BTreeSet<Right> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let role: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|one| one.as_str().expect("a text").to_owned())
            .collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let verbs = texts(&rule["verbs"]).into_iter();
                rights.extend(verbs.map(|verb| right(&verb, &resource, &group)));
            }
        }
    }
    rights
}

/// All that the operator asked for in its life, which is over.
async fn asked(cluster: &Cluster) -> Vec<Request> {
    // What it has written down is complete then.
    cluster.plane.stop_api_server().await.unwrap();
    let requests = cluster.plane.operator_requests().unwrap();
    // Others still have something to look up there.
    cluster.plane.start_api_server().await.unwrap();
    let refused: Vec<_> = requests.iter().filter(|it| it.code == 403).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let other: Vec<_> = requests
        .iter()
        .filter(|it| it.resource.is_empty())
        .collect();
    assert!(other.is_empty(), "not for resources: {other:#?}");
    requests
}

fn used<'a>(requests: impl IntoIterator<Item = &'a Request>) -> BTreeSet<Right> {
    let rights = requests.into_iter();
    rights
        .map(|it| right(&it.verb, &it.resource, &it.group))
        .collect()
}

async fn arrives(client: &Client, database: &str, id: i32) {
    let orders = |name: &str| client.database(name).collection::<Document>("orders");
    orders(database).insert_one(doc! {"_id": id}).await.unwrap();
    let copies = orders(&format!("{database}_backup"));
    eventually("it arrives", async || {
        copies.find_one(doc! {"_id": id}).await.unwrap()
    })
    .await;
}

async fn epoch(client: &Client) -> Option<i64> {
    checkpoint(client, "shop").await?.get_i64("epoch").ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_whole_life_each_right_is_used_and_none_is_missing() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    fill(&client.database("shop"), "orders", 0, 50).await;
    let cluster = Cluster::audited(None).await;
    cluster.let_operators_agree().await;
    let secrets = secret("mongo", &set.uri()) + &secret("not-named", "x");
    cluster.apply(&secrets).await;
    let election = ["--leader-election", "--lease-namespace", OWN];
    let operator = cluster.another_operator("operator", &election);

    cluster.apply(&mirror("shop", "mongo", "shop", "")).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    arrives(&client, "shop", 1000).await;
    // What happens again becomes a count on its event.
    for round in 1..=2 {
        for (on, phase) in [(false, "Paused"), (true, "Mirroring")] {
            let spec = format!("{{\"spec\":{{\"enabled\":{on}}}}}");
            let patch = ["patch", "mgm", "shop", "--type=merge", "-p", &spec];
            cluster.kubectl(&patch).await;
            cluster.wait("shop", ".status.phase", phase).await;
        }
        arrives(&client, "shop", 1000 + round).await;
    }
    // Another connection string starts the mirror anew.
    let before = epoch(&client).await;
    let other = format!("{}&appName=other", set.uri());
    cluster.apply(&secret("mongo", &other)).await;
    eventually("it runs with the other string", async || {
        (epoch(&client).await > before).then_some(())
    })
    .await;
    let annotate = ["annotate", "mgm", "shop", "mongomirror.dev/verify=1"];
    cluster.kubectl(&annotate).await;
    let state = ".status.requests[?(@.kind==\"Verify\")].state";
    cluster.wait("shop", state, "Done").await;
    arrives(&client, "shop", 2000).await;
    let delete = ["delete", "mgm", "shop", "--timeout=30s"];
    cluster.kubectl(&delete).await;
    eventually("the mirror has ended for good", async || {
        operator.log().contains("ended for good").then_some(())
    })
    .await;
    operator.stop().await;

    let requests = asked(&cluster).await;
    let (leases, rest): (Vec<_>, Vec<_>) = requests.iter().partition(|it| it.resource == "leases");
    assert_eq!(used(rest), granted(CLUSTER_ROLE));
    assert_eq!(used(leases.iter().copied()), granted(LEADER_ROLE));
    assert!(leases.iter().all(|it| it.namespace == OWN));
    let read = |it: &&Request| it.resource == "secrets" && it.verb == "get";
    let read: BTreeSet<_> = requests.iter().filter(read).map(|it| &*it.name).collect();
    assert_eq!(read, BTreeSet::from(["mongo"]), "only what mirrors name");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_of_some_namespaces_serves_them_and_sees_no_other() {
    let set = ReplicaSet::builder().start().await.unwrap();
    let client = set.client().await.unwrap();
    let cluster = Cluster::audited(Some("shop")).await;
    cluster.kubectl(&["create", "namespace", "other"]).await;
    let roles = Path::new(env!("CARGO_MANIFEST_DIR")).join(CLUSTER_ROLE);
    let granted = cluster.plane.operator_kubeconfig_in(&roles, "till").await;
    granted.unwrap();
    let user = format!("--as=system:serviceaccount:{OWN}:mongomirror");
    for (namespace, answer) in [("shop", "yes"), ("till", "yes"), ("other", "no")] {
        let can = ["auth", "can-i", "list", "secrets", "-n", namespace, &user];
        let said = cluster.plane.kubectl(&can).await.unwrap();
        assert_eq!(said.stdout.trim(), answer, "{namespace}");
    }
    for namespace in ["other", "shop", "till"] {
        fill(&client.database(namespace), "orders", 0, 50).await;
        let manifest = secret("mongo", &set.uri()) + &mirror("orders", "mongo", namespace, "");
        let apply = ["apply", "--namespace", namespace, "-f", "-"];
        let applied = cluster.plane.kubectl_stdin(&apply, &manifest).await;
        applied.unwrap().checked().unwrap();
    }
    let of = async |namespace: &str, path: &str| {
        let path = format!("jsonpath={{{path}}}");
        let get = [
            "get",
            "mgm",
            "orders",
            "--namespace",
            namespace,
            "-o",
            &path,
        ];
        cluster.kubectl(&get).await
    };
    let some = ["--namespace", "shop", "--namespace", "till"];
    let operator = cluster.another_operator("operator", &some);
    for namespace in ["shop", "till"] {
        eventually("the mirror is live", async || {
            (of(namespace, ".status.phase").await == "Mirroring").then_some(())
        })
        .await;
        arrives(&client, namespace, 1000).await;
        let events = ["get", "events", "--namespace", namespace, "-o", "name"];
        eventually("it tells what happens", async || {
            (!cluster.kubectl(&events).await.is_empty()).then_some(())
        })
        .await;
    }
    let listed = operator.exchange("GET", "/api/v1/mirrors", "").await;
    let listed = listed.expect("the status API listens");
    for namespace in ["shop", "till"] {
        let named = format!("\"namespace\":\"{namespace}\"");
        assert!(listed.contains(&named), "{listed}");
    }
    assert!(!listed.contains("\"namespace\":\"other\""), "{listed}");

    assert_eq!(of("other", ".status.observedGeneration").await, "-1");
    let names = client.list_database_names().await.unwrap();
    assert!(!names.contains(&"other_backup".to_owned()), "{names:?}");
    operator.stop().await;
    let requests = asked(&cluster).await;
    let elsewhere: Vec<_> = requests
        .iter()
        .filter(|it| !["shop", "till"].contains(&&*it.namespace))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
}
