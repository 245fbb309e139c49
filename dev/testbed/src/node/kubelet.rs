//! What makes pods run: kube-scheduler, kubelet and kube-proxy.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{names::DOMAIN, network::Network, runtime::SOCKET, sandbox::Sandbox};
use crate::{
    control_plane::{ControlPlane, flag},
    error::{Context, Result},
    process::{Deadline, Recipe, Server},
    tools::kubernetes::Program,
};

/// What the node is called.
pub(super) const NAME: &str = "node";

const ASK_EVERY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(120);

/// The node's own part of Kubernetes.
pub(super) struct Kubelet {
    servers: [Server; 3],
}

impl Kubelet {
    /// Starts all three, and returns when pods may come.
    pub(super) async fn start(
        sandbox: &Sandbox,
        network: &Network,
        plane: &ControlPlane,
        folder: &Path,
    ) -> Result<Self> {
        let user = |name: &str, group| plane.kubeconfig_for(name, group);
        let scheduler = scheduler(
            &Program::Scheduler.fetch().await?,
            &user("system:kube-scheduler", None)?,
            folder,
        );
        let proxy = {
            let program = Program::Proxy.fetch().await?;
            let config = proxy_config(network, &user("system:kube-proxy", None)?);
            let file = write(folder, "kube-proxy.json", &config)?;
            sandbox.server("kube-proxy", &program, &[flag("config", file)], folder)
        };
        let kubelet = {
            let program = Program::Kubelet.fetch().await?;
            let me = user(&format!("system:node:{NAME}"), Some("system:nodes"))?;
            let config = kubelet_config(sandbox, network, plane, folder);
            let arguments = [
                flag("config", write(folder, "kubelet.json", &config)?),
                flag("kubeconfig", me),
                flag("hostname-override", NAME),
                flag("node-ip", network.node().to_string()),
                flag("root-dir", folder.join("kubelet")),
                flag("cert-dir", folder.join("kubelet-certificates")),
            ];
            sandbox.server("kubelet", &program, &arguments, folder)
        };
        let kubelet = Self {
            servers: [kubelet, proxy, scheduler],
        };
        for server in &kubelet.servers {
            server.start()?;
        }
        kubelet.wait_until_ready(plane).await?;
        Ok(kubelet)
    }

    async fn wait_until_ready(&self, plane: &ControlPlane) -> Result<()> {
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}{.spec.taints}";
        let deadline = Deadline::after(PATIENCE);
        loop {
            let answer = plane.kubectl(&["get", "node", NAME, "-o", ready]).await?;
            // No taint either: until a controller has removed it, no pod comes.
            if answer.success && answer.stdout.trim() == "True" {
                return Ok(());
            }
            for server in &self.servers {
                server.check_alive()?;
            }
            if deadline.is_over() {
                let said = answer.stdout + &answer.stderr;
                return Err(deadline.error("the node", said, self.log_tail()));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    pub(super) fn log_tail(&self) -> String {
        self.servers.iter().map(Server::named_log_tail).collect()
    }
}

/// It need not be on the node.
fn scheduler(program: &Path, kubeconfig: &Path, folder: &Path) -> Server {
    Server::new(Recipe {
        name: Program::Scheduler.name().into(),
        program: program.into(),
        arguments: vec![
            flag("kubeconfig", kubeconfig),
            flag("leader-elect", "false"),
            // Nobody asks it for metrics.
            flag("secure-port", "0"),
            flag("kube-api-qps", "500"),
            flag("kube-api-burst", "1000"),
        ],
        environment: Vec::new(),
        log: folder.join("kube-scheduler.log"),
    })
}

fn proxy_config(network: &Network, kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": NAME,
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": network.pods(),
        "detectLocalMode": "ClusterCIDR",
        "iptables": {"minSyncPeriod": "100ms", "localhostNodePorts": false},
        // The kernel's limits are the machine's.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "oomScoreAdj": 0,
    })
}

fn kubelet_config(
    sandbox: &Sandbox,
    network: &Network,
    plane: &ControlPlane,
    folder: &Path,
) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node().to_string(),
        // The API server alone asks it, for logs.
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": false},
            "x509": {"clientCAFile": plane.authority_file()},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", sandbox.cgroup()),
        "clusterDNS": [network.machine().to_string()],
        "clusterDomain": DOMAIN,
        "resolvConf": "",
        "podLogsDir": folder.join("pods"),
        "volumePluginDir": folder.join("volume-plugins"),
        "failSwapOn": false,
        // A machine with a full disk is not a full node; and its images are not to be collected.
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%",
            "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "oomScoreAdj": 0,
        // A changed Secret is seen at once, and what changed on the node is told at once.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
    })
}

fn write(folder: &Path, name: &str, config: &Value) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, format!("{config:#}\n")).context(|| format!("write {}", path.display()))?;
    Ok(path)
}
