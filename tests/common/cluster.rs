//! An operator process against a real API server, driven by kubectl as a user would.
//!
//! Whenever an operator ends, no password may be in anything that it has shown.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use testbed::{ControlPlane, ControlPlaneBuilder, Process, Proxy};

/// What the chart lets the operator do.
pub const CLUSTER_ROLE: &str = "charts/mongomirror/files/clusterrole.yaml";
/// What it lets it do in its own namespace, to agree with others on a leader.
pub const LEADER_ROLE: &str = "charts/mongomirror/files/leader-role.yaml";

use super::canary;

/// An operator that takes longer to answer does not: it has ended, or is frozen.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Where the status API lists all mirrors; each has paths of its own below.
const MIRRORS: &str = "/api/v1/mirrors";

/// An operator's process.
pub struct Operator {
    process: Process,
    port: u16,
    log: PathBuf,
}

impl Operator {
    fn start(
        kubeconfig: &Path,
        log: PathBuf,
        port: u16,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        let more = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        let environment = more.chain([("KUBECONFIG".into(), kubeconfig.into())]);
        let environment: Vec<(OsString, OsString)> = environment.collect();
        let listen = format!("127.0.0.1:{port}");
        let mut all = vec!["operator", "--listen", &listen];
        all.extend_from_slice(arguments);
        let process = Process::start(
            "the operator",
            env!("CARGO_BIN_EXE_mongomirror"),
            all,
            environment,
            &log,
        )
        .expect("the operator");
        Self { process, port, log }
    }

    /// kill -9.
    pub async fn kill(self) {
        self.shows_no_password();
        self.process.kill().await.expect("kill");
    }

    /// SIGTERM; returns when it has ended, as it should.
    pub async fn stop(self) {
        self.shows_no_password();
        let status = self.process.stop().await.expect("stop");
        assert!(status.success(), "{status}");
    }

    /// Waits until it dies at the crash point that it was started with.
    pub async fn dies(self) {
        let ended = tokio::time::timeout(super::PATIENCE, self.process.wait());
        let status = ended.await.expect("it does not die").expect("its end");
        assert!(!status.success(), "{status}");
        assert!(self.log().contains("crash point behind a write"));
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.process.pause().expect("pause");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.resume().expect("resume");
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails if a password is in its log, its metrics, or what it tells about mirrors.
    fn shows_no_password(&self) {
        canary::assert_none("the operator's log", self.log());
        let mut paths = vec!["/metrics".to_owned(), MIRRORS.to_owned()];
        while let Some(path) = paths.pop() {
            let Some(answer) = self.ask_now(&path) else {
                continue;
            };
            if path == MIRRORS {
                paths.extend(paths_of_mirrors(&answer));
            }
            canary::assert_none(&path, answer);
        }
    }

    /// As [`Self::exchange`], where nothing can be awaited.
    fn ask_now(&self, path: &str) -> Option<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, ANSWERS_WITHIN).ok()?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        // It may end in this moment.
        (!reply.is_empty()).then_some(reply)
    }

    /// What its HTTP server answers; nothing if it does not listen (yet).
    pub async fn exchange(&self, method: &str, path: &str, body: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = ("127.0.0.1", self.port);
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.ok()?;
        canary::assert_none(path, &reply);
        Some(reply)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // A test that has failed has something else to say.
        if !std::thread::panicking() {
            self.shows_no_password();
        }
    }
}

/// A control plane with the CRD, and an operator that has exactly the chart's rights.
pub struct Cluster {
    operator: Option<Operator>,
    kubeconfig: PathBuf,
    port: u16,
    folder: tempfile::TempDir,
    /// The control plane.
    pub plane: ControlPlane,
}

impl Cluster {
    /// Starts the control plane and the operator.
    pub async fn start() -> Self {
        let mut cluster = Self::without_operator().await;
        cluster.start_operator();
        cluster
    }

    /// Starts the control plane.
    pub async fn without_operator() -> Self {
        Self::of(ControlPlane::builder(), None).await
    }

    /// Starts one that writes down what the operator asks for. Its rights are of one namespace
    /// alone, if one is given.
    pub async fn audited(namespace: Option<&str>) -> Self {
        Self::of(ControlPlane::builder().audit(true), namespace).await
    }

    async fn of(plane: ControlPlaneBuilder, namespace: Option<&str>) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let plane = plane.start().await.expect("a control plane");
        let crd = std::fs::read_to_string(root.join("crds/mongomirrors.yaml")).expect("the CRD");
        plane
            .kubectl_stdin(&["apply", "-f", "-"], &crd)
            .await
            .and_then(testbed::Output::checked)
            .expect("the CRD is accepted");
        let established = [
            "wait",
            "--for=condition=Established",
            "crd/mongomirrors.mongomirror.dev",
        ];
        plane
            .kubectl(&established)
            .await
            .expect("kubectl")
            .checked()
            .expect("established");
        let roles = root.join(CLUSTER_ROLE);
        let kubeconfig = match namespace {
            Some(namespace) => plane.operator_kubeconfig_in(&roles, namespace).await,
            None => plane.operator_kubeconfig(&roles).await,
        };
        Self {
            operator: None,
            kubeconfig: kubeconfig.expect("the operator's rights"),
            port: free_port(),
            folder: tempfile::tempdir().expect("a folder"),
            plane,
        }
    }

    /// Starts the operator's process.
    pub fn start_operator(&mut self) {
        self.start_operator_with(&[]);
    }

    /// Starts it with more of an environment.
    pub fn start_operator_with(&mut self, environment: &[(&str, String)]) {
        let log = self.folder.path().join("operator.log");
        let operator = Operator::start(&self.kubeconfig, log, self.port, &[], environment);
        self.operator = Some(operator);
    }

    /// Puts a network between the API server and the operators that start from now on.
    pub async fn through_proxy(&mut self) -> Proxy {
        let (proxy, kubeconfig) = self.proxied().await;
        self.kubeconfig = kubeconfig;
        proxy
    }

    /// A network to the API server, and the kubeconfig of whoever goes through it.
    async fn proxied(&self) -> (Proxy, PathBuf) {
        let (_, port) = self.plane.url().rsplit_once(':').expect("an address");
        let proxy = Proxy::start(port.parse().expect("a port")).await;
        let proxy = proxy.expect("a proxy");
        let kubeconfig = std::fs::read(&self.kubeconfig).expect("the kubeconfig");
        let mut kubeconfig: serde_json::Value =
            serde_json::from_slice(&kubeconfig).expect("the test bed writes JSON");
        kubeconfig["clusters"][0]["cluster"]["server"] =
            format!("https://{}", proxy.address()).into();
        let path = self.folder.path().join(format!("proxy-{}", proxy.port()));
        std::fs::write(&path, kubeconfig.to_string()).expect("the kubeconfig");
        (proxy, path)
    }

    /// The token of the operator's service account.
    pub fn token(&self) -> String {
        let kubeconfig = std::fs::read(&self.kubeconfig).expect("the kubeconfig");
        let kubeconfig: serde_json::Value =
            serde_json::from_slice(&kubeconfig).expect("the test bed writes JSON");
        let token = kubeconfig["users"][0]["user"]["token"].as_str();
        token.expect("a token").to_owned()
    }

    /// Gives operators what they need to agree on a leader.
    pub async fn let_operators_agree(&self) {
        let role = Path::new(env!("CARGO_MANIFEST_DIR")).join(LEADER_ROLE);
        let granted = self.plane.operator_kubeconfig(&role).await;
        granted.expect("the operator's rights");
    }

    /// Another operator of this name, on a port of its own.
    pub fn another_operator(&self, name: &str, arguments: &[&str]) -> Operator {
        self.start_another(name, arguments, &self.kubeconfig, &[])
    }

    /// The same, which dies behind one of its writes to the API server.
    pub fn another_operator_that_dies(
        &self,
        name: &str,
        arguments: &[&str],
        behind: usize,
    ) -> Operator {
        let environment = [("MONGOMIRROR_CRASH_API", behind.to_string())];
        self.start_another(name, arguments, &self.kubeconfig, &environment)
    }

    /// The same behind a network to the API server that is its own.
    pub async fn another_operator_through_proxy(
        &self,
        name: &str,
        arguments: &[&str],
    ) -> (Operator, Proxy) {
        let (proxy, kubeconfig) = self.proxied().await;
        let operator = self.start_another(name, arguments, &kubeconfig, &[]);
        (operator, proxy)
    }

    fn start_another(
        &self,
        name: &str,
        arguments: &[&str],
        kubeconfig: &Path,
        environment: &[(&str, String)],
    ) -> Operator {
        let log = self.folder.path().join(format!("{name}.log"));
        Operator::start(kubeconfig, log, free_port(), arguments, environment)
    }

    /// What an operator says that cannot work in this environment, and ends by itself.
    pub async fn operator_that_fails(&self, environment: &[(&str, String)]) -> String {
        let log = self.folder.path().join("fails.log");
        let operator = Operator::start(&self.kubeconfig, log, free_port(), &[], environment);
        let ended = tokio::time::timeout(super::PATIENCE, operator.process.wait());
        let status = ended.await.expect("it does not end").expect("its end");
        assert!(!status.success(), "{status}");
        operator.log()
    }

    /// Bytes of memory that the operator has.
    pub fn memory(&self) -> u64 {
        let operator = self.operator.as_ref().expect("an operator");
        let pid = operator.process.pid().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next());
        kibibytes.expect("VmRSS").parse::<u64>().expect("a number") << 10
    }

    /// kill -9.
    pub async fn kill_operator(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.kill().await;
        }
    }

    /// SIGTERM; returns what it logged.
    pub async fn stop_operator(&mut self) -> String {
        let operator = self.operator.take().expect("an operator");
        let log = operator.log.clone();
        operator.stop().await;
        std::fs::read_to_string(log).expect("its log")
    }

    /// What the operator logged.
    pub fn log(&self) -> String {
        self.operator
            .as_ref()
            .map(Operator::log)
            .unwrap_or_default()
    }

    /// kubectl; what it prints, or a panic with its error.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.plane.kubectl(arguments).await.expect("kubectl");
        output
            .checked()
            .unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// kubectl apply.
    pub async fn apply(&self, manifest: &str) {
        self.plane
            .kubectl_stdin(&["apply", "-f", "-"], manifest)
            .await
            .and_then(testbed::Output::checked)
            .expect("apply");
    }

    /// What kubectl apply says against a manifest; a panic if nothing.
    pub async fn refused(&self, manifest: &str) -> String {
        let apply = ["apply", "-f", "-"];
        let output = self.plane.kubectl_stdin(&apply, manifest).await;
        let output = output.expect("kubectl");
        assert!(!output.success, "applied: {manifest}");
        output.stderr
    }

    /// Merges this into a mirror.
    pub async fn patch(&self, mirror: &str, patch: &str) {
        let patch = ["patch", "mongomirror", mirror, "--type=merge", "-p", patch];
        self.kubectl(&patch).await;
    }

    /// Waits until a field of a mirror has this value.
    pub async fn wait(&self, mirror: &str, path: &str, value: &str) {
        self.wait_in("default", mirror, path, value).await;
    }

    /// The same in another namespace.
    pub async fn wait_in(&self, namespace: &str, mirror: &str, path: &str, value: &str) {
        let condition = format!("--for=jsonpath={{{path}}}={value}");
        let of_it = ["mongomirror", mirror, "-n", namespace];
        let wait = [&["wait"], &of_it[..], &[&condition, "--timeout=60s"]].concat();
        let output = self.plane.kubectl(&wait).await.expect("kubectl");
        if !output.success {
            let get = [&["get"], &of_it[..], &["-o", "yaml"]].concat();
            let now = self.kubectl(&get).await;
            panic!("{mirror} has no {path}={value}: {}\n{now}", output.stderr);
        }
    }

    /// Waits until a mirror that runs says, for this reason and with this word, what is wrong with its
    /// Secrets, and that it goes on all the same.
    pub async fn goes_on_in_spite_of(&self, mirror: &str, reason: &str, word: &str) {
        let ready = r#".status.conditions[?(@.type=="Ready")]"#;
        let said = super::eventually(word, async || {
            let message = self.field(mirror, &format!("{ready}.message")).await;
            message.contains(word).then_some(message)
        })
        .await;
        assert!(said.contains("the mirror goes on"), "{said}");
        assert_eq!(self.field(mirror, ".status.message").await, said);
        let why = self.field(mirror, &format!("{ready}.reason")).await;
        assert_eq!(why, reason, "{said}");
        assert_eq!(self.field(mirror, ".status.phase").await, "Mirroring");
        assert_eq!(self.field(mirror, ".status.connected").await, "true");
    }

    /// Waits until a field of a mirror has this value; false if the operator dies before.
    pub async fn reaches(&self, mirror: &str, path: &str, value: &str) -> bool {
        let what = format!("{mirror} has {path}={value}, or the operator is dead");
        super::eventually(&what, async || {
            let is_dead = self
                .operator
                .as_ref()
                .is_none_or(|it| !matches!(it.process.ended(), Ok(None)));
            match self.field(mirror, path).await {
                now if now == value => Some(true),
                _ => is_dead.then_some(false),
            }
        })
        .await
    }

    /// One field of a mirror.
    pub async fn field(&self, mirror: &str, path: &str) -> String {
        let template = format!("jsonpath={{{path}}}");
        self.kubectl(&["get", "mongomirror", mirror, "-o", &template])
            .await
    }

    /// What the status API answers for a path.
    pub async fn http(&self, path: &str) -> String {
        self.exchange("GET", path, "").await
    }

    /// What it answers to this.
    pub async fn post(&self, path: &str, body: &str) -> String {
        self.exchange("POST", path, body).await
    }

    async fn exchange(&self, method: &str, path: &str, body: &str) -> String {
        let operator = self.operator.as_ref().expect("an operator runs");
        let reply = operator.exchange(method, path, body).await;
        reply.expect("the status API listens")
    }
}

impl Drop for Cluster {
    /// Fails if a password is in a resource or an event.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let kinds = "mongomirrors,events.events.k8s.io";
        let get = ["get", kinds, "--all-namespaces", "--output=yaml"];
        let everything = tokio::task::block_in_place(|| {
            let runtime = tokio::runtime::Handle::current();
            runtime.block_on(self.kubectl(&get))
        });
        canary::assert_none("a resource or an event", everything);
    }
}

/// What can be read of each mirror in this list; none in the answer of an operator that stands by.
fn paths_of_mirrors(reply: &str) -> Vec<String> {
    let (head, body) = reply.split_once("\r\n\r\n").expect("a reply");
    if !head.starts_with("HTTP/1.1 200") {
        return Vec::new();
    }
    let list: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let mirrors = list["mirrors"].as_array().expect("a list").iter();
    let paths = mirrors.flat_map(|mirror| {
        let [namespace, name] = ["namespace", "name"].map(|it| mirror[it].as_str().expect(it));
        let one = format!("{MIRRORS}/{namespace}/{name}");
        [format!("{one}/quarantine"), one]
    });
    paths.collect()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A Secret with a connection string.
pub fn secret(name: &str, uri: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{uri: \"{uri}\"}}\n---\n"
    )
}

/// A MongoMirror; `more` are further lines of its spec.
pub fn mirror(name: &str, secret: &str, database: &str, more: &str) -> String {
    format!(
        "apiVersion: mongomirror.dev/v1alpha1\nkind: MongoMirror\nmetadata: {{name: {name}}}\nspec:\n  \
         source: {{uriSecretRef: {{name: {secret}}}, database: {database}}}\n{more}---\n"
    )
}
