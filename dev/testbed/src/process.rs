//! A server process: started, signalled, ended by its id, and never left behind.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{
    error::{Context, Error, Result},
    spawn,
};

const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a server may take to end in its own way before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of a log is printed when a test panics: the last lines, each cut.
const TAIL_LINES: usize = 40;
const LINE_LIMIT: usize = 400;

/// How to start a server. Kept, so that it can be started again on the same data.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// What people call it, for example "mongod 1 of rs0".
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Where its output goes.
    pub(crate) log: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    paused: bool,
    /// Another program than the recipe's, with its environment.
    program: Option<(PathBuf, Vec<(OsString, OsString)>)>,
}

/// A server that can be started, signalled and started again.
#[derive(Debug)]
pub(crate) struct Server {
    recipe: Recipe,
    state: Mutex<State>,
}

impl Server {
    pub(crate) fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            state: Mutex::default(),
        }
    }

    /// A panic while the lock was held leaves nothing half-done: the state is two plain fields.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> &str {
        &self.recipe.name
    }

    pub(crate) fn log_path(&self) -> &Path {
        &self.recipe.log
    }

    /// Starts it, unless it runs already.
    pub(crate) fn start(&self) -> Result<()> {
        let mut state = self.state();
        if state.child.is_some() {
            return Ok(());
        }
        let Recipe {
            name,
            program,
            arguments,
            environment,
            log,
        } = &self.recipe;
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context(|| "share a log file".into())?;
        let (program, environment) = match &state.program {
            Some((program, environment)) => (program, environment),
            None => (program, environment),
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        state.child = Some(spawn::spawn(command).context(|| format!("start {name}"))?);
        state.paused = false;
        Ok(())
    }

    /// Lets another program do the same from the next start on.
    pub(crate) fn exchange(&self, program: PathBuf, environment: Vec<(OsString, OsString)>) {
        self.state().program = Some((program, environment));
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.state().child.as_ref().map(Child::id)
    }

    /// Runs, and is not paused: it can be expected to answer.
    pub(crate) fn answers(&self) -> bool {
        let state = self.state();
        state.child.is_some() && !state.paused
    }

    /// Fails if it ended although nobody asked it to.
    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.pid().is_none() {
            return Err(Error::NotRunning(self.recipe.name.clone()));
        }
        let Some(status) = self.ended()? else {
            return Ok(());
        };
        Err(Error::Died {
            what: self.recipe.name.clone(),
            status: status.to_string(),
            log: self.log_tail(),
        })
    }

    fn signal(&self, state: &State, signal: Signal) -> Result<()> {
        let child = state
            .child
            .as_ref()
            .ok_or_else(|| Error::NotRunning(self.recipe.name.clone()))?;
        send(child, signal).context(|| format!("send {signal} to {}", self.recipe.name))
    }

    /// Freezes it (SIGSTOP): connections stay open, nothing answers.
    pub(crate) fn pause(&self) -> Result<()> {
        let mut state = self.state();
        self.signal(&state, Signal::SIGSTOP)?;
        state.paused = true;
        Ok(())
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn resume(&self) -> Result<()> {
        let mut state = self.state();
        self.signal(&state, Signal::SIGCONT)?;
        state.paused = false;
        Ok(())
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub(crate) async fn kill(&self) -> Result<()> {
        self.signal(&self.state(), Signal::SIGKILL)?;
        self.wait_for_end().await
    }

    /// Ends it in its own way (SIGTERM); kills it if that takes too long.
    pub(crate) async fn stop(&self) -> Result<()> {
        {
            let state = self.state();
            self.signal(&state, Signal::SIGTERM)?;
            if state.paused {
                self.signal(&state, Signal::SIGCONT)?;
            }
        }
        match tokio::time::timeout(PATIENCE, self.wait_for_end()).await {
            Ok(ended) => ended,
            Err(_too_long) => self.kill().await,
        }
    }

    /// Waits until it has ended.
    pub(crate) async fn wait_for_end(&self) -> Result<()> {
        self.end().await.map(drop)
    }

    /// Waits until it ends; `None` if it did not run.
    async fn end(&self) -> Result<Option<ExitStatus>> {
        loop {
            if self.pid().is_none() {
                return Ok(None);
            }
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How it ended, if it has ended since it was last looked at.
    fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut state = self.state();
        let Some(child) = &mut state.child else {
            return Ok(None);
        };
        let status = poll(child, &self.recipe.name)?;
        if status.is_some() {
            state.child = None;
        }
        Ok(status)
    }

    /// The end of its log, cut to what a person reads.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.recipe.log)
    }

    /// The same under its name, for those who show several.
    pub(crate) fn named_log_tail(&self) -> String {
        format!("--- {}\n{}", self.recipe.name, self.log_tail())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            // `eprintln!` on purpose: the test harness shows it with the test that failed.
            eprintln!(
                "--- the end of the log of {}:\n{}",
                self.recipe.name,
                self.log_tail()
            );
        }
        if let Some(mut child) = self.state().child.take() {
            // It can fail only if the process has ended already; wait() settles both cases.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A program that a test or the demo runs: it ends with this process, however that ends.
#[derive(Debug)]
pub struct Process {
    server: Server,
    ended: Mutex<Option<ExitStatus>>,
}

impl Process {
    /// Starts a program; its output is added to the file `log`.
    pub fn start<A: Into<OsString>>(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        log: impl Into<PathBuf>,
    ) -> Result<Self> {
        let server = Server::new(Recipe {
            name: name.into(),
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: environment.into_iter().collect(),
            log: log.into(),
        });
        server.start()?;
        Ok(Self {
            server,
            ended: Mutex::default(),
        })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// How it ended, if it has ended.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            *ended = self.server.ended()?;
        }
        Ok(*ended)
    }

    /// Waits until it ends.
    pub async fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Freezes it (SIGSTOP).
    pub fn pause(&self) -> Result<()> {
        self.server.pause()
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.server.resume()
    }

    /// Ends it at once (SIGKILL). Returns when it is gone.
    pub async fn kill(&self) -> Result<()> {
        if self.ended()?.is_none() {
            self.server.signal(&self.server.state(), Signal::SIGKILL)?;
            self.wait().await?;
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM), and waits until it has; kills it if that takes too long.
    pub async fn stop(&self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.server.signal(&self.server.state(), Signal::SIGTERM)?;
        match tokio::time::timeout(PATIENCE, self.wait()).await {
            Ok(ended) => ended,
            Err(_too_long) => {
                self.server.signal(&self.server.state(), Signal::SIGKILL)?;
                self.wait().await
            }
        }
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.server.log_tail()
    }
}

fn poll(child: &mut Child, name: &str) -> Result<Option<ExitStatus>> {
    child.try_wait().context(|| format!("wait for {name}"))
}

fn send(child: &Child, signal: Signal) -> std::io::Result<()> {
    // Process ids of Linux are below 2^22, and a child that was not waited for keeps its own.
    let pid = Pid::from_raw(child.id() as i32);
    Ok(signal::kill(pid, signal)?)
}

fn log_tail(path: &Path) -> String {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("(no log: {error})"),
    };
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| match line.char_indices().nth(LINE_LIMIT) {
            Some((end, _)) => format!("{}…\n", &line[..end]),
            None => format!("{line}\n"),
        })
        .collect()
}

/// A moment until which something is waited for.
pub(crate) struct Deadline {
    begun: Instant,
    patience: Duration,
}

impl Deadline {
    pub(crate) fn after(patience: Duration) -> Self {
        Self {
            begun: Instant::now(),
            patience,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.patience
    }

    pub(crate) fn error(&self, what: impl Into<String>, reason: String, log: String) -> Error {
        Error::NotReady {
            what: what.into(),
            waited: self.begun.elapsed(),
            reason,
            log,
        }
    }
}
