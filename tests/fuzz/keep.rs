//! Which steps of a plan are done: all, or those that shrinking has left.

use std::fmt;
use std::str::FromStr;

/// Numbers of steps; `0-17,23`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keep(Option<Vec<usize>>);

impl Keep {
    /// All steps.
    pub const ALL: Self = Self(None);

    /// These steps, ascending.
    pub fn only(numbers: Vec<usize>) -> Self {
        Self(Some(numbers))
    }

    /// Whether this step is done.
    pub fn has(&self, number: usize) -> bool {
        let Some(kept) = &self.0 else {
            return true;
        };
        kept.binary_search(&number).is_ok()
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_deref().unwrap_or_default();
        let mut comma = "";
        while let Some(first) = rest.first() {
            let run = (0..rest.len())
                .take_while(|n| rest[*n] == first + n)
                .count();
            match run {
                1 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{}", first + run - 1)?,
            }
            rest = &rest[run..];
            comma = ",";
        }
        Ok(())
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().map_err(|error| error.to_string());
        let mut kept = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                Some((from, to)) => kept.extend(number(from)?..=number(to)?),
                None => kept.push(number(part)?),
            }
        }
        kept.sort_unstable();
        Ok(Self::only(kept))
    }
}
