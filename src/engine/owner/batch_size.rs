//! How many documents a batch may have.
//!
//! How much of a batch has to be read again, and so is written, shows only when it is written, and
//! may be more than the target's cache holds of one transaction.

use super::BATCH_DOCUMENTS;

/// Halvings after a batch that the target did not manage, and most of them.
const HALVINGS: (u32, u32) = (4, 12);

/// Batches that it has to manage before they become twice as large; twice as many after each
/// failure, because each larger one that fails costs a new run.
const MANAGED: (u32, u32) = (16, 4096);

/// Shrinks with each failure, and grows again with successes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct BatchSize {
    halvings: u32,
    managed: u32,
    needed: u32,
}

impl BatchSize {
    /// Documents at which a batch is closed; at least one.
    pub fn documents(&self) -> usize {
        (BATCH_DOCUMENTS >> self.halvings).max(1)
    }

    /// The target did not manage a batch.
    pub fn failed(&mut self) {
        self.halvings = (self.halvings + HALVINGS.0).min(HALVINGS.1);
        self.needed = (self.needed * 2).clamp(MANAGED.0, MANAGED.1);
        self.managed = 0;
    }

    /// It managed one.
    pub fn managed(&mut self) {
        if self.halvings == 0 {
            return;
        }
        self.managed += 1;
        if self.managed >= self.needed {
            self.managed = 0;
            self.halvings -= 1;
        }
        if self.halvings == 0 {
            self.needed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_is_never_managed_becomes_one_document() {
        let mut size = BatchSize::default();
        assert_eq!(size.documents(), BATCH_DOCUMENTS);
        size.failed();
        assert_eq!(size.documents(), BATCH_DOCUMENTS / 16);
        for _ in 0..100 {
            size.failed();
        }
        assert_eq!(size.documents(), 1);
    }

    #[test]
    fn larger_batches_are_tried_ever_more_rarely() {
        let mut size = BatchSize::default();
        let mut managed = [0, 0, 0];
        for managed in &mut managed {
            while size.documents() <= 100 {
                size.managed();
                *managed += size.documents();
            }
            // The target manages a hundred.
            while size.documents() > 100 {
                size.failed();
            }
        }
        assert!(managed[2] > 3 * managed[1] / 2, "{managed:?}");
    }

    #[test]
    fn what_is_managed_becomes_as_large_as_ever() {
        let mut size = BatchSize::default();
        size.failed();
        for _ in 0..MANAGED.0 * HALVINGS.0 {
            size.managed();
        }
        assert_eq!(size, BatchSize::default());
    }
}
