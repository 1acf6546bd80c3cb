//! A scope owns its values and tasks: it sets up, runs tasks, cancels them at the end, and tears down, whatever fails
//! on the way.

use std::{
    error::Error as StdError,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::sleep;
use ziggurat::{
    Scope,
    scope::{Disposable, MissingState, RunError},
};

const HALF_A_SECOND: Duration = Duration::from_millis(500);

struct Database;

struct Sessions {
    _database: Arc<Database>,
}

static LOG: Mutex<Vec<&str>> = Mutex::new(Vec::new());

fn log(line: &'static str) {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

/// Returns the messages that were logged since the last call.
fn logged() -> Vec<&'static str> {
    std::mem::take(&mut LOG.lock().unwrap_or_else(PoisonError::into_inner))
}

fn database() -> Disposable {
    let set_up = async |_: Scope| {
        log("database is up");
        Ok::<_, io::Error>(Database)
    };
    Disposable::new(set_up, async |_: Arc<Database>| log("database is down"))
}

/// Requires the database, which has to be set up before.
fn sessions() -> Disposable {
    let set_up = async |scope: Scope| {
        let sessions = Sessions { _database: scope.require()? };
        log("sessions are up");
        Ok::<_, MissingState>(sessions)
    };
    Disposable::new(set_up, async |_: Arc<Sessions>| {
        log("sessions are down");
        Err::<(), _>("3 sessions were lost")
    })
}

/// Receives an item every second, and takes half a second for it. When the scope is cancelled, it finishes its current
/// item.
async fn worker() {
    let Some(over) = Scope::current().map(|scope| scope.cancelled()) else { return };
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => break log("told to stop"),
            () = sleep(2 * HALF_A_SECOND) => {
                sleep(HALF_A_SECOND).await;
                log("worked");
            }
        }
    }
}

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // Set up in order. Then the body runs. However it ends, first the tasks end, and then everything is torn down in
    // reverse.
    let app = Scope::root("app").grace(Duration::from_secs(5)).disposable(database()).disposable(sessions());
    let ran = app.run(async |scope: Scope| {
        scope.spawn(worker());
        sleep(Duration::from_millis(1_200)).await;
        log("failed");
        Err::<(), _>(io::Error::other("out of order"))
    });
    // The tear-down failed too, and hides nothing.
    let Err(RunError::Both { body, closing }) = ran.await?.into_result() else { panic!("both failed") };
    assert_eq!((body.to_string().as_str(), closing.faults().len()), ("out of order", 1));
    println!("{body}; and then: {closing}");
    assert_eq!(
        logged(),
        [
            "database is up",
            "sessions are up",
            "failed",
            "worked",
            "told to stop",
            "sessions are down",
            "database is down"
        ]
    );

    // If opening fails, only the values that were set up are torn down, and the body never runs.
    let broken = Disposable::new(async |_: Scope| Err::<Sessions, _>("no space left"), async |_: Arc<Sessions>| ());
    let error =
        Scope::root("app").disposable(database()).disposable(broken).open().await.err().ok_or("it is broken")?;
    println!("{error}");
    assert_eq!(logged(), ["database is up", "database is down"]);
    Ok(())
}
