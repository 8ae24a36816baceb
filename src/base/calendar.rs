//! Hours and seconds of the calendar, in UTC.

use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An hour of the calendar, counted from 1970; displayed as `2026-11-24T05Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(pub u64);

impl Hour {
    /// The hour of a time in seconds since 1970.
    pub const fn at(unix_seconds: u64) -> Self {
        Self(unix_seconds / 3600)
    }
}

/// A second of the calendar, counted from 1970; displayed as `2026-11-24T05:06:07Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0 / 86_400);
        let second = self.0 % 86_400;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0 / 24);
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}Z", self.0 % 24)
    }
}

impl Serialize for Hour {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Hour {
    type Err = String;

    /// Parses `YYYY-MM-DD` or `YYYY-MM-DDTHH`, with or without `Z`; always UTC.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a day or an hour such as 2026-11-24 or 2026-11-24T05");
        let plain = text.strip_suffix('Z').unwrap_or(text);
        let (day, hour) = plain.split_once('T').unwrap_or((plain, "00"));
        let number = |part: &str, digits: usize| {
            let is_plain = part.len() == digits && part.bytes().all(|c| c.is_ascii_digit());
            is_plain.then(|| part.parse::<u64>().ok()).flatten().ok_or_else(wrong)
        };
        let fields: Vec<&str> = day.split('-').collect();
        let [year, month, day] = fields[..] else { return Err(wrong()) };
        let date = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
        let hour = number(hour, 2)?;
        // A day that does not exist, such as February 30, converts back to another date.
        let days = days(date).filter(|&days| civil(days) == date).ok_or_else(wrong)?;
        if hour < 24 { Ok(Self(days * 24 + hour)) } else { Err(wrong()) }
    }
}

/// Converts days since 1970 to year, month and day (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
/// Years begin in March, so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// The inverse of `civil`; none before 1970.
fn days((year, month, day): (u64, u64, u64)) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year) = (year / 400, year % 400);
    let month = (month + 9) % 12;
    let day = (153 * month + 2) / 5 + day;
    (era * 146_097 + year * 365 + year / 4 + day).checked_sub(year / 100 + 1 + 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_written_as_a_date_and_a_time() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_795_500_367, "2026-11-24T06:06:07Z"),
        ] {
            assert_eq!(Timestamp(second).to_string(), text);
        }
    }

    #[test]
    fn an_hour_is_read_as_it_is_written() {
        for (text, hour) in [
            ("1970-01-01", 0),
            ("2000-02-29T23", 264407),
            ("2026-11-24T05Z", 498749),
            ("2100-03-01", 1140984),
        ] {
            assert_eq!(text.parse(), Ok(Hour(hour)), "{text}");
            assert_eq!(Hour(hour).to_string().parse(), Ok(Hour(hour)), "{text}");
        }
        for text in
            ["", "2026", "2026-02-30", "2026-13-01", "2026-11-24T24", "1969-12-31", "2026-1-1", "+026-01-01"]
        {
            assert!(text.parse::<Hour>().is_err(), "{text}");
        }
    }
}
