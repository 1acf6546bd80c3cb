//! The services of one service of the layer and its clones: one for each key.

use std::{borrow::Borrow, hash::Hash, sync::Arc};

use tower_layer::Layer;

use super::{
    instance::{InFlight, Instance, Joined},
    registry::{Place, Registry},
};
use crate::keep;

/// A layer value may make many services, for example one for each route of a server. They share its instances, and
/// each has its own services inside.
pub(super) struct Family<K, L> {
    registry: Arc<Registry<K, L>>,
    number: usize,
}

impl<K, L> Family<K, L> {
    pub(super) fn new(registry: &Arc<Registry<K, L>>) -> Self {
        Self { registry: Arc::clone(registry), number: registry.add_family() }
    }

    /// Starts a call of the service of a key. Returns `None` if the key is beyond the maximum.
    #[inline]
    pub(super) fn admit<S, Q>(
        &self,
        key: &Q,
        inner: &S,
        make: &impl Fn(Option<&Q>) -> L,
    ) -> Option<(L::Service, InFlight)>
    where
        L: Layer<S, Service: Clone + Send + 'static>,
        S: Clone,
        K: Borrow<Q> + Eq,
        Q: ToOwned<Owned = K> + Hash + Eq + ?Sized,
    {
        let hash = self.registry.hash(key);
        match self.join(&Place::Key(hash, key)) {
            Some(Joined::Service(service, in_flight)) => Some((service, in_flight)),
            Some(joined) => Some(self.complete(joined, &Place::Key(hash, key), inner)),
            None => self.admit_new(hash, key, inner, make),
        }
    }

    #[inline]
    fn join<T: Clone + 'static, Q>(&self, place: &Place<'_, Q>) -> Option<Joined<L, T>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        self.registry.at(place, |instance| instance.map(|instance| instance.join(self.number)))
    }

    #[cold]
    fn admit_new<S, Q>(
        &self,
        hash: u64,
        key: &Q,
        inner: &S,
        make: &impl Fn(Option<&Q>) -> L,
    ) -> Option<(L::Service, InFlight)>
    where
        L: Layer<S, Service: Clone + Send + 'static>,
        S: Clone,
        K: Borrow<Q> + Eq,
        Q: ToOwned<Owned = K> + Eq + ?Sized,
    {
        let place = Place::Key(hash, key);
        let joined = match self.registry.room(hash) {
            Some(room) => {
                let instance = self.build(inner, || make(Some(key)));
                room.fill(hash, key.to_owned(), instance, |instance| instance.join(self.number))
            }
            // Another call of the same key may have taken the last room.
            None => self.join(&place).or_else(|| {
                self.registry.note_overflow();
                None
            })?,
        };
        Some(self.complete(joined, &place, inner))
    }

    /// Starts a call of the service of the instance that requests without one of their own share.
    pub(super) fn share<S>(&self, inner: &S, make: impl FnOnce() -> L) -> (L::Service, InFlight)
    where
        L: Layer<S, Service: Clone + Send + 'static>,
        S: Clone,
        K: Eq,
    {
        let place = Place::<K>::Shared;
        let joined = self.join(&place).unwrap_or_else(|| {
            let instance = self.build(inner, make);
            self.registry.share(instance, |instance| instance.join(self.number))
        });
        self.complete(joined, &place, inner)
    }

    fn build<S>(&self, inner: &S, make: impl FnOnce() -> L) -> Instance<L>
    where
        L: Layer<S, Service: Clone + Send + 'static>,
        S: Clone,
    {
        let ((layer, service), checks) = keep::collect(|| {
            let layer = make();
            let service = layer.layer(inner.clone());
            (layer, service)
        });
        Instance::new(layer, self.number, service, checks)
    }

    /// Adds this family's service to an instance that another family made.
    fn complete<S, Q>(&self, joined: Joined<L, L::Service>, place: &Place<'_, Q>, inner: &S) -> (L::Service, InFlight)
    where
        L: Layer<S, Service: Clone + Send + 'static>,
        S: Clone,
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let (layer, in_flight) = match joined {
            Joined::Service(service, in_flight) => return (service, in_flight),
            Joined::NoService(layer, in_flight) => (layer, in_flight),
        };
        let (service, checks) = keep::collect(|| layer.layer(inner.clone()));
        // The instance is there: the call is in flight. A service too many is dropped after the lock is released.
        let (service, _not_needed) = self.registry.at(place, |instance| match instance {
            Some(instance) => instance.add_service(self.number, service, checks),
            None => (service, None),
        });
        (service, in_flight)
    }
}

impl<K, L> Drop for Family<K, L> {
    fn drop(&mut self) {
        self.registry.remove_family(self.number);
    }
}
