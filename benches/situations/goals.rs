//! The figures that matter most, each beside the best of the other crates in the same run.

use crate::table::{Row, Table};

/// The tables of all situations.
pub struct Tables<'a> {
    pub calls: &'a Table,
    pub requests: &'a Table,
    pub pending: &'a Table,
    pub contention: &'a Table,
    pub growth: &'a Table,
    pub round_trips: &'a Table,
}

/// Columns of the tables of single calls, of contention, and of round trips.
const NANOS: usize = 0;
const ONE_THREAD: usize = 0;
const TWO_THREADS: usize = 1;
const MICROS: usize = 0;
const ADDED: usize = 1;
const CPU: usize = 2;
const INSTRUCTIONS: usize = 3;
const BYTES: usize = 5;

#[derive(Clone, Copy)]
enum Better {
    Less,
    More,
}

impl Tables<'_> {
    /// Returns the goals as Markdown.
    pub fn goals(&self) -> String {
        let mut text = "| | unit | ziggurat | beside it | | ratio |\n|---|---|---:|---|---:|---:|\n".to_owned();
        let mut row = |name: &str, unit: &str, ours: f64, whose: &str, theirs: f64| {
            let (number, ratio) = (crate::table::number, ours / theirs);
            text +=
                &format!("| {name} | {unit} | {} | {whose} | {} | {} |\n", number(ours), number(theirs), number(ratio));
        };
        let mut beside_best = |name: &str, unit: &str, table: &Table, what: &str, column: usize, better: Better| {
            if let (Some(ours), Some(best)) = (ours(table, what), best(table, what, column, better)) {
                row(name, unit, ours.figures[column], best.whose, best.figures[column]);
            }
        };
        for (name, what) in [
            ("round trip, the four", "stack of the four"),
            ("round trip, timeout, retry and limit", "timeout, retry, limit"),
        ] {
            beside_best(name, "instructions", self.round_trips, what, INSTRUCTIONS, Better::Less);
            beside_best(name, "% of time", self.round_trips, what, ADDED, Better::Less);
            beside_best(name, "bytes of the future", self.round_trips, what, BYTES, Better::Less);
        }
        beside_best("a rejection over HTTP", "µs", self.round_trips, "a full server", MICROS, Better::Less);
        beside_best("reverse proxy", "µs of CPU", self.round_trips, "reverse proxy", CPU, Better::Less);
        beside_best("reverse proxy", "instructions", self.round_trips, "reverse proxy", INSTRUCTIONS, Better::Less);
        for what in [
            "stack of the four",
            "timeout, retry, limit",
            "timeout",
            "limit",
            "breaker, of 100 calls",
            "breaker, of 30 s",
            "cache, a hit",
            "cache, a miss that evicts",
            "rate limit",
            "rate limit, per key",
            "hedge, after a delay",
            "breaker, a rejection",
            "limit, a rejection",
            "rate limit, a rejection",
        ] {
            beside_best(what, "ns", self.calls, what, NANOS, Better::Less);
        }
        beside_best("context of a request", "ns", self.requests, "context of a request", NANOS, Better::Less);
        for what in ["timeout", "timeout, retry, limit", "stack of the four"] {
            beside_best(&format!("{what}, pending once"), "ns", self.pending, what, NANOS, Better::Less);
        }
        for what in [
            "limit",
            "breaker, of 100 calls",
            "breaker, of 30 s",
            "rate limit, per key",
            "cache, a hit",
            "timeout, retry, limit",
            "stack of the four",
        ] {
            beside_best(what, "Mop/s, 2 threads", self.contention, what, TWO_THREADS, Better::More);
        }
        // Beside itself.
        let mut beside = |name: &str, unit: &str, table: &Table, what: &str, column, other: &str, other_column| {
            if let (Some(ours), Some(beside)) = (ours(table, what), ours(table, other)) {
                row(name, unit, ours.figures[column], other, beside.figures[other_column]);
            }
        };
        for (rejection, admitted) in [
            ("breaker, a rejection", "breaker, of 100 calls"),
            ("limit, a rejection", "limit"),
            ("rate limit, a rejection", "rate limit"),
        ] {
            beside(rejection, "ns", self.calls, rejection, NANOS, admitted, NANOS);
        }
        for what in ["recommended client", "full client stack"] {
            beside(what, "instructions", self.round_trips, what, INSTRUCTIONS, "stack of the four", INSTRUCTIONS);
            beside(what, "bytes of the future", self.round_trips, what, BYTES, "stack of the four", BYTES);
        }
        for what in ["limit", "stack of the four", "recommended client"] {
            beside(what, "Mop/s, 2 threads to 1", self.contention, what, TWO_THREADS, what, ONE_THREAD);
        }
        text + &self.growth()
    }

    /// The cost of the most that was measured, beside that of a hundred.
    fn growth(&self) -> String {
        let number = crate::table::number;
        let rows = self.growth.rows.iter().filter(|row| row.is_ours()).filter_map(|row| {
            let most = row.figures.iter().rposition(|figure| !figure.is_nan())?;
            let (name, few, many) = (&self.growth.columns[most], row.figures[1], row.figures[most]);
            let (few_text, ratio) = (number(few), number(many / few));
            Some(format!("| {}, {name} | ns | {} | 100 | {few_text} | {ratio} |\n", row.what, number(many)))
        });
        rows.collect()
    }
}

fn ours<'a>(table: &'a Table, what: &str) -> Option<&'a Row> {
    table.rows.iter().find(|row| row.what == what && row.is_ours())
}

fn best<'a>(table: &'a Table, what: &str, column: usize, better: Better) -> Option<&'a Row> {
    let others = table.rows.iter().filter(|row| row.what == what && !row.is_ours() && !row.figures[column].is_nan());
    let by = |one: &&Row, other: &&Row| one.figures[column].total_cmp(&other.figures[column]);
    match better {
        Better::Less => others.min_by(by),
        Better::More => others.max_by(by),
    }
}
