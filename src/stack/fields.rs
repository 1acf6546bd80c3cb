//! Settings by name, and their values in a file.

use std::{fmt, num::TryFromIntError, time::Duration};

use serde_core::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::rules::Contradiction;

/// The key of the map by which serde_json represents a number's text with its feature `arbitrary_precision`.
pub(super) const JSON_NUMBER: &str = "$serde_json::private::Number";

/// Settings whose fields can be set by name.
pub(super) trait Fields: Default {
    const NAMES: &[&str];

    /// The error describes the problem, without the name of the field.
    fn set(&mut self, field: &str, value: Value) -> Result<(), String>;

    /// Returns two settings that contradict each other.
    fn contradiction(&self) -> Option<Contradiction>;
}

/// The value of a setting in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Whole(i128),
    Fraction(f64),
    /// A kind of value that no setting has.
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Fraction(number) => write!(f, "{number:?}"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

impl Value {
    pub(super) fn read<T: Read>(&self) -> Result<T, String> {
        T::read(self).ok_or_else(|| T::problem(self))
    }

    /// A number that a format represents as text.
    fn number(text: &str) -> Self {
        match (text.parse(), text.parse()) {
            (Ok(whole), _) => Self::Whole(whole),
            (_, Ok(fraction)) => Self::Fraction(fraction),
            _ => Self::Other("a number"),
        }
    }

    /// Returns a whole number, also if it is written as text.
    fn whole<T: TryFrom<i128, Error = TryFromIntError>>(&self) -> Option<T> {
        let number = match self {
            Self::Whole(number) => *number,
            Self::Text(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        number.try_into().ok()
    }
}

/// A type that a setting can have.
pub(super) trait Read: Sized {
    const WHAT: &str;

    fn read(value: &Value) -> Option<Self>;

    /// Returns why the value cannot be read.
    fn problem(value: &Value) -> String {
        format!("must be {}, not {value}", Self::WHAT)
    }
}

impl Read for Duration {
    const WHAT: &str = "a duration with its unit, such as \"250ms\" or \"1m 30s\"";

    fn read(value: &Value) -> Option<Self> {
        let Value::Text(text) = value else { return None };
        humantime::parse_duration(text.trim()).ok().filter(|_| !has_months(text))
    }

    fn problem(value: &Value) -> String {
        match value {
            Value::Text(text) if has_months(text) && humantime::parse_duration(text.trim()).is_ok() => {
                let minutes = text.replace('M', "m");
                format!("is {text:?}, which reads as months: write {minutes:?} for minutes")
            }
            _ => format!("must be {}, not {value}", Self::WHAT),
        }
    }
}

/// Returns whether a duration has the unit `M`, the only one with a capital letter. In most files it means minutes.
fn has_months(duration: &str) -> bool {
    duration.contains('M')
}

impl Read for u32 {
    const WHAT: &str = "a whole number from 0 to 4294967295";

    fn read(value: &Value) -> Option<Self> {
        value.whole()
    }
}

impl Read for usize {
    const WHAT: &str = "a whole number from 0 up";

    fn read(value: &Value) -> Option<Self> {
        value.whole()
    }
}

impl Read for f64 {
    const WHAT: &str = "a number";

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Fraction(number) => Some(*number),
            Value::Whole(number) => Some(*number as f64),
            Value::Text(text) => text.trim().parse().ok(),
            Value::Other(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a setting")
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Whole(number.into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Whole(number.into()))
            }

            fn visit_i128<E>(self, number: i128) -> Result<Value, E> {
                Ok(Value::Whole(number))
            }

            fn visit_u128<E>(self, number: u128) -> Result<Value, E> {
                Ok(i128::try_from(number).map_or(Value::Other("a number that is too large"), Value::Whole))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
                Ok(Value::Fraction(number))
            }

            fn visit_bool<E>(self, yes: bool) -> Result<Value, E> {
                Ok(Value::Other(if yes { "true" } else { "false" }))
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Other("nothing"))
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Other("nothing"))
            }

            fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
                value.deserialize_any(self)
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
                value.deserialize_any(self)
            }

            fn visit_bytes<E>(self, _: &[u8]) -> Result<Value, E> {
                Ok(Value::Other("bytes"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Other("a list"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                if let Some(key) = map.next_key::<Value>()? {
                    match (key, map.next_value::<Value>()?) {
                        (Value::Text(key), Value::Text(number)) if key == JSON_NUMBER => {
                            return Ok(Value::number(&number));
                        }
                        _ => {}
                    }
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Other("a table"))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
