//! Measures how many calls a second several threads make together, on clones of one service that share the state of its
//! policy, beside other crates, in the same run. `cargo bench -p ziggurat-benches --bench contention`
//!
//! The threads have a runtime each, or are those of one runtime. Twice the calls of one thread is the best that two can
//! do, if there is a core for each. The figure is the median of many rounds in which all take turns: where threads wait
//! for each other, a round is faster if other work stops one of them.

use ziggurat_benches::{quick, situations::contention};

fn main() {
    contention::table(quick()).print();
}
