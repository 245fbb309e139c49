//! A cluster of one node: a control plane, and a node that runs pods on this machine.
//!
//! `machine` says what it takes, `sandbox` makes the namespaces in which all of the node lives,
//! `network` connects it, `runtime` is containerd, `image` what it runs, `kubelet` the rest of
//! Kubernetes, `names` the cluster's DNS. `replica_set` is MongoDB in a pod. `tar` writes archives.
//!
//! Nothing of it is seen by the machine but one interface with addresses of its own, folders of
//! cgroups, and processes; and nothing is left of these, however it ends.

mod image;
mod kubelet;
mod machine;
mod names;
mod network;
mod replica_set;
mod runtime;
mod sandbox;
mod tar;

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use self::{kubelet::Kubelet, names::Names, network::Network, runtime::Runtime, sandbox::Sandbox};
use crate::{
    control_plane::ControlPlane,
    error::{Context, Result},
    scratch,
    tools::blocking,
};

pub use image::Image;
pub use replica_set::PodSet;

/// A running cluster of one node.
pub struct Cluster {
    // In the order in which they are ended: whoever depends on another first.
    _names: Names,
    kubelet: Kubelet,
    runtime: Runtime,
    plane: ControlPlane,
    _network: Network,
    sandbox: Sandbox,
    folder: TempDir,
}

impl Cluster {
    /// Whether this machine can have one; else the error says why not. Installs the Debian
    /// packages that are missing, if it may.
    ///
    /// # Errors
    /// [`Error::NoNode`](crate::Error::NoNode) where nothing that could be installed would help.
    pub async fn prepare() -> Result<()> {
        blocking(machine::prepare).await
    }

    /// Starts one, and returns when pods may come.
    pub async fn start() -> Result<Self> {
        Self::prepare().await?;
        let folder = scratch::folder("node")?;
        let path = folder.path();
        let sandbox = Sandbox::start(path).await?;
        let network = Network::connect(&sandbox).await?;
        let plane = ControlPlane::builder()
            .controller_manager(true)
            .address(network.machine());
        let (plane, runtime) =
            tokio::try_join!(plane.start(), Runtime::start(&sandbox, &network, path),)?;
        let names = Names::start(network.machine(), plane.admin_kubeconfig()).await?;
        let kubelet = Kubelet::start(&sandbox, &network, &plane, path).await?;
        Ok(Self {
            _names: names,
            kubelet,
            runtime,
            plane,
            _network: network,
            sandbox,
            folder,
        })
    }

    /// Its control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Lets the node have an image. Pods name it, and never pull it.
    pub async fn import(&self, image: &Image) -> Result<()> {
        self.runtime.import(&self.sandbox, image).await
    }

    /// A new folder on the node, for a volume, that belongs to whoever images run as.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join("volumes").join(name);
        fs::create_dir_all(&path)
            .and_then(|()| chown(&path, Some(image::USER), Some(image::USER)))
            .context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// kill -9 of a container's first process, on the node, behind Kubernetes' back. The id is that
    /// of a pod's status, without `containerd://`.
    pub async fn kill_container(&self, id: &str) -> Result<()> {
        let pid = self.runtime.pid_of(&self.sandbox, id).await?.to_string();
        let kill = ["-c", "kill -9 \"$0\"", &pid];
        let killed = self.sandbox.run(Path::new("/bin/sh"), &kill).await?;
        killed.checked().map(drop)
    }

    /// The file of a container's cgroup of this controller (cgroup v1), or of all (v2).
    pub async fn cgroup_file(&self, id: &str, controller: &str, file: &str) -> Result<String> {
        let pid = self.runtime.pid_of(&self.sandbox, id).await?;
        let cgroups = self.sandbox.path(&format!("/proc/{pid}/cgroup"));
        let text = fs::read_to_string(&cgroups).context(|| "read a cgroup".into())?;
        let of = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (name, path) = (parts.next()?, parts.next()?.to_owned());
            let is_it = name.split(',').any(|it| it == controller);
            is_it.then(|| format!("/sys/fs/cgroup/{name}{path}"))
        };
        let of_all = || {
            let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
            Some(format!("/sys/fs/cgroup{path}"))
        };
        let folder = text.lines().find_map(of).or_else(of_all);
        let path = Path::new(&folder.unwrap_or_default()).join(file);
        fs::read_to_string(&path).context(|| format!("read {}", path.display()))
    }

    /// The ends of the logs of all servers.
    pub fn log_tail(&self) -> String {
        let runtime = self.runtime.server().named_log_tail();
        self.plane.log_tail() + &runtime + &self.kubelet.log_tail()
    }
}
