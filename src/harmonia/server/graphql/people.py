"""Users, teams and roles."""

from __future__ import annotations

import uuid
from enum import Enum

import strawberry

from harmonia.server.db import people as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.scalars import IdOrKey, Key, Timestamp
from harmonia.server.services.people.people import Membership, NewUser, RoleInfo
from harmonia.server.services.people.user_changes import UserChange
from harmonia.server.services.permissions import PERMISSIONS


@strawberry.type
class Team:
    """People who share projects."""

    id: uuid.UUID
    key: str
    name: str
    created_at: Timestamp

    @classmethod
    def of(cls, row: db.Team) -> Team:
        """From its row."""
        return cls(id=row.id, key=row.key, name=row.name, created_at=Timestamp(row.created_at))


@strawberry.type
class Role:
    """A set of permissions."""

    id: uuid.UUID
    key: str
    name: str
    created_at: Timestamp
    permissions: list[str]

    @classmethod
    def of(cls, info: RoleInfo) -> Role:
        """From its row and permissions."""
        row = info.role
        created_at, permissions = Timestamp(row.created_at), list(info.permissions)
        return cls(id=row.id, key=row.key, name=row.name, created_at=created_at, permissions=permissions)


@strawberry.type(name="TeamWithrole")
class TeamWithRole:
    """A team of a user, and what the user is there."""

    team: Team
    role: Role


@strawberry.enum
class UserType(Enum):
    """A person, or a service account."""

    HUMAN = "HUMAN"
    SYSTEM = "SYSTEM"


@strawberry.type
class User:
    """Somebody who calls."""

    id: uuid.UUID
    email: str
    name: str
    created_at: Timestamp
    user_type: UserType
    deleted: bool
    deleted_at: Timestamp | None

    @classmethod
    def of(cls, row: db.User) -> User:
        """From its row."""
        kind = UserType.SYSTEM if row.is_system else UserType.HUMAN
        created_at = Timestamp(row.created_at)
        gone = None if row.deleted_at is None else Timestamp(row.deleted_at)
        return cls(
            id=row.id,
            email=row.email,
            name=row.name,
            created_at=created_at,
            user_type=kind,
            deleted=gone is not None,
            deleted_at=gone,
        )

    @strawberry.field
    async def first_activity(self, info: Info) -> Timestamp | None:
        """When the user first asked a model or changed something."""
        first, _ = await info.context.services.user_changes.activity(self.id)
        return None if first is None else Timestamp(first)

    @strawberry.field
    async def last_activity(self, info: Info) -> Timestamp | None:
        """When the user last did."""
        _, last = await info.context.services.user_changes.activity(self.id)
        return None if last is None else Timestamp(last)

    @strawberry.field
    async def teams(self, info: Info) -> list[TeamWithRole]:
        """The user's teams."""
        found = await info.context.services.people.memberships([self.id])
        return [TeamWithRole(team=Team.of(item.team), role=Role.of(item.role)) for item in found[self.id]]


@strawberry.type
class TeamMember:
    """A user in a team."""

    user: User
    team: Team
    role: Role

    @classmethod
    def of(cls, item: Membership) -> TeamMember:
        """From its rows."""
        return cls(user=User.of(item.user), team=Team.of(item.team), role=Role.of(item.role))


@strawberry.type
class UserCreateResult:
    """A new user, and the key that is shown this once."""

    user: User
    generated_api_key: str | None


@strawberry.input
class UserCreateTeamWithRole:
    """A team to join."""

    team: IdOrKey
    role: IdOrKey


@strawberry.input
class UserCreate:
    """A new user."""

    name: str
    teams: list[UserCreateTeamWithRole]
    email: str | None = None
    user_type: UserType = UserType.HUMAN
    generate_api_key: bool | None = None


@strawberry.input
class UserUpdate:
    """What shall be different about a user."""

    name: str | None = None
    add_teams: list[UserCreateTeamWithRole] | None = None
    remove_teams: list[IdOrKey] | None = None


@strawberry.input
class TeamMemberSet:
    """What a user shall be in a team."""

    user: IdOrKey
    team: IdOrKey
    role: IdOrKey


@strawberry.input
class TeamMemberRemove:
    """Who shall leave which team."""

    user: IdOrKey
    team: IdOrKey


@strawberry.input
class TeamCreate:
    """A new team."""

    name: str
    key: Key | None = None


@strawberry.input
class RoleCreate:
    """A new role."""

    name: str
    permissions: list[str]
    key: Key | None = None


@strawberry.input
class RoleUpdate:
    """What a role shall be from now on; what is not given stays."""

    role: IdOrKey
    name: str | None = None
    permissions: list[str] | None = None


@strawberry.type
class PeopleQuery:
    """Who there is."""

    @strawberry.field
    async def me(self, info: Info) -> User | None:
        """The caller."""
        row = await info.context.services.people.me(info.context.caller)
        return None if row is None else User.of(row)

    @strawberry.field
    async def users(self, info: Info) -> list[User]:
        """Everybody."""
        return [User.of(row) for row in await info.context.services.people.users(info.context.caller)]

    @strawberry.field
    async def teams(self, info: Info) -> list[Team]:
        """All teams."""
        return [Team.of(row) for row in await info.context.services.people.teams(info.context.caller)]

    @strawberry.field
    async def roles(self, info: Info) -> list[Role]:
        """All roles."""
        return [Role.of(item) for item in await info.context.services.people.roles(info.context.caller)]

    @strawberry.field
    async def permissions(self) -> list[str]:
        """Everything that a role can permit."""
        return list(PERMISSIONS)


@strawberry.type
class PeopleMutation:
    """Changing who there is."""

    @strawberry.mutation
    async def create_user(self, info: Info, input: UserCreate) -> UserCreateResult:
        """A user or a service account."""
        new = NewUser(
            name=input.name,
            email=input.email,
            teams=[(item.team, item.role) for item in input.teams],
            is_system=input.user_type is UserType.SYSTEM,
            with_key=bool(input.generate_api_key),
        )
        row, api_key = await info.context.services.people.create_user(info.context.caller, new)
        return UserCreateResult(user=User.of(row), generated_api_key=api_key)

    @strawberry.mutation
    async def delete_user(self, info: Info, user: IdOrKey) -> User:
        """The user's keys are refused from now on."""
        return User.of(await info.context.services.people.delete_user(info.context.caller, user))

    @strawberry.mutation
    async def update_user(self, info: Info, user: IdOrKey, input: UserUpdate) -> User:
        """Change a user's name and teams."""
        teams = [(item.team, item.role) for item in input.add_teams or ()]
        change = UserChange(input.name, teams, input.remove_teams or ())
        return User.of(await info.context.services.user_changes.update(info.context.caller, user, change))

    @strawberry.mutation
    async def reactivate_user(self, info: Info, user: IdOrKey) -> User:
        """Let somebody in again who was deleted; teams and keys are to be given anew."""
        return User.of(await info.context.services.user_changes.reactivate(info.context.caller, user))

    @strawberry.mutation
    async def set_team_member(self, info: Info, input: TeamMemberSet) -> TeamMember:
        """Put a user into a team, or change what the user is there."""
        people = info.context.services.people
        return TeamMember.of(await people.set_member(info.context.caller, input.user, input.team, input.role))

    @strawberry.mutation
    async def remove_team_member(self, info: Info, input: TeamMemberRemove) -> User:
        """Take a user out of a team."""
        people = info.context.services.people
        return User.of(await people.remove_member(info.context.caller, input.user, input.team))

    @strawberry.mutation
    async def create_team(self, info: Info, input: TeamCreate) -> Team:
        """A team."""
        return Team.of(await info.context.services.people.create_team(info.context.caller, input.name, input.key))

    @strawberry.mutation
    async def create_role(self, info: Info, input: RoleCreate) -> Role:
        """A role."""
        people = info.context.services.people
        return Role.of(await people.create_role(info.context.caller, input.name, input.key, input.permissions))

    @strawberry.mutation
    async def update_role(self, info: Info, input: RoleUpdate) -> Role:
        """Whoever has the role may do what it says from the next call on."""
        people = info.context.services.people
        return Role.of(await people.update_role(info.context.caller, input.role, input.name, input.permissions))
