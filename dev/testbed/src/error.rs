//! What can go wrong while servers are brought up.

use std::{io, path::PathBuf, time::Duration};

/// An error of the test bed. Messages say what to do next where that is known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that is needed to fetch or build a server is not there.
    #[error("{tool} is needed to {purpose}, and is not there: {hint}")]
    MissingTool {
        /// The program's name.
        tool: String,
        /// What it was wanted for.
        purpose: String,
        /// How to get it, or how to do without it.
        hint: String,
    },

    /// A server cannot be had on this machine.
    #[error("{what} cannot be used: {hint}")]
    Unusable {
        /// The server, and where it was found.
        what: String,
        /// Why, and what to do.
        hint: String,
    },

    /// This machine cannot have a node, whatever is installed on it.
    #[error("this machine cannot be a node: {0}")]
    NoNode(String),

    /// A program that ran to its end reported failure.
    #[error("{what} failed ({status}): {stderr}")]
    Failed {
        /// What was attempted.
        what: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it wrote.
        stderr: String,
    },

    /// A downloaded file is not the one that was pinned.
    #[error(
        "{file} has SHA-256 {actual}, but {expected} is pinned: refusing to use it; \
         check the package index that pip is configured for"
    )]
    Checksum {
        /// The file's name.
        file: String,
        /// The pinned checksum.
        expected: String,
        /// The checksum of what arrived.
        actual: String,
    },

    /// A server ended although nobody asked it to.
    #[error("{what} ended by itself ({status}); the end of its log:\n{log}")]
    Died {
        /// The server.
        what: String,
        /// Its exit status.
        status: String,
        /// The end of its log.
        log: String,
    },

    /// A server did not become ready in time.
    #[error("{what} was not ready after {waited:?}: {reason}; the end of its log:\n{log}")]
    NotReady {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What was last seen.
        reason: String,
        /// The end of its log.
        log: String,
    },

    /// The server is not running, so it cannot be asked anything.
    #[error("{0} is not running: start it first")]
    NotRunning(String),

    /// No member of the replica set is its primary now.
    #[error("no member of the replica set is its primary now: wait_for_primary() waits for one")]
    NoPrimary,

    /// A command to MongoDB failed.
    #[error("{what}")]
    Mongo {
        /// What was attempted.
        what: String,
        /// The driver's error.
        #[source]
        source: Box<mongodb::error::Error>,
    },

    /// A certificate could not be made.
    #[error("could not make a certificate")]
    Certificate(#[from] rcgen::Error),

    /// A file or a process could not be handled.
    #[error("could not {what}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },

    /// No free port was found.
    #[error("no free port between {0} and {1} on 127.0.0.1: end what holds them")]
    NoPort(u16, u16),

    /// A manifest that the caller gave does not hold what is needed.
    #[error("{path}: {problem}", path = path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The result of an operation of the test bed.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names what was attempted when it fails.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}

impl<T> Context<T> for mongodb::error::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Mongo {
            what: what(),
            source: Box::new(source),
        })
    }
}
