//! Measures a hit of the HTTP cache on a response of 1 KiB, beside http-cache-tower with its store in memory, and how
//! its cost grows with the number of stored responses. `cargo bench -p ziggurat-benches --bench http_cache`
//!
//! No socket is involved. Each request is made, sent, and the body of its response read to the end. Callgrind counts
//! instructions and allocations, if valgrind is installed.

use ziggurat_benches::{
    count::{self, Count},
    subjects::http_cache::{among_many, hits},
    turns::nanos,
};

fn main() {
    if count::is_counted() {
        return count::run(hits().into_iter().chain(among_many()));
    }
    let counts = count::counts().unwrap_or_else(|error| {
        println!("not counted: {error}");
        Vec::new()
    });
    let mut subjects = hits();
    subjects.extend(among_many());
    let nanos = nanos(&mut subjects, 200, 1_000);
    println!(
        "{:<24}{:<18}{:>8}{:>10}{:>14}{:>13}",
        "net of the request", "", "ns", "to ours", "instructions", "allocations"
    );
    for kind in 0..subjects.len() / 3 {
        let [bare, ours, theirs] = [0, 1, 2].map(|index| 3 * kind + index);
        for index in [ours, theirs] {
            let (net, net_of_ours) = (nanos[index] - nanos[bare], nanos[ours] - nanos[bare]);
            print!("{:<24}{:<18}{net:>8.0}{:>9.1}x", subjects[index].what, subjects[index].whose, net / net_of_ours);
            if let (Some(count), Some(bare)) = (counts.get(index), counts.get(bare)) {
                let Count { instructions, allocations } = *count - *bare;
                print!("{instructions:>14.0}{allocations:>13.1}");
            }
            println!();
        }
    }
}
