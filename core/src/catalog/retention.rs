//! Retention: what a partition keeps, and until when.
//!
//! ```text
//!  size:                settled, as far as the bytes behind it are too few | not settled
//!  until acknowledged:  | closed, some of it not settled | closed ... | open      |
//!  until expired:       | closed, its period not over    | closed ... | open      |
//!                                                                       `- written to
//! ```
//!
//! With the last two a partition's log is divided into segments: one is closed, and the
//! next one begun, by the first message that comes once it has its size. Whole segments
//! go, and the open one stays.

use core::fmt;
use core::time::Duration;

use crate::limits;

/// What the partitions of a destination keep; fixed when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// So many bytes of what every subscription has settled; with 0 it goes at once.
    Size(u64),
    /// Each segment of this many bytes until every subscription has settled all of it.
    UntilAcknowledged {
        /// Bytes of a segment, at least.
        segment: u64,
    },
    /// Each segment of this many bytes for so long after it was closed, whether or not it
    /// was settled.
    UntilExpired {
        /// Bytes of a segment, at least.
        segment: u64,
        /// Seconds.
        period: u32,
    },
}

impl Default for Retention {
    fn default() -> Self {
        Self::SETTLED
    }
}

/// Its three numbers on the wire and in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionCode {
    /// Which policy: 0 size, 1 until acknowledged, 2 until expired.
    pub policy: u8,
    /// Bytes that are kept, or those of a segment.
    pub bytes: u64,
    /// Seconds; 0 unless until expired.
    pub period: u32,
}

/// Why there is no such retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionError {
    /// No policy has this code, or it has no such numbers.
    Unknown(RetentionCode),
    /// Segments would be too small or too large.
    Segment {
        /// What was wanted.
        wanted: u64,
    },
    /// The period is too short or too long.
    Period {
        /// What was wanted, in seconds.
        wanted: u32,
    },
}

impl fmt::Display for RetentionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(code) => write!(
                f,
                "no retention has the code {} with {} bytes and {} seconds",
                code.policy, code.bytes, code.period
            ),
            Self::Segment { wanted } => write!(
                f,
                "a segment of {wanted} bytes is wanted, and it has {} to {}",
                limits::SEGMENT_SIZE_MIN,
                limits::SEGMENT_SIZE_MAX
            ),
            Self::Period { wanted } => write!(
                f,
                "a period of {wanted} s is wanted, and it has 1 to {} s",
                limits::RETENTION_PERIOD_MAX.as_secs()
            ),
        }
    }
}

impl core::error::Error for RetentionError {}

impl Retention {
    /// What is settled goes at once.
    pub const SETTLED: Self = Self::Size(0);

    /// The one with these numbers.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn from_code(code: RetentionCode) -> Result<Self, RetentionError> {
        let RetentionCode {
            policy,
            bytes,
            period,
        } = code;
        let segment = bytes;
        let retention = match (policy, period) {
            (0, 0) => Self::Size(bytes),
            (1, 0) => Self::UntilAcknowledged { segment },
            (2, _) => Self::UntilExpired { segment, period },
            _ => return Err(RetentionError::Unknown(code)),
        };
        retention.check()?;
        Ok(retention)
    }

    /// Its numbers.
    #[must_use]
    pub fn code(self) -> RetentionCode {
        let (policy, bytes, period) = match self {
            Self::Size(bytes) => (0, bytes, 0),
            Self::UntilAcknowledged { segment } => (1, segment, 0),
            Self::UntilExpired { segment, period } => (2, segment, period),
        };
        RetentionCode {
            policy,
            bytes,
            period,
        }
    }

    /// Whether its numbers are within their bounds.
    ///
    /// # Errors
    ///
    /// Which one is not.
    pub fn check(self) -> Result<(), RetentionError> {
        let sizes = u64::from(limits::SEGMENT_SIZE_MIN)..=u64::from(limits::SEGMENT_SIZE_MAX);
        if let Some(wanted) = self.segment()
            && !sizes.contains(&wanted)
        {
            return Err(RetentionError::Segment { wanted });
        }
        match self {
            Self::UntilExpired { period: wanted, .. }
                if !(1..=limits::RETENTION_PERIOD_MAX.as_secs()).contains(&wanted.into()) =>
            {
                Err(RetentionError::Period { wanted })
            }
            _ => Ok(()),
        }
    }

    /// Bytes of a segment, where there are segments.
    #[must_use]
    pub fn segment(self) -> Option<u64> {
        match self {
            Self::Size(_) => None,
            Self::UntilAcknowledged { segment } | Self::UntilExpired { segment, .. } => {
                Some(segment)
            }
        }
    }

    /// How long a segment stays after it was closed, where that is what decides.
    #[must_use]
    pub fn period(self) -> Option<Duration> {
        match self {
            Self::UntilExpired { period, .. } => Some(Duration::from_secs(period.into())),
            Self::Size(_) | Self::UntilAcknowledged { .. } => None,
        }
    }

    /// Bytes that a partition keeps though nobody has to settle them, beside what has only
    /// to expire: of the open segment, if there are segments.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.code().bytes
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(0) => f.write_str("settled"),
            Self::Size(bytes) => write!(f, "{bytes} bytes of what is settled"),
            Self::UntilAcknowledged { segment } => {
                write!(f, "segments of {segment} bytes until acknowledged")
            }
            Self::UntilExpired { segment, period } => {
                write!(
                    f,
                    "segments of {segment} bytes until expired after {period} s"
                )
            }
        }
    }
}
