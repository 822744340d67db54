//! The generator: a load that does not wait.
//!
//! ```text
//!   intended    |     |     |     |     |     |     |        start + k x interval
//!   sent        |     |     |           |||   |     |
//!                              ^-- the window was full, or we were away
//!   response          `-------------------> answer           from the intended time
//!   service                             `-> answer           from the send
//! ```
//!
//! A message is due at `start + k * interval`, whatever became of those before it.
//! It is handed over when it is due, or as soon after as the window has room, and
//! time still runs for it: a service that stalls is charged for every message that
//! should have been sent meanwhile. A generator that waited for answers would leave
//! these out and find a stall once where its users find it a thousand times
//! ("coordinated omission", Gil Tene).
//!
//! Invariants: messages are handed over in order and answered in order; at most
//! `window` of them are on their way; none is handed over before it is due; the two
//! times are recorded for the same messages.

use std::collections::VecDeque;

use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::units;

/// Of the asked rate: below, the run has failed and its latencies mean nothing.
pub(crate) const ACHIEVED_MIN: f64 = 0.995;

/// Messages handed over, or answers taken, before the other side is looked at.
const AT_ONCE: u32 = 128;

/// How far behind its schedule a load may fall before it is given up: a service that
/// is asked for three times what it can do is known by then.
const OVERTIME: u64 = 3;

/// What the load is put on: the broker, its floor, or a test's world.
pub(crate) trait Service {
    /// Nanoseconds of a steady clock.
    fn now_ns(&mut self) -> u64;

    /// Takes the next message, to leave with the next write. False without room.
    fn take(&mut self) -> Result<bool, BenchError>;

    /// Writes what was taken, as far as it goes now.
    fn write(&mut self) -> Result<(), BenchError>;

    /// Takes the next answer; answers come in the order of the messages. Looks once
    /// if none is there; false if there is none even so, after which the service may
    /// give up by an error.
    fn answer(&mut self) -> Result<bool, BenchError>;
}

/// When messages are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    /// Nanoseconds between two of them; 0 for as many as the window takes.
    interval_ns: f64,
    /// How many there are.
    messages: u64,
    /// How many of the first are not recorded: the service has just woken.
    unrecorded: u64,
}

impl Schedule {
    /// So many messages a second for so long, the first part of it not recorded.
    pub(crate) fn at_rate(per_second: f64, length_ns: u64, unrecorded_ns: u64) -> Self {
        let interval_ns = 1e9 / per_second;
        let messages = |time_ns: u64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate times a slice is far below 2^53 and not negative"
            )]
            let messages = (units::to_f64(time_ns) / interval_ns) as u64;
            messages
        };
        Self {
            interval_ns,
            messages: messages(length_ns).max(1),
            unrecorded: messages(unrecorded_ns),
        }
    }

    /// So many messages, each due at once: the window is always full.
    pub(crate) fn saturating(messages: u64) -> Self {
        Self {
            interval_ns: 0.0,
            messages,
            unrecorded: 0,
        }
    }

    /// When a message is due, from the start.
    #[inline]
    fn due_ns(&self, number: u64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a time within a run, not negative"
        )]
        let due = (units::to_f64(number) * self.interval_ns) as u64;
        due
    }

    /// How long it lasts.
    fn length_ns(&self) -> u64 {
        self.due_ns(self.messages)
    }
}

/// What both ways of counting show, for the same messages.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// From the intended time to the answer.
    pub(crate) response: Histogram,
    /// From the send to the answer.
    pub(crate) service: Histogram,
}

impl Times {
    pub(crate) fn clear(&mut self) {
        self.response.clear();
        self.service.clear();
    }
}

/// How much of a load was carried.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Carried {
    /// Messages that were due.
    pub(crate) asked: u64,
    /// How long they were to take.
    pub(crate) length_ns: u64,
    /// Messages that were answered.
    pub(crate) answered: u64,
    /// From the start to the last answer, or the schedule's length if that is more.
    pub(crate) elapsed_ns: u64,
}

impl Carried {
    pub(crate) fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.length_ns += other.length_ns;
        self.answered += other.answered;
        self.elapsed_ns += other.elapsed_ns;
    }

    /// Answers per second.
    pub(crate) fn per_second(&self) -> f64 {
        if self.elapsed_ns == 0 {
            return 0.0;
        }
        units::to_f64(self.answered) * 1e9 / units::to_f64(self.elapsed_ns)
    }

    /// Whether so much of what was asked was carried that its times mean something.
    pub(crate) fn is_enough(&self) -> bool {
        let asked_per_second =
            units::to_f64(self.asked) * 1e9 / units::to_f64(self.length_ns.max(1));
        self.answered > 0
            && self.answered == self.asked
            && self.per_second() >= ACHIEVED_MIN * asked_per_second
    }
}

/// Puts the load on the service and records what it shows.
///
/// # Errors
/// What the service fails with.
pub(crate) fn drive<S: Service>(
    service: &mut S,
    schedule: &Schedule,
    window: u64,
    times: &mut Times,
) -> Result<Carried, BenchError> {
    let start = service.now_ns();
    let length_ns = schedule.length_ns();
    let patience_ns = if schedule.interval_ns > 0.0 {
        length_ns.saturating_mul(OVERTIME)
    } else {
        u64::MAX
    };
    let mut sent_at = VecDeque::with_capacity(usize::try_from(window).unwrap_or(0));
    let (mut sent, mut answered, mut last_answer) = (0_u64, 0_u64, 0_u64);
    let mut messages = schedule.messages;
    while answered < messages {
        let mut now = service.now_ns() - start;
        if now > patience_ns && sent < messages {
            // Nothing further is sent; what is on its way is still answered.
            messages = sent;
            continue;
        }
        let mut handed = 0;
        while handed < AT_ONCE
            && sent < messages
            && sent - answered < window
            && schedule.due_ns(sent) <= now
            && service.take()?
        {
            sent_at.push_back(now);
            sent += 1;
            handed += 1;
            now = service.now_ns() - start;
        }
        if handed > 0 {
            service.write()?;
        }
        for _ in 0..AT_ONCE {
            if answered == sent || !service.answer()? {
                break;
            }
            let now = service.now_ns() - start;
            let handed_over = sent_at.pop_front().unwrap_or(now);
            if answered >= schedule.unrecorded {
                times
                    .response
                    .record_ns(now.saturating_sub(schedule.due_ns(answered)));
                times.service.record_ns(now - handed_over);
            }
            answered += 1;
            last_answer = now;
        }
    }
    Ok(Carried {
        asked: schedule.messages,
        length_ns,
        answered,
        elapsed_ns: last_answer.max(length_ns),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MICROSECOND: u64 = 1_000;
    const MILLISECOND: u64 = 1_000_000;

    /// A service in virtual time: it takes one message after the other, each for
    /// `work_ns`, and does nothing at all during its stall. Looking costs time.
    struct World {
        now: u64,
        work_ns: u64,
        stall: std::ops::Range<u64>,
        window: usize,
        /// When each message that was taken and not answered will be done.
        done_at: VecDeque<u64>,
        idle_from: u64,
        written: usize,
    }

    impl World {
        fn new(work_ns: u64, window: usize) -> Self {
            Self {
                now: 0,
                work_ns,
                stall: 0..0,
                window,
                done_at: VecDeque::new(),
                idle_from: 0,
                written: 0,
            }
        }

        fn stalling(mut self, stall: std::ops::Range<u64>) -> Self {
            self.stall = stall;
            self
        }
    }

    impl Service for World {
        fn now_ns(&mut self) -> u64 {
            self.now += 30;
            self.now
        }

        fn take(&mut self) -> Result<bool, BenchError> {
            if self.done_at.len() == self.window {
                return Ok(false);
            }
            let mut begins = self.now.max(self.idle_from);
            if self.stall.contains(&begins) {
                begins = self.stall.end;
            }
            self.idle_from = begins + self.work_ns;
            self.done_at.push_back(self.idle_from);
            Ok(true)
        }

        fn write(&mut self) -> Result<(), BenchError> {
            self.now += 300;
            self.written += 1;
            Ok(())
        }

        fn answer(&mut self) -> Result<bool, BenchError> {
            self.now += 100;
            let is_done = self.done_at.front().is_some_and(|done| *done <= self.now);
            if is_done {
                self.done_at.pop_front();
            }
            Ok(is_done)
        }
    }

    /// Samples above a bound, by walking the recorded values.
    fn above(histogram: &Histogram, bound_ns: u64) -> u64 {
        histogram
            .counts()
            .iter_recorded()
            .filter(|value| value.value_iterated_to() > bound_ns)
            .map(|value| value.count_since_last_iteration())
            .sum()
    }

    #[test]
    fn a_load_within_reach_is_carried_and_both_times_agree() {
        let mut world = World::new(2 * MICROSECOND, 1024);
        let schedule = Schedule::at_rate(100_000.0, 100 * MILLISECOND, 0);
        let mut times = Times::default();
        let carried = drive(&mut world, &schedule, 1024, &mut times).unwrap();
        assert!(carried.is_enough(), "{carried:?}");
        assert_eq!(carried.answered, 10_000);
        assert_eq!(times.response.samples(), 10_000);
        assert_eq!(times.service.samples(), 10_000);
        assert!(times.response.quantile_ns(0.99).unwrap() < 4 * MICROSECOND);
    }

    /// A closed loop, or a generator that starts its clock at the send, sees a stall
    /// of 20 ms once. Those who wanted to send meanwhile saw it two thousand times.
    #[test]
    fn a_stall_is_charged_to_every_message_that_was_due_behind_it() {
        let stall = 40 * MILLISECOND..60 * MILLISECOND;
        let mut world = World::new(2 * MICROSECOND, 1).stalling(stall);
        let schedule = Schedule::at_rate(100_000.0, 200 * MILLISECOND, 0);
        let mut times = Times::default();
        let carried = drive(&mut world, &schedule, 1, &mut times).unwrap();
        assert_eq!(carried.answered, 20_000);
        // Half of the stall: of the 2,000 that were due in it, 1,000 waited longer.
        let bound = 10 * MILLISECOND;
        assert_eq!(above(&times.service, bound), 1);
        let charged = above(&times.response, bound);
        assert!((1_000..1_500).contains(&charged), "{charged}");
        assert!(times.response.quantile_ns(0.99).unwrap() > 15 * MILLISECOND);
        assert!(times.service.quantile_ns(0.99).unwrap() < 10 * MICROSECOND);
    }

    #[test]
    fn a_stall_behind_a_wide_window_is_charged_just_the_same() {
        let stall = 40 * MILLISECOND..60 * MILLISECOND;
        let mut world = World::new(2 * MICROSECOND, 4096).stalling(stall);
        let schedule = Schedule::at_rate(100_000.0, 200 * MILLISECOND, 0);
        let mut times = Times::default();
        drive(&mut world, &schedule, 4096, &mut times).unwrap();
        let bound = 10 * MILLISECOND;
        assert!(above(&times.response, bound) >= 1_000);
        assert!(above(&times.service, bound) >= 1_000);
    }

    #[test]
    fn a_load_beyond_reach_is_not_enough() {
        // 10 µs each is 100,000 a second.
        let mut world = World::new(10 * MICROSECOND, 1024);
        let schedule = Schedule::at_rate(110_000.0, 100 * MILLISECOND, 0);
        let mut times = Times::default();
        let carried = drive(&mut world, &schedule, 1024, &mut times).unwrap();
        assert!(!carried.is_enough(), "{carried:?}");
        assert!((carried.per_second() - 100_000.0).abs() < 1_000.0);
    }

    #[test]
    fn a_load_far_beyond_reach_is_given_up_and_what_was_sent_is_answered() {
        let mut world = World::new(100 * MICROSECOND, 16);
        let schedule = Schedule::at_rate(1_000_000.0, 10 * MILLISECOND, 0);
        let mut times = Times::default();
        let carried = drive(&mut world, &schedule, 16, &mut times).unwrap();
        assert!(!carried.is_enough());
        assert!(carried.answered < carried.asked);
        assert!(world.done_at.is_empty());
        assert!(carried.elapsed_ns < 40 * MILLISECOND, "{carried:?}");
    }

    #[test]
    fn what_is_due_at_once_leaves_in_one_write_and_within_the_window() {
        let mut world = World::new(MICROSECOND, usize::MAX);
        let mut times = Times::default();
        let carried = drive(&mut world, &Schedule::saturating(64), 64, &mut times).unwrap();
        assert_eq!((carried.answered, world.written), (64, 1));
        let mut world = World::new(MICROSECOND, usize::MAX);
        drive(&mut world, &Schedule::saturating(64), 16, &mut times).unwrap();
        assert!(world.written >= 4, "{}", world.written);
    }

    #[test]
    fn saturation_is_what_the_service_can_do() {
        let mut world = World::new(5 * MICROSECOND, 1024);
        let mut times = Times::default();
        let carried = drive(&mut world, &Schedule::saturating(20_000), 1024, &mut times).unwrap();
        assert!(
            (carried.per_second() - 200_000.0).abs() < 2_000.0,
            "{carried:?}"
        );
    }

    #[test]
    fn the_first_part_is_sent_and_not_recorded() {
        let mut world = World::new(MICROSECOND, 16);
        let schedule = Schedule::at_rate(100_000.0, 10 * MILLISECOND, 2 * MILLISECOND);
        let mut times = Times::default();
        let carried = drive(&mut world, &schedule, 16, &mut times).unwrap();
        assert_eq!(carried.answered, 1_000);
        assert_eq!(times.response.samples(), 800);
    }
}
