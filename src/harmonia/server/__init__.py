"""The HTTP server: skins over `services/` that speak to workers through the router."""

from harmonia.server.app import create_app
from harmonia.server.listener import InternalListener, Listener, bind

__all__ = ["InternalListener", "Listener", "bind", "create_app"]
