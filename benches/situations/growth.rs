//! A policy holds more and more.

use tokio::runtime::Builder;

use crate::{
    subjects::growth::all,
    table::{Row, Table, grouped},
    turns::nanos,
};

const NUMBERS: [u32; 5] = [1, 100, 10_000, 100_000, 1_000_000];

/// The nanoseconds of a whole call, while the policy holds each of these numbers of things.
pub fn table(quick: bool) -> Table {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut rows = Vec::<Row>::new();
    for growing in all() {
        let first = rows.len();
        for number in growing.numbers.iter().copied().filter(|number| !quick || *number <= 100) {
            let mut subjects = (growing.subjects)(number);
            let calls = if growing.one_for_each { number } else { 2_000 };
            // Enough for the fastest, and no minutes for the slowest.
            let rounds = if quick { 2 } else { (200_000 / calls).clamp(5, 50) };
            let nanos = nanos(&mut subjects, rounds, calls);
            let column = NUMBERS.iter().position(|column| *column == number).expect("a column");
            for (index, (subject, nanos)) in subjects.iter().zip(nanos).enumerate() {
                if rows.len() == first + index {
                    let what = format!("{}: {}", growing.of, subject.what);
                    rows.push(Row::new(what, subject.whose, [f64::NAN; NUMBERS.len()]));
                }
                rows[first + index].figures[column] = nanos;
            }
        }
    }
    Table::new(NUMBERS.map(|number| grouped(&number.to_string())), rows)
}
