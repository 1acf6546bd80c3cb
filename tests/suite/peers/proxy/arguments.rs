//! Tests of the command line.

use ::hyper::header::HeaderName;

use super::{
    reverse_proxy::arguments::{Arguments, Command, HELP, upstream_of},
    *,
};

fn parse(line: &str) -> Result<Command, String> {
    Command::parse(line.split_whitespace().map(Into::into))
}

#[test]
fn an_upstream_is_a_scheme_and_an_authority_and_nothing_else() {
    for good in ["http://a", "http://a:80", "http://a/", "http://[::1]:80"] {
        assert!(upstream_of(good).is_ok(), "{good}");
    }
    let bad =
        ["", "a", "a:80", "/", "https://a", "ftp://a", "http://a/path", "http://a?query", "http://a/?q", "http://a:"];
    let secret = [
        "http://u:secret@a",
        "http://secret@a",
        "http://sec ret@a",
        "http://a:secret",
        "http://a:80@a",
        "http://a:70000",
    ];
    for bad in bad.into_iter().chain(secret) {
        let error = upstream_of(bad).unwrap_err();
        assert!(!error.contains("sec"), "{bad}: {error}");
    }
}

#[test]
fn the_help_tells_every_option_with_its_default() {
    let options = HELP.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let defaults = options.filter_map(|line| {
        let (name, rest) = line.split_once(' ')?;
        let (_, default) = rest.rsplit_once('[')?;
        Some((name, default.strip_suffix(']')?))
    });
    let (mut line, mut count) = (String::new(), 0);
    for (name, default) in defaults.filter(|(name, _)| *name != "log") {
        line += &format!("--{name} {default} ");
        count += 1;
    }
    let parsed = parse(&format!("{line} here:1 http://there"));
    let (listen, upstream) = ("here:1".to_owned(), "http://there".parse().unwrap());
    let expected = Arguments { listen, upstream, limits: Limits::default(), caching: Caching::default(), log: None };
    assert_eq!(parsed, Ok(Command::Proxy(Box::new(expected))));
    assert_eq!(count, 14);
}

#[test]
fn options_stand_anywhere_and_take_their_value_in_either_form() {
    let parsed = parse("--total=2m a:1 --attempt 500ms http://b --log=warn,reverse_proxy=debug --waiting 0");
    let Ok(Command::Proxy(arguments)) = parsed else { panic!("{parsed:?}") };
    let (total, attempt) = (Duration::from_secs(120), Duration::from_millis(500));
    assert_eq!(arguments.limits, Limits { total, attempt, waiting: 0, ..Limits::default() });
    assert_eq!(arguments.log, "warn,reverse_proxy=debug".parse().ok());
    let parsed = parse("--bare a:1 --cache=4096 --targeted CDN-Cache-Control http://b --stale-if-error 5m");
    let Ok(Command::Proxy(arguments)) = parsed else { panic!("{parsed:?}") };
    assert_eq!(arguments.limits, Limits { bare: true, ..Limits::default() });
    let targeted = Some(HeaderName::from_static("cdn-cache-control"));
    let caching = Caching { capacity: 4096, stale_if_error: Duration::from_secs(300), targeted };
    assert_eq!(arguments.caching, caching);
    assert_eq!(parse(""), Ok(Command::Demo));
    assert_eq!(parse("--help"), Ok(Command::Help));
    assert_eq!(
        parse("a:1 --total 2x http://b -h"),
        Err("--total needs a time above zero, such as 500ms, 10s, 5m or 1h, not \"2x\"".into())
    );
}

#[test]
fn a_wrong_option_is_told_by_name() {
    let cases = [
        ("--colour red", "unknown option --colour"),
        ("-v", "unknown option -v"),
        ("--total", "--total needs a value"),
        ("--total 5M", "--total needs a time"),
        ("--total 10", "--total needs a time"),
        ("--total 0s", "--total needs a time above zero"),
        ("--total s", "--total needs a time"),
        ("--total -1s", "--total needs a time"),
        ("--total 99999999999999999999h", "--total needs a time"),
        ("--total 10s --total 20s", "--total is given twice"),
        ("--total 5s", "an attempt of 10s is longer than the total of 5s"),
        ("--connections 0", "--connections needs a number from 1 to 1000000, not \"0\""),
        ("--in-flight many", "--in-flight needs a number"),
        ("--bare=yes", "--bare takes no value"),
        ("--targeted a:b", "--targeted needs the name of a header, not \"a:b\""),
        ("--cache 1MB", "--cache needs a number from 0"),
        ("--max-head 100", "--max-head needs a number from 8192"),
        ("--log reverse_proxy=loud", "--log is not a valid filter"),
    ];
    for (options, expected) in cases {
        let error = parse(&format!("a:1 http://b {options}")).unwrap_err();
        assert!(error.starts_with(expected), "{options}: {error}");
    }
    for places in ["a:1", "a:1 http://b c", "--total 1m"] {
        assert!(parse(places).unwrap_err().starts_with("expected LISTEN and UPSTREAM"), "{places}");
    }
    assert!(parse("a:1 https://b").unwrap_err().starts_with("an upstream has the form"));
}
