//! Whether each value does what values are for: something.

use serde_json::{Value, json};

use super::{ALL, Chart, RELEASE, chart};

/// Parts that are off by themselves, so that what changes in them is seen, and replicas that a budget
/// can be for.
const BASE: &str = "
replicas: 2
serviceAccount: {name: base}
networkPolicy: {enabled: true}
podDisruptionBudget: {enabled: true}
";

/// Every value that has a comment, by its path.
fn paths() -> Vec<String> {
    let readme = std::fs::read_to_string(chart().join("README.md")).unwrap();
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let paths = rows.map(|row| row.split_once('`').unwrap().0.to_owned());
    paths.collect()
}

/// Another value than the default.
fn other(path: &str, all: &Value) -> Value {
    match path {
        "crds.install" | "rbac.create" | "rbac.aggregate" => json!(false),
        "serviceAccount.create" | "service.enabled" => json!(false),
        "networkPolicy.enabled" | "podDisruptionBudget.enabled" | "test.enabled" => json!(false),
        "podDisruptionBudget.minAvailable" => json!("50%"),
        "podDisruptionBudget.maxUnavailable" => json!("60%"),
        "podSecurityContext" => json!({"runAsUser": 1000}),
        "securityContext" => json!({"procMount": "Default"}),
        _ => {
            let found = path.split('.').try_fold(all, |value, key| value.get(key));
            found
                .unwrap_or_else(|| panic!("give {path} a value in ALL"))
                .clone()
        }
    }
}

#[tokio::test]
async fn every_value_changes_something() {
    let chart_folder = chart();
    let chart_folder = chart_folder.to_string_lossy();
    let all: Value = serde_saphyr::from_str(ALL).unwrap();
    let chart = Chart::new().await;
    let base = chart.values(BASE);
    let template = ["template", RELEASE, &*chart_folder, "-f", &*base];
    let render = async |more: &[&str]| {
        let rendered = chart.helm.run(&[&template[..], more].concat()).await;
        rendered.unwrap().checked().unwrap()
    };
    let before = render(&[]).await;
    let paths = paths();
    assert!(paths.len() > 50, "{paths:?}");
    for path in paths {
        let set = format!("{path}={}", other(&path, &all));
        let after = render(&["--set-json", &set]).await;
        assert!(after != before, "{set} changes nothing");
    }
}
