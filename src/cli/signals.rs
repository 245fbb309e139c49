//! Being asked to end.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or Ctrl-C. The second one kills.
///
/// # Errors
/// If the system refuses to hand over signals.
pub fn stop_token() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    tokio::spawn(async move {
        for time in 1.. {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "Ctrl-C",
            };
            if time > 1 {
                tracing::warn!("{name} again: ending at once");
                #[expect(clippy::exit, reason = "the second signal means: at once")]
                std::process::exit(1);
            }
            tracing::info!("{name}: finishing the batches in hand, then ending");
            cancel.cancel();
        }
    });
    Ok(stop)
}
