"""The HTTP server: skins over `services/` that speak to workers through the router."""

from harmonia.server.app import create_app

__all__ = ["create_app"]
