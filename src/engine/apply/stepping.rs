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

    /// So many of what was sent are there, and nothing stands against the others any more.
    pub fn taken_some(&mut self, some: usize) {
        self.from = (self.from + some).min(self.until);
        self.until = self.all;
    }

    /// All that was sent is there; twice as much comes next.
    pub fn taken(&mut self) {
        let sent = self.until - self.from;
        self.from = self.until;
        self.until = (self.from + 2 * sent).min(self.all);
    }

    /// Of what was sent, so many are certain to be taken, and this one was refused; or, if that is
    /// not told, one of those behind, of which none was carried out. Returns the one that is
    /// stepped over; none where that is still to be found.
    pub fn refused(&mut self, certain: usize, one: Option<usize>) -> Option<usize> {
        let sent = self.from;
        self.from = (self.from + certain).min(self.until);
        let left = self.until - self.from;
        match one {
            None if left > 1 => {
                self.until = self.from + left / 2;
                None
            }
            None => {
                // There may be more of them nearby: it goes on with little, and then with more.
                let one = self.from.min(self.all.saturating_sub(1));
                self.from = one + 1;
                self.until = (self.from + 1).min(self.all);
                Some(one)
            }
            Some(one) => {
                let one = (sent + one).min(self.until.saturating_sub(1));
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

    /// A server that refuses these, and tells which only where `tells`. It is sent commands of so
    /// many statements.
    fn run(all: usize, bad: &[usize], tells: bool, cut: usize) -> (Vec<usize>, Vec<usize>) {
        let mut steps = Steps::new(all);
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        while let Some(sent) = steps.next() {
            match sent.clone().find(|one| bad.contains(one)) {
                None => {
                    taken.extend(sent);
                    steps.taken();
                }
                Some(one) => {
                    let certain = (one - sent.start) / cut * cut;
                    let told = tells.then_some(one - sent.start);
                    let reached = told.unwrap_or(certain);
                    taken.extend(sent.start..sent.start + reached);
                    refused.extend(steps.refused(certain, told));
                }
            }
        }
        (taken, refused)
    }

    #[test]
    fn all_others_are_taken_once_and_in_order() {
        for bad in [&[][..], &[0], &[6], &[2, 3], &[0, 1, 2, 3, 4, 5, 6]] {
            let others: Vec<usize> = (0..7).filter(|one| !bad.contains(one)).collect();
            for (tells, cut) in [(true, 9), (false, 9), (true, 2), (false, 2), (false, 1)] {
                assert_eq!(
                    run(7, bad, tells, cut),
                    (others.clone(), bad.to_vec()),
                    "{tells} {cut}"
                );
            }
        }
        assert_eq!(run(0, &[], true, 9), (Vec::new(), Vec::new()));
    }
}
