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

impl Account {
    /// What the API server calls it.
    pub(super) fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

impl ControlPlane {
    /// Applies the manifest `roles` (ClusterRoles, and Roles if the operator has some), binds
    /// all of them to the operator's service account, and writes a kubeconfig for it, with a
    /// token as a pod gets it. May be called again when the rules have changed.
    pub async fn operator_kubeconfig(&self, roles: &Path) -> Result<PathBuf> {
        self.grant(roles, None).await
    }

    /// The same, but ClusterRoles are bound in this namespace alone, which is made if need be.
    pub async fn operator_kubeconfig_in(&self, roles: &Path, only: &str) -> Result<PathBuf> {
        self.grant(roles, Some(only)).await
    }

    async fn grant(&self, roles: &Path, only: Option<&str>) -> Result<PathBuf> {
        let Account { namespace, name } = &self.operator;
        let namespaces = only.into_iter().chain([namespace.as_str()]);
        let mut there: Vec<Value> = namespaces
            .map(
                |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            )
            .collect();
        there.push(json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        }));
        self.apply(there).await?;
        let file = roles.to_string_lossy();
        let apply = ["apply", "-f", &file, "-n", namespace, "-o", "json"];
        let applied = self.kubectl(&apply).await?.checked()?;
        let bindings = self.bindings(&applied, roles, only)?;
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

    fn bindings(&self, applied: &str, roles: &Path, only: Option<&str>) -> Result<Vec<Value>> {
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
            .filter_map(|role| self.binding(role, only))
            .collect();
        if bindings.is_empty() {
            return Err(problem("holds neither a ClusterRole nor a Role".into()));
        }
        Ok(bindings)
    }

    fn binding(&self, role: &Value, only: Option<&str>) -> Option<Value> {
        let kind = role["kind"].as_str()?;
        let name = role["metadata"]["name"].as_str()?;
        if !matches!(kind, "ClusterRole" | "Role") {
            return None;
        }
        let Account {
            namespace,
            name: account,
        } = &self.operator;
        // A Role counts in its own namespace, a ClusterRole where it is bound.
        let (binding, place) = match (kind, only) {
            ("ClusterRole", Some(only)) => ("RoleBinding", json!(only)),
            ("ClusterRole", None) => ("ClusterRoleBinding", Value::Null),
            _ => ("RoleBinding", role["metadata"]["namespace"].clone()),
        };
        Some(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": binding,
            "metadata": {"name": format!("testbed-{name}"), "namespace": place},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name,
            },
            "subjects": [{
                "kind": "ServiceAccount", "name": account, "namespace": namespace,
            }],
        }))
    }
}
