//! What users asked the API server for, as it wrote down itself.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{ControlPlane, servers::flag};
use crate::error::{Context, Error, Result};

/// Who asked for what, of every request; no bodies.
const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n\
                      rules: [{level: Metadata}]\n";

/// A request, and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What was asked for: `get`, `list`, `watch`, `patch`, …
    pub verb: String,
    /// The API group; empty for the core.
    pub group: String,
    /// The resource, with the subresource behind a slash; empty if it was for none.
    pub resource: String,
    /// The namespace; empty if it was for all.
    pub namespace: String,
    /// The object's name; empty if it was for many.
    pub name: String,
    /// The path and the query.
    pub uri: String,
    /// The status code of the answer.
    pub code: u64,
    /// From when until when it was under way: times of RFC 3339 with microseconds, which sort.
    pub under_way: [String; 2],
}

/// The files that the API server reads and writes.
pub(super) struct Log {
    policy: PathBuf,
    file: PathBuf,
}

impl Log {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let policy = folder.join("audit-policy.yaml");
        fs::write(&policy, POLICY).context(|| format!("write {}", policy.display()))?;
        let file = folder.join("audit.log");
        Ok(Self { policy, file })
    }

    pub(super) fn arguments(&self) -> [OsString; 2] {
        [
            flag("audit-policy-file", &self.policy),
            flag("audit-log-path", &self.file),
        ]
    }

    fn requests_of(&self, user: &str) -> Result<Vec<Request>> {
        let file = &self.file;
        let text = fs::read_to_string(file).context(|| format!("read {}", file.display()))?;
        let mut requests = Vec::new();
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|it| it.ends_with('\n')) {
            let event: Value = serde_json::from_str(line).map_err(|error| Error::Manifest {
                path: file.clone(),
                problem: format!("not a line of JSON: {error}"),
            })?;
            if event["user"]["username"] == user {
                requests.push(request(&event));
            }
        }
        Ok(requests)
    }
}

fn request(event: &Value) -> Request {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(subresource) => format!("{}/{subresource}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    Request {
        verb: text(&event["verb"]),
        group: text(&object["apiGroup"]),
        resource,
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        uri: text(&event["requestURI"]),
        code: event["responseStatus"]["code"].as_u64().unwrap_or(0),
        under_way: [
            text(&event["requestReceivedTimestamp"]),
            text(&event["stageTimestamp"]),
        ],
    }
}

impl ControlPlane {
    /// What the operator's service account asked for so far; a watch once when it began, and once
    /// when it ended. Everything is there when the API server has been stopped.
    pub fn operator_requests(&self) -> Result<Vec<Request>> {
        let log = self.audit.as_ref().ok_or_else(|| Error::Unusable {
            what: "the audit log".into(),
            hint: "build the control plane with audit(true)".into(),
        })?;
        log.requests_of(&self.operator.user())
    }
}
