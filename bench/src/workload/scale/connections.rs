//! Round trips on one connection, beside a thousand that are open and silent, and
//! beside none.

use std::thread;
use std::time::Duration;

use courser::Client;

use super::super::books::{close, connect};
use super::super::round_trip::{RoundTrip, Wait};
use super::super::target::Target;
use super::lane::{Lane, Scratch};
use super::{Course, Plan, ROUNDS};
use crate::compare::Noise;
use crate::error::BenchError;
use crate::goal::{Bound, Goal};
use crate::units;

/// How many lanes there are.
pub(super) const LANES: u32 = 3;

const GOAL: &str = "G16";
const BOUND: Bound = Bound::AtMost(1.10);

/// What connections cost while they are opened is over after this.
const SETTLE: Duration = Duration::from_millis(500);

/// The goal where there is no second broker.
pub(super) fn skipped(plan: &Plan) -> Goal {
    let why = "idle connections are compared between two brokers started here; leave out the \
               address of one that runs already";
    Goal::skipped(GOAL, metric(plan), plan.payload, BOUND, why.to_owned())
}

fn metric(plan: &Plan) -> String {
    let connections = units::count(plan.connections.into());
    format!("produce to ack p50, {connections} idle connections over 0")
}

impl Course<'_> {
    /// Measures on the broker of the run and on a `second` one of the same make.
    ///
    /// # Errors
    /// If a connection cannot be had or ends, or an outcome does not come.
    pub(super) fn connections(&mut self, second: &Target) -> Result<(), BenchError> {
        let (first, payload, connections) = (self.target, self.plan.payload, self.plan.connections);
        let many = format!("{} idle connections", units::count(connections.into()));
        let kinds = ["0 idle connections again", "0 idle connections", &many];
        let mut lanes = kinds.map(|kind| {
            let workload = RoundTrip::new(first.address(), payload, Wait::Polling);
            Lane::round_trips(kind.to_owned(), first, workload)
        });
        let mut scratch = Scratch::default();
        let measured =
            [(first, second), (second, first)]
                .into_iter()
                .try_for_each(|(bare, crowded)| {
                    let idle = (0..connections)
                        .map(|_| connect(crowded.address()))
                        .collect::<Result<Vec<Client>, _>>()?;
                    thread::sleep(SETTLE);
                    for (lane, target) in lanes.iter_mut().zip([bare, bare, crowded]) {
                        lane.move_to(target);
                    }
                    self.warm_up(&mut lanes, &mut scratch)?;
                    self.rounds(ROUNDS / 2, &mut lanes, &mut scratch)?;
                    idle.into_iter().try_for_each(close)
                });
        self.add(&lanes, measured.is_ok());
        measured?;
        let [again, none, many] = &lanes;
        let noise = Noise::of(again.figures(), none.figures());
        self.keep_noise(noise);
        let metric = metric(self.plan);
        self.judge((GOAL, metric), BOUND, (many, none), noise.as_ref());
        Ok(())
    }
}
