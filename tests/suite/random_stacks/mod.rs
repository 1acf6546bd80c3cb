//! Random stacks and random callers: no idle service keeps a reservation of an inner service, and no wakeup is lost.

use std::{future::poll_fn, sync::Arc, time::Duration};

use http::Request;
use proptest::prelude::*;
use tokio::{
    task::yield_now,
    time::{sleep, timeout},
};
use tower::Service;

mod actors;
mod bottom;
mod kinds;
mod stack;
mod switch;
mod watch;

use self::{
    actors::{Acting, Actor, actors},
    bottom::{Act, Script, acts},
    kinds::{Kind, kinds},
    stack::{Boxed, Stack},
    switch::Switch,
    watch::Watch,
};

/// By then every circuit has half-opened, and every background call has ended.
const MUCH_LATER: Duration = Duration::from_secs(60 * 60);

/// No program takes this long, even if every layer retries every call.
const NEVER: Duration = Duration::from_secs(100 * 24 * 60 * 60);

#[derive(Debug, Clone)]
struct Program {
    kinds: Vec<Kind>,
    /// The size of tower's buffer at the bottom.
    buffer: Option<usize>,
    acts: Vec<Act>,
    actors: Vec<Actor>,
}

fn programs() -> impl Strategy<Value = Program> {
    let buffer = proptest::option::weighted(0.15, 1_usize..3);
    (kinds(), buffer, acts(), actors()).prop_map(|(kinds, buffer, mut acts, actors)| {
        if buffer.is_some() {
            acts = acts.into_iter().map(Act::in_a_buffer).collect();
        }
        Program { kinds, buffer, acts, actors }
    })
}

impl Program {
    async fn run(self) -> Result<(), TestCaseError> {
        let script = Script::new(self.acts);
        let stack = Stack::new(&self.kinds, self.buffer, &script);
        // A circuit that opens does not wake the callers that wait for its service.
        let is_strict = stack.switches.is_empty();
        let watches: Vec<_> = self.actors.iter().map(|_| Watch::new(&script, is_strict)).collect();
        let tasks = self.actors.into_iter().zip(&watches).map(|(actor, watch)| {
            let (fresh, switches) = (stack.service.clone(), stack.switches.clone());
            let acting = Acting::new(fresh, switches, stack.has_timeout, Arc::clone(watch));
            tokio::spawn(acting.run(actor))
        });
        let tasks: Vec<_> = tasks.collect();
        let looking = is_strict.then(|| tokio::spawn(look(watches.clone())));
        let mut idle = Vec::new();
        for task in tasks {
            match timeout(NEVER, task).await {
                Ok(done) => idle.extend(done.map_err(|error| TestCaseError::fail(error.to_string()))?),
                Err(_) => return Err(TestCaseError::fail("a caller is stuck")),
            }
        }
        if let Some(looking) = looking {
            looking.abort();
        }
        for watch in watches {
            prop_assert_eq!(watch.lost(), None, "a wakeup is lost, and a caller waits");
        }
        check(&stack, &script, idle).await
    }
}

/// Looks for lost wakeups from time to time, after everything else that is due at that time.
async fn look(watches: Vec<Arc<Watch>>) {
    let mut pause = Duration::from_millis(3);
    loop {
        sleep(pause).await;
        for _ in 0..32 {
            yield_now().await;
        }
        watches.iter().for_each(|watch| watch.look());
        pause += pause / 2;
    }
}

/// Checks the stack after every call, while some services are idle.
async fn check(stack: &Stack, script: &Script, idle: Vec<Boxed>) -> Result<(), TestCaseError> {
    script.calm_down();
    stack.chaos.iter().for_each(ziggurat::chaos::ChaosHandle::off);
    sleep(MUCH_LATER).await;
    stack.switches.iter().for_each(Switch::let_go);
    prop_assert_eq!(stack.in_use(), Vec::<&str>::new(), "idle services keep reservations");
    let mut fresh: Vec<_> = (0..stack.width.min(3)).map(|_| stack.service.clone()).collect();
    for service in &mut fresh {
        becomes_ready(service).await?;
    }
    for service in fresh {
        answers(service).await?;
    }
    for mut service in idle {
        becomes_ready(&mut service).await?;
        answers(service).await?;
    }
    Ok(())
}

async fn becomes_ready(service: &mut Boxed) -> Result<(), TestCaseError> {
    let readiness = timeout(MUCH_LATER, poll_fn(|cx| service.poll_ready(cx))).await;
    prop_assert!(readiness.is_ok_and(|readiness| readiness.is_ok()), "a service does not become ready");
    Ok(())
}

async fn answers(mut service: Boxed) -> Result<(), TestCaseError> {
    let call = timeout(MUCH_LATER, service.call(Request::new(String::new()))).await;
    prop_assert!(call.is_ok(), "a call does not end");
    Ok(())
}

/// `PROPTEST_CASES` sets the number of programs.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { 1_000 };
    ProptestConfig { cases, max_shrink_iters: 20_000, ..config }
}

proptest! {
    #![proptest_config(config())]

    /// Shows: L4, F2
    #[test]
    fn no_idle_service_keeps_a_reservation_and_no_wakeup_is_lost(program in programs()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(program.run())?;
    }
}
