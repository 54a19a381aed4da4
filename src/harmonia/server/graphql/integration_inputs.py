"""What integrations shall be, as callers give it."""

from __future__ import annotations

import dataclasses
import uuid
from enum import Enum
from typing import Any

import strawberry
from strawberry.scalars import JSON

from harmonia.server.graphql.scalars import DateTimeText, IdOrKey
from harmonia.server.services.notifications.integrations import IntegrationWish, ScopeWish
from harmonia.server.services.notifications.topics import Subscription


@strawberry.enum
class DeliveryPolicy(Enum):
    """Repeat a delivery until it is received, or try it once."""

    multishot = "multishot"
    singleshot = "singleshot"


@strawberry.enum
class DeliveryPolicyInput(Enum):
    """The same, as it is given."""

    multishot = "multishot"
    singleshot = "singleshot"


@strawberry.enum
class DeliveryScopeInput(Enum):
    """Whose events shall be told."""

    USER = "USER"
    TEAM = "TEAM"
    ORGANIZATION = "ORGANIZATION"
    ADMIN = "ADMIN"


@strawberry.enum
class JobStatusGQL(Enum):
    """How a job stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    CANCELLED = "CANCELLED"
    ERROR = "ERROR"


@strawberry.input
class ConnectionConfigInputSlack:
    """A channel of Slack."""

    webhook_url: str
    bot_token: str | None = None


@strawberry.input
class ConnectionConfigInputSmtp:
    """A mail server."""

    host: str
    port: int
    username: str
    password: str
    from_email: str
    to_emails: list[str]


@strawberry.input
class ConnectionConfigInputWebhook:
    """An address that takes JSON."""

    url: str
    method: str
    headers: JSON


@strawberry.input(name="ConnectionConfigInputGitHub")
class ConnectionConfigInputGithub:
    """Repositories at GitHub."""

    api_token: str
    org: str | None = None
    repo: str | None = None


@strawberry.input
class ConnectionConfigInput:
    """One of them."""

    slack: ConnectionConfigInputSlack | None = None
    smtp: ConnectionConfigInputSmtp | None = None
    webhook: ConnectionConfigInputWebhook | None = None
    github: ConnectionConfigInputGithub | None = strawberry.field(name="gitHub", default=None)

    def given(self) -> dict[str, dict[str, Any]]:
        """By provider, what is there."""
        return {name: part for name, part in dataclasses.asdict(self).items() if part is not None}


@strawberry.input
class SubscriptionInput:
    """What shall be told."""

    topic_pattern: str
    scope: DeliveryScopeInput
    target_filter: JSON | None = None


@strawberry.input
class NotificationSettingsInput:
    """Everything that shall be told."""

    subscriptions: list[SubscriptionInput]


@strawberry.input
class CreateIntegrationConfigInput:
    """How a new integration is set up."""

    connection: ConnectionConfigInput
    notification_settings: NotificationSettingsInput | None = None
    delivery_policy: DeliveryPolicyInput | None = None


@strawberry.input
class CreateIntegrationInput:
    """A new integration."""

    name: str
    provider: str
    config: CreateIntegrationConfigInput


@strawberry.input
class UpdateIntegrationConfigInput:
    """What shall change of how it is set up."""

    connection: ConnectionConfigInput | None = None
    notification_settings: NotificationSettingsInput | None = None
    delivery_policy: DeliveryPolicyInput | None = None


@strawberry.input
class UpdateIntegrationInput:
    """What shall change of an integration."""

    name: str | None = None
    config: UpdateIntegrationConfigInput | None = None
    enabled: bool | None = None


@strawberry.input
class OrganizationInput:
    """Everybody."""

    empty: str | None = None


@strawberry.input
class AdminInput:
    """The team `admin`."""

    empty: str | None = None


@strawberry.input
class NotificationScopeInput:
    """Whom a test concerns."""

    user: list[uuid.UUID] | None = None
    team: IdOrKey | None = None
    organization: OrganizationInput | None = None
    admin: AdminInput | None = None

    def wish(self) -> ScopeWish:
        """For services."""
        return ScopeWish(tuple(self.user or ()), self.team, self.organization is not None, self.admin is not None)


@strawberry.input
class JobUpdatePayload:
    """What is told of a job."""

    job_id: uuid.UUID
    job_name: str
    job_status: JobStatusGQL
    job_progress: float
    job_started_at: DateTimeText
    project_id: uuid.UUID
    job_input: JSON
    job_outputs: list[JSON]
    job_ended_at: DateTimeText | None = None
    job_error: str | None = None

    def values(self) -> dict[str, Any]:
        """Under the names of the schema."""
        return {
            "jobId": str(self.job_id),
            "jobName": self.job_name,
            "jobStatus": self.job_status.value,
            "jobProgress": self.job_progress,
            "jobStartedAt": self.job_started_at,
            "jobEndedAt": self.job_ended_at,
            "projectId": str(self.project_id),
            "jobInput": self.job_input,
            "jobOutputs": self.job_outputs,
            "jobError": self.job_error,
        }


@strawberry.input
class NotificationPayload:
    """What a test tells."""

    job_update: JobUpdatePayload | None = None

    def values(self) -> dict[str, Any]:
        """Under the names of the schema."""
        return {} if self.job_update is None else self.job_update.values()


@strawberry.input
class TestNotificationInput:
    """An event that shall be published as a test."""

    topic: str
    scope: NotificationScopeInput
    payload: NotificationPayload


def wish_of(
    name: str | None, config: CreateIntegrationConfigInput | UpdateIntegrationConfigInput | None, enabled: bool | None
) -> IntegrationWish:
    """For services."""
    if config is None:
        return IntegrationWish(name=name, enabled=enabled)
    settings, policy = config.notification_settings, config.delivery_policy
    return IntegrationWish(
        name=name,
        connection=None if config.connection is None else config.connection.given(),
        subscriptions=None if settings is None else [_subscription(item) for item in settings.subscriptions],
        retries=None if policy is None else policy is DeliveryPolicyInput.multishot,
        enabled=enabled,
    )


def _subscription(item: SubscriptionInput) -> Subscription:
    wanted: Any = item.target_filter
    return Subscription(item.topic_pattern, item.scope.value, wanted)
