//! What the chart lets the operator and its users do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::life::Cluster;
use super::{Chart, OWN, Objects, RELEASE, chart, root};

/// The rules with which `tests/operator_rights.rs` runs the operator.
fn rules(file: &str) -> Value {
    let file = root().join("charts/mongomirror/files").join(file);
    let text = std::fs::read_to_string(file).unwrap();
    let role: Value = serde_saphyr::from_str(&text).unwrap();
    role["rules"].clone()
}

/// The rules that the operator's account gets by this binding.
fn bound<'a>(objects: &'a Objects, kind: &str, name: &str) -> (&'a Value, &'a Value) {
    let binding = objects.get(&format!("{kind}Binding"), name);
    let account = json!([{"kind": "ServiceAccount", "name": RELEASE, "namespace": OWN}]);
    assert_eq!(binding["subjects"], account);
    assert_eq!(binding["roleRef"]["kind"], kind);
    let role = objects.get(kind, binding["roleRef"]["name"].as_str().unwrap());
    let namespace = &role["metadata"]["namespace"];
    assert_eq!(&binding["metadata"]["namespace"], namespace);
    (&role["rules"], namespace)
}

#[tokio::test]
async fn the_operator_gets_the_rules_that_its_tests_run_with_and_no_others() {
    let chart = Chart::new().await;
    let operator = rules("clusterrole.yaml");
    let leader = rules("leader-role.yaml");
    let all = chart.objects("").await;
    assert_eq!(
        bound(&all, "ClusterRole", RELEASE),
        (&operator, &Value::Null)
    );
    assert!(all.names().iter().all(|name| !name.starts_with("Role")));

    let one = chart
        .objects("{watchNamespaces: [shop], replicas: 2}")
        .await;
    assert_eq!(bound(&one, "Role", RELEASE), (&operator, &json!("shop")));
    let of_leader = bound(&one, "Role", "mongomirror-leader");
    assert_eq!(of_leader, (&leader, &json!(OWN)));
    let bindings = one.names();
    let bindings = bindings.iter().filter(|name| name.contains("Binding"));
    assert_eq!(bindings.count(), 2, "for all namespaces nothing");
}

#[tokio::test]
async fn operators_and_users_may_do_what_they_should_in_a_real_cluster() {
    let cluster = Cluster::start(true).await;
    cluster.kubectl(&["create", "namespace", "till"]).await;
    let values = "{watchNamespaces: [shop, till], replicas: 2}";
    cluster.install(RELEASE, &chart(), values).await.unwrap();
    for user in ["view", "edit", "admin"] {
        let role = format!("--clusterrole={user}");
        let name = format!("--user={user}");
        let bind = ["create", "rolebinding", user, &role, &name, "-n", "shop"];
        cluster.kubectl(&bind).await;
    }
    let operator = format!("system:serviceaccount:{OWN}:{RELEASE}");
    let expected = [
        (&*operator, "list", "mongomirrors", "shop", true),
        (&operator, "patch", "mongomirrors/status", "shop", true),
        (&operator, "update", "mongomirrors", "shop", false),
        (&operator, "get", "secrets", "shop", true),
        (&operator, "list", "secrets", "till", true),
        (&operator, "get", "secrets", OWN, false),
        (&operator, "list", "mongomirrors", "default", false),
        (&operator, "update", "leases", OWN, true),
        (&operator, "update", "leases", "shop", false),
        ("view", "watch", "mongomirrors", "shop", true),
        ("view", "create", "mongomirrors", "shop", false),
        ("view", "list", "mongomirrors", "default", false),
        ("edit", "list", "mongomirrors", "shop", true),
        ("edit", "create", "mongomirrors", "shop", true),
        ("edit", "patch", "mongomirrors/status", "shop", false),
        ("admin", "delete", "mongomirrors", "shop", true),
    ];
    for (user, verb, resource, namespace, may) in expected {
        let name = format!("--as={user}");
        let resource = resource.replacen("mongomirrors", "mongomirrors.mongomirror.dev", 1);
        let resource = match resource.split_once('/') {
            Some((resource, sub)) => vec![resource.to_owned(), format!("--subresource={sub}")],
            None => vec![resource],
        };
        let mut ask = vec!["auth", "can-i", verb, "-n", namespace, &name];
        ask.extend(resource.iter().map(String::as_str));
        // Controllers add the chart's roles to the cluster's own in a moment.
        let began = Instant::now();
        loop {
            let said = cluster.plane.kubectl(&ask).await.unwrap();
            match said.stdout.trim() {
                "yes" if may => break,
                "no" if !may => break,
                answer if began.elapsed() > Duration::from_secs(20) => {
                    panic!("{ask:?}: {answer} {}", said.stderr)
                }
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}
