//! One mirror's life.
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::MirrorConfig;
use super::progress::Progress;

/// Runs the mirror until asked to stop.
pub async fn run(
    _config: MirrorConfig,
    _publish: watch::Sender<Progress>,
    stop: CancellationToken,
) {
    stop.cancelled().await;
}
