//! One mirror's life: connect, plan, run, and start over from the checkpoint when something
//! breaks, for ever.

use std::time::{Duration, SystemTime};

use rand::Rng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::MirrorConfig;
use super::error::{Error, Side};
use super::owner::Owner;
use super::plan::{Rival, prepare};
use super::progress::{Phase, Problem, Progress};

/// First and longest pause before another try, for what may pass by itself.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Pause before another try, for what needs a human: they may have helped meanwhile.
const HUMAN: Duration = Duration::from_secs(30);

/// A run that lasted this long was a success: the next pause is the shortest again.
const HEALTHY: Duration = Duration::from_secs(60);

/// Runs the mirror until it is asked to stop. Everything that happens shows in the progress.
pub async fn run(config: MirrorConfig, publish: watch::Sender<Progress>, stop: CancellationToken) {
    let mut pause = BACKOFF.0;
    let mut rival = Rival::default();
    let mut own_epoch = None;
    loop {
        let started = tokio::time::Instant::now();
        let error = match run_once(&config, &publish, &stop, &mut rival, &mut own_epoch).await {
            Ok(()) => break,
            Err(error) => error,
        };
        if started.elapsed() > HEALTHY {
            pause = BACKOFF.0;
        }
        if matches!(error, Error::Fenced { .. }) && rival == Rival::None {
            rival = Rival::Unknown;
        }
        report(&config, &publish, &error);
        let wait = if error.needs_human() { HUMAN } else { pause };
        // Many mirrors of one server must not come back in step.
        let wait = wait.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
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

async fn run_once(
    config: &MirrorConfig,
    publish: &watch::Sender<Progress>,
    stop: &CancellationToken,
    rival: &mut Rival,
    own_epoch: &mut Option<i64>,
) -> Result<(), Error> {
    let planned = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        planned = prepare(config, publish, rival, own_epoch) => planned?,
    };
    tracing::info!(
        mirror = %config.name,
        epoch = planned.epoch,
        position = %planned.position.time,
        "connected"
    );
    Owner::new(config, planned, publish).run(stop).await
}

/// Makes a problem visible: once in the log, for as long as it lasts in the progress.
fn report(config: &MirrorConfig, publish: &watch::Sender<Progress>, error: &Error) {
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
        });
        progress.lag = None;
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
        tracing::debug!(mirror = %config.name, reason = error.reason(), "{message}");
    }
}
