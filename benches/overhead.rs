//! Measures one call on the happy path: a reused service that responds at once, beside layers of tower,
//! tower-resilience and seatbelt with equal policies, in the same run. `cargo bench -p ziggurat-benches --bench
//! overhead`
//!
//! It prints each subject net of the bare service, and as a ratio to ziggurat's.

use ziggurat_benches::{subjects::subjects, turns::nanos};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut subjects = subjects();
    let nanos = nanos(&mut subjects, 400, 2_000);
    println!("{:<24}{:<18}{:>8}{:>12}", "", "", "net ns", "to ours");
    let mut ours = f64::NAN;
    for (subject, nanos_of_one) in subjects.iter().zip(&nanos).skip(1) {
        let net = nanos_of_one - nanos[0];
        if subject.whose == "ziggurat" {
            ours = net;
        }
        println!("{:<24}{:<18}{net:>8.1}{:>11.1}x", subject.what, subject.whose, net / ours);
    }
}
