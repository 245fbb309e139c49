//! A certificate authority made on the spot, and what it signs.

use std::{
    fs::{self, Permissions},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::error::{Context, Result};

/// A certificate authority that lives as long as the servers which trust it.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its private key, both as PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Certificate {
    /// Both in one text, as MongoDB wants them.
    pub fn combined(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

impl Authority {
    /// Makes one of this name.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = params(DistinguishedName::new());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// The authority's own certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a server on this machine. It serves for outgoing connections too, as
    /// members of a replica set make them to each other.
    pub fn server(&self, name: &str, more_names: &[&str]) -> Result<Certificate> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject.push(DnType::OrganizationName, "testbed servers");
        let mut params = params(subject);
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        for name in ["localhost"].iter().chain(more_names) {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into()?),
            });
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.sign(params)
    }

    /// A certificate for a client: its name, and its organization, which Kubernetes takes for
    /// the user's group.
    pub fn client(&self, name: &str, organization: Option<&str>) -> Result<Certificate> {
        let mut subject = DistinguishedName::new();
        if let Some(organization) = organization {
            subject.push(DnType::OrganizationName, organization);
        }
        subject.push(DnType::CommonName, name);
        let mut params = params(subject);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Certificate> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate {
            certificate,
            key: key.serialize_pem(),
        })
    }
}

fn params(subject: DistinguishedName) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    // Wide bounds: a machine's clock must not decide whether tests pass.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

/// Writes a file that only its owner reads: servers refuse keys that others can read.
pub(crate) fn write_secret(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o600)))
        .context(|| format!("write {}", path.display()))?;
    Ok(path)
}
