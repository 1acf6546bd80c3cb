//! Measures how the cost of a call grows with what a policy holds: keys of a cache, waiting callers, calls in flight,
//! scopes, and keys of a policy, beside other crates, in the same run. `cargo bench -p ziggurat-benches --bench growth`

use ziggurat_benches::{quick, situations::growth};

fn main() {
    growth::table(quick()).print();
}
