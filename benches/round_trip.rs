//! Measures one HTTP/1 request on a connection that is kept alive, of the client and the server together: time on
//! loopback, and, if valgrind is installed, instructions and allocations over a pipe in memory. `cargo bench -p
//! ziggurat-benches --bench round_trip`

use ziggurat_benches::{
    count::{self, Count},
    subject::Subject,
    subjects::round_trip::{in_memory, on_loopback},
    turns::nanos,
};

fn main() {
    if count::is_counted() {
        return count::run(in_memory().into_iter().map(|trip| trip.subject));
    }
    let counts = count::counts().unwrap_or_else(|error| {
        println!("not counted: {error}");
        Vec::new()
    });
    let (mut subjects, sizes): (Vec<Subject>, Vec<_>) =
        on_loopback().into_iter().map(|trip| (trip.subject, trip.size)).unzip();
    let nanos = nanos(&mut subjects, 200, 200);
    println!(
        "{:<56}{:>8}{:>8}{:>14}{:>13}{:>20}",
        "", "us", "more", "instructions", "allocations", "size of the future"
    );
    for (index, subject) in subjects.iter().enumerate() {
        let (micros, more) = (nanos[index] / 1e3, 100.0 * (nanos[index] / nanos[0] - 1.0));
        print!("{:<38}{:<18}{micros:>8.2}{more:>+7.1}%", subject.what, subject.whose);
        if let (Some(count), Some(bare)) = (counts.get(index), counts.first()) {
            let Count { instructions, allocations } = if index == 0 { *count } else { *count - *bare };
            print!("{instructions:>+14.0}{allocations:>+13.1}");
        }
        println!("{:>+20}", sizes[index] - if index == 0 { 0 } else { sizes[0] });
    }
}
