//! Faults that a build may have planted, to prove that the tests of the laws see them.
//!
//! A build with `--cfg planted="laws"` has all of them in it, asleep; the environment
//! of the process wakes one by its name. In every other build [`is`] is a constant,
//! and the fault is not there. `scripts/ring-canaries` wakes one after the other and
//! demands that the test named beside it fails.

macro_rules! faults {
    ($( $(#[$doc:meta])* $fault:ident = $name:literal, seen by $test:literal; )*) => {
        /// A fault in the handling of one law of `laws`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Fault {
            $( $(#[$doc])* $fault, )*
        }

        #[cfg(any(test, planted = "laws"))]
        impl Fault {
            /// Every fault, with its name and the test that has to see it.
            pub(crate) const ALL: &'static [(Self, &'static str, &'static str)] = &[
                $( (Self::$fault, $name, $test), )*
            ];
        }
    };
}

faults! {
    /// A cancellation's own completion is taken for the end of what it cancels.
    CancelledIsTheEnd = "law_01_cancelled_is_the_end",
        seen by "law_01_completions_come_in_any_order_and_late";
    /// The end of a write is told for another one.
    WriteToldForAnother = "law_01_write_told_for_another",
        seen by "law_01_writes_end_in_any_order_and_late";
    /// A short send counts as a whole one.
    ShortSendIsWhole = "law_02_short_send_is_whole",
        seen by "law_02_sends_and_receives_take_any_length";
    /// A send that took nothing ends the connection.
    EmptySendIsTheEnd = "law_02_empty_send_is_the_end",
        seen by "law_02_sends_and_receives_take_any_length";
    /// A short write counts as a whole one.
    ShortWriteIsWhole = "law_02_short_write_is_whole",
        seen by "law_02_writes_take_any_length";
    /// A write that failed is made again.
    FailedWriteIsRetried = "law_03_failed_write_is_retried",
        seen by "law_03_a_failed_write_is_told_and_never_made_again";
    /// A receive that the kernel refused for a while ends the connection.
    RefusedReceiveIsTheEnd = "law_03_refused_receive_is_the_end",
        seen by "law_03_a_refusal_for_the_moment_is_no_end";
    /// A send that the kernel refused for a while ends the connection.
    RefusedSendIsTheEnd = "law_03_refused_send_is_the_end",
        seen by "law_03_a_refusal_for_the_moment_is_no_end";
    /// A multishot receive that ended early is not armed again.
    NotArmedAgain = "law_04_not_armed_again",
        seen by "law_04_a_multishot_ends_at_any_time_and_is_armed_once";
    /// A multishot receive that goes on is armed again.
    ArmedTwice = "law_04_armed_twice",
        seen by "law_04_a_multishot_ends_at_any_time_and_is_armed_once";
    /// The watch over the doorbell is not armed again.
    DoorbellNotArmedAgain = "law_04_doorbell_not_armed_again",
        seen by "law_04_a_watch_over_the_doorbell_that_ends_is_armed_again";
    /// Being out of buffers ends the connection.
    NoBufferIsTheEnd = "law_05_no_buffer_is_the_end",
        seen by "law_05_an_empty_ring_of_buffers_recovers";
    /// Buffers given back are not shown to the kernel.
    BuffersNotPublished = "law_05_buffers_not_published",
        seen by "law_05_an_empty_ring_of_buffers_recovers";
    /// What the kernel kept aside is not fetched.
    BacklogNotFetched = "law_06_backlog_not_fetched",
        seen by "law_06_completions_kept_aside_are_fetched";
    /// The completion queue has as many places as many guides say.
    CompletionQueueTooSmall = "law_06_completion_queue_too_small",
        seen by "law_06_there_is_room_for_every_completion";
    /// What finds the submission queue full is lost.
    FullQueueLoses = "law_07_full_queue_loses",
        seen by "law_07_a_full_submission_queue_loses_nothing";
    /// Of what waits for room the last one goes first.
    FullQueueReorders = "law_07_full_queue_reorders",
        seen by "law_07_a_full_submission_queue_keeps_the_order";
    /// The buffer of a failed receive is not given back.
    FailedReceiveKeepsBuffer = "law_08_failed_receive_keeps_buffer",
        seen by "law_08_a_cancel_races_success_and_no_buffer_is_lost";
    /// The buffer of a receive that beat its cancellation is not given back.
    BeatenCancelKeepsBuffer = "law_08_beaten_cancel_keeps_buffer",
        seen by "law_08_a_cancel_races_success_and_no_buffer_is_lost";
    /// A ring that is dropped does not wait for what it writes.
    DropLeavesWrites = "law_08_drop_leaves_writes",
        seen by "law_08_a_write_cannot_be_cancelled_and_a_drop_waits_for_it";
    /// Large sends go without a copy.
    ZeroCopySend = "law_09_zero_copy_send",
        seen by "law_09_nothing_is_sent_without_a_copy";
    /// A send is linked to what comes next.
    LinkedSend = "law_10_linked_send",
        seen by "law_10_nothing_is_linked_and_nothing_is_flushed";
    /// A write ends when the device has it in its cache.
    WriteWithoutFlush = "law_10_write_without_flush",
        seen by "law_10_a_write_is_durable_by_itself";
    /// A slot keeps its generation for its next tenant.
    SameGeneration = "law_11_same_generation",
        seen by "law_11_a_descriptor_used_again_is_another_connection";
    /// A slot is given on while operations of its tenant are in flight.
    VacatedInFlight = "law_11_vacated_in_flight",
        seen by "law_11_a_descriptor_is_closed_after_its_last_completion";
    /// A kernel that is busy for the moment counts as one that cannot go on.
    BusyStops = "law_12_busy_stops",
        seen by "law_12_a_refused_enter_loses_nothing";
    /// A kernel that cannot go on counts as one that is busy for the moment.
    GoesOnBroken = "law_12_goes_on_broken",
        seen by "law_12_a_kernel_that_cannot_go_on_stops_the_shard";
    /// Accepting does not rest when descriptors have run out.
    NoRest = "law_13_no_rest",
        seen by "law_13_without_descriptors_accepting_rests_and_resumes";
    /// Who gave up while waiting has everybody else wait.
    AbortedRests = "law_13_aborted_rests",
        seen by "law_13_who_gave_up_while_waiting_holds_nobody_up";
    /// A registration that only saves time is demanded.
    RegistrationDemanded = "law_14_registration_demanded",
        seen by "law_14_a_registration_that_only_saves_time_may_be_refused";
    /// A registration that everything rests on is taken for granted.
    RegistrationAssumed = "law_14_registration_assumed",
        seen by "law_14_a_registration_that_is_needed_refuses_the_ring";
    /// There is nothing below io_uring.
    NoFallback = "law_15_no_fallback",
        seen by "law_15_where_the_ring_is_refused_epoll_serves";
}

/// Whether this fault is awake.
#[cfg(not(planted = "laws"))]
#[inline(always)]
pub(crate) const fn is(_: Fault) -> bool {
    false
}

/// Whether this fault is awake.
#[cfg(planted = "laws")]
pub(crate) fn is(fault: Fault) -> bool {
    static AWAKE: std::sync::OnceLock<Option<Fault>> = std::sync::OnceLock::new();
    *AWAKE.get_or_init(|| {
        let name = std::env::var("COURSER_PLANTED").ok()?;
        let named = Fault::ALL.iter().find(|(_, known, _)| *known == name);
        Some(named.expect("the environment names a fault").0)
    }) == Some(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `scripts/ring-canaries` works through.
    #[test]
    #[ignore = "prints the table for scripts/ring-canaries"]
    fn table() {
        for (_, name, test) in Fault::ALL {
            println!("canary {name} {test}");
        }
    }

    #[test]
    fn every_law_with_a_fault_has_a_test_of_its_own_number() {
        for (_, name, test) in Fault::ALL {
            assert_eq!(name[..7], test[..7], "{name} is seen by {test}");
        }
        for law in 1..=15 {
            let prefix = format!("law_{law:02}_");
            assert!(
                Fault::ALL
                    .iter()
                    .any(|(_, name, _)| name.starts_with(&prefix)),
                "no fault of {prefix}"
            );
        }
    }
}
