//! How the node is connected: to this machine by a pair of interfaces, its pods by a bridge.

use std::{fs, net::Ipv4Addr, path::Path};

use serde_json::json;
use tokio::process::Command;

use super::{machine, sandbox::Sandbox};
use crate::{
    control_plane::{Output, run_to_its_end},
    error::{Context, Error, Result},
};

/// The interface on the node's side.
const UPLINK: &str = "uplink";

/// So many nodes can be on a machine at once.
const MOST: u32 = 256;

/// The addresses of one node. All are of the block that is kept for tests of networks
/// (198.18.0.0/15), and no packet leaves the machine: it does not forward for the node.
#[derive(Debug, Clone, Copy)]
struct Addresses(u8);

impl Addresses {
    fn machine(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.0, 1)
    }

    fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.0, 2)
    }

    fn pods(self) -> String {
        format!("198.18.{}.0/24", self.0)
    }

    fn interface(self) -> String {
        format!("testbed-{}", self.0)
    }
}

/// The connection. The kernel removes it with the node's namespaces.
pub(super) struct Network(Addresses);

impl Network {
    /// Connects the node to this machine.
    pub(super) async fn connect(sandbox: &Sandbox) -> Result<Self> {
        let addresses = add_link(sandbox).await?;
        let network = Self(addresses);
        let interface = addresses.interface();
        let (machine, node) = (addresses.machine(), addresses.node());
        let (machine_net, node_net) = (format!("{machine}/30"), format!("{node}/30"));
        let (machine, node) = (machine.to_string(), node.to_string());
        for arguments in [
            &["addr", "add", &machine_net, "dev", &interface][..],
            &["link", "set", &interface, "up"],
        ] {
            ip(arguments).await?.checked()?;
        }
        let within = machine::needed("ip")?;
        for arguments in [
            &["addr", "add", &node_net, "dev", UPLINK][..],
            &["link", "set", UPLINK, "up"],
            &["route", "add", "default", "via", &machine],
        ] {
            sandbox.run(&within, arguments).await?.checked()?;
        }
        let route = ["route", "add", &addresses.pods(), "via", &node];
        ip(&route).await?.checked()?;
        Ok(network)
    }

    /// Where this machine is, as node and pods see it.
    pub(super) fn machine(&self) -> Ipv4Addr {
        self.0.machine()
    }

    /// Where the node is.
    pub(super) fn node(&self) -> Ipv4Addr {
        self.0.node()
    }

    /// Where all pods are.
    pub(super) fn pods(&self) -> String {
        self.0.pods()
    }

    /// Writes how pods are connected, for containerd, into `folder`.
    pub(super) fn write_cni(&self, folder: &Path, allocations: &Path) -> Result<()> {
        let bridge = json!({
            "type": "bridge",
            "bridge": "pods",
            "isGateway": true,
            "ipMasq": false,
            // A pod may reach itself by a Service.
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": self.pods()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": allocations,
            },
        });
        let list = json!({"cniVersion": "1.0.0", "name": "testbed", "plugins": [bridge]});
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join("testbed.conflist"), list.to_string()))
            .context(|| format!("write into {}", folder.display()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Only to have it gone at once: the kernel takes its time with namespaces.
        let interface = self.0.interface();
        if let Some(ip) = machine::program("ip") {
            let mut delete = std::process::Command::new(ip);
            delete.args(["link", "delete", &interface]);
            let _ = delete.output();
        }
    }
}

/// Adds a pair of interfaces, with a number that no other node has.
async fn add_link(sandbox: &Sandbox) -> Result<Addresses> {
    let pid = sandbox.pid().to_string();
    let mut said = String::new();
    for attempt in 0..MOST {
        let number = std::process::id().wrapping_add(attempt) % MOST;
        let addresses = Addresses(number as u8);
        let interface = addresses.interface();
        let pair = ["link", "add", &interface, "type", "veth"];
        let peer = ["peer", "name", UPLINK, "netns", &pid];
        let output = ip(&[pair, peer].concat()).await?;
        if output.success {
            return Ok(addresses);
        }
        said = output.stderr.trim().to_owned();
        if !said.contains("exists") {
            break;
        }
    }
    Err(Error::Unusable {
        what: "a network for a node".into(),
        hint: format!("ip link add: {said}"),
    })
}

async fn ip(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(machine::needed("ip")?);
    command.args(arguments);
    run_to_its_end(format!("ip {}", arguments.join(" ")), command, None).await
}
