//! The results in the public suite for HTTP caches, as `docs/http-cache.md` has them.
//!
//! CI runs the suite, and fails if its results are not exactly those of the page.

use std::collections::HashMap;

const PAGE: &str = include_str!("../../../docs/http-cache.md");
const CI: &str = include_str!("../../../.ci/run");

/// The rows of the table below this heading, without its head.
fn rows(heading: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let section = PAGE.split_once(&format!("\n## {heading}\n")).expect(heading).1;
    let lines = section.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with('|'));
    lines.skip(2).map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// A result such as `157 of 160`.
fn passed(result: &str) -> (usize, usize) {
    let (passed, of) = result.split_once(" of ").expect(result);
    (passed.parse().unwrap(), of.parse().unwrap())
}

/// Shows: W5
#[test]
fn it_passes_more_tests_than_every_published_proxy() {
    assert!(CI.lines().any(|line| line == "step .ci/cache-tests"), "CI runs the suite");
    let own: HashMap<_, _> = rows("Results").map(|row| (row[0], [passed(row[1]), passed(row[2])])).collect();
    let [required, optimal] = own["repository"];
    assert!(required.0 >= 145 && optimal.0 >= 80);
    let published: HashMap<_, _> =
        rows("Published results").map(|row| (row[0], [row[1], row[2]].map(passed))).collect();
    assert!(published.len() > 5);
    for (name, [its_required, its_optimal]) in published {
        assert_eq!((its_required.1, its_optimal.1), (required.1, optimal.1), "{name}");
        let is_own = name == "ziggurat";
        assert_eq!(is_own, its_required == required && its_optimal == optimal, "{name}");
        assert!(is_own || its_required.0 < required.0 && its_optimal.0 < optimal.0, "{name}");
    }
}

/// Shows: W5
#[test]
fn every_failed_test_has_its_reason() {
    for (version, results) in rows("Results").map(|row| (row[0], [("required", row[1]), ("optimal", row[2])])) {
        for (kind, result) in results {
            let explained = rows("What fails").filter(|row| row[1] == kind && [version, "both"].contains(&row[2]));
            let explained = explained.inspect(|row| assert!(row[3].len() > 5, "{row:?}"));
            let tests: usize = explained.map(|row| row[0].split(", ").count()).sum();
            let (passed, of) = passed(result);
            assert_eq!(tests, of - passed, "{kind} tests of the version {version}");
        }
    }
}
