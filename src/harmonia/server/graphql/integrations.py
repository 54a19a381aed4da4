"""Integrations, and the notifications that go to them."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import Annotated, Any

import strawberry
from strawberry.scalars import JSON

from harmonia.server.graphql.context import Info
from harmonia.server.graphql.integration_inputs import (
    CreateIntegrationInput,
    DeliveryPolicy,
    TestNotificationInput,
    UpdateIntegrationInput,
    wish_of,
)
from harmonia.server.graphql.scalars import IdOrKey, Timestamp
from harmonia.server.services.notifications.connections import PROVIDERS
from harmonia.server.services.notifications.integrations import IntegrationInfo


@strawberry.enum
class IntegrationCapability(Enum):
    """What an integration can do."""

    NOTIFICATION_CHANNEL = "NOTIFICATION_CHANNEL"
    DATA_SOURCE = "DATA_SOURCE"
    CODE_SOURCE = "CODE_SOURCE"


@strawberry.enum
class DeliveryScope(Enum):
    """Whose events are told."""

    USER = "USER"
    TEAM = "TEAM"
    ORGANIZATION = "ORGANIZATION"
    ADMIN = "ADMIN"


@strawberry.type
class SlackConfig:
    """A channel of Slack; secrets are hidden."""

    webhook_url: str
    bot_token: str | None


@strawberry.type
class SmtpConfig:
    """A mail server; the password is never shown."""

    host: str
    port: int
    username: str | None
    password: str | None
    from_email: str
    to_emails: list[str]


@strawberry.type
class WebhookConfig:
    """An address that takes JSON; what its headers say is hidden."""

    url: str
    method: str
    headers: JSON


@strawberry.type(name="GitHubConfig")
class GithubConfig:
    """Repositories at GitHub; the token is hidden."""

    api_token: str
    org: str | None
    repo: str | None


ConnectionConfig = Annotated[
    SlackConfig | SmtpConfig | WebhookConfig | GithubConfig, strawberry.union("ConnectionConfig")
]
_CONFIGS: dict[str, type[Any]] = {
    "slack": SlackConfig,
    "smtp": SmtpConfig,
    "webhook": WebhookConfig,
    "github": GithubConfig,
}


@strawberry.type
class NotificationSubscription:
    """What an integration is told."""

    topic_pattern: str
    scope: DeliveryScope
    target_filter: JSON | None


@strawberry.type
class NotificationSettings:
    """Everything that it is told."""

    subscriptions: list[NotificationSubscription]


@strawberry.type
class IntegrationConfig:
    """How an integration is set up."""

    provider: str
    connection: ConnectionConfig
    notification_settings: NotificationSettings | None
    delivery_policy: DeliveryPolicy


@strawberry.type
class Integration:
    """A team's connection to a service outside."""

    id: uuid.UUID
    team_id: uuid.UUID
    name: str
    capabilities: list[IntegrationCapability]
    config: IntegrationConfig
    enabled: bool
    created_at: Timestamp

    @classmethod
    def of(cls, info: IntegrationInfo) -> Integration:
        """From its row and what may be shown of its connection."""
        row = info.row
        subscriptions = [
            NotificationSubscription(
                topic_pattern=item["topic_pattern"],
                scope=DeliveryScope(item["scope"]),
                target_filter=None if item["target_filter"] is None else JSON(item["target_filter"]),
            )
            for item in row.subscriptions
        ]
        config = IntegrationConfig(
            provider=row.provider,
            connection=_CONFIGS[row.provider](**info.connection),
            notification_settings=NotificationSettings(subscriptions=subscriptions),
            delivery_policy=DeliveryPolicy.multishot if row.retries else DeliveryPolicy.singleshot,
        )
        return cls(
            id=row.id,
            team_id=row.team_id,
            name=row.name,
            capabilities=[IntegrationCapability(name) for name in PROVIDERS[row.provider][1]],
            config=config,
            enabled=row.enabled,
            created_at=Timestamp(row.created_at),
        )


@strawberry.type
class Provider:
    """A kind of service."""

    name: str
    description: str
    capabilities: list[IntegrationCapability]
    allowed_scopes: list[DeliveryScope]

    @classmethod
    def named(cls, name: str) -> Provider:
        """From the table of providers."""
        description, capabilities, scopes = PROVIDERS[name]
        return cls(
            name=name,
            description=description,
            capabilities=[IntegrationCapability(item) for item in capabilities],
            allowed_scopes=[DeliveryScope(item) for item in scopes],
        )


@strawberry.type
class TestNotificationResult:
    """An event that was published as a test."""

    event_id: uuid.UUID
    message: str


@strawberry.type
class IntegrationQuery:
    """Integrations."""

    @strawberry.field
    async def integrations(self, info: Info, team: IdOrKey) -> list[Integration]:
        """Those of a team."""
        found = await info.context.services.integrations.all(info.context.caller, team)
        return [Integration.of(item) for item in found]

    @strawberry.field
    async def integration(self, info: Info, id: uuid.UUID) -> Integration | None:
        """One of them."""
        found = await info.context.services.integrations.find(info.context.caller, id)
        return None if found is None else Integration.of(found)

    @strawberry.field
    async def notification_system_status(self, info: Info) -> str:
        """What is on its way, in words."""
        waiting, failed = await info.context.services.integrations.status(info.context.caller)
        return f"{waiting} waiting, {failed} given up"

    @strawberry.field
    async def providers(self) -> list[Provider]:
        """Every kind of service."""
        return [Provider.named(name) for name in PROVIDERS]

    @strawberry.field
    async def provider(self, name: str) -> Provider | None:
        """One of them."""
        return Provider.named(name) if name in PROVIDERS else None


@strawberry.type
class IntegrationMutation:
    """Changing integrations."""

    @strawberry.mutation
    async def create_integration(self, info: Info, team: IdOrKey, input: CreateIntegrationInput) -> Integration:
        """An integration of a team."""
        wish = wish_of(input.name, input.config, None)
        integrations = info.context.services.integrations
        return Integration.of(await integrations.create(info.context.caller, team, input.provider, wish))

    @strawberry.mutation
    async def update_integration(self, info: Info, id: uuid.UUID, input: UpdateIntegrationInput) -> Integration:
        """Change one."""
        wish = wish_of(input.name, input.config, input.enabled)
        return Integration.of(await info.context.services.integrations.update(info.context.caller, id, wish))

    @strawberry.mutation
    async def delete_integration(self, info: Info, id: uuid.UUID) -> bool:
        """Forget one, and what was on its way there."""
        await info.context.services.integrations.delete(info.context.caller, id)
        return True

    @strawberry.mutation
    async def test_notification(self, info: Info, input: TestNotificationInput) -> TestNotificationResult:
        """Publish an event as a test."""
        event_id, count = await info.context.services.integrations.test(
            info.context.caller, input.topic, input.scope.wish(), input.payload.values()
        )
        told = f"goes to {count} integrations" if count else "goes nowhere: no integration subscribed to it"
        return TestNotificationResult(event_id=event_id, message=f"{input.topic} {told}")
