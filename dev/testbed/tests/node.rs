//! A node runs pods, and nothing of it is left, whichever way it ends. Needs root.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

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

/// The mount namespace that a process made for its first child.
fn namespace_below(parent: u32) -> Option<PathBuf> {
    let child = |parent: u32| {
        let list = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(list).unwrap_or_default();
        let children = children.split_whitespace().map(|it| it.parse().unwrap());
        children.collect::<Vec<u32>>()
    };
    let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let threads = fs::read_dir(format!("/proc/{parent}/task"))
        .unwrap()
        .flatten();
    let own = of(parent);
    threads
        .flat_map(|thread| fs::read_to_string(thread.path().join("children")))
        .flat_map(|all| {
            all.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .flat_map(|pid| child(pid.parse().unwrap()))
        .find_map(|pid| of(pid).filter(|it| Some(it) != own.as_ref()))
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
    async fn start() -> Option<Self> {
        if let Err(why) = Cluster::prepare().await {
            eprintln!("not run, since there can be no node here: {why}");
            return None;
        }
        let program = Program::Kubectl.fetch().await.unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"))
            .arg("cluster")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut kubeconfig = String::new();
        let output = command.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut kubeconfig).unwrap();
        let kubectl = |arguments: &[&str]| kubectl(&program, kubeconfig.trim(), arguments);
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
        Some(running)
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let prefix = format!("mongomirror-testbed-{}-", self.command.id());
        let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = entries(root).map(|entry| entry.path());
        hierarchies
            .chain([root.to_owned()])
            .flat_map(|hierarchy| entries(&hierarchy))
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect()
    }

    fn folders(&self) -> usize {
        let prefix = format!("mongomirror-testbed-{}-", self.command.id());
        let entries = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with(&prefix))
            .count()
    }

    fn has_left(&self) -> Option<String> {
        let runs = namespaces().contains(&self.namespace);
        let cgroups = self.cgroups();
        let folders = self.folders();
        let is_connected = self.interface.exists();
        let is_clean = !runs && cgroups.is_empty() && folders == 0 && !is_connected;
        (!is_clean).then(|| format!("{runs} {cgroups:?} {folders} {is_connected}"))
    }

    fn leaves_nothing(&self) {
        let begun = Instant::now();
        while let Some(left) = self.has_left() {
            assert!(begun.elapsed() < PATIENCE, "{left}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[tokio::test]
async fn a_node_runs_a_pod_and_leaves_nothing_when_it_is_stopped_or_killed() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let Some(mut running) = Running::start().await else {
            return;
        };
        kill(Pid::from_raw(running.command.id() as i32), signal).unwrap();
        running.command.wait().unwrap();
        running.leaves_nothing();
    }
}
