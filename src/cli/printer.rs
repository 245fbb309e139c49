//! The one owner of what this program prints.

use std::error::Error;
use std::io::{self, IsTerminal, Write};

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;

/// Prints results to standard output; errors, the log and live lines to standard error.
#[derive(Clone)]
pub struct Printer {
    /// Live lines at the bottom of the terminal. What else is printed must go above them.
    live: MultiProgress,
    is_terminal: bool,
}

impl Printer {
    /// For this process's terminal, if it has one.
    pub fn new() -> Self {
        Self {
            live: MultiProgress::new(),
            is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Whether somebody looks at it.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// The live lines.
    pub fn live(&self) -> &MultiProgress {
        &self.live
    }

    /// Prints a result. A reader that went away is no error: it has seen enough.
    pub fn result(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Prints an error and its causes.
    pub fn error(&self, error: &dyn Error) {
        let mut text = format!("error: {error}\n");
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!("  because: {error}\n"));
            cause = error.source();
        }
        self.above_live(text.as_bytes());
    }

    fn above_live(&self, text: &[u8]) {
        // Nobody is left to tell that standard error is gone.
        let write = || {
            let _ = io::stderr().lock().write_all(text);
        };
        if self.is_terminal {
            self.live.suspend(write);
        } else {
            write();
        }
    }
}

impl<'w> MakeWriter<'w> for Printer {
    type Writer = Line<'w>;

    fn make_writer(&'w self) -> Self::Writer {
        Line(self)
    }
}

/// Takes one line of the log.
pub struct Line<'a>(&'a Printer);

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.above_live(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
