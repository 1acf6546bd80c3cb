//! Measures one call on the happy path: a reused service that responds at once, beside layers of tower,
//! tower-resilience and seatbelt with equal policies, in the same run. `cargo bench -p ziggurat-benches --bench
//! overhead`
//!
//! After criterion's own figures it prints one table: each subject net of the bare service, and as a ratio to
//! ziggurat's. For that table all subjects take turns in short rounds, and the fastest round of each counts: noise on a
//! shared machine only ever adds.

use criterion::Criterion;
use ziggurat_benches::{subject::Subject, subjects::subjects, turns::nanos};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();

    let mut criterion = Criterion::default().configure_from_args();
    for Subject { what, whose, mut run } in subjects() {
        criterion.bench_function(&format!("{what}/{whose}"), |bencher| bencher.iter(|| run(1)));
    }
    criterion.final_summary();
    if !std::env::args().any(|argument| argument == "--test") {
        table();
    }
}

/// Nanoseconds of one call, from the fastest of many rounds in which all subjects take turns.
fn table() {
    let mut subjects = subjects();
    let nanos = nanos(&mut subjects, 400, 2_000);
    println!("\n{:<24}{:<18}{:>8}{:>12}", "", "", "net ns", "to ours");
    let mut ours = f64::NAN;
    for (subject, nanos_of_one) in subjects.iter().zip(&nanos).skip(1) {
        let net = nanos_of_one - nanos[0];
        if subject.whose == "ziggurat" {
            ours = net;
        }
        println!("{:<24}{:<18}{net:>8.1}{:>11.1}x", subject.what, subject.whose, net / ours);
    }
}
