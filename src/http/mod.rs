//! The status API, what users ask of mirrors, health and metrics, over HTTP.

mod api;
mod metrics;
mod requests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::runner::readiness::Readiness;
use crate::runner::registry::Registry;

/// The server cannot run.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The address cannot be listened on.
    #[error("failed to listen on {address}: name a free address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The listener broke.
    #[error("the HTTP server ended")]
    Serve(#[source] io::Error),
}

/// What every request may see.
struct Shared {
    registry: Registry,
    readiness: watch::Receiver<Readiness>,
    metrics: prometheus_client::registry::Registry,
}

/// An address that is being listened on.
pub struct Server {
    listener: TcpListener,
    router: Router,
}

impl Server {
    /// Starts to listen. `readiness` says what `/readyz` answers, and whether another process has
    /// the mirrors.
    ///
    /// # Errors
    /// If the address is taken or not this machine's.
    pub async fn bind(
        address: SocketAddr,
        registry: Registry,
        readiness: watch::Receiver<Readiness>,
    ) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| HttpError::Listen { address, source })?;
        Ok(Self {
            listener,
            router: router(registry, readiness),
        })
    }

    /// The address, with the port that was chosen if port 0 was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), HttpError> {
        // No graceful shutdown: a reader that keeps its connection open must not hold up the end.
        tokio::select! {
            ended = axum::serve(self.listener, self.router).into_future() => {
                ended.map_err(HttpError::Serve)
            }
            () = stop.cancelled() => Ok(()),
        }
    }
}

fn router(registry: Registry, readiness: watch::Receiver<Readiness>) -> Router {
    let metrics = metrics::registry(registry.clone());
    let shared = Arc::new(Shared {
        registry,
        readiness,
        metrics,
    });
    Router::new()
        .route("/api/v1/mirrors", get(api::list))
        .route("/api/v1/mirrors/{namespace}/{name}", get(api::one))
        .route(
            "/api/v1/mirrors/{namespace}/{name}/sync",
            post(requests::sync),
        )
        .route(
            "/api/v1/mirrors/{namespace}/{name}/verify",
            post(requests::verify),
        )
        .route(
            "/api/v1/mirrors/{namespace}/{name}/resync",
            post(requests::resync),
        )
        .route(
            "/api/v1/mirrors/{namespace}/{name}/quarantine",
            get(api::quarantine),
        )
        .route_layer(from_fn_with_state(shared.clone(), unless_standby))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .fallback(|| async { api::error(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .with_state(shared)
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    match &*shared.readiness.borrow() {
        Readiness::Ready => "ok\n".into_response(),
        Readiness::Standby { .. } => "ok: standing by\n".into_response(),
        Readiness::Starting => {
            let text = "not ready: the mirrors to run are not known yet\n";
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// A process that stands by knows no mirrors; it must not look as if there were none.
async fn unless_standby(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let readiness = shared.readiness.borrow().clone();
    match readiness {
        Readiness::Standby { leader } => api::error(
            StatusCode::SERVICE_UNAVAILABLE,
            &match leader {
                Some(leader) => {
                    format!("this operator stands by; ask the one that leads: {leader}")
                }
                None => "this operator stands by, and none leads yet: try again".to_owned(),
            },
        ),
        _ => next.run(request).await,
    }
}

async fn metrics_text(State(shared): State<Arc<Shared>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => api::error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics cannot be written",
        ),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::engine::progress::Progress;
    use crate::runner::registry::MirrorKey;
    use crate::runner::registry::tests::listing;

    async fn get(address: SocketAddr, path: &str) -> String {
        exchange(
            address,
            format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        )
        .await
    }

    async fn post(address: SocketAddr, path: &str, body: &str) -> String {
        let request = format!(
            "POST /api/v1/mirrors/shop/{path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        exchange(address, request).await
    }

    async fn exchange(address: SocketAddr, request: String) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn every_path_answers() {
        let registry = Registry::default();
        registry.set(
            MirrorKey::new("shop", "orders"),
            listing(Progress::default()),
        );
        let (ready, is_ready) = watch::channel(Readiness::Starting);
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(local, registry, is_ready).await.unwrap();
        let address = server.address().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.serve(stop.clone()));

        for (path, status, part) in [
            ("/healthz", 200, "ok"),
            ("/readyz", 503, "not ready"),
            ("/metrics", 200, "mongomirror_enabled{"),
            (
                "/api/v1/mirrors",
                200,
                r#"{"mirrors":[{"namespace":"shop","#,
            ),
            (
                "/api/v1/mirrors/shop/orders",
                200,
                r#""dbName":"orders_backup""#,
            ),
            ("/api/v1/mirrors/shop/other", 404, r#"{"error":"#),
            ("/nowhere", 404, r#"{"error":"#),
            ("/api/v1/mirrors/shop/orders/verify", 405, ""),
        ] {
            let response = get(address, path).await;
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status}")),
                "{response}"
            );
            assert!(response.contains(part), "{response}");
        }
        for (path, body, status, part) in [
            ("orders/verify", "", 409, "when the phase is Mirroring"),
            ("other/verify", "", 404, "there is no mirror"),
            (
                "orders/sync",
                r#"{"collection": "c", "filter": {}}"#,
                409,
                "Mirroring",
            ),
            (
                "orders/sync",
                r#"{"collection": "c"}"#,
                400,
                "missing field",
            ),
            ("orders/sync", "nonsense", 400, "send JSON"),
        ] {
            let response = post(address, path, body).await;
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status}")),
                "{response}"
            );
            assert!(response.contains(part), "{response}");
        }
        ready.send_replace(Readiness::Ready);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        ready.send_replace(Readiness::Standby {
            leader: Some("other".into()),
        });
        for (path, status, part) in [
            ("/readyz", 200, "standing by"),
            ("/healthz", 200, "ok"),
            ("/metrics", 200, ""),
            ("/api/v1/mirrors", 503, "the one that leads: other"),
        ] {
            let response = get(address, path).await;
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status}")),
                "{response}"
            );
            assert!(response.contains(part), "{response}");
        }
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}
