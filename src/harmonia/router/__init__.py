"""Picks the worker that answers a request."""

from harmonia.router.router import Replica, Router

__all__ = ["Replica", "Router"]
