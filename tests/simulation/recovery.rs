//! After an outage: how soon useful work is back, and how much the upstream has to bear.

use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};
use ziggurat::{
    Error,
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

use crate::{
    is_long,
    load::{Arrivals, Client, Load, boxed},
    report::{PATIENCE, Report},
    seconds, seeds, simulate,
    upstream::{Failed, Plan, Request, Upstream, Weather, Work},
    watch::Watch,
};

/// When the outage begins. The run goes on for a minute after it, and for twice as long as it lasted: no service is
/// down for more than a third of the time.
const BEGIN: f64 = 5.0;
const CALM: f64 = 60.0;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Bare,
    Ours,
}

fn client(kind: Kind, watch: &Watch, upstream: Upstream) -> Client {
    let own = upstream.map_err(Error::<Failed>::Service);
    match kind {
        Kind::Bare => boxed(TimeoutLayer::new(PATIENCE).layer(own)),
        Kind::Ours => {
            let stack = ClientStack::new("upstream").settings(ClientSettings::default().timeout(PATIENCE));
            watch.stack(&stack).around(&stack, own)
        }
    }
}

/// An outage of a service for 125 calls per second that 100 per second are offered to.
struct Outage {
    seconds: f64,
    weather: Weather,
    processes: usize,
}

const PER_SECOND: f64 = 100.0;

impl Outage {
    fn end(&self) -> f64 {
        BEGIN + self.seconds
    }

    fn after(&self) -> f64 {
        CALM + 2.0 * self.seconds
    }

    fn run(&self, kind: Kind, seed: u64) -> Report {
        let plan = Plan {
            workers: 10,
            work: Work::Random(seconds(0.08)),
            queue: 1_000,
            notices_callers_leaving: true,
            weather: vec![(BEGIN..self.end(), self.weather)],
            seed,
        };
        let load = Load {
            per_second: PER_SECOND,
            arrivals: Arrivals::Steady,
            length: seconds(self.end() + self.after()),
            seed,
        };
        simulate(seed, async |watch| {
            let upstream = Upstream::new(plan);
            let processes: Vec<_> = (0..self.processes).map(|_| client(kind, watch, upstream.clone())).collect();
            let balanced = service_fn(move |request: Request| {
                let process = processes[request as usize % processes.len()].clone();
                process.oneshot(request)
            });
            let calls = load.offer(&BoxCloneService::new(balanced)).await;
            Report { calls, received: upstream.received() }
        })
    }

    /// The seconds from the end of the outage until half a second in which 95 % of the load is answered.
    fn recovery(&self, report: &Report) -> f64 {
        (0..(self.after() * 20.0) as u32)
            .map(|step| f64::from(step) / 20.0)
            .find(|after| report.goodput(self.end() + after..self.end() + after + 0.5) >= 0.95 * PER_SECOND)
            .unwrap_or(f64::INFINITY)
    }

    /// The most calls that arrived at the upstream in any second after the outage, as a multiple of the load.
    fn surge(&self, report: &Report) -> f64 {
        let from = self.end();
        let most = (0..(self.after() * 10.0) as u32 - 10).map(|step| {
            let second = from + f64::from(step) / 10.0;
            report.received.iter().filter(|at| (second..second + 1.0).contains(&at.as_secs_f64())).count()
        });
        most.max().unwrap_or_default() as f64 / PER_SECOND
    }
}

/// Shows: A5
#[test]
fn after_an_outage_the_recommended_client_is_back_within_a_second_and_a_tenth_of_it() {
    let mut outages = vec![(1.0, 1), (1.0, 100), (10.0, 1), (10.0, 100), (60.0, 1)];
    if is_long() {
        outages.extend([(60.0, 100), (600.0, 1), (1.0, 1_000), (10.0, 1_000), (60.0, 1_000), (600.0, 1_000)]);
    }
    for seed in seeds(1) {
        for weather in [Weather::Refuses, Weather::Hangs] {
            for &(length, processes) in &outages {
                let outage = Outage { seconds: length, weather, processes };
                let [bare, ours] = [Kind::Bare, Kind::Ours].map(|kind| outage.run(kind, seed));
                let context = format!("seed {seed}, {weather:?} for {length} s, {processes} processes");
                for (kind, report) in [("bare", &bare), ("ours", &ours)] {
                    println!(
                        "{context}, {kind}: back after {:>5.2} s, at most {:.2} times the load, {} answers, {:.2} calls a request",
                        outage.recovery(report),
                        outage.surge(report),
                        report.answers(),
                        report.amplification()
                    );
                }
                // A probe of a service that hangs takes as long as an attempt may.
                let attempt = if let Weather::Hangs = weather { PATIENCE.as_secs_f64() } else { 0.0 };
                let allowed = (1.0 + length / 10.0).min(10.0) + attempt;
                assert!(outage.recovery(&ours) <= allowed, "{context}: more than {allowed} s");
                assert!(outage.surge(&ours) <= 1.5, "{context}");
                assert!(ours.answers() as f64 >= 0.98 * bare.answers() as f64 - attempt * PER_SECOND, "{context}");
            }
        }
    }
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let outage = Outage { seconds: 3.0, weather: Weather::Refuses, processes: 3 };
    let runs = [7, 7, 8].map(|seed| outage.run(Kind::Ours, seed));
    assert!(runs[0] == runs[1] && runs[1] != runs[2]);
}
