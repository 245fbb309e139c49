//! One round: a plan is carried out, and judged.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::FutureExt;

use crate::Result;
use crate::actions::{self, Played};
use crate::keep::Keep;
use crate::mirror::{Mirror, Totals, Work};
use crate::oracle;
use crate::plan::{Action, Fault, Layout, Plan, Step};
use crate::servers::{Databases, Servers};
use crate::tally::Tally;

/// What the mirror logs where a unique index of the target was in its way.
const RELAXED: &str = "a unique index of the target is in the way";

/// What is wrong with a round.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// Which sort: shrinking looks for the same.
    pub sort: &'static str,
    /// In words.
    pub what: String,
}

impl Failure {
    fn new(sort: &'static str, what: impl Into<String>) -> Self {
        Self {
            sort,
            what: what.into(),
        }
    }
}

/// What became of a round.
#[derive(Default)]
pub struct Outcome {
    /// What was done.
    pub tally: Tally,
    /// Collections and documents compared with the source's past.
    pub compared: (usize, usize),
    /// Why nothing was compared, the last time that was so.
    pub unclear: Option<String>,
    /// Events that the mirror applied.
    pub events: u64,
    /// How long it took.
    pub took: Duration,
    /// What is wrong, if anything.
    pub failure: Option<Failure>,
}

/// Carries a plan out, as far as its steps are kept.
pub async fn run(
    plan: &Plan,
    keep: &Keep,
    servers: &Servers,
    log: &Path,
    patience: Duration,
) -> Outcome {
    let begun = Instant::now();
    let mut outcome = Outcome::default();
    let ran = AssertUnwindSafe(carry_out(plan, keep, servers, log, patience, &mut outcome))
        .catch_unwind()
        .await;
    let failure = match ran {
        Ok(Ok(failure)) => failure,
        Ok(Err(error)) => Some(Failure::new("broken off", error.to_string())),
        Err(_) => Some(Failure::new("broken off", "the test panicked, see above")),
    };
    outcome.failure = failure;
    if !servers.is_whole() {
        outcome.failure = Some(Failure::new("server died", servers.logs()));
    }
    outcome.took = begun.elapsed();
    outcome
}

async fn carry_out(
    plan: &Plan,
    keep: &Keep,
    servers: &Servers,
    log: &Path,
    patience: Duration,
    outcome: &mut Outcome,
) -> Result<Option<Failure>> {
    let databases = Databases::connect(servers).await?;
    servers.clear(&databases).await?;
    databases.let_ttl_delete(true).await?;
    // Five minutes are the servers' default.
    databases
        .keep_past(if plan.forgets { 0 } else { 300 })
        .await?;
    let numbered = plan.steps.iter().enumerate();
    let steps: Vec<&Step> = numbered
        .filter(|(number, _)| keep.has(*number))
        .map(|(_, step)| step)
        .collect();
    outcome.tally += &actions::prepare(&steps, &databases).await?;
    let work = Work::new(plan, servers.source().uri(), servers.target().uri());
    let mut mirror = Mirror::new(work, log.to_owned());
    mirror.start()?;
    let played = actions::play(plan, &steps, servers, &databases, &mut mirror).await?;
    let judged = match &played.different {
        Some(_) => None,
        None => oracle::judge(plan, servers, &databases, &mut mirror, patience).await?,
    };
    let totals = mirror.totals();
    match mirror.stop().await {
        // What was wrong before says more.
        Err(error) if judged.is_none() && played.different.is_none() => return Err(error),
        _ => {}
    }
    outcome.tally += &played.tally;
    outcome.compared = played.compared;
    outcome.unclear.clone_from(&played.unclear);
    outcome.events = totals.events;
    outcome.tally.add("(verified)", totals.verifications);
    outcome
        .tally
        .add("(compared after lost history)", totals.resyncs);
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let relaxed = log.matches(RELAXED).count() as u64;
    outcome.tally.add("(unique indexes in the way)", relaxed);
    Ok(verdict(plan, &played, judged, totals, &log))
}

fn verdict(
    plan: &Plan,
    played: &Played,
    judged: Option<String>,
    totals: Totals,
    log: &str,
) -> Option<Failure> {
    if log.contains("panicked") {
        return Some(Failure::new("panic", "the mirror panicked, see its log"));
    }
    if let Some(different) = &played.different {
        return Some(Failure::new("no state of the source", different));
    }
    if let Some(what) = judged {
        let caught_up = !what.starts_with("not caught up");
        return Some(Failure::new(
            if caught_up { "different" } else { "stuck" },
            what,
        ));
    }
    if totals.differences > 0 && !plan.strangers {
        let what = format!("verification found {} differences", totals.differences);
        return Some(Failure::new("verification", what));
    }
    if totals.resyncs > 0 && plan.layout != Layout::Forgetful {
        return Some(Failure::new("resync", "the mirror took history for lost"));
    }
    // What users ask for is counted, too.
    let is_sync = |step: &Step| matches!(step.action, Action::Fault(Fault::Sync(_)));
    if totals.repaired > 0 && !plan.strangers && !plan.steps.iter().any(is_sync) {
        let what = format!(
            "{} documents were not as the stream said, and repaired",
            totals.repaired
        );
        return Some(Failure::new("repaired", what));
    }
    None
}
