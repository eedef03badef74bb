//! `application/x-www-form-urlencoded`, query strings, and the bracket names that multipart bodies share with them.
//!
//! `headers[host]=x` makes `headers: {host: x}` (R-22). Values are raw bytes. Bounded in the number of fields and in
//! the depth of brackets; a map whose keys count up from 0 is a list, as for PHP.

use bytes::Bytes;

use super::error::Problem;
use super::params::{Fields, Param};

/// Fields of one form, parts of one multipart body.
pub(super) const MAX_FIELDS: usize = 1000;
/// Pairs of brackets in a name.
pub(super) const MAX_DEPTH: usize = 64;

/// The parameters of a form or a query.
pub(super) fn fields(body: &[u8]) -> Result<Fields, Problem> {
    let mut form = Form::default();
    for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let equals = memchr::memchr(b'=', pair).unwrap_or(pair.len());
        let value = pair.get(equals + 1..).unwrap_or_default();
        let name = percent_decoded(&pair[..equals], true);
        form.add(&String::from_utf8_lossy(&name), percent_decoded(value, true).into())?;
    }
    Ok(form.finish())
}

/// Undoes `%41`; in forms `+` is a space. What is no escape stays.
pub(super) fn percent_decoded(text: &[u8], form: bool) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let escape = match text[at..] {
            [b'%', high, low, ..] => hex(high).zip(hex(low)),
            _ => None,
        };
        match escape {
            Some((high, low)) => {
                plain.push(high << 4 | low);
                at += 3;
            }
            None => {
                plain.push(if form && text[at] == b'+' { b' ' } else { text[at] });
                at += 1;
            }
        }
    }
    plain
}

/// Gathers fields whose names may have brackets.
#[derive(Default)]
pub(super) struct Form {
    fields: Fields,
    count: usize,
}

impl Form {
    /// Adds one. A later value of a name replaces an earlier one; `a[]` appends.
    pub(super) fn add(&mut self, name: &str, value: Bytes) -> Result<(), Problem> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err(Problem::bad_parameter(format!("The body has more than {MAX_FIELDS} fields.")));
        }
        let (first, keys) = split(name);
        if keys.len() > MAX_DEPTH {
            let message = format!("The name of a field has more than {MAX_DEPTH} pairs of brackets.");
            return Err(Problem::bad_parameter(message));
        }
        let mut place = self.fields.entry(first.to_owned()).or_insert(Param::Null);
        for key in keys {
            if !matches!(place, Param::Map(_)) {
                *place = Param::Map(Fields::new());
            }
            let Param::Map(fields) = place else { unreachable!("it was made one above") };
            let key = if key.is_empty() { next_index(fields) } else { key.to_owned() };
            place = fields.entry(key).or_insert(Param::Null);
        }
        *place = Param::Text(value);
        Ok(())
    }

    /// The fields, lists as lists.
    pub(super) fn finish(mut self) -> Fields {
        self.fields.values_mut().for_each(listed);
        self.fields
    }
}

/// One above the largest number among the keys; there are at most [`MAX_FIELDS`].
fn next_index(fields: &Fields) -> String {
    let used = fields.keys().filter_map(|key| key.parse::<u64>().ok()).max();
    used.map_or(0, |last| last.saturating_add(1)).to_string()
}

fn listed(value: &mut Param) {
    let Param::Map(fields) = value else { return };
    fields.values_mut().for_each(listed);
    let counts = fields.keys().enumerate().all(|(at, key)| *key == at.to_string());
    if counts && !fields.is_empty() {
        *value = Param::List(std::mem::take(fields).into_values().collect());
    }
}

/// `a[b][c]` is `a` and `b, c`. A bracket that nothing closes is part of the name; what follows the last is dropped.
fn split(name: &str) -> (&str, Vec<&str>) {
    let plain = (name, Vec::new());
    let Some(open) = name.find('[').filter(|open| *open > 0) else { return plain };
    let (first, mut rest) = name.split_at(open);
    let mut keys = Vec::new();
    while let Some(inner) = rest.strip_prefix('[') {
        let Some((key, after)) = inner.split_once(']') else { break };
        keys.push(key);
        rest = after;
    }
    if keys.is_empty() { plain } else { (first, keys) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(body: &str) -> String {
        match fields(body.as_bytes()) {
            Ok(fields) => Param::Map(fields).to_text().unwrap(),
            Err(problem) => problem.message,
        }
    }

    #[test]
    fn r_22_brackets_build_nested_maps() {
        for (body, made) in [
            ("", "{}"),
            ("&&", "{}"),
            ("a", r#"{"a":""}"#),
            ("=x", r#"{"":"x"}"#),
            ("a=1&a=2", r#"{"a":"2"}"#),
            ("a=b%20c+d%2B&%61b=%zz%", r#"{"a":"b c d+","ab":"%zz%"}"#),
            ("headers[host]=x&headers[x-a]=y", r#"{"headers":{"host":"x","x-a":"y"}}"#),
            ("headers%5Bhost%5D=x", r#"{"headers":{"host":"x"}}"#),
            ("a[b][c]=1&a[b][d]=2&a[e]=3", r#"{"a":{"b":{"c":"1","d":"2"},"e":"3"}}"#),
            ("a[]=1&a[]=2", r#"{"a":["1","2"]}"#),
            ("a[0]=1&a[1]=2", r#"{"a":["1","2"]}"#),
            ("a[1]=1", r#"{"a":{"1":"1"}}"#),
            ("a[5]=1&a[]=2", r#"{"a":{"5":"1","6":"2"}}"#),
            ("a[18446744073709551615]=1&a[]=2", r#"{"a":{"18446744073709551615":"2"}}"#),
            ("a[b=1", r#"{"a[b":"1"}"#),
            ("[b]=1", r#"{"[b]":"1"}"#),
            ("a[b]c=1", r#"{"a":{"b":"1"}}"#),
            ("a=1&a[b]=2", r#"{"a":{"b":"2"}}"#),
            ("a[b]=2&a=1", r#"{"a":"1"}"#),
        ] {
            assert_eq!(shown(body), made, "{body}");
        }
    }

    #[test]
    fn r_22_values_are_raw_bytes() {
        assert_eq!(fields(b"a=%ff%00").unwrap()["a"], Param::Text(Bytes::from_static(b"\xff\0")));
        assert_eq!(fields(b"a=\xfe").unwrap()["a"], Param::Text(Bytes::from_static(b"\xfe")));
    }

    #[test]
    fn fields_and_depth_are_bounded() {
        let many = |n: usize| (0..n).map(|i| format!("a[b{i}]=1")).collect::<Vec<_>>().join("&");
        assert_eq!(fields(many(MAX_FIELDS).as_bytes()).unwrap().len(), 1);
        assert_eq!(shown(&many(MAX_FIELDS + 1)), "The body has more than 1000 fields.");
        let deep = |n: usize| format!("a{}=1", "[b]".repeat(n));
        assert_eq!(fields(deep(MAX_DEPTH).as_bytes()).unwrap().len(), 1);
        assert_eq!(shown(&deep(MAX_DEPTH + 1)), "The name of a field has more than 64 pairs of brackets.");
        assert!(shown(&deep(100_000)).starts_with("The name of a field"));
    }

    proptest! {
        #[test]
        fn any_form_is_read_or_refused(body in "([a-c\\[\\]=&%0-9+]|\\PC){0,200}") {
            let _ = fields(body.as_bytes());
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = fields(&body);
        }
    }
}
