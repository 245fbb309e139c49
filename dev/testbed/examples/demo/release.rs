//! The operator as a release of its chart, in the cluster.

use testbed::{Helm, Image};

use crate::{Result, kubernetes::Kubernetes, operator::program, tell};

const RELEASE: &str = "mongomirror";
const NAMESPACE: &str = "mongomirror-system";
const CHART: &str = "charts/mongomirror";
/// Where the image is, and its tag.
const IMAGE: (&str, &str) = ("testbed.local/mongomirror", "demo");

/// The running release.
pub struct Release<'a> {
    kubernetes: &'a Kubernetes,
    helm: Helm,
}

impl<'a> Release<'a> {
    /// Installs it, as one would.
    pub async fn install(kubernetes: &'a Kubernetes) -> Result<Self> {
        let cluster = kubernetes.cluster().ok_or("this needs a cluster")?;
        let (repository, tag) = IMAGE;
        let image = Image::of(format!("{repository}:{tag}"), &program()?)?;
        cluster.import(&image).await?;
        let release = Self {
            kubernetes,
            helm: Helm::find().await?,
        };
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        for make in [
            &["create", "namespace", NAMESPACE][..],
            &["label", "namespace", NAMESPACE, restricted],
        ] {
            kubernetes.run(make).await?;
        }
        let values = format!("image.repository={repository},image.tag={tag},log.format=text");
        let wait = ["--wait", "--timeout=2m", "--hide-notes"];
        let install = ["install", RELEASE, CHART, "--set", &values];
        let installed = release.run(&[&install[..], &wait].concat()).await;
        if installed.is_err() {
            // There may be no log; then the error itself has to do.
            let end = release.read_log(40).await.unwrap_or_default();
            tell::note(&format!("\nThe end of the operator's log:\n{end}"));
        }
        installed?;
        release
            .run(&["test", RELEASE, "--logs", "--hide-notes"])
            .await?;
        kubernetes.run(&["get", "pods", "-n", NAMESPACE]).await?;
        Ok(release)
    }

    /// Runs helm and shows what it says.
    async fn run(&self, arguments: &[&str]) -> Result<()> {
        let all = [arguments, &["--namespace", NAMESPACE]].concat();
        tell::command(&format!("helm {}", all.join(" ")));
        let admin = self.kubernetes.plane().admin_kubeconfig();
        tell::output(&self.helm.run_as(admin, &all).await?.checked()?);
        Ok(())
    }

    /// The last lines of its log.
    pub async fn read_log(&self, lines: usize) -> Result<String> {
        let tail = format!("--tail={lines}");
        let deployment = format!("deployment/{RELEASE}");
        let logs = ["logs", &deployment, "-n", NAMESPACE, &tail];
        let output = self.kubernetes.plane().kubectl(&logs).await?;
        Ok(output.checked()?)
    }

    /// How to see its log go on.
    pub fn log_command(&self) -> String {
        format!("kubectl logs deployment/{RELEASE} -n {NAMESPACE} --follow")
    }

    /// Where its status API is served, for this machine.
    pub async fn listen(&self) -> Result<String> {
        let path = "jsonpath={.items[0].status.podIP}:\
                    {.items[0].spec.containers[0].ports[0].containerPort}";
        let own = "app.kubernetes.io/name=mongomirror";
        let get = ["get", "pods", "-n", NAMESPACE, "-l", own, "-o", path];
        let output = self.kubernetes.plane().kubectl(&get).await?;
        Ok(output.checked()?)
    }

    /// Uninstalls it; returns when its pod has ended, and so has kept its positions.
    pub async fn uninstall(self) -> Result<()> {
        let wait = ["--wait", "--timeout=60s"];
        self.run(&[&["uninstall", RELEASE][..], &wait].concat())
            .await
    }
}
