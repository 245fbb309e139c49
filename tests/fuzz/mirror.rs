//! The mirror as a process of its own, which can be killed, frozen and started again.
//!
//! It is this very program, so that the engine gets its configuration without a manifest: ranges
//! of a few kilobytes, little memory. It tells its progress as lines of JSON.

use std::fs::OpenOptions;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use bson::doc;
use mongomirror::engine::config::ApplyMode;
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::engine::request::Request;
use mongomirror::runner::MirrorHandle;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Result;
use crate::common;
use crate::plan::{DATABASE, Plan};

/// The first argument of such a process; the second is its work as JSON.
const MIRROR: &str = "__mirror";

/// How often both sides are verified in rounds that do so beside everything else.
const VERIFY: Duration = Duration::from_secs(1);

/// Longest wait for a mirror to plan its copy, which takes a second; without, too, a round is one.
const PLAN: Duration = Duration::from_secs(60);

/// A mirror that is asked to stop has so long, on a slow machine.
const STOP: Duration = Duration::from_secs(120);

/// The driver still closes cursors in tasks of its own, and panics if the runtime goes meanwhile.
const FAREWELL: Duration = Duration::from_millis(100);

/// What such a process is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    source: String,
    target: String,
    range_bytes: u64,
    copy_lanes: usize,
    memory_bytes: usize,
    internal_delta: bool,
    parallel: bool,
    verify: bool,
}

/// What it says of itself.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// It has planned its copy.
    pub planned: bool,
    /// It is live.
    pub live: bool,
    /// The source's cluster time that the target has reached.
    pub consistent_at: Option<(u32, u32)>,
    /// Documents that had to be repaired.
    pub repaired: u64,
    /// Differences that its own verifications found, at most.
    pub differences: u64,
    /// What the last verification that came to its end found, and as of when.
    pub last_differences: u64,
    pub verified_at: Option<(u32, u32)>,
    /// When that ended, in milliseconds.
    verified: u128,
    /// Verifications that came to their end in this process.
    pub verifications: u64,
    /// Times that it took history for lost.
    pub resyncs: u64,
    /// Events applied.
    pub events: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// What is wrong.
    pub problem: Option<String>,
    /// What is left out.
    pub unsupported: Vec<String>,
}

impl Seen {
    fn of(progress: &Progress) -> Self {
        let unsupported = progress.unsupported.iter();
        let last = progress.verification.last.as_ref();
        Self {
            planned: !matches!(progress.phase, Phase::Pending | Phase::Failed),
            live: progress.phase == Phase::Mirroring,
            consistent_at: progress.consistent_at.map(|at| (at.seconds, at.increment)),
            repaired: progress.totals.repaired,
            differences: differences(progress),
            last_differences: last.map_or(0, |last| last.differences),
            verified_at: last
                .map(|last| (last.consistent_at.seconds, last.consistent_at.increment)),
            verified: last.map_or(0, |last| millis(last.time)),
            verifications: 0,
            resyncs: progress.totals.resyncs,
            events: progress.totals.events_applied,
            retries: progress.totals.retries,
            problem: progress
                .problem
                .as_ref()
                .map(|problem| problem.message.clone()),
            unsupported: unsupported
                .map(|what| format!("{}: {}", what.name, what.reason))
                .collect(),
        }
    }
}

fn millis(time: SystemTime) -> u128 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_millis()
}

/// What verifications found, the one that runs included.
fn differences(progress: &Progress) -> u64 {
    let verification = &progress.verification;
    let running = verification.running.map_or(0, |run| run.differences);
    let last = verification
        .last
        .as_ref()
        .map_or(0, |last| last.differences);
    running.max(last)
}

impl Work {
    /// The plan's mirror between these servers.
    pub fn new(plan: &Plan, source: String, target: String) -> Self {
        Self {
            source,
            target,
            range_bytes: plan.range_bytes,
            copy_lanes: plan.copy_lanes,
            memory_bytes: plan.memory_bytes,
            internal_delta: plan.internal_delta,
            parallel: plan.parallel,
            verify: plan.verifies,
        }
    }

    /// What this process was started for, if it is a mirror.
    pub fn of_this_process() -> Result<Option<Self>> {
        let mut arguments = std::env::args().skip(1);
        if arguments.next().as_deref() != Some(MIRROR) {
            return Ok(None);
        }
        let work = arguments.next().ok_or("a mirror needs its work")?;
        Ok(Some(serde_json::from_str(&work)?))
    }

    /// Mirrors until standard input ends.
    pub async fn run(self) -> Result<()> {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| "mongomirror=debug".into());
        // Standard output is for progress; nothing was set up before.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .try_init();
        let mut config = common::config(&self.source, &self.target, DATABASE);
        config.limits.range_bytes = self.range_bytes;
        config.limits.copy_lanes = self.copy_lanes;
        config.limits.memory_bytes = self.memory_bytes;
        config.limits.internal_delta = self.internal_delta;
        if self.parallel {
            config.apply_mode = ApplyMode::Parallel;
            config.limits.lanes_from = 4;
        }
        config.verify_every = self.verify.then_some(VERIFY);
        let handle = MirrorHandle::start(config);
        let (mut wishes, mut stop) = input();
        let mut progress = handle.progress();
        let mut told = Seen {
            // Those of earlier processes do not count.
            verified: millis(SystemTime::now()),
            ..Seen::default()
        };
        loop {
            tokio::select! {
                _ = &mut stop => break,
                Some(collection) = wishes.recv() => {
                    sync(&handle, collection);
                    continue;
                }
                changed = progress.changed() => changed?,
            }
            let mut seen = Seen::of(&progress.borrow_and_update());
            seen.differences = seen.differences.max(told.differences);
            seen.verifications = told.verifications + u64::from(seen.verified > told.verified);
            seen.verified = seen.verified.max(told.verified);
            if seen != told {
                let mut out = std::io::stdout().lock();
                serde_json::to_writer(&mut out, &seen)?;
                out.write_all(b"\n")?;
                out.flush()?;
                told = seen;
            }
        }
        handle.stop().await;
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    }
}

/// Asks for all documents of a collection to be put right; the answer goes to the log.
fn sync(handle: &MirrorHandle, collection: String) {
    let requests = handle.requests();
    tokio::spawn(async move {
        let (done, answer) = oneshot::channel();
        let request = Request::Sync {
            collection: collection.clone(),
            filter: doc! {},
            done,
        };
        if requests.send(request).await.is_ok() {
            let answer = answer.await;
            tracing::info!(collection, ?answer, "asked for a sync");
        }
    });
}

/// Lines of standard input, and its end. It is read by a thread: a runtime cannot be left while it
/// waits for it.
fn input() -> (mpsc::UnboundedReceiver<String>, oneshot::Receiver<()>) {
    let (wish, wishes) = mpsc::unbounded_channel();
    let (ended, stop) = oneshot::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(|line| line.ok()) {
            let _ = wish.send(line);
        }
        let _ = ended.send(());
    });
    (wishes, stop)
}

/// A running mirror. It is killed when dropped.
pub struct Process {
    child: Child,
    input: ChildStdin,
    seen: watch::Receiver<Seen>,
}

impl Process {
    fn start(work: &Work, log: &Path) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args([MIRROR, &serde_json::to_string(work)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let (tell, seen) = watch::channel(Seen::default());
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // The last line of a process that was killed may be cut.
                if let Ok(seen) = serde_json::from_str(&line) {
                    tell.send_replace(seen);
                }
            }
        });
        Ok(Self { child, input, seen })
    }

    async fn kill(mut self) -> Result<Seen> {
        self.child.kill().await?;
        let last = self.seen.borrow().clone();
        Ok(last)
    }

    async fn stop(mut self) -> Result<Seen> {
        drop(self.input);
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Ok(ended) => drop(ended?),
            Err(_) => {
                self.child.kill().await?;
                return Err(format!("a mirror did not stop within {STOP:?}").into());
            }
        }
        let last = self.seen.borrow().clone();
        Ok(last)
    }

    async fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().ok_or("the mirror has ended by itself")?;
        let sent = Command::new("kill")
            .args([signal, &id.to_string()])
            .status()
            .await?;
        if sent.success() {
            Ok(())
        } else {
            Err(format!("kill {signal} failed").into())
        }
    }
}

/// The one mirror of a round, through all its processes.
pub struct Mirror {
    work: Work,
    log: PathBuf,
    process: Option<Process>,
    /// What processes that are gone had done.
    gone: Totals,
}

/// What all processes of a mirror did.
#[derive(Clone, Copy, Default)]
pub struct Totals {
    /// Events applied.
    pub events: u64,
    /// Documents repaired.
    pub repaired: u64,
    /// Differences found by verifications.
    pub differences: u64,
    /// Times that history was lost.
    pub resyncs: u64,
    /// Verifications that came to their end.
    pub verifications: u64,
}

impl Mirror {
    /// A mirror that is not started yet.
    pub fn new(work: Work, log: PathBuf) -> Self {
        Self {
            work,
            log,
            process: None,
            gone: Totals::default(),
        }
    }

    /// Starts it, unless it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_none() {
            self.process = Some(Process::start(&self.work, &self.log)?);
        }
        Ok(())
    }

    /// kill -9.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            let last = process.kill().await?;
            self.gone(&last);
        }
        Ok(())
    }

    /// Ends it in its own way.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            let last = process.stop().await?;
            self.gone(&last);
        }
        Ok(())
    }

    /// SIGSTOP, or SIGCONT.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        match &self.process {
            Some(process) => process.signal(if frozen { "-STOP" } else { "-CONT" }).await,
            None => Ok(()),
        }
    }

    /// Another process takes over while this one is frozen; after the pause both run, until the
    /// older one is killed.
    pub async fn take_over(&mut self, pause: Duration) -> Result<()> {
        self.freeze(true).await?;
        let older = self.process.take();
        self.start()?;
        tokio::time::sleep(pause).await;
        if let Some(older) = older {
            older.signal("-CONT").await?;
            tokio::time::sleep(pause).await;
            let last = older.kill().await?;
            self.gone(&last);
        }
        Ok(())
    }

    fn gone(&mut self, last: &Seen) {
        self.gone = self.gone.and(last);
    }

    /// What the process that runs says.
    pub fn seen(&self) -> Option<watch::Receiver<Seen>> {
        self.process.as_ref().map(|process| process.seen.clone())
    }

    /// Waits until the copy is planned; without one, what comes next finds out.
    pub async fn planned(&self) {
        if let Some(mut seen) = self.seen() {
            let planned = seen.wait_for(|seen| seen.planned);
            let _ = tokio::time::timeout(PLAN, planned).await;
        }
    }

    /// Asks for all documents of a collection to be put right.
    pub async fn ask_for_sync(&mut self, collection: &str) -> Result<()> {
        if let Some(process) = &mut self.process {
            let line = format!("{collection}\n");
            process.input.write_all(line.as_bytes()).await?;
        }
        Ok(())
    }

    /// What all processes did.
    pub fn totals(&self) -> Totals {
        match self.seen() {
            Some(seen) => self.gone.and(&seen.borrow()),
            None => self.gone,
        }
    }
}

impl Totals {
    fn and(self, seen: &Seen) -> Self {
        Self {
            events: self.events + seen.events,
            repaired: self.repaired + seen.repaired,
            differences: self.differences + seen.differences,
            resyncs: self.resyncs + seen.resyncs,
            verifications: self.verifications + seen.verifications,
        }
    }
}
