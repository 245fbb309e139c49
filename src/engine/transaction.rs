//! Transactions on the target: begun, committed, given up and tried again in one way by all who
//! write.

use std::time::Duration;

use mongodb::ClientSession;
use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::options::{TransactionOptions, WriteConcern};
use tokio::time::{Instant, sleep};

use super::command::{COMMAND_LIMIT, within};
use super::error::{Error, Result, Side};
use super::writes::{self, Write};

/// How long an unknown commit is asked about before the mirror starts over. The checkpoint
/// settles it then: taking the mirror over waits for whatever still holds that document.
const COMMIT_LIMIT: Duration = Duration::from_secs(30);

/// Pause before an unknown commit is asked about again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Tries of one transaction before whoever wrote it starts over: some six seconds in all, in
/// which most elections are over.
const TRIES: u32 = 10;

/// First and longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// Begins a transaction that is committed by a majority.
///
/// # Errors
/// What the driver says; nothing is sent yet.
pub async fn begin(session: &mut ClientSession) -> Result<()> {
    let options = TransactionOptions::builder()
        .write_concern(WriteConcern::majority())
        .build();
    session
        .start_transaction()
        .with_options(options)
        .await
        .map_err(Error::driver(Side::Target, "start a transaction"))
}

/// Commits, and asks again as long as the outcome is unknown.
///
/// # Errors
/// What the exchange met; unless the error [is transient](Tries::again), the transaction may be
/// there or not.
#[expect(clippy::disallowed_methods, reason = "the one place that commits")]
pub async fn commit(write: Write, session: &mut ClientSession) -> Result<()> {
    let since = Instant::now();
    writes::before(write);
    loop {
        let commit = session.commit_transaction();
        let outcome = within(Side::Target, write.doing(), COMMAND_LIMIT, commit).await;
        writes::after(write);
        match outcome {
            Err(error)
                if error.has_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
                    && since.elapsed() < COMMIT_LIMIT =>
            {
                sleep(ASK_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// Gives a transaction up. Best effort: a server that no longer answers does so by itself after a
/// minute.
#[expect(clippy::disallowed_methods, reason = "the one place that aborts")]
pub async fn abort(session: &mut ClientSession) {
    writes::before(Write::Abort);
    let abort = session.abort_transaction();
    let _ = within(Side::Target, Write::Abort.doing(), COMMAND_LIMIT, abort).await;
    writes::after(Write::Abort);
}

/// Counts the tries of one transaction.
#[derive(Debug)]
pub struct Tries {
    left: u32,
    pause: Duration,
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            left: TRIES,
            pause: PAUSE.0,
        }
    }
}

impl Tries {
    /// Waits before another try. `false` if none makes sense: the server does not promise that
    /// nothing was written, or there were enough.
    pub async fn again(&mut self, error: &Error) -> bool {
        if self.left == 0 || !error.has_label(TRANSIENT_TRANSACTION_ERROR) {
            return false;
        }
        self.left -= 1;
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
        true
    }
}
