//! The operator's process, and what it tells.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::Process;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::usage::Usage;
use crate::{Result, say};

/// An operator that takes longer for all its mirrors does not make it.
const PATIENCE: Duration = Duration::from_secs(900);

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How often it is asked.
const LOOK: Duration = Duration::from_millis(200);

/// How often people are told.
const TELL: Duration = Duration::from_secs(10);

/// A running operator.
pub struct Operator {
    process: Process,
    port: u16,
    begun: Instant,
    _folder: tempfile::TempDir,
}

impl Operator {
    /// Starts one.
    pub fn start(kubeconfig: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let listen = format!("127.0.0.1:{port}");
        let process = Process::start(
            "the operator",
            env!("CARGO_BIN_EXE_mongomirror"),
            ["operator", "--listen", &listen],
            [("KUBECONFIG".into(), kubeconfig.into())],
            &log,
        )?;
        Ok(Self {
            process,
            port,
            begun: Instant::now(),
            _folder: folder,
        })
    }

    /// Time since it was started.
    pub fn since_start(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits until all its mirrors are live; returns how long that took since it was started.
    pub async fn all_live(&self, all: usize) -> Result<Duration> {
        let mut told = Instant::now();
        loop {
            let mirrors = self.mirrors().await.unwrap_or_default();
            let is_live =
                |mirror: &&Value| mirror["phase"] == "Mirroring" && mirror["connected"] == true;
            let live = mirrors.iter().filter(is_live).count();
            if live == all {
                return Ok(self.since_start());
            }
            if told.elapsed() > TELL {
                told = Instant::now();
                say(&format!("  {live} of {all} are live"));
            }
            if let Err(error) = self.still_hoped_for() {
                let other = mirrors.iter().find(|mirror| !is_live(mirror));
                return Err(format!("{error}: {live} of {all} are live, not {other:?}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// An error once it is not worth waiting any longer.
    pub fn still_hoped_for(&self) -> Result<()> {
        if let Some(status) = self.process.ended()? {
            return Err(format!("the operator has ended: {status}").into());
        }
        if self.since_start() > PATIENCE {
            return Err("it takes too long".into());
        }
        Ok(())
    }

    /// The longest lag of the mirrors whose names begin with this.
    pub async fn longest_lag(&self, prefix: &str) -> Option<Option<Duration>> {
        let mirrors = self.mirrors().await?;
        let lags = mirrors.iter().filter(|mirror| {
            mirror["name"]
                .as_str()
                .is_some_and(|name| name.starts_with(prefix))
        });
        Some(
            lags.filter_map(|mirror| mirror["lagMilliseconds"].as_u64())
                .max()
                .map(Duration::from_millis),
        )
    }

    async fn mirrors(&self) -> Option<Vec<Value>> {
        let answer = tokio::time::timeout(ANSWER, self.ask());
        answer.await.ok().flatten()
    }

    async fn ask(&self) -> Option<Vec<Value>> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .ok()?;
        let request =
            "GET /api/v1/mirrors HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.ok()?;
        let (_, body) = reply.split_once("\r\n\r\n")?;
        let body: Value = serde_json::from_str(body).ok()?;
        body["mirrors"].as_array().cloned()
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        let id = self.process.pid().ok_or("the operator has ended")?;
        Usage::of(id)
    }

    /// Asks it to end, and waits.
    pub async fn stop(self) -> Result<()> {
        let status = self.process.stop().await?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the operator failed: {status}").into())
        }
    }
}
