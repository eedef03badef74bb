//! The rules of the source tree that the compiler does not know: who may know whom, and where what may be named.
//!
//! Both tables are below. A violation fails with file, line and rule. The source is cut into tokens (comments and
//! strings dropped, what is only compiled for tests skipped); macros and inline modules are not resolved, which is
//! enough for the way this code is written.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that fails is a failed test")]

#[allow(unreachable_pub, reason = "a part of this program")]
#[path = "tidy/scanner.rs"]
mod scanner;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use scanner::{Source, Token, root, shipped, sources, starts_with, test_files, tokens, without_tests};

/// A line knows only lines below it; modules on one line do not know each other. `src/lib.rs` explains them.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["server"],
    &["config", "http", "data_folder"],
    &["executor"],
    &["pool", "build"],
    &["adapter", "link", "transport", "state", "storage"],
    &["instance"],
    &["function"],
    &["runtime", "state_key", "lifecycle"],
    &["archive", "execution", "headers", "task", "telemetry", "units"],
];

/// What the table above does not allow and is right all the same: file, module, why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Tokens that may stand only below the given paths, and why.
const CONFINED: &[(&[&str], &[&str], &str)] = &[
    (&["bollard"], &["src/adapter/docker/"], "the core does not know Docker"),
    (&["rusqlite"], &["src/state/sqlite/"], "each database driver is known in its own folder only"),
    (&["tokio_postgres"], &["src/state/postgres/"], "each database driver is known in its own folder only"),
    (&["deadpool"], &["src/state/postgres/"], "each database driver is known in its own folder only"),
    (
        &["redis", "::"],
        &["src/state/redis/", "src/state/mod.rs"],
        "each database driver is known in its own folder only",
    ),
    (&["object_store"], &["src/storage/"], "only the storage knows S3"),
    (&["axum"], &["src/http/", "src/server.rs"], "only the front knows the web framework"),
    (&["clap"], &["src/cli/", "src/config/"], "only the command line knows clap"),
    (&["anyhow"], &["src/main.rs", "src/cli/"], "errors below the command line can be told apart"),
    (&["StatusCode"], &["src/http/", "src/cli/"], "the core does not know HTTP's status codes"),
    (&["tokio", "::", "spawn"], &["src/task.rs"], "every task has an owner: use Tasks"),
    (&["task", "::", "spawn"], &["src/task.rs"], "every task has an owner: use Tasks"),
    (&["spawn_local"], &[], "every task has an owner: use Tasks"),
    (&["TaskTracker"], &["src/task.rs"], "every task has an owner: use Tasks"),
    (&["JoinSet"], &["src/task.rs"], "every task has an owner: use Tasks"),
    (&["println", "!"], &["src/cli/"], "only the command line prints"),
    (&["eprintln", "!"], &["src/cli/"], "only the command line prints"),
    (&["print", "!"], &["src/cli/"], "only the command line prints"),
    (&["eprint", "!"], &["src/cli/"], "only the command line prints"),
    (&["env", "::", "var"], &["src/config/"], "only config reads the environment"),
    (&["env", "::", "vars"], &["src/config/"], "only config reads the environment"),
    (&["env", "::", "var_os"], &["src/config/"], "only config reads the environment"),
    (&["env", "::", "vars_os"], &["src/config/"], "only config reads the environment"),
    (&["unwrap", "(", ")"], &[], "say what is known with expect, or handle it"),
];

const MOST_LINES: usize = 600;
const MANY_LINES: usize = 400;

fn fail_if_any(violations: &BTreeSet<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.iter().cloned().collect::<Vec<_>>().join("\n"));
}

/// `src/adapter/docker/mod.rs` is `[adapter, docker]`.
fn module_of(path: &str) -> Vec<&str> {
    let inner = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    let mut parts: Vec<_> = inner.split('/').collect();
    if matches!(parts.last(), Some(&("mod" | "lib" | "main"))) {
        parts.pop();
    }
    parts
}

/// The top-level modules that the path of modules after `crate::` or enough `super::` names, groups included.
fn named_after(tokens: &[Token]) -> Vec<&Token> {
    if !starts_with(tokens, &["{"]) {
        return tokens.first().into_iter().collect();
    }
    let (mut depth, mut names) = (0, Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        match &*token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if depth == 1 && matches!(&*tokens[at - 1].text, "{" | ",") => names.push(token),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Every top-level module this file names, with the line.
fn uses(source: &Source) -> Vec<(String, usize)> {
    let depth = module_of(&source.path).len();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < source.tokens.len() {
        let start = at;
        at += 1;
        let rest = &source.tokens[start..];
        let goes_on = start > 0 && source.tokens[start - 1].text == "::";
        let skip = if starts_with(rest, &["crate", "::"]) {
            2
        } else if starts_with(rest, &["super", "::"]) && !goes_on {
            let supers = rest.chunks(2).take_while(|pair| starts_with(pair, &["super", "::"])).count();
            if supers < depth {
                continue;
            }
            2 * supers
        } else {
            continue;
        };
        found.extend(named_after(&rest[skip..]).into_iter().map(|token| (token.text.clone(), token.line)));
    }
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|line| line.contains(&module))
}

/// Checks one file's imports; the exceptions that it needed go into `needed`.
fn check_imports(source: &Source, needed: &mut BTreeSet<usize>) -> BTreeSet<String> {
    let mut violations = BTreeSet::new();
    let module = module_of(&source.path).first().copied().unwrap_or_default().to_owned();
    if module.is_empty() {
        return violations;
    }
    let Some(own) = layer(&module) else {
        return BTreeSet::from([format!("{}:1: `{module}` has no place in LAYERS", source.path)]);
    };
    for (named, line) in uses(source) {
        let Some(other) = layer(&named) else { continue };
        if named == module || other > own {
            continue;
        }
        if let Some(at) = EXCEPTIONS.iter().position(|(file, to, _)| *file == source.path && *to == named) {
            needed.insert(at);
            continue;
        }
        let why = if other == own { "which is on its own line" } else { "which is above it" };
        violations.insert(format!("{}:{line}: `{module}` may not know `{named}`, {why}", source.path));
    }
    violations
}

fn check_confinement(source: &Source) -> BTreeSet<String> {
    let mut violations = BTreeSet::new();
    for (at, token) in source.tokens.iter().enumerate() {
        for (texts, allowed, why) in CONFINED {
            if starts_with(&source.tokens[at..], texts)
                && !allowed.iter().any(|path| source.path.starts_with(path))
            {
                let place = if allowed.is_empty() {
                    "nowhere".into()
                } else {
                    format!("only in {}", allowed.join(", "))
                };
                violations.insert(format!(
                    "{}:{}: `{}` {place}: {why}",
                    source.path,
                    token.line,
                    texts.concat()
                ));
            }
        }
    }
    violations
}

#[test]
fn a_line_of_modules_knows_only_lines_below_it() {
    let mut needed = BTreeSet::new();
    let mut violations: BTreeSet<_> =
        shipped().iter().flat_map(|source| check_imports(source, &mut needed)).collect();
    for (at, (file, module, _)) in EXCEPTIONS.iter().enumerate() {
        if !needed.contains(&at) {
            violations.insert(format!("{file}:1: the exception for `{module}` is not needed any more"));
        }
    }
    fail_if_any(&violations);
}

#[test]
fn what_is_confined_is_named_only_where_it_may_be() {
    fail_if_any(&shipped().iter().flat_map(check_confinement).collect());
}

/// The map for people in `src/lib.rs` may be coarser than the table, but it must not say anything else.
#[test]
fn the_map_in_lib_rs_shows_every_module_in_the_order_of_the_table() {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')))
        .collect();
    let table: BTreeSet<_> = LAYERS.iter().copied().flatten().copied().collect();
    assert_eq!(declared, table, "the modules of src/lib.rs and those of LAYERS");

    let map = text.split("//! ```text\n").nth(1).and_then(|rest| rest.split("//! ```").next()).unwrap();
    let mut shown = BTreeSet::new();
    let mut lowest = 0;
    for line in map.lines().map(|line| line.trim_start_matches("//!")) {
        // Two spaces or more set the explanation off.
        let names = line.trim_start().split("  ").next().unwrap();
        let layers: Vec<_> =
            names.split('·').filter_map(|name| table.get(name.trim()).and_then(|n| layer(n))).collect();
        shown.extend(names.split('·').map(str::trim).filter(|name| table.contains(name)));
        let Some(highest) = layers.iter().min() else { continue };
        assert!(*highest >= lowest, "`{names}` is lower in LAYERS than in the map of src/lib.rs");
        lowest = layers.iter().max().unwrap() + 1;
    }
    assert_eq!(shown, table, "the modules in the map of src/lib.rs and those of LAYERS");
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let violations = sources(&["src", "tests", "benches"])
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| format!("{}:1: must begin with `//!`: what it is for", source.path))
        .collect();
    fail_if_any(&violations);
}

#[test]
fn no_file_is_too_long() {
    let (mut violations, mut note) = (BTreeSet::new(), String::new());
    for source in sources(&["src", "tests", "benches"]) {
        let lines = source.text.lines().count();
        if lines > MOST_LINES && source.path.starts_with("src/") {
            violations.insert(format!(
                "{}:{MOST_LINES}: {lines} lines, {MOST_LINES} are allowed: split it",
                source.path
            ));
        } else if lines > MANY_LINES {
            let _ =
                writeln!(note, "note: {} has {lines} lines; worth a talk above {MANY_LINES}", source.path);
        }
    }
    print!("{note}");
    fail_if_any(&violations);
}

// The scanner itself: a check that cannot fail is worth nothing.

fn source(path: &str, text: &str) -> Source {
    Source { path: path.into(), tokens: without_tests(&tokens(text)).0, text: text.into() }
}

fn imports(path: &str, text: &str) -> Vec<String> {
    check_imports(&source(path, text), &mut BTreeSet::new()).into_iter().collect()
}

fn confinement(path: &str, text: &str) -> Vec<String> {
    check_confinement(&source(path, text)).into_iter().collect()
}

#[test]
fn imports_are_found_wherever_they_are_written() {
    let above = "src/state_key.rs:1: `state_key` may not know `pool`, which is above it";
    for text in [
        "use crate::pool::Pool;",
        "use crate::{units, pool::{self, Pool}};",
        "use super::pool;",
        "use super::{units, pool};",
        "fn f() -> crate::pool::Pool {}",
        "const C: char = '\"'; use crate::pool;",
        "fn f<'a>(s: &'a str) { r#\"\"#; '\\''; crate::pool::f() }",
    ] {
        assert_eq!(imports("src/state_key.rs", text), [above], "{text}");
    }
    assert_eq!(imports("src/adapter/docker/mod.rs", "use super::super::pool;").len(), 1);
    assert_eq!(imports("src/adapter/docker/image.rs", "use super::super::super::pool;").len(), 1);
    let sibling = "src/link/frame.rs:2: `link` may not know `state`, which is on its own line";
    assert_eq!(imports("src/link/frame.rs", "\nuse crate::state::Kind;"), [sibling]);
    assert_eq!(imports("src/new.rs", "").len(), 1, "a module without a place");
}

#[test]
fn what_is_no_import_is_not_taken_for_one() {
    for text in [
        "// use crate::pool;",
        "//! [`crate::pool`]",
        "/* /* */ use crate::pool; */",
        "const S: &str = \"use crate::pool;\";",
        "const S: &str = r#\"\" use crate::pool;\"#;",
        "const S: &[u8] = b\"\\\" crate::pool\";",
        "use crate::units::pool;",
        "use crate::{units::{self, pool}};",
        "#[cfg(test)] mod tests { use crate::pool; }",
        "#[cfg(test)]\nuse crate::pool;",
        "#[cfg(test)]\n#[allow(unused)]\nfn f(a: [u8; 2]) { crate::pool::f(); }",
        "struct S { #[cfg(test)] pool: crate::pool::Pool, other: u8 }",
    ] {
        assert!(imports("src/state_key.rs", text).is_empty(), "{text}");
    }
    assert!(imports("src/pool/driver.rs", "use super::ledger; use crate::link;").is_empty());
    assert!(imports("src/adapter/docker/image.rs", "use super::super::Adapter;").is_empty());
    let after = "#[cfg(test)] mod tests { } use crate::pool;";
    assert_eq!(imports("src/state_key.rs", after).len(), 1, "what follows is not for tests");
    assert_eq!(imports("src/state_key.rs", "#[cfg(not(test))] use crate::pool;").len(), 1);
}

#[test]
fn confined_words_are_found_outside_their_place_only() {
    let rule = "src/pool/mod.rs:1: `tokio::spawn` only in src/task.rs: every task has an owner: use Tasks";
    assert_eq!(confinement("src/pool/mod.rs", "fn f() { tokio::spawn(g()); }"), [rule]);
    assert!(confinement("src/task.rs", "fn f() { tokio::spawn(g()); }").is_empty());
    for text in
        ["use bollard::Docker;", "println!();", "std::env::var(\"A\")", "x.unwrap()", "StatusCode::OK"]
    {
        assert_eq!(confinement("src/pool/mod.rs", text).len(), 1, "{text}");
    }
    for text in [
        "// bollard",
        "\"println!()\"",
        "env!(\"A\")",
        "std::env::temp_dir()",
        "x.unwrap_or(1)",
        "spawn_blocking()",
    ] {
        assert!(confinement("src/pool/mod.rs", text).is_empty(), "{text}");
    }
}

#[test]
fn files_for_tests_are_told_from_those_that_ship() {
    let all = sources(&["src"]);
    let tests = test_files(&all);
    for path in ["src/pool/ledger_tests.rs", "src/pool/ledger_property_tests.rs", "src/link/tests/calls.rs"] {
        assert!(tests.contains(path), "{path} in {tests:?}");
    }
    assert!(!tests.contains("src/pool/ledger.rs"));
    assert!(all.len() > tests.len() + 20, "most files ship");
}
