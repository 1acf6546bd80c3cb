//! Runs against a naive model, which recomputes every start and end from the list of items.

use std::{cell::RefCell, time::Duration};

use proptest::{collection::vec, option, prelude::*};
use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt;
use ziggurat::concurrent::{Cause, ItemError, process_concurrently};

#[derive(Debug, Clone)]
struct Plan {
    /// The duration of each item, and how it ends.
    items: Vec<(u64, End)>,
    max_concurrency: usize,
    limit: Option<u64>,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Ok,
    Failed,
    Panicked,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Continue,
    Stop,
    Unordered,
    Ordered,
    Batches(usize),
    Sliding(usize),
}

fn plans() -> impl Strategy<Value = Plan> {
    let end = prop_oneof![6 => Just(End::Ok), 1 => Just(End::Failed), 1 => Just(End::Panicked)];
    let mode = prop_oneof![
        Just(Mode::Continue),
        Just(Mode::Stop),
        Just(Mode::Unordered),
        Just(Mode::Ordered),
        (1..6_usize).prop_map(Mode::Batches),
        (1..6_usize).prop_map(Mode::Sliding),
    ];
    (vec((0..20_u64, end), 0..20), 1..6_usize, option::of(0..20_u64), mode)
        .prop_map(|(items, max_concurrency, limit, mode)| Plan { items, max_concurrency, limit, mode })
}

type Outcome = Result<usize, ItemError<&'static str>>;

/// The start, the end and the result of each item, if no failure ends the run.
fn model(plan: &Plan) -> Vec<(u64, u64, Outcome)> {
    let mut spans: Vec<(u64, u64, Outcome)> = Vec::new();
    for (index, (time, end)) in plan.items.iter().enumerate() {
        let n = plan.max_concurrency;
        let mut ends: Vec<_> = spans.iter().map(|(_, end, _)| *end).collect();
        let started = spans.last().map_or(0, |(start, ..)| *start);
        let must_have_ended = match plan.mode {
            Mode::Ordered => ends.iter().take((index + 1).saturating_sub(n)).max().copied(),
            Mode::Batches(size) => ends.iter().take(index / size * size).max().copied(),
            _ => None,
        };
        ends.sort_unstable();
        let place = index.checked_sub(n).map_or(0, |place| ends[place]);
        let start = started.max(place).max(must_have_ended.unwrap_or(0));
        let failed = |cause| Err(ItemError { index, cause });
        let (time, result) = match (plan.limit, end) {
            (Some(limit), _) if *time > limit => {
                (limit, failed(Cause::TimedOut { limit: Duration::from_millis(limit) }))
            }
            (_, End::Ok) => (*time, Ok(index)),
            (_, End::Failed) => (*time, failed(Cause::Failed("failed"))),
            (_, End::Panicked) => (*time, failed(Cause::Panicked { message: "panicked".to_owned() })),
        };
        spans.push((start, start + time, result));
    }
    spans
}

/// The observations: when each item started, when each result came, and the highest number of items in flight.
#[derive(Debug, Default)]
struct Seen {
    starts: Vec<u64>,
    results: Vec<(u64, Outcome)>,
    all: Option<Vec<Outcome>>,
    first: Option<Result<Vec<usize>, ItemError<&'static str>>>,
    ended: u64,
    in_flight: usize,
    most: usize,
}

async fn run(plan: &Plan) -> Seen {
    let seen = RefCell::new(Seen::default());
    let start = Instant::now();
    let now = || u64::try_from(start.elapsed().as_millis()).unwrap();
    struct Leave<'a>(&'a RefCell<Seen>);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.borrow_mut().in_flight -= 1;
        }
    }
    let process = process_concurrently(plan.items.clone().into_iter().enumerate(), |(index, (time, end))| {
        let (seen, now) = (&seen, &now);
        async move {
            {
                let mut seen = seen.borrow_mut();
                seen.starts.push(now());
                seen.in_flight += 1;
                seen.most = seen.most.max(seen.in_flight);
            }
            let _leave = Leave(seen);
            if time > 0 {
                sleep(Duration::from_millis(time)).await;
            }
            match end {
                End::Ok => Ok(index),
                End::Failed => Err("failed"),
                End::Panicked => std::panic::resume_unwind(Box::new("panicked")),
            }
        }
    })
    .max_concurrency(plan.max_concurrency);
    let process = match plan.limit {
        Some(limit) => process.timeout_per_item(Duration::from_millis(limit)),
        None => process,
    };
    let (mut all, mut first, mut results) = (None, None, Vec::new());
    match plan.mode {
        Mode::Continue => all = Some(process.continue_on_error().await),
        Mode::Batches(size) => all = Some(process.in_batches(size).continue_on_error().await),
        Mode::Sliding(size) => all = Some(process.in_sliding_batches(size).continue_on_error().await),
        Mode::Stop => first = Some(process.await),
        Mode::Unordered => {
            let mut stream = process.unordered();
            while let Some(result) = stream.next().await {
                results.push((now(), result));
            }
        }
        Mode::Ordered => {
            let mut stream = process.ordered();
            while let Some(result) = stream.next().await {
                results.push((now(), result));
            }
        }
    }
    let ended = now();
    Seen { all, first, results, ended, ..seen.into_inner() }
}

fn index_of(outcome: &Outcome) -> usize {
    outcome.as_ref().map_or_else(|error| error.index, |index| *index)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Shows: P1, P2, P3, P4, P6
    #[test]
    fn a_run_starts_ends_and_answers_as_the_model_says(plan in plans()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let seen = runtime.block_on(run(&plan));
        let model = model(&plan);
        let last = model.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
        prop_assert!(seen.most <= plan.max_concurrency);
        prop_assert_eq!(seen.in_flight, 0);
        if let Some(first) = seen.first {
            let failures: Vec<_> = model.iter().filter(|(.., outcome)| outcome.is_err()).collect();
            let Some(at) = failures.iter().map(|(_, end, _)| *end).min() else {
                prop_assert_eq!(first, Ok((0..plan.items.len()).collect()));
                return Ok(());
            };
            prop_assert_eq!(seen.ended, at);
            let error = first.unwrap_err();
            let expected = &model[error.index];
            prop_assert_eq!((expected.1, &expected.2), (at, &Err(error)));
            // All items that start before the failure have started, perhaps some that start in the same moment, and
            // none later.
            let sure = model.iter().filter(|(start, ..)| *start < at).count();
            let may = model.iter().filter(|(start, ..)| *start <= at).count();
            prop_assert!((sure..=may).contains(&seen.starts.len()), "{} started, {sure} to {may}", seen.starts.len());
            return Ok(());
        }
        let starts: Vec<_> = model.iter().map(|(start, ..)| *start).collect();
        prop_assert_eq!(seen.starts, starts);
        prop_assert_eq!(seen.ended, last);
        if let Some(all) = seen.all {
            prop_assert_eq!(all, model.into_iter().map(|(.., outcome)| outcome).collect::<Vec<_>>());
            return Ok(());
        }
        // A stream returns each result when its item ends; in order, when all items before it have ended too.
        let mut expected: Vec<(u64, Outcome)> = Vec::new();
        for (_, end, outcome) in model {
            let earlier = expected.last().map_or(0, |(at, _)| *at);
            let at = if matches!(plan.mode, Mode::Ordered) { end.max(earlier) } else { end };
            expected.push((at, outcome));
        }
        let mut came = seen.results;
        if matches!(plan.mode, Mode::Unordered) {
            prop_assert!(came.is_sorted_by_key(|(at, _)| *at));
            came.sort_by_key(|(_, outcome)| index_of(outcome));
        }
        prop_assert_eq!(came, expected);
    }
}
