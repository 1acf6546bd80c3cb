//! The handle of a circuit that callers open and close.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use ziggurat::circuit_breaker::CircuitBreakerHandle;

#[derive(Clone)]
pub(super) struct Switch {
    circuit: CircuitBreakerHandle,
    is_open: Arc<AtomicBool>,
}

impl Switch {
    pub(super) fn new(circuit: CircuitBreakerHandle) -> Self {
        Self { circuit, is_open: Arc::default() }
    }

    pub(super) fn open(&self) {
        self.is_open.store(true, SeqCst);
        self.circuit.force_open();
    }

    pub(super) fn close(&self) {
        self.is_open.store(false, SeqCst);
        self.circuit.close();
    }

    /// Closes the circuit if it was forced open, because it never half-opens then.
    pub(super) fn let_go(&self) {
        if self.is_open.load(SeqCst) {
            self.close();
        }
    }
}
