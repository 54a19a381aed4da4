"""What a user interface asks before anything else."""

from __future__ import annotations

from enum import Enum

import strawberry

from harmonia.server.graphql.context import Info


@strawberry.enum
class AuthProviderKind(Enum):
    """How people log in."""

    OIDC = "OIDC"


@strawberry.type
class AuthProvider:
    """A way to log in. loginUrl: where to send the browser."""

    name: str
    key: str
    kind: AuthProviderKind
    login_url: str


@strawberry.type
class ProviderList:
    """Ways to log in."""

    providers: list[AuthProvider]


@strawberry.type
class MetaObject:
    """About this server. allowCustomImageTag: jobs run in the server's own environment, so never."""

    auth_providers: ProviderList
    allow_custom_image_tag: bool


@strawberry.type
class MetaQuery:
    """About this server."""

    @strawberry.field
    async def meta(self, info: Info) -> MetaObject:
        """What does not depend on who asks; `/api/v1/auth/providers` tells it to those who are not logged in yet."""
        logins = info.context.services.logins
        found = [
            AuthProvider(
                name=item.name,
                key=item.key,
                kind=AuthProviderKind.OIDC,
                login_url=logins.root_url + logins.login_path(item.key),
            )
            for item in logins.providers
        ]
        return MetaObject(auth_providers=ProviderList(providers=found), allow_custom_image_tag=False)
