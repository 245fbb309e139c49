//! Durations, times and sizes as people read them.

use std::error::Error;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::engine::headroom::Trend;

/// `0s`, `38ms`, `3.2s`, `42s`, `2m10s`, `3h5m`, `2d4h`.
pub fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = duration.as_secs();
    match seconds {
        0 if millis == 0 => "0s".to_owned(),
        0 => format!("{millis}ms"),
        1..10 => {
            let tenths = duration.subsec_millis() / 100;
            if tenths == 0 {
                format!("{seconds}s")
            } else {
                format!("{seconds}.{tenths}s")
            }
        }
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The same, cut to as much as is worth reading again: for what moves all the time.
pub fn rough(exact: Duration) -> String {
    let seconds = exact.as_secs();
    let step = match seconds {
        0..600 => 10,
        600..3600 => 60,
        3600..172_800 => 300,
        172_800..864_000 => 3600,
        _ => 86_400,
    };
    duration(Duration::from_secs(seconds / step * step))
}

/// A count cut to two significant digits, or one more.
pub fn rough_count(exact: u64) -> u64 {
    let mut unit = 1;
    while exact / unit >= 1000 {
        unit *= 10;
    }
    exact / unit * unit
}

/// `1 document`, `2 documents`.
pub fn count(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// What a comparison came to: how much was different, and how much of that was put right.
pub fn differences(found: u64, repaired: u64) -> String {
    let found_all = count(found, "difference", "differences");
    match (found, repaired) {
        (0, _) => "no difference".to_owned(),
        (1, 0) => format!("{found_all}, not put right"),
        (1, _) => format!("{found_all}, put right"),
        _ if repaired >= found => format!("{found_all}, all put right"),
        _ => format!("{found_all}, {repaired} of them put right"),
    }
}

/// Where the time that is left is going.
pub fn trend(trend: Trend) -> String {
    match trend {
        Trend::Unknown => "unknown".to_owned(),
        Trend::Steady => "steady".to_owned(),
        Trend::Shrinking {
            seconds_per_hour,
            lost_in,
        } => format!(
            "shrinking by {} per hour, used up in {} at this rate",
            rough(Duration::from_secs(seconds_per_hour)),
            rough(lost_in)
        ),
    }
}

/// RFC 3339 in UTC, to the second.
pub fn rfc3339(time: SystemTime) -> String {
    timestamp(time).to_string()
}

/// The time as Kubernetes keeps times: to the second.
pub fn timestamp(time: SystemTime) -> Timestamp {
    // A clock outside of the years -9999 to 9999 has no honest rendering.
    let seconds = Timestamp::try_from(time).map_or(0, Timestamp::as_second);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What is at the bottom of an error. For errors of libraries that repeat their cause at every
/// level.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string()
}

/// `512 B`, `3.4 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Precision beyond 53 bits is not visible with one decimal.
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_all_the_time_is_told_roughly() {
        for (seconds, text) in [
            (9, "0s"),
            (599, "9m50s"),
            (601, "10m0s"),
            (3599, "59m0s"),
            (7599, "2h5m"),
            (180_000, "2d2h"),
            (900_000, "10d0h"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), text, "{seconds}");
        }
        for (exact, cut) in [(0, 0), (999, 999), (1000, 1000), (123_456, 123_000)] {
            assert_eq!(rough_count(exact), cut, "{exact}");
        }
        let shrinking = Trend::Shrinking {
            seconds_per_hour: 1800,
            lost_in: Duration::from_secs(7200),
        };
        assert_eq!(
            trend(shrinking),
            "shrinking by 30m0s per hour, used up in 2h0m at this rate"
        );
    }

    #[test]
    fn durations_read_well_at_every_size() {
        for (millis, text) in [
            (0, "0s"),
            (1, "1ms"),
            (38, "38ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1049, "1s"),
            (3_290, "3.2s"),
            (9_999, "9.9s"),
            (42_900, "42s"),
            (60_000, "1m0s"),
            (130_000, "2m10s"),
            (3_600_000, "1h0m"),
            (11_100_000, "3h5m"),
            (187_200_000, "2d4h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text, "{millis}");
        }
        assert_eq!(duration(Duration::from_micros(999)), "0s");
    }

    #[test]
    fn times_have_whole_seconds_in_utc() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_999);
        assert_eq!(rfc3339(time), "2026-09-21T14:13:20Z");
    }

    #[test]
    fn counts_read_well() {
        for (found, repaired, expected) in [
            (0, 0, "no difference"),
            (1, 0, "1 difference, not put right"),
            (1, 1, "1 difference, put right"),
            (3, 3, "3 differences, all put right"),
            (3, 0, "3 differences, 0 of them put right"),
        ] {
            assert_eq!(differences(found, repaired), expected);
        }
        assert_eq!(count(1, "document", "documents"), "1 document");
    }

    #[test]
    fn sizes_read_well() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3_565_158, "3.4 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(size), text, "{size}");
        }
    }
}
