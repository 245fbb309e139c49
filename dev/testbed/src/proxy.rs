//! A network between clients and a server on this machine, which can be cut, slowed down and torn.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::{
    error::{Context, Result},
    port::Port,
};

/// Bytes that are passed on at once.
const CHUNK: usize = 64 * 1024;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the server.
    ToServer,
    /// From the server to clients.
    ToClient,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flow {
    /// Nothing passes: what was sent arrives when the fault is over.
    held: bool,
    /// Everything arrives so much later.
    delay: Duration,
    /// So many bytes still pass, then the connection is closed.
    left: Option<u64>,
}

/// What happens to one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Faults {
    to_server: Flow,
    to_client: Flow,
    closed: bool,
}

impl Faults {
    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }

    fn flow_of(&self, direction: Direction) -> Flow {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
        }
    }
}

/// One connection through the proxy.
#[derive(Debug, Clone)]
pub struct Connection {
    id: u64,
    faults: watch::Sender<Faults>,
}

impl Connection {
    /// Counts the connections of its proxy.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Closes it.
    pub fn close(&self) {
        self.faults.send_modify(|faults| faults.closed = true);
    }

    /// Lets nothing pass in this direction, until it is healed.
    pub fn hold(&self, direction: Direction) {
        self.faults
            .send_modify(|faults| faults.flow(direction).held = true);
    }

    /// Delivers everything so much later.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.faults
            .send_modify(|faults| faults.flow(direction).delay = delay);
    }

    /// Closes it after so many more bytes of this direction: in the middle of a message.
    pub fn truncate(&self, direction: Direction, after: u64) {
        self.faults
            .send_modify(|faults| faults.flow(direction).left = Some(after));
    }

    /// Everything passes again; what is closed stays so.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| {
            *faults = Faults {
                closed: faults.closed,
                ..Faults::default()
            };
        });
    }
}

#[derive(Debug, Default)]
struct State {
    /// What new connections meet.
    faults: Mutex<Faults>,
    connections: Mutex<Vec<Connection>>,
    accepted: AtomicU64,
}

impl State {
    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy on 127.0.0.1 in front of one server.
///
/// A replica set whose members announce their proxies' addresses comes from
/// [`Builder::behind_proxies`](crate::Builder::behind_proxies).
#[derive(Debug)]
pub struct Proxy {
    port: Arc<Port>,
    state: Arc<State>,
    listens: watch::Sender<bool>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a port of this machine.
    pub async fn start(upstream: u16) -> Result<Self> {
        let port = Arc::new(Port::reserve()?);
        let state = Arc::new(State::default());
        let listener = listen(&port).await?;
        let (listens, wanted) = watch::channel(true);
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
        let task = serve(
            listener,
            Arc::clone(&port),
            upstream,
            Arc::clone(&state),
            wanted,
        );
        Ok(Self {
            port,
            state,
            listens,
            listener: tokio::spawn(task),
        })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The connections that are open.
    pub fn connections(&self) -> Vec<Connection> {
        self.state.connections().clone()
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::Relaxed)
    }

    fn all(&self, change: impl Fn(&mut Faults)) {
        change(&mut self.state.faults());
        for connection in self.connections() {
            connection.faults.send_modify(&change);
        }
    }

    /// Closes all connections. New ones are welcome.
    pub fn close(&self) {
        for connection in self.connections() {
            connection.close();
        }
    }

    /// Refuses new connections, until healed.
    pub fn refuse(&self) {
        self.listens.send_replace(false);
    }

    /// Cuts the network: closes all connections and refuses new ones, until healed.
    pub fn cut(&self) {
        self.refuse();
        self.close();
    }

    /// Lets nothing pass in this direction, over connections of now and later, until healed.
    pub fn hold(&self, direction: Direction) {
        self.all(|faults| faults.flow(direction).held = true);
    }

    /// Delivers everything so much later, until healed.
    pub fn delay(&self, delay: Duration) {
        self.all(|faults| {
            faults.to_server.delay = delay;
            faults.to_client.delay = delay;
        });
    }

    /// Closes each connection, also later ones, after so many more bytes of this direction, until
    /// healed: in the middle of a message.
    pub fn truncate(&self, direction: Direction, after: u64) {
        self.all(|faults| faults.flow(direction).left = Some(after));
    }

    /// Everything passes again, and connections are accepted.
    pub fn heal(&self) {
        *self.state.faults() = Faults::default();
        for connection in self.connections() {
            connection.heal();
        }
        self.listens.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.close();
    }
}

async fn listen(port: &Port) -> Result<TcpListener> {
    let address = (Ipv4Addr::LOCALHOST, port.number());
    let listener = TcpListener::bind(address).await;
    listener.context(|| format!("listen on {}", port.number()))
}

/// Accepts connections for as long as that is wanted.
async fn serve(
    listener: TcpListener,
    port: Arc<Port>,
    upstream: SocketAddr,
    state: Arc<State>,
    mut wanted: watch::Receiver<bool>,
) {
    let mut listener = Some(listener);
    loop {
        if !*wanted.borrow_and_update() {
            // Only a port on which nobody listens refuses connections.
            listener = None;
        } else if listener.is_none() {
            match listen(&port).await {
                Ok(open) => listener = Some(open),
                Err(error) => {
                    eprintln!("the proxy cannot listen again: {error}");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            }
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            accepted = accept => if let Ok((client, _)) = accepted {
                open(client, upstream, &state);
            },
        }
    }
}

/// Passes on what one client and the server say to each other.
fn open(client: TcpStream, upstream: SocketAddr, state: &Arc<State>) {
    let id = state.accepted.fetch_add(1, Ordering::Relaxed);
    let (faults, seen) = watch::channel(*state.faults());
    let connection = Connection { id, faults };
    state.connections().push(connection.clone());
    let state = Arc::clone(state);
    tokio::spawn(async move {
        if let Ok(server) = TcpStream::connect(upstream).await {
            // As it comes: what the kernel collects would look like a delay.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let mut closed = seen.clone();
            tokio::select! {
                _ = closed.wait_for(|faults| faults.closed) => {}
                () = pump(from_client, to_server, Direction::ToServer, &connection) => {}
                () = pump(from_server, to_client, Direction::ToClient, &connection) => {}
            }
        }
        state.connections().retain(|open| open.id != id);
    });
}

/// Passes bytes on in one direction until either side closes, or the fault says so.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    connection: &Connection,
) {
    let mut buffer = vec![0; CHUNK];
    let mut faults = connection.faults.subscribe();
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = faults.borrow_and_update().flow_of(direction).delay;
        sleep(delay).await;
        if faults
            .wait_for(|faults| !faults.flow_of(direction).held)
            .await
            .is_err()
        {
            return;
        }
        let left = faults.borrow().flow_of(direction).left;
        let passed = left.map_or(read, |left| {
            read.min(usize::try_from(left).unwrap_or(usize::MAX))
        });
        if to.write_all(&buffer[..passed]).await.is_err() || passed < read {
            return;
        }
        if left.is_some() {
            connection.faults.send_modify(|faults| {
                if let Some(left) = &mut faults.flow(direction).left {
                    *left = left.saturating_sub(passed as u64);
                }
            });
        }
    }
}
