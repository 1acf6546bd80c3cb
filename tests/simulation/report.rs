//! The figures of a run.

use std::{collections::BTreeMap, fmt, ops::Range, time::Duration};

/// How long a caller waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How one request fared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) sent: Duration,
    pub(crate) took: Duration,
    /// `None`: it was answered.
    pub(crate) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) calls: Vec<Call>,
    /// When each call arrived at the upstream.
    pub(crate) received: Vec<Duration>,
}

fn within(time: Duration, range: &Range<f64>) -> bool {
    range.contains(&time.as_secs_f64())
}

/// A quantile in milliseconds.
pub(crate) fn quantile(part: f64, mut times: Vec<Duration>) -> f64 {
    times.sort();
    let index = (times.len() as f64 * part).ceil() as usize;
    times.get(index.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

impl Report {
    /// Answers per second, by the time of the answer. One that comes later than its caller waits for is none.
    pub(crate) fn goodput(&self, range: Range<f64>) -> f64 {
        let in_time = |call: &&Call| call.error.is_none() && call.took <= PATIENCE;
        let answers = self.calls.iter().filter(in_time).filter(|call| within(call.sent + call.took, &range));
        answers.count() as f64 / (range.end - range.start)
    }

    /// The latency of answers to requests that were sent in `range`, as a quantile in milliseconds.
    pub(crate) fn latency(&self, part: f64, range: Range<f64>) -> f64 {
        let answered = self.calls.iter().filter(|call| call.error.is_none() && within(call.sent, &range));
        quantile(part, answered.map(|call| call.took).collect())
    }

    /// Calls at the upstream for each request.
    pub(crate) fn amplification(&self) -> f64 {
        self.received.len() as f64 / self.calls.len() as f64
    }

    pub(crate) fn failed(&self) -> usize {
        self.calls.iter().filter(|call| call.error.is_some()).count()
    }

    pub(crate) fn answers(&self) -> usize {
        self.calls.len() - self.failed()
    }

    /// How many requests failed with each error, without the numbers in it.
    pub(crate) fn errors(&self) -> BTreeMap<String, usize> {
        let mut errors = BTreeMap::new();
        for error in self.calls.iter().filter_map(|call| call.error.as_deref()) {
            let words = error.split(';').next().unwrap_or_default();
            *errors.entry(words.replace(|c: char| c.is_ascii_digit(), "")).or_default() += 1;
        }
        errors
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.calls.last().map_or(0.0, |call| call.sent.as_secs_f64());
        let whole = 0.0..end;
        write!(
            f,
            "goodput {:>7.1}/s  p50 {:>6.0} ms  p99 {:>6.0} ms  calls a request {:>5.2}  {:?}",
            self.goodput(whole.clone()),
            self.latency(0.5, whole.clone()),
            self.latency(0.99, whole),
            self.amplification(),
            self.errors(),
        )
    }
}
