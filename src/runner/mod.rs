//! Starts, stops and supervises mirrors, and hands out handles to them.
//!
//! Nothing above this room knows where a mirror lives: today in a task of this process.

pub mod decide;
pub mod journal;
pub mod readiness;
pub mod registry;
pub mod slot;
pub mod translate;
pub mod words;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::engine::config::MirrorConfig;
use crate::engine::connection::shared::Clients;
use crate::engine::finish as engine_finish;
pub use crate::engine::finish::End;
use crate::engine::mirror;
use crate::engine::progress::{Phase, Problem, Progress};
use crate::engine::request::Request;
use crate::reason::Reason;

/// Ends a mirror for good: arms or deletes its target, within a bounded time, and says what came of
/// it. The mirror must have stopped.
pub async fn finish(config: MirrorConfig, end: End) {
    match engine_finish::finish(&config, end).await {
        Ok(false) => tracing::info!(
            mirror = %config.name,
            database = config.target.database,
            "ended for good: nothing on the target is this mirror's, it is left alone"
        ),
        Ok(true) if end == End::Delete => tracing::info!(
            mirror = %config.name,
            database = config.target.database,
            "ended for good: what it has made on the target is dropped"
        ),
        Err(error) if end == End::Delete => tracing::warn!(
            mirror = %config.name,
            database = config.target.database,
            reason = %error.reason(),
            "the target could not be deleted: {error}; drop the database, and its document in \
             {}.checkpoints",
            config.state_database
        ),
        Ok(true) => tracing::info!(
            mirror = %config.name,
            "ended for good: the target is an ordinary database now"
        ),
        Err(error) => tracing::warn!(
            mirror = %config.name,
            reason = %error.reason(),
            "the target could not be armed: {error}; its TTL indexes do not expire, see \
             docs/limits.md"
        ),
    }
}

/// A mirror that panicked is started again after this long, so that a defect that shows at once
/// does not become a hot loop.
const RESTART_AFTER_PANIC: Duration = Duration::from_secs(10);

/// Requests of users that wait for the mirror; who comes beyond them waits outside.
const REQUESTS: usize = 16;

/// A running mirror.
///
/// Dropping the handle asks the mirror to stop but does not wait for it.
pub struct MirrorHandle {
    config: MirrorConfig,
    progress: watch::Receiver<Progress>,
    requests: mpsc::Sender<Request>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl MirrorHandle {
    /// Starts a mirror with connections of its own; returns at once. Problems show in its progress.
    pub fn start(config: MirrorConfig) -> Self {
        Self::start_among(config, &Clients::default())
    }

    /// The same, where others may use its connections, too.
    pub fn start_among(config: MirrorConfig, clients: &Clients) -> Self {
        let (publish, progress) = watch::channel(Progress::default());
        let stop = CancellationToken::new();
        let (requests, asked) = mpsc::channel(REQUESTS);
        let supervised = supervise(
            config.clone(),
            clients.clone(),
            publish,
            asked,
            stop.clone(),
        );
        let task = tokio::spawn(supervised);
        Self {
            config,
            progress,
            requests,
            stop,
            task,
        }
    }

    /// What the mirror was started with.
    pub fn config(&self) -> &MirrorConfig {
        &self.config
    }

    /// The mirror's progress, now and from now on.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Where to ask the mirror for something.
    pub fn requests(&self) -> mpsc::Sender<Request> {
        self.requests.clone()
    }

    /// Finishes the batch in hand, writes the checkpoint, disconnects, and returns the last
    /// progress.
    pub async fn stop(mut self) -> Progress {
        self.stop.cancel();
        // A task that panicked was already reported by its supervisor; there is nothing to add.
        let _ = (&mut self.task).await;
        self.progress.borrow().clone()
    }
}

impl Drop for MirrorHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs the mirror until it is asked to stop, and starts it again should it panic.
async fn supervise(
    config: MirrorConfig,
    clients: Clients,
    publish: watch::Sender<Progress>,
    mut requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
) {
    loop {
        // What it owns is dropped with it, and what it shares is only ever replaced as a whole.
        let run = mirror::run(&config, &clients, &publish, &mut requests, &stop);
        match AssertUnwindSafe(run).catch_unwind().await {
            Ok(()) => return,
            Err(_) => {
                tracing::error!(mirror = %config.name, "the mirror's task panicked; starting it again");
                publish.send_modify(|progress| {
                    progress.phase = Phase::Failed;
                    progress.problem = Some(Problem {
                        reason: Reason::InternalError,
                        message: format!(
                            "an internal error stopped the mirror; it starts again in {} s. \
                             Please report the log lines around this time.",
                            RESTART_AFTER_PANIC.as_secs()
                        ),
                        needs_human: false,
                        since: SystemTime::now(),
                        next_attempt: Some(SystemTime::now() + RESTART_AFTER_PANIC),
                    });
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESTART_AFTER_PANIC) => {}
        }
    }
}
