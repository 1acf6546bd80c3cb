//! Measures a call whose response is pending once, twice, or until a timer of the service fires, beside other crates,
//! in the same run. `cargo bench -p ziggurat-benches --bench pending`
//!
//! A response that is pending makes a limit of time arm its timer. With a timer of the service, fifty tasks wait at a
//! time, and the figure is the processor's time for a call.

use ziggurat_benches::{
    count, quick,
    situations::{pending, print},
};

fn main() {
    print([("pending once", || pending::times(1)), ("pending twice", || pending::times(2))]);
    if !count::is_counted() {
        println!("\nwith a timer");
        pending::with_a_timer(quick()).print();
    }
}
