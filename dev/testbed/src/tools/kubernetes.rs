//! Finds or builds the programs of a Kubernetes cluster, and those that talk to it.
//!
//! Kubernetes, etcd and Helm are ordinary Go modules with commands in them, so small go.mod files
//! pin everything by checksum, and the Go toolchain builds what the machine does not have.

use std::{env, fs, path::Path, path::PathBuf, process::Command};

use super::{blocking, is_executable, on_path};
use crate::{
    cache,
    error::{Context, Error, Result},
    progress, scratch,
};

/// The ecosystem's variable for a folder with etcd, kube-apiserver and kubectl.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// A program of the cluster, or one that talks to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// The store behind the API server.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// kubelet.
    Kubelet,
    /// kube-proxy.
    Proxy,
    /// kubectl.
    Kubectl,
    /// helm, which renders and installs the chart.
    Helm,
}

/// A Go module of ours that pins one release, with the commands in it.
struct Release {
    name: &'static str,
    version: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// Without them Kubernetes calls itself v0.0.0, and Helm takes every cluster that it does not
    /// ask for a 1.20.
    linker_flags: &'static str,
}

/// The module files are part of the program, so that a test binary needs no source tree.
const KUBERNETES: Release = Release {
    name: "kubernetes",
    version: "1.34.4",
    go_mod: include_str!("../../go/kubernetes/go.mod"),
    go_sum: include_str!("../../go/kubernetes/go.sum"),
    linker_flags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.34.4 \
                   -X k8s.io/component-base/version.gitMajor=1 \
                   -X k8s.io/component-base/version.gitMinor=34",
};

const ETCD: Release = Release {
    name: "etcd",
    version: "3.6.16",
    go_mod: include_str!("../../go/etcd/go.mod"),
    go_sum: include_str!("../../go/etcd/go.sum"),
    linker_flags: "-s -w",
};

const HELM: Release = Release {
    name: "helm",
    version: "3.22.0",
    go_mod: include_str!("../../go/helm/go.mod"),
    go_sum: include_str!("../../go/helm/go.sum"),
    linker_flags: "-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0 \
                   -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 \
                   -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=37 \
                   -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 \
                   -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=37",
};

impl Program {
    /// All of them, in an order in which they build quickest: the later reuse what the earlier
    /// compiled.
    pub const ALL: [Self; 8] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Kubectl,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::Proxy,
        Self::Helm,
    ];

    /// The name of its executable.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
        }
    }

    fn source(self) -> (Release, &'static str) {
        match self {
            Self::Etcd => (ETCD, "go.etcd.io/etcd/server/v3"),
            Self::ApiServer => (KUBERNETES, "k8s.io/kubernetes/cmd/kube-apiserver"),
            Self::ControllerManager => {
                (KUBERNETES, "k8s.io/kubernetes/cmd/kube-controller-manager")
            }
            Self::Scheduler => (KUBERNETES, "k8s.io/kubernetes/cmd/kube-scheduler"),
            Self::Kubelet => (KUBERNETES, "k8s.io/kubernetes/cmd/kubelet"),
            Self::Proxy => (KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy"),
            Self::Kubectl => (KUBERNETES, "k8s.io/kubernetes/cmd/kubectl"),
            Self::Helm => (HELM, "helm.sh/helm/v3/cmd/helm"),
        }
    }

    /// Finds the program, building it if need be, and returns its path.
    pub async fn fetch(self) -> Result<PathBuf> {
        blocking(move || self.find()).await
    }

    /// Finds the program: `KUBEBUILDER_ASSETS`, `PATH`, the cache; else builds it.
    pub(crate) fn find(self) -> Result<PathBuf> {
        let assets = env::var_os(ASSETS).map(|folder| Path::new(&folder).join(self.name()));
        if let Some(own) = assets
            .filter(|path| is_executable(path))
            .or_else(|| on_path(self.name()))
        {
            return Ok(own);
        }
        let (release, package) = self.source();
        let tool = format!("{}-{}", release.name, release.version);
        cache::item(&tool, Some(self.name()), |program| {
            build(&release, package, program)
        })
    }
}

fn build(release: &Release, package: &str, program: &Path) -> Result<()> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let go = on_path("go").ok_or_else(|| Error::MissingTool {
        tool: "go".into(),
        purpose: format!("build {package} {}", release.version),
        hint: format!(
            "install Go 1.26 or newer, or put {name} on PATH or into the folder that {ASSETS} names"
        ),
    })?;
    let module = scratch::folder(release.name)?;
    for (name, text) in [("go.mod", release.go_mod), ("go.sum", release.go_sum)] {
        fs::write(module.path().join(name), text).context(|| format!("write a {name}"))?;
    }
    let mut command = Command::new(go);
    command
        .current_dir(module.path())
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
        .args(["-ldflags", release.linker_flags])
        .arg("-o")
        .arg(program)
        .arg(package);
    let what = format!("building {name} {} (takes minutes, once)", release.version);
    progress::run(&what, command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_named_after_the_version_that_go_mod_pins() {
        for program in Program::ALL {
            let (release, package) = program.source();
            let module = package.split("/cmd/").next().unwrap_or(package);
            let pin = format!("{module} v{}", release.version);
            let pinned = |line: &str| {
                let requirement = line.trim().trim_start_matches("require ");
                // A module that is only a tool is marked as indirect.
                requirement.trim_end_matches(" // indirect") == pin
            };
            assert!(release.go_mod.lines().any(pinned), "{pin}");
            assert!(release.go_mod.contains(package), "no tool {package}");
        }
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flag = format!("gitVersion=v{} ", KUBERNETES.version);
        assert!(KUBERNETES.linker_flags.contains(&flag));
    }

    #[test]
    fn helm_is_told_its_version_and_that_of_the_kubernetes_it_knows() {
        let flag = format!("version.version=v{} ", HELM.version);
        assert!(HELM.linker_flags.contains(&flag));
        let client = HELM.go_mod.split("k8s.io/client-go v0.").nth(1).unwrap();
        let minor = client.split('.').next().unwrap();
        let flag = format!("k8sVersionMinor={minor}");
        assert_eq!(HELM.linker_flags.matches(&flag).count(), 2, "{flag}");
    }
}
