//! Durations and sizes as people type them.

use std::time::Duration;

/// `5s`, `500ms`, `2m`, or a bare number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|cause| {
        format!("'{text}' is no duration ({cause}); write it like 5s, 500ms or 2m")
    })
}

/// `256MiB`, `64k`, or a bare number of bytes. `k`, `M`, `G`, `T` and `KiB` … count by 1024, `kB`
/// … by 1000, in upper or lower case.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size; write it like 256MiB, 64k or 1048576");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let (prefix, base) = match unit.as_str() {
        "" | "b" => return Ok(number),
        unit => match (unit.strip_suffix("ib"), unit.strip_suffix('b')) {
            (Some(prefix), _) => (prefix, 1024_u64),
            (None, Some(prefix)) => (prefix, 1000),
            (None, None) => (unit, 1024),
        },
    };
    let power = match prefix {
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(base.pow(power))
        .ok_or_else(|| format!("'{text}' is more than a file can have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for wrong in ["", "-1s", "5 parsecs", "s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("64k"), Ok(64 << 10));
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert_eq!(size("256 mib"), Ok(256 << 20));
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("2kB"), Ok(2000));
        assert_eq!(size("12B"), Ok(12));
        for wrong in [
            "",
            "MiB",
            "-1",
            "1.5G",
            "3x",
            "5ib",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
