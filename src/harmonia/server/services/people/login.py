"""Logging in through OpenID providers, and the sessions of browsers."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.config.control import ControlConfig, OidcProvider
from harmonia.errors import AuthenticationError, EntityNotFoundError, InvalidRequestError, PermissionDeniedError
from harmonia.log import get_logger
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.logins import LoginSession, LoginState
from harmonia.server.db.people import Role, Team, TeamMember, User
from harmonia.server.services.access import ADMIN_TEAM, Caller
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_email
from harmonia.server.services.people.oidc import Identity, OpenIdProvider, Proof
from harmonia.server.services.secrets import application_secret

log = get_logger(__name__)

LOGIN_SECONDS = 600
"""How long somebody may take at the provider."""
_ADMIN_ROLE = "admin"


@dataclass(frozen=True, slots=True)
class Begun:
    """A log-in that was begun."""

    address: str
    """Of the provider, for the browser to go to."""
    cookie: str
    """What the browser keeps until it comes back."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A log-in that succeeded."""

    cookie: str
    """What the browser shows from now on."""
    destination: str
    """A path of this server."""


class Logins:
    """Everything about people who come with a browser."""

    def __init__(self, config: ControlConfig, database: Database) -> None:
        self._config = config
        self._database = database
        self._providers = {provider.key: provider for provider in config.auth.oidc.providers}

    @property
    def root_url(self) -> str:
        """Where people reach this server."""
        server = self._config.server
        return (server.root_url or f"http://{server.host}:{server.port}").rstrip("/")

    @property
    def providers(self) -> tuple[OidcProvider, ...]:
        """Those that people can log in with."""
        return tuple(self._providers.values())

    def login_path(self, key: str) -> str:
        """Where a log-in with a provider begins."""
        return f"/api/v1/auth/login/{key}"

    async def begin(self, key: str, destination: str = "/") -> Begun:
        """Where to send somebody. destination: the page to show afterwards, a path of this server."""
        provider, destination = self._provider(key), _checked_path(destination)
        state, cookie = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        address = await self._client(provider).address(self._proof(state, cookie))
        async with self._database.begin() as session:
            await session.execute(delete(LoginState).where(LoginState.expires_at <= now_ms()))
            session.add(
                LoginState(
                    digest=self._digest("state", f"{state}.{cookie}"),
                    provider=key,
                    destination=destination,
                    expires_at=now_ms() + LOGIN_SECONDS * 1000,
                )
            )
        return Begun(address, cookie)

    async def finish(
        self, key: str, answer: Mapping[str, str], cookie: str | None, previous: str | None = None
    ) -> LoggedIn:
        """Log in whoever came back. answer: the query of the provider's redirect. cookie: what `begin` gave to this
        browser. previous: its session until now, which ends.

        Raises `AuthenticationError` for an answer that proves nothing, `PermissionDeniedError` for somebody who may
        not come in, and `UnavailableError`.
        """
        provider, state = self._provider(key), answer.get("state", "")
        destination = await self._redeem(key, state, cookie or "")
        if "code" not in answer:
            reason = answer.get("error_description") or answer.get("error") or "no reason given"
            raise AuthenticationError(f"{provider.name} did not log you in: {reason}")
        proof = self._proof(state, cookie or "")
        identity = await self._client(provider).identity(answer["code"], proof, answer.get("iss"))
        email = self._admitted(provider, identity)
        token = secrets.token_urlsafe(32)
        async with self._database.begin() as session:
            user = await self._user(session, provider, identity, email)
            if identity.is_verified and email in {address.lower() for address in self._config.auth.admins}:
                await _join(session, user, ADMIN_TEAM, _ADMIN_ROLE)
            lifetime_ms = self._config.auth.session.expiration_seconds * 1000
            await session.execute(delete(LoginSession).where(LoginSession.expires_at <= now_ms()))
            await self._forget(session, previous)
            session.add(
                LoginSession(user_id=user.id, digest=self._digest("session", token), expires_at=now_ms() + lifetime_ms)
            )
            record(session, Caller(user.id, user.email), "user.login", f"user/{user.email}", provider=key)
        return LoggedIn(token, destination)

    async def caller(self, cookie: str) -> Caller:
        """Whoever is logged in with a cookie; `AuthenticationError` if nobody is any longer."""
        query = (
            select(User.id, User.email)
            .join(LoginSession, LoginSession.user_id == User.id)
            .where(
                LoginSession.digest == self._digest("session", cookie),
                LoginSession.expires_at > now_ms(),
                User.deleted_at.is_(None),
            )
        )
        async with self._database.read() as session:
            row = (await session.execute(query)).first()
        if row is None:
            raise AuthenticationError("the session has ended; log in again")
        return Caller(row.id, row.email)

    async def end(self, cookie: str) -> None:
        """Log out; a cookie that nobody is logged in with changes nothing."""
        async with self._database.begin() as session:
            user = await self._forget(session, cookie)
            if user is not None:
                record(session, Caller(user.id, user.email), "user.logout", f"user/{user.email}")

    # ------------------------------------------------------------------------------------------------- parts

    @cached_property
    def _secret(self) -> bytes:
        return application_secret(self._config).encode()

    def _digest(self, purpose: str, text: str) -> str:
        # Keyed, so that whoever can write to the database still cannot make a session.
        return hmac.new(
            self._secret, f"{purpose}:{text}".encode("utf-8", "surrogateescape"), hashlib.sha256
        ).hexdigest()

    def _proof(self, state: str, cookie: str) -> Proof:
        # Made of the cookie, so that the database holds nothing with which a code could be redeemed.
        return Proof(state, self._digest("nonce", cookie), self._digest("verifier", cookie))

    def _provider(self, key: str) -> OidcProvider:
        provider = self._providers.get(key)
        if provider is None:
            raise EntityNotFoundError(f"Log-in {key!r} does not exist", entity="provider")
        return provider

    def _client(self, provider: OidcProvider) -> OpenIdProvider:
        return OpenIdProvider(provider, f"{self.root_url}{self.login_path(provider.key)}/callback")

    async def _redeem(self, key: str, state: str, cookie: str) -> str:
        """The destination of a log-in that was begun in this browser; works once."""
        query = (
            delete(LoginState)
            .where(
                LoginState.digest == self._digest("state", f"{state}.{cookie}"),
                LoginState.provider == key,
                LoginState.expires_at > now_ms(),
            )
            .returning(LoginState.destination)
        )
        async with self._database.begin() as session:
            destination = (await session.execute(query)).scalar_one_or_none()
        if destination is None:
            raise AuthenticationError(
                "this log-in was not begun in this browser, or it was used up or took too long; log in again"
            )
        return destination

    def _admitted(self, provider: OidcProvider, identity: Identity) -> str:
        """The address of somebody whom the settings let in."""
        if provider.require_email_verified and not identity.is_verified:
            raise PermissionDeniedError(f"{provider.name} has not verified your e-mail address; verify it there first")
        email = checked_email(identity.email)
        domains = {domain.lower() for domain in provider.allowed_domains}
        if domains and email.rpartition("@")[2] not in domains:
            raise PermissionDeniedError(
                f"addresses like {email!r} may not log in here; ask an admin to allow the domain"
            )
        return email

    async def _user(self, session: AsyncSession, provider: OidcProvider, identity: Identity, email: str) -> User:
        """The account with an address, made if sign-up is on."""
        user = (await session.execute(select(User).where(User.email == email))).scalar_one_or_none()
        if user is None:
            if not provider.allow_sign_up:
                raise PermissionDeniedError(f"there is no account for {email!r}; ask an admin to make one")
            user = User(email=email, name=(identity.name or email.partition("@")[0]).strip()[:MAX_KEY] or email)
            session.add(user)
            await session.flush()
            await _join(session, user, self._config.auth.default_team, self._config.auth.default_role)
            record(session, None, "user.create", f"user/{email}", provider=provider.key)
        elif user.deleted_at is not None:
            # Signing up again must not undo what an admin did.
            raise PermissionDeniedError(f"the account of {email!r} was deleted; ask an admin to make it again")
        elif user.is_system:
            raise PermissionDeniedError(f"{email!r} is a service account, which calls with a key and does not log in")
        return user

    async def _forget(self, session: AsyncSession, cookie: str | None) -> User | None:
        """End a session: who it was."""
        if not cookie:
            return None
        query = delete(LoginSession).where(LoginSession.digest == self._digest("session", cookie))
        user_id = (await session.execute(query.returning(LoginSession.user_id))).scalar_one_or_none()
        return None if user_id is None else await session.get(User, user_id)


async def _join(session: AsyncSession, user: User, team: str, role: str) -> None:
    """Put somebody into a team that the settings name; members stay what they are."""
    team_id = (await session.execute(select(Team.id).where(Team.key == team))).scalar_one_or_none()
    role_id = (await session.execute(select(Role.id).where(Role.key == role))).scalar_one_or_none()
    if team_id is None or role_id is None:
        log.error("ADAPTIVE_AUTH__DEFAULT_TEAM or _ROLE names the team %r and role %r: one does not exist", team, role)
        raise PermissionDeniedError(
            "new people cannot be let in: the default team or role does not exist; ask an admin"
        )
    query = select(TeamMember.id).where(TeamMember.user_id == user.id, TeamMember.team_id == team_id)
    if (await session.execute(query)).first() is None:
        session.add(TeamMember(user_id=user.id, team_id=team_id, role_id=role_id))
        record(session, None, "team.set_member", f"team/{team}", user=user.email, role=role)


def _checked_path(destination: str) -> str:
    """A page of this server: nothing that a browser could take for another one."""
    is_plain = all("!" <= sign <= "~" and sign != "\\" for sign in destination)
    parts = urlsplit(destination) if is_plain and destination.startswith("/") else None
    if parts is None or parts.scheme or parts.netloc or destination.startswith("//"):
        raise InvalidRequestError(f"{destination!r} is no page of this server; give a path such as '/'", field="next")
    return destination
