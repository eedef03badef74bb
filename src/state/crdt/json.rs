//! JSON values in one canonical text each, so that being equal is comparing bytes.
//!
//! Members are sorted and the last of two with one name counts. Numbers are compared as decimals, exactly, and written
//! as JavaScript writes them: `1`, `1.0` and `10e-1` are one value, and no digit of a large integer is lost on the way
//! through the host. Going through `f64` instead would make two neighbours of some numbers, and the same
//! delta merged twice would leave both.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::value::RawValue;

/// How deep lists and objects may be nested in a value.
pub const MAX_DEPTH: usize = 64;

/// A JSON value as its canonical text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Json(Box<str>);

/// Why a text is no value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum JsonError {
    #[error("it is not JSON: {0}")]
    Syntax(String),
    #[error("it is nested deeper than {MAX_DEPTH}")]
    Depth,
    #[error("the number {0} is beyond what a double holds")]
    Number(String),
}

impl Json {
    /// The value that any JSON `text` stands for.
    pub(super) fn parse(text: &str) -> Result<Self, JsonError> {
        let raw: &RawValue = serde_json::from_str(text).map_err(syntax)?;
        let mut out = String::with_capacity(text.len());
        canonical(raw.get(), 0, &mut out)?;
        Ok(Self(out.into()))
    }

    /// The canonical text.
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
fn syntax(error: serde_json::Error) -> JsonError {
    JsonError::Syntax(error.to_string())
}

/// Appends `text` to `out` as a JSON string.
pub(super) fn quote(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("text is always JSON"));
}

/// Appends `{"name":…,…}`, with the members as `member` writes them.
pub(super) fn object<'a, T>(
    members: impl IntoIterator<Item = (&'a str, T)>,
    out: &mut String,
    mut member: impl FnMut(T, &mut String),
) {
    out.push('{');
    for (n, (name, value)) in members.into_iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        quote(name, out);
        out.push(':');
        member(value, out);
    }
    out.push('}');
}

/// Appends `[…]`, with the items as `item` writes them.
pub(super) fn array<T>(
    items: impl IntoIterator<Item = T>,
    out: &mut String,
    mut item: impl FnMut(T, &mut String),
) {
    out.push('[');
    for (n, value) in items.into_iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        item(value, out);
    }
    out.push(']');
}

/// `text` is one valid JSON value as far as serde checks a raw one.
fn canonical(text: &str, depth: usize, out: &mut String) -> Result<(), JsonError> {
    match text.as_bytes().first() {
        Some(b'{' | b'[') if depth == MAX_DEPTH => return Err(JsonError::Depth),
        Some(b'{') => {
            let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(text).map_err(syntax)?;
            let mut result = Ok(());
            object(members.iter().map(|(name, value)| (&**name, value)), out, |value, out| {
                if result.is_ok() {
                    result = canonical(value.get(), depth + 1, out);
                }
            });
            result?;
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(syntax)?;
            let mut result = Ok(());
            array(items, out, |value, out| {
                if result.is_ok() {
                    result = canonical(value.get(), depth + 1, out);
                }
            });
            result?;
        }
        Some(b'"') => quote(&serde_json::from_str::<Cow<'_, str>>(text).map_err(syntax)?, out),
        Some(b't' | b'f' | b'n') => out.push_str(text),
        _ => number(text, out)?,
    }
    Ok(())
}

/// Writes a number's decimal value as JavaScript's `Number::toString` does, but with all of its digits.
fn number(text: &str, out: &mut String) -> Result<(), JsonError> {
    let beyond = || JsonError::Number(text.chars().take(40).collect());
    let double: f64 = text.parse().map_err(|_| beyond())?;
    if !double.is_finite() {
        return Err(beyond());
    }
    if double == 0.0 {
        out.push('0');
        return Ok(());
    }
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let exponent: i64 = exponent.parse().map_err(|_| beyond())?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0');
    let digits = significant.trim_end_matches('0');
    let length = |text: &str| text.len().cast_signed() as i64;
    // Where the point stands: the value is 0.DIGITS times ten to the power of this.
    let point = exponent - length(fraction) + length(significant);
    out.push_str(sign);
    let zeros = |n: i64| "0".repeat(n as usize);
    match point - length(digits) {
        0 => out.push_str(digits),
        missing @ 1.. if point <= 21 => _ = write!(out, "{digits}{}", zeros(missing)),
        ..0 if (1..=21).contains(&point) => {
            let (whole, fraction) = digits.split_at(point as usize);
            _ = write!(out, "{whole}.{fraction}");
        }
        _ if (-5..=0).contains(&point) => _ = write!(out, "0.{}{digits}", zeros(-point)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            _ = write!(out, "{first}{dot}{rest}e{:+}", point - 1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Json, JsonError, MAX_DEPTH};

    fn text(of: &str) -> String {
        Json::parse(of).unwrap().text().to_owned()
    }

    #[test]
    fn numbers_are_written_as_javascript_writes_them() {
        for (written, canonical) in [
            ("1", "1"),
            ("1.0", "1"),
            ("10e-1", "1"),
            ("-0", "0"),
            ("-0.0e5", "0"),
            ("1e-400", "0"),
            ("100", "100"),
            ("1e20", "100000000000000000000"),
            ("1E21", "1e+21"),
            ("1000000000000000000000", "1e+21"),
            ("1.50", "1.5"),
            ("-123.456", "-123.456"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1e-7"),
            ("1.25e-7", "1.25e-7"),
            ("9007199254740993", "9007199254740993"),
            ("123456789012345678901234567891", "123456789012345678901234567891"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("0.30000000000000004", "0.30000000000000004"),
        ] {
            assert_eq!(text(written), canonical, "{written}");
        }
        assert!(matches!(Json::parse("1e309"), Err(JsonError::Number(_))));
    }

    #[test]
    fn equal_values_have_one_text() {
        assert_eq!(text(r#" { "b" : [ 1.0 , null ], "a" : "\u0061/" } "#), r#"{"a":"a/","b":[1,null]}"#);
        assert_eq!(text(r#"{"a":1,"a":2}"#), r#"{"a":2}"#);
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(text(&nested(MAX_DEPTH)), nested(MAX_DEPTH));
        assert_eq!(Json::parse(&nested(MAX_DEPTH + 1)), Err(JsonError::Depth));
        assert_eq!(Json::parse(&nested(100_000)), Err(JsonError::Depth));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for wrong in ["", "nul", "01", "[1,]", "1 2", r#""\ud800""#, r#"{"\ud800":1}"#, "NaN"] {
            assert!(matches!(Json::parse(wrong), Err(JsonError::Syntax(_))), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn doubles_keep_their_value(bits in any::<u64>()) {
            let double = f64::from_bits(bits);
            prop_assume!(double.is_finite());
            let canonical = text(&format!("{double:e}"));
            prop_assert_eq!(canonical.parse::<f64>().unwrap().to_bits() << 1, bits << 1);
            prop_assert_eq!(text(&canonical), canonical);
            prop_assert_eq!(text(&format!("{double}")), text(&format!("{double:e}")));
        }
    }
}
