//! One request over HTTP on a connection that is kept alive.

use crate::{
    count::Count,
    subject::Subject,
    subjects::round_trip::{RoundTrip, on_loopback},
    table::{Row, Table},
    turns::{cpu_nanos, nanos},
};

/// The time on loopback, and that of the processor, both in microseconds. The counts are those of the same trips over a
/// pipe in memory. The first subject is bare, and the counts of the others are what they add to it.
pub fn table(quick: bool, counts: &mut impl Iterator<Item = Count>) -> Table {
    let (mut subjects, sizes): (Vec<Subject>, Vec<_>) =
        on_loopback().into_iter().map(|RoundTrip { subject, size }| (subject, size as f64)).unzip();
    let rounds = if quick { 2 } else { 200 };
    let micros: Vec<_> = nanos(&mut subjects, rounds, 200).into_iter().map(|nanos| nanos / 1e3).collect();
    let cpu: Vec<_> = cpu_nanos(&mut subjects, rounds, 200).into_iter().map(|nanos| nanos / 1e3).collect();
    let none = Count { instructions: f64::NAN, allocations: f64::NAN };
    let counts: Vec<_> = subjects.iter().map(|_| counts.next().unwrap_or(none)).collect();
    let rows = subjects.iter().enumerate().map(|(index, subject)| {
        let (time, more) = (micros[index], 100.0 * (micros[index] / micros[0] - 1.0));
        let Count { instructions, allocations } = if index == 0 { counts[0] } else { counts[index] - counts[0] };
        Row::new(subject.what, subject.whose, [time, more, cpu[index], instructions, allocations, sizes[index]])
    });
    Table::new(["µs", "% more", "µs of CPU", "instructions", "allocations", "bytes of the future"], rows.collect())
}
