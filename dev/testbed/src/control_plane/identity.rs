//! Who may talk to the API server: certificates and kubeconfigs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    certificates::{Authority, write_secret},
    error::{Context, Result},
};

/// The files that the control plane and its clients share.
pub(super) struct Identities {
    pub(super) authority: Authority,
    folder: PathBuf,
    ca: PathBuf,
    url: String,
}

impl Identities {
    pub(super) fn new(folder: &Path, url: &str) -> Result<Self> {
        fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
        let authority = Authority::new("testbed kubernetes authority")?;
        let ca = write_secret(folder, "ca.crt", authority.certificate())?;
        Ok(Self {
            authority,
            folder: folder.into(),
            ca,
            url: url.into(),
        })
    }

    pub(super) fn ca(&self) -> &Path {
        &self.ca
    }

    /// The API server's certificate and key, for the addresses at which it is found.
    pub(super) fn server(&self, addresses: &[&str]) -> Result<(PathBuf, PathBuf)> {
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let names = [&names[..], addresses].concat();
        let server = self.authority.server("kube-apiserver", &names)?;
        Ok((
            write_secret(&self.folder, "server.crt", &server.certificate)?,
            write_secret(&self.folder, "server.key", &server.key)?,
        ))
    }

    /// The keys that sign and verify tokens of service accounts.
    pub(super) fn service_account_keys(&self) -> Result<(PathBuf, PathBuf)> {
        let key = rcgen::KeyPair::generate()?;
        Ok((
            write_secret(&self.folder, "tokens.key", &key.serialize_pem())?,
            write_secret(&self.folder, "tokens.pub", &key.public_key_pem())?,
        ))
    }

    /// Writes a kubeconfig for a user with a client certificate. `name` is the name of the file;
    /// user and group are what the API server sees.
    pub(super) fn kubeconfig(
        &self,
        name: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<PathBuf> {
        let (certificate, key) = self.client(name, user, group)?;
        let user = json!({"client-certificate": certificate, "client-key": key});
        self.write(name, user, "default")
    }

    /// Writes a client's certificate and key, into files of this name.
    pub(super) fn client(
        &self,
        name: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<(PathBuf, PathBuf)> {
        let certificate = self.authority.client(user, group)?;
        let (crt, key) = (format!("{name}.crt"), format!("{name}.key"));
        Ok((
            write_secret(&self.folder, &crt, &certificate.certificate)?,
            write_secret(&self.folder, &key, &certificate.key)?,
        ))
    }

    /// Writes a kubeconfig for whoever the token stands for.
    pub(super) fn token_kubeconfig(
        &self,
        name: &str,
        token: &str,
        namespace: &str,
    ) -> Result<PathBuf> {
        self.write(name, json!({"token": token}), namespace)
    }

    fn write(&self, name: &str, user: Value, namespace: &str) -> Result<PathBuf> {
        let cluster = json!({"server": self.url, "certificate-authority": self.ca});
        let context = json!({"cluster": "testbed", "user": name, "namespace": namespace});
        // JSON is YAML, so no YAML writer is needed.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "testbed", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "testbed", "context": context}],
            "current-context": "testbed",
        });
        let name = format!("{name}.kubeconfig");
        write_secret(&self.folder, &name, &format!("{config:#}\n"))
    }
}
