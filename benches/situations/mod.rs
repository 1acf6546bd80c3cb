//! The tables, one for each situation.

use tokio::runtime::Builder;

use crate::{
    count::{self, Count},
    quick,
    subject::Subject,
    table::{Row, Table},
    turns::nanos,
};

pub mod contention;
pub mod goals;
pub mod growth;
pub mod overhead;
pub mod pending;
pub mod round_trip;

/// Subjects that take turns. A subject without a crate is bare: the figures of those after it are net of it.
pub struct Turns {
    pub subjects: Vec<Subject>,
    /// How many rounds, and how many calls in each of them.
    pub rounds: u32,
    pub calls: u32,
}

impl Turns {
    /// Measures them. Takes the counts of all of them from the iterator, if they were counted.
    pub fn table(mut self, quick: bool, counts: &mut impl Iterator<Item = Count>) -> Table {
        let nanos = nanos(&mut self.subjects, if quick { 2 } else { self.rounds }, self.calls);
        let (mut bare, mut ours, mut rows) = ((0.0, None), f64::NAN, Vec::new());
        for (subject, nanos) in self.subjects.iter().zip(nanos) {
            let count = counts.next();
            if subject.whose.is_empty() {
                bare = (nanos, count);
                continue;
            }
            let net = nanos - bare.0;
            if subject.whose == "ziggurat" {
                ours = net;
            }
            let none = Count { instructions: f64::NAN, allocations: f64::NAN };
            let Count { instructions, allocations } = count.zip(bare.1).map_or(none, |(count, bare)| count - bare);
            rows.push(Row::new(subject.what, subject.whose, [net, net / ours, instructions, allocations]));
        }
        Table::new(["ns", "to ours", "instructions", "allocations"], rows)
    }
}

/// A name, and what makes the subjects of this name.
pub type Named = (&'static str, fn() -> Turns);

/// Measures and prints each of these, with its name. This is the whole `main` of a benchmark.
pub fn print<const N: usize>(situations: [Named; N]) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    if count::is_counted() {
        return count::run(situations.into_iter().flat_map(|(_, turns)| turns().subjects));
    }
    let mut counts = counts(quick());
    for (name, turns) in situations {
        println!("\n{name}");
        turns().table(quick(), &mut counts).print();
    }
}

/// The counts of all subjects that this program runs when it is counted. Without valgrind there are none.
pub fn counts(quick: bool) -> impl Iterator<Item = Count> {
    let counts = if quick { Ok(Vec::new()) } else { count::counts() };
    let counts = counts.unwrap_or_else(|error| {
        println!("not counted: {error}");
        Vec::new()
    });
    counts.into_iter()
}
