//! What was done, by kind.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

/// How often something was done, and how often it went well.
#[derive(Clone, Copy, Default, Debug)]
struct Count {
    done: u64,
    well: u64,
}

/// Counts by kind. What the source refuses is part of life; a kind that it always refuses tests
/// nothing, and shows here.
#[derive(Clone, Default, Debug)]
pub struct Tally(BTreeMap<&'static str, Count>);

impl Tally {
    /// Notes one.
    pub fn note(&mut self, kind: &'static str, well: bool) {
        let count = self.0.entry(kind).or_default();
        count.done += 1;
        count.well += u64::from(well);
    }

    /// Notes so many that went well.
    pub fn add(&mut self, kind: &'static str, times: u64) {
        if times > 0 {
            let count = self.0.entry(kind).or_default();
            count.done += times;
            count.well += times;
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.values().map(|count| count.done).sum()
    }
}

impl AddAssign<&Self> for Tally {
    fn add_assign(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            let sum = self.0.entry(kind).or_default();
            sum.done += count.done;
            sum.well += count.well;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, count)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            if count.well == count.done {
                write!(f, "{kind} {}", count.done)?;
            } else {
                write!(f, "{kind} {} of {}", count.well, count.done)?;
            }
        }
        Ok(())
    }
}
