//! A failure drill: injects faults, shows the responses that callers get meanwhile, and that they recover.
//!
//! The chaos is innermost: while it is on, the backend seems slow, broken or dead. The fallback is outermost: it
//! returns yesterday's prices if today's are unavailable. With a seed the drill is the same every time.

use std::{error::Error as StdError, io, time::Duration};

use http::{Request, Response};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Degraded, Error,
    chaos::{ChaosLayer, Fault, Schedule},
    circuit_breaker::{CircuitBreakerLayer, State},
    fallback::{Failed, FallbackLayer},
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

async fn backend(request: Request<()>) -> Result<Response<String>, io::Error> {
    Ok(Response::new(format!("today's price of {}", request.uri().path())))
}

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // Three in ten calls fail, except health checks.
    let errors =
        ChaosLayer::new(|req: &Request<()>| (req.uri().path() != "/health").then_some(Fault::Error)).rate(0.3).seed(7);
    // Every call hangs.
    let dead = ChaosLayer::new(Fault::Hang).schedule(Schedule::every(1));
    let (errors_on, dead_on) = (errors.handle(), dead.handle());

    let breaker = CircuitBreakerLayer::consecutive(5).open_for(Duration::from_secs(30));
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(
            FallbackLayer::new(|failed: Failed<'_, _, _, String>| {
                Response::new(format!("yesterday's price of {}", failed.remembered))
            })
            .remember(|req: &Request<()>| req.uri().path().to_owned())
            .http(),
        )
        .layer(TimeoutLayer::new(Duration::from_secs(2)))
        .layer(RetryLayer::http().budget(None))
        .layer(breaker)
        .layer(errors)
        .layer(dead)
        .map_err(Error::Service)
        .service(service_fn(backend));

    // Counts how many of a hundred responses are yesterday's, and returns the cause of the last of them.
    let ask = async |path: &str| -> Result<(u32, String), Box<dyn StdError>> {
        let (mut degraded, mut why) = (0, String::new());
        for _ in 0..100 {
            let response = service.clone().oneshot(Request::get(path).body(())?).await?;
            match response.extensions().get::<Degraded>() {
                Some(cause) => (degraded, why) = (degraded + 1, cause.to_string()),
                None => assert!(response.body().starts_with("today's")),
            }
        }
        println!("{path}: {degraded} of 100 responses are yesterday's. {why}");
        Ok((degraded, why))
    };

    println!("Off, the default:");
    assert_eq!(ask("/tea").await?.0, 0);

    println!("Three calls in ten fail, with up to three attempts each:");
    errors_on.on();
    assert_eq!(ask("/health").await?.0, 0);
    let (degraded, why) = ask("/tea").await?;
    // Three failures in a row are rare.
    assert_eq!((degraded, why.as_str()), (1, "chaos: an injected fault"));
    errors_on.off();

    println!("The backend is dead: five calls wait for their timeout, then the circuit is open.");
    dead_on.on();
    let (degraded, why) = ask("/tea").await?;
    assert_eq!((degraded, circuit.state()), (100, State::Open));
    assert!(why.contains("the circuit is open"));
    assert_eq!(dead_on.injected(), 5);

    println!("It is back, and half a minute later a probe finds that out:");
    dead_on.off();
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(ask("/tea").await?.0, 0);
    assert_eq!(circuit.state(), State::Closed);
    Ok(())
}
