//! The operator's rights: exactly the rules that its chart asks for, so that a missing
//! permission is found by a test and not by a user.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ControlPlane;
use crate::error::{Error, Result};

/// Longer than any test, bench or demo.
const TOKEN_LIFE: &str = "--duration=48h";

/// The operator's service account.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl ControlPlane {
    /// Applies the manifest `roles` (ClusterRoles, and Roles if the operator has some), binds
    /// all of them to the operator's service account, and writes a kubeconfig for it, with a
    /// token as a pod gets it. May be called again when the rules have changed.
    pub async fn operator_kubeconfig(&self, roles: &Path) -> Result<PathBuf> {
        let Account { namespace, name } = &self.operator;
        self.apply(vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
            json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": namespace},
            }),
        ])
        .await?;
        let file = roles.to_string_lossy();
        let apply = ["apply", "-f", &file, "-n", namespace, "-o", "json"];
        let applied = self.kubectl(&apply).await?.checked()?;
        let bindings = self.bindings(&applied, roles)?;
        let create = ["create", "token", name, "-n", namespace, TOKEN_LIFE];
        let ((), token) = tokio::try_join!(self.apply(bindings), self.kubectl(&create))?;
        let token = token.checked()?;
        self.identities
            .token_kubeconfig("operator", token.trim(), namespace)
    }

    async fn apply(&self, items: Vec<Value>) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let output = self.kubectl_stdin(&["apply", "-f", "-"], &list).await?;
        output.checked().map(drop)
    }

    fn bindings(&self, applied: &str, roles: &Path) -> Result<Vec<Value>> {
        let problem = |problem: String| Error::Manifest {
            path: roles.into(),
            problem,
        };
        let applied: Value = serde_json::from_str(applied)
            .map_err(|error| problem(format!("kubectl's answer is not JSON: {error}")))?;
        // kubectl answers with the object, or with a list if the file holds several.
        let objects = match applied["items"].as_array() {
            Some(items) => items.as_slice(),
            None => std::slice::from_ref(&applied),
        };
        let bindings: Vec<Value> = objects
            .iter()
            .filter_map(|role| self.binding(role))
            .collect();
        if bindings.is_empty() {
            return Err(problem("holds neither a ClusterRole nor a Role".into()));
        }
        Ok(bindings)
    }

    fn binding(&self, role: &Value) -> Option<Value> {
        let kind = role["kind"].as_str()?;
        let name = role["metadata"]["name"].as_str()?;
        if !matches!(kind, "ClusterRole" | "Role") {
            return None;
        }
        let Account {
            namespace,
            name: account,
        } = &self.operator;
        Some(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": format!("{kind}Binding"),
            "metadata": {
                "name": format!("testbed-{name}"),
                "namespace": role["metadata"]["namespace"],
            },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name,
            },
            "subjects": [{
                "kind": "ServiceAccount", "name": account, "namespace": namespace,
            }],
        }))
    }
}
