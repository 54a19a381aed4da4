"""What a permission check costs: every inference call makes one, in the database, before anything else."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from sqlalchemy import insert

from benchmarks import postgres
from benchmarks.machine import Record
from harmonia.server.db.database import Database
from harmonia.server.db.people import ApiKey, Role, RolePermission, Team, TeamMember, User
from harmonia.server.db.projects import Project, ProjectShare
from harmonia.server.db.tables import METADATA
from harmonia.server.services.access import Access, digest_of
from harmonia.server.services.permissions import DEFAULT_ROLES

PERMISSION = "project:infer"
BOUND_MS = {"sqlite": 1.0, "postgresql": 2.0}
"""Of the median."""
USERS_PER_TEAM = 50
TEAMS_PER_USER = 2
TEAMS_PER_PROJECT = 3
AT_ONCE = 8
"""Checks under way while throughput is measured."""


class Crowd(NamedTuple):
    """How much a database holds, and how it is asked."""

    users: int
    projects: int
    rate: float
    """Checks a second, at random times."""
    seconds: float
    seed: int


class Question(NamedTuple):
    """A key, and a project in which it may infer."""

    api_key: str
    project: str


def control(kinds: Sequence[str], crowd: Crowd, machine: Record) -> Iterator[Record]:
    """One record for each kind of database."""
    for kind in kinds:
        with empty(kind) as address:
            yield {"kind": "control", "database": kind, **asyncio.run(_measured(address, crowd)), "machine": machine}


@contextmanager
def empty(kind: str) -> Iterator[str]:
    """The address of an empty database."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder, 'harmonia.db')}"
    else:
        with postgres.running() as server:
            yield server.new_database()


async def _measured(address: str, crowd: Crowd) -> Record:
    database, draw = Database(address), random.Random(crowd.seed)
    try:
        questions = await fill(database, crowd, draw)
        access = Access(database)
        for question in questions[:AT_ONCE]:
            await _ask(access, question)
        times_ms = sorted(await _at_random_times(access, questions, crowd, draw))
        per_second = await _as_fast_as_it_goes(access, questions, min(crowd.seconds, 5.0))
        p50 = median(times_ms)
        return {
            "users": crowd.users,
            "projects": crowd.projects,
            "rate": crowd.rate,
            "checks": len(times_ms),
            "p50_ms": round(p50, 3),
            "p99_ms": round(quantiles(times_ms, n=100)[98], 3),
            "max_ms": round(times_ms[-1], 3),
            "per_second": round(per_second),
            "ok": p50 <= BOUND_MS[database.url.get_backend_name()],
        }
    finally:
        await database.close()


async def _at_random_times(
    access: Access, questions: Sequence[Question], crowd: Crowd, draw: random.Random
) -> list[float]:
    """Milliseconds of each check; like callers, none waits for the one before it."""
    times_ms: list[float] = []

    async def check(question: Question, began: float) -> None:
        await _ask(access, question)
        times_ms.append(1000.0 * (time.perf_counter() - began))

    start = due = time.perf_counter()
    async with asyncio.TaskGroup() as checks:
        while (due := due + draw.expovariate(crowd.rate)) < start + crowd.seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            checks.create_task(check(draw.choice(questions), time.perf_counter()))
    return times_ms


async def _as_fast_as_it_goes(access: Access, questions: Sequence[Question], seconds: float) -> float:
    end, done = time.perf_counter() + seconds, 0

    async def ask(offset: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await _ask(access, questions[(offset + done) % len(questions)])
            done += 1

    await asyncio.gather(*(ask(number) for number in range(AT_ONCE)))
    return done / seconds


async def _ask(access: Access, question: Question) -> None:
    await access.in_project(question.api_key, question.project, PERMISSION)


async def fill(database: Database, crowd: Crowd, draw: random.Random) -> list[Question]:
    """Users with a key each, in teams, and projects that teams share; what may be asked."""
    roles = {key: uuid.uuid4() for key in DEFAULT_ROLES}
    able = [roles[key] for key, (_, permissions) in DEFAULT_ROLES.items() if PERMISSION in permissions]
    teams = [uuid.uuid4() for _ in range(max(TEAMS_PER_PROJECT, TEAMS_PER_USER * crowd.users // USERS_PER_TEAM))]
    users = {uuid.uuid4(): f"hk-{number}" for number in range(crowd.users)}
    members = {user: draw.sample(teams, TEAMS_PER_USER) for user in users}
    projects = {f"project-{number}": uuid.uuid4() for number in range(crowd.projects)}
    shares = {key: draw.sample(teams, TEAMS_PER_PROJECT) for key in projects}
    rows = {
        Role: [{"id": role, "key": key, "name": key} for key, role in roles.items()],
        RolePermission: [
            {"role_id": roles[key], "permission": item} for key, (_, items) in DEFAULT_ROLES.items() for item in items
        ],
        Team: [{"id": team, "key": f"team-{number}", "name": ""} for number, team in enumerate(teams)],
        User: [{"id": user, "email": f"{key}@example.com", "name": key} for user, key in users.items()],
        ApiKey: [{"user_id": user, "digest": digest_of(key), "hint": key[:8]} for user, key in users.items()],
        TeamMember: [
            {"user_id": user, "team_id": team, "role_id": draw.choice(able)}
            for user, found in members.items()
            for team in found
        ],
        Project: [{"id": project, "key": key, "name": key, "settings": {}} for key, project in projects.items()],
        ProjectShare: [
            {"project_id": projects[key], "team_id": team, "role_id": draw.choice(able), "is_owner": number == 0}
            for key, found in shares.items()
            for number, team in enumerate(found)
        ],
    }
    async with database.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    async with database.begin() as session:
        for table, values in rows.items():
            await session.execute(insert(table), values)
    inside = {team: [] for team in teams}  # type: dict[uuid.UUID, list[str]]
    for key, found in shares.items():
        for team in found:
            inside[team].append(key)
    return [
        Question(users[user], project) for user, found in members.items() for team in found for project in inside[team]
    ]
