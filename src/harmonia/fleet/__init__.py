"""Fleets: where workers run, and what keeps them running."""

from harmonia.fleet.local import LocalFleet

__all__ = ["LocalFleet"]
