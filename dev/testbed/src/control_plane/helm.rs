//! Runs helm.

use std::path::Path;

use tempfile::TempDir;
use tokio::process::Command;

use super::kubectl::{Output, run_to_its_end};
use crate::{error::Result, scratch, tools::kubernetes::Program};

/// helm, with a home of its own: repositories, plugins and settings of the user play no part.
pub struct Helm {
    program: std::path::PathBuf,
    home: TempDir,
}

impl Helm {
    /// Finds helm, building it if need be.
    pub async fn find() -> Result<Self> {
        Ok(Self {
            program: Program::Helm.fetch().await?,
            home: scratch::folder("helm")?,
        })
    }

    /// Runs it without a cluster (`lint`, `template`).
    pub async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let none = self.home.path().join("no-kubeconfig");
        self.run_as(&none, arguments).await
    }

    /// Runs it against the cluster of this kubeconfig.
    pub async fn run_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("KUBECONFIG", kubeconfig);
        for name in ["CACHE", "CONFIG", "DATA"] {
            let folder = self.home.path().join(name.to_lowercase());
            command.env(format!("HELM_{name}_HOME"), folder);
        }
        let what = format!("helm {}", arguments.join(" "));
        run_to_its_end(what, command, None).await
    }
}
