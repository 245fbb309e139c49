//! What a test wants of its MongoDB servers.

use std::{ffi::OsString, marker::PhantomData, path::Path, sync::Arc};

use bson::Document;

use super::access::{Access, SharedAccess, TlsFiles};
use crate::{
    certificates::Authority,
    error::Result,
    port::Port,
    process::{Recipe, Server},
    tools::{blocking, mongod::Mongod, mongod::Version},
};

/// The least that WiredTiger accepts; enough for tests.
const SMALL_CACHE_GB: f64 = 0.25;

/// Collects what a test wants of a [`ReplicaSet`](super::ReplicaSet) or a
/// [`Standalone`](super::Standalone), and starts it.
#[derive(Debug, Clone)]
#[must_use = "nothing runs before start()"]
pub struct Builder<T> {
    pub(super) options: Options,
    kind: PhantomData<fn() -> T>,
}

#[derive(Debug, Clone)]
pub(super) struct Options {
    version: Option<Version>,
    auth: bool,
    tls: bool,
    client_certificates: bool,
    certified_names: Vec<String>,
    cache_gb: f64,
    oplog_mb: Option<u32>,
    parameters: Vec<(String, String)>,
    arguments: Vec<OsString>,
    pub(super) name: String,
    pub(super) nodes: usize,
    pub(super) initiated: Option<usize>,
    pub(super) proxies: bool,
    pub(super) disk_mb: Option<u32>,
    pub(super) settings: Document,
    pub(super) members: Vec<(usize, Document)>,
}

impl<T> Builder<T> {
    pub(super) fn new() -> Self {
        let parameters = [
            // Quiet and quick: nobody reads these diagnostics, and they cost disk and CPU.
            ("diagnosticDataCollectionEnabled", "false"),
            // Fail points and commands that only tests may use.
            ("enableTestCommands", "1"),
            // SIGTERM on a primary would wait up to 15 s for clients to go away.
            ("shutdownTimeoutMillisForSignaledShutdown", "100"),
        ];
        let options = Options {
            version: None,
            auth: false,
            tls: false,
            client_certificates: false,
            certified_names: Vec::new(),
            cache_gb: SMALL_CACHE_GB,
            oplog_mb: None,
            parameters: parameters.map(|(k, v)| (k.into(), v.into())).into(),
            arguments: Vec::new(),
            name: "rs0".into(),
            nodes: 1,
            initiated: None,
            proxies: false,
            disk_mb: None,
            settings: Document::new(),
            members: Vec::new(),
        };
        Self {
            options,
            kind: PhantomData,
        }
    }

    /// Asks for that very version. Without it the user's own mongod is taken
    /// (`MONGOMIRROR_TEST_MONGOD`, then `PATH`), else the latest version that can be fetched.
    pub fn version(mut self, version: Version) -> Self {
        self.options.version = Some(version);
        self
    }

    /// Turns authentication on: a key file between members, and [`ROOT_USER`](super::ROOT_USER).
    pub fn auth(mut self, on: bool) -> Self {
        self.options.auth = on;
        self
    }

    /// Lets nobody in without TLS.
    pub fn tls(mut self, on: bool) -> Self {
        self.options.tls = on;
        self
    }

    /// A name that the servers' certificates are for, too. Turns TLS on.
    pub fn certified_name(mut self, name: impl Into<String>) -> Self {
        self.options.certified_names.push(name.into());
        self.options.tls = true;
        self
    }

    /// Lets nobody in without a certificate of the servers' authority. Turns TLS on.
    pub fn require_client_certificates(mut self, on: bool) -> Self {
        self.options.client_certificates = on;
        self.options.tls |= on;
        self
    }

    /// The size of WiredTiger's cache. The default is its least, 0.25 GB, which suits tests;
    /// benches want more.
    pub fn cache_gb(mut self, gigabytes: f64) -> Self {
        self.options.cache_gb = gigabytes;
        self
    }

    /// The size of the oplog. Note that truncation waits for a checkpoint:
    /// `.arg("--syncdelay", "3")` makes a small oplog roll over within seconds.
    pub fn oplog_mb(mut self, megabytes: u32) -> Self {
        self.options.oplog_mb = Some(megabytes);
        self
    }

    /// Sets a server parameter (`--setParameter name=value`), in place of an earlier value.
    pub fn param(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        let name = name.into();
        self.options.parameters.retain(|(known, _)| *known != name);
        self.options.parameters.push((name, value.to_string()));
        self
    }

    /// Adds a command-line option with its value.
    pub fn arg(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.options.arguments.extend([name.into(), value.into()]);
        self
    }

    /// Adds a command-line option without value.
    pub fn flag(mut self, name: impl Into<OsString>) -> Self {
        self.options.arguments.push(name.into());
        self
    }
}

impl Options {
    /// Finds mongod, downloading it if need be.
    pub(super) async fn mongod(&self) -> Result<Mongod> {
        let version = self.version;
        blocking(move || Mongod::find(version)).await
    }

    /// Makes what the servers share: certificates.
    pub(super) fn access(&self, folder: &Path) -> Result<SharedAccess> {
        let tls = if self.tls {
            let authority = Authority::new("testbed mongod authority")?;
            Some(TlsFiles::make(folder, authority, &self.certified_names)?)
        } else {
            None
        };
        Ok(Arc::new(Access {
            auth: self.auth,
            tls,
        }))
    }

    /// The server whose data live in `folder`; `set` is the replica set's name and key file.
    pub(super) fn server(
        &self,
        name: String,
        mongod: &Mongod,
        access: &Access,
        folder: &Path,
        port: &Port,
        set: Option<(&str, Option<&Path>)>,
    ) -> Server {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--port", port.number().to_string().into());
        option("--bind_ip", "127.0.0.1".into());
        option("--dbpath", folder.join("data").into());
        option("--wiredTigerCacheSizeGB", self.cache_gb.to_string().into());
        for (name, value) in &self.parameters {
            option("--setParameter", format!("{name}={value}").into());
        }
        if let Some((set, key_file)) = set {
            option("--replSet", set.into());
            if let Some(megabytes) = self.oplog_mb {
                option("--oplogSize", megabytes.to_string().into());
            }
            if let Some(key_file) = key_file {
                option("--keyFile", key_file.into());
            }
        }
        if let Some(files) = &access.tls {
            option("--tlsMode", "requireTLS".into());
            option("--tlsCAFile", files.ca.clone().into());
            option("--tlsCertificateKeyFile", files.server.clone().into());
            if !self.client_certificates {
                arguments.push("--tlsAllowConnectionsWithoutCertificates".into());
            }
        }
        if access.auth && set.is_none() {
            arguments.push("--auth".into());
        }
        // Without a line for every connection, the end of the log tells what happened.
        arguments.push("--quiet".into());
        // Its socket would stay in the system's temporary folder after a kill -9.
        arguments.push("--nounixsocket".into());
        arguments.extend(self.arguments.iter().cloned());
        Server::new(Recipe {
            name,
            program: mongod.program.clone(),
            arguments,
            environment: mongod.environment(),
            log: folder.join("mongod.log"),
        })
    }
}
