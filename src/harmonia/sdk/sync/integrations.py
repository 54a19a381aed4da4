# Made by scripts/generate of src/harmonia/sdk/aio/integrations.py: change that file, then run the script.
"""Integrations of teams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.sdk.inputs import camel
from harmonia.sdk.operations import integrations
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.integrations import Integration, Notified, Provider
from harmonia.sdk.sync.resource import Resource

ProviderName = Literal["slack", "smtp", "webhook", "github"]
DeliveryPolicy = Literal["multishot", "singleshot"]
CONNECTIONS = {"slack": "slack", "smtp": "smtp", "webhook": "webhook", "github": "gitHub"}


class Integrations(Resource):
    """`adaptive.integrations`: where notifications go, and where code comes from."""

    def list(self, team: str) -> Sequence[Integration]:
        """Those of a team."""
        return self._transport.execute(integrations.INTEGRATIONS, team=team)

    def get(self, id: str) -> Integration | None:
        """One of them."""
        return self._transport.execute(integrations.INTEGRATION, id=id)

    def create(
        self,
        team: str,
        name: str,
        provider: ProviderName,
        connection: Mapping[str, Any],
        subscriptions: Sequence[Mapping[str, Any]] | None = None,
        delivery_policy: DeliveryPolicy | None = None,
    ) -> Integration:
        """Connect a team to something outside.

        connection: of slack `webhook_url`, `bot_token`; of smtp `host`, `port`, `username`, `password`, `from_email`,
        `to_emails`; of webhook `url`, `method`, `headers`; of github `api_token`, `org`, `repo`. subscriptions:
        `{"topic_pattern": ..., "scope": ...}`.
        """
        config = _config(provider, connection, subscriptions, delivery_policy)
        body = {"name": name, "provider": provider, "config": config}
        return self._transport.execute(integrations.CREATE_INTEGRATION, team=team, input=body)

    def update(
        self,
        id: str,
        name: str | None = None,
        enabled: bool | None = None,
        connection: Mapping[str, Any] | None = None,
        subscriptions: Sequence[Mapping[str, Any]] | None = None,
        delivery_policy: DeliveryPolicy | None = None,
    ) -> Integration:
        """Change what is given; `connection` is of the kind that `create` took."""
        provider = None if connection is None else self._provider(id)
        config = _config(provider, connection, subscriptions, delivery_policy)
        body = given(name=name, enabled=enabled, config=config or None)
        return self._transport.execute(integrations.UPDATE_INTEGRATION, id=id, input=body)

    def delete(self, id: str) -> bool:
        """Remove one."""
        return self._transport.execute(integrations.DELETE_INTEGRATION, id=id)

    def test_notification(
        self, topic: str, scope: Mapping[str, Any], payload: Mapping[str, Mapping[str, Any]]
    ) -> Notified:
        """Send a notification to try it.

        scope: `{"team": ...}`, `{"user": [...]}`, `{"organization": {}}`. payload: `{"job_update": {"job_id": ...}}`.
        """
        told = {camel(kind): _named(details) for kind, details in payload.items()}
        body = {"topic": topic, "scope": scope, "payload": told}
        return self._transport.execute(integrations.TEST_NOTIFICATION, input=body)

    def list_providers(self) -> Sequence[Provider]:
        """The kinds of integrations."""
        return self._transport.execute(integrations.PROVIDERS)

    def get_provider(self, name: str) -> Provider | None:
        """One of them."""
        return self._transport.execute(integrations.PROVIDER, name=name)

    def _provider(self, id: str) -> str:
        found = self.get(id)
        if found is None:
            raise EntityNotFoundError(f"Integration {id!r} does not exist", entity="integration")
        return found.config.provider


def _config(
    provider: str | None,
    connection: Mapping[str, Any] | None,
    subscriptions: Sequence[Mapping[str, Any]] | None,
    delivery_policy: DeliveryPolicy | None,
) -> dict[str, Any]:
    if connection is not None and provider not in CONNECTIONS:
        raise InvalidRequestError(f"provider is one of {', '.join(CONNECTIONS)}, not {provider!r}", field="provider")
    settings = None if subscriptions is None else {"subscriptions": [_named(item) for item in subscriptions]}
    connected = None if connection is None else {CONNECTIONS[str(provider)]: _named(connection)}
    return given(connection=connected, notificationSettings=settings, deliveryPolicy=delivery_policy)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    return {camel(name): value for name, value in values.items()}
