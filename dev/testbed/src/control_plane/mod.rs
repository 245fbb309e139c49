//! A Kubernetes control plane: etcd and an API server, and the controllers on request.
//!
//! `servers` starts the processes, `identity` makes certificates and kubeconfigs, `operator`
//! gives the operator exactly the rights of a ClusterRole, `audit` tells what it used of them,
//! `kubectl` and `helm` run these programs.

mod audit;
mod helm;
mod identity;
mod kubectl;
mod operator;
mod servers;

use std::{
    ffi::OsString,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use self::{
    identity::Identities,
    kubectl::Kubectl,
    servers::{Ports, Programs, Servers},
};
use crate::{certificates::Authority, error::Result, scratch, tools::kubernetes::Program};

pub use audit::Request;
pub use helm::Helm;
pub use kubectl::Output;
pub(crate) use kubectl::run_to_its_end;
pub(crate) use servers::flag;

/// A running control plane with RBAC, without nodes; [`Cluster`](crate::Cluster) has one.
///
/// Without the controller manager nothing reacts to objects: owned objects are not collected as
/// garbage and deleted namespaces are not emptied. Most tests of an operator need neither.
pub struct ControlPlane {
    // Before the folder: servers are ended first, then their files are removed.
    servers: Servers,
    identities: Identities,
    kubectl: Kubectl,
    admin: PathBuf,
    operator: operator::Account,
    audit: Option<audit::Log>,
    _folder: TempDir,
}

/// Collects what a test wants of a [`ControlPlane`], and starts it.
#[derive(Debug, Clone)]
#[must_use = "nothing runs before start()"]
pub struct ControlPlaneBuilder {
    address: Ipv4Addr,
    controller_manager: bool,
    audit: bool,
    api_server_arguments: Vec<OsString>,
    operator: operator::Account,
}

impl ControlPlane {
    /// Collects what is wanted.
    pub fn builder() -> ControlPlaneBuilder {
        ControlPlaneBuilder {
            address: Ipv4Addr::LOCALHOST,
            controller_manager: false,
            audit: false,
            api_server_arguments: Vec::new(),
            operator: operator::Account {
                namespace: "mongomirror-system".into(),
                name: "mongomirror".into(),
            },
        }
    }

    /// The address of the API server.
    pub fn url(&self) -> &str {
        &self.servers.url
    }

    /// The kubeconfig of an administrator, who may do everything.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// Writes a kubeconfig for any user, and a group if wanted. They may do what is bound to them.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        // User names hold colons, which some programs take for separators of paths.
        let file: String = user
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        self.identities.kubeconfig(&file, user, group)
    }

    /// The authority behind the API server's certificate.
    pub fn authority(&self) -> &Authority {
        &self.identities.authority
    }

    /// The file with its certificate.
    pub(crate) fn authority_file(&self) -> &Path {
        self.identities.ca()
    }

    /// Runs kubectl as the administrator.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        self.kubectl.run(&self.admin, arguments, None).await
    }

    /// Runs kubectl as the administrator with a manifest on its standard input
    /// (`&["apply", "-f", "-"]`).
    pub async fn kubectl_stdin(&self, arguments: &[&str], manifest: &str) -> Result<Output> {
        self.kubectl
            .run(&self.admin, arguments, Some(manifest))
            .await
    }

    /// Runs kubectl with another kubeconfig.
    pub async fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
        self.kubectl.run(kubeconfig, arguments, None).await
    }

    /// Ends the API server in its own way (SIGTERM). Data, port and certificates stay.
    pub async fn stop_api_server(&self) -> Result<()> {
        self.servers.api_server.stop().await
    }

    /// Ends the API server at once (SIGKILL), as a crash would.
    pub async fn kill_api_server(&self) -> Result<()> {
        self.servers.api_server.kill().await
    }

    /// Freezes the API server (SIGSTOP): connections stay open, nothing answers.
    pub fn pause_api_server(&self) -> Result<()> {
        self.servers.api_server.pause()
    }

    /// Lets the API server go on (SIGCONT).
    pub fn resume_api_server(&self) -> Result<()> {
        self.servers.api_server.resume()
    }

    /// Starts the API server again, unless it runs. Returns when it is ready.
    pub async fn start_api_server(&self) -> Result<()> {
        self.servers.api_server.start()?;
        self.servers
            .wait_until_ready(&self.kubectl, &self.admin)
            .await
    }

    /// The ends of the logs of all servers.
    pub fn log_tail(&self) -> String {
        self.servers.log_tail()
    }
}

impl ControlPlaneBuilder {
    /// Runs kube-controller-manager too: garbage collection, emptying of deleted namespaces,
    /// default service accounts, Deployments.
    pub fn controller_manager(mut self, on: bool) -> Self {
        self.controller_manager = on;
        self
    }

    /// The machine's address at which the API server listens, for a node to reach it; loopback
    /// by default.
    pub fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    /// Has the API server write down who asks for what, for
    /// [`operator_requests`](ControlPlane::operator_requests).
    pub fn audit(mut self, on: bool) -> Self {
        self.audit = on;
        self
    }

    /// Adds an argument of kube-apiserver, for example `--max-requests-inflight=…`.
    pub fn api_server_arg(mut self, argument: impl Into<OsString>) -> Self {
        self.api_server_arguments.push(argument.into());
        self
    }

    /// The operator's namespace and service account; `mongomirror-system` and `mongomirror` by
    /// default.
    pub fn operator(mut self, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        self.operator = operator::Account {
            namespace: namespace.into(),
            name: name.into(),
        };
        self
    }

    /// Starts it, and returns when the API server is ready (and the controllers at work).
    pub async fn start(mut self) -> Result<ControlPlane> {
        let programs = Programs::find(self.controller_manager).await?;
        let folder = scratch::folder("control-plane")?;
        let kubectl = Kubectl {
            program: Program::Kubectl.fetch().await?,
            cache: folder.path().join("kubectl"),
        };
        let audit = match self.audit {
            true => Some(audit::Log::new(folder.path())?),
            false => None,
        };
        let arguments = audit.iter().flat_map(audit::Log::arguments);
        self.api_server_arguments.extend(arguments);
        let ports = Ports::reserve(self.address)?;
        let identities = Identities::new(&folder.path().join("identities"), &ports.url())?;
        let admin = identities.kubeconfig("admin", "admin", Some("system:masters"))?;
        let servers = Servers::start(
            &programs,
            ports,
            &identities,
            &admin,
            folder.path(),
            &self.api_server_arguments,
        )?;
        let plane = ControlPlane {
            servers,
            identities,
            kubectl,
            admin,
            operator: self.operator,
            audit,
            _folder: folder,
        };
        plane
            .servers
            .wait_until_ready(&plane.kubectl, &plane.admin)
            .await?;
        plane
            .servers
            .start_controllers(&plane.kubectl, &plane.admin)
            .await?;
        Ok(plane)
    }
}
