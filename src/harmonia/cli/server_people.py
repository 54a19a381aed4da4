"""`harmonia role`, `harmonia user` and `harmonia team`: who may do what on a server."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from harmonia.cli.app import app
from harmonia.cli.server_access import PANEL, moment, server, show, show_one
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.sdk.operations.people import Role, User

roles = typer.Typer(name="role", help="Sets of permissions of a server.", no_args_is_help=True)
users = typer.Typer(name="user", help="People and service accounts of a server.", no_args_is_help=True)
teams = typer.Typer(name="team", help="Teams of a server.", no_args_is_help=True)
for group in (roles, users, teams):
    app.add_typer(group, rich_help_panel=PANEL)

RoleArgument = Annotated[str, typer.Argument(metavar="ROLE", help="Key or id.", show_default=False)]
Permissions = Annotated[list[str], typer.Argument(help="Such as project:read.", show_default=False)]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="E-mail or id.", show_default=False)]
TeamArgument = Annotated[str, typer.Argument(metavar="TEAM", help="Key or id.", show_default=False)]
NameOption = Annotated[str | None, typer.Option("--name", "-n", help="The key unless given.")]


@roles.command("create")
def create_role(
    key: Annotated[str, typer.Argument(show_default=False)], permissions: Permissions, name: NameOption = None
) -> None:
    """A role that permits what is listed."""
    with server() as adaptive:
        _show_role(adaptive.roles.create(key, permissions, name))


@roles.command("describe")
def describe_role(role: RoleArgument) -> None:
    """What a role permits."""
    with server() as adaptive:
        found = adaptive.roles.get(role)
        if found is None:
            raise EntityNotFoundError(f"there is no role {role!r}; `harmonia role list` lists them", entity="role")
        _show_role(found)


@roles.command("list")
def list_roles() -> None:
    """All roles."""
    with server() as adaptive:
        found = adaptive.roles.list()
        rows = {role.id: (role.key, role.name, len(role.permissions), moment(role.created_at)) for role in found}
        show(rows, ("key", "name", "permissions", "made"))


@roles.command("add-permission")
def add_permission(role: RoleArgument, permissions: Permissions) -> None:
    """Let a role do more."""
    with server() as adaptive:
        _show_role(adaptive.roles.add_permissions(role, permissions))


@roles.command("remove-permission")
def remove_permission(role: RoleArgument, permissions: Permissions) -> None:
    """Let a role do less."""
    with server() as adaptive:
        _show_role(adaptive.roles.remove_permissions(role, permissions))


@users.command("create")
def create_user(
    name: Annotated[str, typer.Argument(show_default=False)],
    email: Annotated[str | None, typer.Option("--email", "-e", help="Of a person.")] = None,
    kind: Annotated[
        Literal["human", "system"], typer.Option("--type", "-t", help="A person, or an account for programs.")
    ] = "human",
    team: Annotated[
        list[str] | None, typer.Option("--team", metavar="TEAM=ROLE", help="A team to join; repeat for more.")
    ] = None,
) -> None:
    """A user. The key of an account for programs is shown this once."""
    with server() as adaptive:
        joined = [_team_and_role(text) for text in team or ()]
        if kind == "system":
            made = adaptive.users.create_service_account(name, joined)
            _show_user(made.user)
            Console(stderr=True).print(f"API key: {made.generated_api_key}", highlight=False, soft_wrap=True)
            return
        if email is None:
            raise InvalidRequestError("a person has an e-mail; give --email, or --type system", field="email")
        _show_user(adaptive.users.create(email, name, joined))


@users.command("delete")
def delete_user(user: UserArgument) -> None:
    """Let a user in no longer."""
    with server() as adaptive:
        _show_user(adaptive.users.delete(user))


@users.command("describe")
def describe_user(user: UserArgument) -> None:
    """A user and the user's teams."""
    with server() as adaptive:
        found = adaptive.users.get(user)
        if found is None:
            raise EntityNotFoundError(f"there is no user {user!r}; `harmonia user list` lists them", entity="user")
        _show_user(found)


@users.command("list")
def list_users(
    kind: Annotated[
        Literal["human", "system"] | None, typer.Option("--type", "-t", help="People, or accounts for programs, only.")
    ] = None,
) -> None:
    """Everybody."""
    with server() as adaptive:
        found = [user for user in adaptive.users.list() if kind in (None, user.user_type.lower())]
        rows = {user.id: (user.email, user.name, user.user_type.lower(), _teams_of(user)) for user in found}
        show(rows, ("e-mail", "name", "type", "teams"))


@teams.command("create")
def create_team(key: Annotated[str, typer.Argument(show_default=False)], name: NameOption = None) -> None:
    """A team."""
    with server() as adaptive:
        made = adaptive.teams.create(key, name)
        show_one(made.id, {"team": made.key, "name": made.name, "id": made.id})


@teams.command("add-member")
def add_member(
    team: TeamArgument,
    user: UserArgument,
    role: Annotated[str, typer.Argument(help="What the user is there.", show_default=False)],
) -> None:
    """Put a user into a team, or change what the user is there."""
    with server() as adaptive:
        _show_user(adaptive.users.add_to_team(user, team, role).user)


@teams.command("remove-member")
def remove_member(team: TeamArgument, user: UserArgument) -> None:
    """Take a user out of a team."""
    with server() as adaptive:
        _show_user(adaptive.users.remove_from_team(user, team))


@teams.command("list")
def list_teams() -> None:
    """All teams."""
    with server() as adaptive:
        rows = {team.id: (team.key, team.name, moment(team.created_at)) for team in adaptive.teams.list()}
        show(rows, ("key", "name", "made"))


def _team_and_role(text: str) -> tuple[str, str]:
    team, separator, role = text.partition("=")
    if not (team and separator and role):
        raise InvalidRequestError(f"--team wants TEAM=ROLE, got {text!r}", field="team")
    return team, role


def _show_role(role: Role) -> None:
    show_one(role.id, {"role": role.key, "name": role.name, "permissions": role.permissions, "id": role.id})


def _show_user(user: User) -> None:
    kind = user.user_type.lower()
    show_one(user.id, {"user": user.email, "name": user.name, "type": kind, "teams": _teams_of(user), "id": user.id})


def _teams_of(user: User) -> list[str]:
    return [f"{membership.team.key}={membership.role.key}" for membership in user.teams]
