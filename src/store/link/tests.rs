use std::{convert::Infallible, future::pending};

use super::*;
use crate::telemetry::layer_info;

const SECOND: Duration = Duration::from_secs(1);

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn a_request_that_was_sent_before_a_recovery_does_not_mark_the_store_away_again() {
    let (link, info) = (Link::default(), layer_info!("test"));
    let hangs = |timeout| link.ask(&info, timeout, false, pending::<Result<(), Infallible>>());
    let answers = async {
        link.ask(&info, SECOND, false, async { Err::<(), _>("refused") }).await.unwrap_err();
        assert!(link.is_away());
        clock::sleep(SECOND).await;
        link.ask(&info, SECOND, true, async { Ok::<_, Infallible>(()) }).await.unwrap();
        assert!(!link.is_away());
    };
    let (failed, ()) = tokio::join!(hangs(3 * SECOND), answers);
    assert_eq!(&*failed.unwrap_err(), "no answer within 3s");
    assert!(!link.is_away());
    // One that is sent since says that it is away.
    hangs(SECOND).await.unwrap_err();
    assert!(link.is_away());
}

/// Shows: Q5
#[tokio::test]
async fn an_error_whose_text_panics_is_a_failure_like_any_other() {
    struct Unspeakable;
    impl fmt::Display for Unspeakable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("in display");
        }
    }
    let link = Link::default();
    let error = link.ask(&layer_info!("test"), SECOND, false, async { Err::<(), _>(Unspeakable) }).await.unwrap_err();
    assert_eq!(&*error, "panicked: in display");
    assert!(link.is_away());
}
