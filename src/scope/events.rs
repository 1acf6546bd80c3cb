//! The event bus of a scope.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering},
};

use super::{Scope, life::Owned};
use crate::events::{EventBus, Spawn};

impl Scope {
    /// Returns the event bus of the nearest [isolated](Self::isolated) scope, or else of the outermost scope.
    ///
    /// The bus is closed when that scope starts to close, and its streams end after their backlog. Handlers that are
    /// attached to it ([`EventBus::on`]) are tasks of that scope: they run in it, and its closing waits until they have
    /// handled their backlog, up to the [grace period](Self::grace).
    ///
    /// ```
    /// # use ziggurat::Scope;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// #[derive(Clone)]
    /// struct OrderPlaced(u32);
    ///
    /// let app = Scope::root("app");
    /// app.events().on(|OrderPlaced(id)| async move { println!("an e-mail about order {id}") }).detach();
    ///
    /// let request = app.child("request");
    /// assert_eq!(request.events().publish(OrderPlaced(7)), 1);
    /// app.close().await.unwrap(); // the e-mail is written
    /// # }
    /// ```
    #[must_use]
    pub fn events(&self) -> EventBus {
        let has_own = |scope: &&Self| scope.parent().is_none() || scope.inner.isolated.load(Ordering::Relaxed);
        let holder = self.outwards().find(has_own).unwrap_or(self);
        let Some(owned) = holder.owned() else {
            let events = EventBus::new();
            events.close();
            return events;
        };
        let events = owned.events.get_or_init(|| EventBus::of(Arc::new(Home(Arc::downgrade(owned))))).clone();
        // The closing sets its signal before it looks for a bus, so one of the two sees the other.
        if owned.told.is_given() {
            events.close();
        }
        events
    }

    /// Gives this scope an event bus of its own. Events published in this scope, or inside it, do not reach subscribers
    /// outside.
    #[must_use]
    pub fn isolated(self) -> Self {
        self.inner.isolated.store(true, Ordering::Relaxed);
        self
    }
}

/// The scope of a bus, held weakly. The handlers of the bus are tasks of the scope.
struct Home(Weak<Owned>);

impl Spawn for Home {
    fn spawn(&self, handling: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if let Some(scope) = self.0.upgrade().and_then(|owned| owned.scope()) {
            drop(scope.start(handling, None));
        }
    }
}
