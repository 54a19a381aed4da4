"""Users, teams and roles."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, optional, query


class Team(Result, frozen=True):
    """People who share projects."""

    id: str
    key: str
    name: str
    created_at: int


class Role(Result, frozen=True):
    """A set of permissions."""

    id: str
    key: str
    name: str
    created_at: int
    permissions: list[str]


class Membership(Result, frozen=True):
    """A team of a user, and what the user is there."""

    team: Team
    role: Role


class User(Result, frozen=True):
    """A person (`user_type` HUMAN) or a service account (SYSTEM)."""

    id: str
    email: str
    name: str
    user_type: str
    created_at: int
    teams: list[Membership]


class TeamMember(Result, frozen=True):
    """A user in a team."""

    user: User
    team: Team
    role: Role


class NewUser(Result, frozen=True):
    """A user just made; `generated_api_key` is shown this once."""

    user: User
    generated_api_key: str | None


ME = optional("me", User)
USERS = query("users", list[User])
TEAMS = query("teams", list[Team])
ROLES = query("roles", list[Role])
PERMISSIONS = query("permissions", list[str])
CREATE_USER = mutation("createUser", NewUser, input="UserCreate!")
DELETE_USER = mutation("deleteUser", User, user="IdOrKey!")
SET_MEMBER = mutation("setTeamMember", TeamMember, input="TeamMemberSet!")
REMOVE_MEMBER = mutation("removeTeamMember", User, input="TeamMemberRemove!")
CREATE_TEAM = mutation("createTeam", Team, input="TeamCreate!")
CREATE_ROLE = mutation("createRole", Role, input="RoleCreate!")
UPDATE_ROLE = mutation("updateRole", Role, input="RoleUpdate!")
