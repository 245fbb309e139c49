//! What the chart makes of values, and which it refuses.

use std::process::Command;

use serde_json::{Value, json};

use super::{ALL, Chart, RELEASE, chart, container, root};

#[tokio::test]
async fn helm_finds_nothing_to_complain_about() {
    let all = Chart::new().await;
    for values in ["", ALL] {
        let file = all.values(values);
        let chart = chart();
        let lint = ["lint", "--strict", &*chart.to_string_lossy(), "-f", &file];
        let said = all.helm.run(&lint).await.unwrap().checked().unwrap();
        assert!(!said.contains("[WARNING]"), "{said}");
    }
}

#[tokio::test]
async fn values_that_are_wrong_are_refused_with_what_is_wrong() {
    let chart = Chart::new().await;
    let refused = [
        ("replica: 2", "additional properties 'replica' not allowed"),
        (
            "image: {tga: x}",
            "at '/image': additional properties 'tga'",
        ),
        ("replicas: -1", "at '/replicas': minimum: got -1, want 0"),
        ("replicas: two", "at '/replicas': got string, want integer"),
        (
            "image: {digest: latest}",
            "at '/image/digest': 'latest' does not match",
        ),
        (
            "image: {pullPolicy: Sometimes}",
            "'Always', 'IfNotPresent', 'Never'",
        ),
        (
            "image: {repository: 'r.example:5000/m:1.2'}",
            "at '/image/repository': 'r.example:5000/m:1.2' does not match",
        ),
        ("log: {format: xml}", "at '/log/format'"),
        (
            "watchNamespaces: shop",
            "at '/watchNamespaces': got string, want array",
        ),
        (
            "watchNamespaces: ['a,b']",
            "at '/watchNamespaces/0': 'a,b' does not match",
        ),
        ("podLabels: {on: true}", "got boolean, want string"),
        (
            "livenessProbe: {exec: {command: [true]}}",
            "properties 'exec' not allowed",
        ),
        (
            "networkPolicy: {egress: {mongodb: {ports: []}}}",
            "minItems: got 0, want 1",
        ),
        (
            "networkPolicy: {egress: {mongodb: {to: [10.0.0.1]}}}",
            "got string, want object",
        ),
        (
            "podDisruptionBudget: {maxUnavailable: half}",
            "'half' does not match",
        ),
        (
            "podDisruptionBudget: {minAvailable: 1, maxUnavailable: 1}",
            "both minAvailable and maxUnavailable: give one of them",
        ),
        (
            "podDisruptionBudget: {enabled: true, minAvailable: 1}",
            "minAvailable is 1 and replicas is 1, so that no node could be drained",
        ),
        (
            "podDisruptionBudget: {enabled: true, minAvailable: 1%}",
            "minAvailable is 1% and replicas is 1, so that no node could be drained",
        ),
        (
            "{replicas: 2, podDisruptionBudget: {enabled: true, minAvailable: 51%}}",
            "minAvailable is 51% and replicas is 2, so that no node could be drained",
        ),
        (
            "{replicas: 3, podDisruptionBudget: {enabled: true, minAvailable: 100%}}",
            "no node could be drained: make it less, or replicas more",
        ),
        (
            "{replicas: 3, podDisruptionBudget: {enabled: true, maxUnavailable: 0}}",
            "maxUnavailable is 0, so that no node could be drained: make it more",
        ),
        (
            "podDisruptionBudget: {enabled: true, maxUnavailable: 0%}",
            "maxUnavailable is 0%, so that no node could be drained: make it more",
        ),
        (
            "serviceAccount: {create: false}",
            "name the service account to use in serviceAccount.name",
        ),
        (
            "extraEnv: [{name: MONGOMIRROR_NAMESPACE, value: x}]",
            "which is the chart's: use watchNamespaces",
        ),
        (
            "podLabels: {app.kubernetes.io/name: other}",
            "by which the operator's pods are found",
        ),
    ];
    for (values, expected) in refused {
        let output = chart.template(values).await;
        assert!(!output.success, "taken: {values}");
        assert!(
            output.stderr.contains(expected),
            "{values}: {}",
            output.stderr
        );
    }
}

/// The one version is the workspace's; the chart has to be told.
#[test]
fn the_chart_has_the_version_of_the_program() {
    let file = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&file).unwrap();
    for field in ["version", "appVersion"] {
        assert_eq!(chart[field], env!("CARGO_PKG_VERSION"), "{field}");
    }
}

#[tokio::test]
async fn an_image_runs_by_digest_by_tag_or_as_new_as_the_chart() {
    let chart = Chart::new().await;
    let digest = format!("sha256:{}", "ab".repeat(32));
    let cases = [
        ("", format!("mongomirror:{}", env!("CARGO_PKG_VERSION"))),
        ("image: {tag: '1.2'}", "mongomirror:1.2".into()),
        (
            &*format!("image: {{repository: r.example/m, tag: '1.2', digest: '{digest}'}}"),
            format!("r.example/m@{digest}"),
        ),
    ];
    for (values, expected) in cases {
        let objects = chart.objects(values).await;
        let deployment = objects.get("Deployment", RELEASE);
        assert_eq!(container(deployment)["image"], expected, "{values}");
    }
}

#[tokio::test]
async fn what_is_not_asked_for_is_not_made() {
    let chart = Chart::new().await;
    let everything = [
        "ClusterRole mongomirror",
        "ClusterRole mongomirror-edit",
        "ClusterRole mongomirror-view",
        "ClusterRoleBinding mongomirror",
        "CustomResourceDefinition mongomirrors.mongomirror.dev",
        "Deployment mongomirror",
        "Pod mongomirror-test",
        "Service mongomirror",
        "ServiceAccount mongomirror",
    ];
    assert_eq!(chart.objects("").await.names(), everything);
    let little = "
crds: {install: false}
rbac: {create: false, aggregate: false}
serviceAccount: {create: false, name: mine}
service: {enabled: false}
replicas: 2
";
    let objects = chart.objects(little).await;
    assert_eq!(objects.names(), ["Deployment mongomirror"]);
    let pod = &objects.0[0]["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "mine");
    let all = [
        "CustomResourceDefinition mongomirrors.mongomirror.dev",
        "ClusterRole the-mirror-edit",
        "ClusterRole the-mirror-view",
        "Deployment the-mirror",
        "NetworkPolicy the-mirror",
        "Pod the-mirror-test",
        "PodDisruptionBudget the-mirror",
        // In two namespaces.
        "Role the-mirror",
        "Role the-mirror",
        "Role the-mirror-leader",
        "RoleBinding the-mirror",
        "RoleBinding the-mirror",
        "RoleBinding the-mirror-leader",
        "Service the-mirror",
        "ServiceAccount runner",
    ];
    let mut all: Vec<_> = all.map(str::to_owned).into();
    all.sort();
    assert_eq!(chart.objects(ALL).await.names(), all);
}

#[tokio::test]
async fn one_operator_is_replaced_and_several_agree() {
    let chart = Chart::new().await;
    let of = async |values: &str| {
        chart
            .objects(values)
            .await
            .get("Deployment", RELEASE)
            .clone()
    };
    let args = |deployment: &Value| {
        let args = container(deployment)["args"].as_array().unwrap().clone();
        args.iter()
            .map(|it| it.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let one = of("").await;
    assert_eq!(one["spec"]["strategy"]["type"], "Recreate");
    let expected = ["operator", "--listen=0.0.0.0:8080", "--log-format=json"];
    assert_eq!(args(&one), expected);
    let three = of("{replicas: 3, watchNamespaces: [shop, till]}").await;
    assert_eq!(three["spec"]["strategy"]["type"], "RollingUpdate");
    let more = [
        "--namespace=shop",
        "--namespace=till",
        "--leader-election",
        "--lease-namespace=mongomirror-system",
        "--lease-name=mongomirror",
    ];
    assert_eq!(args(&three), [&expected[..], &more].concat());
    for deployment in [&one, &three] {
        assert_understood(&args(deployment));
    }
}

/// The program knows these arguments.
fn assert_understood(args: &[String]) {
    let program = Command::new(env!("CARGO_BIN_EXE_mongomirror"))
        .args(args)
        .arg("--help")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&program.stderr);
    assert!(program.status.success(), "{args:?}: {said}");
}

#[tokio::test]
async fn helm_test_asks_the_service_from_a_pod_like_the_operators() {
    let chart = Chart::new().await;
    for (values, name, url) in [
        (
            "",
            RELEASE,
            "http://mongomirror.mongomirror-system.svc:8080",
        ),
        (
            ALL,
            "the-mirror",
            "http://the-mirror.mongomirror-system.svc:80",
        ),
    ] {
        let objects = chart.objects(values).await;
        let test = objects.get("Pod", &format!("{name}-test"));
        let (pod, operators) = (&test["spec"], objects.get("Deployment", name));
        assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test");
        let own = &pod["containers"][0];
        assert_eq!(own["args"], json!(["ready", url]));
        assert_understood(&["ready".into(), url.into()]);
        for field in ["image", "command", "securityContext", "resources"] {
            assert_eq!(own[field], container(operators)[field], "{field}");
        }
        let operators = &operators["spec"]["template"]["spec"];
        for field in ["securityContext", "imagePullSecrets", "tolerations"] {
            assert_eq!(pod[field], operators[field], "{field}");
        }
        assert_eq!(pod["automountServiceAccountToken"], false);
    }
    for values in ["test: {enabled: false}", "service: {enabled: false}"] {
        let objects = chart.objects(values).await;
        assert!(objects.find("Pod", "mongomirror-test").is_none());
    }
}

#[tokio::test]
async fn names_labels_and_annotations_are_on_everything() {
    let chart = Chart::new().await;
    let objects = chart.objects(ALL).await;
    for object in &objects.0 {
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"]["team"], "data", "{metadata}");
        // What finds the operator's pods must not find the one of `helm test`.
        let name = match object["kind"] == "Pod" {
            true => "mirror-test",
            false => "mirror",
        };
        let label = &metadata["labels"]["app.kubernetes.io/name"];
        assert_eq!(label, name, "{metadata}");
        assert_eq!(metadata["annotations"]["owner"], "data", "{metadata}");
    }
    let deployment = objects.get("Deployment", "the-mirror");
    let own = json!({"app.kubernetes.io/name": "mirror", "app.kubernetes.io/instance": RELEASE});
    let selectors = [
        &deployment["spec"]["selector"]["matchLabels"],
        &objects.get("Service", "the-mirror")["spec"]["selector"],
        &objects.get("PodDisruptionBudget", "the-mirror")["spec"]["selector"]["matchLabels"],
        &objects.get("NetworkPolicy", "the-mirror")["spec"]["podSelector"]["matchLabels"],
        &deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ];
    assert!(selectors.iter().all(|it| **it == own), "{selectors:#?}");
    let mut pod = own;
    pod["team"] = "data".into();
    pod["tier"] = "back".into();
    assert_eq!(deployment["spec"]["template"]["metadata"]["labels"], pod);
    let spread = &deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][1];
    assert_eq!(
        spread["labelSelector"],
        json!({"matchLabels": {"own": "label"}})
    );
    let env = &container(deployment)["env"];
    assert_eq!(
        env[0],
        json!({"name": "RUST_LOG", "value": "warn,mongomirror=debug"})
    );
    assert_eq!(env.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn an_annotation_of_the_charts_own_is_there_once() {
    let chart = Chart::new().await;
    let key = "kubectl.kubernetes.io/default-container";
    let values = format!("podAnnotations: {{{key}: other, seen: 'no'}}");
    let manifest = chart.manifest(&values).await;
    assert_eq!(manifest.matches(key).count(), 1, "{manifest}");
    let objects = chart.objects(&values).await;
    let deployment = objects.get("Deployment", RELEASE);
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(*annotations, json!({key: "operator", "seen": "no"}));
}

#[tokio::test]
async fn the_network_policy_lets_out_what_a_mirror_needs_and_in_who_tests_it() {
    let chart = Chart::new().await;
    let nobody = "{networkPolicy: {enabled: true}, test: {enabled: false}}";
    let objects = chart.objects(nobody).await;
    let spec = &objects.get("NetworkPolicy", RELEASE)["spec"];
    assert_eq!(spec["ingress"], json!([]));

    let objects = chart.objects("networkPolicy: {enabled: true}").await;
    let spec = &objects.get("NetworkPolicy", RELEASE)["spec"];
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    let from = &spec["ingress"][0]["from"];
    assert_eq!(from.as_array().unwrap().len(), 1, "{from}");
    let labels = from[0]["podSelector"]["matchLabels"].as_object().unwrap();
    let test = &objects.get("Pod", "mongomirror-test")["metadata"]["labels"];
    assert!(labels.iter().all(|(key, value)| test[key] == *value));
    let port = |port: u16, protocol: &str| json!({"port": port, "protocol": protocol});
    let dns = json!({"namespaceSelector":
        {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}});
    let expected = json!([
        {"ports": [port(53, "UDP"), port(53, "TCP")], "to": [dns]},
        {"ports": [port(443, "TCP"), port(6443, "TCP")]},
        {"ports": [port(27017, "TCP")]},
    ]);
    assert_eq!(spec["egress"], expected);

    let objects = chart.objects(ALL).await;
    let spec = &objects.get("NetworkPolicy", "the-mirror")["spec"];
    assert_eq!(
        spec["ingress"][0]["ports"],
        json!([{"port": "http", "protocol": "TCP"}])
    );
    assert_eq!(spec["ingress"][0]["from"].as_array().unwrap().len(), 2);
    let to: Vec<_> = (0..4)
        .map(|rule| &spec["egress"][rule]["to"][0]["ipBlock"]["cidr"])
        .collect();
    assert_eq!(
        to,
        [
            "169.254.20.10/32",
            "10.0.0.0/24",
            "10.1.0.0/16",
            "10.2.0.1/32"
        ]
    );
}

#[tokio::test]
async fn the_definition_is_the_generated_one_and_stays_unless_told_otherwise() {
    let chart = Chart::new().await;
    let generated = std::fs::read_to_string(root().join("crds/mongomirrors.yaml")).unwrap();
    let generated: Value = serde_saphyr::from_str(&generated).unwrap();
    let name = "mongomirrors.mongomirror.dev";
    for (values, policy) in [("", json!("keep")), ("crds: {keep: false}", Value::Null)] {
        let objects = chart.objects(values).await;
        let definition = objects.get("CustomResourceDefinition", name);
        let annotations = &definition["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/resource-policy"], policy);
        // Helm writes 1.0 as 1.
        let text = |value: &Value| value.to_string().replace(".0,", ",").replace(".0}", "}");
        assert_eq!(text(&definition["spec"]), text(&generated["spec"]));
    }
}

#[tokio::test]
async fn what_is_made_from_the_chart_is_up_to_date() {
    let hint = "run `make chart`";
    let readme = testbed::chart::readme(&chart()).unwrap();
    let there = std::fs::read_to_string(chart().join("README.md")).unwrap();
    assert!(there == readme, "the chart's README is out of date: {hint}");
    let manifest = testbed::chart::manifest(&chart()).await.unwrap();
    let there = std::fs::read_to_string(root().join("deploy/mongomirror.yaml")).unwrap();
    assert!(
        there == manifest,
        "deploy/mongomirror.yaml is out of date: {hint}"
    );
    let lower = manifest.to_lowercase();
    assert_eq!(lower.matches("helm").count(), 1, "but for its title");
}
