//! Resource limits and the way people write them.

use std::time::Duration;

/// Resource limits. `None` sets nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Wall-clock time after which the whole tree is asked to end.
    pub timeout: Option<Duration>,
    /// How long after that it is killed.
    pub kill_after: Option<Duration>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// CPUs that may be used at once.
    pub cpus: Option<u32>,
    /// Bytes that one file may grow to.
    pub file_size: Option<u64>,
    /// Descriptors that one process may have open.
    pub open_files: Option<u64>,
    /// Bytes in all tmpfs that share one size.
    pub tmpfs_size: Option<u64>,
}

impl Limits {
    /// Grace between SIGTERM and SIGKILL when none is given.
    pub const DEFAULT_KILL_AFTER: Duration = Duration::from_secs(10);
}

/// Why a limit can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Not a size.
    #[error("{0:?} is not a size; write a number of bytes, or one with K, M, G or T (powers of 1024)")]
    Size(String),
    /// Not a duration.
    #[error("{0:?} is not a duration; write seconds, or a number with ms, s, m, h or d, such as \"90s\" or \"1h 30m\"")]
    Duration(String),
}

/// A number of bytes: `4096`, `64K`, `2G`, `2GiB` (powers of 1024).
///
/// # Errors
/// [`LimitsError::Size`] for anything else, for zero, and for more than 2^63-1.
pub fn parse_size(text: &str) -> Result<u64, LimitsError> {
    let refuse = || LimitsError::Size(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refuse()),
    };
    let number: u64 = number.parse().map_err(|_| refuse())?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 && i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(refuse()),
    }
}

/// A duration: bare seconds (`90`, `1.5`) or humantime's units (`10m`, `1h 30m`).
///
/// # Errors
/// [`LimitsError::Duration`] for anything else and for zero.
pub fn parse_duration(text: &str) -> Result<Duration, LimitsError> {
    let refuse = || LimitsError::Duration(text.to_owned());
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| refuse())?,
        Err(_) => humantime::parse_duration(text).map_err(|_| refuse())?,
    };
    if duration.is_zero() { Err(refuse()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("64 KiB"), Ok(64 << 10));
        for bad in ["", "G", "-1", "1X", "0", "1.5G", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_seconds_or_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        for bad in ["", "0", "-1", "nan", "inf", "10 parsecs", "1e400"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
