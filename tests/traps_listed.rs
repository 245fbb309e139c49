//! The list of traps (docs/traps.md) is complete, and the tests it names exist.

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every number of the catalogue.
fn numbers() -> BTreeSet<String> {
    let sections = [(1, 9), (2, 7), (3, 9), (5, 8), (6, 18), (7, 5)];
    let numbered = sections
        .into_iter()
        .flat_map(|(section, last)| (1..=last).map(move |n| format!("{section}.{n}")));
    let single = ["4", "8", "9"].map(str::to_owned);
    numbered.chain(single).collect()
}

#[test]
fn every_trap_is_listed_with_tests_that_exist() {
    let list = read("docs/traps.md");
    let mut listed = BTreeSet::new();
    for line in list.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, .., proof] = cells.as_slice() else {
            panic!("not a row: {line}");
        };
        if number.is_empty() || *number == "|" {
            continue;
        }
        assert!(listed.insert((*number).to_owned()), "{number} comes twice");
        let mut tests = 0;
        for name in proof.split('`').filter(|part| part.contains("::")) {
            let (file, test) = name.split_once("::").expect("file::test");
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
            let file = if root.join(file).is_dir() {
                read(&format!("tests/{file}/main.rs"))
            } else {
                read(&format!("tests/{file}.rs"))
            };
            assert!(
                file.contains(&format!("async fn {test}(")),
                "{number}: there is no {name}"
            );
            tests += 1;
        }
        assert!(tests > 0, "{number} has no test");
        for path in line.split('`').filter(|part| part.starts_with("engine/")) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path);
            assert!(path.exists(), "{number}: there is no {}", path.display());
        }
    }
    assert_eq!(listed, numbers());
}
