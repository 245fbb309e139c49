//! What a mirror achieves, side by side with what the same servers give a bare copier and a bare
//! bulk writer that do nothing else: the practical limit.
//!
//! `cargo bench --bench mirror` (or `make bench`); `-- --quick` for a smoke run of some seconds.
//! Nothing fails because it was slow: the table says what was reached. It does fail if a mirror
//! stands still, or if a target is not equal to the source in the end.
//!
//! - `servers.rs`: the replica sets, and what is asked of them
//! - `orders.rs`: the documents and the updates, as raw bytes
//! - `bare.rs`: the bare copier and the bare bulk writer
//! - `worker.rs`: what runs in a process of its own, to be measured: the mirror, or one of these
//! - `process.rs`: starts such a process, and listens to it
//! - `../common/usage.rs`: its CPU time and memory
//! - `copy.rs`, `tail.rs`, `latency.rs`: the measurements
//! - `report.rs`: the table and the JSON file

mod bare;
mod copy;
mod latency;
mod orders;
mod process;
mod report;
mod servers;
mod tail;
#[path = "../common/usage.rs"]
mod usage;
mod worker;

use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use mongomirror::engine::config::Limits;

use report::Report;
use servers::Servers;
use worker::Work;

/// As in the product: glibc's allocator is several times slower with buffers of a megabyte.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Anything that makes a measurement impossible.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures a mirror beside a bare copier and a bare bulk writer, on real servers.
#[derive(Parser, Debug)]
#[command(name = "mirror")]
struct Arguments {
    /// A smoke run of some seconds: few documents, one round. Its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Measure only this.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Orders of about 1 KB; there are two updates for every five of them.
    #[arg(long, value_name = "N")]
    docs: Option<u32>,
    /// How often each side is measured, in turn; the median counts.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Lanes of the mirror's copy and of the bare copier.
    #[arg(long, value_name = "N", default_value_t = Limits::default().copy_lanes)]
    lanes: usize,
    /// The mirror applies batches as several transactions at the same time.
    #[arg(long)]
    parallel: bool,
    /// Write all figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    Copy,
    Tail,
    Hot,
    Latency,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Orders.
    pub documents: u32,
    /// Updates in a backlog.
    pub updates: u32,
    /// Orders that the spread updates go to, each equally often.
    pub spread: u32,
    /// Orders that the hot updates go to.
    pub hot: u32,
    /// Measurements of each side.
    pub rounds: usize,
    /// Parallel copies.
    pub lanes: usize,
    /// Whether the mirror applies as several transactions at the same time.
    pub parallel: bool,
    /// Samples of a latency.
    pub samples: usize,
}

impl Arguments {
    fn scale(&self) -> Scale {
        let documents = self
            .docs
            .unwrap_or(if self.quick { 20_000 } else { 1_000_000 });
        Scale {
            documents,
            updates: documents / 5 * 2,
            spread: (documents / 5).max(1),
            hot: 1000.min(documents).max(1),
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 3 }).max(1),
            lanes: self.lanes.max(1),
            parallel: self.parallel,
            samples: if self.quick { 20 } else { 200 },
        }
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    if let Some(work) = Work::of_this_process()? {
        return runtime.block_on(worker::run(work));
    }
    runtime.block_on(measure(&Arguments::parse()))
}

/// Prints what is going on, so that nobody thinks it hangs.
pub fn say(line: &str) {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let begun = BEGUN.get_or_init(Instant::now);
    eprintln!("bench {:>5.1}s: {line}", begun.elapsed().as_secs_f64());
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let scale = arguments.scale();
    say("starting the source");
    let mut servers = Servers::start().await?;
    let mut report = Report::new(servers.version(), scale, arguments.quick);
    let orders = servers.fill(scale.documents).await?;
    say(&format!(
        "the source holds {} orders, {:.0} bytes each",
        orders.documents,
        orders.average()
    ));
    let copying = arguments.wants(Part::Copy);
    let rounds = if copying { scale.rounds } else { 1 };
    let copied = copy::measure(&mut servers, orders, scale, rounds).await?;
    report.note_peak(&copied.usage);
    if copying {
        report.copy(&copied);
    }
    for (part, kind) in [
        (Part::Tail, tail::Kind::Spread),
        (Part::Hot, tail::Kind::Hot),
    ] {
        if arguments.wants(part) {
            report.tail(kind, &tail::measure(&servers, kind, scale).await?);
        }
    }
    if arguments.wants(Part::Latency) {
        report.latency(&latency::measure(&servers, scale).await?);
    }
    say("comparing the databases by hash");
    servers.prove_equal().await?;
    report.finish();
    println!("{report}");
    if let Some(file) = &arguments.json {
        std::fs::write(file, format!("{:#}\n", report.json()))?;
        say(&format!("wrote {}", file.display()));
    }
    Ok(())
}
