"""Integrations through the published SDK, and what arrives at the services behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socketserver
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client import (
    ConnectionConfigInputGitHub,
    ConnectionConfigInputSlack,
    ConnectionConfigInputSmtp,
    ConnectionConfigInputWebhook,
    DeliveryScopeInput,
    NotificationPayload,
    SubscriptionInput,
)
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError
from adaptive_sdk.graphql_client.input_types import JobUpdatePayload
from sqlalchemy import select

from harmonia.config.control import App, ControlConfig
from harmonia.config.control import Notifications as Settings
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.integrations import Delivery, Integration
from harmonia.server.db.people import Team
from harmonia.server.services.notifications.channels import signature
from harmonia.server.services.notifications.notifications import Notifications
from harmonia.server.services.notifications.topics import Scope, admits, checked_topic, matches
from harmonia.server.services.secrets import SECRET_FILE, Secrets
from tests.integration.control.conftest import Plane, on_both
from tests.integration.control.receiving import Listener


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def plane(tmp_path: Path, database_address: str) -> Iterator[Plane]:
    """One whose integrations may be on this machine."""
    settings = Settings(allow_private=True)
    with Plane(ControlConfig(data_dir=tmp_path, db={"url": database_address}, notifications=settings)) as plane:
        yield plane


def wants(pattern: str, scope: str = "TEAM", **only: Any) -> SubscriptionInput:
    return SubscriptionInput(topicPattern=pattern, scope=DeliveryScopeInput(scope), targetFilter=only or None)


def webhook(url: str, **headers: str) -> ConnectionConfigInputWebhook:
    return ConnectionConfigInputWebhook(url=url, method="POST", headers=headers)


def job(**changes: Any) -> NotificationPayload:
    values: dict[str, Any] = {
        "jobId": str(uuid.uuid4()),
        "jobName": "train",
        "jobStatus": "DONE",
        "jobProgress": 1.0,
        "jobStartedAt": "2026-01-01T00:00:00Z",
        "projectId": str(uuid.uuid4()),
        "jobInput": {},
        "jobOutputs": [],
    }
    return NotificationPayload(jobUpdate=JobUpdatePayload(**{**values, **changes}))


def test_a_webhook_is_told_and_can_check_who_told(plane: Plane, adaptive: Adaptive, listener: Listener) -> None:
    made = adaptive.integrations.create(
        "default",
        "Hook",
        "webhook",
        webhook(listener.url, Authorization="Bearer topsecret"),
        [wants("project:*:job:*")],
    )
    key = made.config.connection.headers["X-Harmonia-Secret"]
    assert made.config.connection.headers["Authorization"] == "Bear****"
    assert made.config.delivery_policy.value == "multishot"
    told = adaptive.integrations.test_notification("use_case:lab:job:completed", job(), scope_team="default")
    assert "1 integrations" in told.message
    path, headers, body = listener.next()
    message = json.loads(body)
    assert path == "/hook"
    assert headers["authorization"] == "Bearer topsecret"
    assert "x-harmonia-secret" not in headers
    assert headers["x-harmonia-event"] == message["id"] == str(told.event_id)
    assert headers["x-harmonia-signature"] == signature(key, headers["x-harmonia-timestamp"], body)
    assert message["topic"] == "use_case:lab:job:completed"
    assert message["payload"]["jobName"] == "train"
    answer = httpx.post(
        f"{plane.url}/api/graphql",
        json={"query": "{ notificationSystemStatus }", "operationName": None, "variables": {}},
        headers={"Authorization": f"Bearer {plane.api_key}"},
    )
    assert "0 given up" in answer.json()["data"]["notificationSystemStatus"]


def test_slack_gets_a_text(adaptive: Adaptive, listener: Listener) -> None:
    slack = ConnectionConfigInputSlack(webhookUrl=f"{listener.url}/secret", botToken="xoxb-0123456789abcdef")
    made = adaptive.integrations.create("default", "Slack", "slack", slack, [wants("*")])
    assert made.config.connection.webhook_url == f"{listener.url}/****"
    assert made.config.connection.bot_token == "xoxb****"
    adaptive.integrations.test_notification(
        "project:lab:job:failed", job(jobError="out of memory"), scope_team="default"
    )
    path, _, body = listener.next()
    assert path == "/hook/secret"
    assert "jobError: out of memory" in json.loads(body)["text"]


@on_both
def test_only_what_was_subscribed_arrives(plane: Plane, adaptive: Adaptive, listener: Listener) -> None:
    create, test = adaptive.integrations.create, adaptive.integrations.test_notification
    adaptive.teams.create("other", "Other")
    made = create("default", "Hook", "webhook", webhook(listener.url), [wants("project:a:*", jobStatus=["ERROR"])])
    for topic, payload, scope in (
        ("project:b:job:failed", job(jobStatus="ERROR"), {"scope_team": "default"}),
        ("project:a:job:done", job(), {"scope_team": "default"}),
        ("project:a:job:failed", job(jobStatus="ERROR"), {"scope_team": "other"}),
        ("project:a:job:failed", job(jobStatus="ERROR"), {"scope_organization": True}),
        ("project:a:job:failed", job(jobStatus="ERROR"), {"scope_admin": True}),
    ):
        assert "goes nowhere" in test(topic, payload, **scope).message
    assert "1 integrations" in test("project:a:job:failed", job(jobStatus="ERROR"), scope_team="default").message
    listener.next()
    adaptive.integrations.update(str(made.id), enabled=False)
    assert "goes nowhere" in test("project:a:job:failed", job(jobStatus="ERROR"), scope_team="default").message
    everywhere = [wants("*", "ORGANIZATION"), wants("*", "USER")]
    adaptive.integrations.update(str(made.id), enabled=True, subscriptions=everywhere)
    assert "1 integrations" in test("anything", job(), scope_organization=True).message
    me = adaptive.users.me()
    assert me is not None
    assert "1 integrations" in test("anything", job(), scope_user=[str(me.id)]).message
    assert listener.arrived.qsize() <= 2


def test_changes_keep_what_an_answer_hides(adaptive: Adaptive, listener: Listener) -> None:
    hook = webhook(listener.url, **{"Authorization": "Bearer topsecret", "X-Plain": "a"})
    made = adaptive.integrations.create("default", "Hook", "webhook", hook, [wants("*")], "singleshot")
    shown = adaptive.integrations.get(str(made.id))
    assert shown is not None
    assert shown.config.delivery_policy.value == "singleshot"
    again = webhook(shown.config.connection.url, **shown.config.connection.headers)
    adaptive.integrations.update(str(made.id), name="Renamed", connection=again)
    adaptive.integrations.test_notification("t", job(), scope_team="default")
    _, headers, body = listener.next()
    assert (headers["authorization"], headers["x-plain"]) == ("Bearer topsecret", "a")
    key = made.config.connection.headers["X-Harmonia-Secret"]
    assert headers["x-harmonia-signature"] == signature(key, headers["x-harmonia-timestamp"], body)
    assert [item.name for item in adaptive.integrations.list("default")] == ["Renamed"]
    assert adaptive.integrations.delete(str(made.id))
    assert adaptive.integrations.get(str(made.id)) is None


def test_what_is_hidden_is_not_sent_elsewhere(adaptive: Adaptive) -> None:
    create, update = adaptive.integrations.create, adaptive.integrations.update
    hook = webhook("http://a.example/x", Authorization="Bearer topsecret")
    made = create("default", "Hook", "webhook", hook)
    shown = made.config.connection.headers["Authorization"]
    for address in ("http://b.example/x", "https://a.example/x", "http://a.example:81/x"):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=r"hidden stays with http://a\.example"):
            update(str(made.id), connection=webhook(address, Authorization=shown))
    update(str(made.id), connection=webhook("http://a.example/y", Authorization=shown))
    update(str(made.id), connection=webhook("http://b.example/y", Authorization="anew"))
    mail = {"port": 587, "username": "u", "fromEmail": "a@b.cd", "toEmails": ["e@f.gh"]}
    kept = create("default", "Mail", "smtp", ConnectionConfigInputSmtp(host="a.example", password="secret", **mail))
    again = ConnectionConfigInputSmtp(host="b.example", password="****", **mail)
    with pytest.raises(GraphQLClientGraphQLMultiError, match=r"what is hidden stays with a\.example:587"):
        update(str(kept.id), connection=again)


def test_providers_and_other_connections(adaptive: Adaptive) -> None:
    query = adaptive._gql_client
    assert [item.name for item in query.list_providers().providers] == ["slack", "smtp", "webhook", "github"]
    github = query.describe_provider("github").provider
    assert github is not None
    assert [item.value for item in github.capabilities] == ["CODE_SOURCE"]
    assert query.describe_provider("pigeon").provider is None
    token = ConnectionConfigInputGitHub(apiToken="ghp_0123456789abcdef", org="us", repo=None)
    made = adaptive.integrations.create("default", "Code", "github", token)
    assert (made.config.connection.api_token, made.config.connection.org) == ("ghp_****", "us")
    mail = ConnectionConfigInputSmtp(
        host="mail.example", port=587, username="u", password="secret", fromEmail="a@b.cd", toEmails=["e@f.gh"]
    )
    assert adaptive.integrations.create("default", "Mail", "smtp", mail).config.connection.host == "mail.example"


def test_mistakes_are_named(adaptive: Adaptive) -> None:
    create = adaptive.integrations.create
    github = ConnectionConfigInputGitHub(apiToken="ghp_0123456789abcdef")
    mail = {"host": "h", "port": 25, "username": "u", "password": "p", "fromEmail": "a@b.cd", "toEmails": []}
    get = ConnectionConfigInputWebhook(url="http://a.example", method="GET", headers={})
    for provider, connection, subscriptions, says in (
        ("webhook", webhook("ftp://a.example"), [], "http://"),
        ("webhook", webhook("http://user:password@a.example"), [], "leave user and password out"),
        ("webhook", get, [], "method: one of POST"),
        ("webhook", webhook("http://a.example", Host="b.example"), [], "'Host'"),
        ("webhook", webhook("http://a.example", **{"X-A": "a\r\nX-B: b"}), [], "one line"),
        ("webhook", webhook("http://a.example"), [wants("with space")], "no topic"),
        ("webhook", webhook("http://a.example"), [wants("*", "ADMIN")], "of the team 'admin'"),
        ("github", github, [wants("*")], "no subscriptions"),
        ("smtp", ConnectionConfigInputSmtp(**mail), [], "at least one address"),
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=says):
            create("default", "Wrong", provider, connection, subscriptions)
    assert adaptive.integrations.list("default") == []
    assert adaptive.integrations.get(str(uuid.uuid4())) is None
    with pytest.raises(Exception, match=r"(?i)integration"):
        adaptive.integrations.delete(str(uuid.uuid4()))


def test_teams_keep_to_themselves(
    adaptive: Adaptive, listener: Listener, adaptive_as: Callable[[str], Adaptive]
) -> None:
    made = adaptive.integrations.create("default", "Hook", "webhook", webhook(listener.url), [wants("*")])
    adaptive.teams.create("other", "Other")
    account = adaptive.users.create_service_account(name="bot", teams_with_role=[("other", "platform-admin")])
    bot = adaptive_as(account.api_key)
    assert bot.integrations.get(str(made.id)) is None
    for attempt in (
        lambda: bot.integrations.list("default"),
        lambda: bot.integrations.create("default", "Mine", "webhook", webhook(listener.url)),
        lambda: bot.integrations.delete(str(made.id)),
        lambda: bot.integrations.test_notification("t", job(), scope_team="default"),
        lambda: bot.integrations.test_notification("t", job(), scope_organization=True),
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=r"lacks the permission|not a member of the team"):
            attempt()
    assert bot.integrations.create("other", "Mine", "webhook", webhook(listener.url)).name == "Mine"


# ---------------------------------------------------------------------------------------------- the outbox


async def integration(database: Database, secrets: Secrets, provider: str, connection: Any, **more: Any) -> uuid.UUID:
    async with database.begin() as session:
        team = Team(key="default", name="Default")
        session.add(team)
        await session.flush()
        subscription = {"topic_pattern": "*", "scope": "TEAM", "target_filter": None}
        sealed = secrets.seal(json.dumps(connection))
        values = {"name": "hook", "subscriptions": [subscription], "retries": True, **more}
        session.add(Integration(team_id=team.id, provider=provider, sealed=sealed, **values))
        return team.id


async def deliveries(database: Database) -> list[Delivery]:
    async with database.read() as session:
        return list((await session.execute(select(Delivery))).scalars())


async def until_ended(database: Database) -> Delivery:
    async with asyncio.timeout(60):
        while True:
            (row,) = await deliveries(database)
            if row.state != "waiting":
                return row
            await asyncio.sleep(0.02)


def hook(url: str) -> dict[str, Any]:
    return {"url": url, "method": "POST", "headers": {}, "secret": "s"}


@pytest.fixture
def outbox(database: Database, tmp_path: Path) -> tuple[Database, Secrets]:
    return database, Secrets(ControlConfig(data_dir=tmp_path))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short."""
    monkeypatch.setattr("harmonia.server.services.notifications.notifications._FIRST_WAIT_MS", 10)
    monkeypatch.setattr("harmonia.server.services.notifications.notifications._LOOK_S", 0.02)


LOCAL = Settings(allow_private=True, seconds=15, attempts=3)


@on_both
async def test_a_restart_loses_nothing(database: Database, tmp_path: Path, listener: Listener) -> None:
    secrets = Secrets(ControlConfig(data_dir=tmp_path))
    team = await integration(database, secrets, "webhook", hook(listener.url))
    before = Notifications(LOCAL, database, secrets)  # never started: as if it died at once
    event, count = await before.publish("t", Scope(teams=(team,)), {"at": uuid.UUID(int=1)})
    await before.close()
    assert count == 1
    after = Notifications(LOCAL, database, Secrets(ControlConfig(data_dir=tmp_path)))
    after.start()
    assert (await until_ended(database)).state == "sent"
    assert json.loads(listener.next()[2]) == {
        "id": str(event),
        "topic": "t",
        "created_at": (await deliveries(database))[0].created_at,
        "payload": {"at": str(uuid.UUID(int=1))},
    }
    await after.close()
    assert listener.arrived.empty()


async def test_an_event_of_a_change_that_is_undone_is_not_told(database: Database, tmp_path: Path) -> None:
    secrets = Secrets(ControlConfig(data_dir=tmp_path))
    team = await integration(database, secrets, "webhook", hook("http://127.0.0.1:1"))
    notifications = Notifications(LOCAL, database, secrets)

    async def change() -> None:
        async with database.begin() as session:
            await notifications.publish("t", Scope(teams=(team,)), {}, session)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await change()
    assert await deliveries(database) == []
    await notifications.close()


@pytest.mark.parametrize(
    ("statuses", "retries", "ending"),
    [
        ([503, 200], True, ("sent", 2)),
        ([503], False, ("failed", 1)),
        ([500], True, ("failed", 3)),
        ([404], True, ("failed", 1)),
        ([302], True, ("failed", 1)),
    ],
)
@pytest.mark.usefixtures("soon")
async def test_deliveries_are_repeated_while_that_makes_sense(
    outbox: tuple[Database, Secrets], listener: Listener, statuses: list[int], retries: bool, ending: tuple[str, int]
) -> None:
    database, secrets = outbox
    listener.statuses = statuses
    team = await integration(database, secrets, "webhook", hook(listener.url), retries=retries)
    notifications = Notifications(LOCAL, database, secrets)
    notifications.start()
    await notifications.publish("t", Scope(teams=(team,)), {})
    row = await until_ended(database)
    assert (row.state, row.attempts) == ending
    assert (row.error is None) == (row.state == "sent")
    assert listener.arrived.qsize() == row.attempts
    await notifications.close()


async def test_private_addresses_are_refused_by_default(database: Database, tmp_path: Path, listener: Listener) -> None:
    secrets = Secrets(ControlConfig(data_dir=tmp_path))
    team = await integration(database, secrets, "webhook", hook(listener.url))
    notifications = Notifications(Settings(), database, secrets)
    notifications.start()
    await notifications.publish("t", Scope(teams=(team,)), {})
    row = await until_ended(database)
    assert row.state == "failed"
    assert "ADAPTIVE_NOTIFICATIONS__ALLOW_PRIVATE" in str(row.error)
    assert listener.arrived.empty()
    await notifications.close()


class Mailbox(socketserver.StreamRequestHandler):
    """A mail server that speaks just enough, and offers no encryption."""

    mails: ClassVar[list[str]] = []

    def handle(self) -> None:
        self.wfile.write(b"220 hello\r\n")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(lambda: self.rfile.readline().decode(), ".\r\n")
                self.mails.append("".join(lines))
            self.wfile.write(b"221 bye\r\n" if word == "QUIT" else b"250 ok\r\n")
            if word == "QUIT":
                return


class Dawdler(socketserver.BaseRequestHandler):
    """One that always says something, and never comes to an end."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.request.sendall(b"2")
                time.sleep(0.1)


@contextlib.contextmanager
def mail_server(kind: type[socketserver.BaseRequestHandler], password: str = "") -> Iterator[dict[str, Any]]:
    """How it is reached."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield {
            "host": "127.0.0.1",
            "port": server.server_address[1],
            "username": "u",
            "password": password,
            "from_email": "harmonia@example.com",
            "to_emails": ["a@example.com", "b@example.com"],
        }
        server.shutdown()


async def mailed(outbox: tuple[Database, Secrets], settings: Settings, connection: dict[str, Any]) -> Delivery:
    """What became of a message."""
    database, secrets = outbox
    team = await integration(database, secrets, "smtp", connection, retries=False)
    notifications = Notifications(settings, database, secrets)
    notifications.start()
    await notifications.publish("project:lab:job:failed", Scope(teams=(team,)), {"jobName": "größer"})
    row = await until_ended(database)
    await notifications.close()
    return row


@pytest.mark.parametrize(("password", "state"), [("", "sent"), ("secret", "failed")])
async def test_mail_is_sent_and_passwords_never_in_clear(
    outbox: tuple[Database, Secrets], password: str, state: str
) -> None:
    Mailbox.mails.clear()
    with mail_server(Mailbox, password) as connection:
        row = await mailed(outbox, LOCAL, connection)
    assert row.state == state
    if password:
        assert "not sent in clear" in str(row.error)
    else:
        assert "To: a@example.com, b@example.com" in Mailbox.mails[0]
        assert "Subject: Harmonia: project:lab:job:failed" in Mailbox.mails[0]


async def test_a_mail_server_that_never_comes_to_an_end_is_left(outbox: tuple[Database, Secrets]) -> None:
    with mail_server(Dawdler) as connection:
        row = await mailed(outbox, Settings(allow_private=True, seconds=1), connection)
    assert (row.state, "it took longer than 1 s" in str(row.error)) == ("failed", True), row.error


# ---------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("project:lab:job:done", "project:lab:job:done", True),
        ("project:lab:job:done", "use_case:lab:job:done", True),
        ("use_case:*:job:*", "project:lab:job:done", True),
        ("project:*:done", "project:lab:job:done", True),
        ("*", "anything", True),
        ("project:lab:*", "project:laboratory:job:done", False),
        ("project:l.b:*", "project:lab:job", False),
        ("project:lab", "project:lab:job", False),
    ],
)
def test_patterns(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


def test_filters_and_topics() -> None:
    assert admits({"a": 1, "b": ["x", "y"]}, {"a": 1, "b": "y", "c": 2})
    assert not admits({"a": 1}, {})
    for wrong in ("", "a b", "a\n", "a*", "x" * 600):
        with pytest.raises(InvalidRequestError, match="no topic"):
            checked_topic(wrong, "topic")


def test_secrets_are_sealed_with_a_key_that_only_the_server_reads(tmp_path: Path) -> None:
    secrets = Secrets(ControlConfig(data_dir=tmp_path))
    sealed = secrets.seal("hunter2")
    assert "hunter2" not in sealed
    assert Secrets(ControlConfig(data_dir=tmp_path)).open(sealed) == "hunter2"
    assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600
    other = Secrets(ControlConfig(data_dir=tmp_path, app=App(secret="s" * 64)))
    with pytest.raises(HarmoniaError, match="ADAPTIVE_APP__SECRET"):
        other.open(sealed)


def test_nothing_secret_lies_in_the_database(plane: Plane, adaptive: Adaptive, tmp_path: Path) -> None:
    adaptive.integrations.create(
        "default", "Hook", "webhook", webhook("http://a.example", Authorization="hunter2hunter2")
    )
    with httpx.Client() as client:  # the log is written through
        client.get(plane.url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
