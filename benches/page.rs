//! The page with the figures, `docs/performance.md`: text between markers, and pictures beside it.

use std::{fs, io, process::Command, thread::available_parallelism};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
const LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");

/// The crates whose versions the page names.
const CRATES: [&str; 15] = [
    "tower",
    "tower-resilience",
    "seatbelt",
    "layered",
    "recloser",
    "pingora-timeout",
    "governor",
    "moka",
    "quick_cache",
    "http-cache-tower",
    "http",
    "hyper",
    "hyper-util",
    "tokio",
    "ziggurat",
];

pub struct Page(String);

impl Page {
    /// # Errors
    ///
    /// If the page cannot be read.
    pub fn read() -> io::Result<Self> {
        fs::read_to_string(format!("{DOCS}/performance.md")).map(Self)
    }

    /// Replaces the text between the markers of this name.
    pub fn put(&mut self, name: &str, text: &str) {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let from = self.0.find(&start).expect("a marker") + start.len();
        let to = self.0.find(&end).expect("a marker at the end");
        self.0.replace_range(from..to, &format!("\n{text}\n"));
    }

    /// # Errors
    ///
    /// If the page cannot be written.
    pub fn write(self) -> io::Result<()> {
        fs::write(format!("{DOCS}/performance.md"), self.0)
    }
}

/// Writes the picture of this name.
///
/// # Errors
///
/// If it cannot be written.
pub fn write_picture(name: &str, svg: &str) -> io::Result<()> {
    fs::create_dir_all(format!("{DOCS}/performance"))?;
    fs::write(format!("{DOCS}/performance/{name}.svg"), svg)
}

/// The day, the processor, the load before the run, the compiler, and the versions of the crates.
pub fn machine() -> String {
    let output = |command: &str, arguments: &[&str]| {
        let output = Command::new(command).args(arguments).output().ok();
        output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default().trim().to_owned()
    };
    let file = |name: &str| fs::read_to_string(name).unwrap_or_default();
    let (processor, lock) = (file("/proc/cpuinfo"), file(LOCK));
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let load = file("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    let version = |name: &&str| {
        let package = lock.split("[[package]]").find(|package| package.contains(&format!("\nname = \"{name}\"\n")))?;
        let version = package.lines().find_map(|line| line.strip_prefix("version = "))?;
        Some(format!("{name} {}", version.trim_matches('"')))
    };
    let versions: Vec<_> = CRATES.iter().filter_map(version).collect();
    format!(
        "{}, {} cores of {}, Linux {}, {}.\nLoad average before the run: {load}. {}.\n",
        output("date", &["-u", "+%-d %B %Y"]),
        available_parallelism().map_or(1, usize::from),
        model.unwrap_or("an unknown processor"),
        output("uname", &["-r"]),
        output("rustc", &["--version"]),
        versions.chunks(5).map(|line| line.join(", ")).collect::<Vec<_>>().join(",\n"),
    )
}
