//! A mongod without a replica set: it has no oplog, and so nothing that could be mirrored.

use bson::Document;
use mongodb::Client;
use tempfile::TempDir;

use super::{
    access::{self, SharedAccess},
    builder::Builder,
    node::Node,
};
use crate::{
    certificates::Authority,
    error::{Context, Result},
    port::Port,
    scratch,
};

/// A running mongod that is no member of a replica set.
pub struct Standalone {
    // Before the folder: servers are ended first, then their files are removed.
    node: Node,
    access: SharedAccess,
    _folder: TempDir,
}

impl Standalone {
    /// Collects what is wanted.
    pub fn builder() -> Builder<Self> {
        Builder::new()
    }

    /// Its URI, with credentials if it wants them.
    pub fn uri(&self) -> String {
        self.access
            .uri(&self.node.address(), self.access.root(), "")
    }

    /// Its URI for another user.
    pub fn uri_as(&self, user: &str, password: &str) -> String {
        let user = Some((user, password));
        self.access.uri(&self.node.address(), user, "")
    }

    /// A client.
    pub async fn client(&self) -> Result<Client> {
        self.access.client(&self.uri(), None).await
    }

    /// A client for a URI of this server, with the right certificates if it wants TLS.
    pub async fn client_for(&self, uri: &str) -> Result<Client> {
        self.access.client(uri, None).await
    }

    /// The server.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Who signed its certificate, if it has TLS.
    pub fn authority(&self) -> Option<&Authority> {
        self.access.tls.as_ref().map(|tls| &tls.authority)
    }
}

impl Builder<Standalone> {
    /// Starts it, and returns when it can be written to.
    pub async fn start(self) -> Result<Standalone> {
        let options = &self.options;
        let mongod = options.mongod().await?;
        let folder = scratch::folder("standalone")?;
        let access = options.access(folder.path())?;
        let port = Port::reserve()?;
        let name = "the standalone mongod".to_owned();
        let server = options.server(name, &mongod, &access, folder.path(), &port, None);
        let node = Node::new(server, access.clone(), port);
        node.start().await?;
        if access.auth {
            access::create_root(&node.anonymous().await?).await?;
        }
        Ok(Standalone {
            node,
            access,
            _folder: folder,
        })
    }
}

impl Standalone {
    /// Runs a command on the database `admin`.
    pub async fn admin(&self, command: Document) -> Result<Document> {
        let database = self.client().await?.database("admin");
        let what = || format!("run {command}");
        database.run_command(command.clone()).await.context(what)
    }
}
