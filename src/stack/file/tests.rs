use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use serde_core::de::{
    IntoDeserializer,
    value::{self, MapDeserializer},
};

use super::*;
use crate::stack::fields::JSON_NUMBER;

fn client(file: &str) -> Result<ClientSettings, String> {
    toml::from_str(file).map_err(|error| error.to_string())
}

/// Shows: G4
#[test]
fn every_field_can_be_set_by_its_name_and_those_left_out_have_their_defaults() {
    assert_eq!(client(""), Ok(ClientSettings::default()));
    // `Debug` shows the same names, with the effective values.
    let told = format!("{:#?}", ClientSettings::default().max_backoff(Duration::from_millis(50)));
    let names = told.lines().filter_map(|line| Some(line.trim().split_once(": ")?.0));
    assert_eq!(names.collect::<Vec<_>>(), ClientSettings::NAMES);
    assert!(told.contains(" backoff: 50ms") && told.contains("attempt_timeout: 10s"), "{told}");
    let all = r#"
        timeout = "1m 30s"
        attempt_timeout = "250ms"
        max_attempts = 5
        backoff = "10ms"
        max_backoff = "2s"
        retry_ratio = 0.1
        min_retries_per_second = 0
        failure_rate = 1
        min_calls = 10
        consecutive_failures = 4
        open_for = "1s"
        max_open_for = "1m"
        min_in_flight = 6
        max_in_flight = 7
        max_waiting = 0
    "#;
    let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
    let expected = ClientSettings::default()
        .timeout(seconds(90))
        .attempt_timeout(millis(250))
        .max_attempts(5)
        .backoff(millis(10))
        .max_backoff(seconds(2))
        .retry_ratio(0.1)
        .min_retries_per_second(0)
        .failure_rate(1.0)
        .min_calls(10)
        .consecutive_failures(4)
        .open_for(seconds(1))
        .max_open_for(seconds(60))
        .min_in_flight(6)
        .max_in_flight(7)
        .max_waiting(0);
    assert_eq!(client(all), Ok(expected));
    let named = all.lines().filter_map(|line| Some(line.trim().split_once(" =")?.0));
    assert_eq!(named.collect::<Vec<_>>(), ClientSettings::NAMES);

    let server: ServerSettings = toml::from_str("timeout = \"5s\"\nmax_waiting = 3").unwrap();
    assert_eq!(server, ServerSettings::default().timeout(seconds(5)).max_waiting(3));
}

/// Shows: G4
#[test]
fn a_bad_value_names_its_field_and_says_what_to_write_instead() {
    let duration = r#"must be a duration with its unit, such as "250ms" or "1m 30s", not"#;
    let whole = "must be a whole number from 0 to 4294967295, not";
    for (line, said) in [
        ("timeout = 250", format!("`timeout` {duration} 250")),
        ("timeout = \"250\"", format!("`timeout` {duration} \"250\"")),
        ("timeout = \"soon\"", format!("`timeout` {duration} \"soon\"")),
        ("timeout = \"-1s\"", format!("`timeout` {duration} \"-1s\"")),
        ("timeout = \"\"", format!("`timeout` {duration} \"\"")),
        ("timeout = \"999999999999999999999s\"", format!("`timeout` {duration} \"999999999999999999999s\"")),
        ("timeout = false", format!("`timeout` {duration} false")),
        ("timeout = [\"1s\"]", format!("`timeout` {duration} a list")),
        ("timeout = { secs = 1 }", format!("`timeout` {duration} a table")),
        ("attempt_timeout = \"0s\"", "`attempt_timeout` must be longer than zero, not 0ns".to_owned()),
        ("max_attempts = 0", "`max_attempts` must be at least 1, not 0".to_owned()),
        ("max_attempts = -1", format!("`max_attempts` {whole} -1")),
        ("max_attempts = 3.0", format!("`max_attempts` {whole} 3")),
        ("max_attempts = 4294967296", format!("`max_attempts` {whole} 4294967296")),
        ("max_attempts = \"three\"", format!("`max_attempts` {whole} \"three\"")),
        ("max_in_flight = 0", "`max_in_flight` must be at least 1, not 0".to_owned()),
        ("max_waiting = -1", "`max_waiting` must be a whole number from 0 up, not -1".to_owned()),
        ("failure_rate = 50", "`failure_rate` must be above 0 and at most 1, not 50.0".to_owned()),
        ("failure_rate = 0", "`failure_rate` must be above 0 and at most 1, not 0.0".to_owned()),
        ("failure_rate = nan", "`failure_rate` must be above 0 and at most 1, not NaN".to_owned()),
        ("failure_rate = \"half\"", "`failure_rate` must be a number, not \"half\"".to_owned()),
        ("retry_ratio = inf", "`retry_ratio` must be a number from 0 to 1, not inf".to_owned()),
        ("timout = \"1s\"", "`timout` is not one of the settings, which are timeout, attempt_timeout, ".to_owned()),
    ] {
        let error = client(line).unwrap_err();
        assert!(error.contains(&said), "{line}: {error}");
    }
}

/// Shows: F7
#[test]
fn a_capital_m_is_refused_because_it_reads_as_months() {
    for (text, minutes) in [("5M", "5m"), ("5 M", "5 m"), ("1h 5M", "1h 5m"), (" 1M30s", " 1m30s")] {
        let error = ClientSettings::default().set("timeout", text).unwrap_err().to_string();
        assert_eq!(error, format!("`timeout` is {text:?}, which reads as months: write {minutes:?} for minutes"));
        assert!(ClientSettings::default().set("timeout", minutes).is_ok());
    }
    assert!(ClientSettings::default().set("timeout", "5months").is_ok());
    let error = ClientSettings::default().set("timeout", "5 Minutes").unwrap_err().to_string();
    assert!(error.starts_with("`timeout` must be a duration with its unit"), "{error}");
}

/// Shows: F7
#[test]
fn settings_that_contradict_each_other_are_an_error_with_both() {
    let said = "`attempt_timeout` must be at most `timeout`, which is 5s, not 6s";
    for lines in ["timeout = \"5s\"\nattempt_timeout = \"6s\"", "attempt_timeout = \"6s\"\ntimeout = \"5s\""] {
        let error = client(lines).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
    let error = client("max_attempts = 2\nbackoff = \"2s\"").unwrap_err();
    assert!(error.contains("`backoff` must be at most `max_backoff`, which is 1s, not 2s"), "{error}");
    assert!(client("timeout = \"5s\"").is_ok() && client("attempt_timeout = \"1m\"\ntimeout = \"1m\"").is_ok());
}

#[test]
fn an_error_in_a_file_points_at_the_line_of_its_field() {
    #[derive(Debug, serde::Deserialize)]
    struct File {
        #[expect(dead_code, reason = "it is wrong")]
        client: ClientSettings,
    }
    for bad in [
        "timeout = \"5M\"",
        "timeout = 5",
        "timeout = \"0s\"",
        "timout = \"5s\"",
        "timeout = [\"5s\"]",
        "timeout = { secs = 5 }",
        // The format decides which of the two is set last.
        "max_backoff = \"5ms\"\nbackoff = \"6ms\"",
    ] {
        let lines = format!("# The settings.\n[client]\nmax_attempts = 2\n\n{bad}\nmin_calls = 7");
        let error = toml::from_str::<File>(&lines).unwrap_err().to_string();
        let is_named = bad.lines().zip(5..).any(|(field, line)| {
            error.contains(&format!("at line {line}, column")) && error.contains(&format!("\n{line} | {field}\n"))
        });
        assert!(is_named, "{error}");
    }
}

/// The representation of serde_json with its feature `arbitrary_precision`.
#[test]
fn numbers_that_a_format_gives_as_text_are_read_as_numbers() {
    let json = |field: &'static str, number: &'static str| one([(field, BTreeMap::from([(JSON_NUMBER, number)]))]);
    assert_eq!(json("max_attempts", "4"), Ok(ClientSettings::default().max_attempts(4)));
    assert_eq!(json("failure_rate", "0.25"), Ok(ClientSettings::default().failure_rate(0.25)));
    assert_eq!(json("failure_rate", "5e-1"), Ok(ClientSettings::default().failure_rate(0.5)));
    assert_eq!(json("retry_ratio", "1"), Ok(ClientSettings::default().retry_ratio(1.0)));
    let whole = "`max_attempts` must be a whole number from 0 to 4294967295, not";
    for (field, number, said) in [
        ("max_attempts", "-1", format!("{whole} -1")),
        ("max_attempts", "4.5", format!("{whole} 4.5")),
        ("max_attempts", "1e99", format!("{whole} 1e99")),
        (
            "timeout",
            "5",
            "`timeout` must be a duration with its unit, such as \"250ms\" or \"1m 30s\", not 5".to_owned(),
        ),
        ("failure_rate", "1e999", "`failure_rate` must be above 0 and at most 1, not inf".to_owned()),
    ] {
        assert_eq!(json(field, number), Err(said));
    }
    let table = "`timeout` must be a duration with its unit, such as \"250ms\" or \"1m 30s\", not a table";
    assert_eq!(one([("timeout", BTreeMap::from([("secs", 5)]))]), Err(table.to_owned()));
    assert_eq!(one([("timeout", BTreeMap::<&str, u32>::new())]), Err(table.to_owned()));
}

#[test]
fn text_from_elsewhere_is_read_as_a_file_would_be() {
    let settings = ClientSettings::default().set("max_attempts", " 2 ").unwrap().set("timeout", "3s").unwrap();
    assert_eq!(settings, ClientSettings::default().max_attempts(2).timeout(Duration::from_secs(3)));
    assert_eq!(ServerSettings::default().set("max_in_flight", "8"), Ok(ServerSettings::default().max_in_flight(8)));

    let error = ServerSettings::default().set("max_attempts", "2").unwrap_err();
    assert_eq!(error.field(), "max_attempts");
    assert_eq!(
        error.to_string(),
        "`max_attempts` is not one of the settings, which are timeout, max_in_flight, max_waiting, reclaim_after, \
         tenant_rate, tenant_period, tenant_burst, max_tenants, drain_grace"
    );
}

/// Reads from a format that has more kinds of values than TOML, and allows duplicate fields.
fn one<'de, T: IntoDeserializer<'de>>(
    fields: impl IntoIterator<Item = (&'static str, T)>,
) -> Result<ClientSettings, String> {
    let map = MapDeserializer::<_, value::Error>::new(fields.into_iter());
    ClientSettings::deserialize(map).map_err(|error| error.to_string())
}

#[test]
fn a_field_that_stands_there_twice_is_a_mistake() {
    let twice = one([("max_attempts", 4), ("min_calls", 7), ("max_attempts", 5)]);
    assert_eq!(twice.unwrap_err(), "`max_attempts` is set twice: remove one of them");
}

#[test]
fn whatever_kind_of_value_a_format_has_the_error_names_the_field() {
    let four = Ok(ClientSettings::default().max_attempts(4));
    assert_eq!(one([("max_attempts", 4_i128)]), four);
    assert_eq!(one([("max_attempts", 4_u128)]), four);
    let whole = "`max_attempts` must be a whole number from 0 to 4294967295, not";
    assert_eq!(one([("max_attempts", u128::MAX)]).unwrap_err(), format!("{whole} a number that is too large"));
    assert_eq!(one([("max_attempts", b"4".as_slice())]).unwrap_err(), format!("{whole} bytes"));
    assert_eq!(one([("max_attempts", ())]).unwrap_err(), format!("{whole} nothing"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_and_an_error_names_the_field(field in 0..ClientSettings::NAMES.len(), text in ".{0,20}") {
        let field = ClientSettings::NAMES[field];
        if let Err(error) = ClientSettings::default().set(field, &text) {
            prop_assert_eq!(error.field(), field);
        }
    }

    #[test]
    fn a_duration_is_read_as_it_was_written(millis in 1..10_u64.pow(12)) {
        let settings = ClientSettings::default().set("backoff", &format!("{millis}ms")).unwrap();
        prop_assert_eq!(settings, ClientSettings::default().backoff(Duration::from_millis(millis)));
    }
}
