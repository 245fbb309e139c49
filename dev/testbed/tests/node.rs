//! A node runs pods, and nothing of it is left, whichever way it ends. Needs root.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use common::{children_of, entries_of, folders_of, nothing_is_left};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testbed::{Cluster, Program};

const PATIENCE: Duration = Duration::from_secs(30);

/// `testbed cluster` as somebody runs it, with a pod.
struct Running {
    command: Child,
    /// The mount namespace of the node.
    namespace: PathBuf,
    /// The interface that connects the node.
    interface: PathBuf,
}

/// The mount namespaces that processes are in.
fn namespaces() -> BTreeSet<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read_link(entry.path().join("ns/mnt")).ok())
        .collect()
}

/// The mount namespace that a process made for its first grandchild.
fn namespace_below(parent: u32) -> Option<PathBuf> {
    let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = of(parent);
    let below = children_of(parent).into_iter().flat_map(children_of);
    let mut namespaces = below.filter_map(of);
    namespaces.find(|it| Some(it) != own.as_ref())
}

fn kubectl(program: &Path, kubeconfig: &str, arguments: &[&str]) -> String {
    let mut kubectl = Command::new(program);
    kubectl.args(arguments).env("KUBECONFIG", kubeconfig);
    let output = kubectl.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

impl Running {
    async fn start() -> Self {
        if let Err(why) = Cluster::prepare().await {
            panic!("{why}");
        }
        let program = Program::Kubectl.fetch().await.unwrap();
        let (command, kubeconfig) = common::testbed(&["cluster"]);
        let kubectl = |arguments: &[&str]| kubectl(&program, &kubeconfig, arguments);
        let image = "--image=testbed.local/mongod:test";
        let never = "--image-pull-policy=Never";
        let arguments = ["--dbpath=/tmp", "--bind_ip_all"];
        kubectl(&[&["run", "it", image, never, "--"], &arguments[..]].concat());
        kubectl(&["wait", "pod/it", "--for=condition=Ready", "--timeout=60s"]);
        let logs = kubectl(&["logs", "it", "--tail=1"]);
        assert!(logs.starts_with('{'), "what mongod logs: {logs}");
        let server = [
            "config",
            "view",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ];
        let server = kubectl(&server);
        let number = server.split('.').nth(2).unwrap();
        let interface = format!("/sys/class/net/testbed-{number}").into();
        let running = Self {
            namespace: namespace_below(command.id()).expect("the node's processes"),
            command,
            interface,
        };
        assert!(running.interface.exists());
        assert!(!running.cgroups().is_empty());
        running
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        hierarchies
            .chain([root.to_owned()])
            .flat_map(|hierarchy| entries_of(self.command.id(), hierarchy))
            .collect()
    }

    fn has_left(&self) -> Option<String> {
        let runs = namespaces().contains(&self.namespace);
        let cgroups = self.cgroups();
        let folders = folders_of(self.command.id());
        let is_connected = self.interface.exists();
        let is_clean = !runs && cgroups.is_empty() && folders.is_empty() && !is_connected;
        (!is_clean).then(|| format!("{runs} {cgroups:?} {folders:?} {is_connected}"))
    }
}

#[tokio::test]
async fn a_node_runs_a_pod_and_leaves_nothing_when_it_is_stopped_or_killed() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut running = Running::start().await;
        kill(Pid::from_raw(running.command.id() as i32), signal).unwrap();
        running.command.wait().unwrap();
        nothing_is_left(PATIENCE, || running.has_left());
    }
}
