//! The processes of the control plane.

use std::{
    ffi::OsString,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::TcpStream, time::sleep};

use super::{identity::Identities, kubectl::Kubectl};
use crate::{
    error::{Context, Result},
    port::Port,
    process::{Deadline, Recipe, Server},
    tools::kubernetes::Program,
};

const ASK_EVERY: Duration = Duration::from_millis(50);
/// Ample, for machines where much else runs: two idle cores need less than three seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The addresses of Services, and the first of them, which is the API server's own.
const SERVICES: &str = "10.0.0.0/24";
const FIRST_SERVICE: &str = "10.0.0.1";

pub(super) struct Programs {
    etcd: PathBuf,
    api_server: PathBuf,
    controller_manager: Option<PathBuf>,
}

impl Programs {
    pub(super) async fn find(with_controllers: bool) -> Result<Self> {
        Ok(Self {
            etcd: Program::Etcd.fetch().await?,
            api_server: Program::ApiServer.fetch().await?,
            controller_manager: match with_controllers {
                true => Some(Program::ControllerManager.fetch().await?),
                false => None,
            },
        })
    }
}

pub(super) struct Ports {
    /// Where the API server listens.
    address: Ipv4Addr,
    etcd: Port,
    etcd_peer: Port,
    api_server: Port,
}

impl Ports {
    pub(super) fn reserve(address: Ipv4Addr) -> Result<Self> {
        Ok(Self {
            address,
            etcd: Port::reserve()?,
            etcd_peer: Port::reserve()?,
            api_server: Port::reserve()?,
        })
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.api_server.number())
    }
}

/// Declared in the order in which they are ended: whoever depends on another first.
pub(super) struct Servers {
    controller_manager: Option<Server>,
    pub(super) api_server: Server,
    etcd: Server,
    pub(super) url: String,
    ports: Ports,
}

impl Servers {
    /// Starts all of them at once: the API server waits for etcd, the controllers for both.
    pub(super) fn start(
        programs: &Programs,
        ports: Ports,
        identities: &Identities,
        admin: &Path,
        folder: &Path,
        api_server_arguments: &[OsString],
    ) -> Result<Self> {
        let logs = folder.join("logs");
        fs::create_dir_all(&logs).context(|| format!("make {}", logs.display()))?;
        let server = |program: &Path, name: &str, arguments: Vec<OsString>| {
            Server::new(Recipe {
                name: name.into(),
                program: program.into(),
                arguments,
                environment: Vec::new(),
                log: logs.join(format!("{name}.log")),
            })
        };
        let keys = identities.service_account_keys()?;
        let etcd = etcd(&ports, &folder.join("etcd"));
        let mut api = api_server(&ports, identities, &keys)?;
        if programs.controller_manager.is_none() {
            // It wants a default service account in every namespace, which a controller makes.
            api.push("--disable-admission-plugins=ServiceAccount".into());
        }
        api.extend(api_server_arguments.iter().cloned());
        let controllers = programs.controller_manager.as_ref().map(|program| {
            let arguments = controller_manager(identities, &keys, admin);
            server(program, Program::ControllerManager.name(), arguments)
        });
        let servers = Self {
            controller_manager: controllers,
            api_server: server(&programs.api_server, Program::ApiServer.name(), api),
            etcd: server(&programs.etcd, Program::Etcd.name(), etcd),
            url: ports.url(),
            ports,
        };
        servers.etcd.start()?;
        servers.api_server.start()?;
        Ok(servers)
    }

    pub(super) async fn wait_until_ready(&self, kubectl: &Kubectl, admin: &Path) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        let address = (self.ports.address, self.ports.api_server.number());
        // kubectl costs a process each time, so knock first.
        while let Err(error) = TcpStream::connect(address).await {
            self.go_on_waiting(&deadline, &error.to_string()).await?;
        }
        let question = ["get", "--raw=/readyz", "--request-timeout=5s"];
        loop {
            let answer = kubectl.run(admin, &question, None).await?;
            if answer.success {
                return Ok(());
            }
            self.go_on_waiting(&deadline, answer.stderr.trim()).await?;
        }
    }

    /// Starts the controllers, and waits for the first sign of their work.
    pub(super) async fn start_controllers(&self, kubectl: &Kubectl, admin: &Path) -> Result<()> {
        let Some(controllers) = &self.controller_manager else {
            return Ok(());
        };
        controllers.start()?;
        let deadline = Deadline::after(PATIENCE);
        loop {
            let question = ["get", "serviceaccount", "default", "--namespace=default"];
            let answer = kubectl.run(admin, &question, None).await?;
            if answer.success {
                return Ok(());
            }
            controllers.check_alive()?;
            self.go_on_waiting(&deadline, answer.stderr.trim()).await?;
        }
    }

    async fn go_on_waiting(&self, deadline: &Deadline, reason: &str) -> Result<()> {
        self.etcd.check_alive()?;
        self.api_server.check_alive()?;
        if deadline.is_over() {
            return Err(deadline.error("the control plane", reason.into(), self.log_tail()));
        }
        sleep(ASK_EVERY).await;
        Ok(())
    }

    pub(super) fn log_tail(&self) -> String {
        [&self.etcd, &self.api_server]
            .into_iter()
            .chain(&self.controller_manager)
            .map(Server::named_log_tail)
            .collect()
    }
}

/// `--name=value`, where the value may be a path.
pub(crate) fn flag(name: &str, value: impl Into<OsString>) -> OsString {
    let mut argument = OsString::from(format!("--{name}="));
    argument.push(value.into());
    argument
}

fn etcd(ports: &Ports, data: &Path) -> Vec<OsString> {
    let client = format!("http://127.0.0.1:{}", ports.etcd.number());
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer.number());
    vec![
        flag("name", "testbed"),
        flag("data-dir", data),
        flag("listen-client-urls", &client),
        flag("advertise-client-urls", &client),
        flag("listen-peer-urls", &peer),
        flag("initial-advertise-peer-urls", &peer),
        flag("initial-cluster", format!("testbed={peer}")),
        // A test's data need not survive a power cut.
        "--unsafe-no-fsync".into(),
    ]
}

fn api_server(
    ports: &Ports,
    identities: &Identities,
    (signing_key, verifying_key): &(PathBuf, PathBuf),
) -> Result<Vec<OsString>> {
    let address = ports.address.to_string();
    let (certificate, key) = identities.server(&[&address, FIRST_SERVICE])?;
    let mut arguments = vec![
        flag(
            "etcd-servers",
            format!("http://127.0.0.1:{}", ports.etcd.number()),
        ),
        flag("bind-address", &address),
        flag("secure-port", ports.api_server.number().to_string()),
        flag("tls-cert-file", certificate),
        flag("tls-private-key-file", key),
        flag("client-ca-file", identities.ca()),
        flag("authorization-mode", "RBAC,Node"),
        flag("service-account-issuer", "https://kubernetes.default.svc"),
        flag("service-account-signing-key-file", signing_key),
        flag("service-account-key-file", verifying_key),
        flag("service-cluster-ip-range", SERVICES),
        flag("allow-privileged", "true"),
    ];
    if ports.address.is_loopback() {
        // A loopback address may not be an endpoint of the service "kubernetes".
        arguments.push(flag("endpoint-reconciler-type", "none"));
    } else {
        // A node is to come, whose kubelet tells logs to whom it knows.
        let (certificate, key) = identities.client("kubelet-client", "kube-apiserver", None)?;
        arguments.extend([
            flag("advertise-address", &address),
            flag("kubelet-client-certificate", certificate),
            flag("kubelet-client-key", key),
            flag("kubelet-preferred-address-types", "InternalIP"),
        ]);
    }
    Ok(arguments)
}

fn controller_manager(
    identities: &Identities,
    (signing_key, _): &(PathBuf, PathBuf),
    admin: &Path,
) -> Vec<OsString> {
    vec![
        flag("kubeconfig", admin),
        flag("root-ca-file", identities.ca()),
        flag("service-account-private-key-file", signing_key),
        flag("use-service-account-credentials", "true"),
        flag("leader-elect", "false"),
        // By default it holds itself back to 20 requests a second, and needs 5 s to start.
        flag("kube-api-qps", "500"),
        flag("kube-api-burst", "1000"),
        // Nobody asks it for metrics.
        flag("secure-port", "0"),
    ]
}
