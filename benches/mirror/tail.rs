//! A backlog of updates, made while the mirror was stopped: how long until the target has it, by
//! the mirror and by the bare bulk writer.

use std::time::{Duration, Instant};

use crate::orders::Backlog;
use crate::process::Worker;
use crate::servers::Servers;
use crate::usage::Usage;
use crate::worker::Work;
use crate::{Result, Scale, bare, say};

/// Where the updates go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// To so many documents that hardly any comes twice in one batch.
    Spread,
    /// To few documents, again and again.
    Hot,
}

impl Kind {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Hot => "hot",
        }
    }

    fn backlog(self, scale: Scale, number: u32) -> Backlog {
        let orders = match self {
            Self::Spread => scale.spread,
            Self::Hot => scale.hot,
        };
        Backlog {
            updates: scale.updates,
            orders,
            number,
        }
    }
}

/// What was measured, round by round.
#[derive(Default)]
pub struct Tailed {
    /// Updates in the backlog.
    pub updates: u32,
    /// From the mirror's start until the target has all of them.
    pub mirror: Vec<Duration>,
    /// What the mirror had used by then.
    pub usage: Vec<Usage>,
    /// Statements that the mirror wrote.
    pub operations: Vec<u64>,
    /// Transactions that the mirror made of them.
    pub batches: Vec<u64>,
    /// From the bare bulk writer's start to its end.
    pub bare: Vec<Duration>,
    /// What the bare bulk writer had used by then.
    pub bare_usage: Vec<Usage>,
    /// Cores that others used meanwhile.
    pub others: Vec<f64>,
}

/// Catches up in turn.
pub async fn measure(servers: &Servers, kind: Kind, scale: Scale) -> Result<Tailed> {
    let mut tailed = Tailed {
        updates: scale.updates,
        ..Tailed::default()
    };
    for round in 1..=scale.rounds {
        let number = u32::try_from(round)? * 2 + u32::from(kind == Kind::Hot);
        let backlog = kind.backlog(scale, number);
        let begun = Instant::now();
        bare::update(&servers.source.database(), backlog).await?;
        say(&format!(
            "the source took {} {} updates in {:.2} s",
            backlog.updates,
            kind.name(),
            begun.elapsed().as_secs_f64()
        ));
        // Who goes first changes, should that matter.
        for mirror in [round % 2 == 0, round % 2 == 1] {
            servers.settle().await?;
            if mirror {
                by_mirror(servers, scale, backlog, &mut tailed).await?;
            } else {
                by_bare_writer(servers, backlog, &mut tailed).await?;
            }
        }
    }
    Ok(tailed)
}

async fn by_mirror(
    servers: &Servers,
    scale: Scale,
    backlog: Backlog,
    tailed: &mut Tailed,
) -> Result<()> {
    let work = Work::Mirror {
        source: servers.source.uri(),
        target: servers.mirrored()?.uri(),
        lanes: scale.lanes,
        parallel: scale.parallel,
        verifies: false,
    };
    let until = servers.source.time().await?;
    let mut worker = Worker::start(&work)?;
    let planned = worker
        .wait_for("the mirror resumes", |seen| seen.planned)
        .await?;
    let done = worker
        .wait_for("the mirror catches up", |seen| {
            seen.consistent_at >= Some(until)
        })
        .await?;
    let disturbance = done.disturbance();
    let seen = done.seen;
    say(&format!(
        "the mirror caught up with them in {:.2} s ({:.2} s of it until resumed, {:.2} s of CPU): \
         {} events, {} operations, {} batches{}",
        done.after.as_secs_f64(),
        planned.after.as_secs_f64(),
        done.usage.cpu.as_secs_f64(),
        seen.events,
        seen.operations,
        seen.batches,
        disturbance,
    ));
    worker.stop().await?;
    if seen.events < u64::from(backlog.updates) || seen.repaired > 0 {
        return Err(format!("the mirror did not what it should: {seen:?}").into());
    }
    tailed.others.push(done.others);
    tailed.mirror.push(done.after);
    tailed.usage.push(done.usage);
    tailed.operations.push(seen.operations);
    tailed.batches.push(seen.batches);
    Ok(())
}

async fn by_bare_writer(servers: &Servers, backlog: Backlog, tailed: &mut Tailed) -> Result<()> {
    let work = Work::Update {
        target: servers.bare()?.uri(),
        backlog,
    };
    let mut worker = Worker::start(&work)?;
    let done = worker
        .wait_for("the bare bulk writer writes", |seen| seen.done)
        .await?;
    if done.seen.count != u64::from(backlog.updates) {
        return Err(format!(
            "the bare bulk writer changed only {} orders",
            done.seen.count
        )
        .into());
    }
    say(&format!(
        "the bare bulk writer wrote them in {:.2} s ({:.2} s of CPU){}",
        done.after.as_secs_f64(),
        done.usage.cpu.as_secs_f64(),
        done.disturbance(),
    ));
    worker.stop().await?;
    tailed.others.push(done.others);
    tailed.bare.push(done.after);
    tailed.bare_usage.push(done.usage);
    Ok(())
}
