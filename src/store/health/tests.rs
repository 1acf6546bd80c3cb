use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn wait(health: &Health, now: Instant) -> Duration {
    let Advice::Away { wait, .. } = health.advice(now) else { panic!("{:?}", health.advice(now)) };
    wait
}

/// Shows: Q5
#[test]
fn a_store_that_fails_is_asked_again_after_pauses_that_double_up_to_two_seconds() {
    let (mut health, mut now) = (Health::default(), Instant::now());
    assert_eq!((health.advice(now), health.is_away()), (Advice::Ask, false));
    assert!(health.failed(now, now, false, "refused".into()));
    for longest in [100, 200, 400, 800, 1600, 2000, 2000] {
        let longest = Duration::from_millis(longest);
        let pause = wait(&health, now);
        assert!(pause >= longest / 2 && pause <= longest, "{pause:?}");
        now += pause;
        assert_eq!(health.advice(now), Advice::Probe { error: "refused".into() });
        assert!(!health.failed(now, now, true, "refused".into()));
    }
}

/// Shows: Q5
#[test]
fn one_request_at_a_time_probes_a_store_and_any_answer_ends_its_absence() {
    let (mut health, mut now) = (Health::default(), Instant::now());
    assert!(health.failed(now, now, false, "refused".into()));
    now += SECOND;
    health.probed(now + SECOND);
    assert_eq!(health.advice(now), Advice::Away { wait: Duration::ZERO, error: "refused".into() });
    // An older request fails too: no news.
    assert!(!health.failed(now, now, false, "broken".into()));
    assert_eq!(health.advice(now), Advice::Away { wait: Duration::ZERO, error: "refused".into() });
    // One whose task is never driven must not keep the store away for ever.
    assert_eq!(health.advice(now + SECOND), Advice::Probe { error: "refused".into() });
    assert!(health.answered(now));
    assert_eq!(health.advice(now), Advice::Ask);
    // A request that was lost in an absence says nothing once it is over.
    assert!(!health.failed(now - SECOND, now, true, "broken".into()));
    assert_eq!(health.advice(now), Advice::Ask);
    // A later request fails as any other.
    assert!(health.failed(now, now, true, "broken".into()));
    assert!(wait(&health, now) <= SECOND / 10);
    assert!(health.answered(now) && !health.answered(now));
}
