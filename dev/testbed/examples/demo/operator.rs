//! The operator as a process.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use testbed::scratch_root;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{Result, kubernetes::Kubernetes, tell};

/// The rights that its chart gives it.
const ROLES: &str = "charts/mongomirror/files/clusterrole.yaml";

/// A path that is taken for the operator's program.
const PROGRAM: &str = "MONGOMIRROR_BIN";

/// How long it may take to finish its batches.
const PATIENCE: Duration = Duration::from_secs(30);

/// The running operator.
pub struct Operator {
    process: Child,
    log: PathBuf,
    listen: SocketAddr,
}

impl Operator {
    /// Starts it, as a pod would, with a service account's token.
    pub async fn start(kubernetes: &Kubernetes) -> Result<Self> {
        let kubeconfig = kubernetes.operator_kubeconfig(Path::new(ROLES)).await?;
        let program = program()?;
        let log = scratch_root()?.join("operator.log");
        let output = File::create(&log)?;
        // Whoever is given a port by the system does not get this one again soon.
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let arguments = ["operator", "--listen", &listen.to_string()];
        tell::command(&format!("mongomirror {}", arguments.join(" ")));
        let process = Command::new(&program)
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C goes to the terminal's whole group; the demo decides when the operator ends.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("could not start {}: {error}", program.display()))?;
        Ok(Self {
            process,
            log,
            listen,
        })
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Where its status API is served.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Does something for which it must be running.
    pub async fn while_running<T>(&mut self, what: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = what => outcome,
            ended = self.process.wait() => {
                Err(format!("the operator ended by itself ({})", ended?).into())
            }
        }
    }

    /// Asks it to end, and waits until it has kept its positions.
    pub async fn stop(mut self) -> Result<()> {
        let Some(id) = self.process.id() else {
            return Ok(());
        };
        signal::kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM)?;
        match timeout(PATIENCE, self.process.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(|status| status.success()) => Ok(()),
            Ok(status) => Err(format!("the operator ended with {}", status?).into()),
            Err(_) => Err("the operator did not end when it was asked to".into()),
        }
    }
}

/// The last lines of its log.
pub fn read_log(log: &Path, lines: usize) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The program that was built beside this one.
fn program() -> Result<PathBuf> {
    if let Some(program) = env::var_os(PROGRAM) {
        return Ok(program.into());
    }
    // target/debug/examples/demo -> target/debug/mongomirror
    let own = env::current_exe()?;
    let built = own.parent().and_then(Path::parent);
    let program = built.unwrap_or(Path::new("")).join("mongomirror");
    if program.exists() {
        return Ok(program);
    }
    let hint = format!("run `make demo`, or set {PROGRAM} to its path");
    Err(format!("there is no {}: {hint}", program.display()).into())
}
