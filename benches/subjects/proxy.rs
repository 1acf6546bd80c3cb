//! A reverse proxy: it sends each request on over a connection to an upstream that is kept alive.

use std::{convert::Infallible, error::Error as StdError};

use bytes::Bytes;
use http::{Request, Uri};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1::Builder as Server};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, Scope,
    propagate::PropagateLayer,
    replay::ReplayLayer,
    stack::{ClientStack, ServerStack},
    upload::UploadLayer,
};

use super::{
    LIMIT,
    link::{Link, Pipes},
    round_trip::{Answer, answer},
};

type BoxError = Box<dyn StdError + Send + Sync>;

/// The recommended server around the recommended client.
pub(super) fn ours<T: Link>() -> impl Answer {
    let upstream = ServiceBuilder::new()
        .layer(UploadLayer::new(LIMIT))
        .layer(ReplayLayer::new())
        .layer(ClientStack::http("upstream").until_body_end())
        .layer(PropagateLayer::new())
        .map_err(Error::Service)
        .service(upstream::<T, _>());
    ServiceBuilder::new().layer(ServerStack::new(&Scope::root("proxy"))).service_fn(move |request| {
        let response = upstream.clone().oneshot(to_upstream(request));
        async {
            let response = response.await.expect("a response");
            // The server rejects with an empty body of the same type.
            Ok::<_, Infallible>(response.map(|body| UnsyncBoxBody::new(body.map_err(BoxError::from))))
        }
    })
}

/// hyper alone.
pub(super) fn bare<T: Link>() -> impl Answer {
    let upstream = upstream::<T, _>();
    service_fn(move |request| {
        let response = upstream.clone().oneshot(to_upstream(request));
        async { Ok::<_, Infallible>(response.await.expect("a response")) }
    })
}

/// A client that is connected. Needs a runtime.
fn upstream<T: Link, B>() -> Client<Pipes<T>, B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let (near, far) = T::pair().expect("a connection");
    let connection = Server::new().serve_connection(TokioIo::new(far), TowerToHyperService::new(service_fn(answer)));
    tokio::spawn(connection);
    Client::builder(TokioExecutor::new()).build(Pipes::new(near))
}

fn to_upstream(mut request: Request<Incoming>) -> Request<Incoming> {
    *request.uri_mut() = Uri::from_static("http://upstream.test/prices");
    request
}
