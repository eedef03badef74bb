//! The rules of the source tree that the compiler does not know: who may know whom, and where what may be named.
//!
//! Both tables are below. A violation fails with file, line and rule. The source is cut into tokens (comments and
//! strings dropped, what is only compiled for tests skipped); macros and inline modules are not resolved, which is
//! enough for the way this code is written.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that fails is a failed test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A line knows only lines below it; modules on one line do not know each other. `src/lib.rs` explains them.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["server"],
    &["config", "http", "data_folder"],
    &["executor"],
    &["pool"],
    &["adapter", "link", "state"],
    &["instance"],
    &["function"],
    &["runtime", "state_key"],
    &["execution", "headers", "task", "telemetry", "units"],
];

/// What the table above does not allow and is right all the same: file, module, why.
const EXCEPTIONS: &[(&str, &str, &str)] =
    &[("src/link/message.rs", "state", "a value of the store, as plain data, travels in CALL and RESULT")];

/// Tokens that may stand only below the given paths, and why.
const CONFINED: &[(&[&str], &[&str], &str)] = &[
    (&["bollard"], &["src/adapter/docker/"], "the core does not know Docker"),
    (&["rusqlite"], &["src/state/sqlite/"], "each database driver is known in its own folder only"),
    (&["axum"], &["src/http/", "src/server.rs"], "only the front knows the web framework"),
    (&["clap"], &["src/cli/", "src/config.rs"], "only the command line knows clap"),
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
    (&["env", "::", "var"], &["src/config.rs"], "only config reads the environment"),
    (&["env", "::", "vars"], &["src/config.rs"], "only config reads the environment"),
    (&["env", "::", "var_os"], &["src/config.rs"], "only config reads the environment"),
    (&["env", "::", "vars_os"], &["src/config.rs"], "only config reads the environment"),
    (&["unwrap", "(", ")"], &[], "say what is known with expect, or handle it"),
];

const MOST_LINES: usize = 600;
const MANY_LINES: usize = 400;

/// A word, a `::`, or any other single character, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// A file below the repository's root.
struct Source {
    path: String,
    text: String,
    tokens: Vec<Token>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut files = Vec::new();
    for folder in folders {
        rust_files(&root().join(folder), &mut files);
    }
    files.sort();
    assert!(!files.is_empty(), "no sources found below {}", root().display());
    files
        .into_iter()
        .map(|file| {
            let text = std::fs::read_to_string(&file).unwrap();
            let path = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            Source { path, tokens: tokens(&text), text }
        })
        .collect()
}

/// The sources that go into the binary, without what is only compiled for tests.
fn shipped() -> Vec<Source> {
    let mut all = sources(&["src"]);
    let tests = test_files(&all);
    all.retain(|source| !tests.contains(&source.path));
    for source in &mut all {
        source.tokens = without_tests(&source.tokens).0;
    }
    all
}

fn fail_if_any(violations: &BTreeSet<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.iter().cloned().collect::<Vec<_>>().join("\n"));
}

// Tokens.

/// Whether a string starts here, and with how many `#` it must end; `None` for a plain one.
fn string_start(rest: &[char]) -> Option<(usize, Option<usize>)> {
    let prefix = match rest {
        ['b' | 'c', 'r', ..] => 2,
        ['b' | 'c' | 'r', ..] => 1,
        _ => 0,
    };
    let raw = prefix > 0 && rest[prefix - 1] == 'r';
    let hashes = if raw { rest[prefix..].iter().take_while(|c| **c == '#').count() } else { 0 };
    (rest.get(prefix + hashes) == Some(&'"')).then_some((prefix + hashes + 1, raw.then_some(hashes)))
}

/// The length of a string after its first quote, the last quote and its `#` included.
fn string_length(rest: &[char], raw: Option<usize>) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match (rest[at], raw) {
            ('\\', None) => at += 1,
            ('"', None) => return at + 1,
            ('"', Some(hashes)) if rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes => {
                return at + 1 + hashes;
            }
            _ => {}
        }
        at += 1;
    }
    rest.len()
}

/// The length of a comment that starts here; 0: none does.
fn comment_length(rest: &[char]) -> usize {
    match rest {
        ['/', '/', ..] => rest.iter().take_while(|c| **c != '\n').count(),
        ['/', '*', ..] => {
            let (mut depth, mut at) = (0, 0);
            while at < rest.len() {
                match rest[at..] {
                    ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
                    ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
                    _ => at += 1,
                }
                if depth == 0 {
                    break;
                }
            }
            at
        }
        _ => 0,
    }
}

/// The length of a character or of a lifetime's mark that starts here.
fn quote_length(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', ..] => 3 + rest[3..].iter().take_while(|c| **c != '\'').count(),
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < chars.len() {
        let rest = &chars[at..];
        let (length, keep) = if let comment @ 1.. = comment_length(rest) {
            (comment, false)
        } else if let Some((start, raw)) = string_start(rest) {
            (start + string_length(&rest[start..], raw), false)
        } else if rest[0] == '\'' {
            (quote_length(rest), false)
        } else if is_word(rest[0]) {
            (rest.iter().take_while(|c| is_word(**c)).count(), true)
        } else if rest.starts_with(&[':', ':']) {
            (2, true)
        } else {
            (1, !rest[0].is_whitespace())
        };
        let piece = &rest[..length.min(rest.len())];
        if keep {
            tokens.push(Token { text: piece.iter().collect(), line });
        }
        line += piece.iter().filter(|c| **c == '\n').count();
        at += piece.len();
    }
    tokens
}

fn starts_with(tokens: &[Token], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.text == *text)
}

// What is only compiled for tests.

/// The length of an attribute that starts here.
fn attribute_length(tokens: &[Token]) -> usize {
    if !starts_with(tokens, &["#", "["]) {
        return 0;
    }
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match &*token.text {
            "[" => depth += 1,
            "]" => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

fn is_test_attribute(attribute: &[Token]) -> bool {
    let has = |text: &str| attribute.iter().any(|token| token.text == text);
    starts_with(attribute, &["#", "[", "cfg"]) && has("test") && !has("not")
}

/// The length of the item, field or statement that starts here, its further attributes included.
fn item_length(tokens: &[Token]) -> usize {
    let mut start = 0;
    while let more @ 1.. = attribute_length(&tokens[start..]) {
        start += more;
    }
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match &*token.text {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" if depth == 0 => return at,
            "}" if depth == 1 => return at + 1,
            "}" | ")" | "]" => depth -= 1,
            ";" | "," if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Splits what ships from what is only for tests.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<Token>) {
    let (mut shipped, mut tests, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        let attribute = attribute_length(&tokens[at..]);
        if attribute > 0 && is_test_attribute(&tokens[at..at + attribute]) {
            let end = at + attribute + item_length(&tokens[at + attribute..]);
            tests.extend_from_slice(&tokens[at..end]);
            at = end;
        } else {
            shipped.push(tokens[at].clone());
            at += 1;
        }
    }
    (shipped, tests)
}

/// The files of the modules that `tokens`, which stand in `source`, declare without a body.
fn declared(source: &Source, tokens: &[Token]) -> Vec<String> {
    let path = Path::new(&source.path);
    let folder = path.parent().unwrap();
    let name = path.file_name().unwrap();
    let own = if name == "mod.rs" || name == "lib.rs" { folder.to_owned() } else { path.with_extension("") };
    let mut files = Vec::new();
    for (at, _) in tokens.iter().enumerate().filter(|(_, token)| token.text == "mod") {
        let [module, end, ..] = &tokens[at + 1..] else { continue };
        if end.text != ";" {
            continue;
        }
        // `#[path = "..."]`, whose string is no token, on the line above.
        let above = source.text.lines().nth(module.line.saturating_sub(2)).unwrap_or_default();
        let given = above.trim().strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]"));
        let candidates = match given {
            Some(given) => vec![folder.join(given)],
            None => {
                let module = &module.text;
                vec![own.join(format!("{module}.rs")), own.join(module).join("mod.rs")]
            }
        };
        files.extend(candidates.into_iter().map(|file| file.to_str().unwrap().to_owned()));
    }
    files
}

/// The files that are only compiled for tests: those declared so, and all that they declare.
fn test_files(all: &[Source]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut new: Vec<String> =
        all.iter().flat_map(|source| declared(source, &without_tests(&source.tokens).1)).collect();
    while let Some(path) = new.pop() {
        let Some(source) = all.iter().find(|source| source.path == path) else { continue };
        if found.insert(path) {
            new.extend(declared(source, &source.tokens));
        }
    }
    found
}

// The rules.

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
