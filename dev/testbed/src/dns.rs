//! Names that only chosen processes see: a DNS server of the test's own.

use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SRV, TXT},
    },
};

use crate::error::{Context, Error, Result};

/// Servers are asked at this port, whatever a `resolv.conf` says.
const PORT: u16 = 53;

/// Answers are good for so many seconds.
const TTL: u32 = 1;

/// How often the server looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(100);

/// Longer than any question over UDP.
const LONGEST: usize = 4096;

/// One record.
#[derive(Debug, Clone)]
pub enum Entry {
    /// `_mongodb._tcp.<name>` is served by these hosts, at these ports.
    Srv(String, Vec<(String, u16)>),
    /// The text of a name.
    Txt(String, String),
    /// A name of this machine, as loopback.
    Local(String),
    /// An address of a name, which may have several.
    Address(String, Ipv4Addr),
}

/// A DNS server at a loopback address of its own. Only those can have one who may listen at port 53
/// (root, or anybody where `net.ipv4.ip_unprivileged_port_start` is no higher), and mount, at least
/// in a user namespace of their own.
pub struct Dns {
    server: NameServer,
    folder: tempfile::TempDir,
    unshare: &'static [&'static str],
}

/// Gives a program mounts of its own: as who may mount, and as anybody.
const UNSHARE: [&[&str]; 2] = [
    &["unshare", "--mount", "--propagation=private"],
    &[
        "unshare",
        "--map-root-user",
        "--mount",
        "--propagation=private",
    ],
];

impl Dns {
    /// Starts one that knows these names.
    pub fn start(entries: Vec<Entry>) -> Result<Self> {
        let (address, socket) = bind()?;
        let mut dns = Self {
            server: NameServer::serve(socket, entries)?,
            folder: tempfile::tempdir().context(|| "make a folder".into())?,
            unshare: UNSHARE[0],
        };
        let file = dns.resolv_conf();
        fs::write(&file, format!("nameserver {address}\n"))
            .context(|| format!("write {}", file.display()))?;
        if dns.may_mount().is_err() {
            dns.unshare = UNSHARE[1];
            dns.may_mount()?;
        }
        Ok(dns)
    }

    fn resolv_conf(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }

    /// From now on it knows these names, and no other.
    pub fn set(&self, entries: Vec<Entry>) {
        self.server.set(entries);
    }

    /// What it was asked so far: `SRV _mongodb._tcp.shop.test.`
    pub fn asked(&self) -> Vec<String> {
        let asked = self.server.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What to put before a program's path for it to see these names, and those alone.
    pub fn wrapper(&self) -> Vec<OsString> {
        let mount = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let all = self.unshare.iter().copied().chain(["sh", "-c", mount]);
        let all = all.map(OsString::from);
        all.chain([self.resolv_conf().into_os_string()]).collect()
    }

    fn may_mount(&self) -> Result<()> {
        let wrapper = self.wrapper();
        let output = Command::new(&wrapper[0])
            .args(&wrapper[1..])
            .arg("true")
            .stdin(Stdio::null())
            .output()
            .context(|| "run unshare".into())?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Failed {
            what: "giving a process a resolv.conf of its own".into(),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// The server alone, as long as it lives.
pub(crate) struct NameServer {
    entries: Arc<Mutex<Vec<Entry>>>,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl NameServer {
    /// Starts one at an address of this machine, for a network behind it. It knows no name yet.
    pub(crate) fn at(address: Ipv4Addr) -> Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::new(IpAddr::V4(address), PORT))
            .context(|| format!("listen for DNS at {address}"))?;
        Self::serve(socket, Vec::new())
    }

    fn serve(socket: UdpSocket, entries: Vec<Entry>) -> Result<Self> {
        let names = Self {
            entries: Arc::new(Mutex::new(entries)),
            asked: Arc::default(),
            stop: Arc::default(),
        };
        let server = Server {
            socket,
            entries: names.entries.clone(),
            asked: names.asked.clone(),
            stop: names.stop.clone(),
        };
        thread::Builder::new()
            .name("testbed-dns".into())
            .spawn(move || server.serve())
            .context(|| "start a thread".into())?;
        Ok(names)
    }

    /// From now on it knows these names, and no other.
    pub(crate) fn set(&self, entries: Vec<Entry>) {
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = entries;
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// All of 127.0.0.0/8 is this machine: several servers do not meet.
fn bind() -> Result<(Ipv4Addr, UdpSocket)> {
    let seed = std::process::id();
    let mut last = None;
    for attempt in 0..50u32 {
        let [_, _, third, fourth] = (seed.wrapping_mul(31).wrapping_add(attempt)).to_be_bytes();
        let address = Ipv4Addr::new(127, 53, third, fourth.max(1));
        match UdpSocket::bind(SocketAddr::new(IpAddr::V4(address), PORT)) {
            Ok(socket) => return Ok((address, socket)),
            Err(error) => last = Some(error),
        }
    }
    // Invariant: there was an attempt.
    Err(last.unwrap_or_else(|| std::io::Error::other("no attempt"))).context(|| {
        format!(
            "listen for DNS at port {PORT} (which takes root, or \
                 sysctl net.ipv4.ip_unprivileged_port_start={PORT})"
        )
    })
}

struct Server {
    socket: UdpSocket,
    entries: Arc<Mutex<Vec<Entry>>>,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn serve(self) {
        // Without it, the thread ends with the process.
        let _ = self.socket.set_read_timeout(Some(LOOK));
        let mut buffer = [0; LONGEST];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else {
                continue;
            };
            if let Some(answer) = self.answer(&buffer[..length]) {
                let _ = self.socket.send_to(&answer, from);
            }
        }
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query = question.queries.first()?.clone();
        let (name, kind) = (query.name().clone(), query.query_type());
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(format!("{kind} {name}"));
        drop(asked);
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_known, records) = look_up(&entries, &name, kind);
        drop(entries);
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.authoritative = true;
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        if !is_known {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.add_query(query);
        answer.add_answers(records);
        answer.to_vec().ok()
    }
}

/// Whether there is such a name, and its records of this kind.
fn look_up(entries: &[Entry], name: &Name, kind: RecordType) -> (bool, Vec<Record>) {
    let mut is_known = false;
    let mut records = Vec::new();
    let is = |text: &str| Name::from_utf8(text).is_ok_and(|it| it.eq_ignore_root(name));
    for entry in entries {
        let of_entry: Vec<(RecordType, RData)> = match entry {
            Entry::Srv(of, hosts) if is(&format!("_mongodb._tcp.{of}")) => {
                let hosts = hosts.iter().filter_map(|(host, port)| {
                    let host = Name::from_utf8(format!("{host}.")).ok()?;
                    Some((RecordType::SRV, RData::SRV(SRV::new(0, 0, *port, host))))
                });
                hosts.collect()
            }
            Entry::Txt(of, text) if is(of) => {
                vec![(RecordType::TXT, RData::TXT(TXT::new(vec![text.clone()])))]
            }
            Entry::Local(of) if is(of) => {
                vec![(RecordType::A, RData::A(A(Ipv4Addr::LOCALHOST)))]
            }
            Entry::Address(of, address) if is(of) => {
                vec![(RecordType::A, RData::A(A(*address)))]
            }
            _ => continue,
        };
        is_known = true;
        let wanted = of_entry.into_iter().filter(|(of, _)| *of == kind);
        records.extend(wanted.map(|(_, data)| Record::from_rdata(name.clone(), TTL, data)));
    }
    (is_known, records)
}
