"""Who may do what, on either database: what changes holds from the next call on."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, func, select, update

from harmonia.errors import AuthenticationError, EntityNotFoundError, PermissionDeniedError
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.people import ApiKey, Team, TeamMember
from harmonia.server.services.access import Access, Caller
from harmonia.server.services.people.people import NewUser, People
from harmonia.server.services.people.projects import NewProject, Projects, ShareWish
from tests.integration.control.conftest import ADMIN, on_both

pytestmark = on_both


async def an_admin(database: Database) -> tuple[Caller, str]:
    api_key = await People(database).bootstrap(ADMIN)
    assert api_key is not None
    return await Access(database).caller(api_key), api_key


async def a_bot(database: Database, admin: Caller, role: str) -> str:
    await People(database).create_team(admin, "Support", None)
    new = NewUser(f"bot-{role}", teams=[("support", role)], is_system=True, with_key=True)
    _, api_key = await People(database).create_user(admin, new)
    assert api_key is not None
    return api_key


async def test_a_share_lets_in_with_its_role_and_no_more(database: Database) -> None:
    admin, _ = await an_admin(database)
    bot = await a_bot(database, admin, "admin")
    access, projects = Access(database), Projects(database)
    project = await projects.create(admin, NewProject("Tickets"))
    with pytest.raises(PermissionDeniedError, match="'project:infer' in project 'tickets'"):
        await access.in_project(bot, "tickets", "project:infer")
    await projects.share(admin, "tickets", [ShareWish("default", "admin", True), ShareWish("support", "inference")])
    by_key = await access.in_project(bot, "tickets", "project:infer")
    by_id = await access.in_project(bot, str(project.id), "project:infer")
    assert by_key == by_id and by_key.project_id == project.id
    with pytest.raises(PermissionDeniedError, match="project:update"):
        await access.in_project(bot, "tickets", "project:update")
    with pytest.raises(EntityNotFoundError, match="'nowhere' does not exist"):
        await access.in_project(bot, "nowhere", "project:infer")


async def test_members_of_the_reserved_team_enter_every_project(database: Database) -> None:
    admin, api_key = await an_admin(database)
    await People(database).create_team(admin, "Support", None)
    await Projects(database).create(admin, NewProject("Theirs", team="support"))
    assert (await Access(database).in_project(api_key, "theirs", "project:update")).project_key == "theirs"


@pytest.mark.parametrize("change", ["revoked", "expired", "member"])
async def test_a_change_holds_from_the_next_call_on(database: Database, change: str) -> None:
    admin, _ = await an_admin(database)
    bot = await a_bot(database, admin, "inference")
    access = Access(database)
    await Projects(database).create(admin, NewProject("Tickets", team="support"))
    caller = (await access.in_project(bot, "tickets", "project:infer")).caller
    async with database.begin() as session:
        if change == "member":
            await session.execute(delete(TeamMember).where(TeamMember.user_id == caller.user_id))
        else:
            keys = update(ApiKey).where(ApiKey.user_id == caller.user_id)
            moment = now_ms() - 1
            await session.execute(
                keys.values(revoked_at=moment) if change == "revoked" else keys.values(expires_at=moment)
            )
    with pytest.raises(PermissionDeniedError if change == "member" else AuthenticationError):
        await access.in_project(bot, "tickets", "project:infer")


async def test_the_command_line_acts_as_the_oldest_admin(database: Database) -> None:
    admin, _ = await an_admin(database)
    new = NewUser("Late", email="late@example.com", teams=[("admin", "admin")])
    await People(database).create_user(admin, new)
    assert (await People(database).operator()).email == ADMIN


async def test_transactions_at_the_same_time_all_count(database: Database) -> None:
    """On SQLite one waits for the other, though each has read before it writes."""
    admin, _ = await an_admin(database)

    async def create(number: int) -> None:
        await People(database).create_team(admin, f"Team {number}", None)

    await asyncio.gather(*(create(number) for number in range(20)))
    async with database.read() as session:
        assert (await session.execute(select(func.count()).select_from(Team))).scalar_one() == 22
