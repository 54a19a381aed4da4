"""Blocks of the key/value cache, the index that finds equal prefixes, and the sessions that prefer them."""

from harmonia.cache.hashing import chain_root, extend_chain
from harmonia.cache.pool import BlockPool
from harmonia.cache.sessions import SessionTable

__all__ = ["BlockPool", "SessionTable", "chain_root", "extend_chain"]
