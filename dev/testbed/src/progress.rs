//! Tells people on stderr what takes long.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Context, Error, Result},
    spawn,
};

/// How often a long step says that it is still at it.
const TELL_EVERY: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much of a failed program's output an error carries.
const TAIL: u64 = 4_000;

/// Writes one line to stderr. Not `eprintln!`: the test harness would hold the line back until
/// the test has failed, and a first build of Kubernetes would look like a hang.
pub(crate) fn say(line: &str) {
    // Nobody can be told that stderr is closed.
    let _ = writeln!(io::stderr(), "testbed: {line}");
}

/// Reminds, every now and then, that a step is still going on.
pub(crate) struct Reminder {
    what: String,
    begun: Instant,
    said: Instant,
}

impl Reminder {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let now = Instant::now();
        Self {
            what: what.into(),
            begun: now,
            said: now,
        }
    }

    pub(crate) fn tick(&mut self) {
        if self.said.elapsed() >= TELL_EVERY {
            self.said = Instant::now();
            say(&format!(
                "still {} ({} s)",
                self.what,
                self.begun.elapsed().as_secs()
            ));
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// Runs `command` to its end and keeps people informed meanwhile.
pub(crate) fn run(what: &str, mut command: Command) -> Result<()> {
    say(what);
    let mut output = tempfile::tempfile().context(|| "make a temporary file".into())?;
    let handle = |file: &File| file.try_clone().context(|| "share a file".into());
    command
        .stdin(Stdio::null())
        .stdout(handle(&output)?)
        .stderr(handle(&output)?);
    let mut child = spawn::spawn(command).context(|| format!("start: {what}"))?;
    let mut reminder = Reminder::new(what);
    let status = loop {
        if let Some(status) = child.try_wait().context(|| format!("wait for: {what}"))? {
            break status;
        }
        reminder.tick();
        thread::sleep(LOOK_EVERY);
    };
    if status.success() {
        say(&format!(
            "{what}: done in {} s",
            reminder.elapsed().as_secs()
        ));
        return Ok(());
    }
    Err(Error::Failed {
        what: what.into(),
        status,
        stderr: tail(&mut output).unwrap_or_default(),
    })
}

fn tail(file: &mut File) -> io::Result<String> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
