//! The fuzzer: rounds of random writes, commands and faults, each from a seed, each judged.
//!
//! As an ordinary test it plays a list of rounds and a fresh one, about a minute in all. `make fuzz`
//! runs it for as long as one likes. Every round prints its seed, and a failing one the command that
//! plays it again.
//!
//! - `plan.rs`: what a round does, as data, made by a pure function of the seed; with `dice.rs`
//!   (chance), `writes.rs` and `ddl.rs` (kinds of commands)
//! - `round.rs`: carries a plan out; with `servers.rs`, `mirror.rs` (a process of its own),
//!   `actions.rs` (writers, breaker, observer)
//! - `oracle.rs`: is everything equal at rest; `history.rs`: was the target, under load, a state
//!   that the source had
//! - `shrink.rs`, `keep.rs`: the smallest plan that still fails
//! - `tally.rs`: counts

mod actions;
#[path = "../common/mod.rs"]
mod common;
mod ddl;
mod dice;
mod history;
mod keep;
mod mirror;
mod oracle;
mod plan;
mod round;
mod servers;
mod shrink;
mod stamps;
mod tally;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use testbed::Version;

use keep::Keep;
use mirror::Work;
use plan::{Plan, Switch, plan};
use round::{Failure, Outcome};
use servers::Servers;
use tally::Tally;

/// Anything that breaks a round off.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a step came to.
pub type Result<T> = std::result::Result<T, Error>;

/// What it plays as an ordinary test, before a fresh seed: every kind of collection, killed mirrors
/// and servers, events that are too large, strangers, lost history, little memory.
const SHORT: [(u64, Version); 7] = [
    (500_000, Version::V6_0_27),
    (34, Version::V6_0_27),
    (33, Version::V6_0_27),
    (2, Version::V6_0_27),
    (12, Version::V6_0_5),
    (24, Version::V6_0_5),
    (29, Version::V6_0_5),
];

/// Rounds on one version before the other has its turn: starting servers takes seconds.
const TURN: u64 = 6;

/// What filters of `cargo test` know it as.
const NAME: &str = "a_short_run_of_the_fuzzer";

/// A round that takes so long has a log worth reading, though it ends well.
const SLOW: Duration = Duration::from_secs(60);

/// Lines of the mirror's log shown of a failing round; the file has all.
const SHOWN: usize = 60;

/// Runs rounds of random writes, commands and faults against a mirror, and judges them.
#[derive(Parser, Debug)]
#[command(name = "fuzz")]
struct Arguments {
    /// Runs so long, instead of playing a short list of rounds.
    #[arg(long)]
    minutes: Option<u64>,
    /// The first round's seed; the next ones count up. In the short list, that of the last round.
    #[arg(long)]
    seed: Option<u64>,
    /// Which servers.
    #[arg(long, value_enum, default_value_t = Which::Both)]
    version: Which,
    /// What is left out else.
    #[arg(long, value_enum, value_delimiter = ',')]
    with: Vec<Switch>,
    /// Plays only the round of this seed, and so often (it ends with the first failure).
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "1")]
    replay: Option<u32>,
    /// Does only these steps of it, for example 0-17,23.
    #[arg(long, value_name = "STEPS")]
    keep: Option<Keep>,
    /// Prints the steps instead of doing them.
    #[arg(long)]
    print: bool,
    /// Does not look for a smaller plan that fails.
    #[arg(long)]
    no_shrink: bool,
    #[command(flatten)]
    test: TestArguments,
}

/// What `cargo test` may pass to every test program.
#[derive(clap::Args, Debug)]
struct TestArguments {
    #[arg(hide = true)]
    filters: Vec<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Which {
    #[value(name = "6.0.5")]
    V6_0_5,
    #[value(name = "6.0.27")]
    V6_0_27,
    Both,
}

impl Which {
    fn of_round(self, number: u64) -> Version {
        match self {
            Self::V6_0_5 => Version::V6_0_5,
            Self::V6_0_27 => Version::V6_0_27,
            Self::Both if (number / TURN).is_multiple_of(2) => Version::V6_0_27,
            Self::Both => Version::V6_0_5,
        }
    }
}

/// Prints what is going on, so that nobody thinks it hangs.
pub fn say(line: &str) {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let begun = BEGUN.get_or_init(Instant::now);
    println!("fuzz {:>6.1}s: {line}", begun.elapsed().as_secs_f64());
}

fn main() -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    if let Some(work) = Work::of_this_process()? {
        runtime.block_on(work.run())?;
        return Ok(ExitCode::SUCCESS);
    }
    let arguments = Arguments::parse();
    let filters = &arguments.test.filters;
    if arguments.test.list {
        println!("{NAME}: test");
        return Ok(ExitCode::SUCCESS);
    }
    if !filters.is_empty() && !filters.iter().any(|filter| NAME.contains(filter.as_str())) {
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.print {
        return print(&arguments);
    }
    runtime.block_on(Fuzzer::new(arguments)?.run())
}

fn print(arguments: &Arguments) -> Result<ExitCode> {
    let seed = arguments.seed.ok_or("which --seed?")?;
    let plan = plan(seed, arguments.version.of_round(0), &arguments.with);
    println!("{plan}");
    let keep = arguments.keep.clone().unwrap_or(Keep::ALL);
    for (number, step) in plan.steps.iter().enumerate().filter(|(n, _)| keep.has(*n)) {
        println!("{number} {:?}: {:?}", step.who, step.action);
    }
    Ok(ExitCode::SUCCESS)
}

/// Plays rounds, one after the other.
struct Fuzzer {
    arguments: Arguments,
    folder: PathBuf,
    servers: Option<Servers>,
    total: Outcome,
    rounds: u64,
    failed: Vec<String>,
}

impl Fuzzer {
    fn new(arguments: Arguments) -> Result<Self> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            arguments,
            folder,
            servers: None,
            total: Outcome::default(),
            rounds: 0,
            failed: Vec::new(),
        })
    }

    async fn run(mut self) -> Result<ExitCode> {
        let first = self.arguments.seed.unwrap_or_else(common::fresh_seed);
        match (self.arguments.replay, self.arguments.minutes) {
            (Some(times), _) => {
                let version = self.arguments.version.of_round(0);
                while self.rounds < u64::from(times) && self.failed.is_empty() {
                    self.round(first, version).await?;
                }
            }
            (None, Some(minutes)) => {
                let (begun, limit) = (Instant::now(), Duration::from_secs(minutes * 60));
                while begun.elapsed() < limit {
                    let version = self.arguments.version.of_round(self.rounds);
                    self.round(first + self.rounds, version).await?;
                }
            }
            (None, None) => {
                let version = match first % 2 {
                    0 => Version::V6_0_27,
                    _ => Version::V6_0_5,
                };
                for (seed, version) in SHORT.into_iter().chain([(first, version)]) {
                    self.round(seed, version).await?;
                }
            }
        }
        self.sum_up();
        let well = self.failed.is_empty();
        Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn round(&mut self, seed: u64, version: Version) -> Result<()> {
        let plan = &plan(seed, version, &self.arguments.with);
        say(&format!("round {}: {plan}", self.rounds));
        self.rounds += 1;
        let keep = self.arguments.keep.clone().unwrap_or(Keep::ALL);
        let log = self
            .folder
            .join(format!("{}-{}.log", plan.seed, plan.version));
        let _ = std::fs::remove_file(&log);
        let servers = Servers::get(self.servers.take(), plan).await?;
        let outcome = round::run(plan, &keep, &servers, &log, oracle::PATIENCE).await;
        say(&format!(
            "  {:.1}s, {} events; {} collections with {} documents compared with the past{}; {}",
            outcome.took.as_secs_f64(),
            outcome.events,
            outcome.compared.0,
            outcome.compared.1,
            outcome
                .unclear
                .map(|why| format!(" (once not: {why})"))
                .unwrap_or_default(),
            outcome.tally,
        ));
        self.total.tally += &outcome.tally;
        self.total.events += outcome.events;
        self.total.compared.0 += outcome.compared.0;
        self.total.compared.1 += outcome.compared.1;
        match outcome.failure {
            None => {
                if outcome.took > SLOW {
                    say(&format!("  that was slow, see {}", log.display()));
                } else {
                    let _ = std::fs::remove_file(&log);
                }
                self.servers = Some(servers);
            }
            Some(failure) => self.failed(plan, keep, failure, servers, &log).await,
        }
        Ok(())
    }

    async fn failed(
        &mut self,
        plan: &Plan,
        keep: Keep,
        failure: Failure,
        servers: Servers,
        log: &std::path::Path,
    ) {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
        say(&format!(
            "  the end of the mirror's log, {}:\n{shown}",
            log.display()
        ));
        say(&format!("  FAILED, {}: {}", failure.sort, failure.what));
        say(&format!("  again: {}", command(plan, &keep)));
        let mut smallest = keep;
        // A short run is a test that shall end soon.
        if self.arguments.minutes.is_some() && !self.arguments.no_shrink {
            say("  looking for a smaller plan that fails");
            let (found, servers) = shrink::shrink(plan, &smallest, &failure, servers, log).await;
            self.servers = servers;
            match found {
                None => say("  it did not fail again"),
                Some(found) => {
                    smallest = found;
                    say(&format!("  smallest: {}", command(plan, &smallest)));
                }
            }
        }
        let what = failure.what.lines().next().unwrap_or_default();
        self.failed.push(format!(
            "{}: {what}\n    {}",
            failure.sort,
            command(plan, &smallest)
        ));
    }

    fn sum_up(&self) {
        let tally: &Tally = &self.total.tally;
        say(&format!(
            "{} rounds, {} failed, {} steps, {} events; {} collections with {} documents compared \
             with the past; {tally}",
            self.rounds,
            self.failed.len(),
            tally.total(),
            self.total.events,
            self.total.compared.0,
            self.total.compared.1,
        ));
        for failure in &self.failed {
            say(&format!("FAILED {failure}"));
        }
    }
}

/// What plays this plan again.
fn command(plan: &Plan, keep: &Keep) -> String {
    let mut command = format!(
        "cargo test --test fuzz -- --replay 5 --seed {} --version {}",
        plan.seed, plan.version
    );
    if !plan.switches.is_empty() {
        let names = plan.switches.iter().filter_map(Switch::to_possible_value);
        let names: Vec<String> = names.map(|name| name.get_name().to_owned()).collect();
        command.push_str(&format!(" --with {}", names.join(",")));
    }
    if *keep != Keep::ALL {
        let text = keep.to_string();
        debug_assert_eq!(
            text.parse().as_ref(),
            Ok(keep),
            "it must be read as written"
        );
        command.push_str(&format!(" --keep {text}"));
    }
    command
}
