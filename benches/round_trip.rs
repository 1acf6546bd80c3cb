//! Measures one HTTP/1 request on a connection that is kept alive, of the client and the server together: time on
//! loopback, and, if valgrind is installed, instructions and allocations over a pipe in memory. `cargo bench -p
//! ziggurat-benches --bench round_trip`

use ziggurat_benches::{
    count, quick,
    situations::{counts, round_trip},
    subjects::round_trip::in_memory,
};

fn main() {
    if count::is_counted() {
        return count::run(in_memory().into_iter().map(|trip| trip.subject));
    }
    round_trip::table(quick(), &mut counts(quick())).print();
}
