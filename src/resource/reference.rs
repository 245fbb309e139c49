//! Every field of the resource for people, in Markdown: `docs/reference.md`.
//!
//! Made of the schema that API servers get, so that neither can say what the other does not.

use kube::Resource;
use serde_json::{Map, Value};

use super::MongoMirror;
use super::crd;
use super::status::RequestKind;

/// The whole page.
pub fn markdown() -> String {
    let definition = serde_json::to_value(crd::definition())
        .expect("a definition made of plain structs is JSON");
    let version = &definition["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    let mut page = format!(
        "<!-- Written by `mongomirror crd --reference`; do not edit. -->\n\n\
         # Every field\n\n{}\n\n\
         `{}`, kind `{}`. `kubectl explain mongomirror.spec` says the same. What the status means, and what to do about it, is in \
         [status.md](status.md).\n",
        words(schema),
        MongoMirror::api_version(&()),
        MongoMirror::kind(&()),
    );
    for root in ["spec", "status"] {
        write_section(&mut page, root, &schema["properties"][root]);
    }
    write_annotations(&mut page);
    write_columns(&mut page, version);
    page
}

/// One object with its fields, then the objects in it.
fn write_section(page: &mut String, path: &str, schema: &Value) {
    let level = if path.contains('.') { "###" } else { "##" };
    *page += &format!(
        "\n{level} `{path}`\n\n{}\n\n| field | type | default | |\n|---|---|---|---|\n",
        words(schema)
    );
    let none = Map::new();
    let fields = schema["properties"].as_object().unwrap_or(&none);
    let mut said = String::new();
    for (name, field) in fields {
        let inner = format!("{path}.{name}");
        let default = match &field["default"] {
            Value::Null if !is_required(schema, name) => String::new(),
            // A status is written by the operator alone: nobody has to give its fields.
            Value::Null if path.starts_with("status") => "always there".to_owned(),
            Value::Null => "required".to_owned(),
            Value::Object(_) => String::new(),
            Value::String(text) if text.is_empty() => "empty".to_owned(),
            Value::String(text) => code(text),
            other => code(&other.to_string()),
        };
        let mut about = words(field);
        if let Some(pattern) = field["pattern"].as_str() {
            about += &format!(" Matches {}.", code(pattern));
        }
        *page += &row(&[&code(name), &kind(&inner, field), &default, &about]);
        for sentence in refusals(field) {
            said += &format!("- {}: {sentence}\n", code(name));
        }
    }
    for sentence in refusals(schema) {
        said += &format!("- {sentence}\n");
    }
    if !said.is_empty() {
        *page += &format!("\nAlso refused, with these words:\n\n{said}");
    }
    for (name, field) in fields {
        let inner = format!("{path}.{name}");
        if field["properties"].is_object() {
            write_section(page, &inner, field);
        } else if field["items"]["properties"].is_object() {
            write_section(page, &format!("{inner}[]"), &field["items"]);
        }
    }
}

/// What can be asked for.
fn write_annotations(page: &mut String) {
    *page += "\n## Annotations\n\n\
              [Each value is done once](api.md#asking-by-annotations); `status.requests` answers.\n\n\
              | annotation | value | |\n|---|---|---|\n";
    for kind in RequestKind::ALL {
        let (value, about) = match kind {
            RequestKind::Verify => (
                "any text".to_owned(),
                "Compare both sides, and put right what differs.",
            ),
            RequestKind::Resync => (
                "any text".to_owned(),
                "Begin anew over what the target holds: compare everything, write what differs.",
            ),
            RequestKind::Sync => (
                code(r#"{"collection": "…", "filter": {…}, "token": "…"}"#),
                "Put the documents right that match a filter in extended JSON. The token may be left out.",
            ),
        };
        let name = format!("{}/{}", MongoMirror::group(&()), kind.annotation());
        *page += &row(&[&code(&name), &value, about]);
    }
    let name = format!("{}/delete-target", MongoMirror::group(&()));
    let about =
        "Confirms `spec.deletionPolicy: DeleteTarget`; nothing is done before the deletion.";
    *page += &row(&[&code(&name), "the target database's name", about]);
}

/// What `kubectl get` shows, and what it can select by.
fn write_columns(page: &mut String, version: &Value) {
    *page += "\n## Columns of `kubectl get`\n\n| column | field | |\n|---|---|---|\n";
    for column in list(&version["additionalPrinterColumns"]) {
        let mut about = words(column);
        if column["priority"].as_i64().unwrap_or(0) > 0 {
            about += " With `-o wide`.";
        }
        let field = text(&column["jsonPath"]).trim_start_matches('.');
        *page += &row(&[&text(&column["name"]).to_uppercase(), &code(field), &about]);
    }
    let fields = list(&version["selectableFields"]).iter();
    let fields: Vec<_> = fields
        .map(|field| code(text(&field["jsonPath"]).trim_start_matches('.')))
        .collect();
    *page += &format!("\n`--field-selector` selects by {}.\n", fields.join(", "));
}

/// The type with its bounds.
fn kind(path: &str, schema: &Value) -> String {
    let choices: Vec<_> = list(&schema["enum"]).iter().map(text).map(code).collect();
    if !choices.is_empty() {
        return choices.join(", ");
    }
    let bounds = |least: &str, most: &str| (schema[least].as_f64(), schema[most].as_f64());
    match text(&schema["type"]) {
        "object" => format!("[object]({})", anchor(path)),
        "array" => {
            let (_, most) = bounds("minItems", "maxItems");
            let most = most.map_or(String::new(), |most| format!("at most {most} "));
            let keys: Vec<_> = list(&schema["x-kubernetes-list-map-keys"])
                .iter()
                .map(|key| format!(", one for each {}", code(text(key))))
                .collect();
            let items = &schema["items"];
            match items["properties"].is_object() {
                true => format!("list of {most}[objects]({}){}", anchor(path), keys.concat()),
                false => {
                    let items = kind(path, items).replacen("string", "strings", 1);
                    format!("list of {most}{items} each")
                }
            }
        }
        "string" if schema["format"] == "date-time" => "time".to_owned(),
        "string" => {
            let range = range(bounds("minLength", "maxLength"), " characters");
            format!("string{range}")
        }
        "integer" => format!("integer{}", range(bounds("minimum", "maximum"), "")),
        other => other.to_owned(),
    }
}

fn range(bounds: (Option<f64>, Option<f64>), unit: &str) -> String {
    match bounds {
        (Some(least), Some(most)) => format!(", {least} to {most}{unit}"),
        (Some(least), None) => format!(", at least {least}{unit}"),
        (None, Some(most)) => format!(", at most {most}{unit}"),
        (None, None) => String::new(),
    }
}

/// Where the section of that path is on the page.
fn anchor(path: &str) -> String {
    let letters = path.chars().filter(char::is_ascii_alphanumeric);
    format!("#{}", letters.collect::<String>().to_lowercase())
}

fn row(cells: &[&str]) -> String {
    let cells = cells.iter().map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// The description, in one line.
fn words(schema: &Value) -> String {
    let words: Vec<_> = text(&schema["description"]).split_whitespace().collect();
    words.join(" ")
}

/// What is said by rules of the API server.
fn refusals(schema: &Value) -> impl Iterator<Item = &str> {
    let rules = list(&schema["x-kubernetes-validations"]).iter();
    rules.map(|rule| text(&rule["message"]))
}

fn is_required(schema: &Value, name: &str) -> bool {
    list(&schema["required"]).iter().any(|one| one == name)
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_the_repository_is_the_generated_one() {
        assert!(
            include_str!("../../docs/reference.md") == markdown(),
            "docs/reference.md is out of date: run `make crds`, or \
             `mongomirror crd --reference > docs/reference.md`"
        );
    }

    #[test]
    fn links_lead_to_sections_and_rows_have_all_cells() {
        let page = markdown();
        let headings: Vec<_> = page
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(anchor)
            .collect();
        for link in page.split("](#").skip(1) {
            let link = format!("#{}", link.split(')').next().unwrap());
            assert!(headings.contains(&link), "{link} is not in {headings:?}");
        }
        let mut cells = 0;
        for line in page.lines().filter(|line| line.starts_with('|')) {
            let here = line.replace("\\|", "").matches('|').count();
            if line.starts_with("| field")
                || line.starts_with("| annotation")
                || line.starts_with("| column")
            {
                cells = here;
            }
            assert_eq!(here, cells, "{line}");
        }
    }
}
