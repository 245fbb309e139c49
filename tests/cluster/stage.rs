//! The cluster with two servers, and what the scenes share.

use std::path::Path;
use std::time::{Duration, Instant};

use testbed::{Cluster, Helm, Image, Output};

use crate::common::{canary, eventually};
use crate::mongo::Mongo;

/// The namespace of the release.
pub const OWN: &str = "mongomirror-system";
/// That of the release that serves one alone, and the one that it serves.
pub const ONE: &str = "one";
/// That of mirrors and servers.
pub const SHOP: &str = "shop";
pub const RELEASE: &str = "mongomirror";

/// Pods of the release.
const OPERATORS: &str = "app.kubernetes.io/name=mongomirror";

const OPERATOR_IMAGE: &str = "testbed.local/mongomirror:test";
const MONGOD_IMAGE: &str = "testbed.local/mongod:test";

/// Plays one scene, and says how long it took.
#[macro_export]
macro_rules! scene {
    ($stage:ident, $scene:path) => {{
        let begun = std::time::Instant::now();
        $scene(&$stage).await;
        eprintln!("{:6.1?} {}", begun.elapsed(), stringify!($scene));
    }};
}

/// A running cluster.
pub struct Stage {
    cluster: Cluster,
    helm: Helm,
    pub source: Mongo,
    pub target: Mongo,
}

impl Stage {
    pub async fn start() -> Self {
        let begun = Instant::now();
        let cluster = Cluster::start().await;
        let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
        eprintln!("{:6.1?} the cluster", begun.elapsed());
        let begun = Instant::now();
        let operator = Path::new(env!("CARGO_BIN_EXE_mongomirror"));
        let operator = Image::of(OPERATOR_IMAGE, operator).expect("an image");
        let mongod = Image::of_mongod(MONGOD_IMAGE, None).expect("an image");
        for image in [&operator, &mongod] {
            cluster.import(image).await.expect("it is taken");
        }
        eprintln!("{:6.1?} images", begun.elapsed());
        let begun = Instant::now();
        let namespace = restricted_namespace(SHOP);
        let apply = ["apply", "-f", "-"];
        checked(cluster.plane().kubectl_stdin(&apply, &namespace).await);
        let (source, target) = tokio::join!(
            Mongo::start(&cluster, "source", &mongod),
            Mongo::start(&cluster, "target", &mongod),
        );
        eprintln!("{:6.1?} servers", begun.elapsed());
        Self {
            cluster,
            helm: Helm::find().await.expect("helm"),
            source,
            target,
        }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A namespace whose pods have to be restricted.
    pub async fn restricted_namespace(&self, name: &str) {
        self.apply(&restricted_namespace(name)).await;
    }

    pub async fn apply(&self, manifest: &str) -> String {
        let plane = self.cluster.plane();
        let output = plane.kubectl_stdin(&["apply", "-f", "-"], manifest).await;
        checked(output)
    }

    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        checked(self.cluster.plane().kubectl(arguments).await)
    }

    /// What it says, or what it complains about.
    pub async fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.cluster.plane().kubectl(arguments).await;
        let output = output.expect("kubectl");
        match output.success {
            true => Ok(output.stdout),
            false => Err(output.stderr),
        }
    }

    /// One field of an object.
    pub async fn field(&self, namespace: &str, object: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        self.kubectl(&["get", object, "-n", namespace, "-o", &path])
            .await
    }

    pub async fn helm(&self, arguments: &[&str]) -> String {
        let admin = self.cluster.plane().admin_kubeconfig();
        checked(self.helm.run_as(admin, arguments).await)
    }

    /// What it says, or all that it says when it fails.
    pub async fn try_helm(&self, arguments: &[&str]) -> Result<String, String> {
        let admin = self.cluster.plane().admin_kubeconfig();
        let output = self.helm.run_as(admin, arguments).await.expect("helm");
        match output.success {
            true => Ok(output.stdout),
            false => Err(output.stdout + &output.stderr),
        }
    }

    /// `helm install` or `upgrade` of the chart with the operator's image, waiting until it runs.
    pub async fn release(&self, what: &[&str], namespace: &str, values: &[&str]) {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/mongomirror");
        let chart = chart.to_string_lossy();
        let (repository, tag) = OPERATOR_IMAGE.rsplit_once(':').expect("a tag");
        let (repository, tag) = (
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
        );
        let common = [&*chart, "-n", namespace, "--wait", "--timeout=3m"];
        let image = ["--set", &repository, "--set", &tag];
        let values: Vec<&str> = values.iter().flat_map(|it| ["--set", *it]).collect();
        self.helm(&[what, &common, &image, &values].concat()).await;
    }

    /// The names of the operator's pods that are not on their way out.
    pub async fn operators(&self) -> Vec<String> {
        let path = "go-template={{range .items}}{{if not .metadata.deletionTimestamp}}\
                    {{.metadata.name}} {{end}}{{end}}";
        let get = ["get", "pods", "-n", OWN, "-l", OPERATORS, "-o", path];
        let names = self.kubectl(&get).await;
        names.split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until no operator is left, not even one that is ending.
    pub async fn no_operators(&self) {
        let get = ["get", "pods", "-n", OWN, "-l", OPERATORS, "-o", "name"];
        eventually("all operators are gone", async || {
            self.kubectl(&get).await.is_empty().then_some(())
        })
        .await;
    }

    /// The name of the pod that leads.
    pub async fn leader(&self) -> String {
        eventually("one of the operators leads", async || {
            let holder = self
                .field(OWN, &format!("lease/{RELEASE}"), ".spec.holderIdentity")
                .await;
            let pods = self.operators().await;
            pods.into_iter().find(|pod| holder.contains(pod.as_str()))
        })
        .await
    }

    /// Waits as a user would.
    pub async fn wait(&self, namespace: &str, object: &str, what: &str) {
        let wait = [
            "wait",
            object,
            "-n",
            namespace,
            &format!("--for={what}"),
            "--timeout=120s",
        ];
        self.kubectl(&wait).await;
    }

    /// Waits until as many operators are ready as are wanted.
    pub async fn all_ready(&self) {
        let deployment = format!("deployment/{RELEASE}");
        let status = [
            "rollout",
            "status",
            &deployment,
            "-n",
            OWN,
            "--timeout=120s",
        ];
        self.kubectl(&status).await;
    }

    /// How often containers of the operators were started again, and why they ended.
    pub async fn ends(&self) -> String {
        let path = "jsonpath={range .items[*].status.containerStatuses[*]}\
                    {.restartCount}{.lastState.terminated.reason} {end}";
        let get = ["get", "pods", "-n", OWN, "-l", OPERATORS, "-o", path];
        self.kubectl(&get).await
    }

    /// Nothing that is shown anywhere has a password in it. What operators have logged is gone with
    /// them: this is for before they end, too.
    pub async fn shows_no_password(&self) {
        let kinds = "mongomirrors,events,pods,leases";
        let get = ["get", kinds, "--all-namespaces", "-o", "yaml"];
        canary::assert_none("a resource or an event", self.kubectl(&get).await);
        let before = self.logs("--previous=true", "--tail=-1").await;
        canary::assert_none("a log of before", before);
        let logs = self.logs("--previous=false", "--tail=-1").await;
        canary::assert_none("a log", &logs);
        assert!(!logs.is_empty(), "no operator has logged anything");
        for line in logs.lines() {
            // Behind the pod's name.
            let said = line.split_once("] ").map_or(line, |(_, said)| said);
            let json: Result<serde_json::Value, _> = serde_json::from_str(said);
            assert!(json.is_ok(), "not JSON: {line}");
        }
    }

    /// What the operators that are there have logged, now or before their containers were started
    /// again.
    async fn logs(&self, previous: &str, tail: &str) -> String {
        let mut all = String::new();
        for namespace in [OWN, ONE] {
            let get = [
                "get", "pods", "-n", namespace, "-l", OPERATORS, "-o", "name",
            ];
            let pods = self.try_kubectl(&get).await.unwrap_or_default();
            for pod in pods.lines() {
                let logs = ["logs", "-n", namespace, pod, "--prefix", tail, previous];
                // Of one at a time: it may be gone by now, and most have nothing of before.
                all += &self.try_kubectl(&logs).await.unwrap_or_default();
            }
        }
        all
    }

    /// All that may tell why a scene failed.
    async fn tell(&self) {
        for what in [
            &["get", "nodes,pods,pv,pvc,leases", "-A", "-o", "wide"][..],
            &["get", "mongomirrors", "-A", "-o", "yaml"],
            &[
                "get",
                "events",
                "-A",
                "--sort-by=.metadata.creationTimestamp",
            ],
        ] {
            let said = self.try_kubectl(what).await;
            eprintln!(
                "--- kubectl {}\n{}",
                what.join(" "),
                said.unwrap_or_else(|it| it)
            );
        }
        for previous in ["--previous=true", "--previous=false"] {
            let logs = self.logs(previous, "--tail=60").await;
            eprintln!("--- logs of operators, {previous}\n{logs}");
        }
        for mongo in [&self.source, &self.target] {
            let logs = ["logs", "-n", SHOP, &mongo.pod(), "--tail=20"];
            let said = self.try_kubectl(&logs).await;
            eprintln!("--- {}\n{}", mongo.pod(), said.unwrap_or_else(|it| it));
        }
        eprintln!("{}", self.cluster.log_tail());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = tokio::time::timeout(Duration::from_secs(30), self.tell());
            tokio::task::block_in_place(|| {
                // What was not told in time is not told: the failure itself is.
                let _ = tokio::runtime::Handle::current().block_on(told);
            });
        }
    }
}

fn restricted_namespace(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  \
         labels: {{pod-security.kubernetes.io/enforce: restricted}}\n"
    )
}

fn checked(output: testbed::Result<Output>) -> String {
    let output = output.and_then(Output::checked);
    output.unwrap_or_else(|error| panic!("{error}"))
}
