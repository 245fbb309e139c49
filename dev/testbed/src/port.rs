//! Ports that nobody else takes, also while the server that listens on them is down.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::atomic::{AtomicU16, Ordering},
};

use crate::error::{Error, Result};

/// Below the range that Linux gives to outgoing connections (32768 and up): a port of that
/// range could be taken by any client while a killed server waits for its restart.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port on 127.0.0.1 that is ours as long as this value lives.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// An abstract socket named after the port keeps other test processes away. Like the port
    /// itself it belongs to the network namespace, and it vanishes with the process.
    _claim: UnixListener,
}

impl Port {
    pub(crate) fn reserve() -> Result<Self> {
        let span = LAST - FIRST;
        // Processes start at different places, so that they seldom try the same port.
        let start = (std::process::id() % u32::from(span)) as u16;
        (0..span)
            .map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % span) % span)
            .find_map(Self::claim)
            .ok_or(Error::NoPort(FIRST, LAST))
    }

    fn claim(number: u16) -> Option<Self> {
        let name = format!("mongomirror-testbed-port-{number}");
        let claim = SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self {
            number,
            _claim: claim,
        })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}
