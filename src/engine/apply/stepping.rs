//! Statements in order, of which the server refuses some: stepped over one by one, without sending
//! anything twice.
//!
//! Outside of transactions a refusal takes nothing back: of a command in order, what stood before
//! the refused statement is there. To send that again would give it another place in a capped
//! collection that has dropped it meanwhile.

use std::ops::Range;

/// How far it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steps {
    /// All before are taken or refused.
    from: usize,
    /// As many are sent next.
    until: usize,
    all: usize,
}

impl Steps {
    /// So many statements, of which none was sent.
    pub fn new(all: usize) -> Self {
        Self {
            from: 0,
            until: all,
            all,
        }
    }

    /// What is to be sent next, as one command in order.
    pub fn next(&self) -> Option<Range<usize>> {
        (self.from < self.all).then_some(self.from..self.until)
    }

    /// All that was sent is there.
    pub fn taken(&mut self) {
        self.from = self.until;
        self.until = self.all;
    }

    /// This statement of what was sent was refused, or the command as such, with nothing carried
    /// out. Returns the one that is stepped over; none where that is still to be found.
    pub fn refused(&mut self, statement: Option<usize>) -> Option<usize> {
        let sent = self.until - self.from;
        match statement {
            None if sent > 1 => {
                self.until = self.from + sent / 2;
                None
            }
            statement => {
                let one = self.from + statement.unwrap_or(0).min(sent.saturating_sub(1));
                self.from = one + 1;
                self.until = self.all;
                Some(one)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that refuses these, and tells which only where `tells`.
    fn run(all: usize, bad: &[usize], tells: bool) -> (Vec<usize>, Vec<usize>) {
        let mut steps = Steps::new(all);
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        while let Some(sent) = steps.next() {
            match sent.clone().find(|one| bad.contains(one)) {
                None => {
                    taken.extend(sent);
                    steps.taken();
                }
                Some(one) if tells => {
                    taken.extend(sent.start..one);
                    refused.extend(steps.refused(Some(one - sent.start)));
                }
                Some(_) => refused.extend(steps.refused(None)),
            }
        }
        (taken, refused)
    }

    #[test]
    fn all_others_are_taken_once_and_in_order() {
        for bad in [&[][..], &[0], &[6], &[2, 3], &[0, 1, 2, 3, 4, 5, 6]] {
            let others: Vec<usize> = (0..7).filter(|one| !bad.contains(one)).collect();
            for tells in [true, false] {
                assert_eq!(
                    run(7, bad, tells),
                    (others.clone(), bad.to_vec()),
                    "{tells}"
                );
            }
        }
        assert_eq!(run(0, &[], true), (Vec::new(), Vec::new()));
    }
}
