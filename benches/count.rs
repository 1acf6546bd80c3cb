//! Counts the instructions and the allocations of subjects with callgrind: the same on every run of one binary.

use std::{
    fs,
    hint::black_box,
    io,
    ops::Sub,
    path::Path,
    process::{Command, Stdio},
};

use crate::subject::Subject;

const CALLS: u32 = 500;

/// The argument with which a benchmark starts itself under valgrind.
const COUNTED: &str = "--counted";

/// The function that is counted. Callgrind wants its whole name.
const COUNTED_PART: &str = concat!(module_path!(), "::the_counted_part");

/// The counts of one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Count {
    pub instructions: f64,
    pub allocations: f64,
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let (instructions, allocations) =
            (self.instructions - other.instructions, self.allocations - other.allocations);
        Self { instructions, allocations }
    }
}

/// Whether this process runs under valgrind, to be counted: then `main` calls [`run`], and nothing else.
pub fn is_counted() -> bool {
    std::env::args().any(|argument| argument == COUNTED)
}

/// Makes the calls that are counted. The calls before them fill buffers and lists that later calls use again.
pub fn run(subjects: impl IntoIterator<Item = Subject>) {
    for mut subject in subjects {
        (subject.run)(CALLS);
        the_counted_part(&mut subject);
    }
}

/// Callgrind counts what this function does, and writes a file before and after it.
#[inline(never)]
fn the_counted_part(subject: &mut Subject) {
    (subject.run)(CALLS);
    // The call above is not the last one: then this function would end before it.
    black_box(subject);
}

/// Starts this program again, under valgrind, and returns the counts of all subjects that it ran.
///
/// # Errors
///
/// If valgrind is missing, or fails.
pub fn counts() -> io::Result<Vec<Count>> {
    let folder = std::env::temp_dir().join(format!("ziggurat-counts-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--callgrind-out-file=counts"])
        .args(["--dump-before=", "--dump-after="].map(|option| format!("{option}{COUNTED_PART}")))
        .arg(std::env::current_exe()?)
        .arg(COUNTED)
        .current_dir(&folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    // The odd ones are of the calls that are not counted.
    let files = (1..).map(|number| folder.join(format!("counts.{}", 2 * number)));
    let counts = files.take_while(|file| file.exists()).map(|file| count(&file)).collect();
    fs::remove_dir_all(&folder)?;
    if status.success() { counts } else { Err(io::Error::other(format!("valgrind: {status}"))) }
}

/// Reads a file of callgrind: `totals:` has the instructions, and the line after a `cfn=` the number of these calls.
fn count(file: &Path) -> io::Result<Count> {
    let (mut instructions, mut allocations, mut is_allocation) = (0, 0, false);
    for line in fs::read_to_string(file)?.lines() {
        if let Some(total) = line.strip_prefix("totals: ") {
            instructions = total.trim().parse().map_err(io::Error::other)?;
        } else if let Some(name) = line.strip_prefix("cfn=") {
            is_allocation = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"].contains(&name);
        } else if let Some(calls) = line.strip_prefix("calls=")
            && is_allocation
        {
            let calls = calls.split(' ').next().unwrap_or_default();
            allocations += calls.parse::<u64>().map_err(io::Error::other)?;
        }
    }
    let of_one = |all: u64| all as f64 / f64::from(CALLS);
    Ok(Count { instructions: of_one(instructions), allocations: of_one(allocations) })
}
