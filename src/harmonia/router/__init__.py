"""Picks the worker that answers a request."""

from harmonia.router.attempts import ELSEWHERE, Attempts
from harmonia.router.router import Replica, Router

__all__ = ["ELSEWHERE", "Attempts", "Replica", "Router"]
