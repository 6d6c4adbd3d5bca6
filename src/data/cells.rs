//! What a cell of a text table says: a number, a date, true or false, or nothing.

/// Texts that stand for a missing cell, besides the empty one.
const MISSING: [&str; 9] = ["na", "n/a", "nan", "null", "none", "nil", "?", "-", "#n/a"];
const YES: [&str; 4] = ["true", "t", "yes", "y"];
const NO: [&str; 4] = ["false", "f", "no", "n"];

/// Whether a trimmed cell stands for nothing.
pub(super) fn is_missing(cell: &str) -> bool {
    cell.is_empty() || MISSING.iter().any(|m| m.eq_ignore_ascii_case(cell))
}

/// A finite number in decimal notation.
pub(super) fn number(cell: &str) -> Option<f64> {
    let numeric = cell.bytes().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    if numeric { cell.parse().ok().filter(|x: &f64| x.is_finite()) } else { None }
}

/// `1,5` as `1.5`: a number with a decimal comma, as it stands in files that are separated by semicolons.
pub(super) fn with_point(cell: &str) -> Option<String> {
    let (whole, part) = cell.split_once(',')?;
    let part_begins = part.bytes().next().is_some_and(|b| b.is_ascii_digit());
    let pointed = format!("{whole}.{part}");
    (part_begins && !whole.contains('.') && number(&pointed).is_some()).then_some(pointed)
}

/// True or false in words.
pub(super) fn truth(cell: &str) -> Option<bool> {
    let among = |words: &[&str]| words.iter().any(|w| w.eq_ignore_ascii_case(cell));
    if among(&YES) { Some(true) } else { among(&NO).then_some(false) }
}

/// Days since 1970-01-01 of an ISO 8601 date: `2014-07-01`, `2014/07/01`, with an optional time `00:30`, `00:30:15`
/// or `00:30:15.25` behind `T` or a space, and an optional `Z` or `+02:00`.
pub fn date(cell: &str) -> Option<f64> {
    let (day, rest) = (cell.get(..10)?, cell.get(10..)?);
    let separator = *day.as_bytes().get(4)?;
    if !matches!(separator, b'-' | b'/') || day.as_bytes()[7] != separator {
        return None;
    }
    let (year, month, day) = (digits(&day[..4])?, digits(&day[5..7])?, digits(&day[8..])?);
    if !(1..=12).contains(&month) || day == 0 || day > days_in(year, month) {
        return None;
    }
    Some(days(year, month, day) as f64 + time(rest)? / 86_400.0)
}

/// Seconds of the time behind a date.
fn time(text: &str) -> Option<f64> {
    if text.is_empty() {
        return Some(0.0);
    }
    let text = text.strip_prefix([' ', 'T'])?;
    let zone = text.find(['Z', '+', '-']).unwrap_or(text.len());
    let (clock, zone) = (text[..zone].trim_end(), &text[zone..]);
    let mut parts = clock.split(':');
    let (hour, minute) = (digits(parts.next()?)?, digits(parts.next()?)?);
    let second = parts.next().map_or(Some(0.0), |s| number(s).filter(|x| (0.0..61.0).contains(x)))?;
    if hour > 23 || minute > 59 || parts.next().is_some() {
        return None;
    }
    let offset = match zone.as_bytes() {
        [] | [b'Z'] => 0,
        [sign, rest @ ..] => {
            let rest = std::str::from_utf8(rest).ok()?;
            let (h, m) = rest.split_once(':').or_else(|| rest.split_at_checked(2)).unwrap_or((rest, ""));
            let minutes = 60 * digits(h)? + if m.is_empty() { 0 } else { digits(m)? };
            if *sign == b'-' { -minutes } else { minutes }
        }
    };
    Some((3600 * hour + 60 * (minute - offset)) as f64 + second)
}

/// At most four decimal digits.
fn digits(text: &str) -> Option<i64> {
    let plain = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar. Years begin in March, so that the leap day is the last of a year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469
}

/// `2014-07-01 00:30:00` for days since 1970-01-01, held within the years 0 to 9999.
pub(super) fn date_text(days_since: f64) -> String {
    let seconds = (days_since.clamp(-719_528.0, 2_932_896.0) * 86_400.0).round() as i64;
    let (mut left, clock) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // A year that is not too late, to count on from.
    let mut year = 1970 + left.div_euclid(if left < 0 { 365 } else { 366 });
    left -= days(year, 1, 1);
    while left >= 337 + days_in(year, 2) {
        left -= 337 + days_in(year, 2);
        year += 1;
    }
    let mut month = 1;
    while left >= days_in(year, month) {
        left -= days_in(year, month);
        month += 1;
    }
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_since_1970() {
        for (text, expected) in [
            ("1970-01-01", 0.0),
            ("1969-12-31", -1.0),
            ("2000-02-29", 11016.0),
            ("2026-11-24T12:00:00Z", 20781.5),
            ("2014/07/01 06:00", 16252.25),
            ("2014-07-01 08:00:00+02:00", 16252.25),
            ("2014-07-01T00:00:43.2", 16252.0005),
        ] {
            assert!((date(text).unwrap() - expected).abs() < 1e-9, "{text}: {:?}", date(text));
        }
        for text in [
            "2014-13-01",
            "2013-02-29",
            "2014-07-0x",
            "2014-07/01",
            "2014-07-01 25:00",
            "01-07-2014",
            "é014-07-01",
        ] {
            assert_eq!(date(text), None, "{text}");
        }
        for seconds in (-3_000_000_000i64..3_000_000_000).step_by(86_400 * 97 + 12_345) {
            let text = date_text(seconds as f64 / 86_400.0);
            assert_eq!((date(&text).unwrap() * 86_400.0).round() as i64, seconds, "{text}");
        }
    }

    #[test]
    fn far_dates_have_a_text() {
        assert_eq!(date_text(f64::MAX), "9999-12-31 00:00:00");
        assert_eq!(date_text(f64::MIN), "0000-01-01 00:00:00");
    }

    #[test]
    fn cells_are_told_apart() {
        assert_eq!(["1e3", "-.5", "+7"].map(number), [Some(1000.0), Some(-0.5), Some(7.0)]);
        assert_eq!(["inf", "NaN", "1e999", "0x10", "1,5", ""].map(number), [None; 6]);
        assert_eq!(["TRUE", "no", "1"].map(truth), [Some(true), Some(false), None]);
        assert!(["", "NA", "?", "null"].into_iter().all(is_missing) && !is_missing("0"));
    }
}
