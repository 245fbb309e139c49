//! The operator as a process.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use testbed::{Process, scratch_root};

use crate::{Result, kubernetes::Kubernetes, tell};

/// The rights that its chart gives it.
const ROLES: &str = "charts/mongomirror/files/clusterrole.yaml";

/// A path that is taken for the operator's program.
const PROGRAM: &str = "MONGOMIRROR_BIN";

/// The running operator.
pub struct Operator {
    process: Process,
    log: PathBuf,
    listen: SocketAddr,
}

impl Operator {
    /// Starts it, as a pod would, with a service account's token.
    pub async fn start(kubernetes: &Kubernetes) -> Result<Self> {
        let kubeconfig = kubernetes.operator_kubeconfig(Path::new(ROLES)).await?;
        let program = program()?;
        let log = scratch_root()?.join("operator.log");
        // Whoever is given a port by the system does not get this one again soon.
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let arguments = ["operator", "--listen", &listen.to_string()];
        tell::command(&format!("mongomirror {}", arguments.join(" ")));
        let kubeconfig = ("KUBECONFIG".into(), kubeconfig.into());
        // A group of its own: Ctrl-C goes to the terminal's; the demo decides when it ends.
        let process = Process::start("the operator", program, arguments, [kubeconfig], &log)?;
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
    pub async fn while_running<T>(&self, what: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = what => outcome,
            ended = self.process.wait() => {
                Err(format!("the operator ended by itself ({})", ended?).into())
            }
        }
    }

    /// Asks it to end, and waits until it has kept its positions.
    pub async fn stop(self) -> Result<()> {
        let status = self.process.stop().await?;
        if !status.success() {
            return Err(format!("the operator ended with {status}").into());
        }
        Ok(())
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
