//! Resource limits and the way people write them.

use std::fmt;
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
    pub cpus: Option<Cpus>,
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

/// A number of CPUs, in thousandths: 1.5 is half of the time of a second one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

impl Cpus {
    /// The least that the scheduler can hold: a millisecond of each tenth of a second (kernel/sched/core.c, min_cfs_quota_period).
    const LEAST: u32 = 10;

    /// So many thousandths; `None` for what is too little.
    pub fn from_thousandths(thousandths: u32) -> Option<Self> {
        (thousandths >= Self::LEAST).then_some(Self(thousandths))
    }

    /// In thousandths.
    pub fn thousandths(self) -> u32 {
        self.0
    }

    /// Whole CPUs that are enough for it.
    pub fn whole(self) -> u32 {
        self.0.div_ceil(1000)
    }

    /// Whether no part of one is asked for.
    pub fn is_whole(self) -> bool {
        self.0.is_multiple_of(1000)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Why a limit can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Not a size.
    #[error("{0:?} is not a size; write a number of bytes above 0, or one with K, M, G or T (powers of 1024)")]
    Size(String),
    /// Not a number of CPUs.
    #[error("{0:?} is not a number of CPUs; write one from 0.01 up, with at most three decimals, such as 2 or \"1.5\"")]
    Cpus(String),
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

/// A number of CPUs: `2`, `1.5`, `0.25`.
///
/// # Errors
/// [`LimitsError::Cpus`] for anything else, and for less than 0.01.
pub fn parse_cpus(text: &str) -> Result<Cpus, LimitsError> {
    let refuse = || LimitsError::Cpus(text.to_owned());
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(whole) || !are_digits(part) || part.len() > 3 {
        return Err(refuse());
    }
    let whole = whole.parse::<u32>().ok().and_then(|whole| whole.checked_mul(1000)).ok_or_else(refuse)?;
    let part: u32 = format!("{part:0<3}").parse().map_err(|_| refuse())?;
    whole.checked_add(part).and_then(Cpus::from_thousandths).ok_or_else(refuse)
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
    fn cpus_are_thousandths() {
        for (text, thousandths, whole, shown) in
            [("2", 2000, 2, "2"), ("1.5", 1500, 2, "1.5"), ("0.25", 250, 1, "0.25"), ("1.0", 1000, 1, "1")]
        {
            let cpus = parse_cpus(text).unwrap();
            assert_eq!((cpus.thousandths(), cpus.whole(), cpus.to_string().as_str()), (thousandths, whole, shown));
        }
        for bad in ["", "0", "0.001", "-1", "+1", "1.", ".5", "1.2345", "1,5", "1e3", "4294968", "x"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
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
