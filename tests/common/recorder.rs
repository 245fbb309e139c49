//! A peer that keeps every byte that it is sent. It is no MongoDB: it knows as much of one as makes
//! a client show what it would tell a server that somebody else chose.

use bson::{Document, RawDocument, doc, oid::ObjectId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// The one kind of message that clients send today.
const OP_MSG: i32 = 2013;
/// Length, id, id of what is answered, kind.
const HEADER: usize = 16;
/// Flags and the kind of the section, between the header and the command.
const BEFORE_COMMAND: usize = 5;

/// What it does with those who connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Says nothing.
    Silent,
    /// Hangs up as soon as it has heard something.
    Closing,
    /// Introduces itself as the primary of a replica set that takes every way to log in, and refuses
    /// everything else.
    Talking,
}

/// What was sent, for each connection.
type Heard = Vec<Vec<u8>>;

/// Listens on a port of its own.
pub struct Recorder {
    /// Where it listens.
    pub address: String,
    heard: watch::Receiver<Heard>,
    _task: AbortOnDropHandle<()>,
}

impl Recorder {
    /// Starts to listen.
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let (record, heard) = watch::channel(Heard::new());
        let me = address.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let mut index = 0;
                record.send_modify(|all| {
                    index = all.len();
                    all.push(Vec::new());
                });
                connections.spawn(listen(stream, manner, me.clone(), record.clone(), index));
            }
        });
        Self {
            address,
            heard,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// What was sent so far.
    pub fn heard(&self) -> Heard {
        self.heard.borrow().clone()
    }

    /// Waits until a connection was sent this.
    pub async fn hears(&self, what: &str, is_it: impl Fn(&[u8]) -> bool) {
        let mut heard = self.heard.clone();
        let is_there = |all: &Heard| all.iter().any(|bytes| is_it(bytes));
        let found = tokio::time::timeout(super::PATIENCE, heard.wait_for(is_there)).await;
        found
            .unwrap_or_else(|_| panic!("{} never heard {what}", self.address))
            .expect("it listens");
    }
}

/// Whether the text is in these bytes.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    let mut windows = bytes.windows(text.len());
    windows.any(|window| window == text.as_bytes())
}

async fn listen(
    mut stream: TcpStream,
    manner: Manner,
    me: String,
    record: watch::Sender<Heard>,
    index: usize,
) {
    let mut waiting = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        record.send_modify(|all| all[index].extend_from_slice(&chunk[..read]));
        match manner {
            Manner::Silent => {}
            Manner::Closing => return,
            Manner::Talking => {
                waiting.extend_from_slice(&chunk[..read]);
                while let Some(message) = take_message(&mut waiting) {
                    let Some(reply) = reply(&message, &me) else {
                        return;
                    };
                    if stream.write_all(&reply).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<i32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(i32::from_le_bytes(bytes.try_into().ok()?))
}

/// The first whole message, which is taken away.
fn take_message(waiting: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::try_from(number(waiting, 0)?).ok()?;
    let is_whole = length >= HEADER && length <= waiting.len();
    is_whole.then(|| waiting.drain(..length).collect())
}

/// The answer; none to what is no command.
fn reply(message: &[u8], me: &str) -> Option<Vec<u8>> {
    if number(message, 12)? != OP_MSG {
        return None;
    }
    let at = HEADER + BEFORE_COMMAND;
    let length = usize::try_from(number(message, at)?).ok()?;
    let command = RawDocument::from_bytes(message.get(at..at + length)?).ok()?;
    let (name, _) = command.iter().next()?.ok()?;
    let answer = match name.as_str() {
        "hello" | "isMaster" | "ismaster" => hello(me),
        _ => doc! {"ok": 0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": "no"},
    };
    let body = answer.to_vec().ok()?;
    let length = i32::try_from(at + body.len()).ok()?;
    let mut reply = Vec::new();
    for number in [length, 1, number(message, 4)?, OP_MSG, 0] {
        reply.extend_from_slice(&number.to_le_bytes());
    }
    reply.push(0);
    reply.extend_from_slice(&body);
    Some(reply)
}

fn hello(me: &str) -> Document {
    let mechanisms = [
        "MONGODB-OIDC",
        "MONGODB-AWS",
        "PLAIN",
        "GSSAPI",
        "MONGODB-X509",
        "SCRAM-SHA-1",
        "SCRAM-SHA-256",
    ];
    doc! {
        "ok": 1,
        "helloOk": true,
        "ismaster": true,
        "isWritablePrimary": true,
        "setName": "rs0",
        "setVersion": 1,
        "electionId": ObjectId::from_bytes([7; 12]),
        "hosts": [me],
        "primary": me,
        "me": me,
        "minWireVersion": 0,
        "maxWireVersion": 17,
        "maxBsonObjectSize": 16 << 20,
        "maxMessageSizeBytes": 48_000_000,
        "maxWriteBatchSize": 100_000,
        "logicalSessionTimeoutMinutes": 30,
        "compression": ["zlib", "snappy", "zstd"],
        "saslSupportedMechs": &mechanisms[..],
    }
}
