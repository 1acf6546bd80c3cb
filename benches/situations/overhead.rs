//! One call on the happy path, and one that is rejected: the response is ready at once.

use super::Turns;
use crate::subjects;

pub fn calls() -> Turns {
    Turns { subjects: subjects::subjects(), rounds: 400, calls: 2_000 }
}

/// Net of the same request without a context.
pub fn requests() -> Turns {
    Turns { subjects: subjects::requests(), rounds: 400, calls: 2_000 }
}

/// A hit of the HTTP cache, net of the request.
pub fn http_cache() -> Turns {
    let mut subjects = subjects::http_cache::hits();
    subjects.extend(subjects::http_cache::among_many());
    Turns { subjects, rounds: 200, calls: 1_000 }
}
