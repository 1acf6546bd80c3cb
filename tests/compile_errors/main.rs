//! For the most common mistakes, the compiler's message says what to write instead.
//!
//! This file is compiled once more for each mistake, by `cargo rustc` with a `--cfg` that enables one of them. That
//! shares the target directory, the dependencies and the lock file with the run that this test is part of, so it takes
//! a fraction of a second, needs no network, and leaves no other target behind. (trybuild compares the whole compiler
//! output, which differs between compiler versions, and builds all dependencies again. `compile_fail` doc tests do not
//! check the message.)
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

#[cfg(mistake)]
#[allow(unused, reason = "one mistake is in at a time")]
mod mistakes;

#[cfg(not(mistake))]
mod tests {
    use std::{env, fs, path::Path, process::Command};

    /// Compiles this file with the mistake, and returns whether that succeeded, and the compiler's output.
    fn compile(mistake: &str) -> (bool, String) {
        // The directory in which this test was built, in any profile: `target/debug/deps/compile_errors-..`.
        let built = env::current_exe().unwrap();
        let profile = built.parent().and_then(Path::parent).and_then(Path::file_name).unwrap().to_str().unwrap();
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let output = Command::new(env!("CARGO"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["rustc", "--offline", "--color=never", "--test=compile_errors", "--target-dir"])
            .arg(target)
            .args(["--profile", if profile == "debug" { "dev" } else { profile }])
            .args(["--", "--emit=metadata", "--cfg=mistake", &format!("--cfg=mistake=\"{mistake}\"")])
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }

    /// Returns the messages of `diagnostic::on_unimplemented` in all files of this folder.
    fn messages(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(messages(&path));
            } else {
                let text = fs::read_to_string(path).unwrap();
                let lines = text.lines().filter_map(|line| line.trim().strip_prefix("message = \""));
                found.extend(lines.map(|message| message.trim_end_matches(['"', ',']).to_owned()));
            }
        }
        found
    }

    /// The longest part of each message that does not depend on the user's types.
    #[test]
    fn the_page_explains_every_message() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = fs::read_to_string(root.join("docs/it-does-not-compile.md")).unwrap().replace("\n>", " ");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        let messages = [messages(&root.join("src")), messages(&root.join("layers"))].concat();
        assert!(messages.len() > 20, "{messages:?}");
        for message in messages {
            let fixed = message.split('{').map(|part| part.split_once('}').map_or(part, |(_, fixed)| fixed));
            let fixed = fixed.max_by_key(|part| part.len()).unwrap().trim_matches(['`', ' ']);
            assert!(page.contains(fixed), "the page does not explain `{message}`: no `{fixed}`");
        }
    }

    /// Without this the other tests would prove nothing.
    #[test]
    fn what_is_right_compiles() {
        let (compiles, said) = compile("none");
        assert!(compiles, "{said}");
    }

    #[test]
    fn a_mistake_is_answered_with_what_to_write() {
        let a_reference: &[_] =
            &["pass the event by value, not a reference", "PassTheEventByValueNotAReference> for &"];
        for (mistake, sentences) in [
            (
                "no_map_err",
                &[
                    "`std::io::Error` cannot carry a layer's rejection, as the error of a service that returns `String`",
                    "put `.map_err(ziggurat::Error::Service)` innermost, next to the service",
                ] as &[_],
            ),
            ("no_map_err_and_a_call", &["not a Service? see ziggurat::docs::it_does_not_compile */ struct Retry<"]),
            ("no_map_err_and_a_call_to_a_cache", &["docs::it_does_not_compile */ struct Cache<"]),
            ("no_map_err_in_a_recommended_stack", &["docs::it_does_not_compile */ struct Tuned<"]),
            (
                "no_service_at_all",
                &[
                    "docs::it_does_not_compile */ struct Batch<",
                    "docs::it_does_not_compile */ struct Cache<",
                    "docs::it_does_not_compile */ struct Chaos<",
                    "docs::it_does_not_compile */ struct CircuitBreaker<",
                    "docs::it_does_not_compile */ struct ConcurrencyLimit<",
                    "docs::it_does_not_compile */ struct Context<",
                    "docs::it_does_not_compile */ struct Drain<",
                    "docs::it_does_not_compile */ struct Fallback<",
                    "docs::it_does_not_compile */ struct Observe<",
                    "docs::it_does_not_compile */ struct Propagate<",
                    "docs::it_does_not_compile */ struct RateLimit<",
                    "docs::it_does_not_compile */ struct RejectionResponse<",
                    "docs::it_does_not_compile */ struct Replay<",
                    "docs::it_does_not_compile */ struct RequestId<",
                    "docs::it_does_not_compile */ struct Resource<",
                    "docs::it_does_not_compile */ struct Retry<",
                    "docs::it_does_not_compile */ struct Timeout<",
                    "docs::it_does_not_compile */ struct Tuned<",
                    "docs::it_does_not_compile */ struct Upload<",
                ],
            ),
            (
                "cache_of_a_stream",
                &["a cache cannot store a response of type `", "a streamed body must be collected inside the cache"],
            ),
            (
                "body_without_default",
                &[
                    "an `Infallible` HTTP service needs a response body that is `Default`, for its rejections",
                    "tower-http's `TraceLayer`, outside ziggurat's layers",
                ],
            ),
            (
                "setting_of_another_type",
                &[
                    "is not a setting of type `Duration` for a request of type `String`",
                    "a closure that names its argument's type: `|req: &String| ..`, returning `Duration` or `Option<Duration>`",
                ],
            ),
            (
                "bare_closure",
                &["is not a setting of type `Duration` for a request of type `String`", "`|req: &String| ..`"],
            ),
            (
                "classifier_of_the_services_own_error",
                &[
                    "cannot classify outcomes with a response of type `String` and an error of type `ziggurat::Error<std::io::Error>`",
                    "`|outcome: Result<&String, &ziggurat::Error<std::io::Error>>| ..`, returning `Class`",
                    "the service's own error is in `Error::Service(error)`",
                ],
            ),
            ("bare_classifier", &["cannot classify outcomes with a response of type `String`"]),
            ("bare_backoff", &["is not a backoff for a retry"]),
            ("bare_copy", &["write `.copy(|req: &String| -> Option<String> { .. })`"]),
            ("bare_key", &["|path: &YourRequest|"]),
            (
                "key_of_another_request",
                &[
                    "does not make a cache key of type `usize` from a request of type `String`",
                    "`|req: &String| ..`, returning `Option<usize>`",
                ],
            ),
            (
                "bare_ttl",
                &[
                    "cannot decide how long a response of type `String` under a key of type `String` is fresh",
                    "`|key: &String, response: &String| ..`, returning `Duration` or `Option<Duration>`",
                ],
            ),
            ("the_readme_over_reqwest", &["docs::it_does_not_compile */ struct Context<"]),
            (
                "the_readme_over_reqwest_named",
                &[
                    "`ContextLayer::new` needs a service that takes an `http::Request` and returns an `http::Response`",
                    "such as a `reqwest::Client`, write `ContextLayer::ambient(scope)`",
                    "`http_key` needs an `http::Request`",
                    "a cache cannot store a response of type `reqwest::Response`",
                ],
            ),
            // These two messages are rustc's alone. The page explains them.
            ("borrowed_error_in_a_task", &["not general enough", "Error::<&'0 str>::Service"]),
            ("error_that_is_not_named", &["cannot infer type of the type parameter `ServiceError`"]),
            (
                "handler_of_a_plain_value",
                &[
                    "a handler of `process_concurrently` returns a future of a `Result`, not of `u32`",
                    "`Ok::<_, std::convert::Infallible>(value)` if the handler cannot fail",
                ],
            ),
            ("bare_state", &["this state function does not accept a request of type `String`"]),
            ("bare_resource", &["this does not acquire a resource for a request of type `String`"]),
            ("bare_fallback", &["this fallback does not return a response of type `String`"]),
            ("bare_number", &["write `|response: &u64| ..`, with the type of the argument, returning `u64`"]),
            (
                "status_of_another_response",
                &[
                    "`HttpStatus` cannot classify outcomes with a response of type `mistake::Response`",
                    "classifies an `http::Response`; a `reqwest::Response` needs ziggurat's feature `reqwest`",
                    "must be an `http_body::Body`; a `reqwest::Response` needs ziggurat's feature `reqwest`",
                    "`Idempotent` copies a `reqwest::Request` with ziggurat's feature `reqwest`",
                ],
            ),
            (
                "until_the_body_end_of_another_response",
                &[
                    "`.until_body_end()` needs a service whose response is an `http::Response` with a body, not `mistake::Response`",
                    "a `reqwest::Response` needs ziggurat's feature `reqwest`",
                ],
            ),
            // rustc's alone too.
            (
                "half_a_migration",
                &[
                    "the trait bound `HandleError<Timeout<Route>, ",
                    "is not implemented for `HandleError<Timeout<Route>, ",
                ],
            ),
            (
                "streamed_upload_in_a_client_stack",
                &["put ziggurat's `ReplayLayer::new()` directly outside this layer, or outside the `ClientStack`"],
            ),
            (
                "request_that_is_not_clone",
                &[
                    "a request of type `",
                    "Upload` cannot be copied by `ziggurat::Cloned` to be sent again",
                    ".copy(|req: &",
                    "where `None` means that it is sent once",
                ],
            ),
            (
                "body_that_is_not_clone",
                &[
                    "`Idempotent` an `http::Request` whose body is `Clone`, such as `http_body_util::Full<Bytes>`",
                    "with any other body put ziggurat's `ReplayLayer::new()` directly outside this layer",
                ],
            ),
            (
                "fallback_of_another_type",
                &[
                    "this fallback does not return a response of type `String` for a request of type `String`",
                    "`FallbackLayer::new(|failed: Failed<'_, _, _>| ..)`, which returns `String` or `Option<String>`",
                ],
            ),
            (
                "fallback_that_is_not_clone",
                &["this fallback does not return a response of type `", "Report`, which must be `Clone`"],
            ),
            (
                "backup_with_another_error",
                &[
                    "`FallbackLayer::service(..)`, which is `Clone`, takes `String`, and has the same response and error types as this one",
                ],
            ),
            (
                "degraded_without_extensions",
                &["a response of type `String` has no extensions to carry the mark `Degraded`", "leave out `.http()`"],
            ),
            ("fault_of_another_type", &["Fault` for a request of type `String`"]),
            (
                "rate_of_another_type",
                &["give `.rate_by(..)` a closure that names its argument's type: `|req: &String| ..`"],
            ),
            ("handler_of_a_reference", a_reference),
            ("bounded_handler_of_a_reference", a_reference),
            ("published_reference", a_reference),
            ("published_reference_to_a_static", a_reference),
            ("published_and_joined_reference", a_reference),
            ("answer_that_has_no_body", &["for any other response, write `.discard(ziggurat::retry::Dropped)`"]),
        ] {
            let (compiles, said) = compile(mistake);
            assert!(!compiles, "{mistake} compiles");
            for sentence in sentences {
                assert!(said.contains(sentence), "{mistake}: no `{sentence}` in\n{said}");
            }
        }
    }
}
