//! Measures one call on the happy path: a reused service that responds at once, beside layers of tower,
//! tower-resilience, seatbelt and other crates with equal policies, in the same run. `cargo bench -p ziggurat-benches
//! --bench overhead`
//!
//! It prints each subject net of the bare service, and as a ratio to ziggurat's. Callgrind counts instructions and
//! allocations, if valgrind is installed.

use ziggurat_benches::situations::{overhead, print};

fn main() {
    print([("net of the bare service", overhead::calls), ("net of a bare request", overhead::requests)]);
}
