//! What a real API server says to the chart, and the life of a release in it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::ControlPlane;

use super::{ALL, Chart, OWN, RELEASE, chart, root};

const DEFINITION: &str = "crd/mongomirrors.mongomirror.dev";

const MIRROR: &str = "
apiVersion: mongomirror.dev/v1alpha1
kind: MongoMirror
metadata: {name: orders, namespace: shop}
spec:
  source: {database: orders, uriSecretRef: {name: source}}
  target: {uriSecretRef: {name: target}}
";

/// The namespaces; the release's own says what does not fit into a restricted one.
const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: mongomirror-system, labels: {pod-security.kubernetes.io/warn: restricted}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
";

/// What a pod needs to be there, with values that name all there is.
const NEEDED: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: mongomirror-system}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: high}
value: 1
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: sandboxed}
handler: runc
";

/// A control plane with helm.
pub struct Cluster {
    pub plane: ControlPlane,
    chart: Chart,
}

impl Cluster {
    pub async fn start(controllers: bool) -> Self {
        let plane = ControlPlane::builder().controller_manager(controllers);
        let cluster = Self {
            plane: plane.start().await.expect("a control plane"),
            chart: Chart::new().await,
        };
        cluster.apply(NAMESPACES).await;
        cluster
    }

    async fn apply(&self, manifest: &str) -> String {
        let applied = self
            .plane
            .kubectl_stdin(&["apply", "-f", "-"], manifest)
            .await;
        applied.expect("kubectl").checked().expect("apply")
    }

    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.plane.kubectl(arguments).await.expect("kubectl");
        output.checked().unwrap_or_else(|error| panic!("{error}"))
    }

    async fn get(&self, what: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        self.kubectl(&["get", what, "-n", OWN, "-o", &path]).await
    }

    /// The mirror's uid, which changes when it is made anew.
    async fn mirror(&self) -> String {
        let get = [
            "get",
            "mongomirror",
            "orders",
            "-n",
            "shop",
            "-o",
            "jsonpath={.metadata.uid}",
        ];
        self.kubectl(&get).await
    }

    /// helm in the release's namespace; what it wrote, or what it complained about.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String, String> {
        let all = [arguments, &["--namespace", OWN]].concat();
        let admin = self.plane.admin_kubeconfig();
        let output = self.chart.helm.run_as(admin, &all).await.expect("helm");
        match output.success {
            true => Ok(output.stdout),
            false => Err(output.stderr),
        }
    }

    /// `helm upgrade --install` of this chart with these values alone.
    pub async fn install(&self, release: &str, chart: &Path, values: &str) -> Result<(), String> {
        let (file, chart) = (self.chart.values(values), chart.to_string_lossy());
        let upgrade = [
            "upgrade",
            "--install",
            "--reset-values",
            release,
            &chart,
            "-f",
            &file,
        ];
        self.helm(&upgrade).await.map(drop)
    }

    async fn established(&self) {
        self.kubectl(&["wait", "--for=condition=Established", DEFINITION])
            .await;
    }
}

/// The chart as an earlier version of it would be, with another definition.
fn earlier(folder: &Path) {
    let copy = |from: &str, change: &dyn Fn(String) -> String| {
        let text = std::fs::read_to_string(chart().join(from)).unwrap();
        let to = folder.join(from);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, change(text)).unwrap();
    };
    for folder in ["templates", "templates/tests"] {
        let entries = std::fs::read_dir(chart().join(folder)).unwrap();
        let files = entries.map(Result::unwrap).filter(|it| it.path().is_file());
        for file in files {
            let name = file.file_name();
            copy(&format!("{folder}/{}", name.to_string_lossy()), &|text| {
                text
            });
        }
    }
    for name in [
        "values.yaml",
        "values.schema.json",
        "files/clusterrole.yaml",
        "files/leader-role.yaml",
    ] {
        copy(name, &|text| text);
    }
    let version = concat!("ersion: ", env!("CARGO_PKG_VERSION"));
    let version = |text: String| text.replace(version, "ersion: 0.0.1");
    copy("Chart.yaml", &version);
    copy("files/mongomirrors.yaml", &|text| {
        text.replace("- mgm\n", "- early\n")
    });
}

/// What the API server would say to this manifest.
async fn try_out(cluster: &Cluster, manifest: &str) -> testbed::Output {
    let apply = ["apply", "--dry-run=server", "-f", "-"];
    let said = cluster.plane.kubectl_stdin(&apply, manifest).await;
    said.unwrap()
}

#[tokio::test]
async fn an_api_server_takes_what_the_chart_makes_of_any_values() {
    let cluster = Cluster::start(false).await;
    cluster.apply(NEEDED).await;
    let matrix = [
        "",
        ALL,
        "replicas: 0",
        "replicas: 2",
        "watchNamespaces: [shop]",
        "{watchNamespaces: [shop, default], replicas: 2, serviceAccount: {create: false, name: default}}",
        "crds: {install: false}",
        "rbac: {create: false, aggregate: false}",
        "service: {type: LoadBalancer, port: 80}",
        "networkPolicy: {enabled: true}",
        "networkPolicy: {enabled: true, egress: {dns: {to: []}}}",
        "podDisruptionBudget: {enabled: true}",
        "podDisruptionBudget: {enabled: true, maxUnavailable: 50%}",
        "podDisruptionBudget: {enabled: true, minAvailable: 0%}",
        "{replicas: 2, podDisruptionBudget: {enabled: true, minAvailable: 1}}",
        "{replicas: 2, podDisruptionBudget: {enabled: true, minAvailable: 50%}}",
        "{replicas: 0, podDisruptionBudget: {enabled: true, minAvailable: 1}}",
        "{replicas: 0, podDisruptionBudget: {enabled: true, maxUnavailable: 0}}",
        "topologySpreadConstraints: []",
        "{resources: null, livenessProbe: null, readinessProbe: null, commonLabels: null}",
        "{podAnnotations: null, podLabels: null, nodeSelector: null, extraEnv: null}",
        "fullnameOverride: a-name-that-is-as-long-as-a-name-of-kubernetes-may-be-at-all",
    ];
    for values in matrix {
        let manifest = cluster.chart.manifest(values).await;
        let said = try_out(&cluster, &manifest).await;
        assert!(said.success, "{values}: {}", said.stderr);
        assert_eq!(said.stderr, "", "warned of {values}");
    }
    // What is looked for above is said, where there is reason to.
    let manifest = cluster
        .chart
        .manifest("podSecurityContext: {runAsNonRoot: false}")
        .await;
    let said = try_out(&cluster, &manifest).await;
    assert!(
        said.stderr.contains("would violate PodSecurity"),
        "{}",
        said.stderr
    );
}

#[tokio::test]
async fn a_release_is_upgraded_and_mirrors_outlive_it() {
    let cluster = Cluster::start(true).await;
    let before = tempfile::tempdir().unwrap();
    earlier(before.path());
    let now = &chart();
    let short = ".spec.names.shortNames[0]";
    cluster.install(RELEASE, before.path(), "").await.unwrap();
    assert_eq!(cluster.get(DEFINITION, short).await, "early");
    cluster.established().await;
    cluster.apply(MIRROR).await;
    let mirror = cluster.mirror().await;

    let more = "
replicas: 3
networkPolicy: {enabled: true}
podDisruptionBudget: {enabled: true}
";
    cluster.install(RELEASE, now, more).await.unwrap();
    assert_eq!(
        cluster.get(DEFINITION, short).await,
        "mgm",
        "the definition came along"
    );
    assert_eq!(cluster.mirror().await, mirror);
    let deployment = "deployment/mongomirror";
    assert_eq!(
        cluster.get(deployment, ".spec.strategy.type").await,
        "RollingUpdate"
    );
    // The other way, what belonged to the other strategy must not be left.
    cluster.install(RELEASE, now, "").await.unwrap();
    let strategy: Value =
        serde_json::from_str(&cluster.get(deployment, ".spec.strategy").await).unwrap();
    assert_eq!(strategy, json!({"type": "Recreate"}));
    let gone = [
        "get",
        "networkpolicy,pdb,lease,role",
        "-n",
        OWN,
        "-o",
        "name",
    ];
    assert_eq!(cluster.kubectl(&gone).await, "");
    cluster.helm(&["rollback", RELEASE, "1"]).await.unwrap();
    assert_eq!(cluster.get(DEFINITION, short).await, "early");
    assert_eq!(cluster.mirror().await, mirror);
    cluster.helm(&["rollback", RELEASE, "2"]).await.unwrap();
    assert_eq!(cluster.get(deployment, ".spec.replicas").await, "3");

    let said = cluster.helm(&["uninstall", RELEASE]).await.unwrap();
    assert!(said.contains("kept due to the resource policy"), "{said}");
    let left = [
        "get",
        "deployment,service,serviceaccount,role,networkpolicy,pdb",
        "-n",
        OWN,
    ];
    let left = [
        &left[..],
        &[
            "--selector",
            "app.kubernetes.io/name=mongomirror",
            "-o",
            "name",
        ],
    ];
    assert_eq!(cluster.kubectl(&left.concat()).await, "");
    assert_eq!(cluster.mirror().await, mirror, "it outlives the release");

    let error = cluster.install("other", now, "").await.unwrap_err();
    assert!(error.contains("cannot be imported"), "{error}");
    cluster
        .install("other", now, "crds: {install: false}")
        .await
        .unwrap();
    cluster.helm(&["uninstall", "other"]).await.unwrap();
    cluster.install(RELEASE, now, "").await.unwrap();
    assert_eq!(cluster.mirror().await, mirror, "and the next one finds it");

    cluster
        .install(RELEASE, now, "crds: {keep: false}")
        .await
        .unwrap();
    cluster.helm(&["uninstall", RELEASE]).await.unwrap();
    cluster
        .kubectl(&["wait", "--for=delete", DEFINITION, "--timeout=30s"])
        .await;
}

#[tokio::test]
async fn the_release_says_how_to_begin_with_a_mirror_that_the_api_server_takes() {
    let cluster = Cluster::start(false).await;
    cluster
        .install(RELEASE, &chart(), "watchNamespaces: [shop]")
        .await
        .unwrap();
    cluster.established().await;
    let notes = cluster.helm(&["get", "notes", RELEASE]).await.unwrap();
    let (_, rest) = notes.split_once("<<'END'\n").expect("a manifest");
    let (manifest, _) = rest.split_once("    END\n").expect("its end");
    let lines = manifest
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap());
    let manifest: Vec<_> = lines.collect();
    let made = cluster.apply(&manifest.join("\n")).await;
    assert_eq!(made.matches("created").count(), 3, "{made}");
    assert!(
        made.contains("mongomirror.mongomirror.dev/orders created"),
        "{made}"
    );
}

#[tokio::test]
async fn the_plain_manifest_needs_nothing_else() {
    let plane = ControlPlane::builder().start().await.unwrap();
    let file = root().join("deploy/mongomirror.yaml");
    let apply = ["apply", "-f", &*file.to_string_lossy()];
    let first = plane.kubectl(&apply).await.unwrap();
    assert_eq!(first.stderr, "");
    let first = first.checked().unwrap();
    assert!(
        first.lines().all(|line| line.ends_with(" created")),
        "{first}"
    );
    // The API server gives a definition its defaults a moment later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let again = plane.kubectl(&apply).await.unwrap().checked().unwrap();
    assert!(
        again.lines().all(|line| line.ends_with(" unchanged")),
        "{again}"
    );
    let get = ["get", "deployment", RELEASE, "-n", OWN];
    plane.kubectl(&get).await.unwrap().checked().unwrap();
}
