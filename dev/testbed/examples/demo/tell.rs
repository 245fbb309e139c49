//! What the demo prints.

use std::{
    error::Error,
    io::{self, IsTerminal},
    sync::atomic::{AtomicU32, Ordering},
};

static STEPS: AtomicU32 = AtomicU32::new(0);

/// A headline.
pub fn step(title: &str) {
    let number = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("\n{}", bold(&format!("{number}. {title}")));
}

/// A sentence.
pub fn note(text: &str) {
    println!("{text}");
}

/// A command that is being run, as one would type it.
pub fn command(text: &str) {
    println!("\n{}", bold(&format!("$ {text}")));
}

/// What a command said.
pub fn output(text: &str) {
    for line in text.trim_end().lines() {
        println!("  {line}");
    }
}

/// Why the demo could not go on.
pub fn failure(error: &dyn Error) {
    eprintln!("\ndemo: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}

fn bold(text: &str) -> String {
    if io::stdout().is_terminal() {
        format!("\x1b[1m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
