//! The counts of our own subjects in a file, `figures.tsv`, with which CI compares those of a change.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    process::{Command, ExitCode},
};

use crate::{count::Count, subject::Subject};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/figures.tsv");
const WRITE: &str = "cargo bench -p ziggurat-benches --no-default-features --bench instructions -- --write";

/// How much more than the figure in the file fails. Another compiler, C library, valgrind or processor counts other
/// instructions for the same code.
const MORE: f64 = 0.03;
const MORE_WITH_OTHER_TOOLS: f64 = 0.15;

/// How much the counts of two runs of one binary differ, with the seeds of hash maps: this share of all, as was seen in
/// six of them, and no less than the second value.
const CHANCE: f64 = 0.005;
const LEAST: Count = Count { instructions: 4.0, allocations: 0.05 };

/// The counts of one subject.
pub struct Figure {
    situation: &'static str,
    what: &'static str,
    whose: &'static str,
    all: Count,
    /// Net of the bare subject of the situation, except for that one.
    net: Count,
}

impl Figure {
    pub fn new(situation: &'static str, subject: &Subject, all: Count, net: Count) -> Self {
        Self { all, situation, what: subject.what, whose: subject.whose, net }
    }

    pub fn name(&self) -> String {
        match self.whose {
            "" => format!("{}: bare", self.situation),
            whose => format!("{}: {}, {whose}", self.situation, self.what),
        }
    }

    fn is_ours(&self) -> bool {
        ["", "ziggurat"].contains(&self.whose)
    }
}

pub fn print<'a>(figures: impl Iterator<Item = &'a Figure>) -> ExitCode {
    println!("{:<72}{:>14}{:>13}", "net of the bare service", "instructions", "allocations");
    for figure in figures {
        println!("{:<72}{:>14.0}{:>13.1}", figure.name(), figure.net.instructions, figure.net.allocations);
    }
    ExitCode::SUCCESS
}

/// Writes the file.
pub fn write(figures: &[Figure]) -> ExitCode {
    let mut text = format!("# {WRITE}\n# {}\n# instructions\tallocations\tsubject\n", tools());
    for figure in figures.iter().filter(|figure| figure.is_ours()) {
        let _ = writeln!(text, "{:.0}\t{:.1}\t{}", figure.net.instructions, figure.net.allocations, figure.name());
    }
    fs::write(FILE, text).expect("a file that can be written");
    ExitCode::SUCCESS
}

/// Compares with the file. Fails if a subject does more than there, or is missing on either side.
pub fn check(figures: &[Figure]) -> ExitCode {
    let text = fs::read_to_string(FILE).expect("a file that can be read");
    let written_with = text.lines().nth(1).unwrap_or_default().trim_start_matches("# ");
    let mut expected: BTreeMap<_, _> = text.lines().filter_map(row).collect();
    let more = if written_with == tools() {
        MORE
    } else {
        println!("written with {written_with}\ncounted with {}: the bound is wider", tools());
        MORE_WITH_OTHER_TOOLS
    };
    let (mut failed, mut fewer) = (0, 0);
    for figure in figures.iter().filter(|figure| figure.is_ours()) {
        let name = figure.name();
        let Some(before) = expected.remove(name.as_str()) else {
            println!("new: {name}");
            failed += 1;
            continue;
        };
        for (what, now, before, chance) in [
            (
                "instructions",
                figure.net.instructions,
                before.instructions,
                LEAST.instructions.max(CHANCE * figure.all.instructions),
            ),
            ("allocations", figure.net.allocations, before.allocations, LEAST.allocations),
        ] {
            let change = format!("{name}: {now:.1} {what}, {before:.1} before, {:+.1} %", 100.0 * (now / before - 1.0));
            let bound = (more * before).max(chance);
            if now > before + bound {
                println!("MORE: {change}");
                failed += 1;
            } else if now < before - bound {
                println!("less: {change}");
                fewer += 1;
            }
        }
    }
    for name in expected.keys() {
        println!("gone: {name}");
        failed += 1;
    }
    if failed + fewer > 0 {
        println!("{failed} fail, {fewer} are less. If that is as it should be, write the new figures with\n  {WRITE}");
    } else {
        println!("{} subjects are within {:.0} %", figures.len(), 100.0 * more);
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn row(line: &str) -> Option<(&str, Count)> {
    let mut parts = line.split('\t');
    let [instructions, allocations] = [parts.next()?, parts.next()?].map(str::parse);
    Some((parts.next()?, Count { instructions: instructions.ok()?, allocations: allocations.ok()? }))
}

/// Everything beside the code that the counts depend on.
fn tools() -> String {
    let first_line = |command: &str, argument: &str| {
        let output = Command::new(command).arg(argument).output().ok();
        let text = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    // The C library copies with the instructions that the processor has.
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = ["vendor_id", "cpu family", "model"].map(|field| {
        let line = processor.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == field));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().trim().to_owned()
    });
    let tools = ["rustc", "valgrind", "ldd"].map(|command| first_line(command, "--version"));
    format!("{}, {}", tools.join(", "), processor.join(" "))
}
