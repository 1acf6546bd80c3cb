//! The rules for settings, and the error of a setting that breaks one.

use std::{
    error::Error,
    fmt::{self, Debug},
    time::Duration,
};

/// A setting that another one limits, and that exceeds it.
pub(super) struct Contradiction {
    pub(super) field: &'static str,
    pub(super) limit: &'static str,
    values: String,
}

impl Contradiction {
    pub(super) fn unless_at_most<T: PartialOrd + Debug>(
        field: &'static str,
        value: T,
        limit: &'static str,
        at_most: T,
    ) -> Option<Self> {
        (value > at_most).then(|| Self { field, limit, values: format!("{at_most:?}, not {value:?}") })
    }
}

impl From<Contradiction> for ConfigError {
    fn from(Contradiction { field, limit, values }: Contradiction) -> Self {
        Self { field: field.to_owned(), problem: format!("must be at most `{limit}`, which is {values}") }
    }
}

/// An invalid setting: its name and the problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub(super) field: String,
    pub(super) problem: String,
}

impl ConfigError {
    /// Returns the name of the setting.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.field, self.problem)
    }
}

impl Error for ConfigError {}

pub(super) fn anything<T>(_: &T) -> Result<(), String> {
    Ok(())
}

pub(super) fn longer_than_zero(time: &Duration) -> Result<(), String> {
    must(!time.is_zero(), "be longer than zero", time)
}

pub(super) fn at_least_one<T: PartialOrd + From<u8> + Debug>(number: &T) -> Result<(), String> {
    must(*number >= T::from(1), "be at least 1", number)
}

pub(super) fn from_zero_to_one(part: &f64) -> Result<(), String> {
    must((0.0..=1.0).contains(part), "be a number from 0 to 1", part)
}

pub(super) fn above_zero_and_at_most_one(part: &f64) -> Result<(), String> {
    must(*part > 0.0 && *part <= 1.0, "be above 0 and at most 1", part)
}

fn must(holds: bool, rule: &str, value: impl Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("must {rule}, not {value:?}")) }
}
