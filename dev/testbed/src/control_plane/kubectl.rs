//! Runs kubectl, and programs like it.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::error::{Context, Error, Result};

/// What a program wrote, and whether it succeeded.
#[derive(Debug, Clone)]
#[must_use = "the program may have failed: look at `success`, or call checked()"]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Whether it ended with exit status 0.
    pub success: bool,
    status: ExitStatus,
    what: String,
}

impl Output {
    /// Its standard output, or an error with what it complained about.
    pub fn checked(self) -> Result<String> {
        if self.success {
            return Ok(self.stdout);
        }
        Err(Error::Failed {
            what: self.what,
            status: self.status,
            stderr: self.stderr,
        })
    }
}

pub(super) struct Kubectl {
    pub(super) program: PathBuf,
    /// Its cache of what the API server offers, which else it would keep in the user's home.
    pub(super) cache: PathBuf,
}

impl Kubectl {
    pub(super) async fn run(
        &self,
        kubeconfig: &Path,
        arguments: &[&str],
        input: Option<&str>,
    ) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", &self.cache);
        let what = format!("kubectl {}", arguments.join(" "));
        run_to_its_end(what, command, input).await
    }
}

pub(crate) async fn run_to_its_end(
    what: String,
    mut command: Command,
    input: Option<&str>,
) -> Result<Output> {
    let mut child = command
        .stdin(input.map_or_else(Stdio::null, |_| Stdio::piped()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context(|| format!("start {what}"))?;
    let pipe = child.stdin.take();
    let feed = async {
        if let (Some(mut pipe), Some(input)) = (pipe, input) {
            // It may refuse its arguments and not read: its exit status tells.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.context(|| format!("run {what}"))?;
    Ok(Output {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        success: output.status.success(),
        status: output.status,
        what,
    })
}
