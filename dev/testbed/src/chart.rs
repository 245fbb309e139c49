//! What is made from the chart: the tables of its README, and a manifest for those without Helm.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    Helm,
    error::{Context, Error, Result},
};

/// Between these lines the README belongs to [`readme`].
const BEGIN: &str = "<!-- Made from values.yaml by `make chart`; do not edit. -->\n";
const END: &str = "<!-- The end of what is made. -->\n";

/// Where the plain manifest puts the operator.
const NAMESPACE: &str = "mongomirror-system";

const MANIFEST_HEAD: &str = "\
# MongoMirror without Helm: kubectl apply -f mongomirror.yaml
# Made from charts/mongomirror by `make chart`; do not edit. Name your image in the Deployment.
---
apiVersion: v1
kind: Namespace
metadata:
  name: mongomirror-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
";

/// The README of the chart in `folder`, as it is there, with tables of what values.yaml says now.
pub fn readme(folder: &Path) -> Result<String> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).context(|| format!("read {}", path.display()))
    };
    let problem = |name: &str, problem: String| Error::Manifest {
        path: folder.join(name),
        problem,
    };
    let text = read("README.md")?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) =
        parts.ok_or_else(|| problem("README.md", format!("has no lines {BEGIN}{END}")))?;
    let tables = tables(&read("values.yaml")?).map_err(|what| problem("values.yaml", what))?;
    Ok(format!("{before}{BEGIN}{tables}{END}{after}"))
}

/// The chart in `folder` with its own values, for `kubectl apply`.
pub async fn manifest(folder: &Path) -> Result<String> {
    let helm = Helm::find().await?;
    let chart = folder.to_string_lossy();
    // Without Helm nothing is uninstalled, so there is nothing to keep; nor tested.
    let alone = ["--set", "crds.keep=false", "--skip-tests"];
    let template = ["template", "mongomirror", &*chart, "--namespace", NAMESPACE];
    let rendered = helm
        .run(&[&template[..], &alone].concat())
        .await?
        .checked()?;
    let of_helm = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("# Source: ")
            || line.starts_with("helm.sh/chart: ")
            || line == "app.kubernetes.io/managed-by: Helm"
    };
    let lines = rendered.lines().filter(|line| !of_helm(line));
    Ok(lines.fold(MANIFEST_HEAD.to_owned(), |text, line| {
        text + line.trim_end() + "\n"
    }))
}

/// A value on the way through values.yaml.
struct Open<'a> {
    indentation: usize,
    key: &'a str,
    /// It has a comment: what is within is part of its default.
    documented: bool,
}

/// One table for each `## ` comment: all values that have a comment. Whatever has none must hold
/// others that have one.
fn tables(values: &str) -> Result<String, String> {
    let parsed: Value = serde_saphyr::from_str(values).map_err(|error| error.to_string())?;
    let mut tables = String::new();
    let mut comment = String::new();
    let mut open: Vec<Open<'_>> = Vec::new();
    for line in values.lines() {
        let bare = line.trim_start();
        if let Some(title) = bare.strip_prefix("## ") {
            tables += &format!("\n### {title}\n\n| value | default | |\n|---|---|---|\n");
        } else if let Some(text) = bare.strip_prefix("# ") {
            comment += if comment.is_empty() { "" } else { " " };
            comment += text;
        } else if bare.is_empty() {
            comment.clear();
        } else {
            let indentation = line.len() - bare.len();
            open.retain(|it| it.indentation < indentation);
            if open.iter().any(|it| it.documented) {
                continue;
            }
            let Some((key, value)) = bare.split_once(':') else {
                return Err(format!("{bare}: no value"));
            };
            let documented = !comment.is_empty();
            let path = open.iter().map(|it| it.key).chain([key]);
            if documented {
                let default = path.clone().try_fold(&parsed, |value, key| value.get(key));
                let default = default.ok_or_else(|| format!("{key}: not found"))?;
                let path: Vec<_> = path.collect();
                tables += &format!("| `{}` | {} | {comment} |\n", path.join("."), show(default));
            } else if !value.trim().is_empty() {
                let path: Vec<_> = path.collect();
                return Err(format!("{} has no comment", path.join(".")));
            }
            comment.clear();
            open.push(Open {
                indentation,
                key,
                documented,
            });
        }
    }
    Ok(tables.trim_start().to_owned() + "\n")
}

fn show(default: &Value) -> String {
    match default {
        Value::Null => "none".into(),
        Value::String(text) if text.is_empty() => "empty".into(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Object(map) if map.is_empty() => "none".into(),
        other => format!("`{other}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_comment_becomes_a_row_and_what_is_within_it_its_default() {
        let values = "\
# Of the file.

## Image

image:
  # Which one.
  tag: \"\"
  # How
  # often.
  pull: Always
# Of it.
resources:
  limits:
    memory: 1Gi
## Rest

# Taints.
tolerations: []
ports:
  # TCP.
  dns: [53]
";
        let expected = "\
### Image

| value | default | |
|---|---|---|
| `image.tag` | empty | Which one. |
| `image.pull` | `Always` | How often. |
| `resources` | `{\"limits\":{\"memory\":\"1Gi\"}}` | Of it. |

### Rest

| value | default | |
|---|---|---|
| `tolerations` | none | Taints. |
| `ports.dns` | `[53]` | TCP. |

";
        assert_eq!(tables(values).unwrap(), expected);
    }

    #[test]
    fn a_value_without_a_comment_is_found() {
        let error = tables("a:\n  # Yes.\n  b: 1\n  c: 2\n").unwrap_err();
        assert_eq!(error, "a.c has no comment");
    }
}
