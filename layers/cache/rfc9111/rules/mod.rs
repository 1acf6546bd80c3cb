//! The rules of RFC 9111 and its relatives, as functions of headers and times, without state.

mod conditions;
mod date;
mod directives;
mod fields;
mod list;
mod range;
mod targeted;
mod terms;
mod vary;

pub(super) use self::{
    conditions::{allows_range, compare, has_validator, is_current, is_same, validate},
    fields::{of_not_modified, remove_not_stored, update},
    range::{Part, part},
    terms::{Asked, Reuse, Rules, Terms, Times},
    vary::Vary,
};
