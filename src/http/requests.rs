//! What users ask of a running mirror: documents put right now, both sides compared now.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bson::Document;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::Shared;
use super::api::{error, verification_result};
use crate::engine::request::{Refusal, Request, ask};
use crate::runner::registry::MirrorKey;

/// Longest wait for the documents of one request.
const SYNC_LIMIT: Duration = Duration::from_secs(300);

/// Longest wait for a verification; it goes on, and its result is shown by the mirror.
const VERIFY_LIMIT: Duration = Duration::from_secs(3600);

/// Longest wait until a resync is planned.
const RESYNC_LIMIT: Duration = Duration::from_secs(300);

/// Which documents.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncBody {
    collection: String,
    /// A MongoDB filter, in extended JSON.
    filter: Document,
}

/// `POST /api/v1/mirrors/{namespace}/{name}/sync`
pub async fn sync(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
    body: Result<Json<SyncBody>, JsonRejection>,
) -> Response {
    let Json(SyncBody { collection, filter }) = match body {
        Ok(body) => body,
        Err(rejection) => {
            let message = format!(
                "{}; send JSON such as {{\"collection\": \"orders\", \"filter\": {{\"_id\": 7}}}} \
                 with Content-Type: application/json",
                rejection.body_text()
            );
            return error(StatusCode::BAD_REQUEST, &message);
        }
    };
    let request = |done| Request::Sync {
        collection,
        filter,
        done,
    };
    match answered(
        &shared,
        namespace,
        name,
        request,
        (SYNC_LIMIT, Refusal::NotMirroring),
    )
    .await
    {
        Ok(synced) => Json(synced).into_response(),
        Err(response) => response,
    }
}

/// `POST /api/v1/mirrors/{namespace}/{name}/verify`
pub async fn verify(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let request = |done| Request::Verify { done };
    match answered(
        &shared,
        namespace,
        name,
        request,
        (VERIFY_LIMIT, Refusal::NotMirroring),
    )
    .await
    {
        Ok(result) => Json(verification_result(&result)).into_response(),
        Err(response) => response,
    }
}

/// `POST /api/v1/mirrors/{namespace}/{name}/resync`
pub async fn resync(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let request = |done| Request::Resync { done };
    match answered(
        &shared,
        namespace,
        name,
        request,
        (RESYNC_LIMIT, Refusal::NotRunning),
    )
    .await
    {
        Ok(()) => (StatusCode::ACCEPTED, Json(json!({ "begun": true }))).into_response(),
        Err(response) => response,
    }
}

async fn answered<T>(
    shared: &Shared,
    namespace: String,
    name: String,
    request: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Request,
    (limit, at_rest): (Duration, Refusal),
) -> Result<T, Response> {
    let key = MirrorKey::new(namespace, name);
    let requests = shared
        .registry
        .requests(&key)
        .map_err(|known| match known {
            true => refused(&at_rest),
            false => super::api::not_found(&key),
        })?;
    match tokio::time::timeout(limit, ask(&requests, request)).await {
        Ok(outcome) => outcome.map_err(|refusal| refused(&refusal)),
        Err(_) => Err(error(
            StatusCode::GATEWAY_TIMEOUT,
            "it is not done yet; look at the mirror later",
        )),
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::NotFound(_) => StatusCode::NOT_FOUND,
        Refusal::Copying(_) | Refusal::NotMirroring | Refusal::NotRunning => StatusCode::CONFLICT,
        Refusal::Code(_) | Refusal::NotByDocument(_) => StatusCode::BAD_REQUEST,
        Refusal::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    error(status, &refusal.to_string())
}
