//! Pipelines: from a source to its results through batches, in bounded memory.

use std::{cell::Cell, rc::Rc};

use tokio_stream::{StreamExt as _, iter};
use ziggurat::{
    concurrent::{Progress, process_concurrently},
    stream::StreamExt as _,
};

/// Counts the rows that are alive.
struct Row(Rc<Cell<(usize, usize)>>);

impl Row {
    fn new(alive: &Rc<Cell<(usize, usize)>>) -> Self {
        let (now, most) = alive.get();
        alive.set((now + 1, most.max(now + 1)));
        Self(Rc::clone(alive))
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        let (now, most) = self.0.get();
        self.0.set((now - 1, most));
    }
}

/// A million rows in batches of a hundred, with a report every 1000. At no time are more rows alive than four batches
/// hold.
///
/// Shows: S3, S4, P5, P6
#[tokio::test]
async fn a_million_items_in_batches_take_the_memory_of_the_batches_in_flight() {
    const ROWS: usize = 1_000_000;
    let alive = Rc::new(Cell::new((0, 0)));
    let told = Cell::new(0);
    let batches = iter((0..ROWS).map(|_| Row::new(&alive))).batches(100);
    let mut results = process_concurrently(batches, |batch: Vec<Row>| async move {
        tokio::task::yield_now().await;
        Ok::<_, ()>(batch.len())
    })
    .max_concurrency(3)
    .on_progress(|progress: &Progress| {
        assert_eq!(progress.total(), Some(ROWS / 100));
        told.set(told.get() + usize::from(progress.finished().is_multiple_of(10)));
    })
    .unordered();
    let mut processed = 0;
    while let Some(batch) = results.next().await {
        processed += batch.unwrap();
    }
    assert_eq!((processed, told.get(), results.summary().ok), (ROWS, ROWS / 1_000, ROWS / 100));
    let (now, most) = alive.get();
    assert_eq!(now, 0);
    assert!(most <= 4 * 100, "{most}");
}
