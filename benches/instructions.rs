//! Counts the instructions and the allocations of one call on the happy path, of a hit of the HTTP cache, and of a
//! round trip over HTTP, with callgrind: the same on every run of one binary. `cargo bench -p ziggurat-benches --bench
//! instructions` (needs valgrind; a word after `--` selects the subjects that contain it)
//!
//! `--check` compares our own with `benches/figures.tsv`, as CI does, and `--write` writes that file. Both are run
//! without other crates: `--no-default-features`.

use std::process::ExitCode;

use ziggurat_benches::{
    count,
    figures::{self, Figure},
    subject::Subject,
    subjects::{http_cache, round_trip, subjects},
};

/// The subjects, by situation. The first of each situation is bare.
fn situations() -> [(&'static str, Vec<Subject>); 3] {
    let round_trips = round_trip::in_memory().into_iter().map(|trip| trip.subject);
    [("call", subjects()), ("HTTP cache", http_cache::hits()), ("round trip", round_trips.collect())]
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let word = std::env::args().skip(1).find(|argument| argument != "--bench").unwrap_or_default();
    if count::is_counted() {
        count::run(situations().into_iter().flat_map(|(_, subjects)| subjects));
        return ExitCode::SUCCESS;
    }
    if word == "--test" {
        return ExitCode::SUCCESS;
    }
    let mut counts = match count::counts() {
        Ok(counts) => counts.into_iter(),
        Err(error) => {
            eprintln!("valgrind is missing, or cannot count here: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut figures = Vec::new();
    for (situation, subjects) in situations() {
        let mut bare = None;
        for (subject, count) in subjects.iter().zip(counts.by_ref()) {
            // Another bare subject of the same situation counts the same.
            if bare.is_none() || !subject.whose.is_empty() {
                figures.push(Figure::new(situation, subject, count, bare));
            }
            bare.get_or_insert(count);
        }
    }
    match word.as_str() {
        "--check" => figures::check(&figures),
        "--write" => figures::write(&figures),
        _ => figures::print(figures.iter().filter(|figure| figure.name().contains(&word))),
    }
}
