//! Compares any sequence of operations on a fill and its readers with a naive model.

use proptest::prelude::*;

use super::*;
use crate::cache::rfc9111::fill::tape::SMALL;

#[derive(Debug, Clone)]
enum Op {
    /// Data of this number of units.
    Send(usize),
    Trailers,
    Fail,
    End,
    /// The task is dropped.
    Stop,
    Join,
    Poll(prop::sample::Index),
    Leave(prop::sample::Index),
}

/// The model: positions, without memory.
struct Model {
    max: u64,
    size: Option<u64>,
    sent: VecDeque<Op>,
    /// The ends of the frames that the readers may have.
    ends: Vec<u64>,
    /// The first byte that a reader may still take.
    start: u64,
    is_streamed: bool,
    has_trailers: bool,
    end: Option<Ended>,
    readers: Vec<Position>,
}

#[derive(Debug, Clone, PartialEq)]
enum Ended {
    Whole,
    Failed(String),
}

struct Position {
    at: u64,
    /// It has had the end, or an error.
    is_over: bool,
    /// How often it had been woken when it was pending.
    waits: Option<usize>,
}

impl Model {
    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn live(&self) -> impl Iterator<Item = u64> {
        self.readers.iter().filter(|reader| !reader.is_over && reader.at >= self.start).map(|reader| reader.at)
    }

    /// Runs the task until it waits. Data has this many bytes for each unit.
    fn run(&mut self, unit: usize) {
        while self.end.is_none() {
            if self.is_streamed && self.live().next().is_none() {
                self.end = Some(Ended::Failed(LOST.into()));
                return;
            }
            match self.sent.front() {
                None => return,
                Some(Op::Send(units)) => {
                    let (len, total) = ((units * unit) as u64, self.total());
                    if let Some(size) = self.size.filter(|size| total + len > *size) {
                        let text = format!("the response is longer than the {size} bytes that it announced");
                        self.end = Some(Ended::Failed(text));
                        return;
                    }
                    self.is_streamed |= total + len > self.max && len > 0;
                    if self.is_streamed && len > 0 {
                        if !self.live().any(|at| at == total) {
                            if self.live().next().is_some() {
                                return;
                            }
                            continue;
                        }
                        while self.start < total && total + len - self.start > self.max {
                            self.start = *self.ends.iter().find(|end| **end > self.start).unwrap();
                        }
                    }
                    if len > 0 {
                        self.ends.push(total + len);
                    }
                }
                Some(Op::Trailers) => self.has_trailers = true,
                Some(Op::Fail) => self.end = Some(Ended::Failed("broken".into())),
                _ => {
                    let (arrived, short) = (self.total(), self.size.filter(|size| *size > self.total()));
                    let text = |size| format!("the response ended after {arrived} of {size} bytes");
                    self.end = Some(short.map_or(Ended::Whole, |size| Ended::Failed(text(size))));
                }
            }
            self.sent.pop_front();
        }
    }

    fn is_kept(&self) -> bool {
        !self.is_streamed && self.end == Some(Ended::Whole)
    }

    /// The result of a poll by a reader at this position, where data is the end of its frame.
    fn read(&self, at: u64) -> Result<u64, Read> {
        let frame = self.ends.iter().find(|end| **end > at);
        match (frame, &self.end) {
            _ if at < self.start => Err(failed(LAGGING)),
            (Some(end), _) => Ok(*end),
            (None, None) => Err(Read::Pending),
            (None, Some(Ended::Failed(text))) => Err(failed(text)),
            (None, Some(Ended::Whole)) if self.has_trailers => Err(Read::Trailers(trailers())),
            (None, Some(Ended::Whole)) => Err(Read::End),
        }
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let index = any::<prop::sample::Index>;
    let op = prop_oneof![
        12 => (0..10_usize).prop_map(Op::Send),
        1 => Just(Op::Trailers),
        4 => Just(Op::Join),
        30 => index().prop_map(Op::Poll),
        3 => index().prop_map(Op::Leave),
    ];
    let last = prop_oneof![1 => Just(Op::Fail), 4 => Just(Op::End), 1 => Just(Op::Stop)];
    let polls = prop::collection::vec(index().prop_map(Op::Poll), 0..40);
    (prop::collection::vec(op, 0..80), last, polls).prop_map(|(mut ops, last, polls)| {
        ops.push(last);
        ops.extend(polls);
        ops
    })
}

fn bytes(from: u64, to: u64) -> Bytes {
    (from..to).map(|at| (at % 251) as u8).collect()
}

proptest! {
    #[test]
    fn every_reader_gets_all_that_it_can(
        ops in ops(),
        // With the second one, each frame is as large as what small ones are joined to.
        unit in prop_oneof![Just(1), Just(SMALL)],
        max in prop_oneof![0..60_usize, Just(1_000)],
        size in prop::option::weighted(0.3, 0..200_u64),
    ) {
        let (max, size) = (max * unit, size.map(|size| size * unit as u64));
        let mut rig = Rig::sized(max, size.map_or_else(SizeHint::new, SizeHint::with_exact));
        let mut model = Model {
            max: max as u64,
            size,
            sent: VecDeque::new(),
            ends: Vec::new(),
            start: 0,
            is_streamed: false,
            has_trailers: false,
            end: None,
            readers: Vec::new(),
        };
        let (mut readings, mut sent) = (Vec::<Reading>::new(), 0);
        rig.run();
        for op in ops {
            match &op {
                Op::Send(units) => {
                    let end = sent + (units * unit) as u64;
                    rig.upstream.then(Step::Data(bytes(sent, end)));
                    sent = end;
                }
                Op::Trailers => rig.upstream.then(Step::Trailers(trailers())),
                Op::Fail => rig.upstream.then(Step::Fail("broken".into())),
                Op::End => rig.upstream.then(Step::End),
                Op::Stop => {
                    rig.task = None;
                    model.end.get_or_insert(Ended::Failed(LOST.into()));
                }
                Op::Join => {
                    let reading = rig.try_reader();
                    let can_join = !model.is_streamed && model.end.as_ref().is_none_or(|end| *end == Ended::Whole);
                    prop_assert_eq!(reading.is_some(), can_join);
                    if let Some(reading) = reading {
                        readings.push(reading);
                        model.readers.push(Position { at: 0, is_over: false, waits: None });
                    }
                }
                Op::Leave(index) if !readings.is_empty() => {
                    let index = index.index(readings.len());
                    drop(readings.swap_remove(index));
                    model.readers.swap_remove(index);
                }
                Op::Poll(index) if !readings.is_empty() => {
                    let index = index.index(readings.len());
                    let reading = &mut readings[index];
                    let (read, at) = (reading.poll(), model.readers[index].at);
                    let read_is_pending = read == Read::Pending;
                    let expected = if model.readers[index].is_over { Err(Read::End) } else { model.read(at) };
                    let position = &mut model.readers[index];
                    match expected {
                        Ok(end) => {
                            let Read::Data(data) = read else { panic!("no data: {read:?}") };
                            position.at += data.len() as u64;
                            prop_assert_eq!(data, bytes(at, position.at));
                            prop_assert!(position.at >= end);
                            if position.at > end {
                                prop_assert!(model.is_kept(), "only a body that is kept is joined");
                            }
                        }
                        Err(expected) => {
                            position.is_over = expected != Read::Pending;
                            prop_assert_eq!(read, expected);
                        }
                    }
                    let waits = !model.readers[index].is_over && read_is_pending;
                    model.readers[index].waits = waits.then(|| readings[index].woken.times());
                }
                Op::Leave(_) | Op::Poll(_) => {}
            }
            if matches!(op, Op::Send(_) | Op::Trailers | Op::Fail | Op::End) {
                model.sent.push_back(op);
            }
            rig.run_if_woken();
            model.run(unit);

            prop_assert_eq!(rig.task.is_none(), model.end.is_some());
            let content = rig.content.as_ref();
            prop_assert_eq!(content.is_some(), model.is_kept());
            if let Some(content) = content {
                prop_assert_eq!(content.len(), model.total());
                prop_assert_eq!(content.trailers().is_some(), model.has_trailers);
            }
            let needed = if model.is_kept() {
                0
            } else if model.is_streamed {
                model.live().min().map_or(0, |at| model.total() - at)
            } else {
                model.total()
            };
            prop_assert_eq!(held(&rig) as u64, needed);
            for (reading, position) in readings.iter().zip(&model.readers) {
                prop_assert_eq!(reading.got.len() as u64, position.at);
                let left = if position.is_over { Some(0) } else { model.size.map(|size| size - position.at) };
                if let (Some(left), None) = (left, &model.end) {
                    prop_assert_eq!(reading.reader.size_hint().exact(), Some(left));
                }
                // Woken once if there is more, and not at all if there is not.
                if let Some(before) = position.waits {
                    let is_due = model.read(position.at) != Err(Read::Pending);
                    prop_assert_eq!(reading.woken.times() - before, usize::from(is_due));
                }
                let has_all = model.read(position.at) == Err(Read::End);
                prop_assert_eq!(reading.reader.is_end_stream(), position.is_over || has_all);
            }
        }
        let all = bytes(0, sent);
        prop_assert!(readings.iter().all(|reading| all.starts_with(&reading.got)));
        if let Some(content) = rig.content {
            prop_assert_eq!(content.to_bytes(), all);
        }
    }

    /// Chunks that were joined are dropped together, so a reader can lose its place a little earlier.
    #[test]
    fn a_reader_that_lags_by_less_than_may_be_kept_loses_nothing(
        sends in prop::collection::vec(
            prop_oneof![8 => 1..20_usize, 4 => 1_000..5_000_usize, 1 => Just(10_000)], 1..60),
        polls in prop::collection::vec((0..4_usize, any::<bool>()), 200),
        max in 0..40_000_usize,
    ) {
        let mut rig = Rig::new(max);
        let mut readings = [(); 4].map(|()| rig.reader());
        let largest = sends.iter().copied().max().unwrap_or(0);
        let mut sent = 0;
        for len in &sends {
            let end = sent + *len as u64;
            rig.upstream.then(Step::Data(bytes(sent, end)));
            sent = end;
        }
        rig.upstream.then(Step::End);
        let mut is_over = [false; 4];
        let last = (0..4).cycle().map(|reader| (reader, true)).take(600);
        for (reader, goes_on) in polls.into_iter().chain(last) {
            rig.run();
            prop_assert!(held(&rig) <= max.max(largest));
            if is_over[reader] || !goes_on {
                continue;
            }
            let fastest = readings.iter().map(|reading| reading.got.len()).max().unwrap();
            let reading = &mut readings[reader];
            let lag = fastest - reading.got.len();
            match reading.poll() {
                Read::Data(_) | Read::Pending => {}
                Read::Failed(text) => {
                    prop_assert_eq!(text, LAGGING);
                    // The next part may be there already, but not taken yet.
                    prop_assert!(lag + SMALL + largest > max);
                    is_over[reader] = true;
                }
                Read::End => {
                    prop_assert_eq!(reading.got.len() as u64, sent);
                    is_over[reader] = true;
                }
                Read::Trailers(_) => panic!("there are none"),
            }
        }
        prop_assert_eq!(is_over, [true; 4]);
        for reading in &readings {
            prop_assert_eq!(&reading.got, &bytes(0, reading.got.len() as u64));
        }
        prop_assert!(readings.iter().any(|reading| reading.got.len() as u64 == sent));
        prop_assert_eq!(rig.content.is_some(), sent <= max as u64);
    }
}
