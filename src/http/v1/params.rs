//! Parameters of a request, whatever encoding they came in, and the types of section 3.2.
//!
//! All encodings end as [`Param`], so that one set of readers with one set of messages serves every route. A reader
//! gives `None` for what is absent, and JSON `null` counts as absent. The readers check in the order in which they are
//! called, and the first problem is the answer; that order is the order of the tables in section 5.

use std::borrow::Cow;

use bytes::Bytes;
use indexmap::IndexMap;

use super::error::Problem;
use super::json;

/// The longest form of a `map` and the longest text of a `map-loose`.
const MAX_MAP: usize = 65_535;

/// Named values in the order they came.
pub(super) type Fields = IndexMap<String, Param>;

/// One value as it came.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Param {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// From a form these need not be UTF-8.
    Text(Bytes),
    List(Vec<Param>),
    Map(Fields),
}

impl Param {
    /// As an environment variable or a header carries it. `None`: it is text that is not UTF-8.
    pub(super) fn to_text(&self) -> Option<String> {
        Some(match self {
            Self::Null | Self::Bool(false) => String::new(),
            Self::Bool(true) => "1".into(),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) => std::str::from_utf8(text).ok()?.to_owned(),
            Self::List(_) | Self::Map(_) => {
                let mut json = String::new();
                self.write_json(&mut json);
                json
            }
        })
    }

    /// Compact JSON with `\uXXXX` and `\/`, as the reference measures it. What is not UTF-8 is replaced.
    fn write_json(&self, to: &mut String) {
        match self {
            Self::Null => to.push_str("null"),
            Self::Bool(value) => to.push_str(if *value { "true" } else { "false" }),
            Self::Int(number) => to.push_str(&number.to_string()),
            Self::Float(number) => to.push_str(&serde_json::Value::from(*number).to_string()),
            Self::Text(text) => write_json_text(&String::from_utf8_lossy(text), to),
            Self::List(values) => {
                to.push('[');
                for (at, value) in values.iter().enumerate() {
                    to.push_str(if at == 0 { "" } else { "," });
                    value.write_json(to);
                }
                to.push(']');
            }
            Self::Map(fields) => {
                to.push('{');
                for (at, (name, value)) in fields.iter().enumerate() {
                    to.push_str(if at == 0 { "" } else { "," });
                    write_json_text(name, to);
                    to.push(':');
                    value.write_json(to);
                }
                to.push('}');
            }
        }
    }
}

fn write_json_text(text: &str, to: &mut String) {
    use std::fmt::Write as _;
    let quoted = serde_json::Value::from(text).to_string();
    for c in quoted.chars() {
        if c == '/' {
            to.push_str("\\/");
        } else if c.is_ascii() {
            to.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(to, "\\u{unit:04x}");
            }
        }
    }
}

/// The parameters of one request.
#[derive(Debug, Default)]
pub(super) struct Params(pub(super) Fields);

fn invalid(name: &str, reason: &str) -> Problem {
    Problem::bad_parameter(format!("Invalid `{name}` param: {reason}"))
}

/// A value that must be there.
pub(super) fn required<T>(name: &str, value: Option<T>) -> Result<T, Problem> {
    value.ok_or_else(|| Problem::bad_parameter(format!("Param \"{name}\" is not optional.")))
}

/// Characters, where every byte of no valid sequence is one.
pub(super) fn characters(text: &[u8]) -> usize {
    text.utf8_chunks().map(|chunk| chunk.valid().chars().count() + chunk.invalid().len()).sum()
}

fn text_reason(min: usize, max: usize) -> String {
    let least = if min == 0 { String::new() } else { format!(" and at least {min} chars") };
    let most = if max == 0 { String::new() } else { format!(" and no longer than {max} chars") };
    format!("Value must be a valid string{least}{most}")
}

/// A text within its bounds; `max` 0: unlimited.
pub(super) fn check_text(name: &str, text: &[u8], min: usize, max: usize) -> Result<(), Problem> {
    let length = characters(text);
    if length < min || (max > 0 && length > max) {
        return Err(invalid(name, &text_reason(min, max)));
    }
    Ok(())
}

const INT: &str = "Value must be a valid signed 32-bit integer between -2,147,483,648 and 2,147,483,647";
const OBJECT: &str = "Value must be a valid object.";

/// As PHP's `is_numeric` sees it: white space around, no hexadecimal.
fn numeric(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    (plain && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')).then_some(text)
}

impl Params {
    fn get(&self, name: &str) -> Option<&Param> {
        self.0.get(name).filter(|value| **value != Param::Null)
    }

    /// `text(min,max)`, raw.
    pub(super) fn bytes(&self, name: &str, min: usize, max: usize) -> Result<Option<Bytes>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some(Param::Text(text)) => check_text(name, text, min, max).map(|()| Some(text.clone())),
            Some(_) => Err(invalid(name, &text_reason(min, max))),
        }
    }

    /// `text(min,max)` where we need UTF-8: names, paths and lines.
    pub(super) fn text(&self, name: &str, min: usize, max: usize) -> Result<Option<String>, Problem> {
        let bytes = self.bytes(name, min, max)?;
        let text = bytes.map(|bytes| String::from_utf8(bytes.into())).transpose();
        text.map_err(|_| invalid(name, &text_reason(min, max)))
    }

    /// `int`
    pub(super) fn int(&self, name: &str) -> Result<Option<i32>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some(Param::Int(number)) => i32::try_from(*number).map(Some).map_err(|_| invalid(name, INT)),
            Some(_) => Err(invalid(name, INT)),
        }
    }

    /// `int-loose`
    pub(super) fn int_loose(&self, name: &str) -> Result<Option<i32>, Problem> {
        match self.get(name) {
            Some(Param::Text(text)) => {
                let number = numeric(text).and_then(|text| text.parse().ok());
                number.map(Some).ok_or_else(|| invalid(name, INT))
            }
            _ => self.int(name),
        }
    }

    /// `float`
    pub(super) fn float(&self, name: &str) -> Result<Option<f64>, Problem> {
        let number = match self.get(name) {
            None => return Ok(None),
            Some(Param::Int(number)) => Some(*number as f64),
            Some(Param::Float(number)) => Some(*number),
            Some(Param::Text(text)) => numeric(text).and_then(|text| text.parse().ok()),
            Some(_) => None,
        };
        let finite = number.filter(|number: &f64| number.is_finite());
        finite.map(Some).ok_or_else(|| invalid(name, "Value must be a valid float"))
    }

    /// `bool`
    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some(Param::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(invalid(name, "Value must be a valid boolean")),
        }
    }

    /// `bool-loose`
    pub(super) fn bool_loose(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.get(name) {
            Some(Param::Int(1)) => Ok(Some(true)),
            Some(Param::Int(0)) => Ok(Some(false)),
            Some(Param::Text(text)) if matches!(&**text, b"true" | b"1") => Ok(Some(true)),
            Some(Param::Text(text)) if matches!(&**text, b"false" | b"0") => Ok(Some(false)),
            _ => self.bool(name),
        }
    }

    /// `map`
    pub(super) fn map(&self, name: &str) -> Result<Option<Cow<'_, Fields>>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some(Param::List(values)) if values.is_empty() => Ok(Some(Cow::Owned(Fields::new()))),
            Some(map @ Param::Map(fields)) => {
                let mut json = String::new();
                map.write_json(&mut json);
                if json.len() > MAX_MAP {
                    Err(invalid(name, OBJECT))
                } else {
                    Ok(Some(Cow::Borrowed(fields)))
                }
            }
            Some(_) => Err(invalid(name, OBJECT)),
        }
    }

    /// `map-loose`; clients also write an empty map as the text `[]`.
    pub(super) fn map_loose(&self, name: &str) -> Result<Option<Cow<'_, Fields>>, Problem> {
        let Some(Param::Text(text)) = self.get(name) else { return self.map(name) };
        if characters(text) > MAX_MAP {
            return Err(invalid(name, OBJECT));
        }
        match json::read(text) {
            Ok(Param::Map(fields)) => Ok(Some(Cow::Owned(fields))),
            Ok(Param::List(values)) if values.is_empty() => Ok(Some(Cow::Owned(Fields::new()))),
            _ => Err(invalid(name, OBJECT)),
        }
    }

    /// `oneof(…)`: the value itself and its place in `choices`, which are lower case when `any_case`.
    pub(super) fn one_of(
        &self,
        name: &str,
        choices: &[&str],
        any_case: bool,
    ) -> Result<Option<(String, usize)>, Problem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let same = |text: &str, choice: &str| {
            if any_case { text.eq_ignore_ascii_case(choice) } else { text == choice }
        };
        let found = match value {
            Param::Text(text) => std::str::from_utf8(text).ok().and_then(|text| {
                let at = choices.iter().position(|choice| same(text, choice))?;
                Some((text.to_owned(), at))
            }),
            _ => None,
        };
        let reason = || format!("Value must be one of ({})", choices.join(", "));
        found.map(Some).ok_or_else(|| invalid(name, &reason()))
    }

    /// A value that was read as a map has an entry we cannot use.
    pub(super) fn unusable(name: &str, reason: &str) -> Problem {
        invalid(name, reason)
    }
}

#[cfg(test)]
#[path = "params_tests.rs"]
mod tests;
