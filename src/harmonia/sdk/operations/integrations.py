"""Integrations: where notifications go, and where code comes from."""

from __future__ import annotations

from typing import Any

from harmonia.sdk.operations.base import Member, Result, mutation, optional, query


class SlackConfig(Member, frozen=True):
    """A channel of Slack."""

    webhook_url: str
    bot_token: str | None


class SmtpConfig(Member, frozen=True):
    """E-mail."""

    host: str
    port: int
    username: str | None
    from_email: str


class WebhookConfig(Member, frozen=True):
    """An address that is called."""

    url: str
    method: str
    headers: Any


class GitHubConfig(Member, frozen=True):
    """Repositories."""

    api_token: str
    org: str | None
    repo: str | None


class Subscription(Result, frozen=True):
    """Which events are told to whom."""

    topic_pattern: str
    scope: str
    target_filter: Any


class NotificationSettings(Result, frozen=True):
    """What is told."""

    subscriptions: list[Subscription]


class IntegrationConfig(Result, frozen=True):
    """How an integration is set up."""

    provider: str
    connection: SlackConfig | SmtpConfig | WebhookConfig | GitHubConfig
    notification_settings: NotificationSettings | None
    delivery_policy: str


class Integration(Result, frozen=True):
    """A connection of a team to something outside."""

    id: str
    team_id: str
    name: str
    capabilities: list[str]
    config: IntegrationConfig
    enabled: bool
    created_at: int


class Provider(Result, frozen=True):
    """A kind of integration."""

    name: str
    description: str
    capabilities: list[str]
    allowed_scopes: list[str]


class Notified(Result, frozen=True):
    """A notification that was sent to try it."""

    event_id: str
    message: str


INTEGRATIONS = query("integrations", list[Integration], team="IdOrKey!")
INTEGRATION = optional("integration", Integration, id="UUID!")
CREATE_INTEGRATION = mutation("createIntegration", Integration, team="IdOrKey!", input="CreateIntegrationInput!")
UPDATE_INTEGRATION = mutation("updateIntegration", Integration, id="UUID!", input="UpdateIntegrationInput!")
DELETE_INTEGRATION = mutation("deleteIntegration", bool, id="UUID!")
TEST_NOTIFICATION = mutation("testNotification", Notified, input="TestNotificationInput!")
PROVIDERS = query("providers", list[Provider])
PROVIDER = optional("provider", Provider, name="String!")
