//! The decision of an adaptive limit: which limit is next, given how long calls took and how many were turned away by
//! the service. It is given all times, and knows nothing of permits.
//!
//! A service that is loaded beyond what it can do keeps its throughput, and its latency grows with the limit. Below
//! that, latency is that of the service alone, and throughput grows with the limit. [`Limiter`] looks for the point
//! between the two.

use std::{ops::RangeInclusive, time::Duration};

/// One step takes this many calls, or twice as many as the limit if that is more. The mean of their latencies is then
/// known to about a tenth, even if they are spread exponentially.
const FEWEST: u32 = 100;

/// The limit is this many times what the service can do without a queue of its own. The queue keeps all of its workers
/// busy, and shows that more of them are there.
const HEADROOM: f64 = 1.25;

/// After this many steps the limit is lowered for one step, to see the latency of the service without a queue. Half is
/// low enough to tell a queue from chance.
const STEPS_TO_PROBE: u32 = 12;
const PROBE: f64 = 0.5;

/// The limit at most halves in one step. A single bad step may be an accident.
const LEAST_CHANGE: f64 = 0.5;

/// What a step of calls was like.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Step {
    /// The calls that the service completed, and the sum of their latencies.
    pub(super) calls: u32,
    pub(super) latency: Duration,
    /// The calls that the service rejected as overloaded, or did not complete in their time.
    pub(super) dropped: u32,
    /// Whether a call found no permit free. If none did, the step says nothing about a higher limit.
    pub(super) was_full: bool,
}

/// How the limit follows what calls were like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Aimd,
    Gradient,
}

/// The pure state of an adaptive limit.
#[derive(Debug)]
pub(super) struct Limiter {
    algorithm: Algorithm,
    bounds: RangeInclusive<f64>,
    limit: f64,
    /// The latency of the service without a queue.
    base: Option<f64>,
    /// The limit and the latency of the previous step, if it was full.
    before: Option<(f64, f64)>,
    /// The number of steps until the next probe.
    steps: u32,
    /// The limit to return to after a probe.
    resume: Option<f64>,
}

impl Limiter {
    pub(super) fn new(algorithm: Algorithm, bounds: RangeInclusive<usize>, start: usize) -> Self {
        let bounds = *bounds.start() as f64..=*bounds.end() as f64;
        let limit = (start as f64).clamp(*bounds.start(), *bounds.end());
        Self { algorithm, bounds, limit, base: None, before: None, steps: 0, resume: None }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.round() as usize
    }

    /// Returns the number of calls that the next step needs.
    pub(super) fn calls_of_a_step(&self) -> u32 {
        (self.limit as u32).saturating_mul(2).max(FEWEST)
    }

    /// Changes the limit after a step.
    pub(super) fn step(&mut self, step: Step) {
        let dropped = f64::from(step.dropped) / (f64::from(step.calls) + f64::from(step.dropped)).max(1.0);
        let next = match self.algorithm {
            Algorithm::Aimd => self.aimd(dropped, step.was_full),
            Algorithm::Gradient => self.gradient(step, dropped),
        };
        self.limit = next.clamp(*self.bounds.start(), *self.bounds.end());
    }

    /// Additive increase, multiplicative decrease: a step up for each step of calls that were all served, and down by
    /// the share that was not, at least a tenth. (TCP's halving is for a loss of one packet in a window.)
    fn aimd(&self, dropped: f64, was_full: bool) -> f64 {
        if !was_full {
            self.limit
        } else if dropped == 0.0 {
            self.limit + (self.limit / 10.0).max(1.0)
        } else {
            self.limit * (1.0 - dropped).clamp(LEAST_CHANGE, 0.9)
        }
    }

    /// Compares the latency of each step with that of the service without a queue, which it finds by lowering the limit:
    /// if the latency follows, it was that of a queue.
    fn gradient(&mut self, step: Step, dropped: f64) -> f64 {
        if step.calls == 0 {
            return self.aimd(dropped, step.was_full);
        }
        // Above zero, because it divides.
        let latency = step.latency.as_secs_f64().max(1e-9) / f64::from(step.calls);
        let before = self.before.replace((self.limit, latency));
        let resume = self.resume.take();
        match (before, self.base) {
            (_, None) => {
                self.base = Some(latency);
                self.steps = 0;
            }
            (Some((limit, before)), Some(base)) if self.limit < limit => {
                let is_queue = (before / latency).ln() >= 0.5 * (limit / self.limit).ln();
                if !is_queue {
                    self.base = Some((base + latency) / 2.0);
                } else {
                    self.base = Some(base.min(latency));
                    // There may be more of it.
                    self.steps = 0;
                }
                if let (Some(limit), false) = (resume, is_queue) {
                    return limit;
                }
            }
            _ => {}
        }
        if dropped > 0.0 {
            return self.aimd(dropped, step.was_full);
        }
        if !step.was_full && resume.is_none() {
            return self.limit;
        }
        if self.steps == 0 {
            self.steps = STEPS_TO_PROBE;
            self.resume = Some(self.limit);
            return self.limit * PROBE;
        }
        self.steps -= 1;
        let base = self.base.unwrap_or(latency);
        let next = self.limit * (base / latency * HEADROOM).clamp(LEAST_CHANGE, HEADROOM);
        // At a small limit, a fourth more may be none.
        if next > self.limit { next.max(self.limit + 1.0) } else { next }
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
