//! A release is installed, and a first mirror made.

use std::time::Instant;

use testbed::{Process, Program};

use crate::common::{eventually, fill};
use crate::mongo::{DATABASE, become_equal, follows};
use crate::stage::{OWN, RELEASE, SHOP, Stage};

/// The mirror of all scenes.
pub const MIRROR: &str = "mongomirror/orders";

const ORDERS: i32 = 20_000;

/// A MongoMirror between both servers of the stage.
pub fn mirror(namespace: &str) -> String {
    format!(
        "
apiVersion: mongomirror.dev/v1alpha1
kind: MongoMirror
metadata: {{name: orders, namespace: {namespace}}}
spec:
  source: {{database: {DATABASE}, uriSecretRef: {{name: source}}}}
  target: {{database: {DATABASE}, uriSecretRef: {{name: target}}}}
"
    )
}

pub async fn a_restricted_namespace_takes_the_release(stage: &Stage) {
    stage.restricted_namespace(OWN).await;
    let values = ["replicas=2", "resources.limits.memory=192Mi"];
    stage.release(&["install", RELEASE], OWN, &values).await;
    assert_eq!(stage.operators().await.len(), 2);
    // The chart's own probes have let them pass.
    stage.all_ready().await;
}

pub async fn helm_test_says_whether_it_is_ready(stage: &Stage) {
    let test = ["test", RELEASE, "-n", OWN, "--logs"];
    let said = stage.helm(&test).await;
    assert!(said.contains("Succeeded") && said.contains("ok"), "{said}");

    let scale = async |replicas: &str| {
        let scale = ["scale", "deployment", RELEASE, "-n", OWN, replicas];
        stage.kubectl(&scale).await;
    };
    scale("--replicas=0").await;
    stage.no_operators().await;
    let said = stage.try_helm(&test).await.expect_err("nobody is ready");
    assert!(said.contains("mongomirror-test failed"), "{said}");
    let logs = ["logs", "-n", OWN, "mongomirror-test"];
    let logs = stage.kubectl(&logs).await;
    assert!(logs.contains("nothing answers at http://"), "{logs}");
    scale("--replicas=2").await;
    stage.all_ready().await;
}

pub async fn a_first_mirror_is_live_and_told_to_kubectl(stage: &Stage) {
    let source = stage.source.database(stage).await;
    let target = stage.target.database(stage).await;
    fill(&source, "orders", 0, ORDERS).await;
    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().join("watched");
    let kubectl = Program::Kubectl.fetch().await.expect("kubectl");
    let admin = stage.cluster().plane().admin_kubeconfig();
    let watch = ["get", "mgm", "-n", SHOP, "--watch"];
    let environment = [("KUBECONFIG".into(), admin.into())];
    let watch = Process::start("kubectl get --watch", kubectl, watch, environment, &watched);
    let watch = watch.expect("kubectl");

    let secrets = stage.source.secret("first") + &stage.target.secret("first");
    stage.apply(&(secrets + &mirror(SHOP))).await;
    let begun = Instant::now();
    stage.wait(SHOP, MIRROR, "condition=Ready").await;
    stage
        .wait(SHOP, MIRROR, "jsonpath={.status.phase}=Mirroring")
        .await;
    eprintln!("        live after {:.1?}", begun.elapsed());
    follows(&source, &target).await;
    become_equal(&source, &target).await;

    eventually("kubectl has shown it live", async || {
        let seen = std::fs::read_to_string(&watched).ok()?;
        let of_it = |line: &str| line.starts_with("orders") && line.contains("Mirroring");
        seen.lines().any(of_it).then_some(())
    })
    .await;
    watch.stop().await.expect("kubectl ends");
    let events = ["events", "-n", SHOP, "--for", MIRROR];
    let events = stage.kubectl(&events).await;
    assert!(events.contains("Mirroring"), "{events}");
    // `get` looks anew for what it does not know; `explain` does not.
    stage.kubectl(&["get", "mgm", "-n", SHOP]).await;
    let explained = ["explain", "mgm.spec.source.uriSecretRef"];
    let explained = stage.kubectl(&explained).await;
    assert!(explained.contains("FIELD: uriSecretRef"), "{explained}");
}
