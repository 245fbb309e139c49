//! Kubernetes, and kubectl as one would type it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use testbed::{Cluster, ControlPlane, Program, scratch_root};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use crate::{Result, tell};

/// Longest wait for a mirror to be where it shall be.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running Kubernetes.
pub struct Kubernetes {
    place: Place,
    kubectl: PathBuf,
}

enum Place {
    /// Without nodes: what runs in it runs as a process of this machine.
    Plane(Box<ControlPlane>),
    /// With one.
    Cluster(Box<Cluster>),
}

impl Kubernetes {
    /// A control plane, or a whole cluster.
    pub async fn start(with_node: bool) -> Result<Self> {
        let place = match with_node {
            true => Place::Cluster(Box::new(Cluster::start().await?)),
            false => Place::Plane(Box::new(ControlPlane::builder().start().await?)),
        };
        let kubectl = Program::Kubectl.fetch().await?;
        let kubernetes = Self { place, kubectl };
        let url = kubernetes.plane().url();
        tell::note(&format!("kube-apiserver runs at {url}."));
        Ok(kubernetes)
    }

    pub fn plane(&self) -> &ControlPlane {
        match &self.place {
            Place::Plane(plane) => plane,
            Place::Cluster(cluster) => cluster.plane(),
        }
    }

    /// The cluster, if there is a node.
    pub fn cluster(&self) -> Option<&Cluster> {
        match &self.place {
            Place::Plane(_) => None,
            Place::Cluster(cluster) => Some(cluster),
        }
    }

    /// A kubeconfig with the rights of a ClusterRole.
    pub async fn operator_kubeconfig(&self, roles: &Path) -> Result<PathBuf> {
        Ok(self.plane().operator_kubeconfig(roles).await?)
    }

    /// Runs kubectl and shows what it says.
    pub async fn run(&self, arguments: &[&str]) -> Result<()> {
        tell::command(&typed(arguments));
        tell::output(&self.plane().kubectl(arguments).await?.checked()?);
        Ok(())
    }

    /// Applies manifests, which are shown.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        tell::command("kubectl apply -f - <<END");
        tell::output(manifests);
        tell::output("END");
        let arguments = ["apply", "-f", "-"];
        let output = self.plane().kubectl_stdin(&arguments, manifests).await?;
        tell::output(&output.checked()?);
        Ok(())
    }

    /// Switches a mirror on or off, and waits until it is.
    pub async fn enable(&self, mirror: &str, on: bool) -> Result<()> {
        let patch = format!(r#"{{"spec":{{"enabled":{on}}}}}"#);
        self.run(&[
            "patch",
            "mongomirror",
            mirror,
            "--type",
            "merge",
            "-p",
            &patch,
        ])
        .await?;
        let phase = if on { "Mirroring" } else { "Paused" };
        let condition = format!("--for=jsonpath={{.status.phase}}={phase}");
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        self.run(&["wait", &condition, "mongomirror", mirror, &patience])
            .await
    }

    /// Shows every change of a mirror's line until that holds all of these words.
    pub async fn watch_until(&self, mirror: &str, words: &[&str]) -> Result<()> {
        let arguments = ["get", "mongomirror", mirror, "--watch"];
        tell::command(&typed(&arguments));
        let mut kubectl = Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", self.plane().admin_kubeconfig())
            .env("KUBECACHEDIR", scratch_root()?.join("kubectl"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = kubectl.stdout.take().ok_or("kubectl has no output")?;
        let mut lines = BufReader::new(output).lines();
        let found = async {
            while let Some(line) = lines.next_line().await? {
                tell::output(&line);
                let said: Vec<&str> = line.split_whitespace().collect();
                if words.iter().all(|word| said.contains(word)) {
                    return Ok(());
                }
            }
            Err("kubectl ended".into())
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| {
            let waited = PATIENCE.as_secs();
            Err(format!("still not {} after {waited} s", words.join(" and ")).into())
        })
    }

    /// What a shell needs to talk to it.
    pub fn environment(&self) -> String {
        let kubeconfig = self.plane().admin_kubeconfig().display();
        let folder = self.kubectl.parent().unwrap_or(Path::new("/"));
        let path = env::var_os("PATH").unwrap_or_default();
        if env::split_paths(&path).any(|known| known == folder) {
            return format!("export KUBECONFIG={kubeconfig}");
        }
        let folder = folder.display();
        format!("export KUBECONFIG={kubeconfig} PATH=$PATH:{folder}")
    }
}

/// The command as one would type it, quoted where a shell needs it.
fn typed(arguments: &[&str]) -> String {
    let mut text = String::from("kubectl");
    for argument in arguments {
        text.push(' ');
        if argument.contains(['{', '"', ' ']) {
            text.push_str(&format!("'{argument}'"));
        } else {
            text.push_str(argument);
        }
    }
    text
}
