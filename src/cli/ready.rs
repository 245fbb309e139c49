//! `mongomirror ready`

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{StatusCode, Uri};
use hyper_util::client::legacy::{self, Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use thiserror::Error;

use super::printer::Printer;

const PATH: &str = "/readyz";
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(250);
/// For one answer; a connection may lead to a pod that is just going away.
const ONE: Duration = Duration::from_secs(2);
/// Much longer than what an operator says.
const LONGEST: usize = 4096;

/// Ask an operator whether it is ready.
///
/// Prints what it says. Ends with 0 as soon as it is ready or stands by, with 1 if it is neither in
/// time. The chart's `helm test` runs this in a pod.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the operator, or `run`, serves its status API.
    #[arg(default_value = "http://127.0.0.1:8080", value_parser = url, value_name = "URL")]
    url: Uri,

    /// For how long it is asked again, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
}

/// The operator's own address, with the path to ask.
fn url(text: &str) -> Result<Uri, String> {
    let url: Uri = format!("{}{PATH}", text.trim_end_matches('/'))
        .parse()
        .map_err(|error| format!("{error}"))?;
    match url.scheme_str() {
        Some("http") => Ok(url),
        _ => Err("write it as http://HOST:PORT".into()),
    }
}

/// Why it does not count as ready.
#[derive(Debug, Error)]
pub enum ReadyError {
    /// Of its address, or of the network.
    #[error("nothing answers at {url}: look whether an operator runs and is ready there")]
    Silent {
        url: Uri,
        /// None if all that came was silence.
        source: Option<legacy::Error>,
    },
    /// By its own words.
    #[error("the operator says at {url}: {said}")]
    NotReady { url: Uri, said: String },
    /// Something else has the address.
    #[error("who answers at {url} is no operator: it says {status}")]
    Stranger { url: Uri, status: StatusCode },
}

pub async fn execute(arguments: &Arguments, printer: &Printer) -> Result<(), ReadyError> {
    let limit = Duration::from_secs(arguments.timeout);
    let said = becomes_ready(&arguments.url, limit).await?;
    printer.result(&format!("{said}\n"));
    Ok(())
}

/// What an operator says when it is ready; or the last reason why it was not.
async fn becomes_ready(url: &Uri, limit: Duration) -> Result<String, ReadyError> {
    // Each time whichever pod the Service has then.
    let mut client = Client::builder(TokioExecutor::new());
    let client = client.pool_max_idle_per_host(0).build_http();
    let mut last = None;
    let asked = async {
        loop {
            match tokio::time::timeout(ONE, ask(&client, url)).await {
                Ok(Ok(said)) => return said,
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let said = tokio::time::timeout(limit, asked).await;
    said.map_err(|_| {
        let (url, source) = (url.clone(), None);
        last.unwrap_or(ReadyError::Silent { url, source })
    })
}

async fn ask(client: &Client<HttpConnector, Body>, url: &Uri) -> Result<String, ReadyError> {
    let answer = client.get(url.clone()).await;
    let answer = answer.map_err(|error| ReadyError::Silent {
        url: url.clone(),
        source: Some(error),
    })?;
    let status = answer.status();
    let text = to_bytes(Body::new(answer.into_body()), LONGEST).await;
    let said = String::from_utf8_lossy(&text.unwrap_or_default())
        .trim()
        .to_owned();
    let url = url.clone();
    match status {
        StatusCode::OK if said.starts_with("ok") => Ok(said),
        StatusCode::SERVICE_UNAVAILABLE => Err(ReadyError::NotReady { url, said }),
        _ => Err(ReadyError::Stranger { url, status }),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::net::{SocketAddr, TcpListener};

    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::http::Server;
    use crate::runner::readiness::Readiness;
    use crate::runner::registry::Registry;

    const SOON: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(30);

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn at(address: SocketAddr) -> Uri {
        url(&format!("http://{address}/")).unwrap()
    }

    async fn serve(is_ready: watch::Receiver<Readiness>) -> Uri {
        let server = Server::bind(local(), Registry::default(), is_ready);
        let server = server.await.unwrap();
        let url = at(server.address().unwrap());
        tokio::spawn(server.serve(CancellationToken::new()));
        url
    }

    #[tokio::test]
    async fn an_operator_that_becomes_ready_is_waited_for() {
        let (ready, is_ready) = watch::channel(Readiness::Starting);
        let url = serve(is_ready).await;
        let error = becomes_ready(&url, SOON).await.unwrap_err().to_string();
        let why = "not ready: the mirrors to run are not known yet";
        assert_eq!(error, format!("the operator says at {url}: {why}"));

        let soon = async {
            tokio::time::sleep(SOON).await;
            ready.send_replace(Readiness::Ready);
        };
        let (said, ()) = tokio::join!(becomes_ready(&url, LONG), soon);
        assert_eq!(said.unwrap(), "ok");
        ready.send_replace(Readiness::Standby { leader: None });
        assert_eq!(becomes_ready(&url, LONG).await.unwrap(), "ok: standing by");
    }

    #[tokio::test]
    async fn silence_and_strangers_are_told_apart() {
        // Takes connections, and never answers.
        let silent = TcpListener::bind(local()).unwrap();
        let url = at(silent.local_addr().unwrap());
        let error = becomes_ready(&url, SOON).await.unwrap_err();
        assert!(error.to_string().starts_with("nothing answers"), "{error}");
        assert!(error.source().is_none());

        drop(silent);
        let error = becomes_ready(&url, SOON).await.unwrap_err();
        assert!(error.to_string().starts_with("nothing answers"), "{error}");
        assert!(error.source().is_some(), "it was refused");

        let (_ready, is_ready) = watch::channel(Readiness::Ready);
        let served = serve(is_ready).await;
        let elsewhere = format!("http://{}/other", served.authority().unwrap());
        let error = becomes_ready(&super::url(&elsewhere).unwrap(), SOON).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.ends_with("is no operator: it says 404 Not Found"),
            "{error}"
        );
    }

    #[test]
    fn an_address_is_a_url_of_plain_http() {
        assert_eq!(
            url("http://m.shop:8080").unwrap(),
            "http://m.shop:8080/readyz"
        );
        for wrong in ["m.shop:8080", "m", "https://m.shop", "http://", ""] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }
}
