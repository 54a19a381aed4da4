"""The base of all records."""

from harmonia.client.data import DtoBaseModel

__all__ = ["DtoBaseModel"]
