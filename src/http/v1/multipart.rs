//! `multipart/form-data` bodies: every part without a file name is a text field (R-22).
//!
//! The body is in memory, so parsing never waits. Bounded in parts, in the header of a part and, by `multer`, in the
//! number of its header lines. A body that is broken is a 400 that says how; parts with a file name are no parameters.

use bytes::Bytes;
use futures_util::{FutureExt, future, stream};
use multer::{Error, Multipart};

use super::error::Problem;
use super::form::{Form, MAX_FIELDS};
use super::params::Fields;

/// Bytes of the names and values of one part's headers.
const MAX_PART_HEAD: usize = 8 << 10;

/// The parameters in a multipart body; `content_type` is the request's whole header.
pub(super) fn fields(content_type: &str, body: Bytes) -> Result<Fields, Problem> {
    let boundary = multer::parse_boundary(content_type).ok().filter(|boundary| !boundary.is_empty());
    let boundary = boundary.ok_or_else(|| {
        Problem::bad_parameter(
            "The Content-Type header names no boundary; write `multipart/form-data; boundary=…`.".into(),
        )
    })?;
    let body = stream::once(future::ready(Ok::<_, std::convert::Infallible>(body)));
    // All of it is there: a parser that wants to wait wants what will never come.
    read(Multipart::new(body, boundary))
        .now_or_never()
        .unwrap_or_else(|| Err(broken(&Error::IncompleteStream)))
}

async fn read(mut parts: Multipart<'_>) -> Result<Fields, Problem> {
    let mut form = Form::default();
    let mut count = 0;
    while let Some(part) = parts.next_field().await.map_err(|error| broken(&error))? {
        count += 1;
        if count > MAX_FIELDS {
            return Err(Problem::bad_parameter(format!(
                "The multipart body has more than {MAX_FIELDS} parts."
            )));
        }
        let head: usize = part.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if head > MAX_PART_HEAD {
            return Err(Problem::bad_parameter(format!(
                "The headers of a part have {head} bytes; at most {MAX_PART_HEAD} are allowed."
            )));
        }
        if part.file_name().is_some() {
            continue;
        }
        let Some(name) = part.name().map(ToOwned::to_owned) else {
            return Err(Problem::bad_parameter(
                "A part of the multipart body has no name in its Content-Disposition header.".into(),
            ));
        };
        form.add(&name, part.bytes().await.map_err(|error| broken(&error))?)?;
    }
    Ok(form.finish())
}

fn broken(error: &Error) -> Problem {
    let why = match error {
        Error::IncompleteFieldData { field_name: Some(name) } => {
            let name: String = name.chars().take(64).collect();
            format!("it ends in the middle of the field `{name}`, without the closing delimiter")
        }
        Error::IncompleteStream | Error::IncompleteFieldData { .. } => {
            "it has no closing delimiter, or another boundary than the Content-Type header names".to_owned()
        }
        Error::IncompleteHeaders | Error::ReadHeaderFailed(_) => {
            "the headers of a part are not header lines, or too many".to_owned()
        }
        other => other.to_string(),
    };
    Problem::bad_parameter(format!("The multipart body is broken: {why}."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::v1::params::Param;

    const TYPE: &str = "multipart/form-data; boundary=B";

    fn shown(content_type: &str, body: &str) -> String {
        match fields(content_type, Bytes::copy_from_slice(body.as_bytes())) {
            Ok(fields) => Param::Map(fields).to_text().unwrap(),
            Err(problem) => {
                assert_eq!((problem.status.as_u16(), problem.kind), (400, "general_unknown"));
                problem.message
            }
        }
    }

    fn part(name: &str, more: &str, value: &str) -> String {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n{value}\r\n")
    }

    #[test]
    fn r_22_parts_without_a_file_name_are_text() {
        for (parts, made) in [
            (String::new(), "{}"),
            (part("a", "", "1"), r#"{"a":"1"}"#),
            (part("a", "", ""), r#"{"a":""}"#),
            (part("a", "", "x\r\n--A\r\n"), r#"{"a":"x\r\n--A\r\n"}"#),
            (part("a", "\r\nContent-Type: application/json", "{}"), r#"{"a":"{}"}"#),
            (part("a", "\r\nContent-Type: application/octet-stream", "x"), r#"{"a":"x"}"#),
            (
                part("headers[host]", "", "x") + &part("headers[b][c]", "", "y"),
                r#"{"headers":{"host":"x","b":{"c":"y"}}}"#,
            ),
            (part("f", "; filename=\"x.txt\"", "file") + &part("a", "", "1"), r#"{"a":"1"}"#),
            (part("a", "", "1") + &part("a", "", "2"), r#"{"a":"2"}"#),
        ] {
            assert_eq!(shown(TYPE, &format!("{parts}--B--\r\n")), made, "{parts}");
            assert_eq!(shown(TYPE, &format!("{parts}--B--")), made, "without the last line end: {parts}");
        }
        assert_eq!(
            shown("multipart/form-data; boundary=\"B\"", &format!("{}--B--", part("a", "", "1"))),
            r#"{"a":"1"}"#
        );
    }

    #[test]
    fn r_22_values_are_raw_bytes() {
        let body = b"--B\r\nContent-Disposition: form-data; name=\"body\"\r\n\r\n\xff\0\r\n\n\r\n--B--\r\n";
        let fields = fields(TYPE, Bytes::from_static(body)).unwrap();
        assert_eq!(fields["body"], Param::Text(Bytes::from_static(b"\xff\0\r\n\n")));
    }

    #[test]
    fn r_22_what_is_broken_is_said() {
        let no_end = "it has no closing delimiter, or another boundary than the Content-Type header names";
        let cut = "it ends in the middle of the field `a`, without the closing delimiter";
        let bad_head = "the headers of a part are not header lines, or too many";
        let lines = (0..33).fold(String::new(), |all, n| format!("{all}\r\nx-{n}: 1"));
        for (body, why) in [
            (String::new(), no_end),
            ("--".into(), no_end),
            ("--B".into(), no_end),
            ("--C\r\n".into(), no_end),
            (part("a", "", "1").replace("--B", "--C") + "--C--", no_end),
            (part("a", "", "1"), cut),
            (part("a", "", "1").trim_end().to_owned(), cut),
            (part("a", "", "1") + "--B", no_end),
            (part("a", "", "1") + "--B\r\nContent-Disp", no_end),
            ("--B\r\n: x\r\n\r\n1\r\n--B--".into(), bad_head),
            (part("a", &lines, "1") + "--B--", bad_head),
        ] {
            assert_eq!(shown(TYPE, &body), format!("The multipart body is broken: {why}."), "{body}");
        }
        for bad in ["multipart/form-data", "multipart/form-data; boundary", "multipart/form-data; boundary="]
        {
            let said = shown(bad, &format!("{}--B--", part("a", "", "1")));
            assert!(said.starts_with("The Content-Type header names no boundary"), "{bad}: {said}");
        }
        assert_eq!(
            shown(TYPE, "--B\r\nContent-Disposition: form-data\r\n\r\n1\r\n--B--"),
            "A part of the multipart body has no name in its Content-Disposition header."
        );
    }

    #[test]
    fn parts_and_their_headers_are_bounded() {
        let many = |count: usize| part("a", "", "1").repeat(count) + "--B--";
        assert_eq!(shown(TYPE, &many(MAX_FIELDS)), r#"{"a":"1"}"#);
        assert_eq!(shown(TYPE, &many(MAX_FIELDS + 1)), "The multipart body has more than 1000 parts.");
        assert_eq!(shown(TYPE, &many(100_000)), "The multipart body has more than 1000 parts.");
        let files = part("a", "; filename=f", "").repeat(MAX_FIELDS + 1) + "--B--";
        assert_eq!(shown(TYPE, &files), "The multipart body has more than 1000 parts.");
        let fixed = "content-disposition".len() + "form-data; name=\"a\"".len() + "x".len();
        let huge = |size: usize| part("a", &format!("\r\nx: {}", "y".repeat(size - fixed)), "1") + "--B--";
        assert_eq!(shown(TYPE, &huge(MAX_PART_HEAD)), r#"{"a":"1"}"#);
        assert_eq!(
            shown(TYPE, &huge(MAX_PART_HEAD + 1)),
            "The headers of a part have 8193 bytes; at most 8192 are allowed."
        );
        assert!(shown(TYPE, &huge(4 << 20)).starts_with("The headers of a part have"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            pieces in proptest::collection::vec(prop_oneof![
                Just(b"--B".to_vec()), Just(b"\r\n".to_vec()), Just(b"--".to_vec()), Just(b"\r\n\r\n".to_vec()),
                Just(b"Content-Disposition: form-data; name=\"a[b]\"".to_vec()), Just(b"; filename=\"".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..8),
            ], 0..40),
        ) {
            let _ = fields(TYPE, pieces.concat().into());
        }

        #[test]
        fn any_content_type_is_read_or_refused(content_type in "\\PC{0,60}") {
            let _ = fields(&content_type, Bytes::from_static(b"--B--"));
            let _ = fields(&format!("multipart/form-data; boundary={content_type}"), Bytes::from_static(b"--B--"));
        }

        #[test]
        fn every_value_comes_through(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assume!(memchr::memmem::find(&value, b"\r\n--B").is_none());
            let mut body = b"--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n".to_vec();
            body.extend_from_slice(&value);
            body.extend_from_slice(b"\r\n--B--\r\n");
            prop_assert_eq!(&fields(TYPE, body.into()).unwrap()["a"], &Param::Text(value.into()));
        }
    }
}
