//! Faults that a build may have planted, to prove that what looks for faults finds them.
//!
//! A build with `--cfg planted="core"` has all of them in it, asleep; the variable
//! `COURSER_PLANTED` of the process wakes one by its name. In every other build
//! [`Planted::is_awake`] is a constant, and the fault is not there. The script that is
//! named beside a fault wakes it and demands that it is found; others may use it too.

use crate::sync::Ordering;

macro_rules! faults {
    ($( $(#[$doc:meta])* $fault:ident = $name:literal, found by $script:literal; )*) => {
        /// A fault in what this crate promises.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(
            not(planted = "core"),
            expect(dead_code, reason = "some faults need what only the other build has")
        )]
        pub(crate) enum Planted {
            $( $(#[$doc])* $fault, )*
        }

        #[cfg(planted = "core")]
        impl Planted {
            /// Every fault with its name.
            const ALL: &'static [(Self, &'static str)] = &[
                $( (Self::$fault, $name), )*
            ];
        }

        /// Each fault's name, the script that has to find it, and what that consists of.
        #[cfg(test)]
        const FOUND_BY: &[(&str, &str, &str)] = &[
            $( ($name, $script, include_str!(concat!("../../", $script))), )*
        ];
    };
}

faults! {
    /// Every tenth outcome of a producer is lost.
    DropCompletion = "drop_completion", found by "scripts/sim-canaries";
    /// Every tenth outcome of a producer comes behind the next one.
    SwapCompletions = "swap_completions", found by "scripts/sim-canaries";
    /// Every tenth outcome of a producer comes twice.
    DuplicateCompletion = "duplicate_completion", found by "scripts/sim-canaries";
    /// What is sent again is stored again.
    ForgetRetry = "forget_retry", found by "scripts/sim-canaries";
    /// What a producer of an epoch before sends is stored.
    IgnoreEpoch = "ignore_epoch", found by "scripts/sim-canaries";
    /// What is given back stays with who gave it back.
    LoseReturn = "lose_return", found by "scripts/sim-canaries";
    /// An outcome of a branch goes to its last open send.
    MisplaceOutcome = "misplace_outcome", found by "scripts/sim-canaries";
    /// Another shard is not woken for outcomes.
    LoseWake = "lose_wake", found by "scripts/sim-canaries";
    /// A front on another shard is not told up to where it may send.
    LoseGrant = "lose_grant", found by "scripts/sim-canaries";
    /// The first branch of a front outlives it.
    KeepBranch = "keep_branch", found by "scripts/sim-canaries";
    /// A partition is taken over while another still holds some of it.
    EarlyTakeover = "early_takeover", found by "scripts/sim-canaries";
    /// Somebody is attached to what another has alone.
    ShareWhatIsTaken = "share_what_is_taken", found by "scripts/sim-canaries";
    /// That a destination was somebody's alone does not outlast it.
    ForgetTenure = "forget_tenure", found by "scripts/sim-canaries";
    /// Who comes to the line last is its first.
    JumpTheQueue = "jump_the_queue", found by "scripts/sim-canaries";
    /// Who waits in line stays there when its link goes.
    KeepDeadTaker = "keep_dead_taker", found by "scripts/sim-canaries";
    /// Of a producer that is fenced only the front is.
    FenceFrontsAlone = "fence_fronts_alone", found by "scripts/sim-canaries";
    /// A send is completed before its flush.
    ToldTooSoon = "told_too_soon", found by "scripts/sim-canaries";
    /// A client is told of its producer before that is durable.
    AttachedTooSoon = "attached_too_soon", found by "scripts/sim-canaries";
    /// What could not be written counts as durable.
    ToldThoughFailed = "told_though_failed", found by "scripts/sim-canaries";
    /// A client is told of its producer though that never becomes durable.
    AttachedThoughFailed = "attached_though_failed", found by "scripts/sim-canaries";
    /// The entries of a batch are believed whatever its checksum says.
    BelieveEntries = "believe_entries", found by "scripts/sim-canaries";
    /// Settling is confirmed without the shards beside the front's.
    ConfirmOneShard = "confirm_one_shard", found by "scripts/sim-canaries";
    /// A checkpoint says that nothing was settled.
    ForgetSettled = "forget_settled", found by "scripts/sim-canaries";

    /// The position of a ring's writer is published without what lies before it.
    RingRelaxedPublish = "ring_relaxed_publish", found by "scripts/loom-weakened";
    /// The bytes of a ring are given back before they were read.
    RingRelaxedConsume = "ring_relaxed_consume", found by "scripts/loom-weakened";
    /// Who looks for a sleeper has no fence before that.
    RingNoFence = "ring_no_fence", found by "scripts/loom-weakened";
    /// Who announces its sleep has no fence behind that.
    RingNoSleeperFence = "ring_no_sleeper_fence", found by "scripts/loom-weakened";
    /// Whether an end has moved while it was rung for is not looked at.
    WhereaboutsOneLook = "whereabouts_one_look", found by "scripts/loom-weakened";
    /// A writer is told once for each whole ring that was read.
    TallyRarely = "tally_rarely", found by "scripts/loom-weakened";
    /// A baton is let go without the value behind it.
    BatonRelaxedRelease = "baton_relaxed_release", found by "scripts/loom-weakened";
    /// A mark on a baton is wiped out by letting go.
    BatonBlindRelease = "baton_blind_release", found by "scripts/loom-weakened";
    /// The position of a ring of values is published without the value.
    ValuesRelaxedPublish = "values_relaxed_publish", found by "scripts/loom-weakened";

    /// The size of a subscription's tail is not compared, if its name is the longer one.
    FuzzTailOfSubscription = "fuzz_tail_of_subscription", found by "scripts/fuzz";
    /// The number of runs is not compared, if it is above the subscription's.
    FuzzRunsOfSettled = "fuzz_runs_of_settled", found by "scripts/fuzz";
    /// A word about exactly what is missing goes unheard.
    RecoverHearsLess = "recover_hears_less", found by "scripts/fuzz";
}

impl Planted {
    /// Whether this fault is awake.
    #[cfg(not(planted = "core"))]
    #[inline(always)]
    pub(crate) const fn is_awake(self) -> bool {
        false
    }

    /// Whether this fault is awake.
    ///
    /// # Panics
    ///
    /// When the environment names no fault, or one that is not here.
    #[cfg(planted = "core")]
    #[expect(
        clippy::disallowed_types,
        clippy::disallowed_methods,
        reason = "the fault is the process's, and no machine's"
    )]
    pub(crate) fn is_awake(self) -> bool {
        static AWAKE: std::sync::OnceLock<Option<Planted>> = std::sync::OnceLock::new();
        *AWAKE.get_or_init(|| {
            let name = std::env::var("COURSER_PLANTED").ok()?;
            let named = Planted::ALL.iter().find(|(_, known)| *known == name);
            Some(named.expect("COURSER_PLANTED names a fault").0)
        }) == Some(self)
    }

    /// The ordering, or none if this fault is awake.
    #[inline(always)]
    pub(crate) fn relaxes(self, ordering: Ordering) -> Ordering {
        if self.is_awake() {
            Ordering::Relaxed
        } else {
            ordering
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FOUND_BY;

    #[test]
    fn every_fault_is_looked_for_by_the_script_beside_it() {
        for (name, script, content) in FOUND_BY {
            let is_part_of_a_name = |letter: char| letter.is_alphanumeric() || letter == '_';
            assert!(
                content
                    .split(|letter| !is_part_of_a_name(letter))
                    .any(|word| word == *name),
                "{script} does not look for {name}"
            );
        }
    }
}
