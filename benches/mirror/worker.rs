//! What runs in a process of its own, so that its CPU time and memory can be told from the
//! bench's: the mirror, the bare copier, the bare bulk writer.
//!
//! A worker prints what it has done as lines of JSON, and ends when its standard input does.

use std::io::{Read, Write};
use std::time::Duration;

use mongomirror::engine::config::{ApplyMode, Endpoint, Limits, MirrorConfig, OnHistoryLost};
use mongomirror::engine::connection::uri::ConnectionUri;
use mongomirror::engine::position::ClusterTime;
use mongomirror::engine::progress::{Phase, Progress};
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::Result;
use crate::bare::{self, Orders};
use crate::orders::Backlog;

/// The database, on both sides.
pub const DATABASE: &str = "shop";

/// The first argument of a worker; the second is its work as JSON.
const WORKER: &str = "__worker";

/// The driver still closes cursors in tasks of its own, and panics if the runtime goes meanwhile.
const FAREWELL: Duration = Duration::from_millis(100);

/// Between two verifications of a mirror that always verifies.
const AGAIN: Duration = Duration::from_secs(1);

/// What a worker is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Runs a mirror.
    Mirror {
        /// From where.
        source: String,
        /// To where.
        target: String,
        /// Ranges copied at the same time.
        lanes: usize,
        /// Whether it applies as several transactions at the same time.
        parallel: bool,
        /// Whether it begins a verification as soon as the last one is over.
        verifies: bool,
    },
    /// Copies with as little code as possible.
    Copy {
        /// From where.
        source: String,
        /// To where.
        target: String,
        /// Readers, and writers.
        lanes: usize,
        /// What.
        orders: Orders,
    },
    /// Writes updates with as little code as possible.
    Update {
        /// To where.
        target: String,
        /// What.
        backlog: Backlog,
    },
}

/// What a worker says of itself, whenever that changes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// The work is complete; for a mirror: it is live, and its copy is verified.
    pub done: bool,
    /// The mirror follows the source, verified or not.
    pub live: bool,
    /// Verifications of this process that are over.
    pub verifications: u64,
    /// The mirror has planned its copy or its resumption.
    pub planned: bool,
    /// The copy is complete.
    pub copied: bool,
    /// Documents copied, or updates made.
    pub count: u64,
    /// The source's cluster time that the target has reached.
    pub consistent_at: Option<(u32, u32)>,
    /// Events applied.
    pub events: u64,
    /// Statements sent.
    pub operations: u64,
    /// Transactions committed by the tail.
    pub batches: u64,
    /// Documents that had to be repaired: none, if all is well.
    pub repaired: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// What is wrong.
    pub problem: Option<String>,
}

impl Seen {
    fn of(progress: &Progress) -> Self {
        let sync = progress.initial_sync.clone().unwrap_or_default();
        Self {
            done: progress.phase == Phase::Mirroring
                && progress.verification.last.is_some()
                && progress.verification.running.is_none(),
            live: progress.phase == Phase::Mirroring,
            verifications: 0,
            planned: !matches!(progress.phase, Phase::Pending | Phase::Failed),
            copied: sync.completed_at.is_some(),
            count: sync.documents_copied,
            consistent_at: progress
                .consistent_at
                .map(|ClusterTime { seconds, increment }| (seconds, increment)),
            events: progress.totals.events_applied,
            operations: progress.totals.operations_written,
            batches: progress.totals.batches,
            repaired: progress.totals.repaired,
            retries: progress.totals.retries,
            problem: progress
                .problem
                .as_ref()
                .map(|problem| problem.message.clone()),
        }
    }

    fn tell(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }
}

impl Work {
    /// What this process was started for, if it is a worker.
    pub fn of_this_process() -> Result<Option<Self>> {
        let mut arguments = std::env::args().skip(1);
        if arguments.next().as_deref() != Some(WORKER) {
            return Ok(None);
        }
        let work = arguments.next().ok_or("a worker needs its work")?;
        Ok(Some(serde_json::from_str(&work)?))
    }

    /// What to start this very program with.
    pub fn arguments(&self) -> Result<[String; 2]> {
        Ok([WORKER.to_owned(), serde_json::to_string(self)?])
    }
}

/// Does the work, then waits for the end of standard input.
pub async fn run(work: Work) -> Result<()> {
    let stop = end_of_input();
    let count = match work {
        Work::Mirror {
            source,
            target,
            lanes,
            parallel,
            verifies,
        } => {
            let mut config = config(&source, &target, lanes)?;
            if parallel {
                config.apply_mode = ApplyMode::Parallel;
            }
            config.verify_every = verifies.then_some(AGAIN);
            return mirror(config, stop).await;
        }
        Work::Copy {
            source,
            target,
            lanes,
            orders,
        } => {
            let source = bare::connect(&source).await?.database(DATABASE);
            let target = bare::connect(&target).await?.database(DATABASE);
            bare::copy(&source, &target, orders, lanes).await?
        }
        Work::Update { target, backlog } => {
            let target = bare::connect(&target).await?.database(DATABASE);
            bare::update(&target, backlog).await?
        }
    };
    let done = Seen {
        done: true,
        count,
        ..Seen::default()
    };
    done.tell()?;
    // The sender sends once or goes away; both mean the end.
    let _ = stop.await;
    Ok(())
}

fn config(source: &str, target: &str, lanes: usize) -> Result<MirrorConfig> {
    let endpoint = |uri: &str| -> Result<Endpoint> {
        Ok(Endpoint {
            tls: None,
            uri: ConnectionUri::parse(uri)?,
            database: DATABASE.to_owned(),
        })
    };
    Ok(MirrorConfig {
        name: "bench/shop".to_owned(),
        source: endpoint(source)?,
        target: endpoint(target)?,
        selection: Selection::default(),
        holder: None,
        read_from: Default::default(),
        state_database: "mongomirror".to_owned(),
        on_existing_data: Default::default(),
        on_deselected: Default::default(),
        on_history_lost: OnHistoryLost::default(),
        apply_mode: Default::default(),
        verify_every: None,
        limits: Limits {
            copy_lanes: lanes,
            ..Limits::default()
        },
    })
}

async fn mirror(config: MirrorConfig, mut stop: oneshot::Receiver<()>) -> Result<()> {
    let handle = MirrorHandle::start(config);
    let mut progress = handle.progress();
    let mut told = Seen::default();
    let (mut verified, mut verifications) = (None, 0);
    loop {
        tokio::select! {
            _ = &mut stop => break,
            changed = progress.changed() => changed?,
        }
        let seen = {
            let now = progress.borrow_and_update();
            let last = now.verification.last.as_ref().map(|last| last.time);
            if last != verified {
                verified = last;
                verifications += 1;
            }
            Seen {
                verifications,
                ..Seen::of(&now)
            }
        };
        if seen != told {
            seen.tell()?;
            told = seen;
        }
    }
    handle.stop().await;
    tokio::time::sleep(FAREWELL).await;
    Ok(())
}

/// Standard input is read by a thread: a runtime cannot be left while it waits for it.
fn end_of_input() -> oneshot::Receiver<()> {
    let (ended, stop) = oneshot::channel();
    std::thread::spawn(move || {
        // Whatever it is that comes, it is the end.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    stop
}
