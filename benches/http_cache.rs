//! Measures a hit of the HTTP cache on a response of 1 KiB, beside http-cache-tower with its store in memory, and how
//! its cost grows with the number of stored responses. `cargo bench -p ziggurat-benches --bench http_cache`
//!
//! No socket is involved. Each request is made, sent, and the body of its response read to the end. Callgrind counts
//! instructions and allocations, if valgrind is installed.

use ziggurat_benches::situations::{overhead, print};

fn main() {
    print([("net of the request", overhead::http_cache)]);
}
