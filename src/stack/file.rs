//! Settings from outside of the program: a file, an environment variable. What is wrong with them is said by the name of the field.

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
            /// Sets the field of this name to what the text says, as a file would: for environment variables and command lines.
            ///
            /// Like the other setters it can be called in any order: whether two settings contradict each other is
            /// looked at later.
            ///
            /// # Errors
            ///
            /// If there is no such field, or the text is not what it can be set to: a duration such as `250ms`, or a number.
            pub fn set(mut self, field: &str, text: &str) -> Result<Self, ConfigError> {
                set(&mut self, field, Value::Text(text.to_owned()))?;
                Ok(self)
            }
        }

        /// From a map of the fields, by their names; those that it leaves out have their defaults.
        ///
        /// Durations are text such as `"250ms"` or `"1m 30s"`. A number that cannot be right, and settings that
        /// contradict each other, are errors at the place of their field, where the format tells places. The format has
        /// to say what its values are, as TOML, JSON and YAML do. Give the settings a table of their own: flattened
        /// into another one, its other fields are taken for mistakes.
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

/// Reads settings field by field, so that whatever is wrong is said with the field's name.
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

/// Reads one field, and finds all that is wrong with it while it does: a format that tells places tells that of the
/// field.
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
        // Most formats would let the last one win, over the one further up.
        if let Some(name) = seen.replace(name) {
            return Err(D::Error::custom(format_args!("`{name}` is set twice: leave one of them out")));
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
