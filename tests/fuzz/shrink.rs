//! Makes a failing plan smaller: halves of its steps are left out, then quarters, and so on, as
//! long as it still fails in the same way.
//!
//! What a mirror meets depends on time, so a plan that fails may also pass: each attempt is made
//! twice before it counts as passed.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::keep::Keep;
use crate::plan::Plan;
use crate::round::{self, Failure};
use crate::say;
use crate::servers::Servers;

/// Bounds on shrinking, so that a long run goes on.
const ROUNDS: u32 = 60;
const LONGEST: Duration = Duration::from_secs(600);

/// A mirror that is stuck is stuck for ever; this much waiting must do.
const PATIENCE: Duration = Duration::from_secs(40);

/// How often a plan is tried before it counts as passed.
const TRIES: u32 = 2;

struct Shrinking<'a> {
    plan: &'a Plan,
    failure: &'a Failure,
    servers: Option<Servers>,
    log: &'a Path,
    rounds: u32,
    begun: Instant,
}

/// The smallest plan found that fails like that, if it fails again at all; gives the servers back.
pub async fn shrink(
    plan: &Plan,
    keep: &Keep,
    failure: &Failure,
    servers: Servers,
    log: &Path,
) -> (Option<Keep>, Option<Servers>) {
    let mut shrinking = Shrinking {
        plan,
        failure,
        servers: Some(servers),
        log,
        rounds: 0,
        begun: Instant::now(),
    };
    let all: Vec<usize> = (0..plan.steps.len())
        .filter(|number| keep.has(*number))
        .collect();
    if !shrinking.fails(&all).await {
        return (None, shrinking.servers);
    }
    let smallest = shrinking.reduce(all).await;
    (Some(Keep::only(smallest)), shrinking.servers)
}

impl Shrinking<'_> {
    async fn reduce(&mut self, mut kept: Vec<usize>) -> Vec<usize> {
        let mut parts = 2;
        while kept.len() > 1 && !self.is_over() {
            let size = kept.len().div_ceil(parts);
            let mut smaller = None;
            for part in 0..kept.len().div_ceil(size) {
                let rest: Vec<usize> = kept
                    .chunks(size)
                    .enumerate()
                    .filter(|(number, _)| *number != part)
                    .flat_map(|(_, steps)| steps.iter().copied())
                    .collect();
                if self.fails(&rest).await {
                    smaller = Some(rest);
                    break;
                }
            }
            match smaller {
                Some(rest) => {
                    say(&format!("still fails with {} steps", rest.len()));
                    kept = rest;
                    parts = (parts - 1).max(2);
                }
                None if size == 1 => break,
                None => parts = (parts * 2).min(kept.len()),
            }
        }
        kept
    }

    async fn fails(&mut self, kept: &[usize]) -> bool {
        let keep = Keep::only(kept.to_vec());
        for _ in 0..TRIES {
            if self.is_over() {
                return false;
            }
            self.rounds += 1;
            let Ok(servers) = Servers::get(self.servers.take(), self.plan).await else {
                return false;
            };
            // The log of the last failure is the one to look at.
            let log = self.log.with_extension("try");
            let _ = std::fs::remove_file(&log);
            let outcome = round::run(self.plan, &keep, &servers, &log, PATIENCE).await;
            self.servers = Some(servers);
            let same = |now: &Failure| now.sort == self.failure.sort;
            if outcome.failure.as_ref().is_some_and(same) {
                let _ = std::fs::rename(&log, self.log.with_extension("smallest.log"));
                return true;
            }
            let _ = std::fs::remove_file(&log);
        }
        false
    }

    fn is_over(&self) -> bool {
        self.rounds >= ROUNDS || self.begun.elapsed() > LONGEST
    }
}
