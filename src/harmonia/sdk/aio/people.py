"""Users, teams, roles and permissions."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.errors import EntityNotFoundError
from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.operations import people
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.people import NewUser, Role, Team, TeamMember, User


class AsyncUsers(AsyncResource):
    """`adaptive.users`: people and service accounts, addressed by e-mail or id."""

    async def me(self) -> User | None:
        """Whoever calls."""
        return await self._transport.execute(people.ME)

    async def list(self) -> Sequence[User]:
        """Everybody."""
        return await self._transport.execute(people.USERS)

    async def get(self, user: str) -> User | None:
        """One of them."""
        return next((found for found in await self.list() if user in (found.email, found.id)), None)

    async def create(self, email: str, name: str, teams_with_role: Sequence[tuple[str, str]] = ()) -> User:
        """A person. teams_with_role: keys of teams and roles."""
        body = {"email": email, "name": name, "teams": _teams(teams_with_role)}
        return (await self._transport.execute(people.CREATE_USER, input=body)).user

    async def create_service_account(self, name: str, teams_with_role: Sequence[tuple[str, str]] = ()) -> NewUser:
        """An account for programs; its key is in the answer, and never shown again."""
        teams = _teams(teams_with_role)
        body = {"name": name, "teams": teams, "userType": "SYSTEM", "generateApiKey": True}
        return await self._transport.execute(people.CREATE_USER, input=body)

    async def delete(self, user: str) -> User:
        """The user's keys are refused from now on."""
        return await self._transport.execute(people.DELETE_USER, user=user)

    async def add_to_team(self, user: str, team: str, role: str) -> TeamMember:
        """Put a user into a team, or change what the user is there."""
        body = {"user": user, "team": team, "role": role}
        return await self._transport.execute(people.SET_MEMBER, input=body)

    async def remove_from_team(self, user: str, team: str) -> User:
        """Take a user out of a team."""
        return await self._transport.execute(people.REMOVE_MEMBER, input={"user": user, "team": team})


class AsyncTeams(AsyncResource):
    """`adaptive.teams`."""

    async def list(self) -> Sequence[Team]:
        """All teams."""
        return await self._transport.execute(people.TEAMS)

    async def create(self, key: str, name: str | None = None) -> Team:
        """A team; its name is its key unless given."""
        return await self._transport.execute(people.CREATE_TEAM, input={"key": key, "name": name or key})


class AsyncRoles(AsyncResource):
    """`adaptive.roles`: sets of permissions."""

    async def list(self) -> Sequence[Role]:
        """All roles."""
        return await self._transport.execute(people.ROLES)

    async def get(self, role: str) -> Role | None:
        """One of them, by key or id."""
        return next((found for found in await self.list() if role in (found.key, found.id)), None)

    async def create(self, key: str, permissions: Sequence[str], name: str | None = None) -> Role:
        """A role; its name is its key unless given."""
        body = {"key": key, "name": name or key, "permissions": permissions}
        return await self._transport.execute(people.CREATE_ROLE, input=body)

    async def update(self, role: str, permissions: Sequence[str] | None = None, name: str | None = None) -> Role:
        """Change what is given; `permissions` are all that it then has."""
        body = given(role=role, permissions=permissions, name=name)
        return await self._transport.execute(people.UPDATE_ROLE, input=body)

    async def add_permissions(self, role: str, permissions: Sequence[str]) -> Role:
        """Let a role do more."""
        found = await self._existing(role)
        return await self.update(role, sorted({*found.permissions, *permissions}))

    async def remove_permissions(self, role: str, permissions: Sequence[str]) -> Role:
        """Let a role do less."""
        found = await self._existing(role)
        return await self.update(role, sorted({*found.permissions} - {*permissions}))

    async def _existing(self, role: str) -> Role:
        found = await self.get(role)
        if found is None:
            raise EntityNotFoundError(f"Role {role!r} does not exist", entity="role")
        return found


class AsyncPermissions(AsyncResource):
    """`adaptive.permissions`."""

    async def list(self) -> Sequence[str]:
        """Everything that a role can permit."""
        return await self._transport.execute(people.PERMISSIONS)


def _teams(teams_with_role: Sequence[tuple[str, str]]) -> Sequence[dict[str, str]]:
    return [{"team": team, "role": role} for team, role in teams_with_role]
