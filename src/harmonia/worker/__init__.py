"""The worker: an I/O process that speaks the protocol, and a device process that owns the engine."""
