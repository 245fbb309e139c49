//! From a checked connection string to a driver client.

use std::time::Duration;

use mongodb::Client;
use mongodb::options::ClientOptions;

use super::uri::ConnectionUri;
use crate::engine::error::{Error, Result, Side};

/// Longest wait for a server that can take an operation. Our own loops try again for ever, so
/// this only decides how soon status can say that nobody answers.
const SERVER_SELECTION: Duration = Duration::from_secs(5);

/// Longest wait for a TCP and TLS connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Connections to one side: stream, monitor, writer, copy lanes (a reader or a writer each), and
/// some for commands.
const POOL: u32 = 24;

/// New connections at a time; the default of 2 makes a cold start crawl (`facts` rust B2).
const CONNECTING: u32 = 8;

/// Makes a client. Nothing is sent to the server yet, except DNS queries for `mongodb+srv`.
///
/// # Errors
/// If the driver does not take the string, or an SRV name cannot be resolved.
pub async fn connect(uri: &ConnectionUri, side: Side) -> Result<Client> {
    let failed = || Error::driver(side, "read the connection string");
    let mut options = ClientOptions::parse(uri.expose()).await.map_err(failed())?;
    options.app_name.get_or_insert_with(|| "mongomirror".into());
    options
        .server_selection_timeout
        .get_or_insert(SERVER_SELECTION);
    options.connect_timeout.get_or_insert(CONNECT);
    options.max_pool_size = Some(POOL);
    options.max_connecting = Some(CONNECTING);
    Client::with_options(options).map_err(failed())
}
