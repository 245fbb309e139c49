//! Raw commands out, replies in: time limits and write errors in one place.
//!
//! The driver has no socket timeout (`facts` rust B2), so every exchange is limited here.

use std::time::Duration;

use bson::{Document, RawDocumentBuf};
use mongodb::error::Error as DriverError;
use mongodb::{ClientSession, Database};

use super::error::{Error, Result, Side};

/// Longest wait for an ordinary command. A server under full load answers within seconds; a
/// minute without a word means the connection is dead although TCP has not noticed.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Longest wait for a command that may have to work through a whole collection (index builds,
/// clearing a range).
pub const LONG_COMMAND_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Waits for an exchange with a server, but not for ever.
///
/// # Errors
/// The driver's error, or [`Error::Timeout`].
pub async fn within<T, F>(
    side: Side,
    doing: &'static str,
    limit: Duration,
    exchange: F,
) -> Result<T>
where
    F: IntoFuture<Output = Result<T, DriverError>>,
{
    match tokio::time::timeout(limit, exchange.into_future()).await {
        Ok(outcome) => outcome.map_err(Error::driver(side, doing)),
        Err(_) => Err(Error::Timeout {
            side,
            doing,
            after: limit,
        }),
    }
}

/// One deployment's database, for commands.
#[derive(Clone, Debug)]
pub struct Commands {
    /// Which side the database is on.
    pub side: Side,
    /// The database.
    pub db: Database,
}

impl Commands {
    /// Runs a command on the primary.
    ///
    /// # Errors
    /// As [`within`], and [`Error::Write`] for the first write error or write concern error.
    pub async fn run(&self, doing: &'static str, command: Document) -> Result<Document> {
        let reply = within(
            self.side,
            doing,
            COMMAND_LIMIT,
            self.db.run_command(command),
        )
        .await?;
        self.check(doing, reply)
    }

    /// As [`Self::run`], for commands that may take hours.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_long(&self, doing: &'static str, command: Document) -> Result<Document> {
        let exchange = self.db.run_command(command);
        let reply = within(self.side, doing, LONG_COMMAND_LIMIT, exchange).await?;
        self.check(doing, reply)
    }

    /// As [`Self::run`], inside a session's transaction.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_in(
        &self,
        doing: &'static str,
        command: RawDocumentBuf,
        session: &mut ClientSession,
    ) -> Result<Document> {
        let exchange = self.db.run_raw_command(command).session(session);
        let reply = within(self.side, doing, COMMAND_LIMIT, exchange).await?;
        self.check(doing, reply)
    }

    /// The driver passes a reply with `writeErrors` or `writeConcernError` as a success.
    fn check(&self, doing: &'static str, reply: Document) -> Result<Document> {
        let first = reply
            .get_array("writeErrors")
            .ok()
            .and_then(|errors| errors.first())
            .and_then(|error| error.as_document())
            .or_else(|| reply.get_document("writeConcernError").ok());
        let Some(error) = first else {
            return Ok(reply);
        };
        let code = error.get_i32("code").unwrap_or(0);
        Err(Error::Write {
            side: self.side,
            doing,
            code,
            name: error
                .get_str("codeName")
                .or_else(|_| {
                    // A duplicate key's message repeats the document's values.
                    if code == super::error::code::DUPLICATE_KEY {
                        Ok("duplicate key")
                    } else {
                        error.get_str("errmsg")
                    }
                })
                .map_or_else(
                    |_| "write error".to_owned(),
                    super::error::without_documents,
                ),
        })
    }
}

/// The integer in a reply, whichever numeric type the server chose.
pub fn number(reply: &Document, name: &str) -> i64 {
    match reply.get(name) {
        Some(bson::Bson::Int32(n)) => i64::from(*n),
        Some(bson::Bson::Int64(n)) => *n,
        #[allow(clippy::cast_possible_truncation)]
        Some(bson::Bson::Double(n)) => *n as i64,
        _ => 0,
    }
}
