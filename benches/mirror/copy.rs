//! The initial copy of all orders into an empty server, by the mirror and by the bare copier.

use std::time::Duration;

use crate::bare::Orders;
use crate::process::Worker;
use crate::servers::{Server, Servers};
use crate::usage::Usage;
use crate::worker::Work;
use crate::{Result, Scale, say};

/// What was measured, round by round.
pub struct Copied {
    /// What was copied.
    pub orders: Orders,
    /// From the mirror's start until it says that its copy is complete.
    pub mirror: Vec<Duration>,
    /// Of that: until the copy was planned.
    pub planned: Vec<Duration>,
    /// What the mirror had used by then.
    pub usage: Vec<Usage>,
    /// From the bare copier's start to its end.
    pub bare: Vec<Duration>,
    /// What the bare copier had used by then.
    pub bare_usage: Vec<Usage>,
    /// Cores that others used meanwhile.
    pub others: Vec<f64>,
}

/// Copies in turn. What the last round has copied stays.
pub async fn measure(
    servers: &mut Servers,
    orders: Orders,
    scale: Scale,
    rounds: usize,
) -> Result<Copied> {
    let mut copied = Copied {
        orders,
        mirror: Vec::new(),
        planned: Vec::new(),
        usage: Vec::new(),
        bare: Vec::new(),
        bare_usage: Vec::new(),
        others: Vec::new(),
    };
    for round in 1..=rounds {
        // Who goes first changes, should that matter.
        for mirror in [round % 2 == 0, round % 2 == 1] {
            if mirror {
                servers.mirrored = None;
                servers.mirrored = Some(Server::start().await?);
                by_mirror(servers, orders, scale, &mut copied).await?;
            } else {
                servers.bare = None;
                servers.bare = Some(Server::start().await?);
                by_bare_copier(servers, orders, scale, &mut copied).await?;
            }
        }
    }
    Ok(copied)
}

async fn by_mirror(
    servers: &Servers,
    orders: Orders,
    scale: Scale,
    copied: &mut Copied,
) -> Result<()> {
    let work = Work::Mirror {
        source: servers.source.uri(),
        target: servers.mirrored()?.uri(),
        lanes: scale.lanes,
        parallel: scale.parallel,
        verifies: false,
    };
    servers.settle().await?;
    let mut worker = Worker::start(&work)?;
    let planned = worker
        .wait_for("the mirror plans", |seen| seen.planned)
        .await?;
    let done = worker
        .wait_for("the mirror copies", |seen| seen.copied)
        .await?;
    say(&format!(
        "the mirror copied {} orders in {:.2} s ({:.2} s of it until planned, {:.2} s of CPU){}",
        orders.documents,
        done.after.as_secs_f64(),
        planned.after.as_secs_f64(),
        done.usage.cpu.as_secs_f64(),
        done.disturbance(),
    ));
    worker
        .wait_for("the mirror is live", |seen| seen.done)
        .await?;
    worker.stop().await?;
    copied.others.push(done.others);
    copied.mirror.push(done.after);
    copied.planned.push(planned.after);
    copied.usage.push(done.usage);
    Ok(())
}

async fn by_bare_copier(
    servers: &Servers,
    orders: Orders,
    scale: Scale,
    copied: &mut Copied,
) -> Result<()> {
    let work = Work::Copy {
        source: servers.source.uri(),
        target: servers.bare()?.uri(),
        lanes: scale.lanes,
        orders,
    };
    servers.settle().await?;
    let mut worker = Worker::start(&work)?;
    let done = worker
        .wait_for("the bare copier copies", |seen| seen.done)
        .await?;
    if done.seen.count != u64::from(orders.documents) {
        return Err(format!("the bare copier copied only {} orders", done.seen.count).into());
    }
    say(&format!(
        "the bare copier copied as many in {:.2} s ({:.2} s of CPU){}",
        done.after.as_secs_f64(),
        done.usage.cpu.as_secs_f64(),
        done.disturbance(),
    ));
    worker.stop().await?;
    copied.others.push(done.others);
    copied.bare.push(done.after);
    copied.bare_usage.push(done.usage);
    Ok(())
}
