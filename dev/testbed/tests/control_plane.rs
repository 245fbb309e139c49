//! The control plane.

use std::{fs, time::Duration};

use testbed::ControlPlane;

const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: operator}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [get, list]}
"#;

const CONFIG_MAP: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
"#;

#[tokio::test]
async fn the_operator_may_do_exactly_what_its_role_grants() {
    let plane = ControlPlane::builder().start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let role = folder.path().join("role.yaml");
    fs::write(&role, ROLE).unwrap();
    let operator = plane.operator_kubeconfig(&role).await.unwrap();

    let secrets = ["get", "secrets", "--all-namespaces"];
    plane
        .kubectl_as(&operator, &secrets)
        .await
        .unwrap()
        .checked()
        .unwrap();
    let refused = plane.kubectl_as(&operator, &["get", "pods"]).await.unwrap();
    assert!(!refused.success);
    assert!(refused.stderr.contains("Forbidden"), "{}", refused.stderr);
    let account = "system:serviceaccount:mongomirror-system:mongomirror";
    assert!(refused.stderr.contains(account), "{}", refused.stderr);

    // A role that has grown is followed.
    fs::write(&role, ROLE.replace("[secrets]", "[secrets, pods]")).unwrap();
    let operator = plane.operator_kubeconfig(&role).await.unwrap();
    let pods = plane.kubectl_as(&operator, &["get", "pods"]).await.unwrap();
    pods.checked().unwrap();

    fs::write(&role, CONFIG_MAP).unwrap();
    let error = plane.operator_kubeconfig(&role).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("neither a ClusterRole nor a Role")
    );

    let stranger = plane.kubeconfig_for("stranger", None).unwrap();
    assert!(!plane.kubectl_as(&stranger, &secrets).await.unwrap().success);
}

#[tokio::test]
async fn objects_survive_the_absence_of_the_api_server() {
    let plane = ControlPlane::builder().start().await.unwrap();
    let apply = plane.kubectl_stdin(&["apply", "-f", "-"], CONFIG_MAP).await;
    apply.unwrap().checked().unwrap();

    let get = [
        "get",
        "configmap",
        "settings",
        "-o",
        "jsonpath={.data.colour}",
    ];
    plane.stop_api_server().await.unwrap();
    assert!(!plane.kubectl(&get).await.unwrap().success);
    plane.start_api_server().await.unwrap();
    assert_eq!(
        plane.kubectl(&get).await.unwrap().checked().unwrap(),
        "blue"
    );

    plane.kill_api_server().await.unwrap();
    plane.start_api_server().await.unwrap();
    assert_eq!(
        plane.kubectl(&get).await.unwrap().checked().unwrap(),
        "blue"
    );

    plane.pause_api_server().unwrap();
    let hanging = tokio::time::timeout(Duration::from_secs(1), plane.kubectl(&get)).await;
    assert!(hanging.is_err());
    plane.resume_api_server().unwrap();
    assert_eq!(
        plane.kubectl(&get).await.unwrap().checked().unwrap(),
        "blue"
    );
}

#[tokio::test]
async fn the_controllers_empty_a_deleted_namespace() {
    let plane = ControlPlane::builder()
        .controller_manager(true)
        .start()
        .await
        .unwrap();
    let create = plane.kubectl(&["create", "namespace", "shop"]).await;
    create.unwrap().checked().unwrap();
    let apply = ["apply", "-n", "shop", "-f", "-"];
    let apply = plane.kubectl_stdin(&apply, CONFIG_MAP).await;
    apply.unwrap().checked().unwrap();
    let delete = ["delete", "namespace", "shop", "--timeout=60s"];
    plane.kubectl(&delete).await.unwrap().checked().unwrap();
}
