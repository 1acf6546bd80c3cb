//! For the most common mistakes, the compiler's message says what to write instead.
//!
//! This file is compiled once more for each mistake, by `cargo rustc` with a `--cfg` that enables one of them. That
//! shares the target directory, the dependencies and the lock file with the run that this test is part of, so it takes
//! a fraction of a second, needs no network, and leaves no other target behind. (trybuild compares the whole compiler
//! output, which differs between compiler versions, and builds all dependencies again. `compile_fail` doc tests do not
//! check the message.)
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

#[cfg(mistake)]
#[allow(unused, reason = "only one mistake is enabled at a time")]
mod mistakes {
    use std::{convert::Infallible, io, time::Duration};

    use http::{Request, Response};
    use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
    use ziggurat::{
        Error,
        cache::CacheLayer,
        chaos::{ChaosLayer, Fault},
        events::{EventBus, Lag},
        fallback::{Failed, FallbackLayer},
        retry::RetryLayer,
        stack::ClientStack,
        timeout::TimeoutLayer,
    };

    const SECOND: Duration = Duration::from_secs(1);

    async fn read(path: String) -> io::Result<String> {
        Ok(path)
    }

    #[cfg(mistake = "no_map_err")]
    fn mistake() {
        let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "no_map_err_and_a_call")]
    async fn mistake() {
        let service = ServiceBuilder::new().layer(RetryLayer::new()).layer(TimeoutLayer::new(SECOND)).service_fn(read);
        service.oneshot(String::new()).await;
    }

    #[cfg(mistake = "no_map_err_in_a_recommended_stack")]
    async fn mistake() {
        let service = ServiceBuilder::new().layer(ClientStack::new("files")).service_fn(read);
        service.oneshot(String::new()).await;
    }

    #[cfg(mistake = "no_map_err_and_a_call_to_a_cache")]
    async fn mistake() {
        let cache = CacheLayer::new(1, SECOND, |path: &String| Some(path.clone()));
        let service = ServiceBuilder::new().layer(cache).service_fn(read);
        service.oneshot(String::new()).await;
    }

    #[cfg(mistake = "cache_of_a_stream")]
    fn mistake() {
        struct Stream;
        let cache = CacheLayer::new(1, SECOND, |req: &Request<String>| Some(req.uri().clone()));
        let send = |_: Request<String>| async { io::Result::Ok(Response::new(Stream)) };
        let service = ServiceBuilder::new().layer(cache).map_err(Error::Service).service_fn(send);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "body_without_default")]
    fn mistake() {
        struct Traced;
        let handler = |_: Request<String>| async { Ok::<_, Infallible>(Response::new(Traced)) };
        let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service_fn(handler);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "setting_of_another_type")]
    fn mistake() {
        let layer = TimeoutLayer::new(|_: &String| 1_000_u64);
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "bare_closure")]
    fn mistake() {
        let layer = TimeoutLayer::new(|_| SECOND);
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "request_that_is_not_clone")]
    fn mistake() {
        struct Upload;
        let send = |_: Upload| async { io::Result::Ok(()) };
        let service = ServiceBuilder::new().layer(RetryLayer::new()).map_err(Error::Service).service_fn(send);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "body_that_is_not_clone")]
    fn mistake() {
        struct Upload;
        let send = |_: Request<Upload>| async { io::Result::Ok(Response::new(String::new())) };
        let service = ServiceBuilder::new().layer(RetryLayer::http()).map_err(Error::Service).service_fn(send);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "answer_that_has_no_body")]
    fn mistake() {
        let send = |_: Request<String>| async { io::Result::Ok(Response::new(7)) };
        let service = ServiceBuilder::new().layer(RetryLayer::http()).map_err(Error::Service).service_fn(send);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "fallback_of_another_type")]
    fn mistake() {
        let layer = FallbackLayer::new(|_: Failed<'_, _, _>| 7);
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "fallback_that_is_not_clone")]
    fn mistake() {
        struct Report;
        let report = |_: String| async { io::Result::Ok(Report) };
        let layer = FallbackLayer::value(Report);
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(report);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "backup_with_another_error")]
    fn mistake() {
        let backup = service_fn(|path: String| async { Ok::<_, Infallible>(path) });
        let layer = FallbackLayer::service(backup);
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "degraded_without_extensions")]
    fn mistake() {
        let layer = FallbackLayer::value(String::new()).http().classify(ziggurat::FailOnError);
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "fault_of_another_type")]
    fn mistake() {
        let layer = ChaosLayer::new(|_: &String| "an error");
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[cfg(mistake = "rate_of_another_type")]
    fn mistake() {
        let layer = ChaosLayer::new(Fault::Error).rate_by(|_: &String| 1_u32);
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
        BoxCloneSyncService::new(service);
    }

    #[derive(Clone)]
    struct UserCreated;

    #[cfg(mistake = "handler_of_a_reference")]
    fn mistake() {
        EventBus::new().on(async |_: &UserCreated| {}).detach();
    }

    #[cfg(mistake = "bounded_handler_of_a_reference")]
    fn mistake() {
        let handler = |user: &'static UserCreated| async move { drop(user.clone()) };
        EventBus::new().on_with(1, Lag::Drop, handler).detach();
    }

    #[cfg(mistake = "published_reference")]
    fn mistake() {
        let event = UserCreated;
        EventBus::new().publish(&event);
    }

    #[cfg(mistake = "published_reference_to_a_static")]
    async fn mistake() {
        static EVENT: UserCreated = UserCreated;
        EventBus::new().publish_and_wait(&EVENT).await;
    }

    #[cfg(mistake = "published_and_joined_reference")]
    async fn mistake() {
        EventBus::new().publish_and_join(&UserCreated).await;
    }

    #[cfg(mistake = "none")]
    async fn events_of_every_other_kind<E: Clone + Send + Sync + 'static, I>(event: E, items: I)
    where
        I: Iterator<Item: Clone + Send + Sync + 'static>,
    {
        let bus = EventBus::new();
        bus.on(async |_: UserCreated| {}).detach();
        bus.on(|_: UserCreated| async { io::Result::Ok(()) }).detach();
        bus.on(|_: E| async {}).detach();
        bus.on(|_: std::sync::Arc<UserCreated>| async {}).detach();
        bus.publish("text");
        bus.publish((1, Some(UserCreated)));
        bus.publish_and_wait(event.clone()).await;
        bus.publish_and_join(event).await;
        items.for_each(|item| drop(bus.publish(item)));
    }

    #[cfg(mistake = "none")]
    fn mistake() {
        let layer = TimeoutLayer::new(|_: &String| SECOND);
        let service = ServiceBuilder::new()
            .layer(RetryLayer::new())
            .layer(layer)
            .map_err(Error::Service)
            .service(service_fn(read));
        BoxCloneSyncService::new(service);
    }
}

#[cfg(not(mistake))]
mod tests {
    use std::{env, path::Path, process::Command};

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
            // The compiler truncates a long line.
            ("no_map_err_and_a_call", &["not a Service? see ziggurat::Reject"]),
            ("no_map_err_and_a_call_to_a_cache", &["not a Service? see ziggurat::Reject"]),
            ("no_map_err_in_a_recommended_stack", &["not a Service? see ziggurat::Reject"]),
            (
                "cache_of_a_stream",
                &["a cache cannot store a response of type `", "a streamed body must be collected inside the cache"],
            ),
            ("body_without_default", &["an `Infallible` HTTP service needs a response body that is `Default`"]),
            (
                "setting_of_another_type",
                &[
                    "is not a setting of type `Duration` for a request of type `String`",
                    "a closure that names its argument's type: `|req: &String| ..`, returning `Duration` or `Option<Duration>`",
                ],
            ),
            // Here the message cannot contain our explanation. The docs of `Reject` explain this one.
            ("bare_closure", &["implementation of `FnOnce` is not general enough"]),
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
            ("answer_that_has_no_body", &["for any other response write `.discard(ziggurat::retry::Dropped)`"]),
        ] {
            let (compiles, said) = compile(mistake);
            assert!(!compiles, "{mistake} compiles");
            for sentence in sentences {
                assert!(said.contains(sentence), "{mistake}: no `{sentence}` in\n{said}");
            }
        }
    }
}
