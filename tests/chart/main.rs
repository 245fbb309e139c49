//! The Helm chart: what it makes of values, what a real API server says to that, and the life of a
//! release. `life` and `rights` need a control plane, `rendered` and `values` only helm.

mod life;
mod rendered;
mod rights;
mod values;

use std::path::{Path, PathBuf};

use serde_json::Value;
use testbed::{Helm, Output};

/// The namespace of the release.
const OWN: &str = "mongomirror-system";
const RELEASE: &str = "mongomirror";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> PathBuf {
    root().join("charts/mongomirror")
}

/// Everything that can be said otherwise is.
const ALL: &str = "
nameOverride: mirror
fullnameOverride: the-mirror
commonLabels: {team: data}
commonAnnotations: {owner: data}
deploymentAnnotations: {seen: 'yes'}
podLabels: {tier: back}
podAnnotations: {seen: 'no'}
revisionHistoryLimit: 1
image:
  repository: registry.example:5000/team/mongomirror
  tag: '1.2'
  digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  pullPolicy: Always
imagePullSecrets: [{name: registry}]
watchNamespaces: [shop, default]
replicas: 3
log: {format: text, filter: 'warn,mongomirror=debug'}
extraEnv:
  - {name: PLAIN, value: '1'}
  - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
extraEnvFrom: [{prefix: X_, configMapRef: {name: more}}, {secretRef: {name: more}}]
crds: {keep: false}
serviceAccount: {name: runner, annotations: {cloud: role}}
resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 1Gi}}
livenessProbe: {initialDelaySeconds: 1, periodSeconds: 7}
readinessProbe: {successThreshold: 2}
terminationGracePeriodSeconds: 60
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: dedicated, operator: Exists, effect: NoSchedule}]
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 1
        podAffinityTerm: {topologyKey: zone, labelSelector: {matchLabels: {a: b}}}
topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}
  - maxSkew: 2
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {own: label}}
priorityClassName: high
runtimeClassName: sandboxed
podDisruptionBudget: {enabled: true, minAvailable: 2}
service: {type: NodePort, port: 80, annotations: {prometheus.io/scrape: 'true'}, labels: {scrape: me}}
networkPolicy:
  enabled: true
  ingress: {from: [{namespaceSelector: {matchLabels: {name: monitoring}}, podSelector: {}}]}
  egress:
    dns: {to: [{ipBlock: {cidr: 169.254.20.10/32}}], ports: [53, 5353]}
    apiServer: {to: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.9/32]}}], ports: [6443]}
    mongodb: {to: [{ipBlock: {cidr: 10.1.0.0/16}}], ports: [27017, 27018]}
    extra: [{to: [{ipBlock: {cidr: 10.2.0.1/32}}], ports: [{port: 4317, protocol: TCP}]}]
";

/// helm, and a file for values.
struct Chart {
    helm: Helm,
    folder: tempfile::TempDir,
}

impl Chart {
    async fn new() -> Self {
        Self {
            helm: Helm::find().await.expect("helm"),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// `helm template` with these values.
    async fn template(&self, values: &str) -> Output {
        let file = self.values(values);
        let chart = chart();
        let chart = chart.to_string_lossy();
        let template = ["template", RELEASE, &chart, "-n", OWN, "-f", &file];
        self.helm.run(&template).await.expect("helm")
    }

    async fn manifest(&self, values: &str) -> String {
        let output = self.template(values).await;
        output
            .checked()
            .unwrap_or_else(|error| panic!("{error}\n{values}"))
    }

    async fn objects(&self, values: &str) -> Objects {
        Objects::of(&self.manifest(values).await)
    }

    fn values(&self, values: &str) -> String {
        let file = self.folder.path().join("values.yaml");
        std::fs::write(&file, values).expect("the values");
        file.to_string_lossy().into_owned()
    }
}

/// What is in a manifest.
struct Objects(Vec<Value>);

impl Objects {
    fn of(manifest: &str) -> Self {
        let all: Vec<Value> = serde_saphyr::from_multiple(manifest).expect("YAML");
        Self(all.into_iter().filter(|it| !it.is_null()).collect())
    }

    fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        let all = self.0.iter();
        all.filter(|it| it["kind"] == kind)
            .find(|it| it["metadata"]["name"] == name)
    }

    fn get(&self, kind: &str, name: &str) -> &Value {
        let found = self.find(kind, name);
        found.unwrap_or_else(|| panic!("no {kind} {name} in {:?}", self.names()))
    }

    /// `Kind name`, sorted.
    fn names(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let name = |it: &Value| text(&it["kind"]) + " " + &text(&it["metadata"]["name"]);
        let mut names: Vec<_> = self.0.iter().map(name).collect();
        names.sort();
        names
    }
}

/// The container in a Deployment.
fn container(deployment: &Value) -> &Value {
    &deployment["spec"]["template"]["spec"]["containers"][0]
}
