//! Counts the instructions and the allocations of one call on the happy path, of a hit of the HTTP cache, and of a
//! round trip over HTTP, with callgrind. `cargo bench -p ziggurat-benches --bench instructions` (needs valgrind; a word
//! after `--` selects the subjects that contain it)
//!
//! `--check` compares our own with `benches/figures.tsv`, as CI does, and `--write` writes that file. Both are run
//! without other crates: `--no-default-features`.

use std::process::ExitCode;

use ziggurat_benches::{
    count::{self, Count},
    figures::{self, Figure},
    subject::Subject,
    subjects::{http_cache, round_trip, subjects},
};

/// How often all is counted. The median counts: the seeds of hash maps change single runs.
const RUNS: usize = 9;

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
    let runs: Vec<_> = match (0..RUNS).map(|_| count::counts()).collect() {
        Ok(runs) => runs,
        Err(error) => {
            eprintln!("valgrind is missing, or cannot count here: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (mut figures, mut position) = (Vec::new(), 0);
    for (situation, subjects) in situations() {
        let bare = position;
        for subject in subjects {
            let all = median(runs.iter().map(|run| run[position]));
            let net = median(runs.iter().map(|run| run[position] - run[bare]));
            // Another bare subject of the same situation counts the same.
            if position == bare {
                figures.push(Figure::new(situation, &subject, all, all));
            } else if !subject.whose.is_empty() {
                figures.push(Figure::new(situation, &subject, all, net));
            }
            position += 1;
        }
    }
    match word.as_str() {
        "--check" => figures::check(&figures),
        "--write" => figures::write(&figures),
        _ => figures::print(figures.iter().filter(|figure| figure.name().contains(&word))),
    }
}

fn median(counts: impl Iterator<Item = Count> + Clone) -> Count {
    let of = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Count {
        instructions: of(counts.clone().map(|count| count.instructions).collect()),
        allocations: of(counts.map(|count| count.allocations).collect()),
    }
}
