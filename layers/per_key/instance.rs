//! The instance of a layer that one key has.

use std::{any::Any, fmt, sync::Arc};

use crate::keep::Check;

/// A layer value, and the services that it has made: one for each service of the [`PerKeyLayer`](super::PerKeyLayer).
pub(super) struct Instance<L> {
    layer: Arc<L>,
    /// The checks of the first service. They stay when it goes: most layers share their state among their services.
    checks: Vec<Check>,
    /// Each call under way has a clone.
    calls: InFlight,
    /// By the number of the family.
    services: Vec<Option<FamilyService>>,
}

/// The service of a family. Those of two families have different types.
pub(super) struct FamilyService {
    service: Box<dyn Any + Send>,
    /// The checks that came with it, for a layer whose state is in the service.
    checks: Vec<Check>,
}

/// A call under way. The key of its instance is not dropped meanwhile.
#[derive(Debug, Clone)]
pub(super) struct InFlight(Arc<()>);

/// The part of an instance that a call needs.
pub(super) enum Joined<L, T> {
    Service(T, InFlight),
    /// This family has no service of the instance yet.
    NoService(Arc<L>, InFlight),
}

impl<L> Instance<L> {
    /// Creates an instance with its first service.
    pub(super) fn new<T: Clone + Send + 'static>(layer: L, family: usize, service: T, checks: Vec<Check>) -> Self {
        let calls = InFlight(Arc::new(()));
        let mut instance = Self { layer: Arc::new(layer), checks, calls, services: Vec::new() };
        instance.add_service(family, service, Vec::new());
        instance
    }

    /// Starts a call of a family's service.
    #[inline]
    pub(super) fn join<T: Clone + 'static>(&self, family: usize) -> Joined<L, T> {
        let service = self.services.get(family).and_then(|made| made.as_ref()?.service.downcast_ref::<T>());
        match service {
            Some(service) => Joined::Service(service.clone(), self.calls.clone()),
            None => Joined::NoService(Arc::clone(&self.layer), self.calls.clone()),
        }
    }

    /// Adds the service of a family, unless another call has added it meanwhile. Returns the service to use, and the
    /// values that are left over.
    pub(super) fn add_service<T: Clone + Send + 'static>(
        &mut self,
        family: usize,
        service: T,
        checks: Vec<Check>,
    ) -> (T, Option<(T, Vec<Check>)>) {
        if let Joined::Service(other, _) = self.join(family) {
            return (other, Some((service, checks)));
        }
        if self.services.len() <= family {
            self.services.resize_with(family + 1, || None);
        }
        self.services[family] = Some(FamilyService { service: Box::new(service.clone()), checks });
        (service, None)
    }

    pub(super) fn remove_service(&mut self, family: usize) -> Option<FamilyService> {
        self.services.get_mut(family)?.take()
    }

    /// Returns whether no call is under way, and the state of the layers is that of new ones.
    pub(super) fn is_idle(&mut self) -> bool {
        // Not the count: this one also sees the effects of the calls that are over.
        Arc::get_mut(&mut self.calls.0).is_some() && !self.still_matters()
    }

    fn still_matters(&self) -> bool {
        let later = self.services.iter().flatten().flat_map(|made| &made.checks);
        self.checks.iter().chain(later).any(Check::still_matters)
    }

    /// Describes the instance of a key.
    pub(super) fn describe<K>(&self, key: K) -> PerKeyInstance<K, L> {
        PerKeyInstance {
            key,
            layer: Arc::clone(&self.layer),
            in_flight: Arc::strong_count(&self.calls.0) - 1,
            still_matters: self.still_matters(),
        }
    }
}

/// The instance of one key, as it was when [`PerKeyHandle::instances`](super::PerKeyHandle::instances) looked.
#[non_exhaustive]
pub struct PerKeyInstance<K, L> {
    /// The key.
    pub key: K,
    /// The layer that `make` returned for the key. Its handle, if it has one, leads to the live state. If `make`
    /// returns a tuple of layers, that is a stack whose parts can be reached, as in `layer.0.handle()`.
    ///
    /// It outlives the instance: once the instance is dropped, it shares nothing with the next one of the same key.
    pub layer: Arc<L>,
    /// The number of calls under way, up to their responses.
    pub in_flight: usize,
    /// Whether a layer of the instance has state that a new one would not have. Such an instance is not dropped.
    pub still_matters: bool,
}

impl<K: fmt::Debug, L> fmt::Debug for PerKeyInstance<K, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerKeyInstance")
            .field("key", &self.key)
            .field("in_flight", &self.in_flight)
            .field("still_matters", &self.still_matters)
            .finish_non_exhaustive()
    }
}
