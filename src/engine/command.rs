//! Raw commands out, replies in: time limits and write errors in one place.
//!
//! The driver has no socket timeout (`facts` rust B2), so every exchange is limited here.

use std::time::Duration;

use bson::{Document, RawDocumentBuf};
use mongodb::error::Error as DriverError;
use mongodb::{ClientSession, Database};

use super::error::{Error, Result, Side};
use super::writes::{self, Write};

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

/// The commands that [`Commands::read`] sends.
const READS: [&str; 9] = [
    "buildInfo",
    "collStats",
    "connectionStatus",
    "find",
    "hello",
    "listCollections",
    "ping",
    "replSetGetConfig",
    "serverStatus",
];

// The one place that sends commands.
#[expect(clippy::disallowed_methods)]
impl Commands {
    /// Runs a command that changes nothing, on the primary.
    ///
    /// # Errors
    /// As [`within`], and [`Error::Write`] for the first write error or write concern error.
    pub async fn read(&self, doing: &'static str, command: Document) -> Result<Document> {
        debug_assert!(
            command
                .keys()
                .next()
                .is_some_and(|name| READS.contains(&name.as_str())),
            "a command that may write must be named"
        );
        let exchange = self.db.run_command(command);
        let reply = within(self.side, doing, COMMAND_LIMIT, exchange).await?;
        self.check(doing, reply)
    }

    /// Runs a command that may change something, on the primary.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn write(&self, write: Write, command: Document) -> Result<Document> {
        let exchange = self.db.run_command(command);
        self.carry_out(write, COMMAND_LIMIT, exchange).await
    }

    /// As [`Self::write`], for commands that may take hours.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn write_long(&self, write: Write, command: Document) -> Result<Document> {
        let exchange = self.db.run_command(command);
        self.carry_out(write, LONG_COMMAND_LIMIT, exchange).await
    }

    /// As [`Self::write`], with a command that is already encoded.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn write_raw(&self, write: Write, command: RawDocumentBuf) -> Result<Document> {
        let exchange = self.db.run_raw_command(command);
        self.carry_out(write, COMMAND_LIMIT, exchange).await
    }

    /// As [`Self::write`], inside a session's transaction.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn write_in(
        &self,
        write: Write,
        command: RawDocumentBuf,
        session: &mut ClientSession,
    ) -> Result<Document> {
        let exchange = self.db.run_raw_command(command).session(session);
        self.carry_out(write, COMMAND_LIMIT, exchange).await
    }

    async fn carry_out(
        &self,
        write: Write,
        limit: Duration,
        exchange: impl IntoFuture<Output = Result<Document, DriverError>>,
    ) -> Result<Document> {
        writes::before(write);
        let reply = within(self.side, write.doing(), limit, exchange).await;
        writes::after(write);
        self.check(write.doing(), reply?)
    }

    /// The driver passes a reply with `writeErrors` or `writeConcernError` as a success.
    fn check(&self, doing: &'static str, reply: Document) -> Result<Document> {
        let statement = reply
            .get_array("writeErrors")
            .ok()
            .and_then(|errors| errors.first())
            .and_then(|error| error.as_document());
        // With both, the statements before the refused one may be lost: the write did not hold.
        let concern = reply.get_document("writeConcernError").ok();
        let Some(error) = concern.or(statement) else {
            return Ok(reply);
        };
        let statement = statement.filter(|_| concern.is_none());
        let code = error.get_i32("code").unwrap_or(0);
        Err(Error::Write {
            side: self.side,
            doing,
            code,
            // An index is always told; without one nothing would be known to be carried out.
            statement: statement
                .map(|failed| usize::try_from(number(failed, "index")).unwrap_or(0)),
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
