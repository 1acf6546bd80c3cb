//! Settings from a file or an environment variable. Errors name the field.

use std::{collections::HashSet, fmt, marker::PhantomData};

use serde_core::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::{
    fields::{Fields, Value},
    rules::ConfigError,
    settings::{ClientSettings, ServerSettings},
};

fn set<T: Fields>(settings: &mut T, field: &str, value: Value) -> Result<(), ConfigError> {
    settings.set(field, value).map_err(|problem| ConfigError { field: field.to_owned(), problem })
}

macro_rules! from_outside {
    ($settings:ty) => {
        impl $settings {
            /// Sets a field by name to a text value, as a file would. For environment variables and command lines.
            ///
            /// Setters can be called in any order: contradictions between settings are checked later.
            ///
            /// # Errors
            ///
            /// If there is no such field, or the text is not a valid value for it, such as a duration (`250ms`) or a
            /// number.
            pub fn set(mut self, field: &str, text: &str) -> Result<Self, ConfigError> {
                set(&mut self, field, Value::Text(text.to_owned()))?;
                Ok(self)
            }
        }

        /// Reads a map from field names to values. A missing field has its default.
        ///
        /// Durations are text such as `"250ms"` or `"1m 30s"`. An invalid value, or a contradiction between two
        /// settings, is an error at the position of its field, if the format reports positions. The format must be
        /// self-describing, like TOML, JSON or YAML. Give the settings a table of their own: flattened into another
        /// table, that table's other fields count as errors.
        #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
        impl<'de> Deserialize<'de> for $settings {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(Map(PhantomData))
            }
        }
    };
}

from_outside!(ClientSettings);
from_outside!(ServerSettings);

/// Reads settings field by field, so that every error names its field.
struct Map<T>(PhantomData<T>);

impl<'de, T: Fields> Visitor<'de> for Map<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map of settings, which are {}", T::NAMES.join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let (mut settings, mut seen) = (T::default(), HashSet::new());
        while let Some(name) = map.next_key()? {
            map.next_value_seed(Field { name, settings: &mut settings, seen: &mut seen })?;
        }
        // One of the two is a default.
        settings.contradiction().map_or(Ok(settings), |one| Err(A::Error::custom(ConfigError::from(one))))
    }
}

/// Reads and checks one field, so that a format that reports positions reports that of the field.
struct Field<'a, T> {
    name: String,
    settings: &'a mut T,
    seen: &'a mut HashSet<String>,
}

impl<'de, T: Fields> DeserializeSeed<'de> for Field<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { name, settings, seen } = self;
        set(settings, &name, Value::deserialize(deserializer)?).map_err(D::Error::custom)?;
        // In most formats the last one would silently win.
        if let Some(name) = seen.replace(name) {
            return Err(D::Error::custom(format_args!("`{name}` is set twice: remove one of them")));
        }
        match settings.contradiction() {
            Some(one) if seen.contains(one.field) && seen.contains(one.limit) => {
                Err(D::Error::custom(ConfigError::from(one)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
