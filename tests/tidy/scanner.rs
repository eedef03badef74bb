//! Reads the source tree as `tests/tidy.rs` checks it: tokens without comments and strings, and what of them ships.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A word, a `::`, or any other single character, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// A file below the repository's root.
pub struct Source {
    pub path: String,
    pub text: String,
    pub tokens: Vec<Token>,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

pub fn sources(folders: &[&str]) -> Vec<Source> {
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
pub fn shipped() -> Vec<Source> {
    let mut all = sources(&["src"]);
    let tests = test_files(&all);
    all.retain(|source| !tests.contains(&source.path));
    for source in &mut all {
        source.tokens = without_tests(&source.tokens).0;
    }
    all
}

// Tokens.

/// Whether a string starts here, and with how many `#` it must end; `None` for a plain one.
pub fn string_start(rest: &[char]) -> Option<(usize, Option<usize>)> {
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
pub fn string_length(rest: &[char], raw: Option<usize>) -> usize {
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
pub fn comment_length(rest: &[char]) -> usize {
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
pub fn quote_length(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', ..] => 3 + rest[3..].iter().take_while(|c| **c != '\'').count(),
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

pub fn tokens(text: &str) -> Vec<Token> {
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

pub fn starts_with(tokens: &[Token], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.text == *text)
}

// What is only compiled for tests.

/// The length of an attribute that starts here.
pub fn attribute_length(tokens: &[Token]) -> usize {
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

pub fn is_test_attribute(attribute: &[Token]) -> bool {
    let has = |text: &str| attribute.iter().any(|token| token.text == text);
    starts_with(attribute, &["#", "[", "cfg"]) && has("test") && !has("not")
}

/// The length of the item, field or statement that starts here, its further attributes included.
pub fn item_length(tokens: &[Token]) -> usize {
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
pub fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<Token>) {
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
pub fn declared(source: &Source, tokens: &[Token]) -> Vec<String> {
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
pub fn test_files(all: &[Source]) -> BTreeSet<String> {
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
