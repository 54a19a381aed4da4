"""All services of the control plane, put together once."""

from __future__ import annotations

from harmonia.config.control import ControlConfig
from harmonia.server.db.database import Database
from harmonia.server.services.access import Access
from harmonia.server.services.people import People
from harmonia.server.services.projects import Projects


class Services:
    """What REST and GraphQL are skins of."""

    def __init__(self, config: ControlConfig, database: Database) -> None:
        self.config = config
        self.database = database
        self.access = Access(database)
        self.people = People(database)
        self.projects = Projects(database)

    async def start(self) -> None:
        """Begin what runs in the background."""

    async def close(self) -> None:
        """End it, losing nothing, and close the database."""
        await self.database.close()
