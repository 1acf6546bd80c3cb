//! Compares any sequence of operations on a body and its copies with a naive model.

use std::{collections::VecDeque, task::Poll};

use http::{HeaderMap, HeaderValue};
use http_body::{Body, SizeHint};
use proptest::prelude::*;

use super::{FAILED, NOT_KEPT, Scripted, Seen, Step, TAKEN_OVER, allowing, poll};
use crate::body::{CopyBody, ReplayBody};

/// The naive model: a list of all past steps, from which every result is computed anew.
mod model {
    use super::Seen;

    #[derive(Debug, Clone)]
    pub(super) enum Happened {
        /// An attempt was created or dropped.
        Made(u64),
        /// An attempt for which nothing is kept was created.
        Spare(u64),
        Dropped(u64),
        /// An attempt was polled with a right to the body, or claimed it.
        Owns(u64),
        /// The inner body yielded a frame.
        Passed(Seen),
        Ended,
        Failed,
    }
    use Happened::{Dropped, Ended, Failed, Made, Owns, Passed, Spare};

    pub(super) fn passed(past: &[Happened]) -> Vec<Seen> {
        past.iter().filter_map(|happened| if let Passed(seen) = happened { Some(seen.clone()) } else { None }).collect()
    }

    /// The first attempt owned the body from the start.
    pub(super) fn has_asked(past: &[Happened], attempt: u64) -> bool {
        attempt == 0 || past.iter().any(|happened| matches!(happened, Owns(other) if *other == attempt))
    }

    /// The attempt that was the latest to request the body for the first time.
    pub(super) fn owner(past: &[Happened]) -> u64 {
        let mut owner = 0;
        for (at, happened) in past.iter().enumerate() {
            if let Owns(attempt) = happened
                && !has_asked(&past[..at], *attempt)
            {
                owner = *attempt;
            }
        }
        owner
    }

    pub(super) fn has_lost(past: &[Happened], attempt: u64) -> bool {
        has_asked(past, attempt) && owner(past) != attempt
    }

    pub(super) fn has_ended(past: &[Happened]) -> bool {
        past.iter().any(|happened| matches!(happened, Ended))
    }

    pub(super) fn has_failed(past: &[Happened]) -> bool {
        past.iter().any(|happened| matches!(happened, Failed))
    }

    fn living(past: &[Happened]) -> Vec<u64> {
        let mut living = Vec::new();
        for happened in past {
            match happened {
                Made(attempt) => living.push(*attempt),
                Dropped(attempt) => living.retain(|other| other != attempt),
                _ => {}
            }
        }
        living
    }

    /// Every frame passed while a copy waited that will need the whole body, and the frames are within the bounds.
    pub(super) fn kept(past: &[Happened], max_bytes: usize) -> bool {
        let is_wanted = |at: usize| {
            let before = &past[..at];
            let waits = |attempt: &u64| !has_asked(before, *attempt) && !is_spare(before, *attempt);
            living(before).iter().any(waits)
        };
        let was_wanted = past.iter().enumerate().all(|(at, happened)| !matches!(happened, Passed(..)) || is_wanted(at));
        was_wanted && passed(past).iter().map(Seen::bytes).sum::<usize>() <= max_bytes
    }

    fn is_spare(past: &[Happened], attempt: u64) -> bool {
        past.iter().any(|happened| matches!(happened, Spare(other) if *other == attempt))
    }
}
use model::Happened;

#[derive(Debug, Clone, Copy)]
enum Op {
    Poll,
    Copy,
    CopyUnread,
    Claim,
    Drop,
}

#[derive(Debug, Clone)]
enum Scripting {
    Frame(Seen),
    Pending,
}

fn seen() -> impl Strategy<Value = Seen> {
    let data = prop::collection::vec(any::<u8>(), 0..6).prop_map(|data| Seen::Data(data.into()));
    let trailers = "[a-z]{0,4}".prop_map(|value| {
        Seen::Trailers(HeaderMap::from_iter([("x".parse().unwrap(), HeaderValue::from_str(&value).unwrap())]))
    });
    prop_oneof![4 => data, 1 => trailers]
}

proptest! {
    #[test]
    fn every_whole_copy_gives_the_same_frames_whatever_happens(
        script in prop::collection::vec(
            prop_oneof![3 => seen().prop_map(Scripting::Frame), 1 => Just(Scripting::Pending)], 0..12),
        fails in prop::bool::weighted(0.2),
        says_end in any::<bool>(),
        sized in any::<bool>(),
        max_bytes in prop_oneof![0..30_usize, Just(1000)],
        ops in prop::collection::vec((
            prop_oneof![8 => Just(Op::Poll), 3 => Just(Op::Copy), 1 => Just(Op::CopyUnread),
                1 => Just(Op::Claim), 1 => Just(Op::Drop)],
            any::<prop::sample::Index>()), 0..60),
    ) {
        let frames: Vec<Seen> = script.iter()
            .filter_map(|step| if let Scripting::Frame(seen) = step { Some(seen.clone()) } else { None }).collect();
        let is_data = |seen: &&Seen| matches!(seen, Seen::Data(_));
        let size: usize = frames.iter().filter(is_data).map(Seen::bytes).sum();
        let says_end = says_end && !fails;
        let mut steps: VecDeque<Step> = script.iter().map(|step| match step {
            Scripting::Frame(seen) => Step::Frame(seen.clone()),
            Scripting::Pending => Step::Pending,
        }).collect();
        if fails {
            steps.push_back(Step::Fail);
        }
        let hint = if sized { SizeHint::with_exact(size as u64) } else { SizeHint::new() };
        let empty = steps.is_empty() && says_end;
        let mut upcoming: VecDeque<Scripting> = script.clone().into();

        let (allowance, told) = allowing(max_bytes, 10_000);
        let max_bytes = if sized && size > max_bytes { 0 } else { max_bytes };
        let mut past = vec![Happened::Made(0)];
        if empty {
            past.push(Happened::Ended);
        }
        // Each body, with the frames that it yielded.
        let mut bodies = vec![(0_u64, ReplayBody::within(Scripted { steps, says_end, size: hint }, &allowance), Vec::new())];
        let mut latest = 0;

        for (op, which) in ops {
            if bodies.is_empty() {
                break;
            }
            let at = which.index(bodies.len());
            let kept = model::kept(&past, max_bytes);
            let failed = model::has_failed(&past);
            let lost = model::has_lost(&past, bodies[at].0);
            match op {
                Op::Drop => {
                    let (attempt, body, _) = bodies.swap_remove(at);
                    drop(body);
                    past.push(Happened::Dropped(attempt));
                }
                Op::Copy | Op::CopyUnread => {
                    let spare = matches!(op, Op::CopyUnread);
                    let copy = if spare { bodies[at].1.copy_unread() } else { bodies[at].1.copy_body() };
                    prop_assert_eq!(copy.is_some(), kept && !failed);
                    if let Some(copy) = copy {
                        latest += 1;
                        past.push(Happened::Made(latest));
                        past.extend(spare.then_some(Happened::Spare(latest)));
                        bodies.push((latest, copy, Vec::new()));
                    }
                }
                Op::Claim => {
                    let (attempt, body, gave) = &bodies[at];
                    let took = body.claim_body();
                    let whole = gave.len() == model::passed(&past).len() || kept;
                    prop_assert_eq!(took, empty || (!lost && !failed && whole));
                    if took && !empty {
                        past.push(Happened::Owns(*attempt));
                    }
                }
                Op::Poll => {
                    let (attempt, body, gave) = &mut bodies[at];
                    let polled = poll(body);
                    let passed = model::passed(&past);
                    let message = if let Poll::Ready(Some(Err(message))) = &polled { message.as_str() } else { "" };
                    if model::has_ended(&past) && gave.len() == passed.len() {
                        prop_assert_eq!(&polled, &Poll::Ready(None));
                    } else if lost {
                        prop_assert_eq!(message, TAKEN_OVER);
                    } else if failed {
                        prop_assert_eq!(message, FAILED);
                    } else if gave.len() < passed.len() {
                        if kept {
                            prop_assert_eq!(&polled, &Poll::Ready(Some(Ok(passed[gave.len()].clone()))));
                        } else {
                            prop_assert_eq!(message, NOT_KEPT);
                        }
                        if message.is_empty() {
                            past.push(Happened::Owns(*attempt));
                        }
                    } else {
                        past.push(Happened::Owns(*attempt));
                        match upcoming.pop_front() {
                            Some(Scripting::Pending) => prop_assert!(polled.is_pending()),
                            Some(Scripting::Frame(seen)) => {
                                prop_assert_eq!(&polled, &Poll::Ready(Some(Ok(seen.clone()))));
                                past.push(Happened::Passed(seen));
                                if says_end && upcoming.is_empty() {
                                    past.push(Happened::Ended);
                                }
                            }
                            None if fails => {
                                prop_assert_eq!(message, "reset");
                                past.push(Happened::Failed);
                            }
                            None => {
                                prop_assert_eq!(&polled, &Poll::Ready(None));
                                past.push(Happened::Ended);
                            }
                        }
                    }
                    if let Poll::Ready(Some(Ok(seen))) = polled {
                        gave.push(seen);
                    }
                }
            }
            let passed = model::passed(&past);
            for (_, body, gave) in &bodies {
                prop_assert_eq!(&frames[..gave.len()], gave.as_slice());
                prop_assert_eq!(body.is_end_stream(), model::has_ended(&past) && gave.len() == passed.len());
                if sized {
                    let given: usize = gave.iter().filter(is_data).map(Seen::bytes).sum();
                    prop_assert_eq!(body.size_hint().exact(), Some((size - given) as u64));
                }
            }
            prop_assert!(allowance.kept() <= max_bytes);
            if !model::kept(&past, max_bytes) {
                prop_assert_eq!(allowance.kept(), 0);
            }
        }
        prop_assert!(told.lock().unwrap().len() <= 1);
        drop(bodies);
        prop_assert_eq!(allowance.kept(), 0);
    }
}
