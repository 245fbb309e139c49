//! One mirror's life: connect, plan, run, and start over from the checkpoint when something
//! breaks, for ever.

use std::time::{Duration, SystemTime};

use rand::Rng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::config::{MirrorConfig, OnHistoryLost};
use super::connection::shared::{Clients, Connections};
use super::error::{Error, Side, code};
use super::headroom;
use super::owner::{End, Kept, Owner};
use super::plan::{Rival, prepare};
use super::progress::{Phase, Problem, Progress};
use super::request::{Refusal, Request};

/// First and longest pause before another try, for what may pass by itself.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Pause before another try, for what needs a human: they may have helped meanwhile. And between two
/// looks at whether another process still works: one that does shows it more often.
const HUMAN: Duration = Duration::from_secs(30);

/// A run that lasted this long was a success: the next pause is the shortest again.
const HEALTHY: Duration = Duration::from_secs(60);

/// What a mirror knows from its earlier runs in this process.
#[derive(Default)]
pub struct Before {
    /// Who took it over, if anyone did.
    pub rival: Rival,
    /// The epoch it last had.
    pub own_epoch: Option<i64>,
    /// Changes of the source cannot be read: both sides have to be compared.
    has_gap: bool,
    /// Who asked for both sides to be compared and made equal. Told when that is planned.
    asked: Vec<oneshot::Sender<Result<(), Refusal>>>,
    /// Changes could not be laid over a document that holds one name twice.
    pub careful: bool,
    kept: Kept,
    /// Measures what is left of the source's oplog while the mirror does not run.
    watch: Option<AbortOnDropHandle<()>>,
}

/// Runs the mirror until it is asked to stop. Everything that happens shows in the progress.
pub async fn run(
    config: &MirrorConfig,
    clients: &Clients,
    publish: &watch::Sender<Progress>,
    requests: &mut mpsc::Receiver<Request>,
    stop: &CancellationToken,
) {
    let mut pause = BACKOFF.0;
    let mut before = Before::default();
    loop {
        let started = tokio::time::Instant::now();
        let error = match run_once(config, clients, publish, requests, stop, &mut before).await {
            Ok(End::Stopped) => break,
            Ok(End::Resync(done)) => {
                tracing::info!(mirror = %config.name, "beginning anew over what the target holds, as asked");
                before.ask(done);
                compares(publish);
                continue;
            }
            Err(error) => error,
        };
        // From now until it is connected again; another process's position is not ours.
        if !matches!(error, Error::Fenced { .. }) {
            before.watch.get_or_insert_with(|| {
                let position = publish.borrow().position;
                headroom::watch_over(config.clone(), clients.clone(), position, publish.clone())
            });
        }
        if started.elapsed() > HEALTHY {
            pause = BACKOFF.0;
        }
        let wait = match before.learn(config, &error) {
            Again::Compare => {
                tracing::warn!(mirror = %config.name, "{error}; comparing both sides, to write what differs");
                compares(publish);
                BACKOFF.0
            }
            Again::Human => HUMAN,
            Again::Soon => pause,
        };
        // Many mirrors of one server must not come back in step.
        let wait = wait.mul_f64(rand::rng().random_range(0.75..1.25));
        if !before.has_gap {
            report(config, publish, &error, SystemTime::now() + wait);
        }
        match rest(wait, &mut before, requests, stop).await {
            Rested::Over => {}
            Rested::Stopped => break,
            Rested::Asked => compares(publish),
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
    publish.send_modify(|progress| {
        progress.lag = None;
        progress.source.connected = None;
        progress.target.connected = None;
    });
    tracing::info!(mirror = %config.name, "stopped");
}

/// From here on the target is nothing that the source was, until all is compared.
fn compares(publish: &watch::Sender<Progress>) {
    publish.send_modify(|progress| {
        progress.totals.resyncs += 1;
        progress.phase = Phase::Pending;
        progress.consistent_at = None;
        if let Some(problem) = &mut progress.problem {
            problem.next_attempt = Some(SystemTime::now());
        }
    });
}

/// How a mirror goes on after an error.
enum Again {
    Compare,
    Human,
    Soon,
}

impl Before {
    /// Both sides have to be compared before the mirror goes on.
    pub fn compares(&self) -> bool {
        self.has_gap || self.is_asked()
    }

    /// Somebody asked for that.
    pub fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    fn ask(&mut self, done: oneshot::Sender<Result<(), Refusal>>) {
        self.asked.push(done);
        self.kept.resyncs();
    }

    fn learn(&mut self, config: &MirrorConfig, error: &Error) -> Again {
        if matches!(error, Error::Fenced { .. }) && self.rival == Rival::None {
            self.rival = Rival::Unknown;
        }
        self.has_gap = error.is_gap() && config.on_history_lost == OnHistoryLost::Resync;
        // Documents that are read again are put whatever is there.
        self.careful = error.code() == Some(code::NAME_TWICE) || matches!(error, Error::Unsettled);
        if error.side() == Some(Side::Target) && error.is_too_much() {
            self.kept.batch_failed();
        }
        if self.has_gap {
            Again::Compare
        } else if error.needs_human() || error.is_rival() {
            Again::Human
        } else {
            Again::Soon
        }
    }
}

/// How a pause ended.
enum Rested {
    Over,
    Stopped,
    /// Somebody wants both sides to be compared.
    Asked,
}

/// Waits for another try, and refuses what only a mirror that runs can do.
async fn rest(
    wait: Duration,
    before: &mut Before,
    requests: &mut mpsc::Receiver<Request>,
    stop: &CancellationToken,
) -> Rested {
    let over = tokio::time::sleep(wait);
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Rested::Stopped,
            () = &mut over => return Rested::Over,
            Some(request) = requests.recv() => match request {
                Request::Resync { done } => {
                    let is_first = !before.is_asked();
                    before.ask(done);
                    // Who asks again and again does not shorten every pause. And between two looks at
                    // a rival must be time enough.
                    if is_first && before.rival == Rival::None {
                        return Rested::Asked;
                    }
                }
                request => request.refuse(Refusal::NotMirroring),
            }
        }
    }
}

async fn run_once(
    config: &MirrorConfig,
    clients: &Clients,
    publish: &watch::Sender<Progress>,
    requests: &mut mpsc::Receiver<Request>,
    stop: &CancellationToken,
    before: &mut Before,
) -> Result<End, Error> {
    let connections = tokio::select! {
        () = stop.cancelled() => return Ok(End::Stopped),
        connections = Connections::open(clients, config) => connections?,
    };
    let ended = run_connected(config, &connections, publish, requests, stop, before).await;
    connections.close(ended.as_ref().err()).await;
    ended
}

async fn run_connected(
    config: &MirrorConfig,
    connections: &Connections,
    publish: &watch::Sender<Progress>,
    requests: &mut mpsc::Receiver<Request>,
    stop: &CancellationToken,
    before: &mut Before,
) -> Result<End, Error> {
    let planned = tokio::select! {
        () = stop.cancelled() => return Ok(End::Stopped),
        planned = prepare(config, connections, publish, before) => planned?,
    };
    before.watch = None;
    for done in before.asked.drain(..) {
        // Whoever asked may be gone.
        let _ = done.send(Ok(()));
    }
    tracing::info!(
        mirror = %config.name,
        epoch = planned.epoch,
        position = %planned.position.time,
        "connected"
    );
    Owner::new(
        config,
        connections,
        planned,
        publish,
        requests,
        &mut before.kept,
    )
    .run(stop)
    .await
}

/// Makes a problem visible: once in the log, for as long as it lasts in the progress.
fn report(
    config: &MirrorConfig,
    publish: &watch::Sender<Progress>,
    error: &Error,
    next_attempt: SystemTime,
) {
    let message = error.to_string();
    let mut is_new = false;
    publish.send_modify(|progress| {
        is_new = progress
            .problem
            .as_ref()
            .is_none_or(|problem| problem.message != message);
        let since = match &progress.problem {
            Some(problem) if problem.reason == error.reason() => problem.since,
            _ => SystemTime::now(),
        };
        progress.problem = Some(Problem {
            reason: error.reason(),
            message: message.clone(),
            needs_human: error.needs_human(),
            since,
            next_attempt: Some(next_attempt),
        });
        progress.lag = None;
        if error.side() == Some(Side::Target) || matches!(error, Error::Fenced { .. }) {
            // What of the last batch is there, nobody knows; or somebody else writes now.
            progress.consistent_at = None;
        }
        if error.needs_human() {
            progress.phase = Phase::Failed;
        } else if progress.phase == Phase::Failed {
            progress.phase = Phase::Pending;
        }
        match error.side() {
            Some(Side::Source) => {
                progress.source.set(false, message.clone());
            }
            Some(Side::Target) => {
                progress.target.set(false, message.clone());
            }
            None => {}
        }
        progress.totals.retries += 1;
    });
    if is_new {
        tracing::debug!(mirror = %config.name, reason = %error.reason(), "{message}");
    }
}
