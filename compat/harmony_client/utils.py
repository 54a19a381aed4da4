"""Identifiers."""

from harmonia.client.identifiers import uuid_v7

__all__ = ["uuid_v7"]
