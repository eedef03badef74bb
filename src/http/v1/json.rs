//! JSON in and out: bodies as [`Param`], and the documents of sections 5.2 to 5.5.
//!
//! A body that is not an object gives no parameters (R-21). Depth is bounded by the parser (127 levels), and so is the
//! number of values: one of a byte or two is a [`Param`] of many. Floats are always written with a fraction, because
//! clients tell them from integers by it.

use std::fmt;

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::Serialize;

use super::params::{Fields, Param};
use crate::executor::guests::{Created, GuestInfo};
use crate::units::timestamp;

/// Values in one document, those that hold others included.
const MAX_VALUES: usize = 200_000;

/// The parameters in a JSON body (R-21).
pub(super) fn fields(body: &[u8]) -> Fields {
    match read(body) {
        Ok(Param::Map(fields)) => fields,
        _ => Fields::new(),
    }
}

/// Any document. One of too many values is as broken as one of too many levels.
pub(super) fn read(text: &[u8]) -> serde_json::Result<Param> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let value = Any { left: &mut { MAX_VALUES } }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// One value of a document, and how many more it may have.
struct Any<'a> {
    left: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Any<'_> {
    type Value = Param;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Param, D::Error> {
        *self.left = self.left.checked_sub(1).ok_or_else(|| de::Error::custom("too many values"))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_> {
    type Value = Param;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Param, E> {
        Ok(Param::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Param, E> {
        Ok(Param::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Param, E> {
        Ok(Param::Int(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Param, E> {
        Ok(i64::try_from(number).map_or(Param::Float(number as f64), Param::Int))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Param, E> {
        Ok(Param::Float(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Param, E> {
        Ok(Param::Text(Bytes::copy_from_slice(text.as_bytes())))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Param, E> {
        Ok(Param::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Param, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element_seed(Any { left: self.left })? {
            list.push(value);
        }
        Ok(Param::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Param, A::Error> {
        let mut fields = Fields::new();
        while let Some(name) = entries.next_key()? {
            fields.insert(name, entries.next_value_seed(Any { left: self.left })?);
        }
        Ok(Param::Map(fields))
    }
}

/// Writes a document of ours.
pub(super) fn write(document: &impl Serialize) -> Bytes {
    serde_json::to_vec(document).expect("our documents have text keys and do not fail").into()
}

#[derive(serde::Serialize)]
struct CreatedDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    output: Vec<Entry>,
    #[serde(rename = "startTime")]
    start_time: f64,
    duration: f64,
}

#[derive(serde::Serialize)]
struct Entry {
    timestamp: String,
    content: String,
}

/// R-68
pub(super) fn created(created: Created) -> Bytes {
    let entry = |entry: &crate::executor::guests::OutputEntry| Entry {
        timestamp: timestamp(entry.at),
        content: String::from_utf8_lossy(&entry.content).into_owned(),
    };
    write(&CreatedDocument {
        size: created.size,
        output: created.output.iter().map(entry).collect(),
        path: created.path,
        start_time: created.start_time,
        duration: created.duration,
    })
}

#[derive(serde::Serialize)]
pub(super) struct InfoDocument {
    version: String,
    created: f64,
    updated: f64,
    name: String,
    hostname: String,
    status: String,
    key: String,
    listening: u8,
    image: String,
    initialised: u8,
}

impl From<GuestInfo> for InfoDocument {
    /// R-80
    fn from(info: GuestInfo) -> Self {
        Self {
            version: info.version,
            created: info.created,
            updated: info.updated,
            name: info.name,
            hostname: info.hostname,
            status: info.status,
            key: info.key,
            listening: info.listening.into(),
            image: info.image,
            initialised: info.initialised.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::executor::guests::OutputEntry;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn r_21_only_an_object_gives_parameters() {
        for none in ["", "[]", "[1]", "1", "\"a\"", "null", "{", "{\"a\":1}x", "{\"a\":\"\\ud800\"}"] {
            assert_eq!(fields(none.as_bytes()), Fields::new(), "{none}");
        }
        assert_eq!(fields(b"{\"a\":\"\xff\"}"), Fields::new());
        let some = fields(br#"{"b":1,"a":-2.5,"c":null,"d":[true,{}],"e":"x","b":18446744073709551615}"#);
        let names: Vec<_> = some.keys().map(String::as_str).collect();
        assert_eq!(names, ["b", "a", "c", "d", "e"], "in order, the last value of a name counts");
        assert_eq!(some["b"], Param::Float(18_446_744_073_709_551_615.0));
        assert_eq!(some["d"], Param::List(vec![Param::Bool(true), Param::Map(Fields::new())]));
    }

    #[test]
    fn r_21_deep_json_is_refused_at_its_bound() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(fields(nested(126).as_bytes()).len(), 1);
        assert_eq!(fields(nested(127).as_bytes()).len(), 0);
        assert_eq!(fields(nested(1_000_000).as_bytes()).len(), 0);
    }

    #[test]
    fn r_21_json_of_many_values_is_refused_above_its_bound() {
        // The object and the list are values, too.
        let many = |zeros: usize| format!("{{\"a\":[0{}]}}", ",0".repeat(zeros - 1));
        let most = fields(many(MAX_VALUES - 2).as_bytes());
        assert!(matches!(&most["a"], Param::List(zeros) if zeros.len() == MAX_VALUES - 2));
        assert_eq!(fields(many(MAX_VALUES - 1).as_bytes()), Fields::new());
        // Also where they replace each other, and where each holds the next.
        let same = |times: usize| format!("{{\"a\":0{}}}", ",\"a\":0".repeat(times - 1));
        assert_eq!(fields(same(MAX_VALUES - 1).as_bytes()).len(), 1);
        assert_eq!(fields(same(MAX_VALUES).as_bytes()).len(), 0);
        let nested = |times: usize| format!("{{\"a\":[{{}}{}]}}", ",[{}]".repeat(times));
        assert_eq!(fields(nested((MAX_VALUES - 3) / 2).as_bytes()).len(), 1);
        assert_eq!(fields(nested((MAX_VALUES - 3) / 2 + 1).as_bytes()).len(), 0);
    }

    #[test]
    fn r_68_creation_byte_for_byte() {
        let mut given = Created {
            size: Some(1234),
            path: Some("/storage/builds/test/6a5f0c1d2e3f4.gz".into()),
            output: vec![OutputEntry {
                at: at(1_795_176_000_123),
                content: Bytes::from_static(b"\xc3\xa4/\xff\n"),
            }],
            start_time: 1_795_176_000.12,
            duration: 3.0,
        };
        let document = created(given.clone());
        assert_eq!(
            std::str::from_utf8(&document).unwrap(),
            "{\"size\":1234,\"path\":\"/storage/builds/test/6a5f0c1d2e3f4.gz\",\"output\":[{\"timestamp\":\
             \"2026-11-20T12:00:00.123+00:00\",\"content\":\"ä/\u{fffd}\\n\"}],\"startTime\":1795176000.12,\
             \"duration\":3.0}"
        );
        (given.size, given.path, given.output) = (None, None, Vec::new());
        assert_eq!(&created(given)[..], br#"{"output":[],"startTime":1795176000.12,"duration":3.0}"#);
    }

    #[test]
    fn r_80_info_byte_for_byte() {
        let info = GuestInfo {
            version: "v5".into(),
            created: 1.0,
            updated: 2.5,
            name: "host-a".into(),
            hostname: "host".into(),
            status: "Up 1.23s".into(),
            key: "k".into(),
            listening: true,
            image: "i".into(),
            initialised: false,
        };
        let told = r#"{"version":"v5","created":1.0,"updated":2.5,"name":"host-a","hostname":"host","status":"Up 1.23s","key":"k","listening":1,"image":"i","initialised":0}"#;
        assert_eq!(write(&InfoDocument::from(info)), told);
    }

    #[test]
    fn r_141_timestamps() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000+00:00"),
            (951_782_400_000, "2000-02-29T00:00:00.000+00:00"),
            (951_868_799_999, "2000-02-29T23:59:59.999+00:00"),
            (951_868_800_000, "2000-03-01T00:00:00.000+00:00"),
            (1_795_176_000_001, "2026-11-20T12:00:00.001+00:00"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000+00:00"),
        ] {
            assert_eq!(timestamp(at(millis)), text);
        }
    }
}
