//! Measures all situations, and writes the tables and pictures of `docs/performance.md`, with the machine and the
//! versions. `cargo bench -p ziggurat-benches --bench performance` (a quarter of an hour, most of it under
//! valgrind; leave the machine alone)
//!
//! `-- --quick` runs a few rounds and prints the page's tables: the figures mean nothing.

use std::io;

use tokio::runtime::Builder;
use ziggurat_benches::{
    count,
    page::{Page, machine, write_picture},
    picture::bars,
    quick,
    situations::{self, Named, contention, goals::Tables, growth, overhead, pending, round_trip},
    subjects::round_trip::in_memory,
    table::Table,
};

/// Everything that is also counted.
const TURNS: [Named; 5] = [
    ("call", overhead::calls),
    ("request", overhead::requests),
    ("http-cache", overhead::http_cache),
    ("pending-once", || pending::times(1)),
    ("pending-twice", || pending::times(2)),
];

fn main() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let _entered = runtime.enter();
    if count::is_counted() {
        let turns = TURNS.into_iter().flat_map(|(_, turns)| turns().subjects);
        count::run(turns.chain(in_memory().into_iter().map(|trip| trip.subject)));
        return Ok(());
    }
    let (quick, machine) = (quick(), machine());
    let counts = &mut situations::counts(quick);
    let [calls, requests, http_cache, pending_once, pending_twice] =
        TURNS.map(|(_, turns)| turns().table(quick, counts));
    let round_trips = round_trip::table(quick, counts);
    let with_a_timer = pending::with_a_timer(quick);
    let contention = contention::table(quick);
    // The last one: it leaves much memory behind.
    let growth = growth::table(quick);

    let goals = Tables {
        calls: &calls,
        requests: &requests,
        pending: &pending_once,
        contention: &contention,
        growth: &growth,
        round_trips: &round_trips,
    }
    .goals();
    // With the column that the picture shows, and its unit.
    let tables: [(&str, &Table, usize, &str); 9] = [
        ("call", &calls, 0, "ns"),
        ("request", &requests, 0, "ns"),
        ("http-cache", &http_cache, 0, "ns"),
        ("pending-once", &pending_once, 0, "ns"),
        ("pending-twice", &pending_twice, 0, "ns"),
        ("pending-timer", &with_a_timer, 0, "ns"),
        ("contention", &contention, 1, "Mop/s"),
        ("growth", &growth, 4, "ns"),
        ("round-trip", &round_trips, 0, "µs"),
    ];
    if quick {
        println!("{machine}\n{goals}");
        tables.iter().for_each(|(name, table, ..)| println!("{name}\n{}", table.markdown()));
        return Ok(());
    }
    let mut page = Page::read()?;
    page.put("machine", &machine);
    page.put("goals", &goals);
    for (name, table, column, unit) in tables {
        page.put(name, &table.markdown());
        write_picture(name, &bars(table, column, unit))?;
    }
    page.write()
}
