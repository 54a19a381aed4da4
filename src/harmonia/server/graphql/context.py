"""What resolvers need, and how they get it."""

from __future__ import annotations

from typing import Any

from strawberry.fastapi import BaseContext
from strawberry.types import Info as StrawberryInfo

from harmonia.server.services.access import Caller
from harmonia.server.services.services import Services


class Context(BaseContext):
    """The caller of one request, and the services."""

    def __init__(self, services: Services, caller: Caller) -> None:
        super().__init__()
        self.services = services
        self.caller = caller


Info = StrawberryInfo[Context, Any]
