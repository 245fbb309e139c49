//! How fast the lanes of a mirror may copy, all together.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// What all lanes of a mirror share.
#[derive(Clone, Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// When the next bytes are due. Never held across an await.
    next: Arc<Mutex<Instant>>,
    writers: Arc<Semaphore>,
}

impl Pace {
    /// So many bytes of the source per second, if limited, and so many batches written at a time.
    pub fn new(bytes_per_second: Option<u64>, writers: usize) -> Self {
        Self {
            bytes_per_second,
            next: Arc::new(Mutex::new(Instant::now())),
            writers: Arc::new(Semaphore::new(writers.max(1))),
        }
    }

    /// Waits until so many more bytes may have been read.
    pub async fn keep(&self, bytes: u64) {
        if let Some(due) = self.due(bytes, Instant::now()) {
            tokio::time::sleep_until(due).await;
        }
    }

    /// When that is: what was not used before is lost, or a pause would be followed by a rush.
    fn due(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let each = self.bytes_per_second?.max(1);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = bytes as f64 / each as f64;
        *next = (*next).max(now) + Duration::from_secs_f64(seconds);
        Some(*next)
    }

    /// Waits until another batch may be written. The permit is given back behind it.
    pub async fn write(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.writers.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_what_may_be_read_and_save_nothing_up() {
        let pace = Pace::new(Some(1000), 1);
        let begun = Instant::now() + Duration::from_secs(5);
        let due = |bytes, now| pace.clone().due(bytes, now).unwrap() - begun;
        assert_eq!(due(500, begun), Duration::from_millis(500));
        assert_eq!(due(1000, begun), Duration::from_millis(1500));
        let later = begun + Duration::from_secs(60);
        assert_eq!(due(1000, later), Duration::from_secs(61));
        assert!(Pace::new(None, 1).due(u64::MAX, begun).is_none());
    }
}
