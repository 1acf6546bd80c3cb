//! Several threads share a stack.

use std::{thread::available_parallelism, time::Duration};

use tokio::runtime::Builder;

use crate::{
    Echo,
    crowd::{Crowd, Place},
    subject::Collect,
    subjects::policies,
    table::{Row, Table},
};

/// Millions of calls a second.
pub fn table(quick: bool) -> Table {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    // seatbelt's clock needs one.
    let _entered = runtime.enter();
    let (rounds, time) = if quick { (3, 2) } else { (21, 10) };
    let time = Duration::from_millis(time);
    let mut crowds = Vec::<Crowd>::new();
    crowds.add("bare", "", Echo);
    crowds.extend(policies::<Vec<Crowd>, _>(&Echo, |crowd| crowd.what));
    let cores = available_parallelism().map_or(1, usize::from);
    // Two threads are two even on one core.
    let threads: Vec<_> = [1, 2, 4, 8, 16].into_iter().filter(|threads| *threads <= cores.max(2)).collect();
    let most = threads.last().copied().unwrap_or(1);
    let places: Vec<_> = threads.iter().copied().map(Place::Threads).chain([Place::Runtime(most)]).collect();

    let mut all = vec![vec![Vec::new(); places.len()]; crowds.len()];
    for _ in 0..rounds {
        for (crowd, of_crowd) in crowds.iter().zip(&mut all) {
            for (place, of_place) in places.iter().zip(of_crowd) {
                of_place.push((crowd.run)(*place, time) / 1e6);
            }
        }
    }
    let rows = crowds.iter().zip(all).map(|(crowd, of_crowd)| {
        let mut figures: Vec<_> = of_crowd.into_iter().map(median).collect();
        figures.insert(2, figures[1] / figures[0]);
        Row::new(crowd.what, crowd.whose, figures)
    });
    let mut columns: Vec<_> = threads.iter().map(|threads| format!("{threads} threads")).collect();
    columns[0] = "1 thread".to_owned();
    columns.insert(2, "2 to 1".to_owned());
    columns.push(format!("a runtime of {most}"));
    Table::new(columns, rows.collect())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
