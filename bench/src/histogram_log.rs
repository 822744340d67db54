//! Every slice's histogram, in the interval log format of HdrHistogram.
//!
//! ```text
//!   #[StartTime: 1795305600.000 (seconds since epoch)]
//!   #[BaseTime: 1795305600.000 (seconds since epoch)]
//!   Tag=produce_to_ack/64/poll,4.311,0.312,182.270,HISTFAAAB...
//!       which series           began lasted max µs  histogram, deflated, base64
//! ```
//!
//! A percentile of a report is that of all slices of its series added up. With the
//! log somebody else can add them up, leave some out, or merge two runs; from
//! percentiles nobody can. The values are nanoseconds; the column of the largest
//! value is in microseconds.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use crate::error::BenchError;
use crate::histogram::Histogram;

/// Nanoseconds in the unit of the column of the largest value.
const MAX_DIVISOR: f64 = 1_000.0;

/// The slices of one series, deflated as they come: a plain histogram is 220 KiB.
#[derive(Debug, Clone, Default)]
pub(crate) struct Intervals {
    intervals: Vec<Interval>,
}

#[derive(Debug, Clone)]
struct Interval {
    began: SystemTime,
    lasted: Duration,
    deflated: Vec<u8>,
}

impl Intervals {
    /// Adds a slice that began then and ends now.
    pub(crate) fn add(&mut self, slice: &Histogram, began: SystemTime) {
        let mut deflated = Vec::new();
        V2DeflateSerializer::new()
            .serialize(slice.counts(), &mut deflated)
            .expect("a vector takes every byte, and counters of one slice fit their format");
        self.intervals.push(Interval {
            began,
            lasted: began.elapsed().unwrap_or_default(),
            deflated,
        });
    }
}

/// The slices of every series of a run.
#[derive(Debug, Clone, Default)]
pub struct HistogramLog {
    intervals: Vec<(String, Interval)>,
}

/// One line of a log.
#[derive(Debug, Clone)]
pub struct LoggedSlice {
    /// Which series it belongs to: what a result calls its `log_tag`.
    pub tag: String,
    /// When it began, after the first of the log.
    pub began: Duration,
    /// How long it lasted.
    pub lasted: Duration,
    /// Its latencies.
    pub histogram: Histogram,
}

impl HistogramLog {
    /// Adds a series. Characters that the format does not allow in a tag become
    /// underscores; the tag as it stands in the log is returned.
    pub(crate) fn add(&mut self, tag: &str, series: &Intervals) -> String {
        let tag = tag.replace([',', ' ', '\r', '\n'], "_");
        self.intervals.extend(
            series
                .intervals
                .iter()
                .map(|interval| (tag.clone(), interval.clone())),
        );
        tag
    }

    /// True if there is no slice in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// The log as text, in the order of time.
    ///
    /// # Errors
    /// None that would come from what is in it.
    pub fn to_text(&self) -> Result<Vec<u8>, BenchError> {
        let mut ordered: Vec<&(String, Interval)> = self.intervals.iter().collect();
        ordered.sort_by_key(|(_, interval)| interval.began);
        let base = ordered
            .first()
            .map_or(UNIX_EPOCH, |(_, interval)| interval.began);
        let failed = |problem: String| BenchError::HistogramLog { problem };
        let mut text = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let mut builder = IntervalLogWriterBuilder::new();
        builder
            .add_comment(
                "courser bench: latencies in nanoseconds; the third column in microseconds",
            )
            .with_start_time(base)
            .with_base_time(base)
            .with_max_value_divisor(MAX_DIVISOR);
        let mut writer = builder
            .begin_log_with(&mut text, &mut serializer)
            .map_err(|error| failed(error.to_string()))?;
        let mut deserializer = Deserializer::new();
        for (tag, interval) in ordered {
            let histogram: hdrhistogram::Histogram<u64> = deserializer
                .deserialize(&mut io::Cursor::new(&interval.deflated))
                .map_err(|error| failed(error.to_string()))?;
            let began = interval.began.duration_since(base).unwrap_or_default();
            writer
                .write_histogram(&histogram, began, interval.lasted, Tag::new(tag))
                .map_err(|error| failed(format!("{error:?}")))?;
        }
        Ok(text)
    }

    /// Reads a log back.
    ///
    /// # Errors
    /// If the file cannot be read or is no such log.
    pub fn read(path: &Path) -> Result<Vec<LoggedSlice>, BenchError> {
        let text = fs::read(path).map_err(|source| BenchError::File {
            doing: "read",
            path: path.to_owned(),
            source,
        })?;
        let failed = |problem: String| BenchError::HistogramLog { problem };
        let mut deserializer = Deserializer::new();
        let mut slices = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            let interval = match entry.map_err(|error| failed(format!("{error:?}")))? {
                LogEntry::Interval(interval) => interval,
                LogEntry::StartTime(_) | LogEntry::BaseTime(_) => continue,
            };
            let deflated = base64(interval.encoded_histogram()).map_err(failed)?;
            let counts = deserializer
                .deserialize(&mut io::Cursor::new(deflated))
                .map_err(|error| failed(error.to_string()))?;
            slices.push(LoggedSlice {
                tag: interval
                    .tag()
                    .map_or_else(String::new, |tag| tag.as_str().to_owned()),
                began: interval.start_timestamp(),
                lasted: interval.duration(),
                histogram: Histogram::of_counts(&counts),
            });
        }
        Ok(slices)
    }
}

/// The bytes of a text in the standard alphabet with padding (RFC 4648, 4): the log
/// format uses nothing else.
fn base64(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for &digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(format!("{:?} is no digit of base64", char::from(digit))),
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xFF).to_le_bytes()[0]);
            bits &= (1 << held) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn base64_is_read_as_the_standard_writes_it() {
        // The vectors of RFC 4648, section 10.
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        assert!(base64("Zm9v!").is_err());
    }

    #[test]
    fn slices_come_back_in_the_order_of_time_with_every_sample() {
        let slice = |from: u64| {
            let mut histogram = Histogram::new();
            for latency in from..from + 1_000 {
                histogram.record_ns(latency * 10);
            }
            histogram
        };
        let earlier = SystemTime::now();
        let later = earlier + Duration::from_millis(500);
        let (mut one, mut other) = (Intervals::default(), Intervals::default());
        one.add(&slice(5_000), later);
        one.add(&slice(1), earlier);
        other.add(&slice(700), later);
        let mut log = HistogramLog::default();
        assert_eq!(log.add("produce to ack,64", &one), "produce_to_ack_64");
        log.add("floor", &other);
        let file = std::env::temp_dir().join(format!("courser-log-{}.hlog", std::process::id()));
        fs::write(&file, log.to_text().unwrap()).unwrap();
        let slices = HistogramLog::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(slices.len(), 3);
        assert_eq!(slices[0].began, Duration::ZERO);
        assert_eq!(slices[1].began, Duration::from_millis(500));
        assert_eq!(slices[0].tag, "produce_to_ack_64");
        let mut merged = Histogram::new();
        for logged in slices.iter().filter(|slice| slice.tag != "floor") {
            merged.merge(&logged.histogram);
        }
        let mut wanted = slice(1);
        wanted.merge(&slice(5_000));
        assert_eq!(merged.percentiles(), wanted.percentiles());
    }

    #[test]
    fn something_else_is_refused() {
        let file = std::env::temp_dir().join(format!("courser-no-log-{}", std::process::id()));
        fs::write(&file, "1.0,2.0,3.0,????\n").unwrap();
        let refused = HistogramLog::read(&file).unwrap_err().to_string();
        fs::remove_file(&file).unwrap();
        assert!(refused.contains("histogram log"), "{refused}");
    }
}
