# Made by scripts/generate of src/harmonia/sdk/aio/people.py: change that file, then run the script.
"""Users, teams, roles and permissions."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.errors import EntityNotFoundError
from harmonia.sdk.operations import people
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.people import NewUser, Role, Team, TeamMember, User
from harmonia.sdk.sync.resource import Resource


class Users(Resource):
    """`adaptive.users`: people and service accounts, addressed by e-mail or id."""

    def me(self) -> User | None:
        """Whoever calls."""
        return self._transport.execute(people.ME)

    def list(self) -> Sequence[User]:
        """Everybody."""
        return self._transport.execute(people.USERS)

    def get(self, user: str) -> User | None:
        """One of them."""
        return next((found for found in self.list() if user in (found.email, found.id)), None)

    def create(self, email: str, name: str, teams_with_role: Sequence[tuple[str, str]] = ()) -> User:
        """A person. teams_with_role: keys of teams and roles."""
        body = {"email": email, "name": name, "teams": _teams(teams_with_role)}
        return (self._transport.execute(people.CREATE_USER, input=body)).user

    def create_service_account(self, name: str, teams_with_role: Sequence[tuple[str, str]] = ()) -> NewUser:
        """An account for programs; its key is in the answer, and never shown again."""
        teams = _teams(teams_with_role)
        body = {"name": name, "teams": teams, "userType": "SYSTEM", "generateApiKey": True}
        return self._transport.execute(people.CREATE_USER, input=body)

    def delete(self, user: str) -> User:
        """The user's keys are refused from now on."""
        return self._transport.execute(people.DELETE_USER, user=user)

    def add_to_team(self, user: str, team: str, role: str) -> TeamMember:
        """Put a user into a team, or change what the user is there."""
        body = {"user": user, "team": team, "role": role}
        return self._transport.execute(people.SET_MEMBER, input=body)

    def remove_from_team(self, user: str, team: str) -> User:
        """Take a user out of a team."""
        return self._transport.execute(people.REMOVE_MEMBER, input={"user": user, "team": team})


class Teams(Resource):
    """`adaptive.teams`."""

    def list(self) -> Sequence[Team]:
        """All teams."""
        return self._transport.execute(people.TEAMS)

    def create(self, key: str, name: str | None = None) -> Team:
        """A team; its name is its key unless given."""
        return self._transport.execute(people.CREATE_TEAM, input={"key": key, "name": name or key})


class Roles(Resource):
    """`adaptive.roles`: sets of permissions."""

    def list(self) -> Sequence[Role]:
        """All roles."""
        return self._transport.execute(people.ROLES)

    def get(self, role: str) -> Role | None:
        """One of them, by key or id."""
        return next((found for found in self.list() if role in (found.key, found.id)), None)

    def create(self, key: str, permissions: Sequence[str], name: str | None = None) -> Role:
        """A role; its name is its key unless given."""
        body = {"key": key, "name": name or key, "permissions": permissions}
        return self._transport.execute(people.CREATE_ROLE, input=body)

    def update(self, role: str, permissions: Sequence[str] | None = None, name: str | None = None) -> Role:
        """Change what is given; `permissions` are all that it then has."""
        body = given(role=role, permissions=permissions, name=name)
        return self._transport.execute(people.UPDATE_ROLE, input=body)

    def add_permissions(self, role: str, permissions: Sequence[str]) -> Role:
        """Let a role do more."""
        found = self._existing(role)
        return self.update(role, sorted({*found.permissions, *permissions}))

    def remove_permissions(self, role: str, permissions: Sequence[str]) -> Role:
        """Let a role do less."""
        found = self._existing(role)
        return self.update(role, sorted({*found.permissions} - {*permissions}))

    def _existing(self, role: str) -> Role:
        found = self.get(role)
        if found is None:
            raise EntityNotFoundError(f"Role {role!r} does not exist", entity="role")
        return found


class Permissions(Resource):
    """`adaptive.permissions`."""

    def list(self) -> Sequence[str]:
        """Everything that a role can permit."""
        return self._transport.execute(people.PERMISSIONS)


def _teams(teams_with_role: Sequence[tuple[str, str]]) -> Sequence[dict[str, str]]:
    return [{"team": team, "role": role} for team, role in teams_with_role]
