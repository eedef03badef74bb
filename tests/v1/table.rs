//! `README.md` lists every requirement with tests that cover it: here that is checked against the sources. Tests that are
//! not listed are no fault, so that whoever adds one need not touch the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The numbers of the specification, as ranges.
const NUMBERS: [(u32, u32); 15] = [
    (1, 8),
    (10, 12),
    (20, 24),
    (30, 32),
    (40, 44),
    (50, 51),
    (60, 73),
    (80, 82),
    (90, 105),
    (110, 114),
    (120, 123),
    (130, 131),
    (140, 145),
    (150, 154),
    (160, 162),
];

/// Names of tests below `folder`, from `fn r_…(`; several numbers may begin one name.
fn tests_in(folder: &Path, found: &mut BTreeSet<String>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            tests_in(&path, found);
            continue;
        }
        if path.extension().is_none_or(|kind| kind != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) = line.trim_start_matches("async ").strip_prefix("fn ") {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if is_test && name.starts_with("r_") {
                    found.insert(name);
                }
                is_test = false;
            }
        }
    }
}

/// The numbers at the beginning of a name: `r_21_r_22_text` has 21 and 22.
fn numbers_of(name: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut rest = name;
    while let Some(after) = rest.strip_prefix("r_") {
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        let Ok(number) = digits.parse() else { break };
        numbers.push(number);
        rest = after[digits.len()..].trim_start_matches('_');
    }
    numbers
}

/// The lines `| R-1 | tests |`.
fn table() -> BTreeMap<u32, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/v1/README.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| R-")?.split_once(" | "));
    rows.map(|(number, tests)| (number.parse().unwrap(), tests.to_owned())).collect()
}

#[test]
fn the_table_is_complete() {
    let wanted: BTreeSet<u32> = NUMBERS.iter().flat_map(|(low, high)| *low..=*high).collect();
    let table = table();
    assert_eq!(table.keys().copied().collect::<BTreeSet<_>>(), wanted);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    tests_in(&root.join("src"), &mut found);
    tests_in(&root.join("tests"), &mut found);
    let mut wrong = Vec::new();
    for (number, row) in &table {
        let listed: BTreeSet<&str> = row.split('`').filter(|piece| piece.starts_with("r_")).collect();
        let there: BTreeSet<&str> =
            found.iter().filter(|name| numbers_of(name).contains(number)).map(String::as_str).collect();
        if there.is_empty() {
            wrong.push(format!("R-{number} has no test"));
        }
        for name in listed.difference(&there) {
            wrong.push(format!("R-{number}: the table has {name}, and there is no such test"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
