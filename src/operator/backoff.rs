//! How long to wait before something is tried again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// For an API server that is away: what is true has to be told within seconds of its return.
const LONGEST_AWAY: Duration = Duration::from_secs(4);

/// Doubling waits with jitter: many mirrors that fail at once must not come back at once.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    longest: Duration,
}

/// For what has been refused.
impl Default for Backoff {
    fn default() -> Self {
        Self {
            failures: 0,
            longest: LONGEST,
        }
    }
}

impl Backoff {
    /// For an API server that does not answer.
    pub fn away() -> Self {
        Self {
            failures: 0,
            longest: LONGEST_AWAY,
        }
    }

    /// Notes a failure; returns how long to wait.
    pub fn failed(&mut self) -> Duration {
        let wait = FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(self.longest);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Notes a success.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// For watches, which are opened again.
impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.failed())
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.succeeded();
    }
}

/// Whether the API server answers. While it does not, one of all that wait for it tries at a time:
/// many mirrors are no heavier on it than one. Never held across an await.
#[derive(Debug, Default)]
pub struct Outage(Mutex<Option<Away>>);

#[derive(Debug)]
struct Away {
    backoff: Backoff,
    next_try: Instant,
}

impl Outage {
    /// When the API server may be asked: now if `None`, and then by nobody else for a while.
    pub fn not_before(&self, now: Instant) -> Option<Instant> {
        let mut away = self.lock();
        let away = away.as_mut()?;
        if now < away.next_try {
            return Some(away.next_try);
        }
        away.next_try = now + away.backoff.failed();
        None
    }

    /// It did not answer; returns when it may be asked again.
    pub fn failed(&self, now: Instant) -> Instant {
        let mut away = self.lock();
        let away = away.get_or_insert_with(|| {
            let mut backoff = Backoff::away();
            let next_try = now + backoff.failed();
            Away { backoff, next_try }
        });
        away.next_try
    }

    /// Whether it did not answer when it was last asked.
    pub fn is_on(&self) -> bool {
        self.lock().is_some()
    }

    /// It answered.
    pub fn answered(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Away>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..50).map(|_| backoff.failed()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits.iter().all(|wait| *wait <= LONGEST));
        assert!(waits[40] >= LONGEST / 2);
        backoff.succeeded();
        assert!(backoff.failed() <= FIRST);
    }

    #[test]
    fn of_many_one_at_a_time_tries_an_api_server_that_is_away() {
        let outage = Outage::default();
        let begun = Instant::now();
        assert_eq!(outage.not_before(begun), None);
        assert_eq!(outage.not_before(begun), None, "it answers");
        let mut tries = 0;
        let mut now = begun;
        let first = outage.failed(now);
        assert!(first > now && outage.failed(now) == first);
        while now < begun + Duration::from_secs(60) {
            for _mirror in 0..100 {
                if outage.not_before(now).is_none() {
                    tries += 1;
                    outage.failed(now);
                }
            }
            now += Duration::from_millis(10);
        }
        assert!((60 / 4..60 / 2 + 5).contains(&tries), "{tries}");
        assert!(
            outage
                .not_before(now)
                .is_some_and(|at| at <= now + LONGEST_AWAY)
        );
        outage.answered();
        assert_eq!(outage.not_before(now), None);
    }
}
