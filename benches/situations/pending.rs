//! The response is not ready at once.

use tokio::runtime::Builder;

use super::Turns;
use crate::{
    subject::{Collect, Inner, Subject},
    subjects::{
        pending::{Driven, Driver, Pending, Polled, Tasks, sleepy},
        policies,
    },
    table::{Row, Table},
    turns::cpu_nanos,
};

/// The response is pending this number of times.
pub fn times(times: u32) -> Turns {
    Turns { subjects: subjects::<Polled>(Pending(times)), rounds: 400, calls: 1_000 }
}

/// The response waits for a timer of its own, for a millisecond: the processor's time for a call.
pub fn with_a_timer(quick: bool) -> Table {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    // seatbelt's clock needs one.
    let _entered = runtime.enter();
    let mut subjects = subjects::<Tasks>(sleepy());
    let nanos = cpu_nanos(&mut subjects, if quick { 2 } else { 100 }, 1_000);
    let (mut ours, mut rows) = (f64::NAN, Vec::new());
    for (subject, nanos_of_one) in subjects.iter().zip(&nanos).skip(1) {
        let net = nanos_of_one - nanos[0];
        if subject.whose == "ziggurat" {
            ours = net;
        }
        rows.push(Row::new(subject.what, subject.whose, [net, net / ours]));
    }
    Table::new(["ns of CPU", "to ours"], rows)
}

/// All policies but the cache, whose hits call no service.
fn subjects<D: Driver>(inner: impl Inner) -> Vec<Subject> {
    let mut all = Driven::<D>::default();
    all.add("bare", "", inner.clone());
    let policies = policies::<Driven<D>, _>(&inner, |subject| subject.what);
    all.into_iter().chain(policies.into_iter().filter(|subject| !subject.what.starts_with("cache"))).collect()
}
