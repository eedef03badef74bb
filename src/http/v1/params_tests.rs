//! Every type of section 3.2: what it accepts, what it refuses with which words, at its bounds and one above.

use proptest::prelude::*;

use super::*;
use crate::http::v1::json;

fn with(value: Param) -> Params {
    Params([("x".to_owned(), value)].into_iter().collect())
}

fn json(value: &str) -> Params {
    let fields = json::fields(format!("{{\"x\":{value}}}").as_bytes());
    assert_eq!(fields.len(), 1, "{value}");
    Params(fields)
}

fn raw(value: &[u8]) -> Params {
    with(Param::Text(Bytes::copy_from_slice(value)))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Problem>, reason: &str) {
    let problem = result.unwrap_err();
    assert_eq!((problem.status.as_u16(), problem.kind), (400, "general_unknown"));
    assert_eq!(problem.message, format!("Invalid `x` param: {reason}"));
}

#[test]
fn r_24_null_and_missing_are_absent() {
    for params in [Params::default(), json("null")] {
        assert_eq!(params.bytes("x", 1, 2).unwrap(), None);
        assert_eq!(params.text("x", 1, 2).unwrap(), None);
        assert_eq!(params.int("x").unwrap(), None);
        assert_eq!(params.int_loose("x").unwrap(), None);
        assert_eq!(params.float("x").unwrap(), None);
        assert_eq!(params.bool("x").unwrap(), None);
        assert_eq!(params.bool_loose("x").unwrap(), None);
        assert_eq!(params.map("x").unwrap(), None);
        assert_eq!(params.map_loose("x").unwrap(), None);
        assert_eq!(params.one_of("x", &["a"], false).unwrap(), None);
        let missing = required::<String>("x", params.text("x", 1, 2).unwrap()).unwrap_err();
        assert_eq!(missing.message, "Param \"x\" is not optional.");
        assert_eq!((missing.status.as_u16(), missing.kind), (400, "general_unknown"));
    }
}

#[test]
fn r_31_text() {
    let both = "Value must be a valid string and at least 2 chars and no longer than 3 chars";
    for good in ["\"ab\"", "\"abc\"", "\"äöü\"", "\"\\ud83d\\ude00ab\""] {
        assert!(json(good).text("x", 2, 3).unwrap().is_some(), "{good}");
    }
    for bad in ["\"\"", "\"a\"", "\"abcd\"", "1", "1.5", "true", "[]", "{}", "[\"ab\"]"] {
        refused(json(bad).text("x", 2, 3), both);
        refused(json(bad).bytes("x", 2, 3), both);
    }
    refused(json("1").text("x", 0, 256), "Value must be a valid string and no longer than 256 chars");
    refused(json("\"\"").text("x", 1, 0), "Value must be a valid string and at least 1 chars");
    refused(json("1").text("x", 0, 0), "Value must be a valid string");
    assert_eq!(json("\"\"").text("x", 0, 0).unwrap().as_deref(), Some(""));
}

#[test]
fn r_22_text_counts_stray_bytes_as_one_character_each() {
    for (text, count) in [
        (&b""[..], 0),
        (b"abc", 3),
        ("äöü".as_bytes(), 3),
        (b"\xff\xfe", 2),
        (b"a\xc3", 2),
        (b"\xe2\x82", 2),
        (b"\xe2\x82\xac", 1),
        (b"\xf0\x9f\x98a\xff", 5),
        (b"\0\0", 2),
    ] {
        assert_eq!(characters(text), count, "{text:?}");
    }
    assert_eq!(raw(b"\xff\xfe").bytes("x", 2, 2).unwrap().unwrap(), &b"\xff\xfe"[..]);
    let reason = "Value must be a valid string and at least 1 chars and no longer than 2 chars";
    refused(raw(b"\xff\xfe\xfd").bytes("x", 1, 2), reason);
    refused(raw(b"\xff\xfe").text("x", 1, 2), reason);
}

#[test]
fn r_31_int() {
    let reason = "Value must be a valid signed 32-bit integer between -2,147,483,648 and 2,147,483,647";
    for (good, number) in
        [("0", 0), ("-1", -1), ("2147483647", i32::MAX), ("-2147483648", i32::MIN), ("512", 512)]
    {
        assert_eq!(json(good).int("x").unwrap(), Some(number));
        assert_eq!(json(good).int_loose("x").unwrap(), Some(number));
        assert_eq!(json(&format!("\"{good}\"")).int_loose("x").unwrap(), Some(number));
        refused(json(&format!("\"{good}\"")).int("x"), reason);
    }
    for bad in ["2147483648", "-2147483649", "1e30", "15.0", "4.5", "true", "\"\"", "[]", "{}", "[1]"] {
        refused(json(bad).int("x"), reason);
        refused(json(bad).int_loose("x"), reason);
    }
    for (good, number) in [(&b"45"[..], 45), (b" 45\n", 45), (b"+45", 45), (b"-0", 0), (b"007", 7)] {
        assert_eq!(raw(good).int_loose("x").unwrap(), Some(number));
    }
    for bad in
        [&b"45.0"[..], b"4.5", b"4e1", b"2147483648", b"x", b"", b" ", b"0x1f", b"1 2", b"--1", b"\xff"]
    {
        refused(raw(bad).int_loose("x"), reason);
    }
}

#[test]
fn r_31_float() {
    for (good, number) in
        [("1", 1.0), ("0.5", 0.5), ("-2e3", -2000.0), ("\"1.5\"", 1.5), ("\".5\"", 0.5), ("\"5.\"", 5.0)]
    {
        assert_eq!(json(good).float("x").unwrap(), Some(number));
    }
    assert_eq!(raw(b" 1e2 ").float("x").unwrap(), Some(100.0));
    for bad in [
        "true",
        "\"\"",
        "\"x\"",
        "\"1e999\"",
        "\"NaN\"",
        "\"inf\"",
        "\"-infinity\"",
        "\"0x1\"",
        "\".\"",
        "\"e5\"",
        "[]",
        "{}",
    ] {
        refused(json(bad).float("x"), "Value must be a valid float");
    }
    refused(raw(b"1\xff").float("x"), "Value must be a valid float");
}

#[test]
fn r_31_bool() {
    let reason = "Value must be a valid boolean";
    for (good, value) in [("true", true), ("false", false)] {
        assert_eq!(json(good).bool("x").unwrap(), Some(value));
        assert_eq!(json(good).bool_loose("x").unwrap(), Some(value));
    }
    for (loose, value) in [
        ("\"true\"", true),
        ("\"1\"", true),
        ("1", true),
        ("\"false\"", false),
        ("\"0\"", false),
        ("0", false),
    ] {
        assert_eq!(json(loose).bool_loose("x").unwrap(), Some(value));
        refused(json(loose).bool("x"), reason);
    }
    for bad in ["2", "-1", "1.0", "\"\"", "\"TRUE\"", "\"yes\"", "\" 1\"", "[]", "{}"] {
        refused(json(bad).bool_loose("x"), reason);
        refused(json(bad).bool("x"), reason);
    }
    refused(raw(b"\xff").bool_loose("x"), reason);
}

#[test]
fn r_31_map() {
    let reason = "Value must be a valid object.";
    let names = |map: Option<Cow<'_, Fields>>| map.unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(json(r#"{"b":1,"a":[2]}"#).map("x").unwrap()), ["b", "a"]);
    for empty in ["{}", "[]"] {
        assert_eq!(names(json(empty).map("x").unwrap()), [""; 0]);
        assert_eq!(names(raw(empty.as_bytes()).map_loose("x").unwrap()), [""; 0]);
        refused(raw(empty.as_bytes()).map("x"), reason);
    }
    assert_eq!(names(raw(br#" {"a":"1"} "#).map_loose("x").unwrap()), ["a"]);
    assert_eq!(names(json(r#"{"a":"1"}"#).map_loose("x").unwrap()), ["a"]);
    for bad in ["[1]", "[{}]", "1", "true", "\"\"", "\"x\"", "\"null\"", "\"1\"", "\"[1]\"", "\"{\"", "1.5"] {
        refused(json(bad).map("x"), reason);
        refused(json(bad).map_loose("x"), reason);
    }
    refused(raw(b"{\"a\":\"\xff\"}").map_loose("x"), reason);
}

#[test]
fn r_31_a_map_is_measured_as_escaped_json() {
    // {"a":"…"} has 8 bytes around the value.
    let fits = |value: &str, count: usize| {
        let map = format!("{{\"a\":\"{}\"}}", value.repeat(count));
        assert!(json(&map).map("x").is_ok(), "{value} {count}");
        let above = format!("{{\"a\":\"{}y\"}}", value.repeat(count));
        refused(json(&above).map("x"), "Value must be a valid object.");
    };
    fits("y", 65_527);
    // 65,527 is odd: 7 and a number of 2-byte, 6-byte and 12-byte forms.
    for (one, bytes) in [("/", 2), ("ä", 6), ("😀", 12)] {
        let count = 65_527 / bytes;
        let map = |more: usize| format!("{{\"a\":\"{}{}\"}}", one.repeat(count), "y".repeat(more));
        let left = 65_527 - count * bytes;
        assert!(json(&map(left)).map("x").is_ok(), "{one}");
        refused(json(&map(left + 1)).map("x"), "Value must be a valid object.");
    }
    let text = |size: usize| format!("{{\"a\":\"{}\"}}", "y".repeat(size - 8));
    assert!(raw(text(65_535).as_bytes()).map_loose("x").is_ok());
    refused(raw(text(65_536).as_bytes()).map_loose("x"), "Value must be a valid object.");
    let mut written = String::new();
    with(Param::Text("ä😀/\"\n".into())).0["x"].write_json(&mut written);
    assert_eq!(written, r#""\u00e4\ud83d\ude00\/\"\n""#);
}

#[test]
fn r_31_one_of() {
    let choices = ["v2", "v5"];
    assert_eq!(json("\"v5\"").one_of("x", &choices, false).unwrap(), Some(("v5".into(), 1)));
    assert_eq!(json("\"V5\"").one_of("x", &choices, true).unwrap(), Some(("V5".into(), 1)));
    for bad in ["\"V5\"", "\"\"", "\"v\"", "\"v55\"", "5", "[]", "{}", "true"] {
        refused(json(bad).one_of("x", &choices, false), "Value must be one of (v2, v5)");
    }
    refused(raw(b"v5\xff").one_of("x", &choices, true), "Value must be one of (v2, v5)");
}

#[test]
fn r_62_values_as_text() {
    for (value, text) in [
        ("true", "1"),
        ("false", ""),
        ("null", ""),
        ("1", "1"),
        ("-7", "-7"),
        ("1.0", "1"),
        ("0.1", "0.1"),
        ("1e3", "1000"),
        ("\"a b\"", "a b"),
        ("[1,\"a/b\"]", r#"[1,"a\/b"]"#),
        ("{\"ä\":1.5,\"b\":null}", r#"{"\u00e4":1.5,"b":null}"#),
    ] {
        assert_eq!(json(value).0["x"].to_text().unwrap(), text);
    }
    assert_eq!(raw(b"\xff").0["x"].to_text(), None);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..40)) {
        let params = raw(&text);
        let _ = (params.text("x", 1, 20), params.int_loose("x"), params.float("x"), params.bool_loose("x"));
        let _ = (params.map_loose("x"), params.one_of("x", &["a"], true));
    }

    #[test]
    fn characters_of_valid_text_are_its_chars(text in "\\PC{0,40}") {
        prop_assert_eq!(characters(text.as_bytes()), text.chars().count());
    }

    #[test]
    fn numbers_in_text_are_the_same(number in any::<i32>()) {
        prop_assert_eq!(raw(number.to_string().as_bytes()).int_loose("x").unwrap(), Some(number));
    }
}
