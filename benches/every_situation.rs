//! Each table of the benchmarks comes about, from a few calls of every subject. Its figures mean nothing.

use std::iter::empty;

use tokio::runtime::Builder;
use ziggurat_benches::{
    situations::{Turns, contention, growth, overhead, pending, round_trip},
    table::Table,
};

fn complete(turns: fn() -> Turns) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let turns = Turns { calls: 50, ..turns() };
    let subjects = turns.subjects.iter().filter(|subject| !subject.whose.is_empty()).count();
    let table = turns.table(true, &mut empty());
    assert_eq!(table.rows.len(), subjects);
    assert!(table.rows.iter().all(|row| row.figures[0].is_finite()));
}

#[test]
fn calls_that_are_ready_at_once() {
    complete(overhead::calls);
    complete(overhead::requests);
}

#[test]
fn calls_that_are_pending() {
    complete(|| pending::times(1));
    complete(|| pending::times(2));
    rows_of_ours_and_others(&pending::with_a_timer(true));
}

#[test]
fn threads_that_share_a_stack() {
    rows_of_ours_and_others(&contention::table(true));
}

#[test]
fn policies_that_hold_more_and_more() {
    rows_of_ours_and_others(&growth::table(true));
}

#[test]
fn round_trips() {
    rows_of_ours_and_others(&round_trip::table(true, &mut empty()));
}

fn rows_of_ours_and_others(table: &Table) {
    assert!(table.rows.iter().any(|row| row.is_ours()) && table.rows.iter().any(|row| !row.is_ours()));
    for row in &table.rows {
        assert_eq!(row.figures.len(), table.columns.len());
    }
}
