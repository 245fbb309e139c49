//! The operator: a process, or a release of the chart where there is a node.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use testbed::{Process, scratch_root};

use crate::{Result, kubernetes::Kubernetes, release::Release, tell};

/// The rights that its chart gives it.
const ROLES: &str = "charts/mongomirror/files/clusterrole.yaml";

/// A path that is taken for the operator's program.
const PROGRAM: &str = "MONGOMIRROR_BIN";

/// The running operator.
pub enum Operator<'a> {
    Process {
        process: Box<Process>,
        log: PathBuf,
        listen: String,
    },
    Release(Release<'a>),
}

impl<'a> Operator<'a> {
    /// Starts it where it can run.
    pub async fn start(kubernetes: &'a Kubernetes) -> Result<Self> {
        if kubernetes.cluster().is_some() {
            return Release::install(kubernetes).await.map(Self::Release);
        }
        // As a pod would, with a service account's token.
        let kubeconfig = kubernetes.operator_kubeconfig(Path::new(ROLES)).await?;
        let program = program()?;
        let log = scratch_root()?.join("operator.log");
        // Whoever is given a port by the system does not get this one again soon.
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let listen = listen.to_string();
        let arguments = ["operator", "--listen", &listen];
        tell::command(&format!("mongomirror {}", arguments.join(" ")));
        let kubeconfig = ("KUBECONFIG".into(), kubeconfig.into());
        // A group of its own: Ctrl-C goes to the terminal's; the demo decides when it ends.
        let process = Process::start("the operator", program, arguments, [kubeconfig], &log)?;
        Ok(Self::Process {
            process: process.into(),
            log,
            listen,
        })
    }

    /// The last lines of its log.
    pub async fn read_log(&self, lines: usize) -> Result<String> {
        match self {
            Self::Process { log, .. } => {
                let text = fs::read_to_string(log)?;
                let all: Vec<&str> = text.lines().collect();
                Ok(all[all.len().saturating_sub(lines)..].join("\n"))
            }
            Self::Release(release) => release.read_log(lines).await,
        }
    }

    /// How to see its log go on.
    pub fn log_command(&self) -> String {
        match self {
            Self::Process { log, .. } => format!("tail -f {}", log.display()),
            Self::Release(release) => release.log_command(),
        }
    }

    /// Where its status API is served.
    pub async fn listen(&self) -> Result<String> {
        match self {
            Self::Process { listen, .. } => Ok(listen.clone()),
            Self::Release(release) => release.listen().await,
        }
    }

    /// Does something for which it must be running. A pod that ended is started again.
    pub async fn while_running<T>(&self, what: impl Future<Output = Result<T>>) -> Result<T> {
        let Self::Process { process, .. } = self else {
            return what.await;
        };
        tokio::select! {
            outcome = what => outcome,
            ended = process.wait() => {
                Err(format!("the operator ended by itself ({})", ended?).into())
            }
        }
    }

    /// Asks it to end, and waits until it has kept its positions.
    pub async fn stop(self) -> Result<()> {
        let process = match self {
            Self::Process { process, .. } => process,
            Self::Release(release) => return release.uninstall().await,
        };
        let status = process.stop().await?;
        if !status.success() {
            return Err(format!("the operator ended with {status}").into());
        }
        Ok(())
    }
}

/// The program that was built beside this one.
pub fn program() -> Result<PathBuf> {
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
