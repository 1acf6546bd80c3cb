//! Random programs of scopes, against a model that knows what must have ended by when, and in which order.

use std::{collections::BTreeSet, future::pending, io, sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::time::{sleep, timeout};
use ziggurat::{Scope, scope::Disposable};

use crate::scope_disposables::Log;

/// The time of one set-up, and of one tear-down.
const STEP: Duration = Duration::from_millis(10);

/// One step of a program. Scopes are numbered in order of creation, modulo their number.
#[derive(Debug, Clone)]
enum Step {
    Child(usize),
    /// Sets up `values` values, one after the other. `fails`: the one that fails or panics. `dropped`: after how many
    /// of them `open` is dropped.
    Open {
        scope: usize,
        values: usize,
        fails: Option<usize>,
        dropped: Option<usize>,
        parallel: bool,
    },
    Spawn(usize, Kind),
    Close(usize),
    CloseBoth(usize, usize),
    /// The future is dropped after one poll.
    CloseAndForget(usize),
    CloseFromWithin(usize),
    Drop(usize),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    EndsAtOnce,
    EndsWhenTold,
    Panics,
    /// It has to be aborted.
    Deaf,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let scope = || 0_usize..8;
    let kind = prop_oneof![Just(Kind::EndsAtOnce), Just(Kind::EndsWhenTold), Just(Kind::Panics), Just(Kind::Deaf)];
    let sometimes = || proptest::option::weighted(0.2, 0_usize..3);
    let open = (scope(), 0_usize..4, sometimes(), sometimes(), any::<bool>());
    let open = open.prop_map(|(scope, values, fails, dropped, parallel)| Step::Open {
        scope,
        values,
        fails,
        dropped,
        parallel,
    });
    let step = prop_oneof![
        4 => scope().prop_map(Step::Child),
        5 => open,
        5 => (scope(), kind).prop_map(|(scope, kind)| Step::Spawn(scope, kind)),
        1 => scope().prop_map(Step::Close),
        1 => (scope(), scope()).prop_map(|(one, other)| Step::CloseBoth(one, other)),
        1 => scope().prop_map(Step::CloseAndForget),
        1 => scope().prop_map(Step::CloseFromWithin),
        3 => scope().prop_map(Step::Drop),
    ];
    proptest::collection::vec(step, 1..20)
}

/// An event of one task or value, which has a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Up(usize),
    Down(usize),
    TaskEnded(usize),
}

/// The model of a scope.
#[derive(Default)]
struct Modelled {
    parent: Option<usize>,
    held: bool,
    closed: bool,
    // Set up and not torn down yet, in that order.
    values: Vec<usize>,
    tasks: Vec<usize>,
}

/// The expected effect of one step: these events, and of these pairs the first before the second.
#[derive(Default)]
struct Expected {
    events: Vec<Event>,
    order: Vec<(Event, Event)>,
}

#[derive(Default)]
struct Model {
    scopes: Vec<Modelled>,
}

impl Model {
    fn outwards(&self, scope: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(scope), |scope| self.scopes[*scope].parent)
    }

    fn within(&self, scope: usize) -> Vec<usize> {
        (0..self.scopes.len()).filter(|inner| self.outwards(*inner).any(|outer| outer == scope)).collect()
    }

    fn is_closed(&self, scope: usize) -> bool {
        self.outwards(scope).any(|outer| self.scopes[outer].closed)
    }

    fn close(&mut self, scope: usize, expected: &mut Expected) {
        for inner in self.within(scope) {
            let ends =
                |model: &Self| model.scopes[inner].tasks.iter().map(|task| Event::TaskEnded(*task)).collect::<Vec<_>>();
            let ends = ends(self);
            let downs: Vec<_> = self.scopes[inner].values.iter().rev().map(|value| Event::Down(*value)).collect();
            // The tasks before the values, the values in reverse, and both before the values of every scope around.
            for down in &downs {
                expected.order.extend(ends.iter().map(|end| (*end, *down)));
            }
            expected.order.extend(downs.windows(2).map(|pair| (pair[0], pair[1])));
            for outer in self.outwards(inner).skip(1).collect::<Vec<_>>() {
                for value in &self.scopes[outer].values {
                    expected.order.extend(ends.iter().chain(&downs).map(|event| (*event, Event::Down(*value))));
                }
            }
            expected.events.extend(ends.into_iter().chain(downs));
        }
        for inner in self.within(scope) {
            let inner = &mut self.scopes[inner];
            inner.closed = true;
            inner.values.clear();
            inner.tasks.clear();
        }
    }

    /// Closes every scope without a handle: neither to itself, nor to a scope inside it.
    fn close_what_nobody_holds(&mut self, expected: &mut Expected) {
        // From the outside in, because the order between a scope and those inside it is then known.
        for scope in 0..self.scopes.len() {
            if !self.within(scope).into_iter().any(|inner| self.scopes[inner].held) {
                self.close(scope, expected);
            }
        }
    }
}

/// The scopes of a program that are still held, and the model of all of them.
struct Run {
    log: Log,
    scopes: Vec<Option<Scope>>,
    model: Model,
    things: usize,
}

impl Run {
    fn new() -> Self {
        let root = Modelled { held: true, ..Modelled::default() };
        let model = Model { scopes: vec![root] };
        Self { log: Log::default(), scopes: vec![Some(Scope::root("root"))], model, things: 0 }
    }

    fn thing(&mut self) -> usize {
        self.things += 1;
        self.things
    }

    fn held(&self, scope: usize) -> Option<(usize, Scope)> {
        let scope = scope % self.scopes.len();
        Some((scope, self.scopes[scope].clone()?))
    }

    async fn step(&mut self, step: &Step) -> Expected {
        let mut expected = Expected::default();
        match *step {
            Step::Child(parent) => {
                if let Some((parent, scope)) = self.held(parent) {
                    self.scopes.push(Some(scope.child("child")));
                    let child = Modelled { parent: Some(parent), held: true, ..Modelled::default() };
                    self.model.scopes.push(child);
                }
            }
            Step::Open { scope, values, fails, dropped, parallel } => {
                if let Some((index, scope)) = self.held(scope) {
                    self.open(index, scope, values, fails, dropped, parallel, &mut expected).await;
                }
            }
            Step::Spawn(scope, kind) => {
                if let Some((index, scope)) = self.held(scope) {
                    let number = self.thing();
                    spawn(&scope, kind, number, &self.log);
                    if self.model.is_closed(index) || matches!(kind, Kind::EndsAtOnce | Kind::Panics) {
                        expected.events.push(Event::TaskEnded(number));
                    } else {
                        self.model.scopes[index].tasks.push(number);
                    }
                }
            }
            Step::Close(scope) => {
                if let Some((index, scope)) = self.held(scope) {
                    scope.close().await.unwrap();
                    self.model.close(index, &mut expected);
                }
            }
            Step::CloseBoth(one, other) => {
                if let (Some((one, first)), Some((other, second))) = (self.held(one), self.held(other)) {
                    let (first, second) = tokio::join!(first.close(), second.close());
                    assert!(first.is_ok() && second.is_ok());
                    // The outer one first, because that fixes the order.
                    self.model.close(one.min(other), &mut expected);
                    self.model.close(one.max(other), &mut expected);
                }
            }
            Step::CloseAndForget(scope) => {
                if let Some((index, scope)) = self.held(scope) {
                    let _cut_off = timeout(Duration::ZERO, scope.close()).await;
                    self.model.close(index, &mut expected);
                }
            }
            Step::CloseFromWithin(scope) => {
                if let Some((index, scope)) = self.held(scope) {
                    let task = scope.spawn({
                        let scope = scope.clone();
                        async move { scope.close().await.unwrap() }
                    });
                    assert_eq!(task.await.is_ok(), !self.model.is_closed(index));
                    self.model.close(index, &mut expected);
                }
            }
            Step::Drop(scope) => {
                let index = scope % self.scopes.len();
                self.scopes[index] = None;
                self.model.scopes[index].held = false;
                self.model.close_what_nobody_holds(&mut expected);
            }
        }
        expected
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of a step")]
    async fn open(
        &mut self,
        index: usize,
        scope: Scope,
        values: usize,
        fails: Option<usize>,
        dropped: Option<usize>,
        parallel: bool,
        expected: &mut Expected,
    ) {
        let numbers: Vec<_> = (0..values).map(|_| self.thing()).collect();
        let set_up = |(place, number): (usize, &usize)| {
            // Even in parallel they complete one after the other, so that the order is known.
            let time = if parallel { STEP * u32::try_from(place + 1).unwrap() } else { STEP };
            disposable(*number, time, fails == Some(place), &self.log)
        };
        let all: Vec<_> = numbers.iter().enumerate().map(set_up).collect();
        let opening = if parallel {
            scope.disposables(all)
        } else {
            all.into_iter().fold(scope.disposables([]), ziggurat::scope::Opening::disposable)
        };
        let limit = dropped.map_or(STEP * 1000, |dropped| STEP * u32::try_from(dropped).unwrap() + STEP / 2);
        let opened = timeout(limit, opening.open()).await;

        if self.model.is_closed(index) {
            assert!(opened.unwrap().is_err());
            return;
        }
        let up = values.min(fails.unwrap_or(values)).min(dropped.unwrap_or(values));
        expected.events.extend(numbers[..up].iter().map(|number| Event::Up(*number)));
        expected.order.extend(numbers[..up].windows(2).map(|pair| (Event::Up(pair[0]), Event::Up(pair[1]))));
        self.model.scopes[index].values.extend_from_slice(&numbers[..up]);
        let open = up == values;
        assert_eq!(opened.is_ok_and(|opened| opened.is_ok()), open);
        if !open {
            self.model.close(index, expected);
        }
    }
}

fn disposable(number: usize, time: Duration, fails: bool, log: &Log) -> Disposable {
    let (up, down) = (log.clone(), log.clone());
    Disposable::new(
        async move |_: Scope| {
            sleep(time).await;
            if fails {
                assert!(number.is_multiple_of(2), "every other one panics");
                return Err(io::Error::other("fails"));
            }
            up.note(format_args!("{:?}", Event::Up(number)));
            Ok(number)
        },
        async move |number: Arc<usize>| {
            sleep(STEP).await;
            down.note(format_args!("{:?}", Event::Down(*number)));
        },
    )
}

struct Ended(Event, Log);

impl Drop for Ended {
    fn drop(&mut self) {
        self.1.note(format_args!("{:?}", self.0));
    }
}

fn spawn(scope: &Scope, kind: Kind, number: usize, log: &Log) {
    let (ended, told) = (Ended(Event::TaskEnded(number), log.clone()), scope.cancelled());
    drop(scope.spawn(async move {
        let _ended = ended;
        match kind {
            Kind::EndsAtOnce => {}
            Kind::EndsWhenTold => told.await,
            Kind::Panics => std::panic::resume_unwind(Box::new("without the hook")),
            Kind::Deaf => pending().await,
        }
    }));
}

fn check(happened: &[String], expected: &Expected) -> Result<(), TestCaseError> {
    let names = |events: &[Event]| events.iter().map(|event| format!("{event:?}")).collect::<BTreeSet<_>>();
    prop_assert_eq!(happened.iter().cloned().collect::<BTreeSet<_>>(), names(&expected.events));
    prop_assert_eq!(happened.len(), expected.events.len(), "something happened twice: {:?}", happened);
    let place = |event: Event| happened.iter().position(|name| *name == format!("{event:?}"));
    // A scope around that stays open tears nothing down.
    for (first, second) in expected.order.iter().filter(|(_, second)| expected.events.contains(second)) {
        prop_assert!(place(*first) < place(*second), "{:?} before {:?}: {:?}", first, second, happened);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Shows: X4, X5
    #[test]
    fn whatever_is_done_exactly_what_was_set_up_is_torn_down_once_in_reverse_and_after_the_tasks(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new();
            let all = steps.iter().cloned().chain((0..20).map(Step::Drop));
            for step in all {
                let expected = run.step(&step).await;
                // Everything that goes on by itself is done by then.
                sleep(Duration::from_secs(60)).await;
                check(&run.log.take(), &expected)?;
            }
            prop_assert!(run.model.scopes.iter().all(|scope| scope.values.is_empty() && scope.tasks.is_empty()));
            prop_assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
            Ok(())
        })?;
    }
}
