//! What processes have used, as Linux tells in `/proc`.

#![allow(dead_code, reason = "every bench uses its own part")]

use std::time::Duration;

use crate::Result;

/// Linux counts CPU time for `/proc` in hundredths of a second, whatever its own clock.
pub const TICK: Duration = Duration::from_millis(10);

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time, in user and kernel mode.
    pub cpu: Duration,
    /// Memory that is resident now, in bytes.
    pub resident: u64,
    /// Most of it at any time.
    pub peak: u64,
}

impl Usage {
    /// Of the process with this id.
    pub fn of(id: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        Self::parse(&stat, &status).ok_or_else(|| "/proc does not tell what a process uses".into())
    }

    /// Out of `stat` and `status`.
    fn parse(stat: &str, status: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let size = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes: u64 = size.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kibibytes << 10)
        };
        Some(Self {
            cpu: Process::parse(stat)?.cpu,
            resident: bytes("VmRSS:")?,
            peak: bytes("VmHWM:")?,
        })
    }
}

/// What `/proc/ID/stat` tells of a process.
pub struct Process {
    /// The id of its parent.
    pub parent: u32,
    /// CPU time so far.
    pub cpu: Duration,
}

impl Process {
    /// The fields are counted behind the program's name, which is in parentheses and may hold
    /// blanks.
    pub fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |place: usize| fields.get(place)?.parse::<u32>().ok();
        Some(Self {
            parent: number(1)?,
            cpu: TICK * (number(11)? + number(12)?),
        })
    }
}
