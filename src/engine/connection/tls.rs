//! Certificates that a mirror's user has given for a connection.
//!
//! The driver reads them from files only, once, when its client is made (`facts` rust B2). They are
//! written to memory that no file system shows.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use mongodb::options::{Tls as DriverTls, TlsOptions};
use rustix::fs::{MemfdFlags, memfd_create};

/// How a connection is encrypted. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Tls {
    /// The authorities that the servers' certificates are checked with, as PEM; those that browsers
    /// trust, without.
    pub ca: Option<Vec<u8>>,
    /// The mirror's own certificate and its key, as PEM.
    pub certificate: Option<Vec<u8>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.is_some())
            .field("certificate", &self.certificate.is_some())
            .finish()
    }
}

/// Options for the driver, valid as long as the files are kept.
pub(super) struct Files {
    /// For the driver.
    pub(super) options: DriverTls,
    _files: Vec<File>,
}

impl Tls {
    /// Puts the certificates where the driver can read them.
    pub(super) fn files(&self) -> io::Result<Files> {
        let mut files = Vec::new();
        let mut path_of = |pem: &Option<Vec<u8>>| {
            let Some(pem) = pem else {
                return Ok::<_, io::Error>(None);
            };
            let mut file = File::from(memfd_create("certificate", MemfdFlags::CLOEXEC)?);
            file.write_all(pem)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            files.push(file);
            Ok(Some(path.into()))
        };
        let mut options = TlsOptions::default();
        options.ca_file_path = path_of(&self.ca)?;
        options.cert_key_file_path = path_of(&self.certificate)?;
        Ok(Files {
            options: DriverTls::Enabled(options),
            _files: files,
        })
    }
}
