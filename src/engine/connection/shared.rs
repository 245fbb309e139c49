//! The connections of a process: mirrors of one connection string share a client.
//!
//! A client watches over its servers with connections and tasks of its own, and most of a mirror's
//! connections wait most of the time. Five hundred mirrors of one deployment need all that once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bson::Bson;
use mongodb::Client;

use super::client::{read, with};
use super::oplog::Oplog;
use super::pulse::Listener;
use super::tls::Tls;
use super::uri::ConnectionUri;
use super::vitals::{Heard, Sample, Vitals};
use crate::engine::config::{Endpoint, MirrorConfig};
use crate::engine::error::{Error, Result, Side};

/// Longest wait for a client to close its connections.
const DISCONNECT: Duration = Duration::from_secs(2);

/// All clients of a process. Never locked across an await.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<Key, Weak<Shared>>>>);

/// What makes two endpoints the same deployment for the same user.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key(ConnectionUri, Option<Tls>);

struct Shared {
    key: Key,
    client: Client,
    sessions: Sessions,
    vitals: Vitals,
}

/// Sessions that mirrors of this process write with, and whose they are.
type Sessions = Arc<Mutex<HashMap<Vec<u8>, Arc<()>>>>;

/// A client for as long as it is needed. Others may have it, too.
pub struct Connection {
    clients: Clients,
    shared: Arc<Shared>,
}

/// A mirror's connections.
pub struct Connections {
    /// To the source.
    pub source: Connection,
    /// To the target.
    pub target: Connection,
}

/// Sessions that are in use until this is dropped.
pub struct InUse {
    // Not the client itself: what is noted here does not keep it.
    sessions: Sessions,
    /// Told apart by its address.
    whose: Arc<()>,
    ids: Vec<Bson>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is a single step: there is nothing half-done to find.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    /// The client of an endpoint; made if there is none. Nothing is sent to the server yet, except
    /// DNS queries for `mongodb+srv`.
    ///
    /// # Errors
    /// If the driver does not take the string or the certificates, or an SRV name cannot be resolved.
    pub async fn connect(&self, endpoint: &Endpoint, side: Side) -> Result<Connection> {
        let key = Key(endpoint.uri.clone(), endpoint.tls.clone());
        if let Some(found) = self.find(&key) {
            return Ok(found);
        }
        // Many may ask for it at once: nobody waits for another's DNS.
        let options = read(endpoint, side).await?;
        let mut all = lock(&self.0);
        let shared = match all.get(&key).and_then(Weak::upgrade) {
            Some(shared) => shared,
            None => {
                // Those whose mirrors were cut off have not taken themselves out.
                all.retain(|_, shared| shared.strong_count() > 0);
                let shared = Arc::new(Shared {
                    key: key.clone(),
                    client: with(options, endpoint, side)?,
                    sessions: Sessions::default(),
                    vitals: Vitals::default(),
                });
                all.insert(key, Arc::downgrade(&shared));
                shared
            }
        };
        Ok(Connection {
            clients: self.clone(),
            shared,
        })
    }

    fn find(&self, key: &Key) -> Option<Connection> {
        let shared = lock(&self.0).get(key)?.upgrade()?;
        Some(Connection {
            clients: self.clone(),
            shared,
        })
    }
}

impl Connections {
    /// To both sides of a mirror.
    ///
    /// # Errors
    /// As of [`Clients::connect`].
    pub async fn open(clients: &Clients, config: &MirrorConfig) -> Result<Self> {
        Ok(Self {
            source: clients.connect(&config.source, Side::Source).await?,
            target: clients.connect(&config.target, Side::Target).await?,
        })
    }

    /// Gives them back, after what went wrong with them, if anything did.
    pub async fn close(self, error: Option<&Error>) {
        for (connection, side) in [(self.source, Side::Source), (self.target, Side::Target)] {
            let is_its = error.and_then(Error::side).is_none_or(|its| its == side);
            if is_its && error.is_some_and(Error::is_connection) {
                connection.give_up().await;
            } else {
                connection.close().await;
            }
        }
    }
}

impl Connection {
    /// The client.
    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// How far this source is, asked twice a second for all mirrors.
    pub fn times(&self) -> Listener<Heard<Sample>> {
        self.shared.vitals.times(self.client())
    }

    /// Whether this target answers.
    pub fn answers(&self) -> Listener<Heard<()>> {
        self.shared.vitals.answers(self.client())
    }

    /// What this source's oplog holds.
    pub fn oplog(&self) -> Listener<Heard<Oplog>> {
        self.shared.vitals.oplog(self.client())
    }

    /// Notes that these sessions are used. The driver hands a session on to the next who asks when
    /// it is not needed any more.
    pub fn uses(&self, ids: Vec<Bson>) -> InUse {
        let whose = Arc::new(());
        let noted = ids
            .iter()
            .filter_map(id)
            .map(|id| (id.to_vec(), whose.clone()));
        lock(&self.shared.sessions).extend(noted);
        InUse {
            sessions: self.shared.sessions.clone(),
            whose,
            ids,
        }
    }

    /// Those of these sessions that no mirror of this process uses.
    pub fn unused(&self, sessions: &[Bson]) -> Vec<Bson> {
        let all = lock(&self.shared.sessions);
        let is_used = |session: &&Bson| id(session).is_some_and(|id| all.contains_key(id));
        let unused = sessions.iter().filter(|session| !is_used(session));
        unused.cloned().collect()
    }

    /// Gives it back where it is of no use: whoever connects from now on gets another one. What the
    /// driver knows of a deployment can be wrong for good, as of a member that was no member of its
    /// set when it was looked at.
    pub async fn give_up(self) {
        {
            let mut all = lock(&self.clients.0);
            let is_this = |found: &Weak<Shared>| found.as_ptr() == Arc::as_ptr(&self.shared);
            if all.get(&self.shared.key).is_some_and(is_this) {
                all.remove(&self.shared.key);
            }
        }
        self.close().await;
    }

    /// Gives it back. The last one closes the connections, and waits for that: what the driver still
    /// does in the background would otherwise meet the end of the process.
    pub async fn close(self) {
        let Self { clients, shared } = self;
        let last = {
            // Who is about to connect waits for the lock, and finds it either used or gone.
            let _all = lock(&clients.0);
            Arc::into_inner(shared)
        };
        if let Some(Shared { client, .. }) = last {
            let shutdown = client.shutdown().immediate(true);
            let _ = tokio::time::timeout(DISCONNECT, shutdown.into_future()).await;
        }
    }
}

impl InUse {
    /// Which they are.
    pub fn ids(&self) -> &[Bson] {
        &self.ids
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut all = lock(&self.sessions);
        // Others may use some of them by now.
        all.retain(|_, whose| !Arc::ptr_eq(whose, &self.whose));
    }
}

fn id(session: &Bson) -> Option<&[u8]> {
    match session {
        Bson::Binary(id) => Some(&id.bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::Binary;
    use bson::spec::BinarySubtype;

    fn plain_uri() -> ConnectionUri {
        ConnectionUri::parse("mongodb://127.0.0.1:9/").unwrap()
    }

    fn endpoint(database: &str, ca: Option<&[u8]>) -> Endpoint {
        Endpoint {
            uri: plain_uri(),
            tls: ca.map(|ca| Tls {
                ca: Some(ca.to_vec()),
                certificate: None,
            }),
            database: database.to_owned(),
        }
    }

    fn session(id: u8) -> Bson {
        Bson::Binary(Binary {
            subtype: BinarySubtype::Uuid,
            bytes: vec![id; 16],
        })
    }

    #[tokio::test]
    async fn a_connection_string_has_one_client_until_nobody_needs_it() {
        let clients = Clients::default();
        let connect = |database| {
            let clients = clients.clone();
            async move {
                let endpoint = endpoint(database, None);
                clients.connect(&endpoint, Side::Source).await.unwrap()
            }
        };
        let (one, two) = (connect("a").await, connect("b").await);
        assert!(Arc::ptr_eq(&one.shared, &two.shared));
        one.close().await;
        let three = connect("c").await;
        assert!(Arc::ptr_eq(&two.shared, &three.shared));
        two.close().await;
        three.close().await;
        // A mirror that was cut off has closed nothing.
        drop(connect("d").await);
        let five = connect("e").await;
        assert_eq!(Arc::strong_count(&five.shared), 1);
        assert_eq!(lock(&clients.0).len(), 1);
    }

    #[tokio::test]
    async fn a_client_that_is_given_up_is_nobody_elses_next() {
        let clients = Clients::default();
        let at = endpoint("a", None);
        let connect = async || clients.connect(&at, Side::Source).await.unwrap();
        let (one, two) = (connect().await, connect().await);
        one.give_up().await;
        let three = connect().await;
        assert!(!Arc::ptr_eq(&two.shared, &three.shared));
        // Who learns of it later does not take the new one from the others.
        two.give_up().await;
        assert!(Arc::ptr_eq(&connect().await.shared, &three.shared));
    }

    #[tokio::test]
    async fn other_certificates_are_another_client() {
        let clients = Clients::default();
        let plain = endpoint("a", None);
        let plain = clients.connect(&plain, Side::Source).await.unwrap();
        let other = endpoint("a", Some(b"PEM"));
        assert!(clients.find(&Key(plain_uri(), other.tls)).is_none());
        let same = clients.find(&Key(plain_uri(), None)).unwrap();
        assert!(Arc::ptr_eq(&plain.shared, &same.shared));
    }

    #[tokio::test]
    async fn sessions_are_in_use_until_their_last_user_is_gone() {
        let clients = Clients::default();
        let connection = clients.connect(&endpoint("a", None), Side::Target).await;
        let connection = connection.unwrap();
        let first = connection.uses(vec![session(1), session(2)]);
        // Session 2 went from the first to the second.
        let second = connection.uses(vec![session(2), session(3)]);
        let all = [session(1), session(2), session(3), session(4)];
        assert_eq!(connection.unused(&all), [session(4)]);
        drop(first);
        assert_eq!(connection.unused(&all), [session(1), session(4)]);
        assert_eq!(Arc::strong_count(&connection.shared), 1);
        drop(second);
        assert_eq!(connection.unused(&all), all);
    }
}
