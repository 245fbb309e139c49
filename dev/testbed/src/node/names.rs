//! The cluster's DNS: what pods ask is answered from Services and their endpoints.

use std::{
    collections::BTreeMap,
    io::BufReader,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    dns::{Entry, NameServer},
    error::{Context, Result},
    spawn,
    tools::kubernetes::Program,
};

/// The end of all names in the cluster.
pub(super) const DOMAIN: &str = "cluster.local";

/// Watches are ended by the API server now and then.
const AGAIN: Duration = Duration::from_millis(200);

/// What is watched.
const KINDS: [&str; 2] = ["services", "endpointslices.discovery.k8s.io"];

/// Knows the names of the cluster as long as it lives.
pub(super) struct Names {
    stop: Arc<AtomicBool>,
    watches: Vec<Arc<Mutex<Option<Child>>>>,
    _dns: Arc<NameServer>,
}

impl Names {
    /// Answers at this address, and watches what there is.
    pub(super) async fn start(address: Ipv4Addr, kubeconfig: &Path) -> Result<Self> {
        let kubectl = Program::Kubectl.fetch().await?;
        let dns = Arc::new(NameServer::at(address)?);
        let known = Arc::new(Mutex::new(Known::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut names = Self {
            stop: stop.clone(),
            watches: Vec::new(),
            _dns: dns.clone(),
        };
        for kind in KINDS {
            let child = Arc::new(Mutex::new(None));
            names.watches.push(child.clone());
            let watch = Watch {
                kubectl: kubectl.clone(),
                kubeconfig: kubeconfig.into(),
                kind,
                dns: dns.clone(),
                known: known.clone(),
                stop: stop.clone(),
                child,
            };
            thread::Builder::new()
                .name("testbed-names".into())
                .spawn(move || watch.run())
                .context(|| "start a thread".into())?;
        }
        Ok(names)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for watch in &self.watches {
            let child = watch.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// `kubectl get --watch` of one kind.
struct Watch {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    kind: &'static str,
    dns: Arc<NameServer>,
    known: Arc<Mutex<Known>>,
    stop: Arc<AtomicBool>,
    child: Arc<Mutex<Option<Child>>>,
}

impl Watch {
    fn run(self) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Some(output) = self.start() {
                let values = serde_json::Deserializer::from_reader(BufReader::new(output))
                    .into_iter::<Value>();
                for event in values.map_while(|event| event.ok()) {
                    let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                    known.learn(self.kind, &event);
                    self.dns.set(known.entries());
                }
            }
            thread::sleep(AGAIN);
            self.known
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .forget(self.kind);
        }
    }

    fn start(&self) -> Option<ChildStdout> {
        let mut command = Command::new(&self.kubectl);
        command
            .args(["get", self.kind, "--all-namespaces", "--watch"])
            .args(["--output-watch-events", "--output=json"])
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut slot = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stop.load(Ordering::SeqCst) {
            return None;
        }
        let mut child = spawn::spawn(command).ok()?;
        let output = child.stdout.take();
        if let Some(mut before) = slot.replace(child) {
            let _ = before.kill();
            let _ = before.wait();
        }
        output
    }
}

/// Services and slices, by kind, namespace and name.
#[derive(Default)]
struct Known(BTreeMap<(&'static str, String, String), Value>);

impl Known {
    fn learn(&mut self, kind: &'static str, event: &Value) {
        let object = &event["object"];
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().into();
        let key = (kind, text("namespace"), text("name"));
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => {
                self.0.insert(key, object.clone());
            }
            Some("DELETED") => {
                self.0.remove(&key);
            }
            _ => {}
        }
    }

    fn forget(&mut self, of_kind: &str) {
        self.0.retain(|(kind, _, _), _| *kind != of_kind);
    }

    /// As the specification of DNS in Kubernetes has it, of addresses with IPv4.
    fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut add = |name: String, address: &Value| {
            if let Some(address) = address.as_str().and_then(|it| it.parse().ok()) {
                entries.push(Entry::Address(name, address));
            }
        };
        for ((kind, namespace, name), object) in &self.0 {
            let of = |service: &str| format!("{service}.{namespace}.svc.{DOMAIN}");
            if *kind == KINDS[0] {
                add(of(name), &object["spec"]["clusterIP"]);
                continue;
            }
            let service = &object["metadata"]["labels"]["kubernetes.io/service-name"];
            let service = service.as_str().unwrap_or_default();
            let is_headless = self.is_headless(namespace, service);
            for endpoint in object["endpoints"].as_array().into_iter().flatten() {
                for address in endpoint["addresses"].as_array().into_iter().flatten() {
                    if let Some(host) = endpoint["hostname"].as_str() {
                        add(format!("{host}.{}", of(service)), address);
                    }
                    if is_headless {
                        add(of(service), address);
                    }
                }
            }
        }
        entries
    }

    fn is_headless(&self, namespace: &str, service: &str) -> bool {
        let key = (KINDS[0], namespace.to_owned(), service.to_owned());
        let service = self.0.get(&key);
        service.is_some_and(|it| it["spec"]["clusterIP"] == "None")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(known: &Known) -> Vec<(String, String)> {
        let entries = known.entries().into_iter();
        let mut names: Vec<_> = entries
            .filter_map(|entry| match entry {
                Entry::Address(name, address) => Some((name, address.to_string())),
                _ => None,
            })
            .collect();
        names.sort();
        names
    }

    fn event(kind: &str, name: &str, more: Value) -> Value {
        let mut object = json!({"metadata": {"namespace": "shop", "name": name}});
        let labels = json!({"kubernetes.io/service-name": "db"});
        object["metadata"]["labels"] = labels;
        for (key, value) in more.as_object().unwrap() {
            object[key] = value.clone();
        }
        json!({"type": kind, "object": object})
    }

    #[test]
    fn a_member_of_a_headless_service_has_a_name_of_its_own_until_it_is_gone() {
        let mut known = Known::default();
        let service = event("ADDED", "db", json!({"spec": {"clusterIP": "None"}}));
        known.learn(KINDS[0], &service);
        let endpoints = json!({"endpoints": [{"addresses": ["198.18.0.7"], "hostname": "db-0"}]});
        known.learn(KINDS[1], &event("ADDED", "db-x", endpoints));
        let address = "198.18.0.7".to_owned();
        let expected = [
            "db-0.db.shop.svc.cluster.local",
            "db.shop.svc.cluster.local",
        ]
        .map(|name| (name.to_owned(), address.clone()));
        assert_eq!(names(&known), expected);
        known.learn(KINDS[1], &event("DELETED", "db-x", json!({})));
        assert_eq!(names(&known), []);
    }

    #[test]
    fn a_service_has_its_own_address() {
        let mut known = Known::default();
        let service = event("ADDED", "api", json!({"spec": {"clusterIP": "10.0.0.1"}}));
        known.learn(KINDS[0], &service);
        let expected = ("api.shop.svc.cluster.local".into(), "10.0.0.1".into());
        assert_eq!(names(&known), [expected]);
    }
}
