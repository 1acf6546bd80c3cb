use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::{Context, Wake, Waker},
    time::Duration,
};

use proptest::prelude::*;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::pulse::advance;

type Flying = Arc<Flights<u8, u32>>;
type Waiting = Receiver<Message<u8, u32>>;

/// Makes a key. Half of all keys share a hash.
fn hashed(key: u8) -> Arc<Hashed<u8>> {
    Arc::new(Hashed { hash: u64::from(key % 2), key })
}

fn detach(flights: &Flying, key: u8) {
    flights.detach(hashed(key).hash, &key, || ());
}

fn arrive(flights: &Flying, key: u8) -> Arrival<u8, u32, ()> {
    flights.join(&hashed(key), || Patience::Forever, || None)
}

fn leader(flights: &Flying, key: u8) -> Lead<u8, u32> {
    let Arrival::Leader(lead) = arrive(flights, key) else { panic!("there is a leader already") };
    lead
}

fn waiter(flights: &Flying, key: u8) -> Waiting {
    let Arrival::Waiter(waiter) = arrive(flights, key) else { panic!("no flight to wait for") };
    waiter
}

fn land(lead: Lead<u8, u32>, message: u32) -> bool {
    let (stored, waiters) = lead.land(|_| ());
    waiters.tell(|| message);
    stored.is_some()
}

fn landed(waiter: &mut Waiting) -> Option<u32> {
    match waiter.try_recv() {
        Ok(Message::Landed(message)) => Some(message),
        _ => None,
    }
}

fn inherited(waiter: &mut Waiting) -> Lead<u8, u32> {
    let Ok(Message::Lead(lead)) = waiter.try_recv() else { panic!("it was not its turn") };
    lead
}

fn waiting(flights: &Flying) -> usize {
    flights.table.lock().flying.values().map(|flight| flight.waiters.len()).sum()
}

fn is_empty(flights: &Flying) -> bool {
    let table = flights.table.lock();
    table.current.is_empty() && table.flying.is_empty()
}

#[test]
fn one_leads_and_the_others_learn_the_outcome() {
    let flights = Flights::new();
    let lead = leader(&flights, 1);
    let mut waiters = [(); 3].map(|()| waiter(&flights, 1));
    let other = leader(&flights, 2);
    assert!(land(lead, 7));
    assert_eq!(waiters.each_mut().map(landed), [Some(7); 3]);
    drop(other);
    assert!(is_empty(&flights));
}

#[test]
fn an_arrival_that_finds_what_it_needs_neither_leads_nor_waits() {
    let flights: Flying = Flights::new();
    assert!(matches!(flights.join(&hashed(1), || unreachable!(), || Some("stored")), Arrival::Found("stored")));
    assert!(flights.lead(&hashed(1), || true).is_none());
    let lead = flights.lead(&hashed(1), || false).unwrap();
    assert!(flights.lead(&hashed(1), || false).is_none(), "a flight is in progress");
    drop(lead);
    assert!(is_empty(&flights));
}

#[test]
fn a_dropped_lead_goes_to_the_first_waiter_that_is_still_there() {
    let flights = Flights::new();
    let lead = leader(&flights, 1);
    let [first, mut second, mut third] = [(); 3].map(|()| waiter(&flights, 1));
    drop(first);
    drop(lead);
    let lead = inherited(&mut second);
    assert!(landed(&mut third).is_none());
    assert!(land(lead, 7));
    assert_eq!(landed(&mut third), Some(7));
    assert!(is_empty(&flights));
}

#[tokio::test(start_paused = true)]
async fn the_lead_goes_to_who_has_most_time_and_on_request_only_to_who_has_some() {
    let flights: Flying = Flights::new();
    let seconds = |seconds| Patience::Until(Deadline::after(Duration::from_secs(seconds)));
    let [two, nine, three, also_nine] = [2, 9, 3, 9].map(seconds);
    let lead = leader(&flights, 1);
    let mut waiters =
        [two, nine, three, also_nine].map(|patience| match flights.join(&hashed(1), || patience, || None::<()>) {
            Arrival::Waiter(waiter) => waiter,
            _ => panic!("no flight to wait for"),
        });
    drop(lead);
    drop(inherited(&mut waiters[1]));
    let lead = inherited(&mut waiters[3]);
    advance(Duration::from_secs(2)).await;
    assert!(lead.pass_on().is_none(), "a waiter has a second left");
    let lead = inherited(&mut waiters[2]).pass_on();
    let lead = lead.unwrap();
    assert!(land(lead, 7));
    assert_eq!(landed(&mut waiters[0]), Some(7));
    assert!(is_empty(&flights));
}

/// If a leader is woken and not polled for some seconds, the next arrival leads, also for the waiters.
#[tokio::test(start_paused = true)]
async fn an_arrival_takes_over_from_a_leader_that_was_abandoned() {
    let flights: Flying = Flights::new();
    let abandoned = leader(&flights, 1);
    let mut first = waiter(&flights, 1);
    advance(ABANDONED - Duration::from_millis(1)).await;
    let mut second = waiter(&flights, 1);
    advance(Duration::from_millis(1)).await;
    let lead = leader(&flights, 1);
    let mut third = waiter(&flights, 1);
    assert!(!land(abandoned, 7), "it no longer stores anything");
    assert!(landed(&mut first).is_none());
    assert!(land(lead, 8));
    assert_eq!([&mut first, &mut second, &mut third].map(landed), [Some(8); 3]);
    assert!(is_empty(&flights));

    // In the background of a stale response, and from a waiter that was chosen and is never polled.
    let _abandoned = flights.lead(&hashed(1), || false).unwrap();
    assert!(flights.lead(&hashed(1), || false).is_none());
    advance(ABANDONED).await;
    let lead = flights.lead(&hashed(1), || true).unwrap();
    let _chosen = waiter(&flights, 1);
    drop(lead);
    advance(ABANDONED).await;
    drop(leader(&flights, 1));
}

/// The waiter that was to lead has left, and no other waiter has time. The lead stays with its holder, whose pulse
/// decides whether it is abandoned.
#[tokio::test(start_paused = true)]
async fn a_lead_that_comes_back_is_judged_by_the_pulse_of_who_holds_it() {
    for is_alive in [true, false] {
        let flights: Flying = Flights::new();
        let lead = leader(&flights, 1);
        drop(waiter(&flights, 1));
        let lead = lead.pass_on().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        lead.pulse().poll(&mut cx, |cx| {
            if !is_alive {
                cx.waker().wake_by_ref()
            }
        });
        advance(ABANDONED).await;
        assert_eq!(matches!(arrive(&flights, 1), Arrival::Leader(_)), !is_alive);
        assert_eq!(land(lead, 7), is_alive);
    }
}

/// A leader on a runtime that is no longer driven is never woken by it. An arrival wakes the leader, and a later one
/// finds that it was not polled.
#[tokio::test(start_paused = true)]
async fn a_leader_that_sleeps_is_woken_at_most_every_five_seconds() {
    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
            panic!("a waker that panics does not disturb an arrival");
        }
    }
    let flights: Flying = Flights::new();
    let lead = leader(&flights, 1);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    lead.pulse().poll(&mut cx, |_| ());
    advance(ABANDONED - Duration::from_millis(1)).await;
    let _waiters = [(); 3].map(|()| waiter(&flights, 1));
    assert_eq!(woken.0.load(SeqCst), 0, "it has not slept long enough");
    advance(Duration::from_millis(1)).await;
    for round in 1..10 {
        let _waiters = [(); 3].map(|()| waiter(&flights, 1));
        assert_eq!(woken.0.load(SeqCst), round);
        lead.pulse().poll(&mut cx, |_| ());
        let _waiters = [(); 3].map(|()| waiter(&flights, 1));
        assert_eq!(woken.0.load(SeqCst), round);
        advance(ABANDONED).await;
    }
    // From a background fetch too.
    assert!(flights.lead(&hashed(1), || false).is_none());
    assert_eq!(woken.0.load(SeqCst), 10);
    advance(ABANDONED).await;
    assert!(flights.lead(&hashed(1), || false).is_some(), "the leader was not polled");
}

#[test]
fn an_arrival_from_inside_a_call_does_not_wait_for_that_call() {
    let [flights, other] = [(); 2].map(|()| Flights::new() as Flying);
    let (lead, outer) = (leader(&flights, 1), leader(&flights, 2));
    let mut leads = Leads::default().and(outer.name()).and(lead.name());
    let _entered = leads.enter();
    assert!(matches!(arrive(&flights, 1), Arrival::Itself));
    assert!(matches!(arrive(&flights, 2), Arrival::Itself));
    drop((leader(&flights, 3), leader(&other, 1)));
}

#[test]
fn a_waiter_that_was_chosen_and_dropped_hands_the_lead_on() {
    let flights = Flights::new();
    let lead = leader(&flights, 1);
    let [first, second, mut third] = [(); 3].map(|()| waiter(&flights, 1));
    drop(lead);
    drop(first);
    drop(second);
    drop(inherited(&mut third));
    assert!(is_empty(&flights));
}

#[test]
fn ten_thousand_who_leave_in_a_row_do_not_nest() {
    let flights = Flights::new();
    let lead = leader(&flights, 1);
    let waiters: Vec<_> = (0..10_000).map(|_| waiter(&flights, 1)).collect();
    drop(lead);
    drop(waiters);
    assert!(is_empty(&flights));
}

#[test]
fn waiters_who_gave_up_do_not_pile_up() {
    let flights = Flights::new();
    let lead = leader(&flights, 1);
    let mut patient: Vec<_> = (0..20).map(|_| waiter(&flights, 1)).collect();
    for _ in 0..10_000 {
        drop(waiter(&flights, 1));
        assert!(waiting(&flights) <= 2 * patient.len() + 1);
    }
    land(lead, 7);
    assert!(patient.iter_mut().all(|waiter| landed(waiter) == Some(7)));
}

#[test]
fn a_detached_flight_tells_its_waiters_but_does_not_store() {
    let flights = Flights::new();
    let lead = leader(&flights, 1);
    let mut old = waiter(&flights, 1);
    detach(&flights, 1);
    let newer = leader(&flights, 1);
    let mut new = waiter(&flights, 1);
    assert!(!land(lead, 7));
    assert_eq!(landed(&mut old), Some(7));
    assert!(landed(&mut new).is_none());
    assert!(land(newer, 8));
    assert_eq!(landed(&mut new), Some(8));
    assert!(is_empty(&flights));
}

#[test]
fn a_panic_while_storing_or_telling_leaves_nobody_behind() {
    let flights = Flights::new();
    let lead = leader(&flights, 1);
    let [mut first, mut second, mut third] = [(); 3].map(|()| waiter(&flights, 1));
    let storing = catch_unwind(AssertUnwindSafe(|| lead.land(|_| panic!("cannot store")).0));
    assert!(storing.is_err());
    let (_, waiters) = inherited(&mut first).land(|_| ());
    let telling = catch_unwind(AssertUnwindSafe(|| waiters.tell(|| panic!("cannot copy"))));
    assert!(telling.is_err());
    for waiter in [&mut second, &mut third] {
        assert!(matches!(waiter.try_recv(), Err(TryRecvError::Closed)));
    }
    assert!(is_empty(&flights));
}

#[derive(Debug, Clone)]
enum Step {
    Arrive {
        key: u8,
    },
    /// A member leaves, chosen among all that ever arrived.
    Leave {
        member: prop::sample::Index,
    },
    /// A member lands if it leads.
    Land {
        member: prop::sample::Index,
    },
    Detach {
        key: u8,
    },
    DetachAll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3_u8).prop_map(|key| Step::Arrive { key }),
        4 => any::<prop::sample::Index>().prop_map(|member| Step::Leave { member }),
        2 => any::<prop::sample::Index>().prop_map(|member| Step::Land { member }),
        1 => (0..3_u8).prop_map(|key| Step::Detach { key }),
        1 => Just(Step::DetachAll),
    ]
}

/// The fate of a member.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Here,
    Left,
    Landed,
}

/// A naive model: all arrivals, each with its key, the number of earlier detachments of that key, and its fate.
#[derive(Default)]
struct Model {
    members: Vec<(u8, usize, Fate)>,
    detachments: Vec<Option<u8>>,
}

impl Model {
    fn epoch(&self, key: u8) -> usize {
        self.detachments.iter().filter(|of| of.is_none_or(|of| of == key)).count()
    }

    /// Returns the members with the same key and epoch as `member`.
    fn flight(&self, member: usize) -> Vec<usize> {
        let (key, epoch, _) = self.members[member];
        (0..self.members.len())
            .filter(|&other| self.members[other].0 == key && self.members[other].1 == epoch)
            .collect()
    }

    /// Returns whether `member` leads: the first member of a flight that is still here does.
    fn leads(&self, member: usize) -> bool {
        self.flight(member).into_iter().find(|&other| self.members[other].2 == Fate::Here) == Some(member)
    }
}

enum Held {
    Lead(Lead<u8, u32>),
    Waiter(Waiting),
    Nothing,
}

proptest! {
    #[test]
    fn who_came_first_and_is_still_here_leads(steps in prop::collection::vec(step(), 0..60)) {
        let flights: Flying = Flights::new();
        let (mut model, mut held) = (Model::default(), Vec::<Held>::new());
        for step in steps {
            match step {
                Step::Arrive { key } => {
                    let (epoch, member) = (model.epoch(key), model.members.len());
                    model.members.push((key, epoch, Fate::Here));
                    held.push(match arrive(&flights, key) {
                        Arrival::Leader(lead) => Held::Lead(lead),
                        Arrival::Waiter(waiter) => Held::Waiter(waiter),
                        Arrival::Found(()) | Arrival::Itself => unreachable!(),
                    });
                    prop_assert_eq!(matches!(held[member], Held::Lead(_)), model.leads(member));
                }
                Step::Leave { member } if !held.is_empty() => {
                    let member = member.index(held.len());
                    if model.members[member].2 == Fate::Here {
                        model.members[member].2 = Fate::Left;
                        held[member] = Held::Nothing;
                    }
                }
                Step::Land { member } if !held.is_empty() => {
                    let member = member.index(held.len());
                    if model.members[member].2 == Fate::Here && model.leads(member) {
                        let lead = match mem::replace(&mut held[member], Held::Nothing) {
                            Held::Lead(lead) => lead,
                            Held::Waiter(mut waiter) => inherited(&mut waiter),
                            Held::Nothing => unreachable!(),
                        };
                        let current = model.members[member].1 == model.epoch(model.members[member].0);
                        prop_assert_eq!(land(lead, member as u32), current);
                        model.members[member].2 = Fate::Landed;
                        for other in model.flight(member) {
                            if model.members[other].2 == Fate::Here {
                                let Held::Waiter(waiter) = &mut held[other] else { unreachable!() };
                                prop_assert_eq!(landed(waiter), Some(member as u32));
                                model.members[other].2 = Fate::Landed;
                                held[other] = Held::Nothing;
                            }
                        }
                    }
                }
                Step::Detach { key } => {
                    detach(&flights, key);
                    model.detachments.push(Some(key));
                }
                Step::DetachAll => {
                    flights.detach_all(|| ());
                    model.detachments.push(None);
                }
                Step::Leave { .. } | Step::Land { .. } => {}
            }
            // Only the member that leads has received the lead.
            for (member, held) in held.iter_mut().enumerate() {
                let told = match held {
                    Held::Waiter(waiter) => match waiter.try_recv() {
                        Ok(Message::Lead(lead)) => {
                            *held = Held::Lead(lead);
                            true
                        }
                        Ok(Message::Landed(_) | Message::Alone) => panic!("nobody landed"),
                        Err(error) => {
                            prop_assert_eq!(error, TryRecvError::Empty);
                            false
                        }
                    },
                    Held::Lead(_) => true,
                    Held::Nothing => continue,
                };
                prop_assert_eq!(told, model.leads(member), "member {}", member);
            }
        }
        held.clear();
        prop_assert!(is_empty(&flights));
    }
}

#[test]
fn threads_that_come_lead_and_leave_at_will_leave_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let flights: Flying = Flights::new();
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let flights = Arc::clone(&flights);
            runtime.spawn(async move {
                for _ in 0..500 {
                    let lead = match arrive(&flights, fastrand::u8(0..2)) {
                        Arrival::Leader(lead) => lead,
                        Arrival::Waiter(waiter) if fastrand::bool() => match waiter.await.unwrap() {
                            Message::Lead(lead) => lead,
                            Message::Landed(_) | Message::Alone => continue,
                        },
                        _ => continue,
                    };
                    tokio::task::yield_now().await;
                    match fastrand::u8(0..4) {
                        0 => drop(lead),
                        1 => detach(&flights, lead.key().key),
                        _ => drop(land(lead, 1)),
                    }
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert!(is_empty(&flights));
}
