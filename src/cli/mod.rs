//! The commands. One file each; what they print goes through one [`Printer`].

mod display;
mod follow;
mod manifest;
mod operator;
mod printer;
mod ready;
mod roles;
mod run;
mod signals;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::resource::{crd, reference};
use crate::telemetry::{self, LogFormat};
use printer::Printer;

/// Keeps a second MongoDB database exactly equal to the first, live.
///
/// A mirror copies its source database once, then follows it: the target is, at every moment,
/// exactly what the source was at a known time. Mirrors are described by MongoMirror manifests,
/// run either by the operator in a Kubernetes cluster or by `run` anywhere.
#[derive(Parser)]
#[command(name = "mongomirror", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    /// The form of log lines. What is logged is chosen with RUST_LOG.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "MONGOMIRROR_LOG_FORMAT",
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    Operator(operator::Arguments),
    Run(run::Arguments),
    Ready(ready::Arguments),
    Roles(roles::Arguments),
    /// Print the CustomResourceDefinition.
    ///
    /// Apply it before the operator: mongomirror crd | kubectl apply -f -
    Crd {
        /// Print what each field is for instead, in Markdown.
        #[arg(long)]
        reference: bool,
    },
}

/// Runs the command that the process was started with.
///
/// Ends with 0 when it is done or was asked to end, 1 when it failed, 2 when it was not
/// understood.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let printer = Printer::new();
    telemetry::init(arguments.log_format, printer.is_terminal(), printer.clone());
    match execute(arguments.command, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&*error);
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command, printer: &Printer) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Operator(arguments) => {
            until_stopped(async |stop| operator::execute(arguments, stop).await)
        }
        Command::Run(arguments) => {
            until_stopped(async |stop| run::execute(arguments, printer, stop).await)
        }
        Command::Ready(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(ready::execute(&arguments, printer))?)
        }
        Command::Roles(arguments) => {
            roles::execute(&arguments, printer);
            Ok(())
        }
        Command::Crd { reference } => {
            printer.result(&match reference {
                true => reference::markdown(),
                false => crd::yaml(),
            });
            Ok(())
        }
    }
}

/// Runs what ends when it is asked to.
fn until_stopped(
    work: impl AsyncFnOnce(CancellationToken) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async { work(signals::stop_token()?).await });
    // Everything worth waiting for was waited for.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
