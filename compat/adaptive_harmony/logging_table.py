"""Tables that metric loggers take."""

from harmonia.client.table import Table

__all__ = ["Table"]
