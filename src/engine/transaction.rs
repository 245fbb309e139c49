//! Transactions on the target, begun and given up in one way by all who write.

use mongodb::ClientSession;
use mongodb::options::{TransactionOptions, WriteConcern};

use super::command::{COMMAND_LIMIT, within};
use super::error::{Error, Result, Side};

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

/// Gives a transaction up. Best effort: a server that no longer answers does so by itself after a
/// minute.
pub async fn abort(session: &mut ClientSession) {
    let abort = session.abort_transaction();
    let _ = within(Side::Target, "abort a transaction", COMMAND_LIMIT, abort).await;
}
