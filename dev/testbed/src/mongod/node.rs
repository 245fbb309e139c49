//! One mongod.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bson::{Document, doc};
use mongodb::Client;
use tokio::{net::TcpStream, time::sleep};

use super::access::SharedAccess;
use crate::{
    disk::Disk,
    error::{Context, Error, Result},
    port::Port,
    process::{Deadline, Server},
    proxy::Proxy,
    tools::{blocking, mongod::Mongod, mongod::Version},
};

/// How often a server is asked whether it is ready.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long a server may take to become ready: ample, for machines where much else runs.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);
/// How long one question may take. A server that does not answer in that time is busy or gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// One mongod, alone or a member of a replica set.
pub struct Node {
    server: Server,
    access: SharedAccess,
    port: Port,
    proxy: Option<Proxy>,
    // Behind the server, which is ended first.
    disk: Option<Disk>,
}

impl Node {
    pub(super) fn new(server: Server, access: SharedAccess, port: Port) -> Self {
        Self {
            server,
            access,
            port,
            proxy: None,
            disk: None,
        }
    }

    /// Gives it a disk of its own.
    pub(super) fn give_disk(&mut self, megabytes: u32) -> Result<()> {
        self.disk = Some(Disk::mount(&self.data(), megabytes)?);
        Ok(())
    }

    /// Its own disk.
    ///
    /// # Panics
    /// If the set was not built with [`disk_mb`](crate::Builder::disk_mb).
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a set with disks")
    }

    /// Puts a proxy in front of it.
    pub(super) async fn hide(&mut self) -> Result<()> {
        self.proxy = Some(Proxy::start(self.port.number()).await?);
        Ok(())
    }

    /// The proxy in front of it.
    ///
    /// # Panics
    /// If the set was not built with
    /// [`behind_proxies`](crate::Builder::behind_proxies).
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a set behind proxies")
    }

    /// The host and port that the other members and clients of the set know: its proxy's, if it
    /// has one.
    pub fn announced(&self) -> String {
        match &self.proxy {
            Some(proxy) => proxy.address(),
            None => self.address(),
        }
    }

    /// Its own host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// A URI for a direct connection to this node, with credentials if it wants them.
    pub fn uri(&self) -> String {
        self.direct_uri(self.access.root())
    }

    fn direct_uri(&self, user: Option<(&str, &str)>) -> String {
        self.access
            .uri(&self.address(), user, "directConnection=true")
    }

    /// A client connected to this very node.
    pub async fn client(&self) -> Result<Client> {
        self.access.client(&self.uri(), None).await
    }

    /// A client for what is allowed to anybody: `hello`, and the first user.
    pub(super) async fn anonymous(&self) -> Result<Client> {
        let uri = self.direct_uri(None);
        self.access.client(&uri, Some(ANSWER_WITHIN)).await
    }

    /// Its answer to `hello`.
    pub async fn hello(&self) -> Result<Document> {
        Probe::default().hello(self).await
    }

    /// Whether it is the writable primary.
    pub async fn is_primary(&self) -> Result<bool> {
        Ok(is_primary(&self.hello().await?))
    }

    /// Whether it is a secondary.
    pub async fn is_secondary(&self) -> Result<bool> {
        Ok(is_secondary(&self.hello().await?))
    }

    /// Whether it runs and is not paused.
    pub fn is_running(&self) -> bool {
        self.server.answers()
    }

    /// Ends it at once (SIGKILL), as a crash would. Returns when it is gone.
    pub async fn kill(&self) -> Result<()> {
        self.server.kill().await
    }

    /// Ends it in its own way (SIGTERM). Returns when it is gone.
    pub async fn stop(&self) -> Result<()> {
        self.server.stop().await
    }

    /// Waits until it ends by itself, as servers do whose disk is full.
    pub async fn wait_for_end(&self) -> Result<()> {
        self.server.wait_for_end().await
    }

    /// Freezes it (SIGSTOP): connections stay open, nothing answers. What was sent to it before
    /// waits in its sockets and is processed on [`resume`](Self::resume).
    pub fn pause(&self) -> Result<()> {
        self.server.pause()
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.server.resume()
    }

    /// Starts it again on the same data and port, stopping it first if it runs. Returns when it
    /// answers, which is before it is a primary or secondary.
    pub async fn restart(&self) -> Result<()> {
        if self.server.pid().is_some() {
            self.stop().await?;
        }
        self.start().await
    }

    /// As [`restart`](Self::restart), as another version.
    pub async fn restart_as(&self, version: Version) -> Result<()> {
        let mongod = blocking(move || Mongod::find(Some(version))).await?;
        let environment = mongod.environment();
        self.server.exchange(mongod.program, environment);
        self.restart().await
    }

    pub(super) async fn start(&self) -> Result<()> {
        self.launch()?;
        self.wait_until_it_answers().await
    }

    pub(super) fn launch(&self) -> Result<()> {
        let data = self.data();
        fs::create_dir_all(&data).context(|| format!("make {}", data.display()))?;
        self.server.start()
    }

    pub(super) async fn wait_until_it_answers(&self) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        // The driver waits half a second after a refused connection, so knock first.
        while let Err(error) = TcpStream::connect(self.address()).await {
            self.go_on_waiting(&deadline, error.to_string()).await?;
        }
        let mut probe = Probe::default();
        while let Err(error) = probe.hello(self).await {
            self.go_on_waiting(&deadline, error.to_string()).await?;
        }
        Ok(())
    }

    async fn go_on_waiting(&self, deadline: &Deadline, reason: String) -> Result<()> {
        self.server.check_alive()?;
        if deadline.is_over() {
            return Err(deadline.error(self.server.name(), reason, self.log_tail()));
        }
        sleep(ASK_EVERY).await;
        Ok(())
    }

    pub(super) fn check_alive(&self) -> Result<()> {
        self.server.check_alive()
    }

    fn data(&self) -> PathBuf {
        self.log_path().with_file_name("data")
    }

    /// Where it logs.
    pub fn log_path(&self) -> &Path {
        self.server.log_path()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.server.log_tail()
    }
}

/// Asks one node for its state, over one connection as long as the node answers.
#[derive(Default)]
pub(super) struct Probe {
    client: Option<Client>,
}

impl Probe {
    pub(super) async fn hello(&mut self, node: &Node) -> Result<Document> {
        let name = node.server.name();
        if !node.server.answers() {
            return Err(Error::NotRunning(name.into()));
        }
        let client = match self.client.take() {
            Some(client) => client,
            None => node.anonymous().await?,
        };
        let database = client.database("admin");
        let answer = database.run_command(doc! {"hello": 1});
        let answer = match tokio::time::timeout(ANSWER_WITHIN, answer.into_future()).await {
            Ok(answer) => answer.context(|| format!("ask {name} for its state"))?,
            Err(_) => {
                return Err(Error::NotReady {
                    what: name.into(),
                    waited: ANSWER_WITHIN,
                    reason: "no answer to hello".into(),
                    log: node.log_tail(),
                });
            }
        };
        // Kept only now: after an error the next question gets a new connection.
        self.client = Some(client);
        Ok(answer)
    }
}

pub(super) fn is_primary(hello: &Document) -> bool {
    hello.get_bool("isWritablePrimary").unwrap_or(false)
}

pub(super) fn is_secondary(hello: &Document) -> bool {
    hello.get_bool("secondary").unwrap_or(false)
}
