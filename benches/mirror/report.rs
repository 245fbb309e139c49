//! The figures: as a table for the screen, as JSON for a file.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Scale;
use crate::copy::Copied;
use crate::latency::{Latencies, Latency};
use crate::tail::{Kind, Tailed};
use crate::usage::Usage;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// It only informs.
    None,
    /// The mirror's figure, divided by the bare one.
    RatioAtLeast(f64),
    /// The mirror's figure itself.
    AtMost(f64),
}

/// One line of the table.
struct Figure {
    name: String,
    unit: &'static str,
    /// Round by round.
    mirror: Vec<f64>,
    /// Round by round; empty where there is nothing to compare with.
    bare: Vec<f64>,
    goal: Goal,
}

/// All figures of one run.
pub struct Report {
    figures: Vec<Figure>,
    peak: u64,
    others: Vec<f64>,
    version: String,
    scale: Scale,
    quick: bool,
}

impl Figure {
    fn mirrored(&self) -> f64 {
        median(&self.mirror)
    }

    fn ratio(&self) -> Option<f64> {
        let bare = median(&self.bare);
        (bare > 0.0).then(|| self.mirrored() / bare)
    }

    fn is_reached(&self) -> Option<bool> {
        match self.goal {
            Goal::None => None,
            Goal::RatioAtLeast(least) => Some(self.ratio()? >= least),
            Goal::AtMost(most) => Some(self.mirrored() <= most),
        }
    }

    fn goal(&self) -> String {
        match self.goal {
            Goal::None => String::new(),
            Goal::RatioAtLeast(least) => format!("ratio ≥ {least}"),
            Goal::AtMost(most) => format!("≤ {most} {}", self.unit),
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "mirror": self.mirrored(),
            "mirrorRounds": self.mirror,
            "bare": (!self.bare.is_empty()).then(|| median(&self.bare)),
            "bareRounds": self.bare,
            "ratio": self.ratio(),
            "goal": self.goal(),
            "reached": self.is_reached(),
        })
    }
}

impl Report {
    /// Nothing yet.
    pub fn new(version: &str, scale: Scale, quick: bool) -> Self {
        Self {
            figures: Vec::new(),
            peak: 0,
            others: Vec::new(),
            version: version.to_owned(),
            scale,
            quick,
        }
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        (mirror, bare): (Vec<f64>, Vec<f64>),
        goal: Goal,
    ) {
        self.figures.push(Figure {
            name: name.into(),
            unit,
            mirror,
            bare,
            goal,
        });
    }

    /// Takes memory into account.
    pub fn note_peak(&mut self, usage: &[Usage]) {
        let most = usage.iter().map(|usage| usage.peak).max();
        self.peak = self.peak.max(most.unwrap_or(0));
    }

    /// The initial copy.
    pub fn copy(&mut self, copied: &Copied) {
        let orders = copied.orders;
        let documents = f64::from(orders.documents);
        let bytes = orders.bytes as f64 / 1e6;
        let mut rate = |name, unit, amount, goal| {
            let both = (
                per_second(amount, &copied.mirror),
                per_second(amount, &copied.bare),
            );
            self.add(name, unit, both, goal);
        };
        rate("copy", "documents/s", documents, Goal::RatioAtLeast(0.8));
        rate("copy", "MB/s", bytes, Goal::None);
        let planned = copied.planned.iter().map(Duration::as_secs_f64).collect();
        self.add(
            "copy: until it is planned",
            "s",
            (planned, Vec::new()),
            Goal::None,
        );
        let both = (
            cpu(documents, &copied.usage),
            cpu(documents, &copied.bare_usage),
        );
        self.add("copy: CPU of a document", "µs", both, Goal::AtMost(5.0));
        self.others.extend(&copied.others);
    }

    /// A backlog.
    pub fn tail(&mut self, kind: Kind, tailed: &Tailed) {
        let updates = f64::from(tailed.updates);
        let kind_name = kind.name();
        let both = (
            per_second(updates, &tailed.mirror),
            per_second(updates, &tailed.bare),
        );
        let least = match kind {
            Kind::Spread => 0.7,
            Kind::Hot => 1.5,
        };
        self.add(
            format!("{kind_name} tail"),
            "updates/s",
            both,
            Goal::RatioAtLeast(least),
        );
        let both = (
            cpu(updates, &tailed.usage),
            cpu(updates, &tailed.bare_usage),
        );
        self.add(
            format!("{kind_name} tail: CPU of an event"),
            "µs",
            both,
            Goal::AtMost(5.0),
        );
        let written = |counts: &[u64]| counts.iter().map(|count| *count as f64).collect();
        let operations = (written(&tailed.operations), Vec::new());
        self.add(
            format!("{kind_name} tail: operations written"),
            "",
            operations,
            Goal::None,
        );
        let batches = (written(&tailed.batches), Vec::new());
        self.add(
            format!("{kind_name} tail: transactions"),
            "",
            batches,
            Goal::None,
        );
        self.note_peak(&tailed.usage);
        self.others.extend(&tailed.others);
    }

    /// Single writes.
    pub fn latency(&mut self, latencies: &Latencies) {
        for (name, latency) in [
            ("idle", &latencies.idle),
            ("loaded", &latencies.loaded),
            ("verified", &latencies.verified),
        ] {
            self.single_writes(name, latency);
        }
        // What the source's clients feel, beside the same without a mirror.
        for (name, latency) in [
            ("loaded", &latencies.loaded),
            ("verified", &latencies.verified),
        ] {
            for percent in [50, 99] {
                let both = (
                    vec![percentile(&latency.at_source, percent)],
                    vec![percentile(&latencies.alone, percent)],
                );
                let name = format!("{name}: acknowledged by the source p{percent}");
                self.add(name, "ms", both, Goal::None);
            }
        }
        let verifications = (vec![latencies.verifications as f64], Vec::new());
        self.add("verified: verifications", "", verifications, Goal::None);
        let writes = (vec![latencies.writes], Vec::new());
        self.add("loaded: writes beside", "writes/s", writes, Goal::None);
        let transactions = (vec![latencies.transactions], Vec::new());
        self.add(
            "loaded: transactions of the mirror",
            "1/s",
            transactions,
            Goal::None,
        );
        let cpu = (vec![microseconds(latencies.cpu)], Vec::new());
        self.add("loaded: CPU of an event", "µs", cpu, Goal::None);
        self.note_peak(&[latencies.usage]);
    }

    fn single_writes(&mut self, name: &str, latency: &Latency) {
        let mut add = |what: &str, samples: &[Duration], percent, goal| {
            let value = (vec![percentile(samples, percent)], Vec::new());
            self.add(format!("{name}: {what} p{percent}"), "ms", value, goal);
        };
        add(
            "visible after sending",
            &latency.sent,
            50,
            Goal::AtMost(10.0),
        );
        add("visible after sending", &latency.sent, 99, Goal::None);
        add(
            "visible after acknowledgement",
            &latency.acknowledged,
            50,
            Goal::None,
        );
    }

    /// Adds what is only known in the end.
    pub fn finish(&mut self) {
        let peak = self.peak as f64 / f64::from(1 << 20);
        let most = self.others.iter().copied().reduce(f64::max);
        if let Some(most) = most {
            self.add(
                "used by others, at most",
                "cores",
                (vec![most], Vec::new()),
                Goal::None,
            );
        }
        self.add(
            "peak memory",
            "MiB",
            (vec![peak], Vec::new()),
            Goal::AtMost(160.0),
        );
    }

    /// Everything, with the machine it was measured on.
    pub fn json(&self) -> Value {
        let Scale {
            documents,
            updates,
            spread,
            hot,
            rounds,
            lanes,
            parallel,
            samples,
        } = self.scale;
        json!({
            "commandLine": std::env::args().collect::<Vec<_>>(),
            "machine": {
                "cores": cores(),
                "processor": processor(),
                "memoryMiB": memory(),
                "mongod": self.version,
                "servers": "source and targets: replica sets of one member each, all on this machine",
                "writeConcern": "majority, on both sides",
            },
            "scale": {
                "quick": self.quick,
                "documents": documents,
                "updates": updates,
                "spreadDocuments": spread,
                "hotDocuments": hot,
                "rounds": rounds,
                "lanes": lanes,
                "parallel": parallel,
                "latencySamples": samples,
            },
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nmongod {}, {} cores ({}), everything on this machine; {} orders, {} updates, \
             {} lanes{}; median of {} rounds; write concern majority on both sides{}\n",
            self.version,
            cores(),
            processor(),
            self.scale.documents,
            self.scale.updates,
            self.scale.lanes,
            if self.scale.parallel {
                ", applied in parallel"
            } else {
                ""
            },
            self.scale.rounds,
            if self.quick {
                "; a smoke run, its figures mean nothing"
            } else {
                ""
            },
        )?;
        let (figure, to_reach) = ("figure", "to reach");
        writeln!(
            f,
            "{figure:<40} {:>10} {:>10} {:>6}  {:<12} {to_reach}",
            "mirror", "bare", "ratio", ""
        )?;
        for figure in &self.figures {
            let bare = if figure.bare.is_empty() {
                String::new()
            } else {
                short(median(&figure.bare))
            };
            let ratio = figure
                .ratio()
                .map(|ratio| format!("{ratio:.2}"))
                .unwrap_or_default();
            let mark = match figure.is_reached() {
                None => "",
                Some(true) => "✓ ",
                Some(false) => "✗ ",
            };
            writeln!(
                f,
                "{:<40} {:>10} {bare:>10} {ratio:>6}  {:<12} {mark}{}",
                figure.name,
                short(figure.mirrored()),
                figure.unit,
                figure.goal(),
            )?;
        }
        Ok(())
    }
}

/// Three or more digits that count.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn per_second(amount: f64, times: &[Duration]) -> Vec<f64> {
    times
        .iter()
        .map(|time| amount / time.as_secs_f64())
        .collect()
}

fn cpu(amount: f64, usage: &[Usage]) -> Vec<f64> {
    usage
        .iter()
        .map(|usage| microseconds(usage.cpu) / amount)
        .collect()
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// In milliseconds.
fn percentile(samples: &[Duration], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted
        .get(at)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

fn processor() -> String {
    fact("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into())
}

fn memory() -> Option<u64> {
    let kibibytes: u64 = fact("/proc/meminfo", "MemTotal")?
        .strip_suffix(" kB")?
        .parse()
        .ok()?;
    Some(kibibytes >> 10)
}

/// The value behind `name:` in a file of `/proc`.
fn fact(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
