//! For tests: the process dies behind one of its writes to the API server, as if by `kill -9`.

/// A write to the API server was answered.
#[cfg(not(feature = "crash-points"))]
pub(super) fn written() {}

/// With the feature, `MONGOMIRROR_CRASH_API` says behind which write of the process that is.
#[cfg(feature = "crash-points")]
pub(super) fn written() {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static LEFT: LazyLock<AtomicI64> = LazyLock::new(|| {
        let armed = std::env::var("MONGOMIRROR_CRASH_API").ok();
        AtomicI64::new(armed.and_then(|nth| nth.parse().ok()).unwrap_or(0))
    });
    if LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
        eprintln!("crash point behind a write to the API server");
        std::process::abort();
    }
}
