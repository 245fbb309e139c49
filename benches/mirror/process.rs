//! Starts a worker, listens to it, reads what it has used.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::usage::{Process, TICK, Usage};
use crate::worker::{Seen, Work};
use crate::{Result, say};

/// A worker that says nothing new for so long stands still.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often people are told how far it is.
const TELL: Duration = Duration::from_secs(5);

/// What others may use of a core without being worth a word.
const QUIET: f64 = 0.1;

/// CPU time of this machine that went neither to this process nor to its descendants, which all
/// servers and workers are: on a machine with other work, figures of a disturbed round mean little.
#[derive(Clone, Copy, Debug)]
struct Others(Duration);

/// A running worker. It is killed when dropped.
pub struct Worker {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    begun: Instant,
    others: Others,
    last: Seen,
}

/// The first time a worker said what was waited for.
#[derive(Clone, Debug)]
pub struct Reached {
    /// After its start.
    pub after: Duration,
    /// What it said.
    pub seen: Seen,
    /// What it had used.
    pub usage: Usage,
    /// Cores of this machine that were busy with something that is not the bench's, on average.
    pub others: f64,
}

impl Reached {
    /// What people must know of a disturbed measurement; empty if it was not.
    pub fn disturbance(&self) -> String {
        if self.others < QUIET {
            String::new()
        } else {
            format!(
                " while others used {:.1} cores of this machine",
                self.others
            )
        }
    }
}

impl Worker {
    /// Starts this very program again.
    pub fn start(work: &Work) -> Result<Self> {
        let begun = Instant::now();
        let others = Others::so_far()?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(work.arguments()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("a worker without input")?;
        let output = child.stdout.take().ok_or("a worker without output")?;
        Ok(Self {
            child,
            input,
            lines: BufReader::new(output).lines(),
            begun,
            others,
            last: Seen::default(),
        })
    }

    /// Waits until the worker says so.
    pub async fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&Seen) -> bool,
    ) -> Result<Reached> {
        let mut told = Instant::now();
        while !wanted(&self.last) {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line())
                .await
                .map_err(|_| format!("waiting for: {what}; nothing new since {:?}", self.last))??
                .ok_or_else(|| format!("the worker ended; waited for: {what}"))?;
            self.last = serde_json::from_str(&line)?;
            if let Some(problem) = &self.last.problem {
                say(&format!("the mirror has a problem: {problem}"));
            }
            if told.elapsed() > TELL {
                told = Instant::now();
                let Seen { count, events, .. } = self.last;
                say(&format!(
                    "  {what}: {count} documents, {events} events so far"
                ));
            }
        }
        let after = self.begun.elapsed();
        Ok(Reached {
            after,
            seen: self.last.clone(),
            usage: self.usage()?,
            others: self.others.since()?.as_secs_f64() / after.as_secs_f64(),
        })
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        let id = self.child.id().ok_or("the worker has ended")?;
        Usage::of(id)
    }

    /// Asks it to end, and waits.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.input);
        let drain = async { while let Ok(Some(_)) = self.lines.next_line().await {} };
        let ended = async { tokio::join!(self.child.wait(), drain).0 };
        let status = tokio::time::timeout(PATIENCE, ended)
            .await
            .map_err(|_| "the worker does not end")??;
        if status.success() {
            Ok(())
        } else {
            Err(format!("a worker failed: {status}").into())
        }
    }
}

impl Others {
    fn so_far() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let all = busy(&stat).ok_or("/proc/stat does not tell how busy the machine is")?;
        let mut processes = HashMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok());
            // A process may end while its entry is read.
            if let Some(id) = id
                && let Ok(stat) = std::fs::read_to_string(entry.path().join("stat"))
                && let Some(process) = Process::parse(&stat)
            {
                processes.insert(id, process);
            }
        }
        let is_ours = |mut id: u32| loop {
            if id == std::process::id() {
                return true;
            }
            match processes.get(&id) {
                Some(process) => id = process.parent,
                None => return false,
            }
        };
        let ours = processes.iter().filter(|(id, _)| is_ours(**id));
        let ours: Duration = ours.map(|(_, process)| process.cpu).sum();
        Ok(Self(all.saturating_sub(ours)))
    }

    fn since(self) -> Result<Duration> {
        // What ended in between was counted before, but is not now.
        Ok(Self::so_far()?.0.saturating_sub(self.0))
    }
}

/// All time but idle and waiting, out of `/proc/stat`.
fn busy(stat: &str) -> Option<Duration> {
    let cpu = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u32> = cpu
        .split_whitespace()
        .map_while(|time| time.parse().ok())
        .collect();
    // User, nice, system, idle, iowait, irq, softirq; steal is another machine's.
    let busy = [0, 1, 2, 5, 6].iter().map(|place| times.get(*place));
    Some(TICK * busy.sum::<Option<u32>>()?)
}
