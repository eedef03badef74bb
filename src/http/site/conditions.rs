//! What a request's conditions and its range make of a file that is there (RFC 9110, sections 13 and 14).
//!
//! Pure. Several ranges at once are not supported and, as the RFC allows, answered with the whole file; so is a range
//! that cannot be read.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use http::header::{
    HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE,
};

/// What tells one version of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Validators {
    /// A strong entity tag, quotes included.
    pub(super) etag: HeaderValue,
    /// Seconds since 1970; `None`: the file's clock says nothing.
    pub(super) modified: Option<u64>,
}

/// What to answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it.
    Full,
    /// These bytes of it; never empty, never beyond the end.
    Part(Range<u64>),
    /// The client has it.
    NotModified,
    /// The client wanted another version.
    Failed,
    /// The file has no such bytes.
    Unsatisfiable,
}

/// Judges a GET (`ranges`) or HEAD for a file of `size` bytes.
pub(super) fn judge(headers: &HeaderMap, validators: &Validators, size: u64, ranges: bool) -> Verdict {
    let modified = validators.modified;
    if headers.contains_key(IF_MATCH) {
        if !any_tag(headers, &IF_MATCH, |tag| tag == validators.etag.as_bytes()) {
            return Verdict::Failed;
        }
    } else if date(headers, &IF_UNMODIFIED_SINCE).is_some_and(|date| modified.is_some_and(|m| m > date)) {
        return Verdict::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        let weak = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag) == validators.etag.as_bytes();
        if any_tag(headers, &IF_NONE_MATCH, weak) {
            return Verdict::NotModified;
        }
    } else if date(headers, &IF_MODIFIED_SINCE).is_some_and(|date| modified.is_some_and(|m| m <= date)) {
        return Verdict::NotModified;
    }
    match headers.get(RANGE) {
        Some(range) if ranges && same_version(headers, validators) => part(range, size),
        _ => Verdict::Full,
    }
}

/// Whether a list of tags has `*` or one that fits. Our own tags have no comma, so that no part of a foreign one can
/// look like ours.
fn any_tag(headers: &HeaderMap, name: &HeaderName, fits: impl Fn(&[u8]) -> bool) -> bool {
    let lists = headers.get_all(name).iter();
    lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b',')).any(|tag| {
        let tag = tag.trim_ascii();
        tag == b"*" || fits(tag)
    })
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let date = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
    Some(date.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

/// Whether the client's other parts are of this version, as far as it asks.
fn same_version(headers: &HeaderMap, validators: &Validators) -> bool {
    let Some(condition) = headers.get(IF_RANGE) else { return true };
    condition == validators.etag
        || (validators.modified.is_some() && date(headers, &IF_RANGE) == validators.modified)
}

fn part(range: &HeaderValue, size: u64) -> Verdict {
    let Some((first, last)) = range.to_str().ok().and_then(ends) else { return Verdict::Full };
    match (first, last) {
        (Some(first), Some(last)) if first > last => Verdict::Full,
        (Some(first), _) if first >= size => Verdict::Unsatisfiable,
        (Some(first), last) => {
            Verdict::Part(first..last.map_or(size, |last| last.saturating_add(1).min(size)))
        }
        (None, Some(0)) => Verdict::Unsatisfiable,
        (None, Some(length)) if size > 0 => Verdict::Part(size.saturating_sub(length)..size),
        (None, _) => Verdict::Full,
    }
}

/// The two numbers of one range of bytes. `None`: it is something else.
fn ends(range: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    let digits = first.bytes().chain(last.bytes()).all(|byte| byte.is_ascii_digit());
    let ends = (number(first), number(last));
    (digits && unit.eq_ignore_ascii_case("bytes") && ends != (None, None)).then_some(ends)
}

/// More than a number can hold is the largest; nothing is nothing.
fn number(digits: &str) -> Option<u64> {
    (!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Seconds since 1970 as the text of a header.
pub(super) fn http_date(seconds: u64) -> HeaderValue {
    let text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    HeaderValue::try_from(text).expect("a date is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: &str = "Sat, 01 Jan 2022 00:00:00 GMT";
    const BEFORE: &str = "Fri, 31 Dec 2021 23:59:59 GMT";

    fn validators() -> Validators {
        Validators { etag: HeaderValue::from_static("\"a-1\""), modified: Some(1_640_995_200) }
    }

    fn verdict(headers: &[(HeaderName, &'static str)], size: u64) -> Verdict {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        judge(&headers, &validators(), size, true)
    }

    #[test]
    fn dates_are_written_as_they_are_read() {
        assert_eq!(http_date(1_640_995_200), DAY);
    }

    #[test]
    fn conditions() {
        use Verdict::{Failed, Full, NotModified};
        for (headers, expected) in [
            (&[][..], Full),
            (&[(IF_NONE_MATCH, "\"a-1\"")], NotModified),
            (&[(IF_NONE_MATCH, "W/\"a-1\"")], NotModified),
            (&[(IF_NONE_MATCH, "*")], NotModified),
            (&[(IF_NONE_MATCH, "\"x\", \"a-1\"")], NotModified),
            (&[(IF_NONE_MATCH, "\"x\"")], Full),
            (&[(IF_NONE_MATCH, "a-1")], Full),
            (&[(IF_NONE_MATCH, "")], Full),
            (&[(IF_MODIFIED_SINCE, DAY)], NotModified),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Full),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Full),
            // The tag is the better witness.
            (&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, DAY)], Full),
            (&[(IF_MATCH, "\"a-1\"")], Full),
            (&[(IF_MATCH, "*")], Full),
            (&[(IF_MATCH, "\"x\"")], Failed),
            (&[(IF_MATCH, "W/\"a-1\"")], Failed),
            (&[(IF_UNMODIFIED_SINCE, DAY)], Full),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Failed),
            (&[(IF_MATCH, "\"a-1\""), (IF_UNMODIFIED_SINCE, BEFORE)], Full),
            (&[(IF_MATCH, "\"x\""), (IF_NONE_MATCH, "\"a-1\"")], Failed),
            (&[(IF_NONE_MATCH, "\"a-1\""), (RANGE, "bytes=0-1")], NotModified),
        ] {
            assert_eq!(verdict(headers, 10), expected, "{headers:?}");
        }
        let mut unknown = validators();
        unknown.modified = None;
        let headers = HeaderMap::from_iter([(IF_MODIFIED_SINCE, HeaderValue::from_static(DAY))]);
        assert_eq!(judge(&headers, &unknown, 10, true), Full);
    }

    #[test]
    fn ranges() {
        use Verdict::{Full, Part, Unsatisfiable};
        for (range, size, expected) in [
            ("bytes=0-0", 10, Part(0..1)),
            ("bytes=2-5", 10, Part(2..6)),
            ("bytes=2-", 10, Part(2..10)),
            ("bytes=9-", 10, Part(9..10)),
            ("bytes=9-9", 10, Part(9..10)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=10-11", 10, Unsatisfiable),
            ("bytes=0-99", 10, Part(0..10)),
            ("bytes=0-18446744073709551615", 10, Part(0..10)),
            ("bytes=0-99999999999999999999999", 10, Part(0..10)),
            ("bytes=99999999999999999999999-", 10, Unsatisfiable),
            ("bytes=-3", 10, Part(7..10)),
            ("bytes=-99", 10, Part(0..10)),
            ("bytes=-0", 10, Unsatisfiable),
            ("BYTES=1-2", 10, Part(1..3)),
            ("bytes= 1-2 ", 10, Part(1..3)),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Full),
            ("bytes=5-2", 10, Full),
            ("bytes=0-1,3-4", 10, Full),
            ("bytes=-", 10, Full),
            ("bytes=", 10, Full),
            ("bytes=a-b", 10, Full),
            ("bytes=+1-2", 10, Full),
            ("bytes=1--2", 10, Full),
            ("lines=1-2", 10, Full),
            ("1-2", 10, Full),
            ("", 10, Full),
        ] {
            assert_eq!(verdict(&[(RANGE, range)], size), expected, "{range} of {size}");
        }
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-1"))]);
        assert_eq!(judge(&headers, &validators(), 10, false), Full, "only GET has ranges");
    }

    #[test]
    fn a_range_of_another_version_is_answered_with_the_whole_file() {
        for (condition, expected) in [
            ("\"a-1\"", Verdict::Part(0..2)),
            ("W/\"a-1\"", Verdict::Full),
            ("\"x\"", Verdict::Full),
            (DAY, Verdict::Part(0..2)),
            (BEFORE, Verdict::Full),
            ("Sun, 02 Jan 2022 00:00:00 GMT", Verdict::Full),
        ] {
            assert_eq!(verdict(&[(RANGE, "bytes=0-1"), (IF_RANGE, condition)], 10), expected, "{condition}");
        }
    }
}
