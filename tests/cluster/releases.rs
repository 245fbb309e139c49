//! Releases are upgraded, uninstalled, installed again.

use bson::{Document, doc};
use mongodb::Database;

use crate::common::assert_equal;
use crate::faults::under_load;
use crate::install::{MIRROR, mirror};
use crate::mongo::{DATABASE, become_equal, follows};
use crate::stage::{ONE, OWN, RELEASE, SHOP, Stage};

/// That of a mirror that it must not see.
const OTHER: &str = "other";

pub async fn an_upgrade_rolls_under_load(stage: &Stage) {
    stage.shows_no_password().await;
    let before = stage.operators().await;
    under_load(stage, async |source, target| {
        let upgrade = ["upgrade", RELEASE, "--reuse-values"];
        stage
            .release(&upgrade, OWN, &["podAnnotations.rolled=once"])
            .await;
        follows(source, target).await;
    })
    .await;
    stage.all_ready().await;
    let after = stage.operators().await;
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|pod| !before.contains(pod)), "{after:?}");
}

/// What the target remembers of the mirror: when its copy was complete.
async fn copied_at(target: &Database) -> Document {
    let remembered = target.client().database("mongomirror");
    let checkpoints = remembered.collection::<Document>("checkpoints");
    let found = checkpoints.find_one(doc! {"_id": DATABASE}).await;
    let found = found.expect("find").expect("a checkpoint");
    let copy = found.get_document("copy").expect("a copy");
    doc! {"completedAt": copy.get("completedAt").expect("it is complete")}
}

pub async fn an_uninstalled_release_leaves_everything_and_the_next_goes_on(stage: &Stage) {
    let source = stage.source.database(stage).await;
    let target = stage.target.database(stage).await;
    let uid = stage.field(SHOP, MIRROR, ".metadata.uid").await;
    let copied = copied_at(&target).await;
    become_equal(&source, &target).await;
    stage.shows_no_password().await;
    stage
        .helm(&["uninstall", RELEASE, "-n", OWN, "--wait"])
        .await;
    stage.no_operators().await;
    assert_eq!(stage.field(SHOP, MIRROR, ".metadata.uid").await, uid);
    assert_equal(&source, &target).await;
    let late = source.collection::<Document>("late");
    late.insert_one(doc! {"_id": 1}).await.expect("insert");
    let values = ["replicas=2", "resources.limits.memory=192Mi"];
    stage.release(&["install", RELEASE], OWN, &values).await;
    become_equal(&source, &target).await;
    stage.wait(SHOP, MIRROR, "condition=Ready").await;
    assert_eq!(stage.field(SHOP, MIRROR, ".metadata.uid").await, uid);
    assert_eq!(copied_at(&target).await, copied, "it was copied again");
}

pub async fn an_operator_of_one_namespace_sees_no_other(stage: &Stage) {
    stage.shows_no_password().await;
    stage
        .helm(&["uninstall", RELEASE, "-n", OWN, "--wait"])
        .await;
    for namespace in [ONE, OTHER] {
        stage.restricted_namespace(namespace).await;
        let of_it = format!("namespace: {namespace}");
        let secrets = stage.source.secret("second") + &stage.target.secret("second");
        let secrets = secrets.replace(&format!("namespace: {SHOP}"), &of_it);
        let own = mirror(namespace).replace(
            &format!("target: {{database: {DATABASE}"),
            &format!("target: {{database: {namespace}"),
        );
        stage.apply(&(secrets + &own)).await;
    }
    let values = ["watchNamespaces={one}", "crds.install=false"];
    stage.release(&["install", RELEASE], ONE, &values).await;
    stage.wait(ONE, MIRROR, "condition=Ready").await;
    let source = stage.source.database(stage).await;
    let target = stage.target.client(stage).await.database(ONE);
    become_equal(&source, &target).await;
    // It was there before the other one was looked at.
    let seen = stage.field(OTHER, MIRROR, ".status.observedGeneration");
    assert_eq!(seen.await, "-1");
    let account = format!("--as=system:serviceaccount:{ONE}:{RELEASE}");
    for (namespace, expected) in [(ONE, "yes"), (OTHER, "no"), (SHOP, "no")] {
        for what in [["get", "secrets"], ["list", "mongomirrors"]] {
            let may = [&["auth", "can-i"], &what[..], &["-n", namespace, &account]].concat();
            let said = stage.try_kubectl(&may).await;
            let said = said.unwrap_or_else(|_| "no".into());
            assert_eq!(said.trim(), expected, "{what:?} in {namespace}");
        }
    }
}
