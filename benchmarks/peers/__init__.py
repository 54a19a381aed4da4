"""Peers, one module each: it runs in the peer's own interpreter with the standard library and the peer."""
