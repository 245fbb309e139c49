//! containerd, with files and sockets of its own.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{image::Image, machine, network::Network, sandbox::Sandbox};
use crate::{
    control_plane::Output,
    error::{Context, Error, Result},
    process::{Deadline, Server},
    scratch,
    tools::{blocking, on_path},
};

/// Within the node, whose /run is its own.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);

/// What holds the namespaces of a pod.
const PAUSE: &str = "testbed.local/pause:1";

/// The runtime of the node.
pub(super) struct Runtime {
    server: Server,
    ctr: PathBuf,
}

impl Runtime {
    /// Starts it, and returns when it answers.
    pub(super) async fn start(sandbox: &Sandbox, network: &Network, folder: &Path) -> Result<Self> {
        let plugins = folder.join("cni");
        network.write_cni(&plugins, &folder.join("addresses"))?;
        let config = folder.join("containerd.toml");
        let text = config_text(&folder.join("containerd"), &plugins);
        fs::write(&config, text).context(|| format!("write {}", config.display()))?;
        let containerd = machine::needed("containerd")?;
        let arguments = ["--config", &config.to_string_lossy()];
        let runtime = Self {
            server: sandbox.server("containerd", &containerd, &arguments, folder),
            ctr: machine::needed("ctr")?,
        };
        runtime.server.start()?;
        let socket = sandbox.path(SOCKET);
        let deadline = Deadline::after(PATIENCE);
        while let Err(error) = UnixStream::connect(&socket) {
            runtime.server.check_alive()?;
            if deadline.is_over() {
                let log = runtime.server.log_tail();
                return Err(deadline.error("containerd", error.to_string(), log));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        runtime.import(sandbox, &pause()?).await?;
        Ok(runtime)
    }

    async fn ctr(&self, sandbox: &Sandbox, arguments: &[&str]) -> Result<String> {
        let common = ["--address", SOCKET, "--namespace", "k8s.io"];
        let output: Output = sandbox
            .run(&self.ctr, &[&common, arguments].concat())
            .await?;
        output.checked()
    }

    /// Lets the node have this image.
    pub(super) async fn import(&self, sandbox: &Sandbox, image: &Image) -> Result<()> {
        let folder = scratch::folder("image")?;
        let (path, of) = (folder.path().to_owned(), image.clone());
        let archive = blocking(move || of.write(&path)).await?;
        let archive = archive.to_string_lossy();
        self.ctr(sandbox, &["images", "import", &archive]).await?;
        Ok(())
    }

    /// The first process of a container, as the node sees it.
    pub(super) async fn pid_of(&self, sandbox: &Sandbox, container: &str) -> Result<u32> {
        let tasks = self.ctr(sandbox, &["tasks", "list"]).await?;
        let mut lines = tasks.lines().map(str::split_whitespace);
        let pid = lines.find_map(|mut words| {
            (words.next() == Some(container)).then(|| words.next()?.parse().ok())?
        });
        pid.ok_or_else(|| Error::NotRunning(format!("the container {container}")))
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }
}

/// Any program that only waits does: nobody but the runtime ends it, by SIGKILL.
fn pause() -> Result<Image> {
    let sleep = on_path("sleep").ok_or_else(|| Error::MissingTool {
        tool: "sleep".into(),
        purpose: "hold the namespaces of pods".into(),
        hint: "install it (Debian, Ubuntu: apt-get install coreutils)".into(),
    })?;
    Ok(Image::of(PAUSE, &sleep)?.arguments(&["infinity"]))
}

fn config_text(root: &Path, plugins: &Path) -> String {
    let binaries = machine::plugins().unwrap_or(Path::new("/usr/lib/cni"));
    format!(
        r#"version = 2
root = {root:?}
state = "/run/containerd/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Root of a container may not lower it, and then no pod would start.
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {binaries:?}
    conf_dir = {plugins:?}

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
    )
}
