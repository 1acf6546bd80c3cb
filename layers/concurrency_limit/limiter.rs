//! The decision of an adaptive limit: which limit is next, given how long calls took and how many were turned away by
//! the service. It is given all times, and knows nothing of permits.
//!
//! A service that is loaded beyond its capacity keeps its throughput, and its latency grows with the limit. Below
//! that, latency is that of the service alone, and throughput grows with the limit. [`Limiter`] looks for the point
//! between the two.

use std::{ops::RangeInclusive, time::Duration};

/// One step takes this many calls, or twice as many as the limit if that is more. The mean of their latencies is then
/// known to about a tenth, even if they are spread exponentially.
const FEWEST: u32 = 100;

/// The limit is this many times the calls that the service serves at a time without a queue of its own. The queue keeps
/// all of its workers busy, and shows that more of them are there.
const HEADROOM: f64 = 1.25;

/// After this many steps the limit is lowered for one step, to see the latency of the service without a queue. Half is
/// low enough to separate a queue from chance.
const STEPS_TO_PROBE: u32 = 20;
const PROBE: f64 = 0.5;

/// A limit that is lower by this factor shows whether the latency follows it.
const LOWERED: f64 = 0.75;

/// If the latency follows the limit for more than the first part, it was that of a queue. For more than the second,
/// there may be more of it, and the limit is lowered again.
const A_QUEUE: f64 = 0.5;
const A_QUEUE_STILL: f64 = 0.8;

/// If the latency falls by this factor, and by it more than the limit, the service itself has become faster: a queue is
/// no longer than the limit makes it. The limit returns to where it fell from.
const FASTER: f64 = 1.5;

/// At first, and whenever the service has become faster, the limit doubles with each step, until the latency shows the
/// first part of a queue. (TCP's slow start.)
const SLOW_START: f64 = 2.0;
const NO_QUEUE: f64 = 0.85;

/// Meanwhile a step takes as many calls as the limit, or this many: a service of long calls would otherwise keep the
/// limit of the start for minutes. If the latency is higher than without a queue, but not by this factor, or calls are
/// dropped, it may be so by chance, and the calls of the next step are needed too.
const FEWEST_AT_FIRST: u32 = 20;
const PERHAPS: f64 = 0.6;

/// The limit falls at most by this factor in one step. A single bad step may be an accident, and the service itself may
/// be slow for a moment: then a lower limit costs throughput.
const LEAST_CHANGE: f64 = 0.7;

/// Fewer dropped calls than one in this many are no sign of overload, and one in this many ends a step early: a service
/// that rejects calls at once would otherwise reject many.
const A_DROP_IN: u32 = 10;

/// If a service drops a part of its calls because of the limit, that much lower a limit ends it. If calls are dropped
/// as often a fifth below that, or at this part of the limit, the limit is not the reason. It returns to where it was,
/// and dropped calls are ignored for this number of steps.
const FUTILE: f64 = 0.125;
const BELOW: f64 = 0.8;
const STEPS_WITHOUT_DROPS: u32 = 200;

/// After this number of steps without many dropped calls, the next ones have another reason.
const CLEAN: u32 = 20;

/// The calls of one step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Step {
    /// The calls that the service completed, and the sum of their latencies.
    pub(super) calls: u32,
    pub(super) latency: Duration,
    /// The calls that the service rejected as overloaded, or did not complete in their time.
    pub(super) dropped: u32,
    /// The number of calls that found no permit free. If none did, the step says nothing about a higher limit.
    pub(super) found_full: u32,
}

impl Step {
    fn and(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            latency: self.latency.saturating_add(other.latency),
            dropped: self.dropped.saturating_add(other.dropped),
            found_full: self.found_full.saturating_add(other.found_full),
        }
    }

    /// Whether calls are dropped, but too few to know how often.
    fn may_be_chance(&self) -> bool {
        let ended = self.calls.saturating_add(self.dropped);
        self.dropped >= ended / A_DROP_IN && self.dropped > 0 && ended < FEWEST && self.dropped < FEWEST / A_DROP_IN
    }

    fn was_full(&self) -> bool {
        self.found_full > 0
    }

    /// Whether more than a burst of calls found no permit free.
    fn is_pressed(&self) -> bool {
        self.found_full >= self.calls / 4
    }
}

/// How the limit follows the calls.
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
    start: f64,
    limit: f64,
    /// The latency of the service without a queue.
    base: Option<f64>,
    /// The highest limit since it was last known whether a lower one helps, and the latency there.
    before: Option<(f64, f64)>,
    /// The number of steps until the next probe.
    steps: u32,
    /// The limit to return to after a probe.
    resume: Option<f64>,
    /// Whether the limit still doubles.
    slow_start: bool,
    /// While it does: the calls of steps that did not decide whether there is a queue.
    undecided: Step,
    /// While the limit falls, where it began to.
    fell_from: Option<f64>,
    /// Since calls are dropped: the limit then, and the highest share of dropped calls.
    dropping: Option<(f64, f64)>,
    /// The number of steps without many dropped calls.
    clean: u32,
    /// For how many steps dropped calls are ignored.
    ignores_drops: u32,
}

impl Limiter {
    pub(super) fn new(algorithm: Algorithm, bounds: RangeInclusive<usize>, start: usize) -> Self {
        let bounds = *bounds.start() as f64..=*bounds.end() as f64;
        let start = start as f64;
        let limit = start.clamp(*bounds.start(), *bounds.end());
        Self {
            algorithm,
            bounds,
            start,
            limit,
            base: None,
            before: None,
            steps: 0,
            resume: None,
            slow_start: algorithm == Algorithm::Gradient,
            undecided: Step::default(),
            fell_from: None,
            dropping: None,
            clean: 0,
            ignores_drops: 0,
        }
    }

    /// Changes the bounds. The lowest limit is never above the highest one. A limit that stood at the highest one
    /// follows it, up to the start.
    pub(super) fn set_bounds(&mut self, lowest: usize, highest: usize) {
        let (lowest, highest) = (lowest.min(highest) as f64, highest as f64);
        if self.limit >= *self.bounds.end() {
            self.limit = self.limit.max(self.start);
        }
        self.bounds = lowest..=highest;
        self.limit = self.limit.clamp(lowest, highest);
        self.resume = self.resume.map(|limit| limit.clamp(lowest, highest));
    }

    /// Raises the limit above `permits`: none of those in use is that of a call to the service, which could show
    /// whether the limit is right.
    pub(super) fn exceed(&mut self, permits: usize) {
        let permits = permits as f64;
        self.limit = self.limit.max(permits + (permits / 4.0).max(1.0)).min(*self.bounds.end());
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.round() as usize
    }

    /// Whether the limit may be so high now that it is never full.
    pub(super) fn has_doubled(&self) -> bool {
        self.slow_start && self.limit > self.start
    }

    /// Whether the next step needs calls of which few are in flight, too: they show the latency of the service without
    /// a queue, that it has recovered after the limit fell, or that the limit is too high.
    pub(super) fn measures_all(&self) -> bool {
        let knows_no_latency = self.algorithm == Algorithm::Gradient && self.base.is_none();
        knows_no_latency || self.fell_from.is_some() || self.has_doubled()
    }

    /// Returns the number of calls that the next step needs.
    pub(super) fn calls_of_a_step(&self) -> u32 {
        let limit = self.limit as u32;
        if self.slow_start { limit.max(FEWEST_AT_FIRST) } else { limit.saturating_mul(2).max(FEWEST) }
    }

    /// Returns the number of dropped calls that ends a step early.
    pub(super) fn drops_of_a_step(&self) -> u32 {
        if self.ignores_drops > 0 { u32::MAX } else { self.calls_of_a_step().max(FEWEST) / A_DROP_IN }
    }

    /// Changes the limit after a step.
    pub(super) fn step(&mut self, step: Step) {
        let step = std::mem::take(&mut self.undecided).and(step);
        if self.slow_start && step.may_be_chance() {
            self.undecided = step;
            return;
        }
        let next = match self.lower(step) {
            Some(lower) => lower,
            None if step.calls == 0 => self.limit,
            None => match self.algorithm {
                // While it ignores dropped calls, it knows nothing.
                Algorithm::Aimd if step.was_full() && self.ignores_drops == 0 => {
                    self.limit + (self.limit / 10.0).max(1.0)
                }
                Algorithm::Aimd => self.limit,
                Algorithm::Gradient => self.gradient(step),
            },
        };
        let next = next.clamp(*self.bounds.start(), *self.bounds.end());
        self.fell_from = (next < self.limit).then(|| self.fell_from.unwrap_or(self.limit));
        self.limit = next;
    }

    /// Returns the next limit if dropped calls decide about it: lower by their share, at least by a tenth and at most
    /// by half. (TCP halves, but for a single packet of a window.)
    fn lower(&mut self, step: Step) -> Option<f64> {
        if self.ignores_drops > 0 {
            self.ignores_drops -= 1;
            return None;
        }
        let has_doubled = self.has_doubled();
        if !step.was_full() && !has_doubled || step.dropped < self.drops_of_a_step() {
            self.clean += 1;
            if self.clean >= CLEAN || self.dropping.is_some_and(|(limit, _)| self.limit >= limit) {
                self.dropping = None;
            }
            return None;
        }
        self.clean = 0;
        // A probe is no more than a lower limit.
        self.resume = None;
        let (calls, dropped) = (f64::from(step.calls) + f64::from(step.dropped), f64::from(step.dropped));
        let share = dropped / calls;
        let (limit, worst) = self.dropping.unwrap_or((self.limit, share));
        let worst = worst.max(share);
        let futile = (limit * (BELOW * (1.0 - worst)).max(FUTILE)).max(*self.bounds.start());
        // Not by chance: a step that ended early has few calls.
        let helped = share < worst / 4.0;
        if !helped && self.limit <= futile && self.limit < limit {
            (self.dropping, self.ignores_drops) = (None, STEPS_WITHOUT_DROPS);
            return Some(limit);
        }
        self.dropping = Some(if helped { (self.limit, share) } else { (limit, worst) });
        self.slow_start = false;
        if has_doubled {
            return Some(self.limit / SLOW_START);
        }
        // A step that ended early may have few other calls.
        let share = dropped / calls.max(self.calls_of_a_step().into());
        Some(self.limit * (1.0 - share).clamp(0.5, 0.9))
    }

    /// Compares the latency of each step with that of the service without a queue, which it finds by lowering the
    /// limit: if the latency follows, it was that of a queue.
    fn gradient(&mut self, step: Step) -> f64 {
        // A step that ended early shows nothing but dropped calls.
        if step.calls < self.calls_of_a_step() / 2 {
            return self.limit;
        }
        // Above zero, because it divides.
        let latency = step.latency.as_secs_f64().max(1e-9) / f64::from(step.calls);
        let resume = self.resume.take();
        let Some(base) = self.base else {
            (self.base, self.before, self.steps) = (Some(latency), Some((self.limit, latency)), 0);
            return if step.was_full() { self.next_of_a_full_step(latency, step) } else { self.limit };
        };
        match self.before {
            Some((limit, before)) if before / latency > FASTER * (limit / self.limit).max(1.0) => {
                (self.base, self.before, self.slow_start) =
                    (Some(base.min(latency)), Some((self.limit, latency)), true);
                if let Some(limit) = self.fell_from {
                    return limit;
                }
            }
            Some((limit, before)) if self.limit <= LOWERED * limit => {
                self.before = Some((self.limit, latency));
                // One: the latency fell as much as the limit. Zero: not at all.
                let followed = (before / latency).ln() / (limit / self.limit).ln();
                if followed < A_QUEUE {
                    self.base = Some((base + latency) / 2.0);
                    if let Some(limit) = resume.or(self.fell_from) {
                        return limit;
                    }
                } else {
                    // Halfway: the latency of a single step may be low by chance.
                    let base = base.min((base + latency) / 2.0);
                    self.base = Some(base);
                    if followed > A_QUEUE_STILL {
                        self.steps = 0;
                    }
                    if let Some(limit) = resume {
                        return limit * Self::change(base, before);
                    }
                }
            }
            Some((limit, _)) if self.limit < limit => {}
            _ => self.before = Some((self.limit, latency)),
        }
        if step.was_full() || resume.is_some() { self.next_of_a_full_step(latency, step) } else { self.limit }
    }

    /// The gradient: how the limit changes after a step with this latency.
    fn change(base: f64, latency: f64) -> f64 {
        (base / latency * HEADROOM).clamp(LEAST_CHANGE, HEADROOM)
    }

    fn next_of_a_full_step(&mut self, latency: f64, step: Step) -> f64 {
        let mut base = self.base.unwrap_or(latency);
        // A limit that is about to fall far anyway needs no probe.
        if self.steps == 0 && !self.slow_start && latency < FASTER * base {
            self.steps = STEPS_TO_PROBE;
            if self.limit * LOWERED >= *self.bounds.start() {
                self.resume = Some(self.limit);
                return self.limit * PROBE;
            }
            // There is no lower limit. If this takes a queue for the service, the next probe finds out.
            base = (base + latency) / 2.0;
            self.base = Some(base);
        }
        self.steps = self.steps.saturating_sub(1);
        if self.slow_start && (PERHAPS..NO_QUEUE).contains(&(base / latency)) && step.calls < FEWEST {
            self.undecided = step;
            return self.limit;
        }
        self.slow_start &= base / latency >= NO_QUEUE;
        let next =
            self.limit * if self.slow_start && step.is_pressed() { SLOW_START } else { Self::change(base, latency) };
        // At a small limit, a fourth more may be none.
        if next > self.limit { next.max(self.limit + 1.0) } else { next }
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
