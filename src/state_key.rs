//! How a request names the entity it belongs to: the `[state] key` of `function.toml`.
//!
//! A template of constants and the parts `{query.NAME}`, `{header.NAME}`, `{path.N}` (N-th segment after the
//! function's name, from 1). Parsed once at load; filling it in is a pure function of the request.
//! A request that lacks a part has no entity, and the error names the part: silently sharing one entity between all
//! callers who forgot a parameter would mix their data.

use std::fmt;
use std::sync::Arc;

use crate::execution::Request;

/// A key may have this many bytes after it is filled in.
pub const MAX_KEY: usize = 512;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTemplate(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Constant(String),
    Query(String),
    Header(String),
    Path(usize),
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Constant(text) => f.write_str(text),
            Part::Query(name) => write!(f, "{{query.{name}}}"),
            Part::Header(name) => write!(f, "{{header.{name}}}"),
            Part::Path(n) => write!(f, "{{path.{n}}}"),
        })
    }
}

/// Why a request has no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The request lacks the named part.
    #[error("this function keeps state per {0}, and the request has none; add {1}")]
    Missing(String, String),
    /// A part is not text.
    #[error("the {0} that names this request's state is not UTF-8")]
    NotText(String),
    /// The key is too long.
    #[error("the state key of this request has {0} bytes; at most {MAX_KEY} are allowed")]
    TooLong(usize),
}

impl KeyTemplate {
    /// Parses a template; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let help = "use {query.NAME}, {header.NAME}, {path.N}, constants, or a mix";
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            if open > 0 {
                parts.push(Part::Constant(rest[..open].to_owned()));
            }
            let close =
                rest[open..].find('}').ok_or(format!("the key `{text}` has a `{{` without `}}`; {help}"))?;
            let name = &rest[open + 1..open + close];
            parts.push(match name.split_once('.') {
                Some(("query", n)) if !n.is_empty() => Part::Query(n.to_owned()),
                Some(("header", n)) if http::HeaderName::from_bytes(n.as_bytes()).is_ok() => {
                    Part::Header(n.to_ascii_lowercase())
                }
                Some(("path", n)) => match n.parse() {
                    Ok(n @ 1..=64) => Part::Path(n),
                    _ => return Err(format!("`{{{name}}}` in the key: path segments count from 1 to 64")),
                },
                _ => return Err(format!("the key has the unknown part `{{{name}}}`; {help}")),
            });
            rest = &rest[open + close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Constant(rest.to_owned()));
        }
        if parts.is_empty() {
            return Err(format!("the key is empty; {help}"));
        }
        Ok(Self(parts))
    }

    /// The key of `request`'s entity.
    pub fn fill(&self, request: &Request) -> Result<Arc<str>, KeyError> {
        let mut key = String::new();
        for part in &self.0 {
            let (what, add, value) = match part {
                Part::Constant(text) => {
                    key.push_str(text);
                    continue;
                }
                Part::Query(name) => (
                    format!("query parameter `{name}`"),
                    format!("?{name}=… to the URL"),
                    query_value(&request.query, name),
                ),
                Part::Header(name) => {
                    let value = request.headers.get(name.as_str()).map(|value| value.as_bytes().to_vec());
                    (format!("header `{name}`"), format!("the header `{name}: …`"), value)
                }
                Part::Path(n) => {
                    let segment = request.path.split('/').filter(|s| !s.is_empty()).nth(n - 1);
                    let add = "it to the path after the function's name".to_owned();
                    (format!("path segment {n}"), add, segment.map(percent_decode))
                }
            };
            match value.filter(|value| !value.is_empty()).map(String::from_utf8) {
                Some(Ok(text)) => key.push_str(&text),
                // Replacing what is not text would make different callers share one entity.
                Some(Err(_)) => return Err(KeyError::NotText(what)),
                None => return Err(KeyError::Missing(what, add)),
            }
        }
        if key.len() > MAX_KEY {
            return Err(KeyError::TooLong(key.len()));
        }
        Ok(key.into())
    }
}

fn query_value(query: &str, name: &str) -> Option<Vec<u8>> {
    let decode = |text: &str| percent_decode(&text.replace('+', " "));
    query
        .split('&')
        .filter_map(|item| {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            (decode(key) == name.as_bytes()).then(|| decode(value))
        })
        .next_back()
}

/// Decodes `%41`; what is not a valid escape stays as it is.
fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16));
        if bytes[i] == b'%'
            && let (Some(high), Some(low)) = (hex(bytes.get(i + 1)), hex(bytes.get(i + 2)))
        {
            out.push((high * 16 + low) as u8);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(template: &str, path: &str, query: &str) -> Result<String, KeyError> {
        let mut request = Request::for_test(path, query);
        request.headers.insert("x-user", "ann".parse().unwrap());
        KeyTemplate::parse(template).unwrap().fill(&request).map(|k| k.to_string())
    }

    #[test]
    fn fills() {
        assert_eq!(key("{query.id}", "/", "a=b&id=7%20x").unwrap(), "7 x");
        assert_eq!(key("u:{header.X-User}/{path.2}", "/a/b%2Fc", "").unwrap(), "u:ann/b/c");
        assert_eq!(key("all", "/", "").unwrap(), "all");
        assert_eq!(key("{query.id}", "/", "id=1&id=2").unwrap(), "2");
    }

    #[test]
    fn names_what_is_missing() {
        let message = key("{query.id}", "/", "id=").unwrap_err().to_string();
        assert!(message.contains("query parameter `id`") && message.contains("?id="), "{message}");
        assert!(key("{path.3}", "/a/b", "").unwrap_err().to_string().contains("path segment 3"));
        assert!(key("{header.x-none}", "/", "").unwrap_err().to_string().contains("x-none"));
    }

    #[test]
    fn what_is_not_text_names_no_entity() {
        for (template, path, query) in [("{query.id}", "/", "id=%FF"), ("{path.1}", "/%FE", "")] {
            assert!(matches!(key(template, path, query), Err(KeyError::NotText(_))), "{template}");
        }
    }

    #[test]
    fn bound_on_length() {
        assert!(key("{query.id}", "/", &format!("id={}", "x".repeat(MAX_KEY))).is_ok());
        assert_eq!(
            key("{query.id}", "/", &format!("id={}", "x".repeat(513))).unwrap_err(),
            KeyError::TooLong(513)
        );
    }

    #[test]
    fn refuses_bad_templates() {
        for bad in ["", "{", "{query.}", "{path.0}", "{path.x}", "{cookie.a}", "{header.a b}"] {
            assert!(KeyTemplate::parse(bad).is_err(), "{bad}");
        }
    }
}
