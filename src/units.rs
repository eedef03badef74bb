//! Durations and sizes as people write them: `15s`, `1m30s`, `256MiB`.
//!
//! One place, because `function.toml` and the command line must agree on what a unit means.
//! Both parsers are total: any text gives a value or a message that names the accepted forms.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};

/// Parses `250ms`, `15s`, `1m30s`, `2h`, `30d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || {
        format!(
            "`{text}` is not a duration; write for example \"250ms\", \"15s\", \"1m30s\", \"2h\", \"30d\""
        )
    };
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match rest[..unit_end].trim() {
            "ms" => 0.001,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(bad()),
        };
        rest = &rest[unit_end..];
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
    }
    Ok(total)
}

/// Parses `64KiB`, `256MiB`, `1GiB`, `20MB`, or a plain number of bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let bad = || {
        format!(
            "`{text}` is not a size; write for example \"64KiB\", \"256MiB\", \"1GiB\", or a number of bytes"
        )
    };
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| bad())?;
    let unit: f64 = match text[digits..].trim() {
        "" | "B" => 1.0,
        "KiB" | "K" | "k" => 1024.0,
        "MiB" | "M" => 1_048_576.0,
        "GiB" | "G" => 1_073_741_824.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return Err(bad()),
    };
    let value = number * unit;
    if value.is_finite() && value < 9e15 { Ok(value as u64) } else { Err(bad()) }
}

/// `2026-11-20T12:00:00.123+00:00`
pub fn timestamp(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).format("%Y-%m-%dT%H:%M:%S%.3f+00:00").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1.5h").unwrap(), Duration::from_mins(90));
        for bad in ["", "15", "s", "15 parsecs", "-1s", "1s-", "99999999999999999999d", "1..5s"] {
            assert!(duration(bad).unwrap_err().contains("is not a duration"), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("256MiB").unwrap(), 268_435_456);
        assert_eq!(bytes("17").unwrap(), 17);
        for bad in ["", "MiB", "1XB", "-1", "1e99GiB", "99999999999999999999GiB"] {
            assert!(bytes(bad).unwrap_err().contains("is not a size"), "{bad}");
        }
    }

    #[test]
    fn timestamps() {
        let at = |seconds, millis: u32| {
            timestamp(SystemTime::UNIX_EPOCH + Duration::new(seconds, 1_000_000 * millis))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000+00:00");
        assert_eq!(at(951_782_399, 999), "2000-02-28T23:59:59.999+00:00");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000+00:00");
        assert_eq!(at(1_795_176_000, 123), "2026-11-20T12:00:00.123+00:00");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000+00:00");
    }
}
