//! Counts the instructions of one call on the happy path with callgrind: the same on every run of one binary. `cargo
//! bench -p ziggurat-benches --bench instructions` (needs valgrind; a word after `--` selects the subjects that contain
//! it)

use std::process::{Command, ExitCode};

use ziggurat_benches::{subject::Subject, subjects::subjects};

const CALLS: u32 = 1_000;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("--run"), Some(index), Some(calls)) => {
            run(index.parse().expect("an index"), calls.parse().expect("a number"));
            ExitCode::SUCCESS
        }
        (Some("--test"), ..) => ExitCode::SUCCESS,
        (word, ..) => table(word.unwrap_or_default()),
    }
}

fn run(index: usize, calls: u32) {
    let mut subject = subjects().swap_remove(index);
    the_counted_part(&mut subject, calls);
}

/// Callgrind counts what this function does, and not how the subjects are made: governor's clock calibrates itself,
/// which takes a different number of instructions each time.
#[inline(never)]
fn the_counted_part(subject: &mut Subject, calls: u32) {
    (subject.run)(calls);
}

/// Subtracts a run of `CALLS` calls from one of twice as many, so that one-time costs cancel out.
fn table(word: &str) -> ExitCode {
    let Some(bare) = per_call(0) else {
        eprintln!("valgrind is missing, or cannot count instructions here");
        return ExitCode::FAILURE;
    };
    println!("{:<24}{:<18}{:>12}", "", "", "instructions");
    for (index, subject) in subjects().iter().enumerate().skip(1) {
        if format!("{}/{}", subject.what, subject.whose).contains(word) {
            let net = per_call(index).map_or(f64::NAN, |count| count - bare);
            println!("{:<24}{:<18}{net:>12.0}", subject.what, subject.whose);
        }
    }
    ExitCode::SUCCESS
}

fn per_call(index: usize) -> Option<f64> {
    let [once, twice] = [CALLS, 2 * CALLS].map(|calls| counted(index, calls));
    Some((twice? - once?) as f64 / f64::from(CALLS))
}

fn counted(index: usize, calls: u32) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*the_counted_part*"])
        .arg(std::env::current_exe().ok()?)
        .args(["--run", &index.to_string(), &calls.to_string()])
        .output()
        .ok()?;
    let report = String::from_utf8(output.stderr).ok()?;
    report.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}
