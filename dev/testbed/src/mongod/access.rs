//! How to connect to the servers that were started: URI, credentials, TLS.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bson::doc;
use mongodb::{
    Client,
    options::{ClientOptions, Tls, TlsOptions},
};

use crate::{
    certificates::{Authority, write_secret},
    error::{Context, Result},
};

/// The user that exists on servers with authentication, with the role `root`.
pub const ROOT_USER: &str = "root";
/// That user's password; what tests look for begins so, wherever a password must not be.
pub const ROOT_PASSWORD: &str = "canary-root";

const CA: &str = "ca.pem";
const SERVER: &str = "server.pem";
const CLIENT: &str = "client.pem";

/// TLS of one replica set or standalone server.
pub(super) struct TlsFiles {
    /// The first one.
    pub(super) authority: Authority,
    /// The authority's certificate.
    pub(super) ca: PathBuf,
    /// The servers' certificate and key.
    pub(super) server: PathBuf,
    /// The certificate and key of the test bed's own connections.
    pub(super) client: PathBuf,
    folder: PathBuf,
    /// Names that the servers' certificate is for.
    names: Vec<String>,
}

impl TlsFiles {
    /// Writes the files into a folder.
    pub(super) fn make(folder: &Path, authority: Authority, names: &[String]) -> Result<Self> {
        let files = Self {
            ca: folder.join(CA),
            server: folder.join(SERVER),
            client: folder.join(CLIENT),
            authority,
            folder: folder.to_owned(),
            names: names.to_owned(),
        };
        files.write(&files.authority)?;
        Ok(files)
    }

    /// Writes them anew, as this authority signs them.
    pub(super) fn write(&self, authority: &Authority) -> Result<()> {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let server = authority.server("testbed mongod", &names)?;
        let client = authority.client("testbed", Some("testbed clients"))?;
        for (name, text) in [
            (CA, authority.certificate()),
            (SERVER, &server.combined()),
            (CLIENT, &client.combined()),
        ] {
            write_secret(&self.folder, name, text)?;
        }
        Ok(())
    }
}

pub(super) struct Access {
    pub(super) auth: bool,
    pub(super) tls: Option<TlsFiles>,
}

impl Access {
    pub(super) fn root(&self) -> Option<(&'static str, &'static str)> {
        self.auth.then_some((ROOT_USER, ROOT_PASSWORD))
    }

    /// A URI without file names: the product takes certificates from Secrets, not from files.
    pub(super) fn uri(&self, hosts: &str, user: Option<(&str, &str)>, topology: &str) -> String {
        let mut options = vec![topology];
        let mut login = String::new();
        if let Some((name, password)) = user {
            login = format!("{}:{}@", escape(name), escape(password));
            options.push("authSource=admin");
        }
        if self.tls.is_some() {
            options.push("tls=true");
        }
        options.retain(|option| !option.is_empty());
        format!("mongodb://{login}{hosts}/?{}", options.join("&"))
    }

    pub(super) async fn client(&self, uri: &str, patience: Option<Duration>) -> Result<Client> {
        let what = || format!("connect to {uri}");
        let mut options = ClientOptions::parse(uri).await.context(what)?;
        if let Some(files) = &self.tls {
            options.tls = Some(Tls::Enabled(
                TlsOptions::builder()
                    .ca_file_path(files.ca.clone())
                    .cert_key_file_path(files.client.clone())
                    .build(),
            ));
        }
        if let Some(patience) = patience {
            options.server_selection_timeout = Some(patience);
            options.connect_timeout = Some(patience);
        }
        Client::with_options(options).context(what)
    }
}

/// Creates the first user. Without any user yet, a server with authentication lets a client
/// from its own machine do so.
pub(super) async fn create_root(client: &Client) -> Result<()> {
    let command = doc! {
        "createUser": ROOT_USER,
        "pwd": ROOT_PASSWORD,
        "roles": ["root"],
        "writeConcern": {"w": "majority"},
    };
    let created = client.database("admin").run_command(command).await;
    created.map(drop).context(|| "create the first user".into())
}

pub(super) type SharedAccess = Arc<Access>;

/// Percent-encodes what has a meaning in a URI.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_passwords_are_escaped_in_uris() {
        let access = Access {
            auth: true,
            tls: None,
        };
        assert_eq!(
            access.uri("h:1,h:2", Some(("a@b", "p/:ü")), "replicaSet=rs0"),
            "mongodb://a%40b:p%2F%3A%C3%BC@h:1,h:2/?replicaSet=rs0&authSource=admin"
        );
    }
}
