//! Header rules of the runtime contract (sections 7.5, 8.3 and 9 of the runtime protocol), both directions.
//!
//! Pure, and here once, so that workers stay small. The reserved prefix never crosses in either direction.

use std::borrow::Cow;
use std::fmt;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Headers of this prefix are between host and runtime only.
pub const RESERVED_PREFIX: &str = "x-open-runtimes-";

/// Between a host and a runtime that are both ours, beyond the protocol: a request with [`LINES_IN_HEAD`] asks for its
/// lines in the head of the answer, which says so with the same field. Who does not know it writes files as ever.
pub const LOG_TRANSPORT: HeaderName = HeaderName::from_static("x-open-runtimes-log-transport");
/// The one other transport than files: [`LOGS`] and [`ERRORS`] in the answer, absent when empty.
pub const LINES_IN_HEAD: &str = "head";
/// A function's lines, url-encoded.
pub const LOGS: HeaderName = HeaderName::from_static("x-open-runtimes-logs");
/// A function's errors, url-encoded.
pub const ERRORS: HeaderName = HeaderName::from_static("x-open-runtimes-errors");

/// The most header lines of a function's answer.
const MOST_FIELDS: usize = 1024;

/// Removes every reserved header.
pub fn strip_reserved(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with(RESERVED_PREFIX)).cloned() {
        headers.remove(name);
    }
}

/// Serializes a header map as an object of strings: repeats joined by `, `, cookies by `; `.
pub struct Joined<'a>(pub &'a HeaderMap);

impl Serialize for Joined<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.keys_len()))?;
        for name in self.0.keys() {
            let mut values = self.0.get_all(name).iter();
            let Some(first) = values.next() else { continue };
            let mut value = text(first);
            for more in values {
                let value = value.to_mut();
                value.push_str(if name == header::COOKIE { "; " } else { ", " });
                value.push_str(&text(more));
            }
            map.serialize_entry(name.as_str(), &*value)?;
        }
        map.end()
    }
}

/// Header bytes as text: UTF-8 where they are, otherwise ISO 8859-1, which never fails.
pub fn text(value: &HeaderValue) -> Cow<'_, str> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(value.as_bytes().iter().map(|b| char::from(*b)).collect()),
    }
}

/// Headers a function answered with: cleaned as they are read.
#[derive(Debug, Default)]
pub struct FromFunction(pub HeaderMap);

impl<'de> Deserialize<'de> for FromFunction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadersVisitor).map(Self)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = HeaderMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of header names and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderMap, A::Error> {
        let mut headers = HeaderMap::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            let values: Values = map.next_value()?;
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| A::Error::custom(format!("`{name}` is not a header name")))?;
            if is_ours(&name) {
                continue;
            }
            for value in values.0 {
                // Some type libraries join several cookies by newlines.
                for line in value.split('\n') {
                    let value = HeaderValue::from_str(line).map_err(|_| {
                        A::Error::custom(format!("the value of header `{name}` has a control character"))
                    })?;
                    if headers.len() >= MOST_FIELDS {
                        let text = format!("the response has more than {MOST_FIELDS} headers");
                        return Err(A::Error::custom(text));
                    }
                    // There can be only one, and a function may have set it after the worker did, in another case.
                    if name == header::CONTENT_TYPE {
                        headers.insert(&name, value);
                    } else {
                        headers.append(&name, value);
                    }
                }
            }
        }
        Ok(headers)
    }
}

/// Headers that only the host may set: the reserved ones and those that frame the message on the wire.
fn is_ours(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::TRANSFER_ENCODING
            | header::UPGRADE
            | header::TRAILER
            | header::CONTENT_LENGTH
    ) || name.as_str() == "keep-alive"
        || name.as_str() == "proxy-connection"
        || name.as_str().starts_with(RESERVED_PREFIX)
}

struct Values(Vec<String>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValuesVisitor)
    }
}

struct ValuesVisitor;

impl<'de> Visitor<'de> for ValuesVisitor {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a header value or a list of them")
    }

    fn visit_str<E>(self, value: &str) -> Result<Values, E> {
        Ok(Values(vec![value.to_owned()]))
    }

    fn visit_string<E>(self, value: String) -> Result<Values, E> {
        Ok(Values(vec![value]))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Values, E> {
        Ok(Values(vec![value.to_string()]))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Values, E> {
        Ok(Values(vec![value.to_string()]))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Values, E> {
        Ok(Values(vec![value.to_string()]))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Values, E> {
        Ok(Values(vec![value.to_string()]))
    }

    fn visit_unit<E>(self) -> Result<Values, E> {
        Ok(Values(Vec::new()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Values, A::Error> {
        let mut all = Vec::new();
        while let Some(Values(mut some)) = seq.next_element()? {
            all.append(&mut some);
        }
        Ok(Values(all))
    }
}

/// Section 9.2: the content type a response is sent with.
pub fn finish_content_type(headers: &mut HeaderMap) {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
    let finished = match headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        None | Some(b"text/plain") => TEXT,
        Some(b"application/json") => JSON,
        Some(other) => {
            let lower = String::from_utf8_lossy(other).to_lowercase();
            let plain = ["multipart/", "image/", "audio/", "video/", "font/", "application/octet-stream"];
            if plain.iter().any(|p| lower.starts_with(p)) || lower.contains("charset=") {
                return;
            }
            match HeaderValue::from_str(&format!("{lower}; charset=utf-8")) {
                Ok(value) => value,
                Err(_) => return,
            }
        }
    };
    headers.insert(header::CONTENT_TYPE, finished);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_function(json: &str) -> Result<HeaderMap, serde_json::Error> {
        serde_json::from_str::<FromFunction>(json).map(|h| h.0)
    }

    #[test]
    fn repeats_are_joined() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("cookie", "x=1"), ("a", "2"), ("cookie", "y=2")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers.append("b", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        let json: serde_json::Value = serde_json::to_value(Joined(&headers)).unwrap();
        assert_eq!(json, serde_json::json!({"a": "1, 2", "cookie": "x=1; y=2", "b": "café"}));
    }

    #[test]
    fn reserved_headers_cross_in_neither_direction() {
        let mut headers = HeaderMap::new();
        headers.append("x-open-runtimes-secret", HeaderValue::from_static("s"));
        headers.append("x-open-runtimes-other", HeaderValue::from_static("s"));
        headers.append("x-open", HeaderValue::from_static("s"));
        strip_reserved(&mut headers);
        assert_eq!(headers.len(), 1);
        let out = from_function(
            r#"{"X-Open-Runtimes-Log-Id":"x","Content-Length":"7","Connection":"close","A":"b"}"#,
        );
        assert_eq!(out.unwrap().keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn lines_at_the_bound_and_one_above() {
        let many = |count: usize| {
            let names = (0..count).map(|n| format!("\"h{n}\":\"\"")).collect::<Vec<_>>();
            from_function(&format!("{{{}}}", names.join(",")))
        };
        assert_eq!(many(MOST_FIELDS).unwrap().len(), MOST_FIELDS);
        assert!(many(MOST_FIELDS + 1).unwrap_err().to_string().contains("more than 1024 headers"));
        let one = format!("{{\"x\":\"{}\"}}", "\\n".repeat(MOST_FIELDS));
        assert!(from_function(&one).is_err(), "lines of one name count as well");
    }

    #[test]
    fn lists_become_lines_and_scalars_text() {
        let out =
            from_function(r#"{"set-cookie":["a=1","b=2"],"n":5,"t":true,"none":null,"x":"a\nb"}"#).unwrap();
        assert_eq!(out.get_all("set-cookie").iter().count(), 2);
        assert_eq!(out["n"], "5");
        assert_eq!(out.get_all("x").iter().count(), 2);
        assert!(!out.contains_key("none"));
        let out = from_function(r#"{"content-type":"application/json","Content-Type":"text/html"}"#).unwrap();
        assert_eq!(out.get_all("content-type").iter().collect::<Vec<_>>(), ["text/html"]);
    }

    #[test]
    fn what_http_cannot_carry_is_refused() {
        assert!(
            from_function(r#"{"a b":"c"}"#).unwrap_err().to_string().contains("`a b` is not a header name")
        );
        assert!(from_function(r#"{"a":"c\rd"}"#).unwrap_err().to_string().contains("control character"));
    }

    #[test]
    fn content_types() {
        for (given, sent) in [
            (None, "text/plain; charset=utf-8"),
            (Some("TEXT/HTML"), "text/html; charset=utf-8"),
            (Some("text/plain; charset=iso-8859-1"), "text/plain; charset=iso-8859-1"),
            (Some("multipart/form-data; boundary=aB"), "multipart/form-data; boundary=aB"),
            (Some("image/png"), "image/png"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(given));
            }
            finish_content_type(&mut headers);
            assert_eq!(headers[header::CONTENT_TYPE], sent);
        }
    }
}
