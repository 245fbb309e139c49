//! From a checked connection string to a driver client.

use std::time::Duration;

use mongodb::options::{ClientOptions, DatabaseOptions, ReadPreference, SelectionCriteria};
use mongodb::{Client, Database};

use crate::engine::config::{Endpoint, MirrorConfig, ReadFrom};
use crate::engine::error::{Error, Result, Side};

/// Longest wait for a server that can take an operation. Our own loops try again for ever, so
/// this only decides how soon status can say that nobody answers.
const SERVER_SELECTION: Duration = Duration::from_secs(5);

/// Longest wait for a TCP and TLS connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Connections to a server: each mirror has a stream, a monitor, a writer, copy lanes (a reader or
/// a writer each), and some commands, and bounds these itself. The driver has no word for no bound.
const POOL: u32 = 10_000;

/// A connection that was not needed for so long is closed: a copy needs more of them than what
/// follows, and many mirrors may share them.
const IDLE: Duration = Duration::from_secs(300);

/// New connections at a time; the default of 2 makes a cold start crawl (`facts` rust B2).
const CONNECTING: u32 = 8;

/// The source database, to be read from the members that the mirror is told to. Commands go to the
/// primary nevertheless, as do reads of what is there now.
pub fn readable(client: &Client, config: &MirrorConfig) -> Database {
    let preference = match config.read_from {
        ReadFrom::Primary => return client.database(&config.source.database),
        ReadFrom::PrimaryPreferred => ReadPreference::PrimaryPreferred { options: None },
        ReadFrom::Secondary => ReadPreference::Secondary { options: None },
        ReadFrom::SecondaryPreferred => ReadPreference::SecondaryPreferred { options: None },
        ReadFrom::Nearest => ReadPreference::Nearest { options: None },
    };
    let mut options = DatabaseOptions::default();
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(preference));
    client.database_with_options(&config.source.database, options)
}

/// What the driver is to know of an endpoint, but for certificates. Nothing is sent to the server,
/// except DNS queries for `mongodb+srv`.
///
/// # Errors
/// If the driver does not take the string, or an SRV name cannot be resolved.
pub(super) async fn read(endpoint: &Endpoint, side: Side) -> Result<ClientOptions> {
    let options = ClientOptions::parse(endpoint.uri.expose()).await;
    let mut options = options.map_err(Error::driver(side, "read the connection string"))?;
    options.app_name.get_or_insert_with(|| "mongomirror".into());
    options
        .server_selection_timeout
        .get_or_insert(SERVER_SELECTION);
    options.connect_timeout.get_or_insert(CONNECT);
    options.max_pool_size = Some(POOL);
    options.max_connecting = Some(CONNECTING);
    options.max_idle_time.get_or_insert(IDLE);
    Ok(options)
}

/// A client with these options.
///
/// # Errors
/// If the driver does not take them, or the certificates.
pub(super) fn with(mut options: ClientOptions, endpoint: &Endpoint, side: Side) -> Result<Client> {
    let failed = |doing| Error::driver(side, doing);
    let reading = failed("read the certificates");
    let Some(tls) = &endpoint.tls else {
        return Client::with_options(options).map_err(failed("use the connection string"));
    };
    let files = tls.files().map_err(|error| reading(error.into()))?;
    options.tls = Some(files.options.clone());
    Client::with_options(options).map_err(reading)
}
