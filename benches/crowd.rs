//! Calls of several threads at once, on clones of one service.

use std::{
    fmt::Debug,
    future::poll_fn,
    hint::black_box,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{runtime::Builder, task::yield_now};
use tower::Service;

use crate::{Word, subject::Collect};

/// After this number of calls, a task lets others run, as one that waits for a socket does.
const TURN: u64 = 64;

/// Where the calls are made.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// On this number of threads, each with a runtime of its own, and one clone of the service.
    Threads(usize),
    /// In tasks on one runtime with this number of threads: for each of them, eight tasks with a clone each.
    Runtime(usize),
}

/// A service whose clones share the state of its policy.
pub struct Crowd {
    pub what: &'static str,
    pub whose: &'static str,
    /// Makes calls for this time. Returns the number of calls a second.
    pub run: Box<dyn Fn(Place, Duration) -> f64>,
}

impl Collect for Vec<Crowd> {
    fn add<S>(&mut self, what: &'static str, whose: &'static str, service: S)
    where
        S: Service<Word, Response = Word, Error: Debug, Future: Send> + Clone + Send + 'static,
    {
        let run = move |place, time| match place {
            Place::Threads(threads) => on_threads(&service, threads, time),
            Place::Runtime(threads) => on_a_runtime(&service, threads, time),
        };
        self.push(Crowd { what, whose, run: Box::new(run) });
    }
}

fn on_threads<S>(service: &S, threads: usize, time: Duration) -> f64
where
    S: Service<Word, Response = Word, Error: Debug> + Clone + Send,
{
    let (stop, ready) = (&AtomicBool::new(false), &Barrier::new(threads + 1));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| service.clone())
            .map(|service| {
                scope.spawn(move || {
                    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
                    ready.wait();
                    runtime.block_on(calls_a_second(service, stop))
                })
            })
            .collect();
        ready.wait();
        thread::sleep(time);
        stop.store(true, Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("a number of calls")).sum()
    })
}

fn on_a_runtime<S>(service: &S, threads: usize, time: Duration) -> f64
where
    S: Service<Word, Response = Word, Error: Debug, Future: Send> + Clone + Send + 'static,
{
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_time().build().expect("a runtime");
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..8 * threads)
        .map(|_| {
            let (service, stop) = (service.clone(), Arc::clone(&stop));
            runtime.spawn(async move { calls_a_second(service, &stop).await })
        })
        .collect();
    thread::sleep(time);
    stop.store(true, Relaxed);
    tasks.into_iter().map(|task| runtime.block_on(task).expect("a number of calls")).sum()
}

async fn calls_a_second<S>(mut service: S, stop: &AtomicBool) -> f64
where
    S: Service<Word, Response = Word, Error: Debug>,
{
    let (start, mut calls) = (Instant::now(), 0);
    while !stop.load(Relaxed) {
        for _ in 0..TURN {
            poll_fn(|cx| service.poll_ready(cx)).await.expect("a service that is ready");
            black_box(service.call(black_box(42)).await.expect("a response"));
        }
        calls += TURN;
        yield_now().await;
    }
    calls as f64 / start.elapsed().as_secs_f64()
}
